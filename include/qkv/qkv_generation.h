/* What generation needs besides attention: rotary positions, and caches of keys and values. Part of qkv.h, whose rules
 * and letters hold here. */
#ifndef QKV_GENERATION_H
#define QKV_GENERATION_H

#include "qkv/qkv.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Rotary positions --------------------------------------------------------------------------------------------
 */

/* Turns queries and keys by angles that grow with their position, so that their product depends on how far apart they
 * stand (Su et al. 2021). rope.hpp and docs/rope.md say what each setting computes. */
typedef struct qkv_rope qkv_rope;

/* Which two columns are turned together, pair i of R/2. */
typedef int32_t qkv_rope_pairing;
enum {
    QKV_HALF_SPLIT = 0, /* i and i + R/2 */
    QKV_INTERLEAVED = 1 /* 2i and 2i + 1 */
};

typedef int32_t qkv_rope_scaling;
enum {
    QKV_ROPE_UNSCALED = 0,
    QKV_ROPE_LINEAR = 1,
    QKV_ROPE_NTK = 2,
    QKV_ROPE_DYNAMIC_NTK = 3,
    QKV_ROPE_YARN = 4,
    QKV_ROPE_LLAMA3 = 5
};

/* Settings that the scaling does not read must be 0. */
typedef struct qkv_rope_options {
    size_t struct_size;
    int64_t rotary_dim; /* R, even: how many columns are turned; 0: all of head_dim */
    double base;        /* 0: 10000 */
    qkv_rope_pairing pairing;
    qkv_rope_scaling scaling;
    double factor;                            /* all scalings, >= 1; 0: 1, of LLAMA3 8 */
    int64_t original_context;                 /* DYNAMIC_NTK, YARN: needed; LLAMA3: 0 is 8192 */
    double beta_fast, beta_slow;              /* YARN; 0: 32 and 1 */
    const double* attention_factor;           /* YARN; NULL: from factor and the mscales */
    double mscale, mscale_all_dim;            /* YARN */
    int32_t no_truncate;                      /* YARN; 0: the ramp's ends are whole pairs; 1: they are not rounded */
    int32_t reserved;                         /* 0 */
    double low_freq_factor, high_freq_factor; /* LLAMA3; 0: 1 and 4 */
} qkv_rope_options;
#define QKV_ROPE_OPTIONS_INIT  \
    {sizeof(qkv_rope_options), \
     0,                        \
     0.0,                      \
     QKV_HALF_SPLIT,           \
     QKV_ROPE_UNSCALED,        \
     0.0,                      \
     0,                        \
     0.0,                      \
     0.0,                      \
     NULL,                     \
     0.0,                      \
     0.0,                      \
     0,                        \
     0,                        \
     0.0,                      \
     0.0}

/* Where the tokens of a call stand, counted from 0. */
typedef struct qkv_rope_positions {
    size_t struct_size;
    int64_t start;       /* token t stands at start + t, in every sequence */
    const int64_t* each; /* NULL: by start. Else B * T positions, [B, T] row-major */
    int64_t each_count;
    int64_t length; /* DYNAMIC_NTK: the sequences' length; 0: each one's greatest position in this call plus 1 */
} qkv_rope_positions;
#define QKV_ROPE_POSITIONS_INIT {sizeof(qkv_rope_positions), 0, NULL, 0, 0}

/* options NULL: the defaults. */
QKV_EXPORT qkv_status qkv_rope_create(const qkv_rope_options* options, int64_t head_dim, qkv_rope** rope);
/* Row p of cos and sin is position p: both [1, 1, positions, R/2] of any float type, and must outlive the rope. */
QKV_EXPORT qkv_status qkv_rope_create_from_tables(const qkv_tensor* cos, const qkv_tensor* sin, int64_t head_dim,
                                                  qkv_rope_pairing pairing, qkv_rope** rope);
/* NULL: nothing. */
QKV_EXPORT void qkv_rope_destroy(qkv_rope* rope);

/* out = x, turned. Both [B, H, T, D], any strides, any float types; out is x itself or does not overlap it. positions
 * NULL: from 0 on. */
QKV_EXPORT qkv_status qkv_rope_apply(const qkv_rope* rope, const qkv_tensor* x, const qkv_tensor* out,
                                     const qkv_rope_positions* positions, const qkv_runtime* runtime);
/* d_x = the gradient of sum(d_out · apply(x)): turned back. */
QKV_EXPORT qkv_status qkv_rope_apply_backward(const qkv_rope* rope, const qkv_tensor* d_out, const qkv_tensor* d_x,
                                              const qkv_rope_positions* positions, const qkv_runtime* runtime);

/* ---- Caches: keys and values kept for generation -------------------------------------------------------------------
 */

/* Sequences of tokens in the blocks of one pool, allocated at once. docs/caches.md draws the three kinds. Calls that
 * take a const pointer may run at the same time; any other needs the cache to itself. A sequence is known by a number
 * that no cache gives twice; numbers that are unknown, removed or another cache's are refused. */
typedef struct qkv_cache qkv_cache;

typedef struct qkv_cache_layout {
    size_t struct_size;
    int64_t kv_heads;  /* 0: 1 */
    int64_t head_dim;  /* D */
    int64_t value_dim; /* Dv; 0: D */
    qkv_dtype dtype;   /* any float type, whatever that of queries and appended tokens */
    qkv_device device; /* QKV_CPU; others are refused */
    int32_t device_id; /* 0 */
    int32_t reserved;  /* 0 */
} qkv_cache_layout;
#define QKV_CACHE_LAYOUT_INIT {sizeof(qkv_cache_layout), 1, 0, 0, QKV_F32, QKV_CPU, 0, 0}

typedef struct qkv_cache_contiguous {
    size_t struct_size;
    int64_t capacity;  /* tokens per sequence */
    int64_t sequences; /* the pool has one block for each; 0: 1 */
} qkv_cache_contiguous;
#define QKV_CACHE_CONTIGUOUS_INIT {sizeof(qkv_cache_contiguous), 0, 1}

typedef struct qkv_cache_windowed {
    size_t struct_size;
    int64_t window;       /* a token sees itself and the window - 1 before it */
    int64_t max_append;   /* tokens that may be appended before the first of them is attended to; 0: 1 */
    int64_t sequences;    /* the pool has one ring for each; 0: 1 */
    int64_t block_tokens; /* a power of two, at least 16; 0: 64 */
} qkv_cache_windowed;
#define QKV_CACHE_WINDOWED_INIT {sizeof(qkv_cache_windowed), 0, 1, 1, 64}

typedef struct qkv_cache_paged {
    size_t struct_size;
    int64_t blocks;       /* of the whole pool */
    int64_t block_tokens; /* a power of two, at least 16; 0: 64 */
} qkv_cache_paged;
#define QKV_CACHE_PAGED_INIT {sizeof(qkv_cache_paged), 0, 64}

QKV_EXPORT qkv_status qkv_cache_create_contiguous(const qkv_cache_layout* layout, const qkv_cache_contiguous* options,
                                                  qkv_cache** cache);
QKV_EXPORT qkv_status qkv_cache_create_windowed(const qkv_cache_layout* layout, const qkv_cache_windowed* options,
                                                qkv_cache** cache);
QKV_EXPORT qkv_status qkv_cache_create_paged(const qkv_cache_layout* layout, const qkv_cache_paged* options,
                                             qkv_cache** cache);
/* NULL: nothing. No call that uses the cache may be in flight. */
QKV_EXPORT void qkv_cache_destroy(qkv_cache* cache);

/* A new, empty sequence. */
QKV_EXPORT qkv_status qkv_cache_add(qkv_cache* cache, int64_t* sequence);
/* A new sequence with the first `tokens` tokens of another (QKV_UNLIMITED: all), in the same blocks: a shared block is
 * copied when one of its sequences writes to it. */
QKV_EXPORT qkv_status qkv_cache_fork(qkv_cache* cache, int64_t sequence, int64_t tokens, int64_t* fork);
/* Gives its blocks back. */
QKV_EXPORT qkv_status qkv_cache_remove(qkv_cache* cache, int64_t sequence);

/* Which sequences a call is about, and the tokens of each. */
typedef struct qkv_cache_batch {
    size_t struct_size;
    const int64_t* sequences;
    int64_t sequences_count;
    /* NULL: row b of a tensor's first dimension is sequences[b]'s. Else sequences_count + 1 numbers: the first
     * dimension is 1, and tokens [cumulative_tokens[s], cumulative_tokens[s + 1]) are sequences[s]'s. */
    const int64_t* cumulative_tokens;
} qkv_cache_batch;
#define QKV_CACHE_BATCH_INIT {sizeof(qkv_cache_batch), NULL, 0, NULL}

/* Appends k [B, Hkv, T, D] and v [B, Hkv, T, Dv] of one float type, rounded to the cache's. rope NULL: none. Else each
 * key is turned by its token's position. QKV_OUT_OF_RANGE past a capacity, QKV_OUT_OF_MEMORY if the pool has too few
 * free blocks: then no sequence has changed. */
QKV_EXPORT qkv_status qkv_cache_append(qkv_cache* cache, const qkv_cache_batch* batch, const qkv_tensor* k,
                                       const qkv_tensor* v, const qkv_rope* rope);
/* The positions that an append of tokens shaped as `tokens` would give them, [B, T] row-major, for the rope of the same
 * tokens' queries. count: B * T. */
QKV_EXPORT qkv_status qkv_cache_next_positions(const qkv_cache* cache, const qkv_cache_batch* batch,
                                               const qkv_tensor* tokens, int64_t* positions, int64_t count);
/* Forgets all but the first `tokens` tokens; all tokens. A ring refuses what it no longer holds. */
QKV_EXPORT qkv_status qkv_cache_truncate(qkv_cache* cache, int64_t sequence, int64_t tokens);
QKV_EXPORT qkv_status qkv_cache_reset(qkv_cache* cache, int64_t sequence);

/* Tokens appended so far; the position of the oldest that is still held. */
QKV_EXPORT qkv_status qkv_cache_size(const qkv_cache* cache, int64_t sequence, int64_t* tokens);
QKV_EXPORT qkv_status qkv_cache_first(const qkv_cache* cache, int64_t sequence, int64_t* position);

/* Filled as far as struct_size reaches. */
typedef struct qkv_cache_info {
    size_t struct_size;
    int64_t sequences;     /* how many there are now */
    int64_t blocks;        /* of the pool */
    int64_t free_blocks;   /* held by no sequence */
    int64_t shared_blocks; /* held by more than one sequence */
    int64_t block_tokens;
    size_t bytes; /* of the pool */
} qkv_cache_info;
#define QKV_CACHE_INFO_INIT {sizeof(qkv_cache_info), 0, 0, 0, 0, 0, 0}
QKV_EXPORT qkv_status qkv_cache_get_info(const qkv_cache* cache, qkv_cache_info* info);

/* Numbers of the blocks that hold the sequence, oldest first: `count` of them, written to `blocks` if it has room for
 * so many. blocks NULL and capacity 0: the count alone. */
QKV_EXPORT qkv_status qkv_cache_block_table(const qkv_cache* cache, int64_t sequence, int64_t* blocks, int64_t capacity,
                                            int64_t* count);

/* Consecutive tokens in memory: keys [kv_heads, block_tokens, D] and values [kv_heads, block_tokens, Dv]. */
typedef struct qkv_cache_block {
    size_t struct_size;
    const void* keys;
    const void* values;
    int64_t first;  /* position of the first token */
    int64_t tokens; /* filled */
    qkv_dtype dtype;
    int32_t reserved;
} qkv_cache_block;
#define QKV_CACHE_BLOCK_INIT {sizeof(qkv_cache_block), NULL, NULL, 0, 0, QKV_F32, 0}
/* Entry `index` of the block table. Valid until the cache is next changed. */
QKV_EXPORT qkv_status qkv_cache_get_block(const qkv_cache* cache, int64_t sequence, int64_t index,
                                          qkv_cache_block* block);

/* out = attention of q [B, Hq, Tq, D] over each sequence's keys and values: append first, then attend. The queries are
 * the sequence's last Tq tokens. One new token needs no mask, several usually a causal one; a windowed cache adds its
 * window. Tk is the longest size of the batch, keys are columns by position. Dropout, packed masks and offsets other
 * than `head` are refused. */
QKV_EXPORT qkv_status qkv_cache_attention(const qkv_tensor* q, const qkv_cache* cache, const qkv_cache_batch* batch,
                                          const qkv_tensor* out, const qkv_attention_options* options,
                                          const qkv_attention_extras* extras, const qkv_runtime* runtime);
/* The bytes of workspace that this very call needs; they grow with the sequences. */
QKV_EXPORT qkv_status qkv_cache_attention_workspace_size(const qkv_tensor* q, const qkv_cache* cache,
                                                         const qkv_cache_batch* batch, const qkv_tensor* out,
                                                         const qkv_attention_options* options,
                                                         const qkv_attention_extras* extras, const qkv_runtime* runtime,
                                                         size_t* workspace_size);

#ifdef __cplusplus
}
#endif

#endif
