#include "problem.h"

#include <stdlib.h>

static float* zeros(int64_t tokens, int64_t heads, int64_t width) {
    float* values = calloc((size_t)(BATCH * tokens * heads * width), sizeof(float));
    if (values == NULL) {
        abort();
    }
    return values;
}

static qkv_tensor see(const big_problem* problem, float* values, int64_t tokens, int64_t heads, int64_t width) {
    return problem->tokens_first ? qkv_tensor_tokens_first(values, QKV_F32, BATCH, tokens, heads, width)
                                 : qkv_tensor_contiguous(values, QKV_F32, BATCH, heads, tokens, width);
}

static float* at(const qkv_tensor* t, int64_t b, int64_t h, int64_t i, int64_t d) {
    return (float*)t->data + b * t->strides[0] + h * t->strides[1] + i * t->strides[2] + d * t->strides[3];
}

/* The same number at the same place, however the memory is laid out. */
static void fill(const qkv_tensor* t, uint64_t seed) {
    qkv_generator* generator = NULL;
    CHECK_OK(qkv_generator_create(seed, &generator));
    for (int64_t b = 0; b < t->shape[0]; ++b) {
        for (int64_t h = 0; h < t->shape[1]; ++h) {
            for (int64_t i = 0; i < t->shape[2]; ++i) {
                for (int64_t d = 0; d < t->shape[3]; ++d) {
                    CHECK_OK(qkv_generator_uniform(generator, QKV_F32, at(t, b, h, i, d), 1, -2, 2));
                }
            }
        }
    }
    qkv_generator_destroy(generator);
}

void big_problem_create(big_problem* p, int tokens_first) {
    p->tokens_first = tokens_first;
    p->q = zeros(QUERIES, HEADS, HEAD_DIM);
    p->k = zeros(KEYS, KV_HEADS, HEAD_DIM);
    p->v = zeros(KEYS, KV_HEADS, VALUE_DIM);
    p->d_out = zeros(QUERIES, HEADS, VALUE_DIM);
    p->out = zeros(QUERIES, HEADS, VALUE_DIM);
    p->lse = zeros(QUERIES, HEADS, 1);
    p->dq = zeros(QUERIES, HEADS, HEAD_DIM);
    p->dk = zeros(KEYS, KV_HEADS, HEAD_DIM);
    p->dv = zeros(KEYS, KV_HEADS, VALUE_DIM);
    p->tq = see(p, p->q, QUERIES, HEADS, HEAD_DIM);
    p->tk = see(p, p->k, KEYS, KV_HEADS, HEAD_DIM);
    p->tv = see(p, p->v, KEYS, KV_HEADS, VALUE_DIM);
    p->td_out = see(p, p->d_out, QUERIES, HEADS, VALUE_DIM);
    p->tout = see(p, p->out, QUERIES, HEADS, VALUE_DIM);
    p->tlse = see(p, p->lse, QUERIES, HEADS, 1);
    p->tdq = see(p, p->dq, QUERIES, HEADS, HEAD_DIM);
    p->tdk = see(p, p->dk, KEYS, KV_HEADS, HEAD_DIM);
    p->tdv = see(p, p->dv, KEYS, KV_HEADS, VALUE_DIM);
    fill(&p->tq, 1);
    fill(&p->tk, 2);
    fill(&p->tv, 3);
    fill(&p->td_out, 4);
}

void big_problem_destroy(big_problem* p) {
    float* all[] = {p->q, p->k, p->v, p->d_out, p->out, p->lse, p->dq, p->dk, p->dv};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); ++i) {
        free(all[i]);
    }
}

void big_problem_run(big_problem* p, const qkv_runtime* runtime) {
    qkv_mask* mask = NULL;
    CHECK_OK(qkv_mask_create(&mask));
    CHECK_OK(qkv_mask_add_causal(mask, QKV_BOTTOM_RIGHT));
    qkv_attention_options options = QKV_ATTENTION_OPTIONS_INIT;
    options.mask = mask;
    options.dropout.p = 0.1;
    options.dropout.seed = 7;
    qkv_attention_extras extras = QKV_ATTENTION_EXTRAS_INIT;
    extras.lse = &p->tlse;
    CHECK_OK(qkv_attention(&p->tq, &p->tk, &p->tv, &p->tout, &options, &extras, runtime));
    qkv_attention_saved saved = QKV_ATTENTION_SAVED_INIT;
    saved.lse = &p->tlse;
    saved.out = &p->tout;
    qkv_attention_gradients gradients = QKV_ATTENTION_GRADIENTS_INIT;
    gradients.dq = &p->tdq;
    gradients.dk = &p->tdk;
    gradients.dv = &p->tdv;
    CHECK_OK(qkv_attention_backward(&p->tq, &p->tk, &p->tv, &p->td_out, &saved, &gradients, &options, runtime));
    qkv_mask_destroy(mask);
}

static int same(const qkv_tensor* a, const qkv_tensor* b) {
    for (int64_t n = 0; n < a->shape[0]; ++n) {
        for (int64_t h = 0; h < a->shape[1]; ++h) {
            for (int64_t i = 0; i < a->shape[2]; ++i) {
                for (int64_t d = 0; d < a->shape[3]; ++d) {
                    if (memcmp(at(a, n, h, i, d), at(b, n, h, i, d), sizeof(float)) != 0) {
                        return 0;
                    }
                }
            }
        }
    }
    return 1;
}

int big_problem_same(const big_problem* a, const big_problem* b) {
    return same(&a->tout, &b->tout) && same(&a->tlse, &b->tlse) && same(&a->tdq, &b->tdq) && same(&a->tdk, &b->tdk) &&
           same(&a->tdv, &b->tdv);
}
