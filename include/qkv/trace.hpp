// Everything a module computed on the way to its result, by name: what `qkv explain` shows.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qkv/export.h"
#include "qkv/tensor.hpp"

namespace qkv QKV_EXPORT {

/// Hand one to a module's forward and it writes down each intermediate tensor, in the order of computation.
/// Names are those of docs/notation.md: inputs, W_query, queries, keys, values, scores, scaled, masked, weights, ….
template <class T>
class BasicTrace {
public:
    void record(std::string name, BasicTensor<T> tensor) { entries_.emplace_back(std::move(name), std::move(tensor)); }

    /// All entries of another trace, each name after `prefix`.
    void record_all(const std::string& prefix, BasicTrace&& other) {
        for (auto& [name, tensor] : other.entries_) {
            entries_.emplace_back(prefix + name, std::move(tensor));
        }
    }

    /// The tensor of that name, or nullptr.
    [[nodiscard]] const BasicTensor<T>* find(std::string_view name) const noexcept {
        for (const auto& [key, tensor] : entries_) {
            if (key == name) {
                return &tensor;
            }
        }
        return nullptr;
    }
    [[nodiscard]] const std::vector<std::pair<std::string, BasicTensor<T>>>& entries() const noexcept {
        return entries_;
    }

private:
    std::vector<std::pair<std::string, BasicTensor<T>>> entries_;
};

using Trace = BasicTrace<float>;

}  // namespace qkv QKV_EXPORT
