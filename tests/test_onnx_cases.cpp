// ONNX's own cases of its Attention operator, opset 23 to 25 (golden/onnx_attention.json, made from onnx 1.23.2), by
// qkv::attention. Operator: https://onnx.ai/onnx/operators/onnx__Attention.html
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <fstream>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "qkv/attention.hpp"
#include "qkv/io.hpp"
#include "support/stored.hpp"

namespace qkv {
namespace {

using nlohmann::json;
using support::allocate;
using support::Stored;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// `tensor`'s values in guarded memory of `dtype`, as one row.
Stored store(const Tensor& tensor, DType dtype) {
    Stored row = allocate({1, 1, 1, tensor.numel()}, dtype);
    support::write(row.view, {tensor.values().begin(), tensor.values().end()});
    return row;
}

/// [B, H, T, D], of memory in either layout that the operator has: [B, H, T, D], or with `heads` [B, T, H·D].
TensorView heads_apart(const Stored& row, const Tensor& like, std::optional<std::int64_t> heads) {
    if (like.rank() == 4) {
        const Shape4 shape{like.size(0), like.size(1), like.size(2), like.size(3)};
        return {row.view.data, row.view.dtype, shape, contiguous_strides(shape)};
    }
    const Shape4 shape{like.size(0), *heads, like.size(1), like.size(2) / *heads};
    const std::int64_t token = like.size(2);
    return {row.view.data, row.view.dtype, shape, {shape[2] * token, shape[3], token, 1}};
}

TensorView tokens_of(const TensorView& whole, std::int64_t first, std::int64_t count) {
    TensorView part = whole;
    part.data = whole.at(0, 0, first, 0);
    part.shape[2] = count;
    return part;
}

/// One case and its tensors by the operator's names for them.
struct Case {
    const json& description;
    const StateDict<float>& tensors;

    [[nodiscard]] const Tensor* find(const std::string& input) const {
        const auto found = tensors.find(description.at("name").get<std::string>() + "." + input);
        return found == tensors.end() ? nullptr : &found->second;
    }
    [[nodiscard]] std::optional<std::int64_t> attribute(const char* name) const {
        const json& all = description.at("attributes");
        return all.contains(name) ? std::optional<std::int64_t>(all.at(name).get<std::int64_t>()) : std::nullopt;
    }
    [[nodiscard]] std::optional<double> number(const char* name) const {
        const json& all = description.at("attributes");
        return all.contains(name) ? std::optional<double>(all.at(name).get<double>()) : std::nullopt;
    }
    [[nodiscard]] DType storage() const {
        const std::string dtype = description.at("dtype");
        return dtype == "bfloat16" ? DType::bf16 : dtype == "float16" ? DType::f16 : DType::f32;
    }
    /// Sums are f32 whatever the storage is, as softmax_precision has it at most, but for float64 (11).
    [[nodiscard]] DType compute() const { return attribute("softmax_precision") == 11 ? DType::f64 : storage(); }
};

/// `past` (where there is one) and then `fresh`, in memory of their own: what the operator calls present.
Stored present_of(const Tensor* past, const TensorView& fresh) {
    const std::int64_t before = past == nullptr ? 0 : past->size(2);
    Stored all = allocate({fresh.size(0), fresh.size(1), before + fresh.size(2), fresh.size(3)}, fresh.dtype);
    if (past != nullptr) {
        support::write(tokens_of(all.view, 0, before), {past->values().begin(), past->values().end()});
    }
    support::write(tokens_of(all.view, before, fresh.size(2)), support::read(fresh));
    return all;
}

/// attn_mask as four dimensions; the keys past its end are hidden.
Stored stored_mask(const Tensor& mask, bool boolean, std::int64_t keys, DType dtype) {
    Shape4 shape{1, 1, 1, 1};
    for (std::int64_t dim = 0; dim < mask.rank(); ++dim) {
        shape[static_cast<std::size_t>(4 - mask.rank() + dim)] = mask.size(dim);
    }
    const std::int64_t width = shape[3];
    shape[3] = std::max(width, keys);
    std::vector<double> values;
    for (std::size_t at = 0; at < mask.values().size(); ++at) {
        values.push_back(mask.values()[at]);
        if ((static_cast<std::int64_t>(at) + 1) % width == 0) {
            values.insert(values.end(), static_cast<std::size_t>(shape[3] - width), boolean ? 0.0 : -kInfinity);
        }
    }
    Stored stored = allocate(shape, boolean ? DType::boolean : dtype);
    support::write(stored.view, values);
    return stored;
}

/// Two values' permitted distance: `fixed`, and `relative` of the expected one.
struct Tolerance {
    double fixed;
    double relative;
};

Tolerance tolerance_of(const Case& golden, const Tensor& expected) {
    if (golden.storage() != DType::bf16) {
        return {golden.description.at("atol"), golden.description.at("rtol")};
    }
    // The expected values of the five bfloat16 cases were rounded between the steps, which moves them by more than the
    // official tolerance. One step of bfloat16 at the tensor's largest value is the least that exact arithmetic,
    // rounded once, stays within.
    float largest = 0.0F;
    for (const float value : expected.values()) {
        largest = std::max(largest, std::fabs(value));
    }
    int exponent = 0;
    std::frexp(largest, &exponent);
    return {std::ldexp(1.0, exponent - 8), 0.0};
}

void expect_output(const Case& golden, const std::string& name, const std::vector<double>& got) {
    SCOPED_TRACE(name);
    const Tensor& expected = *golden.find(name);
    ASSERT_EQ(static_cast<std::int64_t>(got.size()), expected.numel());
    const Tolerance tolerance = tolerance_of(golden, expected);
    for (std::size_t at = 0; at < got.size(); ++at) {
        const double want = expected.values()[at];
        if (!std::isfinite(want)) {
            ASSERT_EQ(got[at], want) << at;
            continue;
        }
        ASSERT_NEAR(got[at], want, tolerance.fixed + tolerance.relative * std::fabs(want)) << at;
    }
}

void expect_case(const Case& golden) {
    const DType compute = golden.compute();
    const std::optional<std::int64_t> q_heads = golden.attribute("q_num_heads");
    const std::optional<std::int64_t> kv_heads = golden.attribute("kv_num_heads");
    const Tensor& q_given = *golden.find("Q");
    const Stored q_row = store(q_given, compute);
    const Stored k_row = store(*golden.find("K"), compute);
    const Stored v_row = store(*golden.find("V"), compute);
    const TensorView q = heads_apart(q_row, q_given, q_heads);
    const Tensor* past = golden.find("past_key");
    const Stored keys = present_of(past, heads_apart(k_row, *golden.find("K"), kv_heads));
    const Stored values = present_of(golden.find("past_value"), heads_apart(v_row, *golden.find("V"), kv_heads));

    // A cache kept outside the operator ends each sequence's keys at its own place, and its last query stands at its
    // last key. Otherwise query i stands at key i, plus the keys of past_key (offsets below).
    const Tensor* lengths = golden.find("nonpad_kv_seqlen");
    const Align align = lengths == nullptr ? Align::top_left : Align::bottom_right;
    std::vector<std::int64_t> key_ends;
    AttentionOptions options;
    if (lengths != nullptr) {
        key_ends.assign(lengths->values().begin(), lengths->values().end());
        options.mask = options.mask & Mask::key_end(key_ends);
    }
    if (golden.attribute("is_causal").value_or(0) != 0) {
        options.mask = options.mask & Mask::causal(align);
    }
    const auto side = [&](const char* name) {
        const std::optional<std::int64_t> size = golden.attribute(name);
        return size && *size >= 0 ? size : std::nullopt;
    };
    options.mask = options.mask & Mask::window(side("left_window_size"), side("right_window_size"), align);
    std::optional<Stored> mask;
    if (const Tensor* given = golden.find("attn_mask")) {
        const bool boolean = golden.description.at("boolean_mask");
        mask = stored_mask(*given, boolean, keys.view.size(2), compute);
        options.mask = options.mask & (boolean ? Mask::allowed(mask->view) : Mask::bias(mask->view));
    }
    options.scale = golden.number("scale");
    options.softcap = golden.number("softcap").value_or(0.0);
    options.offsets.query = past == nullptr ? 0 : past->size(2);

    const Tensor& y_expected = *golden.find("Y");
    const Stored y = allocate({1, 1, 1, y_expected.numel()}, compute);
    const Stored scores = allocate({q.size(0), q.size(1), q.size(2), keys.view.size(2)}, compute);
    AttentionExtras extras;
    extras.scores = scores.view;
    extras.scores_at = static_cast<ScorePoint>(golden.attribute("qk_matmul_output_mode").value_or(0));
    attention(q, keys.view, values.view, heads_apart(y, y_expected, q_heads), options, extras);
    const std::map<std::string, ConstTensorView> outputs = {{"Y", y.view}, {"qk_matmul_output", scores.view}};
    for (const std::string name : golden.description.at("outputs")) {
        expect_output(golden, name, support::read(outputs.at(name)));
    }
}

TEST(OnnxAttention, All93Cases) {
    std::ifstream file(QKV_GOLDEN_DIR "/onnx_attention.json");
    const json cases = json::parse(file).at("cases");
    const StateDict<float> tensors = io::read_safetensors<float>(QKV_GOLDEN_DIR "/onnx_attention.safetensors");
    ASSERT_EQ(cases.size(), 93U);
    for (const json& description : cases) {
        SCOPED_TRACE(description.at("name").get<std::string>());
        expect_case({description, tensors});
    }
}

}  // namespace
}  // namespace qkv
