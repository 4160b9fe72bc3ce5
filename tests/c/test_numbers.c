/* Numbers that can be worked out by hand: one query, two keys, D = 1. q = ln 3 and k = (1, 0) give scores (ln 3, 0), so
 * weights (3/4, 1/4); v = (4, 8) gives 5. */
#include <stdlib.h>

#include "check.h"

#define LN3 1.0986122886681098
#define LN4 1.3862943611198906
#define LN8 2.0794415416798357
static const double tolerance = 1e-6;

typedef struct {
    float q[1], k[2], v[2], out[1], lse[1], weights[2];
    qkv_tensor tq, tk, tv, tout, tlse, tweights;
    double scale;
    qkv_attention_options options;
    qkv_attention_extras extras;
} problem;

static void set_up(problem* p) {
    const problem fresh = {.q = {(float)LN3},
                           .k = {1, 0},
                           .v = {4, 8},
                           .scale = 1,
                           .options = QKV_ATTENTION_OPTIONS_INIT,
                           .extras = QKV_ATTENTION_EXTRAS_INIT};
    *p = fresh;
    p->tq = qkv_tensor_contiguous(p->q, QKV_F32, 1, 1, 1, 1);
    p->tk = qkv_tensor_contiguous(p->k, QKV_F32, 1, 1, 2, 1);
    p->tv = qkv_tensor_contiguous(p->v, QKV_F32, 1, 1, 2, 1);
    p->tout = qkv_tensor_contiguous(p->out, QKV_F32, 1, 1, 1, 1);
    p->tlse = qkv_tensor_contiguous(p->lse, QKV_F32, 1, 1, 1, 1);
    p->tweights = qkv_tensor_contiguous(p->weights, QKV_F32, 1, 1, 1, 2);
    p->options.scale = &p->scale;
    p->extras.lse = &p->tlse;
    p->extras.weights = &p->tweights;
}

static double forward(problem* p) {
    p->out[0] = NAN;
    CHECK_OK(qkv_attention(&p->tq, &p->tk, &p->tv, &p->tout, &p->options, &p->extras, NULL));
    return p->out[0];
}

static void test_options(void) {
    problem p;
    set_up(&p);
    CHECK_NEAR(forward(&p), 5, tolerance);
    CHECK_NEAR(p.lse[0], LN4, tolerance);
    CHECK_NEAR(p.weights[0], 0.75, tolerance);
    CHECK_NEAR(p.weights[1], 0.25, tolerance);

    p.options.scale = NULL; /* 1/√1 */
    CHECK_NEAR(forward(&p), 5, tolerance);
    p.scale = 0; /* 0 is a scale like any other: both keys weigh the same */
    p.options.scale = &p.scale;
    CHECK_NEAR(forward(&p), 6, tolerance);
    p.scale = 1;

    p.options.softcap = 2; /* 2 tanh(ln 3 / 2) = 1 */
    CHECK_NEAR(forward(&p), 8 - 4 * 0.7310585786300049, tolerance);
    p.options.softcap = 0;

    float sink[1] = {(float)LN4}; /* as heavy as both keys */
    const qkv_tensor sinks = qkv_tensor_contiguous(sink, QKV_F32, 1, 1, 1, 1);
    p.options.sinks = &sinks;
    CHECK_NEAR(forward(&p), 2.5, tolerance);
    CHECK_NEAR(p.lse[0], LN8, tolerance);
    p.extras.lse_without_sinks = 1;
    CHECK_NEAR(forward(&p), 2.5, tolerance);
    CHECK_NEAR(p.lse[0], LN4, tolerance);
    p.options.sinks = NULL;

    uint8_t kept[2] = {0, 1};
    const qkv_tensor keep = qkv_tensor_contiguous(kept, QKV_BOOL, 1, 1, 1, 2);
    p.options.dropout.p = 0.5;
    p.options.dropout.keep = &keep;
    CHECK_NEAR(forward(&p), 0.25 / 0.5 * 8, tolerance);
    p.options.dropout.keep = NULL;
    p.options.dropout.p = 1;
    CHECK_NEAR(forward(&p), 0, 0);
}

static void test_scores(void) {
    problem p;
    set_up(&p);
    float scores[2];
    const qkv_tensor tensor = qkv_tensor_contiguous(scores, QKV_F32, 1, 1, 1, 2);
    float added[2] = {1, -INFINITY};
    const qkv_tensor bias = qkv_tensor_contiguous(added, QKV_F32, 1, 1, 1, 2);
    qkv_mask* mask = NULL;
    CHECK_OK(qkv_mask_create(&mask));
    CHECK_OK(qkv_mask_add_bias(mask, &bias));
    p.options.mask = mask;
    p.options.softcap = 2;
    p.extras.scores = &tensor;
    const double expected[4][2] = {{LN3, 0}, {1, 0}, {2, -INFINITY}, {1, 0}};
    for (qkv_score_point point = QKV_SCORES_SCALED; point <= QKV_SCORES_WEIGHTS; ++point) {
        p.extras.scores_at = point;
        CHECK_NEAR(forward(&p), 4, tolerance);
        for (int key = 0; key < 2; ++key) {
            CHECK(isinf(expected[point][key]) ? scores[key] == -INFINITY
                                              : fabs(scores[key] - expected[point][key]) <= tolerance);
        }
    }
    qkv_mask_destroy(mask);
}

typedef qkv_status (*add_part)(qkv_mask* mask);

static float far_slope[1] = {(float)LN3};
static uint8_t first_only[2] = {1, 0};
static const int64_t one[1] = {1};
static const int64_t none_and_one[2] = {0, 1};
static const int64_t none_and_two[2] = {0, 2};

static qkv_status add_causal(qkv_mask* m) { return qkv_mask_add_causal(m, QKV_TOP_LEFT); }
static qkv_status add_causal_end(qkv_mask* m) { return qkv_mask_add_causal(m, QKV_BOTTOM_RIGHT); }
static qkv_status add_offset(qkv_mask* m) { return qkv_mask_add_causal_offset(m, 1); }
static qkv_status add_window(qkv_mask* m) { return qkv_mask_add_window(m, 0, QKV_UNLIMITED, QKV_BOTTOM_RIGHT); }
static qkv_status add_allowed(qkv_mask* m) {
    const qkv_tensor allowed = qkv_tensor_contiguous(first_only, QKV_BOOL, 1, 1, 1, 2);
    return qkv_mask_add_allowed(m, &allowed);
}
static qkv_status add_alibi(qkv_mask* m) {
    const qkv_tensor slopes = qkv_tensor_contiguous(far_slope, QKV_F32, 1, 1, 1, 1);
    return qkv_mask_add_alibi(m, &slopes, QKV_BOTTOM_RIGHT);
}
static qkv_status add_begin(qkv_mask* m) { return qkv_mask_add_key_begin(m, one, 1); }
static qkv_status add_end(qkv_mask* m) { return qkv_mask_add_key_end(m, one, 1); }
static qkv_status add_packed(qkv_mask* m) { return qkv_mask_add_packed(m, none_and_one, none_and_two, 1); }
static qkv_status add_blocks(qkv_mask* m) {
    qkv_block_list blocks = QKV_BLOCK_LIST_INIT;
    blocks.query_block = blocks.key_block = 1;
    blocks.starts = none_and_one;
    blocks.starts_count = 2;
    blocks.key_blocks = one; /* the second key only */
    blocks.key_blocks_count = 1;
    return qkv_mask_add_blocks(m, &blocks);
}

static void test_masks(void) {
    const struct {
        add_part add;
        double out;
    } cases[] = {{add_causal, 4}, {add_causal_end, 5}, {add_offset, 5}, {add_window, 8}, {add_allowed, 4},
                 {add_alibi, 6},  {add_begin, 8},      {add_end, 4},    {add_packed, 5}, {add_blocks, 8}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); ++i) {
        problem p;
        set_up(&p);
        qkv_mask* mask = NULL;
        CHECK_OK(qkv_mask_create(&mask));
        CHECK_OK(cases[i].add(mask));
        p.options.mask = mask;
        CHECK_NEAR(forward(&p), cases[i].out, tolerance);
        /* Parts intersect: with the causal diagonal only the first key is left, or none. */
        CHECK_OK(qkv_mask_add_causal(mask, QKV_TOP_LEFT));
        CHECK_NEAR(forward(&p), cases[i].out == 8 ? 0 : 4, tolerance);
        CHECK(cases[i].out != 8 || p.lse[0] == -INFINITY);
        qkv_mask_destroy(mask);
    }

    problem p;
    set_up(&p);
    qkv_mask* mask = NULL;
    CHECK_OK(qkv_mask_create(&mask));
    CHECK_OK(qkv_mask_add_causal(mask, QKV_TOP_LEFT));
    p.options.mask = mask;
    p.options.offsets.query = 1; /* the second query of a longer problem sees both keys */
    CHECK_NEAR(forward(&p), 5, tolerance);
    qkv_mask_destroy(mask);
    qkv_mask_destroy(NULL);
}

static void test_backward(void) {
    problem p;
    set_up(&p);
    (void)forward(&p);
    float d_out[1] = {1}, dq[1] = {NAN}, dk[2] = {NAN, NAN}, dv[2] = {NAN, NAN}, delta[1] = {5};
    const qkv_tensor td_out = qkv_tensor_contiguous(d_out, QKV_F32, 1, 1, 1, 1);
    const qkv_tensor tdq = qkv_tensor_contiguous(dq, QKV_F32, 1, 1, 1, 1);
    const qkv_tensor tdk = qkv_tensor_contiguous(dk, QKV_F32, 1, 1, 2, 1);
    const qkv_tensor tdv = qkv_tensor_contiguous(dv, QKV_F32, 1, 1, 2, 1);
    const qkv_tensor tdelta = qkv_tensor_contiguous(delta, QKV_F32, 1, 1, 1, 1);
    qkv_attention_saved saved = QKV_ATTENTION_SAVED_INIT;
    saved.lse = &p.tlse;
    saved.out = &p.tout;
    qkv_attention_gradients gradients = QKV_ATTENTION_GRADIENTS_INIT;
    gradients.dq = &tdq;
    gradients.dk = &tdk;
    gradients.dv = &tdv;
    for (int given = 0; given < 2; ++given) { /* from out, then from delta */
        CHECK_OK(qkv_attention_backward(&p.tq, &p.tk, &p.tv, &td_out, &saved, &gradients, &p.options, NULL));
        /* dS = weight · (v − 5) = (−3/4, 3/4); dq = Σ dS k; dk = dS q; dv = weights */
        CHECK_NEAR(dq[0], -0.75, tolerance);
        CHECK_NEAR(dk[0], -0.75 * LN3, tolerance);
        CHECK_NEAR(dk[1], 0.75 * LN3, tolerance);
        CHECK_NEAR(dv[0], 0.75, tolerance);
        CHECK_NEAR(dv[1], 0.25, tolerance);
        saved.out = NULL;
        saved.delta = &tdelta;
        dq[0] = NAN;
    }

    /* Gradients of what a mask and a sink hold: dbias = dS, dsink = −sink's weight · 5/2 with weights (3, 1, 4)/8 */
    float added[2] = {0, 0}, dadded[2] = {NAN, NAN}, sink[1] = {(float)LN4}, dsink[1] = {NAN};
    const qkv_tensor bias = qkv_tensor_contiguous(added, QKV_F32, 1, 1, 1, 2);
    const qkv_tensor dbias = qkv_tensor_contiguous(dadded, QKV_F32, 1, 1, 1, 2);
    const qkv_tensor sinks = qkv_tensor_contiguous(sink, QKV_F32, 1, 1, 1, 1);
    const qkv_tensor dsinks = qkv_tensor_contiguous(dsink, QKV_F32, 1, 1, 1, 1);
    qkv_mask* mask = NULL;
    CHECK_OK(qkv_mask_create(&mask));
    CHECK_OK(qkv_mask_add_bias(mask, &bias));
    p.options.mask = mask;
    p.options.sinks = &sinks;
    gradients.dbias = &dbias;
    gradients.dsinks = &dsinks;
    for (int32_t without = 0; without < 2; ++without) { /* whether the lse counts the sink must not matter */
        p.extras.lse_without_sinks = saved.lse_without_sinks = without;
        saved.delta = NULL;
        saved.out = &p.tout;
        CHECK_NEAR(forward(&p), 2.5, tolerance);
        CHECK_OK(qkv_attention_backward(&p.tq, &p.tk, &p.tv, &td_out, &saved, &gradients, &p.options, NULL));
        CHECK_NEAR(dadded[0], 0.375 * (4 - 2.5), tolerance);
        CHECK_NEAR(dadded[1], 0.125 * (8 - 2.5), tolerance);
        CHECK_NEAR(dsink[0], 0.5 * (0 - 2.5), tolerance);
    }
    qkv_mask_destroy(mask);
}

static void twice(const void* user, const qkv_score_tile* tile) {
    for (int64_t row = 0; row < tile->queries; ++row) {
        for (int64_t column = 0; column < tile->keys; ++column) {
            ((float*)tile->values)[row * tile->row_stride + column] *= *(const float*)user;
        }
    }
}

static void twice_gradient(const void* user, const qkv_score_tile* scores, const qkv_score_tile* gradients) {
    CHECK(scores->dtype == QKV_F32 && scores->query == 0 && scores->head == 0 && scores->sequence == 0);
    twice(user, gradients);
}

static void test_score_function(void) {
    problem p;
    set_up(&p);
    const float factor = 2;
    p.options.score_function.apply = twice;
    p.options.score_function.gradient = twice_gradient;
    p.options.score_function.user = &factor;
    CHECK_NEAR(forward(&p), 4.4, tolerance); /* scores (ln 9, 0), weights (.9, .1) */
    float d_out[1] = {1}, dq[1] = {NAN};
    const qkv_tensor td_out = qkv_tensor_contiguous(d_out, QKV_F32, 1, 1, 1, 1);
    const qkv_tensor tdq = qkv_tensor_contiguous(dq, QKV_F32, 1, 1, 1, 1);
    qkv_attention_saved saved = QKV_ATTENTION_SAVED_INIT;
    saved.lse = &p.tlse;
    saved.out = &p.tout;
    qkv_attention_gradients gradients = QKV_ATTENTION_GRADIENTS_INIT;
    gradients.dq = &tdq;
    CHECK_OK(qkv_attention_backward(&p.tq, &p.tk, &p.tv, &td_out, &saved, &gradients, &p.options, NULL));
    CHECK_NEAR(dq[0], 2 * 0.9 * (4 - 4.4), tolerance);
}

static void test_merge(void) {
    float out[1] = {4}, lse[1] = {(float)LN3}, part_out[1] = {8}, part_lse[1] = {0}, sink[1] = {(float)LN4};
    const qkv_tensor tout = qkv_tensor_contiguous(out, QKV_F32, 1, 1, 1, 1);
    const qkv_tensor tlse = qkv_tensor_contiguous(lse, QKV_F32, 1, 1, 1, 1);
    const qkv_tensor tpart_out = qkv_tensor_contiguous(part_out, QKV_F32, 1, 1, 1, 1);
    const qkv_tensor tpart_lse = qkv_tensor_contiguous(part_lse, QKV_F32, 1, 1, 1, 1);
    const qkv_tensor sinks = qkv_tensor_contiguous(sink, QKV_F32, 1, 1, 1, 1);
    CHECK_OK(qkv_attention_merge(&tout, &tlse, &tpart_out, &tpart_lse));
    CHECK_NEAR(out[0], 5, tolerance);
    CHECK_NEAR(lse[0], LN4, tolerance);
    part_out[0] = NAN; /* a part without keys changes nothing, whatever it holds */
    part_lse[0] = -INFINITY;
    CHECK_OK(qkv_attention_merge(&tout, &tlse, &tpart_out, &tpart_lse));
    CHECK_OK(qkv_attention_merge_sinks(&tout, &tlse, &sinks));
    CHECK_NEAR(out[0], 2.5, tolerance);
    CHECK_NEAR(lse[0], LN8, tolerance);
}

/* With q = 0 all keys weigh the same: 6 in every type. */
static void test_types(void) {
    const uint16_t bf16[3] = {0, 0x4080, 0x4100}, f16[3] = {0, 0x4400, 0x4800}; /* 0, 4, 8 */
    const double f64[3] = {0, 4, 8};
    const struct {
        qkv_dtype dtype;
        const void* numbers;
        size_t size;
        uint16_t six;
    } cases[] = {{QKV_BF16, bf16, 2, 0x40C0}, {QKV_F16, f16, 2, 0x4600}, {QKV_F64, f64, 8, 0}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); ++i) {
        double memory[3] = {0, 0, 0}, result = 0;
        memcpy(memory, cases[i].numbers, 3 * cases[i].size);
        char* numbers = (char*)memory;
        const qkv_tensor q = qkv_tensor_contiguous(numbers, cases[i].dtype, 1, 1, 1, 1);
        const qkv_tensor v = qkv_tensor_contiguous(numbers + cases[i].size, cases[i].dtype, 1, 1, 2, 1);
        const qkv_tensor out = qkv_tensor_contiguous(&result, cases[i].dtype, 1, 1, 1, 1);
        CHECK_OK(qkv_attention(&q, &v, &v, &out, NULL, NULL, NULL));
        CHECK(cases[i].dtype == QKV_F64 ? result == 6.0 : memcmp(&result, &cases[i].six, 2) == 0);
    }
}

void test_numbers(void) {
    test_options();
    test_scores();
    test_masks();
    test_backward();
    test_score_function();
    test_merge();
    test_types();
}
