#include "qkv/rope.hpp"

#include "c_api/boundary.hpp"
#include "c_api/handles.hpp"

namespace qkv::c_api {

namespace {

constexpr unsigned bit(qkv_rope_scaling scaling) { return 1U << static_cast<unsigned>(scaling); }

/// A factor without a scaling is a scaling forgotten.
void check_settings(const qkv_rope_options& given) {
    constexpr unsigned kYarn = bit(QKV_ROPE_YARN);
    constexpr unsigned kLlama3 = bit(QKV_ROPE_LLAMA3);
    constexpr unsigned kAll = bit(QKV_ROPE_LINEAR) | bit(QKV_ROPE_NTK) | bit(QKV_ROPE_DYNAMIC_NTK) | kYarn | kLlama3;
    const struct {
        const char* name;
        unsigned scalings;
        bool is_given;
    } settings[] = {
        {"factor", kAll, given.factor != 0.0},
        {"original_context", bit(QKV_ROPE_DYNAMIC_NTK) | kYarn | kLlama3, given.original_context != 0},
        {"beta_fast", kYarn, given.beta_fast != 0.0},
        {"beta_slow", kYarn, given.beta_slow != 0.0},
        {"attention_factor", kYarn, given.attention_factor != nullptr},
        {"mscale", kYarn, given.mscale != 0.0},
        {"mscale_all_dim", kYarn, given.mscale_all_dim != 0.0},
        {"no_truncate", kYarn, given.no_truncate != 0},
        {"low_freq_factor", kLlama3, given.low_freq_factor != 0.0},
        {"high_freq_factor", kLlama3, given.high_freq_factor != 0.0},
        {"reserved", 0, given.reserved != 0},
    };
    for (const auto& setting : settings) {
        if (setting.is_given && (setting.scalings & bit(given.scaling)) == 0) {
            fail(ErrorCode::invalid_argument, "options.", setting.name, " is given; expected 0 with scaling ",
                 given.scaling, ", which does not read it");
        }
    }
}

RopeScaling to_scaling(const qkv_rope_options& given) {
    const double factor = or_default(given.factor, 1.0);
    switch (given.scaling) {
        case QKV_ROPE_UNSCALED:
            return {};
        case QKV_ROPE_LINEAR:
            return RopeLinear{factor};
        case QKV_ROPE_NTK:
            return RopeNtk{factor};
        case QKV_ROPE_DYNAMIC_NTK:
            return RopeDynamicNtk{factor, given.original_context};
        case QKV_ROPE_YARN: {
            RopeYarn yarn{.factor = factor, .original_context = given.original_context};
            yarn.beta_fast = or_default(given.beta_fast, yarn.beta_fast);
            yarn.beta_slow = or_default(given.beta_slow, yarn.beta_slow);
            yarn.truncate = !checked_flag(given.no_truncate, "options.no_truncate");
            if (given.attention_factor != nullptr) {
                yarn.attention_factor = *given.attention_factor;
            }
            yarn.mscale = given.mscale;
            yarn.mscale_all_dim = given.mscale_all_dim;
            return yarn;
        }
        default: {
            RopeLlama3 llama3;
            llama3.factor = or_default(given.factor, llama3.factor);
            llama3.low_freq_factor = or_default(given.low_freq_factor, llama3.low_freq_factor);
            llama3.high_freq_factor = or_default(given.high_freq_factor, llama3.high_freq_factor);
            llama3.original_context = or_default(given.original_context, llama3.original_context);
            return llama3;
        }
    }
}

RopePairing to_pairing(qkv_rope_pairing pairing) { return checked_enum(pairing, RopePairing::interleaved, "pairing"); }

RopeOptions to_options(const qkv_rope_options& given) {
    (void)checked_enum<qkv_rope_scaling>(given.scaling, QKV_ROPE_LLAMA3, "scaling");
    check_settings(given);
    RopeOptions options;
    options.rotary_dim = given.rotary_dim;
    options.base = or_default(given.base, options.base);
    options.pairing = to_pairing(given.pairing);
    options.scaling = to_scaling(given);
    return options;
}

RopePositions to_positions(const qkv_rope_positions* positions) {
    const qkv_rope_positions given = read_struct(positions, "positions");
    return {given.start, to_span(given.each, given.each_count, "positions.each"), given.length};
}

}  // namespace

}  // namespace qkv::c_api

using namespace qkv::c_api;
using qkv::Rope;

extern "C" {

qkv_status qkv_rope_create(const qkv_rope_options* options, int64_t head_dim, qkv_rope** rope) {
    return create(rope, "rope",
                  [&] { return new qkv_rope{Rope(to_options(read_struct(options, "options")), head_dim)}; });
}

qkv_status qkv_rope_create_from_tables(const qkv_tensor* cos, const qkv_tensor* sin, int64_t head_dim,
                                       qkv_rope_pairing pairing, qkv_rope** rope) {
    return guarded([&] {
        qkv_rope*& created = required(rope, "rope");
        created =
            new qkv_rope{Rope::from_tables(to_view(cos, "cos"), to_view(sin, "sin"), head_dim, to_pairing(pairing))};
    });
}

void qkv_rope_destroy(qkv_rope* rope) { delete rope; }

qkv_status qkv_rope_apply(const qkv_rope* rope, const qkv_tensor* x, const qkv_tensor* out,
                          const qkv_rope_positions* positions, const qkv_runtime* runtime) {
    return guarded([&] {
        required(rope, "rope")
            .rope.apply(to_view(x, "x"), to_view(out, "out"), to_positions(positions), runtime_of(runtime));
    });
}

qkv_status qkv_rope_apply_backward(const qkv_rope* rope, const qkv_tensor* d_out, const qkv_tensor* d_x,
                                   const qkv_rope_positions* positions, const qkv_runtime* runtime) {
    return guarded([&] {
        required(rope, "rope")
            .rope.apply_backward(to_view(d_out, "d_out"), to_view(d_x, "d_x"), to_positions(positions),
                                 runtime_of(runtime));
    });
}

}  // extern "C"
