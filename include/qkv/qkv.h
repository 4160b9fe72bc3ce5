/* Attention for C: what a C program needs of qkv, with no C++ in it. docs/c.md has an example and the rules in short.
 * Rotary positions and caches are in qkv_generation.h, which comes along.
 *
 * Letters: B batch, Hq query heads, Hkv key/value heads, Tq queries, Tk keys, D head_dim, Dv head_dim of the values.
 * The C++ headers (attention.hpp, mask.hpp, runtime.hpp, random.hpp, rope.hpp, kv_cache.hpp) say more about what each
 * thing computes.
 *
 * Errors. Every function that can fail returns a qkv_status; then nothing has been written, and qkv_last_error() names
 * the argument, what it was and what was expected. Nothing is thrown, printed or aborted. Pointers are refused when
 * NULL unless "NULL:" says what that means.
 *
 * Threads. Every function may be called from any number of threads at once. Handles that only const pointers are taken
 * of (a runtime, a mask, a rope) may be shared by calls in flight; a mask being built, a cache being changed and a
 * generator belong to one thread at a time.
 *
 * Option structs begin with their size, so that programs and libraries of different ages fit: `struct_size` says how
 * much of the struct the program knows. What it does not know counts as 0, and 0 (or NULL) is every setting's default.
 * A struct longer than the library's is taken as long as the part that the library does not know is 0, and refused as
 * unsupported otherwise. Start from the initialiser:
 *
 *     qkv_attention_options options = QKV_ATTENTION_OPTIONS_INIT;
 *     options.softcap = 50.0;
 */
#ifndef QKV_H
#define QKV_H

#include <stddef.h>
#include <stdint.h>

#include "qkv/export.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Version and errors -------------------------------------------------------------------------------------- */

#define QKV_VERSION_MAJOR 0
#define QKV_VERSION_MINOR 1
#define QKV_VERSION_PATCH 0
/* Of the header that a program was compiled with, as qkv_version() tells it of the library that it runs with. */
#define QKV_VERSION (QKV_VERSION_MAJOR * 10000 + QKV_VERSION_MINOR * 100 + QKV_VERSION_PATCH)

/* major · 10000 + minor · 100 + patch. */
QKV_EXPORT int32_t qkv_version(void);
/* "major.minor.patch" */
QKV_EXPORT const char* qkv_version_string(void);

/* New codes may come; treat an unknown one as an error. */
typedef int32_t qkv_status;
enum {
    QKV_OK = 0,
    QKV_INVALID_ARGUMENT = 1, /* a value that is never acceptable: NULL, dropout 1.5, a NaN scale */
    QKV_SHAPE_MISMATCH = 2,   /* shapes that do not fit each other */
    QKV_OUT_OF_RANGE = 3,     /* an index or a length past its limit, a size that overflows */
    QKV_UNSUPPORTED = 4,      /* well-formed, but not available here */
    QKV_IO = 5,               /* a file that cannot be opened, read or written */
    QKV_FORMAT = 6,           /* a file whose content breaks its format */
    QKV_OUT_OF_MEMORY = 7,    /* an allocation that failed */
    QKV_INTERNAL = 8          /* a defect of the library */
};

/* "shape mismatch"; "unknown status" for what is none. */
QKV_EXPORT const char* qkv_status_name(qkv_status status);

/* What went wrong in the last call of this thread that failed, in UTF-8; "" before the first. Never NULL. The text
 * belongs to the library and stays as it is until another call fails on the same thread, or the thread ends. */
QKV_EXPORT const char* qkv_last_error(void);

/* ---- Tensors --------------------------------------------------------------------------------------------------- */

typedef int32_t qkv_dtype;
enum {
    QKV_F32 = 0,  /* IEEE binary32 */
    QKV_BF16 = 1, /* upper half of a binary32 */
    QKV_F16 = 2,  /* IEEE binary16 */
    QKV_F64 = 3,  /* IEEE binary64, for checks */
    QKV_BOOL = 4  /* one byte; anything but 0 is true */
};

typedef int32_t qkv_device;
enum { QKV_CPU = 0 };

/* The caller's memory, seen as four dimensions: element (i0, i1, i2, i3) lies at
 * data + (i0 strides[0] + … + i3 strides[3]) elements. A stride of 0 repeats a dimension, a negative one walks
 * backwards. What a function only reads it never writes to, whatever the type of `data`. This struct will not grow. */
typedef struct qkv_tensor {
    void* data; /* may be NULL if a size is 0 */
    int64_t shape[4];
    int64_t strides[4]; /* in elements */
    qkv_dtype dtype;
    qkv_device device; /* QKV_CPU; others are refused */
    int32_t device_id; /* 0 */
    int32_t reserved;  /* 0 */
} qkv_tensor;

/* Row-major [d0, d1, d2, d3]: [batch, heads, tokens, head_dim] for queries, keys, values and context. Sizes are
 * checked by the function that takes the tensor. */
QKV_EXPORT qkv_tensor qkv_tensor_contiguous(void* data, qkv_dtype dtype, int64_t d0, int64_t d1, int64_t d2,
                                            int64_t d3);
/* Memory laid out [batch, tokens, heads, head_dim], seen in place as [batch, heads, tokens, head_dim]. */
QKV_EXPORT qkv_tensor qkv_tensor_tokens_first(void* data, qkv_dtype dtype, int64_t batch, int64_t tokens, int64_t heads,
                                              int64_t head_dim);

/* ---- Runtime: where threads live ------------------------------------------------------------------------------- */

/* Results never depend on the runtime. Where a `const qkv_runtime *` is taken, NULL: the calling thread alone. */
typedef struct qkv_runtime qkv_runtime;

/* One task, given by the library; returns when it is done. Unknown numbers of tasks are ignored and make the call fail.
 */
typedef void (*qkv_task)(void* context, int64_t task);
/* The caller's own way of running tasks: task(context, i) once for every i in [0, tasks), in any order, on any threads,
 * possibly at once; returns 0 when all are done, anything else if it could not run them all. */
typedef int32_t (*qkv_parallel_for)(void* user, int64_t tasks, qkv_task task, void* context);

typedef struct qkv_runtime_options {
    size_t struct_size;
    int64_t threads; /* counts the calling thread; at most 4096; 0: one per hardware thread. With parallel_for: how many
                        tasks can run at once */
    qkv_parallel_for parallel_for; /* NULL: threads of the library's own */
    void* parallel_for_user;       /* handed to parallel_for */
    qkv_device device;             /* QKV_CPU; others are refused */
    int32_t device_id;             /* 0 */
    void* stream;                  /* NULL: the CPU has no streams, and refuses one */
} qkv_runtime_options;
#define QKV_RUNTIME_OPTIONS_INIT {sizeof(qkv_runtime_options), 0, NULL, NULL, QKV_CPU, 0, NULL}

/* options NULL: the defaults. Threads are started by the first call that can use them, and again in a child after
 * fork. */
QKV_EXPORT qkv_status qkv_runtime_create(const qkv_runtime_options* options, qkv_runtime** runtime);
/* NULL: nothing. No call that uses the runtime may be in flight. */
QKV_EXPORT void qkv_runtime_destroy(qkv_runtime* runtime);
/* How many tasks can run at once. runtime NULL: 1. */
QKV_EXPORT int64_t qkv_runtime_threads(const qkv_runtime* runtime);

/* ---- Masks: who may attend to whom ----------------------------------------------------------------------------- */

/* Built by adding: what all parts allow is allowed. True means "may attend". Diagonals and windows intersect; of every
 * other kind a mask holds one. Tensors are copied as structs, lists as pointers: the memory they point to must outlive
 * the calls that use the mask. Shapes and contents are checked by those calls. docs/masks.md draws every kind. */
typedef struct qkv_mask qkv_mask;

/* Which corner of the scores a diagonal runs through when there are more keys than queries, or fewer. */
typedef int32_t qkv_align;
enum {
    QKV_TOP_LEFT = 0,    /* query i stands at key i */
    QKV_BOTTOM_RIGHT = 1 /* the last query stands at the last key */
};

/* A mask that allows all. */
QKV_EXPORT qkv_status qkv_mask_create(qkv_mask** mask);
/* NULL: nothing. */
QKV_EXPORT void qkv_mask_destroy(qkv_mask* mask);

/* No key after the diagonal. */
QKV_EXPORT qkv_status qkv_mask_add_causal(qkv_mask* mask, qkv_align align);
/* key <= query + offset. */
QKV_EXPORT qkv_status qkv_mask_add_causal_offset(qkv_mask* mask, int64_t offset);
/* Keys from `left` before the diagonal to `right` after it; QKV_UNLIMITED does not limit that side. */
QKV_EXPORT qkv_status qkv_mask_add_window(qkv_mask* mask, int64_t left, int64_t right, qkv_align align);
#define QKV_UNLIMITED INT64_MAX

/* Booleans that broadcast to [B, Hq, Tq, Tk] (each size that or 1), any strides. */
QKV_EXPORT qkv_status qkv_mask_add_allowed(qkv_mask* mask, const qkv_tensor* allowed);
/* f32, bf16 or f16 (f64 with f64 queries) that broadcasts to [B, Hq, Tq, Tk], added to the scores after softcap. −∞ in
 * it masks. */
QKV_EXPORT qkv_status qkv_mask_add_bias(qkv_mask* mask, const qkv_tensor* bias);
/* Adds −slope·|query − key| to the scores, the distance taken along the diagonal (Press et al. 2022). f32 (f64 with f64
 * queries), [1 or B, Hq, 1, 1]. */
QKV_EXPORT qkv_status qkv_mask_add_alibi(qkv_mask* mask, const qkv_tensor* slopes, qkv_align align);

/* Only keys from begin[s] on, only keys before end[s], for each of `count` sequences. */
QKV_EXPORT qkv_status qkv_mask_add_key_begin(qkv_mask* mask, const int64_t* begin, int64_t count);
QKV_EXPORT qkv_status qkv_mask_add_key_end(qkv_mask* mask, const int64_t* end, int64_t count);
/* A packed batch: B is 1, and sequence s owns queries [queries[s], queries[s + 1]) and keys [keys[s], keys[s + 1]).
 * Both lists have `sequences` + 1 numbers, start with 0, do not fall, and end with Tq and Tk. */
QKV_EXPORT qkv_status qkv_mask_add_packed(qkv_mask* mask, const int64_t* cumulative_queries,
                                          const int64_t* cumulative_keys, int64_t sequences);

/* The keys that each block of queries may attend to, as ascending lists of key blocks (block-sparse attention). */
typedef struct qkv_block_list {
    size_t struct_size;
    int64_t query_block; /* queries per block */
    int64_t key_block;   /* keys per block */
    int64_t sequences;   /* B, or 1 where all sequences share the lists */
    int64_t heads;       /* Hq, or 1 where all heads share the lists */
    /* List ((s·heads + h)·query_blocks + n) is key_blocks[starts[list] .. starts[list + 1]). */
    const int64_t* starts;
    int64_t starts_count; /* sequences · heads · query_blocks + 1 */
    const int64_t* key_blocks;
    int64_t key_blocks_count;
} qkv_block_list;
#define QKV_BLOCK_LIST_INIT {sizeof(qkv_block_list), 0, 0, 1, 1, NULL, 0, NULL, 0}
QKV_EXPORT qkv_status qkv_mask_add_blocks(qkv_mask* mask, const qkv_block_list* blocks);

/* ---- Attention --------------------------------------------------------------------------------------------------- */

/* Dropout on the weights: each is kept with probability 1 − p and then divided by 1 − p. The draw is Philox4x32-10 of
 * the seed and the weight's place, so backward draws it again and the batch does not change it. */
typedef struct qkv_dropout {
    double p; /* 0 to 1 */
    uint64_t seed;
    const qkv_tensor* keep;      /* NULL: drawn. Else booleans that broadcast to [B, Hq, Tq, Tk], true = keep */
    const int64_t* sequence_ids; /* NULL: each sequence's index in the batch */
    int64_t sequence_ids_count;
} qkv_dropout;

/* Where a call's tokens and heads lie in a larger problem that is spread over several calls. */
typedef struct qkv_offsets {
    int64_t query, key, head;
    int64_t queries, keys; /* of the whole sequence; 0: offset plus the call's own */
} qkv_offsets;

/* A tile of scores with the absolute place of its first element: row r, column c at values[r · row_stride + c]. */
typedef struct qkv_score_tile {
    void* values;
    int64_t row_stride;
    int64_t queries, keys;
    int64_t sequence, head, query, key;
    qkv_dtype dtype; /* QKV_F32 or QKV_F64 */
    int32_t reserved;
} qkv_score_tile;

/* A function of your own on the scores, between ALiBi and the mask; called from several threads at once. */
typedef struct qkv_score_function {
    /* Replaces the scores of the tile. NULL: none. */
    void (*apply)(const void* user, const qkv_score_tile* tile);
    /* Multiplies each entry of `gradients` by the derivative of the function at `scores`. Needed by backward only. */
    void (*gradient)(const void* user, const qkv_score_tile* scores, const qkv_score_tile* gradients);
    const void* user;
} qkv_score_function;

/* A score goes through: scale, softcap, bias and ALiBi, score function, mask, sink, softmax, dropout. */
typedef struct qkv_attention_options {
    size_t struct_size;
    const qkv_mask* mask;    /* NULL: every query attends to every key */
    const double* scale;     /* NULL: 1/√D. Else one finite number */
    double softcap;          /* c > 0: score ← c·tanh(score / c); 0: off */
    const qkv_tensor* sinks; /* NULL: none. f32 (f64 with f64 queries), [1, Hq, 1, 1] */
    qkv_dropout dropout;
    qkv_offsets offsets;
    qkv_score_function score_function;
} qkv_attention_options;
#define QKV_ATTENTION_OPTIONS_INIT                                                                        \
    {                                                                                                     \
        sizeof(qkv_attention_options), NULL, NULL, 0.0, NULL, {0.0, 0, NULL, NULL, 0}, {0, 0, 0, 0, 0}, { \
            NULL, NULL, NULL                                                                              \
        }                                                                                                 \
    }

/* The points at which scores can be shown. */
typedef int32_t qkv_score_point;
enum {
    QKV_SCORES_SCALED = 0, /* query · key · scale, masked keys too */
    QKV_SCORES_CAPPED = 1, /* and after softcap, masked keys too */
    QKV_SCORES_MASKED = 2, /* and after bias, ALiBi, score function and mask: −∞ where masked */
    QKV_SCORES_WEIGHTS = 3 /* and after softmax, before dropout */
};

/* What a call can give besides the context. Asking changes no bit of the context. */
typedef struct qkv_attention_extras {
    size_t struct_size;
    const qkv_tensor* lse;     /* NULL: not wanted. log Σ exp(score), f32 (f64 with f64 queries), [B, Hq, Tq, 1] */
    const qkv_tensor* weights; /* NULL: not wanted. Before dropout, [B, Hq, Tq, Tk], any float type */
    const qkv_tensor* scores;  /* NULL: not wanted. As weights, at scores_at */
    qkv_score_point scores_at;
    int32_t lse_without_sinks; /* 1: the lse leaves the sinks out; 0: it counts them */
    void* workspace;           /* NULL: the call allocates what it needs. Else workspace_size bytes, at least those that
                                  qkv_attention_workspace_size tells: the call allocates nothing */
    size_t workspace_size;
} qkv_attention_extras;
#define QKV_ATTENTION_EXTRAS_INIT {sizeof(qkv_attention_extras), NULL, NULL, NULL, QKV_SCORES_SCALED, 0, NULL, 0}

/* out = softmax(q kᵀ · scale + mask) v.
 *
 *     q [B, Hq, Tq, D]   k [B, Hkv, Tk, D]   v [B, Hkv, Tk, Dv]   out [B, Hq, Tq, Dv]
 *
 * q, k and v share a type: f32, bf16, f16 or f64. `out` has that type or f32. The last stride is 1, the others are
 * free; outputs overlap neither inputs nor each other. Query head h reads key/value head h / (Hq / Hkv). A row that may
 * attend to nothing gives 0 and lse −∞. options and extras NULL: the defaults. */
QKV_EXPORT qkv_status qkv_attention(const qkv_tensor* q, const qkv_tensor* k, const qkv_tensor* v,
                                    const qkv_tensor* out, const qkv_attention_options* options,
                                    const qkv_attention_extras* extras, const qkv_runtime* runtime);
/* The bytes of workspace that this very call needs (the extras' own workspace does not matter). */
QKV_EXPORT qkv_status qkv_attention_workspace_size(const qkv_tensor* q, const qkv_tensor* k, const qkv_tensor* v,
                                                   const qkv_tensor* out, const qkv_attention_options* options,
                                                   const qkv_attention_extras* extras, const qkv_runtime* runtime,
                                                   size_t* workspace_size);

/* What backward needs from forward. */
typedef struct qkv_attention_saved {
    size_t struct_size;
    const qkv_tensor* lse;     /* from forward, or merged from several partial calls: [B, Hq, Tq, 1] */
    const qkv_tensor* out;     /* forward's context; may be NULL if delta is given */
    const qkv_tensor* delta;   /* NULL: from d_out and out. Σ over Dv of d_out · out, [B, Hq, Tq, 1] */
    int32_t lse_without_sinks; /* as it was in forward's extras */
    int32_t reserved;          /* 0 */
} qkv_attention_saved;
#define QKV_ATTENTION_SAVED_INIT {sizeof(qkv_attention_saved), NULL, NULL, NULL, 0, 0}

/* What backward writes; NULL: not wanted. Types: the inputs' or f32. */
typedef struct qkv_attention_gradients {
    size_t struct_size;
    const qkv_tensor* dq;     /* as q */
    const qkv_tensor* dk;     /* as k: summed over the query heads that share a key head */
    const qkv_tensor* dv;     /* as v */
    const qkv_tensor* dbias;  /* as the bias: summed over the dimensions along which it is repeated */
    const qkv_tensor* dsinks; /* as the sinks */
    const qkv_tensor* dalibi; /* as the slopes */
    void* workspace;          /* as in qkv_attention_extras, by qkv_attention_backward_workspace_size */
    size_t workspace_size;
} qkv_attention_gradients;
#define QKV_ATTENTION_GRADIENTS_INIT {sizeof(qkv_attention_gradients), NULL, NULL, NULL, NULL, NULL, NULL, NULL, 0}

/* Gradients of sum(d_out · attention(q, k, v)) with the same options. Overwrites what `gradients` names. */
QKV_EXPORT qkv_status qkv_attention_backward(const qkv_tensor* q, const qkv_tensor* k, const qkv_tensor* v,
                                             const qkv_tensor* d_out, const qkv_attention_saved* saved,
                                             const qkv_attention_gradients* gradients,
                                             const qkv_attention_options* options, const qkv_runtime* runtime);
QKV_EXPORT qkv_status qkv_attention_backward_workspace_size(const qkv_tensor* q, const qkv_tensor* k,
                                                            const qkv_tensor* v, const qkv_tensor* d_out,
                                                            const qkv_attention_saved* saved,
                                                            const qkv_attention_gradients* gradients,
                                                            const qkv_attention_options* options,
                                                            const qkv_runtime* runtime, size_t* workspace_size);

/* (out, lse) ← both parts together, as if one call had seen the keys of both (Milakov & Gimelshein 2018). All f32, or
 * all f64; the lse without sinks. A part whose lse is −∞ changes nothing. */
QKV_EXPORT qkv_status qkv_attention_merge(const qkv_tensor* out, const qkv_tensor* lse, const qkv_tensor* part_out,
                                          const qkv_tensor* part_lse);
/* The sink, once, after the last merge. sinks [1, Hq, 1, 1]. */
QKV_EXPORT qkv_status qkv_attention_merge_sinks(const qkv_tensor* out, const qkv_tensor* lse, const qkv_tensor* sinks);

/* ---- Random numbers ------------------------------------------------------------------------------------------------
 */

/* PyTorch's CPU generator, bit for bit: a program that draws in the same order gets the same numbers. */
typedef struct qkv_generator qkv_generator;

/* As torch.manual_seed(seed). */
QKV_EXPORT qkv_status qkv_generator_create(uint64_t seed, qkv_generator** generator);
/* A second one at the same place of the stream. */
QKV_EXPORT qkv_status qkv_generator_copy(const qkv_generator* generator, qkv_generator** copy);
/* NULL: nothing. */
QKV_EXPORT void qkv_generator_destroy(qkv_generator* generator);
QKV_EXPORT qkv_status qkv_generator_seed(qkv_generator* generator, uint64_t seed);

/* The next 64 raw bits; the first 32 drawn are the high ones. */
QKV_EXPORT qkv_status qkv_generator_random64(qkv_generator* generator, uint64_t* bits);
/* Fill `count` values of type QKV_F32 or QKV_F64, as uniform_(from, to), normal_(mean, std) and
 * bernoulli_(probability) fill a contiguous tensor. On an error nothing has been drawn. */
QKV_EXPORT qkv_status qkv_generator_uniform(qkv_generator* generator, qkv_dtype dtype, void* values, int64_t count,
                                            double from, double to);
QKV_EXPORT qkv_status qkv_generator_normal(qkv_generator* generator, qkv_dtype dtype, void* values, int64_t count,
                                           double mean, double std);
QKV_EXPORT qkv_status qkv_generator_bernoulli(qkv_generator* generator, qkv_dtype dtype, void* values, int64_t count,
                                              double probability);

#ifdef __cplusplus
}
#endif

#include "qkv/qkv_generation.h"

#endif
