// The sentences of a request as tokens and vectors.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "qkv/explain.hpp"
#include "qkv/random.hpp"
#include "qkv/tensor.hpp"

namespace qkv::explain {

/// A sequence ready for a stage.
struct Sequence {
    std::vector<std::string> tokens;  ///< unique labels
    Tensor vectors;                   ///< [tokens, dim]
    std::vector<std::string> remarks;
    bool drawn = false;                 ///< random vectors from the generator
    std::optional<std::int64_t> d_out;  ///< a built-in sentence's usual d_out
};

/// Repeated labels get a number: the, the#2, the#3.
[[nodiscard]] std::vector<std::string> unique_labels(std::vector<std::string> labels);

/// The sentence of the request. Random vectors are drawn from `generator`, as torch.rand(tokens, dim) would.
[[nodiscard]] Sequence main_sequence(const Request& request, Generator& generator);

/// What cross-attention asks with when the request names no sentence: the English of the translate example.
[[nodiscard]] Sequence translate_queries(const Request& request, Generator& generator);

/// What cross-attention reads: the request's source, or the German of the translate example.
[[nodiscard]] Sequence source_sequence(const Request& request, std::int64_t default_dim, Generator& generator);

/// The row that `query` names: a token, or a place counted from 1. Throws Error(invalid_argument) with a suggestion.
[[nodiscard]] std::int64_t find_query(const std::vector<std::string>& tokens, const std::optional<std::string>& query);

}  // namespace qkv::explain
