// A contiguous problem of one type with its results, for tests that look at bits.
#pragma once

#include <cstring>
#include <vector>

#include "qkv/attention.hpp"
#include "support/stored.hpp"

namespace support {

struct Sizes {
    std::int64_t batch = 1, heads = 2, kv_heads = 1, queries = 1, keys = 1, head_dim = 8, value_dim = 8;
};

template <class T>
struct Small {
    explicit Small(const Sizes& sizes, std::uint64_t seed = 1, double spread = 1.0) : s(sizes) {
        Random random(seed);
        const auto fill = [&](std::vector<T>& values, std::int64_t count) {
            for (std::int64_t i = 0; i < count; ++i) {
                values.push_back(static_cast<T>(static_cast<float>(spread * normal(random))));
            }
        };
        fill(q, s.batch * s.heads * s.queries * s.head_dim);
        fill(k, s.batch * s.kv_heads * s.keys * s.head_dim);
        fill(v, s.batch * s.kv_heads * s.keys * s.value_dim);
        fill(d_out, s.batch * s.heads * s.queries * s.value_dim);
        out.resize(d_out.size());
        lse.resize(static_cast<std::size_t>(s.batch * s.heads * s.queries));
        dq.resize(q.size());
        dk.resize(k.size());
        dv.resize(v.size());
    }

    using Statistic = std::conditional_t<std::is_same_v<T, double>, double, float>;

    [[nodiscard]] qkv::Shape4 score_shape() const { return {s.batch, s.heads, s.queries, s.keys}; }
    auto q_view() { return qkv::view(q.data(), {s.batch, s.heads, s.queries, s.head_dim}); }
    auto k_view() { return qkv::view(k.data(), {s.batch, s.kv_heads, s.keys, s.head_dim}); }
    auto v_view() { return qkv::view(v.data(), {s.batch, s.kv_heads, s.keys, s.value_dim}); }
    auto out_view() { return qkv::view(out.data(), {s.batch, s.heads, s.queries, s.value_dim}); }
    auto d_out_view() { return qkv::view(d_out.data(), {s.batch, s.heads, s.queries, s.value_dim}); }
    auto lse_view() { return qkv::per_row(lse.data(), s.batch, s.heads, s.queries); }
    auto dq_view() { return qkv::view(dq.data(), {s.batch, s.heads, s.queries, s.head_dim}); }
    auto dk_view() { return qkv::view(dk.data(), {s.batch, s.kv_heads, s.keys, s.head_dim}); }
    auto dv_view() { return qkv::view(dv.data(), {s.batch, s.kv_heads, s.keys, s.value_dim}); }

    void forward(const qkv::AttentionOptions& options = {}, const qkv::Runtime& runtime = qkv::Runtime::serial()) {
        qkv::AttentionExtras extras;
        extras.lse = lse_view();
        qkv::attention(q_view(), k_view(), v_view(), out_view(), options, extras, runtime);
    }
    [[nodiscard]] qkv::AttentionGradients gradients() {
        qkv::AttentionGradients wanted;
        wanted.dq = dq_view();
        wanted.dk = dk_view();
        wanted.dv = dv_view();
        return wanted;
    }
    [[nodiscard]] qkv::AttentionSaved saved() {
        return {.lse = lse_view(), .lse_counts_sinks = true, .out = out_view(), .delta = std::nullopt};
    }
    void backward(const qkv::AttentionOptions& options = {}, const qkv::Runtime& runtime = qkv::Runtime::serial()) {
        qkv::attention_backward(q_view(), k_view(), v_view(), d_out_view(), saved(), gradients(), options, runtime);
    }

    Sizes s;
    std::vector<T> q, k, v, d_out, out, dq, dk, dv;
    std::vector<Statistic> lse;
};

/// Bit for bit: NaN equals itself, −0 does not equal 0.
template <class T>
[[nodiscard]] bool same_bits(const T* a, const T* b, std::size_t count) {
    return count == 0 || std::memcmp(a, b, count * sizeof(T)) == 0;
}
template <class T>
[[nodiscard]] bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
    return a.size() == b.size() && same_bits(a.data(), b.data(), a.size());
}

template <class T>
[[nodiscard]] bool same_results(const Small<T>& a, const Small<T>& b) {
    return same_bits(a.out, b.out) && same_bits(a.lse, b.lse) && same_bits(a.dq, b.dq) && same_bits(a.dk, b.dk) &&
           same_bits(a.dv, b.dv);
}

}  // namespace support
