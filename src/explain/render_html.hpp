// One JSON document of stages (viewer/schema.md) as one HTML page that needs nothing else.
#pragma once

#include <string>
#include <string_view>

namespace qkv::explain {

/// The page that shows `json_document`: template, style and script of viewer/ around it. A strict
/// Content-Security-Policy (default-src 'none', script and style by hash) keeps it from loading or sending anything.
/// The document is carried as data with every `<`, U+2028 and U+2029 escaped, so no token can end the element it stands
/// in. Without JavaScript the page shows the weights of the first stage as a table, at most 12 × 12.
///
/// From a document of more than 4 MB the tensors [queries, keys] that the page computes itself are left out, so that it
/// opens without a wait; what it cannot know (dropout's draw, a padding mask) stays.
///
/// Throws Error(format) if `json_document` is no JSON object with an array "tokens" and a non-empty array "stages".
[[nodiscard]] std::string render_html(std::string_view json_document);

}  // namespace qkv::explain
