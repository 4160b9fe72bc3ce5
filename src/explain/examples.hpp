// The built-in sentences.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "qkv/tensor.hpp"

namespace qkv::explain {

/// A sentence with vectors of its own.
struct Example {
    std::string name;
    std::vector<std::string> tokens;
    Tensor vectors;          ///< [tokens, dim]
    std::int64_t d_out = 2;  ///< what the text that it comes from projects to
};

/// The example of that name, or nullptr. "translate" has no vectors and is not among them.
[[nodiscard]] const Example* find_example(std::string_view name);
/// All names, translate included.
[[nodiscard]] const std::vector<std::string>& example_names();

/// Translating word by word fails here: the German verb comes last.
inline constexpr std::string_view kTranslateQueries = "Can you help me translate this sentence";
inline constexpr std::string_view kTranslateSource = "Kannst du mir helfen diesen Satz zu übersetzen";

/// x1, x2, ….
[[nodiscard]] std::vector<std::string> numbered_tokens(std::int64_t count);

}  // namespace qkv::explain
