#include "support/attention_file.hpp"

#include <optional>

#include "qkv/attention.hpp"
#include "support/stored.hpp"

namespace support {

namespace {

struct Header {
    std::int64_t dtype;  // DType's number
    std::int64_t batch, heads, kv_heads, queries, keys, head_dim, value_dim;
    std::int64_t causal;       // 0 none, 1 top-left, 2 bottom-right
    std::int64_t left, right;  // window, top-left; -1: no limit
    std::int64_t has_allowed, has_bias, has_sinks, has_keep;
    std::int64_t threads;
};

}  // namespace

std::vector<double> take_from(std::FILE* input, std::int64_t count) {
    std::vector<double> values(static_cast<std::size_t>(count));
    if (std::fread(values.data(), sizeof(double), values.size(), input) != values.size()) {
        throw qkv::Error(qkv::ErrorCode::format, "input ends within a problem");
    }
    return values;
}

Answers answer_problem(std::FILE* input) {
    using namespace qkv;
    Header h{};
    if (std::fread(&h, sizeof h, 1, input) != 1) {
        return {};
    }
    const auto take = [input](std::int64_t count) { return take_from(input, count); };
    const auto take_tensor = [&](const Shape4& shape, DType type) {
        support::Stored stored = support::allocate(shape, type);
        support::write(stored.view, take(shape[0] * shape[1] * shape[2] * shape[3]));
        return stored;
    };
    const auto dtype = static_cast<DType>(h.dtype);
    const DType compute = dtype == DType::f64 ? DType::f64 : DType::f32;
    const Shape4 scores{h.batch, h.heads, h.queries, h.keys};
    const std::vector<double> numbers = take(3);  // scale, softcap, dropout p
    const auto q = take_tensor({h.batch, h.heads, h.queries, h.head_dim}, dtype);
    const auto k = take_tensor({h.batch, h.kv_heads, h.keys, h.head_dim}, dtype);
    const auto v = take_tensor({h.batch, h.kv_heads, h.keys, h.value_dim}, dtype);
    const auto d_out = take_tensor({h.batch, h.heads, h.queries, h.value_dim}, dtype);
    AttentionOptions options;
    options.scale = numbers[0];
    options.softcap = numbers[1];
    options.dropout.p = numbers[2];
    if (h.causal != 0) {
        options.mask = Mask::causal(h.causal == 1 ? Align::top_left : Align::bottom_right);
    }
    const auto limit = [](std::int64_t side) { return side < 0 ? std::nullopt : std::optional(side); };
    options.mask = options.mask & Mask::window(limit(h.left), limit(h.right), Align::top_left);
    support::Stored allowed, bias, sinks, keep;
    auto dbias = support::allocate(scores, compute);
    auto dsinks = support::allocate({1, h.heads, 1, 1}, compute);
    auto out = support::allocate(d_out.view.shape, dtype);
    auto lse = support::allocate({h.batch, h.heads, h.queries, 1}, compute);
    auto dq = support::allocate(q.view.shape, dtype);
    auto dk = support::allocate(k.view.shape, dtype);
    auto dv = support::allocate(v.view.shape, dtype);
    AttentionGradients gradients;
    gradients.dq = dq.view;
    gradients.dk = dk.view;
    gradients.dv = dv.view;
    if (h.has_allowed != 0) {
        allowed = take_tensor(scores, DType::boolean);
        options.mask = options.mask & Mask::allowed(allowed.view);
    }
    if (h.has_bias != 0) {
        bias = take_tensor(scores, compute);
        options.mask = options.mask & Mask::bias(bias.view);
        gradients.dbias = dbias.view;
    }
    if (h.has_sinks != 0) {
        sinks = take_tensor({1, h.heads, 1, 1}, compute);
        options.sinks = sinks.view;
        gradients.dsinks = dsinks.view;
    }
    if (h.has_keep != 0) {
        keep = take_tensor(scores, DType::boolean);
        options.dropout.keep = keep.view;
    }
    const Runtime runtime(h.threads);
    AttentionExtras extras;
    extras.lse = lse.view;
    attention(q.view, k.view, v.view, out.view, options, extras, runtime);
    const AttentionSaved saved{lse.view, true, out.view, std::nullopt};
    attention_backward(q.view, k.view, v.view, d_out.view, saved, gradients, options, runtime);
    Answers answers{dtype, {}};
    for (const auto& [name, result] : {std::pair{"out", &out}, {"lse", &lse}, {"dq", &dq}, {"dk", &dk}, {"dv", &dv}}) {
        answers.tensors.emplace_back(name, support::read(result->view));
    }
    if (h.has_bias != 0) {
        answers.tensors.emplace_back("dbias", support::read(dbias.view));
    }
    if (h.has_sinks != 0) {
        answers.tensors.emplace_back("dsinks", support::read(dsinks.view));
    }
    return answers;
}

}  // namespace support
