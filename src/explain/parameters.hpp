// Parameters of a stage from a safetensors file.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>

#include "qkv/explain.hpp"
#include "qkv/tensor.hpp"

namespace qkv::explain {

/// What the shapes in a file tell of the stage it was saved from.
struct FileSizes {
    std::optional<std::int64_t> d_out;
    std::optional<std::int64_t> heads;  ///< a wrapper's; of a split projection the file does not tell
    std::optional<std::int64_t> context_length;
    bool qkv_bias = false;
};

struct ParameterFile {
    StateDict<float> state;
    FileSizes sizes;
};

/// Reads the file and what it says about `stage`. Throws Error(io), Error(format) or, when the file holds no query
/// projection at all, Error(shape_mismatch).
[[nodiscard]] ParameterFile read_parameters(const std::filesystem::path& path, Stage stage);

/// Which kind of self-attention a file holds: raw matrices or linear layers.
[[nodiscard]] nn::Init init_of_file(const std::filesystem::path& path);

}  // namespace qkv::explain
