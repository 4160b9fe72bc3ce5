// Bad input: an Error that names the argument, and nothing written.
#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>

#include "support/small.hpp"

namespace qkv {
namespace {

/// A good call, to be spoilt one argument at a time.
struct Call {
    support::Small<float> p{
        {.batch = 2, .heads = 4, .kv_heads = 2, .queries = 5, .keys = 6, .head_dim = 8, .value_dim = 8}};
    std::vector<float> numbers = std::vector<float>(4096);
    ConstTensorView q = p.q_view(), k = p.k_view(), v = p.v_view(), d_out = p.d_out_view();
    TensorView out = p.out_view();
    AttentionOptions options;
    AttentionExtras extras;
    AttentionSaved saved = p.saved();
    AttentionGradients gradients = p.gradients();

    void forward() const { attention(q, k, v, out, options, extras); }
    void backward() const { attention_backward(q, k, v, d_out, saved, gradients, options); }
};

struct Bad {
    const char* names;  // what the message must say
    std::function<void(Call&)> spoil;
};

void expect_error(const char* names, const std::function<void()>& run) {
    try {
        run();
        ADD_FAILURE() << names << ": accepted";
    } catch (const Error& error) {
        EXPECT_NE(std::string(error.what()).find(names), std::string::npos) << names << ": " << error.what();
    }
}

constexpr std::int64_t kHuge = std::int64_t{1} << 61;
constexpr std::array<std::int64_t, 1> kOne{0};
constexpr std::array<std::int64_t, 2> kNegative{-1, 3};
constexpr std::array<std::int64_t, 2> kTooFar{6, 7};
constexpr std::array<std::int64_t, 3> kFalling{0, 7, 5};
constexpr std::array<std::int64_t, 2> kQueries{0, 5};
constexpr std::array<std::int64_t, 2> kKeys{0, 6};
constexpr std::array<std::int64_t, 2> kUnsorted{1, 0};
constexpr std::array<std::int64_t, 2> kTwo{0, 2};

const Bad kBadForward[] = {
    {"q has type bool", [](Call& c) { c.q.dtype = DType::boolean; }},
    {"k has type f64", [](Call& c) { c.k.dtype = DType::f64; }},
    {"out has type f16", [](Call& c) { c.out.dtype = DType::f16; }},
    {"q is on device", [](Call& c) { c.q.device = std::bit_cast<Device>(std::uint8_t{1}); }},
    {"v has shape [2, 2, 5, 8]", [](Call& c) { c.v.shape[2] = 5; }},
    {"k has shape [2, 2, 6, 7]", [](Call& c) { c.k.shape[3] = 7; }},
    {"k has shape [1, 2, 6, 8]", [](Call& c) { c.k.shape[0] = 1; }},
    {"out has shape", [](Call& c) { c.out.shape[1] = 3; }},
    {"expected no negative size", [](Call& c) { c.q.shape[2] = -1; }},
    {"multiple of those of k",
     [](Call& c) {
         c.k.shape[1] = c.v.shape[1] = 3;
         c.k.strides = c.v.strides = {0, 0, 8, 1};
     }},
    {"multiple of those of k", [](Call& c) { c.k.shape[1] = c.v.shape[1] = 0; }},
    {"q has last stride 2", [](Call& c) { c.q.strides[3] = 2; }},
    {"q has shape [2, 4, 5, 8] and no memory", [](Call& c) { c.q.data = nullptr; }},
    {"q is not aligned", [](Call& c) { c.q.data = static_cast<const std::byte*>(c.q.data) + 1; }},
    {"out overlaps q", [](Call& c) { c.out = c.p.q_view(); }},
    {"out overlaps itself", [](Call& c) { c.out.strides[0] = 0; }},
    {"out overlaps itself", [](Call& c) { c.out.strides[2] = 4; }},
    {"q: ", [](Call& c) { c.q.shape[0] = c.k.shape[0] = c.v.shape[0] = kHuge; }},
    {"q: ", [](Call& c) { c.q.strides[0] = kHuge * 2; }},
    {"head_dim is",
     [](Call& c) {
         c.q.shape = {0, 4, 5, kHuge};
         c.k.shape = {0, 2, 6, kHuge};
         c.v.shape[0] = 0;
     }},
    {"scale is nan", [](Call& c) { c.options.scale = std::nan(""); }},
    {"scale is inf", [](Call& c) { c.options.scale = INFINITY; }},
    {"softcap is -1", [](Call& c) { c.options.softcap = -1; }},
    {"softcap is nan", [](Call& c) { c.options.softcap = std::nan(""); }},
    {"softcap is 1e+39", [](Call& c) { c.options.softcap = 1e39; }},
    {"softcap is 1e-39", [](Call& c) { c.options.softcap = 1e-39; }},
    {"scale is 1e+300", [](Call& c) { c.options.scale = 1e300; }},
    {"dropout.p is 1.5", [](Call& c) { c.options.dropout.p = 1.5; }},
    {"dropout.p is nan", [](Call& c) { c.options.dropout.p = std::nan(""); }},
    {"dropout.sequence_ids has 1",
     [](Call& c) {
         c.options.dropout.p = 0.1;
         c.options.dropout.sequence_ids = kOne;
     }},
    {"dropout.sequence_ids holds -1",
     [](Call& c) {
         c.options.dropout.p = 0.1;
         c.options.dropout.sequence_ids = kNegative;
     }},
    {"dropout: keys reach",
     [](Call& c) {
         c.options.dropout.p = 0.1;
         c.options.offsets.key = std::int64_t{1} << 32;
     }},
    {"dropout.keep has type f32", [](Call& c) { c.options.dropout.keep = view(c.numbers.data(), {1, 1, 1, 6}); }},
    {"offsets.query is -1", [](Call& c) { c.options.offsets.query = -1; }},
    {"sinks has shape", [](Call& c) { c.options.sinks = per_head(c.numbers.data(), 3); }},
    {"sinks has type f64",
     [](Call& c) {
         c.options.sinks = per_head(c.numbers.data(), 4);
         c.options.sinks->dtype = DType::f64;
     }},
    {"allowed has type f32", [](Call& c) { c.options.mask = Mask::allowed(view(c.numbers.data(), {1, 1, 5, 6})); }},
    {"bias has shape [1, 1, 5, 5]", [](Call& c) { c.options.mask = Mask::bias(view(c.numbers.data(), {1, 1, 5, 5})); }},
    {"bias has type f64",
     [](Call& c) {
         auto bias = view(c.numbers.data(), {1, 1, 5, 6});
         bias.dtype = DType::f64;
         c.options.mask = Mask::bias(bias);
     }},
    {"alibi has shape", [](Call& c) { c.options.mask = Mask::alibi(per_head(c.numbers.data(), 1)); }},
    {"key_end has 1 numbers", [](Call& c) { c.options.mask = Mask::key_end(kOne); }},
    {"key_begin of sequence 0 is -1", [](Call& c) { c.options.mask = Mask::key_begin(kNegative); }},
    {"key_end of sequence 1 is 7", [](Call& c) { c.options.mask = Mask::key_end(kTooFar); }},
    {"a packed batch expects", [](Call& c) { c.options.mask = Mask::packed(kQueries, kKeys); }},
    {"cumulative_keys falls",
     [](Call& c) {
         c.q.shape[0] = c.k.shape[0] = c.v.shape[0] = c.out.shape[0] = 1;
         c.k.shape[2] = c.v.shape[2] = 5;
         c.options.mask = Mask::packed(kQueries, kFalling);
     }},
    {"cumulative_queries has 0",
     [](Call& c) {
         c.q.shape[0] = c.k.shape[0] = c.v.shape[0] = c.out.shape[0] = 1;
         c.options.mask = Mask::packed({}, kKeys);
     }},
    {"blocks.starts has", [](Call& c) { c.options.mask = Mask::blocks({2, 2, 1, 1, kTwo, kUnsorted}); }},
    {"blocks: list 0", [](Call& c) { c.options.mask = Mask::blocks({8, 2, 1, 1, kTwo, kUnsorted}); }},
    {"blocks of 0 queries", [](Call& c) { c.options.mask = Mask::blocks({0, 2, 1, 1, kTwo, kUnsorted}); }},
    {"blocks.heads is 3", [](Call& c) { c.options.mask = Mask::blocks({8, 2, 1, 3, kTwo, kUnsorted}); }},
    {"lse has shape", [](Call& c) { c.extras.lse = per_row(c.numbers.data(), 2, 4, 4); }},
    {"lse has type f16",
     [](Call& c) {
         c.extras.lse = per_row(c.numbers.data(), 2, 4, 5);
         c.extras.lse->dtype = DType::f16;
     }},
    {"weights has shape", [](Call& c) { c.extras.weights = view(c.numbers.data(), {2, 4, 5, 5}); }},
    {"weights overlaps lse",
     [](Call& c) {
         c.extras.lse = per_row(c.numbers.data(), 2, 4, 5);
         c.extras.weights = view(c.numbers.data() + 39, {2, 4, 5, 6});
     }},
    {"workspace has 8 bytes",
     [](Call& c) { c.extras.workspace = std::as_writable_bytes(std::span(c.numbers)).first(8); }},
    {"workspace overlaps out", [](Call& c) { c.extras.workspace = std::as_writable_bytes(std::span(c.p.out)); }},
};

const Bad kBadBackward[] = {
    {"saved has neither", [](Call& c) { c.saved.out.reset(); }},
    {"d_out has shape", [](Call& c) { c.d_out.shape[3] = 7; }},
    {"saved.lse has shape", [](Call& c) { c.saved.lse.shape[2] = 4; }},
    {"saved.delta has type f64",
     [](Call& c) {
         c.saved.delta = c.saved.lse;
         c.saved.delta->dtype = DType::f64;
     }},
    {"dq has shape", [](Call& c) { c.gradients.dq->shape[2] = 4; }},
    {"dk overlaps dq", [](Call& c) { c.gradients.dk->data = c.gradients.dq->data; }},
    {"dv overlaps v", [](Call& c) { c.gradients.dv = c.p.v_view(); }},
    {"dbias is asked for without", [](Call& c) { c.gradients.dbias = view(c.numbers.data(), {1, 1, 5, 6}); }},
    {"dsinks is asked for without", [](Call& c) { c.gradients.dsinks = per_head(c.numbers.data(), 4); }},
    {"dalibi is asked for without", [](Call& c) { c.gradients.dalibi = per_head(c.numbers.data(), 4); }},
    {"dbias has shape",
     [](Call& c) {
         c.options.mask = Mask::bias(view(c.numbers.data(), {1, 1, 5, 6}));
         c.gradients.dbias = view(c.numbers.data() + 100, {2, 4, 5, 6});
     }},
    {"score_function has no gradient",
     [](Call& c) { c.options.score_function.apply = [](const void*, const ScoreTile&) {}; }},
    {"workspace has 8 bytes",
     [](Call& c) { c.gradients.workspace = std::as_writable_bytes(std::span(c.numbers)).first(8); }},
};

TEST(AttentionErrors, NameTheArgument) {
    const Call good;
    ASSERT_NO_THROW(good.forward());
    ASSERT_NO_THROW(good.backward());
    for (const Bad& bad : kBadForward) {
        Call call;
        bad.spoil(call);
        expect_error(bad.names, [&] { call.forward(); });
        EXPECT_EQ(call.p.out, std::vector<float>(call.p.out.size())) << bad.names << ": out was written";
    }
    for (const Bad& bad : kBadBackward) {
        Call call;
        bad.spoil(call);
        expect_error(bad.names, [&] { call.backward(); });
        EXPECT_EQ(call.p.dq, std::vector<float>(call.p.dq.size())) << bad.names << ": dq was written";
    }
}

TEST(AttentionErrors, MasksRefuseWhatTheyCannotHold) {
    expect_error("window left", [] { (void)Mask::window(-1, 0, Align::top_left); });
    expect_error("causal offset", [] { (void)Mask::causal(std::numeric_limits<std::int64_t>::min()); });
    expect_error("two of key_end", [] { (void)(Mask::key_end(kOne) & Mask::key_end(kOne)); });
}

// Repeated dimensions make any size out of one number: what cannot be counted is refused, not wrapped around.
TEST(AttentionErrors, MoreRowsThanCanBeCounted) {
    float number = 0.0F;
    const Shape4 many{1, 1, std::int64_t{1} << 62U, 1};
    const Shape4 repeated{};
    const ConstTensorView q = view(static_cast<const float*>(&number), many, repeated);
    const ConstTensorView k = view(static_cast<const float*>(&number), {1, 1, 1, 1});
    AttentionGradients gradients;
    gradients.dk = view(&number, {1, 1, 1, 1});
    const AttentionSaved saved{.lse = q, .out = q};
    expect_error("q has", [&] { (void)attention_backward_workspace_size(q, k, k, q, saved, gradients); });
    expect_error("q has", [&] { attention_backward(q, k, k, q, saved, gradients); });
    // 2^32 rows are few; with 2^16 numbers each they are not.
    const ConstTensorView wide =
        view(static_cast<const float*>(&number), {1, 1, std::int64_t{1} << 32U, 1 << 16}, {0, 0, 0, 1});
    expect_error("q has 281474976710656 elements",
                 [&] { (void)attention_workspace_size(wide, k, k, view(&number, {1, 1, 1, 1})); });
}

TEST(AttentionErrors, NoQueryHeadsIsNoError) {
    std::vector<float> numbers(640);
    const ConstTensorView k = view(static_cast<const float*>(numbers.data()), {1, 2, 5, 64});
    const TensorView none = view(numbers.data(), {1, 0, 5, 64});
    EXPECT_NO_THROW(attention(none, k, k, none));
}

TEST(AttentionErrors, InterleavedMemoryIsNoOverlap) {
    // q, k, v and out as slices of one [B, T, 4, H, D] array; then out moved on by one element.
    std::vector<float> packed(2 * 5 * 4 * 2 * 8);
    const Shape4 shape{2, 2, 5, 8};
    const Shape4 strides{5 * 64, 8, 64, 1};
    const auto slice = [&](std::int64_t at) { return view(packed.data() + at, shape, strides); };
    EXPECT_NO_THROW(attention(slice(0), slice(16), slice(32), slice(48)));
    expect_error("out overlaps v", [&] { attention(slice(0), slice(16), slice(32), slice(47)); });
}

}  // namespace
}  // namespace qkv
