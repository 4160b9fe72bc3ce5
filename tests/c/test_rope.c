/* Rotations that can be worked out by hand, the calls' structs, and bad input. */
#include "check.h"

static const double tolerance = 1e-6;

static qkv_rope* rope_of(const qkv_rope_options* options, int64_t head_dim) {
    qkv_rope* rope = NULL;
    CHECK_OK(qkv_rope_create(options, head_dim, &rope));
    return rope;
}

/* The angle in radians by which pair `pair` of a half-split rope of 4 columns turns at `position`. */
static double angle(const qkv_rope* rope, int64_t position, int64_t pair) {
    float x[4] = {0}, out[4] = {0};
    x[pair] = 1;
    const qkv_tensor tx = qkv_tensor_contiguous(x, QKV_F32, 1, 1, 1, 4),
                     tout = qkv_tensor_contiguous(out, QKV_F32, 1, 1, 1, 4);
    qkv_rope_positions positions = QKV_ROPE_POSITIONS_INIT;
    positions.start = position;
    CHECK_OK(qkv_rope_apply(rope, &tx, &tout, &positions, NULL));
    return atan2(out[pair + 2], out[pair]);
}

static void test_pairings(void) {
    float x[8] = {1, 2, 3, 4, 1, 2, 3, 4}, out[8], back[8];
    const qkv_tensor tx = qkv_tensor_contiguous(x, QKV_F32, 1, 1, 2, 4),
                     tout = qkv_tensor_contiguous(out, QKV_F32, 1, 1, 2, 4),
                     tback = qkv_tensor_contiguous(back, QKV_F32, 1, 1, 2, 4);
    qkv_rope_options options = QKV_ROPE_OPTIONS_INIT;
    options.base = 100; /* frequencies 1 and 1/10 */
    for (int interleaved = 0; interleaved < 2; ++interleaved) {
        options.pairing = interleaved ? QKV_INTERLEAVED : QKV_HALF_SPLIT;
        qkv_rope* rope = rope_of(&options, 4);
        const int64_t each[2] = {0, 5};
        qkv_rope_positions positions = QKV_ROPE_POSITIONS_INIT;
        positions.each = each;
        positions.each_count = 2;
        CHECK_OK(qkv_rope_apply(rope, &tx, &tout, &positions, NULL));
        CHECK(memcmp(out, x, 4 * sizeof(float)) == 0);
        for (int pair = 0; pair < 2; ++pair) {
            const int a = interleaved ? 2 * pair : pair, b = interleaved ? a + 1 : a + 2;
            const double phi = pair == 0 ? 5 : 0.5;
            CHECK_NEAR(out[4 + a], x[a] * cos(phi) - x[b] * sin(phi), tolerance);
            CHECK_NEAR(out[4 + b], x[b] * cos(phi) + x[a] * sin(phi), tolerance);
        }
        CHECK_OK(qkv_rope_apply_backward(rope, &tout, &tback, &positions, NULL));
        for (int i = 0; i < 8; ++i) {
            CHECK_NEAR(back[i], x[i], tolerance);
        }
        qkv_rope_destroy(rope);
    }
    options.rotary_dim = 2; /* the last two columns pass */
    qkv_rope* rope = rope_of(&options, 4);
    CHECK_OK(qkv_rope_apply(rope, &tx, &tout, NULL, NULL));
    CHECK_NEAR(out[4], cos(1) - 2 * sin(1), tolerance);
    CHECK(out[6] == 3 && out[7] == 4);
    qkv_rope_destroy(rope);
}

/* Frequencies 1 and 1/10 (base 100, 4 columns), as each scaling leaves them. */
static void test_scalings(void) {
    qkv_rope_options options = QKV_ROPE_OPTIONS_INIT;
    options.base = 100;
    options.scaling = QKV_ROPE_LINEAR;
    options.factor = 4;
    qkv_rope* rope = rope_of(&options, 4);
    CHECK_NEAR(angle(rope, 1, 0), 0.25, tolerance);
    CHECK_NEAR(angle(rope, 1, 1), 0.025, tolerance);
    qkv_rope_destroy(rope);

    options.scaling = QKV_ROPE_NTK;
    rope = rope_of(&options, 4);
    CHECK_NEAR(angle(rope, 1, 0), 1, tolerance);
    CHECK_NEAR(angle(rope, 1, 1), 0.025, tolerance);
    qkv_rope_destroy(rope);

    options.scaling = QKV_ROPE_DYNAMIC_NTK;
    options.original_context = 10;
    rope = rope_of(&options, 4);
    CHECK_NEAR(angle(rope, 1, 1), 0.1, tolerance);
    CHECK_NEAR(angle(rope, 19, 1), 19 * 0.1 / (4 * 2.0 - 3), tolerance); /* 20 tokens: factor 5 */
    qkv_rope_destroy(rope);

    /* Over 100 tokens the pairs turn 16 and 1.6 times: the first is kept, the second divided. */
    const double attention_factor = 2;
    options.scaling = QKV_ROPE_YARN;
    options.original_context = 100;
    options.beta_fast = 10;
    options.beta_slow = 2;
    options.no_truncate = 1;
    options.attention_factor = &attention_factor;
    rope = rope_of(&options, 4);
    CHECK_NEAR(angle(rope, 1, 0), 1, tolerance);
    CHECK_NEAR(angle(rope, 1, 1), 0.025, tolerance);
    float x[4] = {1, 0, 0, 0};
    const qkv_tensor tx = qkv_tensor_contiguous(x, QKV_F32, 1, 1, 1, 4);
    CHECK_OK(qkv_rope_apply(rope, &tx, &tx, NULL, NULL)); /* in place */
    CHECK(x[0] == 2);
    qkv_rope_destroy(rope);

    /* Wavelengths 6.3 and 63: below 100 / 4 and above 100 / 2. */
    qkv_rope_options llama3 = QKV_ROPE_OPTIONS_INIT;
    llama3.base = 100;
    llama3.scaling = QKV_ROPE_LLAMA3;
    llama3.original_context = 100;
    llama3.low_freq_factor = 2;
    rope = rope_of(&llama3, 4);
    CHECK_NEAR(angle(rope, 1, 0), 1, tolerance);
    CHECK_NEAR(angle(rope, 1, 1), 0.0125, tolerance); /* by the default factor, 8 */
    qkv_rope_destroy(rope);
}

static void test_tables(void) {
    float cosines[2] = {1, 0}, sines[2] = {0, 1}, x[2] = {3, 4}, out[2] = {0};
    const qkv_tensor tcos = qkv_tensor_contiguous(cosines, QKV_F32, 1, 1, 2, 1),
                     tsin = qkv_tensor_contiguous(sines, QKV_F32, 1, 1, 2, 1);
    const qkv_tensor tx = qkv_tensor_contiguous(x, QKV_F32, 1, 1, 1, 2),
                     tout = qkv_tensor_contiguous(out, QKV_F32, 1, 1, 1, 2);
    qkv_rope* rope = NULL;
    CHECK_OK(qkv_rope_create_from_tables(&tcos, &tsin, 2, QKV_HALF_SPLIT, &rope));
    qkv_rope_positions positions = QKV_ROPE_POSITIONS_INIT;
    positions.start = 1; /* a quarter turn */
    CHECK_OK(qkv_rope_apply(rope, &tx, &tout, &positions, NULL));
    CHECK(out[0] == -4 && out[1] == 3);
    positions.start = 2;
    CHECK_ERROR(qkv_rope_apply(rope, &tx, &tout, &positions, NULL), QKV_OUT_OF_RANGE, "positions.start is 2");
    CHECK(out[0] == -4 && out[1] == 3);
    qkv_rope_destroy(rope);
    rope = NULL;
    CHECK_ERROR(qkv_rope_create_from_tables(NULL, &tsin, 2, QKV_HALF_SPLIT, &rope), QKV_INVALID_ARGUMENT,
                "cos is NULL");
    CHECK_ERROR(qkv_rope_create_from_tables(&tcos, NULL, 2, QKV_HALF_SPLIT, &rope), QKV_INVALID_ARGUMENT,
                "sin is NULL");
    CHECK_ERROR(qkv_rope_create_from_tables(&tcos, &tsin, 2, 2, &rope), QKV_UNSUPPORTED, "pairing is 2");
    CHECK_ERROR(qkv_rope_create_from_tables(&tcos, &tx, 2, QKV_HALF_SPLIT, &rope), QKV_SHAPE_MISMATCH, "sin");
    CHECK_ERROR(qkv_rope_create_from_tables(&tcos, &tsin, 2, QKV_HALF_SPLIT, NULL), QKV_INVALID_ARGUMENT,
                "rope is NULL");
    CHECK(rope == NULL);
}

static void test_options(void) {
    qkv_rope* rope = NULL;
    const qkv_rope_options good = QKV_ROPE_OPTIONS_INIT;
    qkv_rope_options o = good;
    CHECK_ERROR(qkv_rope_create(&o, 4, NULL), QKV_INVALID_ARGUMENT, "rope is NULL");
    CHECK_ERROR(qkv_rope_create(&o, 5, &rope), QKV_INVALID_ARGUMENT, "head_dim 5");
    o.rotary_dim = 6;
    CHECK_ERROR(qkv_rope_create(&o, 4, &rope), QKV_INVALID_ARGUMENT, "rotary_dim is 6");
    o = good, o.base = NAN;
    CHECK_ERROR(qkv_rope_create(&o, 4, &rope), QKV_INVALID_ARGUMENT, "base is nan");
    o = good, o.pairing = -1;
    CHECK_ERROR(qkv_rope_create(&o, 4, &rope), QKV_UNSUPPORTED, "pairing is -1");
    const qkv_rope_scaling unknown[] = {-1, 6, INT32_MIN, INT32_MAX};
    for (size_t i = 0; i < 4; ++i) {
        o = good, o.scaling = unknown[i];
        CHECK_ERROR(qkv_rope_create(&o, 4, &rope), QKV_UNSUPPORTED, "scaling is ");
    }
    o = good, o.factor = 2; /* of what? */
    CHECK_ERROR(qkv_rope_create(&o, 4, &rope), QKV_INVALID_ARGUMENT, "options.factor is given");
    o.scaling = QKV_ROPE_LINEAR, o.original_context = 7;
    CHECK_ERROR(qkv_rope_create(&o, 4, &rope), QKV_INVALID_ARGUMENT, "options.original_context is given");
    o.scaling = QKV_ROPE_LLAMA3, o.beta_fast = 7;
    CHECK_ERROR(qkv_rope_create(&o, 4, &rope), QKV_INVALID_ARGUMENT, "options.beta_fast is given");
    o = good, o.scaling = QKV_ROPE_YARN;
    CHECK_ERROR(qkv_rope_create(&o, 4, &rope), QKV_INVALID_ARGUMENT, "original_context is 0");
    o.original_context = 8, o.no_truncate = 2;
    CHECK_ERROR(qkv_rope_create(&o, 4, &rope), QKV_INVALID_ARGUMENT, "no_truncate is 2");
    o.no_truncate = 0, o.reserved = 1;
    CHECK_ERROR(qkv_rope_create(&o, 4, &rope), QKV_INVALID_ARGUMENT, "options.reserved is given");
    o = good, o.struct_size = 12;
    CHECK_ERROR(qkv_rope_create(&o, 4, &rope), QKV_INVALID_ARGUMENT, "options.struct_size is 12");
    o.struct_size = 4104; /* what was never set may be anything */
    CHECK_ERROR(qkv_rope_create(&o, 4, &rope), QKV_INVALID_ARGUMENT,
                "options.struct_size is 4104; expected the struct's sizeof, 112, which its QKV_..._INIT sets");
    CHECK(rope == NULL);
}

static void test_calls(void) {
    qkv_rope* rope = rope_of(NULL, 4);
    float x[8] = {1}, out[8] = {7};
    const qkv_tensor tx = qkv_tensor_contiguous(x, QKV_F32, 1, 1, 2, 4),
                     tout = qkv_tensor_contiguous(out, QKV_F32, 1, 1, 2, 4);
    const qkv_tensor wide = qkv_tensor_contiguous(x, QKV_F32, 1, 1, 1, 8),
                     over = qkv_tensor_contiguous(x + 1, QKV_F32, 1, 1, 1, 4);
    CHECK_ERROR(qkv_rope_apply(NULL, &tx, &tout, NULL, NULL), QKV_INVALID_ARGUMENT, "rope is NULL");
    CHECK_ERROR(qkv_rope_apply(rope, NULL, &tout, NULL, NULL), QKV_INVALID_ARGUMENT, "x is NULL");
    CHECK_ERROR(qkv_rope_apply(rope, &tx, NULL, NULL, NULL), QKV_INVALID_ARGUMENT, "out is NULL");
    CHECK_ERROR(qkv_rope_apply_backward(NULL, &tx, &tout, NULL, NULL), QKV_INVALID_ARGUMENT, "rope is NULL");
    CHECK_ERROR(qkv_rope_apply_backward(rope, NULL, &tout, NULL, NULL), QKV_INVALID_ARGUMENT, "d_out is NULL");
    CHECK_ERROR(qkv_rope_apply_backward(rope, &tx, NULL, NULL, NULL), QKV_INVALID_ARGUMENT, "d_x is NULL");
    CHECK_ERROR(qkv_rope_apply(rope, &wide, &wide, NULL, NULL), QKV_SHAPE_MISMATCH, "x has shape");
    CHECK_ERROR(qkv_rope_apply(rope, &tx, &over, NULL, NULL), QKV_SHAPE_MISMATCH, "out has shape");
    qkv_rope_positions positions = QKV_ROPE_POSITIONS_INIT;
    positions.start = -1;
    CHECK_ERROR(qkv_rope_apply(rope, &tx, &tout, &positions, NULL), QKV_OUT_OF_RANGE, "positions.start is -1");
    positions.start = 0;
    positions.each_count = 2;
    CHECK_ERROR(qkv_rope_apply(rope, &tx, &tout, &positions, NULL), QKV_INVALID_ARGUMENT, "positions.each is NULL");
    const int64_t each[3] = {0, -4, 0};
    positions.each = each;
    CHECK_ERROR(qkv_rope_apply(rope, &tx, &tout, &positions, NULL), QKV_OUT_OF_RANGE, "positions.each[1] is -4");
    positions.each_count = 3;
    CHECK_ERROR(qkv_rope_apply(rope, &tx, &tout, &positions, NULL), QKV_SHAPE_MISMATCH, "positions.each has 3");
    positions.struct_size = 1;
    CHECK_ERROR(qkv_rope_apply(rope, &tx, &tout, &positions, NULL), QKV_INVALID_ARGUMENT, "positions.struct_size is 1");
    CHECK(out[0] == 7 && out[1] == 0);
    qkv_rope_destroy(rope);
    qkv_rope_destroy(NULL);
}

void test_rope(void) {
    test_pairings();
    test_scalings();
    test_tables();
    test_options();
    test_calls();
}
