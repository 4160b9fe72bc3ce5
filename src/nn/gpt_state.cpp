#include "nn/gpt_state.hpp"

#include <algorithm>
#include <array>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "core/check.hpp"
#include "nn/attention_steps.hpp"
#include "qkv/nn/gpt.hpp"

namespace qkv::nn {

namespace {

struct Rename {
    std::string_view gpt2, own;
    bool turned = false;  // GPT-2's Conv1D keeps [in, out]
};

constexpr Rename kOutside[] = {{"wte.weight", "tok_emb.weight"},
                               {"wpe.weight", "pos_emb.weight"},
                               {"ln_f.weight", "final_norm.scale"},
                               {"ln_f.bias", "final_norm.shift"},
                               {"lm_head.weight", "out_head.weight"}};

constexpr Rename kInBlock[] = {{"ln_1.weight", "norm1.scale"},
                               {"ln_1.bias", "norm1.shift"},
                               {"attn.c_proj.weight", "att.out_proj.weight", true},
                               {"attn.c_proj.bias", "att.out_proj.bias"},
                               {"ln_2.weight", "norm2.scale"},
                               {"ln_2.bias", "norm2.shift"},
                               {"mlp.c_fc.weight", "ff.layers.0.weight", true},
                               {"mlp.c_fc.bias", "ff.layers.0.bias"},
                               {"mlp.c_proj.weight", "ff.layers.2.weight", true},
                               {"mlp.c_proj.bias", "ff.layers.2.bias"}};

constexpr std::string_view kPrefix = "transformer.";

template <class T>
BasicTensor<T> turned(const BasicTensor<T>& matrix, const std::string& name) {
    if (matrix.rank() != 2) {
        fail(ErrorCode::shape_mismatch, "tensor '", name, "' has shape ", to_string(matrix.shape()),
             "; expected [in, out]");
    }
    return matrix.transposed();
}

/// A third of the rows of a weight [3 · width, in] or of a bias [3 · width].
template <class T>
BasicTensor<T> third_of(const BasicTensor<T>& stacked, std::int64_t third) {
    Shape shape = stacked.shape();
    shape[0] /= 3;
    BasicTensor<T> part(std::move(shape));
    std::copy_n(stacked.data() + third * part.numel(), part.numel(), part.data());
    return part;
}

/// "h.3.ln_1.weight" → {"trf_blocks.3.", "ln_1.weight"}
std::optional<std::pair<std::string, std::string_view>> in_block(std::string_view name) {
    if (!name.starts_with("h.")) {
        return std::nullopt;
    }
    const std::size_t dot = name.find('.', 2);
    if (dot == std::string_view::npos) {
        return std::nullopt;
    }
    return std::pair{concat("trf_blocks.", name.substr(2, dot - 2), "."), name.substr(dot + 1)};
}

template <class T>
void add(StateDict<T>& own, const std::string& name, BasicTensor<T> tensor) {
    if (!own.emplace(name, std::move(tensor)).second) {
        fail(ErrorCode::shape_mismatch, "tensor '", name, "' is there twice, under different names");
    }
}

/// W_query, W_key and W_value, which GPT-2 keeps side by side: [in, 3 · width], or [3 · width] for the bias.
template <class T>
void add_projections(StateDict<T>& own, const std::string& block, const std::string& name, const BasicTensor<T>& fused,
                     bool bias) {
    if (fused.rank() != (bias ? 1 : 2) || fused.size(-1) % 3 != 0) {
        fail(ErrorCode::shape_mismatch, "tensor '", name, "' has shape ", to_string(fused.shape()), "; expected ",
             bias ? "[3 · width]" : "[in, 3 · width]");
    }
    const BasicTensor<T> stacked = bias ? fused : fused.transposed();
    std::int64_t third = 0;
    for (const char* projection : {"W_query", "W_key", "W_value"}) {
        add(own, concat(block, "att.", projection, bias ? ".bias" : ".weight"), third_of(stacked, third));
        ++third;
    }
}

/// Adds one tensor of a GPT-2 under its own name or names.
template <class T>
void add_renamed(StateDict<T>& own, const std::string& given, BasicTensor<T> tensor) {
    std::string_view name = given;
    name.remove_prefix(name.starts_with(kPrefix) ? kPrefix.size() : 0);
    for (const Rename& rename : kOutside) {
        if (name == rename.gpt2) {
            add(own, std::string(rename.own), std::move(tensor));
            return;
        }
    }
    if (const auto place = in_block(name)) {
        const auto& [block, rest] = *place;
        for (const Rename& rename : kInBlock) {
            if (rest == rename.gpt2) {
                add(own, concat(block, rename.own), rename.turned ? turned(tensor, given) : std::move(tensor));
                return;
            }
        }
        if (rest == "attn.c_attn.weight" || rest == "attn.c_attn.bias") {
            add_projections(own, block, given, tensor, rest.ends_with("bias"));
            return;
        }
        if (rest == "attn.bias" || rest == "attn.masked_bias") {
            return;  // the causal mask and what it hides with: buffers of older versions
        }
    }
    add(own, given, std::move(tensor));
}

/// The tensor that has one of these names, with or without GPT-2's prefix; nullptr where there is none.
template <class T>
const BasicTensor<T>* find(const StateDict<T>& state, std::initializer_list<std::string_view> names) {
    for (const std::string_view name : names) {
        for (const std::string& full : {std::string(name), concat(kPrefix, name)}) {
            if (const auto found = state.find(full); found != state.end()) {
                return &found->second;
            }
        }
    }
    return nullptr;
}

/// A table of embeddings by the name it has here and in GPT-2.
template <class T>
const BasicTensor<T>& table(const StateDict<T>& state, std::string_view own, std::string_view gpt2) {
    const BasicTensor<T>* const found = find(state, {own, gpt2});
    if (found == nullptr) {
        fail(ErrorCode::shape_mismatch, "tensor '", own, "' ('", gpt2, "' of a GPT-2) is missing");
    }
    if (found->rank() != 2 || found->empty()) {
        fail(ErrorCode::shape_mismatch, "tensor '", own, "' has shape ", to_string(found->shape()),
             "; expected [rows, emb_dim]");
    }
    return *found;
}

template <class T>
bool same_bits(const BasicTensor<T>& a, const BasicTensor<T>& b) {
    return a.shape() == b.shape() && std::ranges::equal(std::as_bytes(a.values()), std::as_bytes(b.values()));
}

}  // namespace

template <class T>
StateDict<T> from_gpt2(StateDict<T> state) {
    if (find(state, {"wte.weight"}) == nullptr) {
        return state;
    }
    StateDict<T> own;
    while (!state.empty()) {
        auto named = state.extract(state.begin());
        add_renamed(own, named.key(), std::move(named.mapped()));
    }
    if (const auto tokens = own.find("tok_emb.weight"); tokens != own.end()) {
        own.try_emplace("out_head.weight", tokens->second);
    }
    return own;
}

template <class T>
StateDict<T> with_one_table(StateDict<T> state) {
    auto head = state.extract("out_head.weight");
    if (head.empty()) {
        return state;
    }
    const auto [tokens, missing] = state.try_emplace("tok_emb.weight", std::move(head.mapped()));
    if (!missing && !same_bits(tokens->second, head.mapped())) {
        fail(ErrorCode::invalid_argument,
             "out_head.weight and tok_emb.weight differ; expected one tensor, since the weights are tied");
    }
    return state;
}

template <class T>
GptOptions gpt_options_of(const StateDict<T>& state, std::int64_t num_heads) {
    const BasicTensor<T>& tokens = table(state, "tok_emb.weight", "wte.weight");
    const BasicTensor<T>& positions = table(state, "pos_emb.weight", "wpe.weight");
    GptOptions options{.vocab_size = tokens.size(0),
                       .context_length = positions.size(0),
                       .emb_dim = tokens.size(1),
                       .num_heads = num_heads,
                       .num_layers = 0};
    const auto block = [](std::string_view format, std::int64_t layer, std::string_view name) {
        return concat(format, layer, name);
    };
    while (find(state, {block("trf_blocks.", options.num_layers, ".norm1.scale"),
                        block("h.", options.num_layers, ".ln_1.weight")}) != nullptr) {
        ++options.num_layers;
    }
    if (options.num_layers == 0) {
        fail(ErrorCode::shape_mismatch, "tensor 'trf_blocks.0.norm1.scale' ('h.0.ln_1.weight' of a GPT-2) is missing");
    }
    check_heads(options.emb_dim, num_heads);
    options.qkv_bias = find(state, {"trf_blocks.0.att.W_query.bias", "h.0.attn.c_attn.bias"}) != nullptr;
    const BasicTensor<T>* const head = find(state, {"out_head.weight", "lm_head.weight"});
    options.tie_weights = head == nullptr || same_bits(*head, tokens);
    return options;
}

#define QKV_INSTANTIATE(T)                              \
    template StateDict<T> from_gpt2(StateDict<T>);      \
    template StateDict<T> with_one_table(StateDict<T>); \
    template GptOptions gpt_options_of(const StateDict<T>&, std::int64_t);
QKV_INSTANTIATE(float)
QKV_INSTANTIATE(double)
#undef QKV_INSTANTIATE

}  // namespace qkv::nn
