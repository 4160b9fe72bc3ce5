/* A problem with several of everything, filled from the library's own generator. */
#ifndef QKV_TESTS_PROBLEM_H
#define QKV_TESTS_PROBLEM_H

#include "check.h"

enum { BATCH = 2, HEADS = 4, KV_HEADS = 2, QUERIES = 150, KEYS = 170, HEAD_DIM = 8, VALUE_DIM = 12 };

typedef struct {
    float *q, *k, *v, *d_out;        /* inputs */
    float *out, *lse, *dq, *dk, *dv; /* results */
    qkv_tensor tq, tk, tv, td_out, tout, tlse, tdq, tdk, tdv;
    int tokens_first; /* memory is [batch, tokens, heads, head_dim] instead of [batch, heads, tokens, head_dim] */
} big_problem;

void big_problem_create(big_problem* problem, int tokens_first);
void big_problem_destroy(big_problem* problem);
/* Forward and backward under a causal mask. */
void big_problem_run(big_problem* problem, const qkv_runtime* runtime);
/* Whether results are equal bit for bit. */
int big_problem_same(const big_problem* a, const big_problem* b);

#endif
