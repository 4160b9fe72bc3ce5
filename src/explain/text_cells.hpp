// Text measured in terminal cells: labels of any script line up, and nothing from outside can move the cursor.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace qkv::explain {

/// Cells that `text` (valid UTF-8 without escapes) takes on a terminal: 2 for wide characters, 0 for combining ones.
[[nodiscard]] std::int64_t cell_width(std::string_view text);

/// At most `width` cells, the last one "…" where something was cut.
[[nodiscard]] std::string clipped(std::string_view text, std::int64_t width);

enum class Align : std::uint8_t { left, right };

/// Filled with blanks to `width` cells; longer text is clipped.
[[nodiscard]] std::string padded(std::string_view text, std::int64_t width, Align align);

/// Broken at blanks into lines of at most `width` cells, each starting with `indent` blanks.
[[nodiscard]] std::vector<std::string> wrapped(std::string_view text, std::int64_t width, std::int64_t indent);

}  // namespace qkv::explain
