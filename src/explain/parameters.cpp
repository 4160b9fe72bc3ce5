#include "explain/parameters.hpp"

#include <algorithm>
#include <cmath>
#include <string>

#include "core/check.hpp"
#include "qkv/io.hpp"

namespace qkv::explain {

namespace {

/// The first of `names` that the file holds, or nullptr.
const Tensor* find_any(const StateDict<float>& state, std::initializer_list<const char*> names) {
    for (const char* name : names) {
        if (const auto found = state.find(name); found != state.end()) {
            return &found->second;
        }
    }
    return nullptr;
}

std::optional<std::int64_t> count_heads(const StateDict<float>& state) {
    std::int64_t heads = 0;
    while (state.contains("heads." + std::to_string(heads) + ".W_query.weight")) {
        ++heads;
    }
    return heads > 0 ? std::optional(heads) : std::nullopt;
}

}  // namespace

ParameterFile read_parameters(const std::filesystem::path& path, Stage stage) {
    ParameterFile file;
    file.state = io::read_safetensors<float>(path);
    for (const auto& [name, tensor] : file.state) {
        const auto odd = std::ranges::find_if(tensor.values(), [](float value) { return !std::isfinite(value); });
        if (odd != tensor.values().end()) {
            fail(ErrorCode::format, path.string(), ": tensor '", name, "' holds ", *odd, " at element ",
                 odd - tensor.values().begin(), "; expected finite numbers");
        }
    }
    const Tensor* query = find_any(file.state, {"W_query.weight", "heads.0.W_query.weight", "q_proj_weight"});
    const Tensor* raw = find_any(file.state, {"W_query"});
    const Tensor* stacked = find_any(file.state, {"in_proj_weight"});
    if (query == nullptr && raw == nullptr && stacked == nullptr) {
        fail(ErrorCode::shape_mismatch, path.string(), " holds no query projection for stage ", stage_name(stage),
             "; expected W_query.weight, W_query, heads.0.W_query.weight, in_proj_weight or q_proj_weight");
    }
    const Tensor& projection = query != nullptr ? *query : raw != nullptr ? *raw : *stacked;
    if (projection.rank() != 2) {
        fail(ErrorCode::shape_mismatch, path.string(), ": the query projection has shape ",
             to_string(projection.shape()), "; expected rank 2");
    }
    // PyTorch's linear layers keep [d_out, d_in], raw matrices [d_in, d_out], stacked projections [3 · d_out, d_in].
    const bool is_raw = query == nullptr && raw != nullptr;
    const std::int64_t rows = projection.size(0);
    file.sizes.d_out = is_raw ? projection.size(1) : query != nullptr ? rows : rows / 3;
    if (*file.sizes.d_out < 1 || *file.sizes.d_out > kMaxWidth) {
        fail(ErrorCode::shape_mismatch, path.string(), ": the query projection has shape ",
             to_string(projection.shape()), "; expected 1 to ", kMaxWidth, " outputs");
    }
    file.sizes.heads = count_heads(file.state);
    file.sizes.qkv_bias = find_any(file.state, {"W_query.bias", "heads.0.W_query.bias", "in_proj_bias"}) != nullptr;
    if (const Tensor* mask = find_any(file.state, {"mask", "heads.0.mask"}); mask != nullptr && mask->rank() == 2) {
        if (mask->size(0) < 1 || mask->size(0) > kMaxContextLength) {
            fail(ErrorCode::shape_mismatch, path.string(), ": tensor 'mask' has shape ", to_string(mask->shape()),
                 "; expected [context_length, context_length] of at most ", kMaxContextLength);
        }
        file.sizes.context_length = mask->size(0);
    }
    return file;
}

nn::Init init_of_file(const std::filesystem::path& path) {
    return io::read_safetensors<float>(path).contains("W_query") ? nn::Init::uniform : nn::Init::linear;
}

}  // namespace qkv::explain
