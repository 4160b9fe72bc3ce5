#include "explain/text_cells.hpp"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <cstdio>

#include "qkv/explain.hpp"

namespace qkv::explain {

namespace {

struct CodePoint {
    utf8proc_int32_t value = 0;
    std::size_t bytes = 0;
};

CodePoint first_code_point(std::string_view text) {
    utf8proc_int32_t value = -1;
    const auto bytes = utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                                        static_cast<utf8proc_ssize_t>(text.size()), &value);
    // Every text is checked where it enters; a stray byte still counts as one cell rather than as none.
    return bytes > 0 ? CodePoint{value, static_cast<std::size_t>(bytes)} : CodePoint{0xFFFD, 1};
}

bool is_invisible(utf8proc_int32_t value) {
    switch (utf8proc_category(value)) {
        case UTF8PROC_CATEGORY_CC:
        case UTF8PROC_CATEGORY_CF:
        case UTF8PROC_CATEGORY_ZL:
        case UTF8PROC_CATEGORY_ZP:
        case UTF8PROC_CATEGORY_CS:
        case UTF8PROC_CATEGORY_CN:
            return true;
        default:
            return false;
    }
}

std::int64_t width_of(utf8proc_int32_t value) { return std::max(0, utf8proc_charwidth(value)); }

}  // namespace

std::int64_t cell_width(std::string_view text) {
    std::int64_t width = 0;
    while (!text.empty()) {
        const CodePoint point = first_code_point(text);
        width += width_of(point.value);
        text.remove_prefix(point.bytes);
    }
    return width;
}

std::string printable(std::string_view text) {
    std::string shown;
    while (!text.empty()) {
        const CodePoint point = first_code_point(text);
        if (point.value == 0xFFFD) {
            shown += "\uFFFD";
        } else if (is_invisible(point.value)) {
            std::array<char, 16> code{};
            (void)std::snprintf(code.data(), code.size(), "\\u{%x}", static_cast<unsigned>(point.value));
            shown += code.data();
        } else {
            shown += text.substr(0, point.bytes);
        }
        text.remove_prefix(point.bytes);
    }
    return shown;
}

std::string in_quotes(std::string_view text) {
    constexpr std::int64_t kLongest = 60;
    return '\'' + clipped(printable(text), kLongest) + '\'';
}

std::string clipped(std::string_view text, std::int64_t width) {
    if (cell_width(text) <= width) {
        return std::string(text);
    }
    std::string kept;
    std::int64_t used = 0;
    while (!text.empty()) {
        const CodePoint point = first_code_point(text);
        if (used + width_of(point.value) > width - 1) {
            break;
        }
        used += width_of(point.value);
        kept += text.substr(0, point.bytes);
        text.remove_prefix(point.bytes);
    }
    return width > 0 ? kept + "…" : kept;
}

std::string padded(std::string_view text, std::int64_t width, Align align) {
    const std::string shown = clipped(text, width);
    const std::string blanks(static_cast<std::size_t>(std::max<std::int64_t>(0, width - cell_width(shown))), ' ');
    return align == Align::left ? shown + blanks : blanks + shown;
}

std::vector<std::string> wrapped(std::string_view text, std::int64_t width, std::int64_t indent) {
    std::vector<std::string> lines;
    const std::string margin(static_cast<std::size_t>(indent), ' ');
    std::string line;
    std::int64_t used = indent;
    while (!text.empty()) {
        const std::size_t end = std::min(text.find(' '), text.size());
        const std::string word = clipped(text.substr(0, end), std::max<std::int64_t>(1, width - indent));
        text.remove_prefix(std::min(end + 1, text.size()));
        const std::int64_t needed = cell_width(word) + (line.empty() ? 0 : 1);
        if (!line.empty() && used + needed > width) {
            lines.push_back(margin + line);
            line.clear();
            used = indent;
        }
        used += cell_width(word) + (line.empty() ? 0 : 1);
        line += (line.empty() ? "" : " ") + word;
    }
    if (!line.empty()) {
        lines.push_back(margin + line);
    }
    return lines;
}

}  // namespace qkv::explain
