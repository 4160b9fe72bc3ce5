/* Bad input to caches: a status, a message that names the argument, and a cache as it was. */
#include "check.h"

static float numbers[2 * 64 * 4];
static float results[64];

static qkv_cache_layout good_layout(void) {
    qkv_cache_layout layout = QKV_CACHE_LAYOUT_INIT;
    layout.kv_heads = 2;
    layout.head_dim = 4;
    return layout;
}

static qkv_cache* paged_cache(int64_t blocks) {
    const qkv_cache_layout layout = good_layout();
    qkv_cache_paged options = QKV_CACHE_PAGED_INIT;
    options.blocks = blocks;
    options.block_tokens = 16;
    qkv_cache* cache = NULL;
    CHECK_OK(qkv_cache_create_paged(&layout, &options, &cache));
    return cache;
}

static qkv_tensor tokens_of(int64_t tokens, int64_t width) {
    return qkv_tensor_contiguous(numbers, QKV_F32, 1, 2, tokens, width);
}

static qkv_status append(qkv_cache* cache, int64_t sequence, int64_t tokens) {
    qkv_cache_batch batch = QKV_CACHE_BATCH_INIT;
    batch.sequences = &sequence;
    batch.sequences_count = 1;
    const qkv_tensor kv = tokens_of(tokens, 4);
    return qkv_cache_append(cache, &batch, &kv, &kv, NULL);
}

static void test_layouts_of_caches(void) {
    qkv_cache* const before = (qkv_cache*)numbers;
    qkv_cache* cache = before;
    qkv_cache_paged options = QKV_CACHE_PAGED_INIT;
    options.blocks = 2;
    qkv_cache_layout layout = good_layout();
    CHECK_ERROR(qkv_cache_create_paged(NULL, &options, &cache), QKV_INVALID_ARGUMENT, "layout is NULL");
    CHECK_ERROR(qkv_cache_create_paged(&layout, NULL, &cache), QKV_INVALID_ARGUMENT, "options is NULL");
    CHECK_ERROR(qkv_cache_create_paged(&layout, &options, NULL), QKV_INVALID_ARGUMENT, "cache is NULL");
    CHECK_ERROR(qkv_cache_create_contiguous(&layout, NULL, &cache), QKV_INVALID_ARGUMENT, "options is NULL");
    CHECK_ERROR(qkv_cache_create_windowed(&layout, NULL, &cache), QKV_INVALID_ARGUMENT, "options is NULL");
    layout.device = 1;
    CHECK_ERROR(qkv_cache_create_paged(&layout, &options, &cache), QKV_UNSUPPORTED, "layout is on device 1");
    layout = good_layout();
    layout.reserved = 1;
    CHECK_ERROR(qkv_cache_create_paged(&layout, &options, &cache), QKV_INVALID_ARGUMENT, "layout.reserved is 1");
    layout = good_layout();
    const qkv_dtype types[] = {-1, 5, INT32_MAX, INT32_MIN};
    for (size_t i = 0; i < 4; ++i) {
        layout.dtype = types[i];
        CHECK_ERROR(qkv_cache_create_paged(&layout, &options, &cache), QKV_UNSUPPORTED, "layout.dtype is");
    }
    layout.dtype = QKV_BOOL;
    CHECK_ERROR(qkv_cache_create_paged(&layout, &options, &cache), QKV_UNSUPPORTED, "dtype is bool");
    layout = good_layout();
    layout.head_dim = 0;
    CHECK_ERROR(qkv_cache_create_paged(&layout, &options, &cache), QKV_INVALID_ARGUMENT, "head_dim is 0");
    layout = good_layout();
    layout.kv_heads = -1;
    CHECK_ERROR(qkv_cache_create_paged(&layout, &options, &cache), QKV_INVALID_ARGUMENT, "kv_heads is -1");
    layout = good_layout();
    layout.value_dim = INT64_MAX;
    CHECK_ERROR(qkv_cache_create_paged(&layout, &options, &cache), QKV_INVALID_ARGUMENT, "value_dim is");
    layout = good_layout();
    options.block_tokens = 17;
    CHECK_ERROR(qkv_cache_create_paged(&layout, &options, &cache), QKV_INVALID_ARGUMENT, "block_tokens is 17");
    options.block_tokens = 16;
    options.blocks = 0;
    CHECK_ERROR(qkv_cache_create_paged(&layout, &options, &cache), QKV_INVALID_ARGUMENT, "blocks is 0");
    qkv_cache_contiguous contiguous = QKV_CACHE_CONTIGUOUS_INIT;
    CHECK_ERROR(qkv_cache_create_contiguous(&layout, &contiguous, &cache), QKV_INVALID_ARGUMENT, "capacity is 0");
    contiguous.capacity = ((int64_t)1 << 58) - 1;
    CHECK_ERROR(qkv_cache_create_contiguous(&layout, &contiguous, &cache), QKV_OUT_OF_RANGE, "does not fit 64 bits");
    contiguous.capacity = 1;
    contiguous.sequences = -1;
    CHECK_ERROR(qkv_cache_create_contiguous(&layout, &contiguous, &cache), QKV_INVALID_ARGUMENT, "sequences is -1");
    qkv_cache_windowed windowed = QKV_CACHE_WINDOWED_INIT;
    CHECK_ERROR(qkv_cache_create_windowed(&layout, &windowed, &cache), QKV_INVALID_ARGUMENT, "window is 0");
    windowed.window = 1;
    windowed.max_append = -1;
    CHECK_ERROR(qkv_cache_create_windowed(&layout, &windowed, &cache), QKV_INVALID_ARGUMENT, "max_append is -1");
    CHECK(cache == before);
}

static void test_struct_sizes(void) {
    qkv_cache_layout layout = good_layout();
    qkv_cache_paged paged = QKV_CACHE_PAGED_INIT;
    qkv_cache_contiguous contiguous = QKV_CACHE_CONTIGUOUS_INIT;
    qkv_cache_windowed windowed = QKV_CACHE_WINDOWED_INIT;
    qkv_cache_batch batch = QKV_CACHE_BATCH_INIT;
    qkv_cache_info info = QKV_CACHE_INFO_INIT;
    qkv_cache_block block = QKV_CACHE_BLOCK_INIT;
    qkv_cache* cache = paged_cache(2);
    int64_t sequence = 0;
    CHECK_OK(qkv_cache_add(cache, &sequence));
    CHECK_OK(append(cache, sequence, 3));
    const qkv_tensor kv = tokens_of(3, 4);
    const size_t sizes[] = {0, 7, 9, 4104, SIZE_MAX};
    for (size_t i = 0; i < 5; ++i) {
        layout.struct_size = paged.struct_size = contiguous.struct_size = windowed.struct_size = sizes[i];
        batch.struct_size = info.struct_size = block.struct_size = sizes[i];
        qkv_cache* made = NULL;
        CHECK_ERROR(qkv_cache_create_paged(&layout, &paged, &made), QKV_INVALID_ARGUMENT, "struct_size is");
        layout = good_layout();
        CHECK_ERROR(qkv_cache_create_paged(&layout, &paged, &made), QKV_INVALID_ARGUMENT, "options.struct_size is");
        CHECK_ERROR(qkv_cache_create_contiguous(&layout, &contiguous, &made), QKV_INVALID_ARGUMENT,
                    "options.struct_size is");
        CHECK_ERROR(qkv_cache_create_windowed(&layout, &windowed, &made), QKV_INVALID_ARGUMENT,
                    "options.struct_size is");
        CHECK_ERROR(qkv_cache_append(cache, &batch, &kv, &kv, NULL), QKV_INVALID_ARGUMENT, "batch.struct_size is");
        CHECK_ERROR(qkv_cache_get_info(cache, &info), QKV_INVALID_ARGUMENT, "info.struct_size is");
        CHECK_ERROR(qkv_cache_get_block(cache, sequence, 0, &block), QKV_INVALID_ARGUMENT, "block.struct_size is");
    }
    /* A program that does not know the last members: they are not written. */
    info.struct_size = offsetof(qkv_cache_info, block_tokens);
    info.block_tokens = 99;
    CHECK_OK(qkv_cache_get_info(cache, &info));
    CHECK(info.sequences == 1 && info.blocks == 2 && info.block_tokens == 99);
    CHECK(info.struct_size == offsetof(qkv_cache_info, block_tokens));
    qkv_cache_destroy(cache);
}

static void test_sequences(void) {
    qkv_cache* cache = paged_cache(4);
    qkv_cache* other = paged_cache(4);
    int64_t sequence = 0, removed = 0, foreign = 0, made = 77;
    CHECK_OK(qkv_cache_add(cache, &sequence));
    CHECK_OK(qkv_cache_add(cache, &removed));
    CHECK_OK(qkv_cache_remove(cache, removed));
    CHECK_OK(qkv_cache_add(other, &foreign));
    const int64_t bad[] = {removed, foreign, -1, INT64_MAX, INT64_MIN};
    const int64_t one_of_each[] = {sequence, sequence};
    qkv_cache_block block = QKV_CACHE_BLOCK_INIT;
    for (size_t i = 0; i < 5; ++i) {
        CHECK_ERROR(qkv_cache_fork(cache, bad[i], QKV_UNLIMITED, &made), QKV_INVALID_ARGUMENT, "sequence is");
        CHECK_ERROR(qkv_cache_remove(cache, bad[i]), QKV_INVALID_ARGUMENT, "sequence is");
        CHECK_ERROR(qkv_cache_truncate(cache, bad[i], 0), QKV_INVALID_ARGUMENT, "sequence is");
        CHECK_ERROR(qkv_cache_reset(cache, bad[i]), QKV_INVALID_ARGUMENT, "sequence is");
        CHECK_ERROR(qkv_cache_size(cache, bad[i], &made), QKV_INVALID_ARGUMENT, "sequence is");
        CHECK_ERROR(qkv_cache_first(cache, bad[i], &made), QKV_INVALID_ARGUMENT, "sequence is");
        CHECK_ERROR(qkv_cache_block_table(cache, bad[i], NULL, 0, &made), QKV_INVALID_ARGUMENT, "sequence is");
        CHECK_ERROR(qkv_cache_get_block(cache, bad[i], 0, &block), QKV_INVALID_ARGUMENT, "sequence is");
        CHECK_ERROR(append(cache, bad[i], 1), QKV_INVALID_ARGUMENT, "sequences: one is");
    }
    CHECK(made == 77);
    CHECK_ERROR(qkv_cache_fork(cache, sequence, 1, &made), QKV_OUT_OF_RANGE, "tokens is 1");
    CHECK_ERROR(qkv_cache_truncate(cache, sequence, -1), QKV_OUT_OF_RANGE, "tokens is -1");
    CHECK_ERROR(qkv_cache_get_block(cache, sequence, 0, &block), QKV_OUT_OF_RANGE, "index is 0");
    qkv_cache_batch batch = QKV_CACHE_BATCH_INIT;
    batch.sequences = one_of_each;
    batch.sequences_count = 2;
    const qkv_tensor kv = qkv_tensor_contiguous(numbers, QKV_F32, 2, 2, 1, 4);
    CHECK_ERROR(qkv_cache_append(cache, &batch, &kv, &kv, NULL), QKV_INVALID_ARGUMENT, "there twice");
    qkv_cache_destroy(other);
    qkv_cache_destroy(cache);
}

/* Spoils every pointer of every function. */
static void test_pointers(void) {
    qkv_cache* cache = paged_cache(4);
    int64_t sequence = 0, count = 0;
    CHECK_ERROR(qkv_cache_add(NULL, &sequence), QKV_INVALID_ARGUMENT, "cache is NULL");
    CHECK_ERROR(qkv_cache_add(cache, NULL), QKV_INVALID_ARGUMENT, "sequence is NULL");
    CHECK_OK(qkv_cache_add(cache, &sequence));
    CHECK_ERROR(qkv_cache_fork(NULL, sequence, 0, &count), QKV_INVALID_ARGUMENT, "cache is NULL");
    CHECK_ERROR(qkv_cache_fork(cache, sequence, 0, NULL), QKV_INVALID_ARGUMENT, "fork is NULL");
    CHECK_ERROR(qkv_cache_remove(NULL, sequence), QKV_INVALID_ARGUMENT, "cache is NULL");
    CHECK_ERROR(qkv_cache_truncate(NULL, sequence, 0), QKV_INVALID_ARGUMENT, "cache is NULL");
    CHECK_ERROR(qkv_cache_reset(NULL, sequence), QKV_INVALID_ARGUMENT, "cache is NULL");
    CHECK_ERROR(qkv_cache_size(NULL, sequence, &count), QKV_INVALID_ARGUMENT, "cache is NULL");
    CHECK_ERROR(qkv_cache_size(cache, sequence, NULL), QKV_INVALID_ARGUMENT, "tokens is NULL");
    CHECK_ERROR(qkv_cache_first(NULL, sequence, &count), QKV_INVALID_ARGUMENT, "cache is NULL");
    CHECK_ERROR(qkv_cache_first(cache, sequence, NULL), QKV_INVALID_ARGUMENT, "position is NULL");
    qkv_cache_info info = QKV_CACHE_INFO_INIT;
    CHECK_ERROR(qkv_cache_get_info(NULL, &info), QKV_INVALID_ARGUMENT, "cache is NULL");
    CHECK_ERROR(qkv_cache_get_info(cache, NULL), QKV_INVALID_ARGUMENT, "info is NULL");
    qkv_cache_block block = QKV_CACHE_BLOCK_INIT;
    CHECK_OK(append(cache, sequence, 20));
    CHECK_ERROR(qkv_cache_get_block(NULL, sequence, 0, &block), QKV_INVALID_ARGUMENT, "cache is NULL");
    CHECK_ERROR(qkv_cache_get_block(cache, sequence, 0, NULL), QKV_INVALID_ARGUMENT, "block is NULL");
    CHECK_ERROR(qkv_cache_get_block(cache, sequence, -1, &block), QKV_OUT_OF_RANGE, "index is -1");
    CHECK_ERROR(qkv_cache_get_block(cache, sequence, 2, &block), QKV_OUT_OF_RANGE, "index is 2");
    int64_t table[2] = {-7, -7};
    CHECK_ERROR(qkv_cache_block_table(NULL, sequence, table, 2, &count), QKV_INVALID_ARGUMENT, "cache is NULL");
    CHECK_ERROR(qkv_cache_block_table(cache, sequence, NULL, 2, &count), QKV_INVALID_ARGUMENT, "blocks is NULL");
    CHECK_ERROR(qkv_cache_block_table(cache, sequence, table, -1, &count), QKV_INVALID_ARGUMENT, "blocks has -1");
    CHECK_ERROR(qkv_cache_block_table(cache, sequence, table, 1, &count), QKV_OUT_OF_RANGE, "capacity is 1");
    CHECK_ERROR(qkv_cache_block_table(cache, sequence, table, 2, NULL), QKV_INVALID_ARGUMENT, "count is NULL");
    CHECK(table[0] == -7 && table[1] == -7);
    qkv_cache_destroy(cache);
    qkv_cache_destroy(NULL);
}

static void test_append(void) {
    qkv_cache* cache = paged_cache(2);
    int64_t sequence = 0, size = -1, positions[3] = {0};
    CHECK_OK(qkv_cache_add(cache, &sequence));
    qkv_cache_batch batch = QKV_CACHE_BATCH_INIT;
    batch.sequences = &sequence;
    batch.sequences_count = 1;
    const qkv_tensor kv = tokens_of(3, 4), wide = tokens_of(3, 5);
    qkv_tensor odd = kv;
    CHECK_ERROR(qkv_cache_append(NULL, &batch, &kv, &kv, NULL), QKV_INVALID_ARGUMENT, "cache is NULL");
    CHECK_ERROR(qkv_cache_append(cache, NULL, &kv, &kv, NULL), QKV_INVALID_ARGUMENT, "batch is NULL");
    CHECK_ERROR(qkv_cache_append(cache, &batch, NULL, &kv, NULL), QKV_INVALID_ARGUMENT, "k is NULL");
    CHECK_ERROR(qkv_cache_append(cache, &batch, &kv, NULL, NULL), QKV_INVALID_ARGUMENT, "v is NULL");
    CHECK_ERROR(qkv_cache_append(cache, &batch, &wide, &kv, NULL), QKV_SHAPE_MISMATCH, "k has shape");
    CHECK_ERROR(qkv_cache_append(cache, &batch, &kv, &wide, NULL), QKV_SHAPE_MISMATCH, "v has shape");
    odd.dtype = QKV_BF16;
    CHECK_ERROR(qkv_cache_append(cache, &batch, &kv, &odd, NULL), QKV_UNSUPPORTED, "v has type bf16");
    odd = kv;
    odd.shape[2] = -3;
    CHECK_ERROR(qkv_cache_append(cache, &batch, &odd, &odd, NULL), QKV_SHAPE_MISMATCH, "k has");
    odd.shape[2] = INT64_MAX;
    CHECK_ERROR(qkv_cache_append(cache, &batch, &odd, &odd, NULL), QKV_OUT_OF_RANGE, "k");
    CHECK_ERROR(qkv_cache_next_positions(cache, &batch, &odd, positions, 3), QKV_SHAPE_MISMATCH, "count is 3");
    CHECK_ERROR(qkv_cache_next_positions(cache, &batch, NULL, positions, 3), QKV_INVALID_ARGUMENT, "tokens is NULL");
    CHECK_ERROR(qkv_cache_next_positions(cache, &batch, &kv, NULL, 3), QKV_INVALID_ARGUMENT, "positions is NULL");
    CHECK_ERROR(qkv_cache_next_positions(cache, &batch, &kv, positions, -3), QKV_INVALID_ARGUMENT, "positions has -3");
    CHECK_ERROR(qkv_cache_next_positions(NULL, &batch, &kv, positions, 3), QKV_INVALID_ARGUMENT, "cache is NULL");
    batch.sequences_count = 2;
    CHECK_ERROR(qkv_cache_append(cache, &batch, &kv, &kv, NULL), QKV_SHAPE_MISMATCH, "first size of 2");
    batch.sequences_count = -1;
    CHECK_ERROR(qkv_cache_append(cache, &batch, &kv, &kv, NULL), QKV_INVALID_ARGUMENT, "batch.sequences has -1");
    batch.sequences_count = 1;
    batch.sequences = NULL;
    CHECK_ERROR(qkv_cache_append(cache, &batch, &kv, &kv, NULL), QKV_INVALID_ARGUMENT, "batch.sequences is NULL");
    batch.sequences = &sequence;
    const int64_t bad_starts[][2] = {{0, 2}, {1, 3}, {0, 4}, {0, -1}};
    for (size_t i = 0; i < 4; ++i) {
        batch.cumulative_tokens = bad_starts[i];
        CHECK(qkv_cache_append(cache, &batch, &kv, &kv, NULL) != QKV_OK);
        CHECK(strstr(qkv_last_error(), "cumulative_tokens") != NULL);
    }
    batch.cumulative_tokens = NULL;

    qkv_rope* rope = NULL;
    CHECK_OK(qkv_rope_create(NULL, 6, &rope));
    CHECK_ERROR(qkv_cache_append(cache, &batch, &kv, &kv, rope), QKV_SHAPE_MISMATCH, "rope has head_dim 6");
    qkv_rope_destroy(rope);
    CHECK_OK(qkv_cache_size(cache, sequence, &size));
    CHECK(size == 0);

    CHECK_OK(append(cache, sequence, 32)); /* two blocks: the pool is full */
    CHECK_ERROR(append(cache, sequence, 1), QKV_OUT_OF_MEMORY, "0 of 2 are free");
    CHECK_OK(qkv_cache_size(cache, sequence, &size));
    CHECK(size == 32);
    qkv_cache_destroy(cache);

    const qkv_cache_layout layout = good_layout();
    qkv_cache_contiguous options = QKV_CACHE_CONTIGUOUS_INIT;
    options.capacity = 5;
    CHECK_OK(qkv_cache_create_contiguous(&layout, &options, &cache));
    CHECK_OK(qkv_cache_add(cache, &sequence));
    CHECK_OK(append(cache, sequence, 4));
    CHECK_ERROR(append(cache, sequence, 2), QKV_OUT_OF_RANGE, "capacity of 5");
    CHECK_OK(append(cache, sequence, 1));
    qkv_cache_destroy(cache);
}

static void test_attention(void) {
    qkv_cache* cache = paged_cache(2);
    int64_t sequence = 0, unknown = -5;
    CHECK_OK(qkv_cache_add(cache, &sequence));
    CHECK_OK(append(cache, sequence, 3));
    qkv_cache_batch batch = QKV_CACHE_BATCH_INIT;
    batch.sequences = &sequence;
    batch.sequences_count = 1;
    qkv_tensor q = tokens_of(1, 4), out = qkv_tensor_contiguous(results, QKV_F32, 1, 2, 1, 4);
    qkv_attention_options options = QKV_ATTENTION_OPTIONS_INIT;
    qkv_attention_extras extras = QKV_ATTENTION_EXTRAS_INIT;
    size_t size = 0;
    CHECK_OK(qkv_cache_attention(&q, cache, &batch, &out, &options, &extras, NULL));
    CHECK_ERROR(qkv_cache_attention(NULL, cache, &batch, &out, NULL, NULL, NULL), QKV_INVALID_ARGUMENT, "q is NULL");
    CHECK_ERROR(qkv_cache_attention(&q, NULL, &batch, &out, NULL, NULL, NULL), QKV_INVALID_ARGUMENT, "cache is NULL");
    CHECK_ERROR(qkv_cache_attention(&q, cache, NULL, &out, NULL, NULL, NULL), QKV_INVALID_ARGUMENT, "batch is NULL");
    CHECK_ERROR(qkv_cache_attention(&q, cache, &batch, NULL, NULL, NULL, NULL), QKV_INVALID_ARGUMENT, "out is NULL");
    CHECK_ERROR(qkv_cache_attention_workspace_size(&q, NULL, &batch, &out, NULL, NULL, NULL, &size),
                QKV_INVALID_ARGUMENT, "cache is NULL");
    CHECK_ERROR(qkv_cache_attention_workspace_size(&q, cache, &batch, &out, NULL, NULL, NULL, NULL),
                QKV_INVALID_ARGUMENT, "workspace_size is NULL");
    CHECK_OK(qkv_cache_attention_workspace_size(&q, cache, &batch, &out, NULL, NULL, NULL, &size));
    extras.workspace = numbers;
    extras.workspace_size = size - 1;
    CHECK_ERROR(qkv_cache_attention(&q, cache, &batch, &out, NULL, &extras, NULL), QKV_INVALID_ARGUMENT, "workspace");
    options.dropout.p = 0.5;
    CHECK_ERROR(qkv_cache_attention(&q, cache, &batch, &out, &options, NULL, NULL), QKV_UNSUPPORTED, "dropout");
    options.dropout.p = 0;
    options.struct_size = 3;
    CHECK_ERROR(qkv_cache_attention(&q, cache, &batch, &out, &options, NULL, NULL), QKV_INVALID_ARGUMENT,
                "options.struct_size is 3");
    batch.sequences = &unknown;
    CHECK_ERROR(qkv_cache_attention(&q, cache, &batch, &out, NULL, NULL, NULL), QKV_INVALID_ARGUMENT,
                "sequences: one is -5");
    batch.sequences = &sequence;
    q.shape[3] = out.shape[3] = 3;
    CHECK_ERROR(qkv_cache_attention(&q, cache, &batch, &out, NULL, NULL, NULL), QKV_SHAPE_MISMATCH, "has shape");
    qkv_cache_destroy(cache);
}

void test_cache_errors(void) {
    test_layouts_of_caches();
    test_struct_sizes();
    test_sequences();
    test_pointers();
    test_append();
    test_attention();
}
