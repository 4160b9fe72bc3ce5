// Colour on a terminal, or none: shading by value, bold and faint text.
#pragma once

#include <string>
#include <string_view>

#include "qkv/explain.hpp"

namespace qkv::explain {

class Ink {
public:
    explicit Ink(Colour colour) : colour_(colour) {}

    [[nodiscard]] std::string bold(std::string_view text) const { return wrap("1", text); }
    [[nodiscard]] std::string faint(std::string_view text) const { return wrap("2", text); }
    /// `text` on a background that grows lighter with `value` from 0 to 1 (viridis, readable in every colour vision).
    [[nodiscard]] std::string shaded(std::string_view text, float value) const;

private:
    [[nodiscard]] std::string wrap(std::string_view code, std::string_view text) const;

    Colour colour_;
};

}  // namespace qkv::explain
