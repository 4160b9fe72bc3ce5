// A picture of how training went.
#pragma once

#include <filesystem>
#include <string>

#include "qkv/export.h"
#include "qkv/models/trainer.hpp"

namespace qkv {
namespace models QKV_EXPORT {

/// The history as an SVG image: steps to the right, loss upwards; training as a fine line with its running mean,
/// validation as dots on a line; axes with round numbers. The same history gives the same bytes.
[[nodiscard]] std::string loss_curve_svg(const History& history);

/// The same into a file, whole or not at all. Throws Error(io).
void write_loss_curve(const History& history, const std::filesystem::path& path);

}  // namespace models QKV_EXPORT
}  // namespace qkv
