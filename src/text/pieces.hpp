// How byte-pair encoding cuts a text before anything is joined.
#pragma once

#include <functional>
#include <string_view>

namespace qkv::text {

/// Calls `take` for each piece of `text` in order (qkv/text.hpp says what a piece is); together they are the text.
void for_each_piece(std::string_view text, const std::function<void(std::string_view)>& take);

}  // namespace qkv::text
