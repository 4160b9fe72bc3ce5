// The parts of a screen: the weights beside the context, the chosen query key by key, every matrix in full.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "explain/ink.hpp"
#include "qkv/explain.hpp"

namespace qkv::explain {

using Lines = std::vector<std::string>;

/// A value with `digits` after the point; "-inf", "nan"; no negative zero; large ones with an exponent.
[[nodiscard]] std::string number(float value, int digits);
/// "(0.1000 0.2000 …)" within `width` cells, each value right-aligned in at least `cell`.
[[nodiscard]] std::string tuple(std::span<const float> values, int digits, std::int64_t width, std::int64_t cell = 0);

/// Row `query` of head `head` of a tensor [rows, columns] or [heads, rows, columns].
[[nodiscard]] std::span<const float> row_of(const Tensor& tensor, std::int64_t head, std::int64_t query);

/// The weights that make the context: after dropout where there was any.
[[nodiscard]] const Tensor& final_weights(const StageReport& stage);

/// Which of `count` things to show in `room` lines or columns: all, or the first ones and `needed`, leaving one place
/// for saying how many are hidden.
[[nodiscard]] std::vector<std::int64_t> shown_places(std::int64_t count, std::int64_t room,
                                                     std::vector<std::int64_t> needed);

/// Weights of the first head, a row a query, beside the context; at most `rows` lines under the header.
[[nodiscard]] Lines weights_beside_context(const StageReport& stage, const TextStyle& style, const Ink& ink,
                                           std::int64_t rows);

/// The chosen query through q·k, scale, mask, exp, weight and value to its context; at most `rows` keys.
[[nodiscard]] Lines step_by_step(const StageReport& stage, const TextStyle& style, const Ink& ink, std::int64_t rows);

/// Every tensor of the stage, in blocks of columns that fit the width.
[[nodiscard]] Lines every_matrix(const StageReport& stage, const TextStyle& style, const Ink& ink);

}  // namespace qkv::explain
