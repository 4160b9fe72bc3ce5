// The layers of a trained model, as stages.
#pragma once

#include <cstdint>

#include "qkv/explain.hpp"

namespace qkv::explain {

/// The request's model on the request's text, a stage a layer. Throws qkv::Error: invalid_argument for options that say
/// something about stages that are drawn, for a text that is too long and for characters that the model does not know;
/// what loading a model throws.
[[nodiscard]] Report run_model(const Request& request);

/// Every matrix of [heads, queries, keys] is kept, so their size has a limit: Error(out_of_range).
void check_weights(std::int64_t heads, std::int64_t queries, std::int64_t keys);

}  // namespace qkv::explain
