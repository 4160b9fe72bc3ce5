// Text from a file inside a message.
#pragma once

#include <string>
#include <string_view>

namespace qkv::io {

/// `text` in quotes, shortened to about 80 bytes, with whatever could confuse a terminal or a reader (control
/// characters, bidirectional overrides, bytes that are not UTF-8) escaped.
[[nodiscard]] std::string quote(std::string_view text);

}  // namespace qkv::io
