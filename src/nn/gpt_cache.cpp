#include <utility>

#include "core/check.hpp"
#include "nn/attention_steps.hpp"
#include "qkv/nn/gpt.hpp"

namespace qkv::nn {

GptCache::GptCache(const GptOptions& options, std::int64_t sequences, DType dtype) {
    check_heads(options.emb_dim, options.num_heads);
    if (sequences < 1 || options.num_layers < 1 || options.context_length < 1) {
        fail(ErrorCode::invalid_argument, "a cache of ", sequences, " sequences of ", options.context_length,
             " tokens in ", options.num_layers, " layers; expected 1 or more of each");
    }
    const KvLayout layout{
        .kv_heads = options.num_heads, .head_dim = options.emb_dim / options.num_heads, .dtype = dtype};
    for (std::int64_t number = 0; number < options.num_layers; ++number) {
        Layer layer{KvCache::contiguous(layout, {.capacity = options.context_length, .sequences = sequences}), {}};
        for (std::int64_t sequence = 0; sequence < sequences; ++sequence) {
            layer.ids.push_back(layer.cache.add());
        }
        layers_.push_back(std::move(layer));
    }
}

std::int64_t GptCache::sequences() const noexcept { return static_cast<std::int64_t>(layers_.front().ids.size()); }

void GptCache::check_sequence(std::int64_t sequence) const {
    if (sequence < 0 || sequence >= sequences()) {
        fail(ErrorCode::out_of_range, "sequence ", sequence, " of a cache of ", sequences(), "; expected 0 to ",
             sequences() - 1);
    }
}

std::int64_t GptCache::size(std::int64_t sequence) const {
    check_sequence(sequence);
    const Layer& first = layers_.front();
    return first.cache.size(first.ids[static_cast<std::size_t>(sequence)]);
}

void GptCache::truncate(std::int64_t sequence, std::int64_t tokens) {
    check_sequence(sequence);
    for (Layer& layer : layers_) {
        layer.cache.truncate(layer.ids[static_cast<std::size_t>(sequence)], tokens);
    }
}

GptCache::Layer& GptCache::layer(std::int64_t layer) {
    if (layer < 0 || layer >= layers()) {
        fail(ErrorCode::out_of_range, "layer ", layer, " of a cache of ", layers(), "; expected 0 to ", layers() - 1);
    }
    return layers_[static_cast<std::size_t>(layer)];
}

}  // namespace qkv::nn
