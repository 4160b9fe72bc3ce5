// What each screen says besides its numbers: the title, the formula, and the answers to what learners stumble over.
#pragma once

#include <string>

#include "explain/ink.hpp"
#include "explain/screen_parts.hpp"
#include "qkv/explain.hpp"

namespace qkv::explain {

/// "CAUSAL   the future is hidden"
[[nodiscard]] std::string screen_title(const StageReport& stage);
/// The stage as one line of mathematics, and which axis is which.
[[nodiscard]] std::string screen_formula(const StageReport& stage);
/// Seed, widths, heads, dropout; as many as fit `room` cells.
[[nodiscard]] std::string screen_facts(const StageReport& stage, std::int64_t room);
/// What follows the step-by-step: heads joined, output projected. Empty for single heads.
[[nodiscard]] Lines joined_heads(const StageReport& stage, const TextStyle& style);
/// Tables made for one stage: softmax naive and stable; the worked example of "Hello shiny sun".
[[nodiscard]] Lines side_by_side(const StageReport& stage, const TextStyle& style);
/// Plain sentences, each a paragraph.
[[nodiscard]] Lines screen_notes(const StageReport& stage);

}  // namespace qkv::explain
