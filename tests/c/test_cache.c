/* Decoding over every kind of cache against one call over tensors; sharing; what a cache tells of itself. */
#include <stdlib.h>

#include "check.h"

enum { HEADS = 4, KV_HEADS = 2, TOKENS = 90, D = 8, DV = 6, WINDOW = 50, BLOCK = 16 };

static float q[HEADS * TOKENS * D], k[KV_HEADS * TOKENS * D], v[KV_HEADS * TOKENS * DV];
static float turned_q[HEADS * TOKENS * D], turned_k[KV_HEADS * TOKENS * D];
static float expected[HEADS * TOKENS * DV], results[3][HEADS * TOKENS * DV];

/* Memory is [tokens, heads, width]: some tokens of it are a tensor like the whole. */
static qkv_tensor tokens_of(float* values, int64_t first, int64_t tokens, int64_t heads, int64_t width) {
    return qkv_tensor_tokens_first(values + first * heads * width, QKV_F32, 1, tokens, heads, width);
}

static void fill_inputs(void) {
    qkv_generator* generator = NULL;
    CHECK_OK(qkv_generator_create(11, &generator));
    CHECK_OK(qkv_generator_normal(generator, QKV_F32, q, HEADS * TOKENS * D, 0, 1));
    CHECK_OK(qkv_generator_normal(generator, QKV_F32, k, KV_HEADS * TOKENS * D, 0, 1));
    CHECK_OK(qkv_generator_normal(generator, QKV_F32, v, KV_HEADS * TOKENS * DV, 0, 1));
    qkv_generator_destroy(generator);
}

static qkv_cache_layout layout(void) {
    qkv_cache_layout layout = QKV_CACHE_LAYOUT_INIT;
    layout.kv_heads = KV_HEADS;
    layout.head_dim = D;
    layout.value_dim = DV;
    return layout;
}

static qkv_cache* contiguous_cache(void) {
    const qkv_cache_layout whole = layout();
    qkv_cache_contiguous options = QKV_CACHE_CONTIGUOUS_INIT;
    options.capacity = TOKENS;
    qkv_cache* cache = NULL;
    CHECK_OK(qkv_cache_create_contiguous(&whole, &options, &cache));
    return cache;
}

static qkv_cache* windowed_cache(void) {
    const qkv_cache_layout whole = layout();
    qkv_cache_windowed options = QKV_CACHE_WINDOWED_INIT;
    options.window = WINDOW;
    options.max_append = 7;
    options.block_tokens = BLOCK;
    qkv_cache* cache = NULL;
    CHECK_OK(qkv_cache_create_windowed(&whole, &options, &cache));
    return cache;
}

static qkv_cache* paged_cache(int64_t blocks) {
    const qkv_cache_layout whole = layout();
    qkv_cache_paged options = QKV_CACHE_PAGED_INIT;
    options.blocks = blocks;
    options.block_tokens = BLOCK;
    qkv_cache* cache = NULL;
    CHECK_OK(qkv_cache_create_paged(&whole, &options, &cache));
    return cache;
}

static qkv_status append(qkv_cache* cache, int64_t sequence, int64_t first, int64_t tokens, const qkv_rope* rope) {
    qkv_cache_batch batch = QKV_CACHE_BATCH_INIT;
    batch.sequences = &sequence;
    batch.sequences_count = 1;
    const qkv_tensor tk = tokens_of(k, first, tokens, KV_HEADS, D);
    const qkv_tensor tv = tokens_of(v, first, tokens, KV_HEADS, DV);
    return qkv_cache_append(cache, &batch, &tk, &tv, rope);
}

/* The queries of tokens first .. first + tokens, in memory of the call's own where told, to their rows of `out`. */
static void attend(const qkv_cache* cache, int64_t sequence, int64_t first, int64_t tokens, const qkv_mask* mask,
                   const qkv_rope* rope, float* out, int own_workspace) {
    qkv_cache_batch batch = QKV_CACHE_BATCH_INIT;
    batch.sequences = &sequence;
    batch.sequences_count = 1;
    qkv_tensor tq = tokens_of(q, first, tokens, HEADS, D);
    float buffer[HEADS * TOKENS * D];
    if (rope != NULL) {
        const qkv_tensor turned = tokens_of(buffer, 0, tokens, HEADS, D);
        qkv_rope_positions positions = QKV_ROPE_POSITIONS_INIT;
        positions.start = first;
        CHECK_OK(qkv_rope_apply(rope, &tq, &turned, &positions, NULL));
        tq = turned;
    }
    const qkv_tensor tout = tokens_of(out, first, tokens, HEADS, DV);
    qkv_attention_options options = QKV_ATTENTION_OPTIONS_INIT;
    options.mask = mask;
    qkv_attention_extras extras = QKV_ATTENTION_EXTRAS_INIT;
    if (own_workspace) {
        CHECK_OK(qkv_cache_attention_workspace_size(&tq, cache, &batch, &tout, &options, &extras, NULL,
                                                    &extras.workspace_size));
        CHECK(extras.workspace_size > 0);
        extras.workspace = malloc(extras.workspace_size);
    }
    CHECK_OK(qkv_cache_attention(&tq, cache, &batch, &tout, &options, &extras, NULL));
    free(extras.workspace);
}

/* One token at a time, now and then five, until all have been appended. */
static void decode(qkv_cache* cache, const qkv_mask* mask, const qkv_rope* rope, float* out) {
    int64_t sequence = 0, size = 0;
    CHECK_OK(qkv_cache_add(cache, &sequence));
    for (int64_t first = 0; first < TOKENS;) {
        const int64_t tokens = first % 3 == 0 && first + 5 <= TOKENS ? 5 : 1;
        CHECK_OK(append(cache, sequence, first, tokens, rope));
        attend(cache, sequence, first, tokens, mask, rope, out, first % 2 == 1);
        first += tokens;
    }
    CHECK_OK(qkv_cache_size(cache, sequence, &size));
    CHECK(size == TOKENS);
}

/* The cached keys are as they were turned in one go, and so are the rows of all kinds, to the bit. */
static void test_decode(const qkv_rope* rope) {
    qkv_mask* mask = NULL;
    CHECK_OK(qkv_mask_create(&mask));
    CHECK_OK(qkv_mask_add_causal(mask, QKV_BOTTOM_RIGHT));
    CHECK_OK(qkv_mask_add_window(mask, WINDOW - 1, QKV_UNLIMITED, QKV_BOTTOM_RIGHT));
    qkv_tensor tq = tokens_of(q, 0, TOKENS, HEADS, D), tk = tokens_of(k, 0, TOKENS, KV_HEADS, D);
    if (rope != NULL) {
        const qkv_tensor to_q = tokens_of(turned_q, 0, TOKENS, HEADS, D);
        const qkv_tensor to_k = tokens_of(turned_k, 0, TOKENS, KV_HEADS, D);
        CHECK_OK(qkv_rope_apply(rope, &tq, &to_q, NULL, NULL));
        CHECK_OK(qkv_rope_apply(rope, &tk, &to_k, NULL, NULL));
        tq = to_q;
        tk = to_k;
    }
    const qkv_tensor tv = tokens_of(v, 0, TOKENS, KV_HEADS, DV), tout = tokens_of(expected, 0, TOKENS, HEADS, DV);
    qkv_attention_options options = QKV_ATTENTION_OPTIONS_INIT;
    options.mask = mask;
    CHECK_OK(qkv_attention(&tq, &tk, &tv, &tout, &options, NULL, NULL));

    qkv_cache* caches[] = {contiguous_cache(), windowed_cache(), paged_cache(6)};
    for (size_t i = 0; i < 3; ++i) {
        memset(results[i], 0xff, sizeof(results[i])); /* NaN */
        decode(caches[i], mask, rope, results[i]);
        qkv_cache_destroy(caches[i]);
        /* Means of values within ±4, each of two sums over at most 50 keys: 2 · 50 · 4 · 2⁻²⁴, and what exp adds. */
        for (int64_t n = 0; n < HEADS * TOKENS * DV; ++n) {
            CHECK_NEAR(results[i][n], expected[n], 5e-5);
        }
        CHECK(memcmp(results[i], results[0], sizeof(results[0])) == 0);
    }
    qkv_mask_destroy(mask);
}

static void test_block_access(void) {
    qkv_cache* cache = paged_cache(6);
    int64_t sequence = 0, count = 0, table[3] = {-1, -1, -1};
    CHECK_OK(qkv_cache_add(cache, &sequence));
    CHECK_OK(append(cache, sequence, 0, 40, NULL));
    CHECK_OK(qkv_cache_block_table(cache, sequence, NULL, 0, &count));
    CHECK(count == 3);
    CHECK_OK(qkv_cache_block_table(cache, sequence, table, 3, &count));
    CHECK(count == 3 && table[0] != table[1] && table[1] != table[2] && table[0] != table[2]);
    qkv_cache_block block = QKV_CACHE_BLOCK_INIT;
    for (int64_t i = 0; i < 3; ++i) {
        CHECK(table[i] >= 0 && table[i] < 6);
        CHECK_OK(qkv_cache_get_block(cache, sequence, i, &block));
        CHECK(block.struct_size == sizeof(block) && block.dtype == QKV_F32);
        CHECK(block.first == i * BLOCK && block.tokens == (i == 2 ? 8 : BLOCK));
        for (int64_t h = 0; h < KV_HEADS; ++h) {
            for (int64_t t = 0; t < block.tokens; ++t) {
                const int64_t place = (block.first + t) * KV_HEADS + h;
                CHECK(memcmp((const float*)block.keys + (h * BLOCK + t) * D, k + place * D, D * sizeof(float)) == 0);
                CHECK(memcmp((const float*)block.values + (h * BLOCK + t) * DV, v + place * DV, DV * sizeof(float)) ==
                      0);
            }
        }
    }
    qkv_cache_destroy(cache);
}

static void check_info(const qkv_cache* cache, int64_t sequences, int64_t free_blocks, int64_t shared_blocks) {
    qkv_cache_info info = QKV_CACHE_INFO_INIT;
    CHECK_OK(qkv_cache_get_info(cache, &info));
    CHECK(info.struct_size == sizeof(info));
    CHECK(info.sequences == sequences);
    CHECK(info.blocks == 6 && info.free_blocks == free_blocks && info.shared_blocks == shared_blocks);
    CHECK(info.block_tokens == BLOCK);
    CHECK(info.bytes >= (size_t)(6 * BLOCK * KV_HEADS * (D + DV)) * sizeof(float));
}

static void test_sharing(void) {
    qkv_cache* cache = paged_cache(6);
    int64_t first = 0, second = 0, third = 0, size = 0;
    CHECK_OK(qkv_cache_add(cache, &first));
    check_info(cache, 1, 6, 0);
    CHECK_OK(append(cache, first, 0, 40, NULL));
    CHECK_OK(qkv_cache_fork(cache, first, QKV_UNLIMITED, &second));
    CHECK(second != first);
    check_info(cache, 2, 3, 3);
    CHECK_OK(append(cache, second, 40, 1, NULL)); /* copies the block that it writes to */
    check_info(cache, 2, 2, 2);
    CHECK_OK(qkv_cache_fork(cache, first, 16, &third));
    CHECK_OK(qkv_cache_size(cache, third, &size));
    CHECK(size == 16);
    CHECK_OK(qkv_cache_size(cache, second, &size));
    CHECK(size == 41);
    CHECK_OK(qkv_cache_size(cache, first, &size));
    CHECK(size == 40);
    CHECK_OK(qkv_cache_remove(cache, third));
    CHECK_OK(qkv_cache_truncate(cache, second, 17));
    CHECK_OK(qkv_cache_size(cache, second, &size));
    CHECK(size == 17);
    CHECK_OK(qkv_cache_remove(cache, first));
    check_info(cache, 1, 4, 0);
    CHECK_OK(qkv_cache_reset(cache, second));
    check_info(cache, 1, 6, 0);
    qkv_cache_destroy(cache);
}

/* A ring lets go of what came first. */
static void test_ring(void) {
    qkv_cache* cache = windowed_cache();
    int64_t sequence = 0, first = -1;
    CHECK_OK(qkv_cache_add(cache, &sequence));
    CHECK_OK(append(cache, sequence, 0, 7, NULL));
    CHECK_OK(qkv_cache_first(cache, sequence, &first));
    CHECK(first == 0);
    CHECK_OK(append(cache, sequence, 0, TOKENS, NULL));
    CHECK_OK(qkv_cache_first(cache, sequence, &first));
    CHECK(first > 0 && first <= 7 + TOKENS - WINDOW && first % BLOCK == 0);
    CHECK_ERROR(qkv_cache_truncate(cache, sequence, 10), QKV_OUT_OF_RANGE, "tokens is 10");
    qkv_cache_destroy(cache);
}

/* A ragged batch, packed, gives each sequence what it gets alone. */
static void test_packed(void) {
    qkv_cache* cache = paged_cache(6);
    int64_t ids[2] = {0, 0}, positions[7] = {0};
    CHECK_OK(qkv_cache_add(cache, &ids[0]));
    CHECK_OK(qkv_cache_add(cache, &ids[1]));
    CHECK_OK(append(cache, ids[0], 0, 20, NULL));
    const int64_t cumulative[3] = {0, 2, 7};
    qkv_cache_batch batch = QKV_CACHE_BATCH_INIT;
    batch.sequences = ids;
    batch.sequences_count = 2;
    batch.cumulative_tokens = cumulative;
    const qkv_tensor tq = tokens_of(q, 20, 7, HEADS, D), tk = tokens_of(k, 20, 7, KV_HEADS, D);
    const qkv_tensor tv = tokens_of(v, 20, 7, KV_HEADS, DV), tout = tokens_of(results[0], 20, 7, HEADS, DV);
    CHECK_OK(qkv_cache_next_positions(cache, &batch, &tk, positions, 7));
    const int64_t expected_positions[7] = {20, 21, 0, 1, 2, 3, 4};
    CHECK(memcmp(positions, expected_positions, sizeof(positions)) == 0);
    CHECK_ERROR(qkv_cache_next_positions(cache, &batch, &tk, positions, 6), QKV_SHAPE_MISMATCH, "count is 6");
    CHECK_OK(qkv_cache_append(cache, &batch, &tk, &tv, NULL));
    CHECK_OK(qkv_cache_attention(&tq, cache, &batch, &tout, NULL, NULL, NULL));
    attend(cache, ids[0], 20, 2, NULL, NULL, results[1], 0);
    attend(cache, ids[1], 22, 5, NULL, NULL, results[1], 0);
    CHECK(memcmp(results[0] + 20 * HEADS * DV, results[1] + 20 * HEADS * DV, 7 * HEADS * DV * sizeof(float)) == 0);
    qkv_cache_destroy(cache);
}

void test_cache(void) {
    fill_inputs();
    test_decode(NULL);
    qkv_rope* rope = NULL;
    CHECK_OK(qkv_rope_create(NULL, D, &rope));
    test_decode(rope);
    qkv_rope_destroy(rope);
    test_block_access();
    test_sharing();
    test_ring();
    test_packed();
}
