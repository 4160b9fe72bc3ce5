#include "explain/ink.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

namespace qkv::explain {

namespace {

struct Rgb {
    double red, green, blue;
};

/// Five stops of matplotlib's viridis (van der Walt & Smith 2015, CC0), straight lines between them.
Rgb viridis(double value) {
    constexpr std::array<Rgb, 5> kStops{{{68, 1, 84}, {59, 82, 139}, {33, 145, 140}, {94, 201, 98}, {253, 231, 37}}};
    const double place = std::clamp(value, 0.0, 1.0) * (kStops.size() - 1);
    const auto below = std::min(static_cast<std::size_t>(place), kStops.size() - 2);
    const double share = place - static_cast<double>(below);
    const auto mix = [share](double a, double b) { return a + share * (b - a); };
    const Rgb a = kStops[below];
    const Rgb b = kStops[below + 1];
    return {mix(a.red, b.red), mix(a.green, b.green), mix(a.blue, b.blue)};
}

/// Nearest of the 6×6×6 colour cube.
int cube_index(Rgb colour) {
    const auto level = [](double channel) { return static_cast<int>(std::lround(channel / 255.0 * 5.0)); };
    return 16 + 36 * level(colour.red) + 6 * level(colour.green) + level(colour.blue);
}

}  // namespace

std::string Ink::wrap(std::string_view code, std::string_view text) const {
    return colour_ == Colour::none ? std::string(text) : fmt::format("\x1b[{}m{}\x1b[0m", code, text);
}

std::string Ink::shaded(std::string_view text, float value) const {
    if (colour_ == Colour::none || !std::isfinite(value)) {
        return std::string(text);
    }
    const Rgb ground = viridis(value);
    // Relative luminance (ITU-R BT.709) decides whether dark or light digits read better.
    const bool dark_text = 0.2126 * ground.red + 0.7152 * ground.green + 0.0722 * ground.blue > 110.0;
    if (colour_ == Colour::true_colour) {
        return fmt::format("\x1b[48;2;{:.0f};{:.0f};{:.0f};38;2;{}m{}\x1b[0m", ground.red, ground.green, ground.blue,
                           dark_text ? "0;0;0" : "255;255;255", text);
    }
    return fmt::format("\x1b[48;5;{};38;5;{}m{}\x1b[0m", cube_index(ground), dark_text ? 16 : 231, text);
}

}  // namespace qkv::explain
