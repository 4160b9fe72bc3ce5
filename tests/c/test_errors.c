/* Bad input: a status, a message that names the argument, and nothing written. */
#include "check.h"

enum { COUNT = 64 };
static float numbers[COUNT];
static float results[COUNT];

/* A good call, to be spoilt one argument at a time: 2 heads, 3 queries, 4 keys, D = 2. */
typedef struct {
    qkv_tensor q, k, v, out, lse, d_out, dq;
    qkv_attention_options options;
    qkv_attention_extras extras;
    qkv_attention_saved saved;
    qkv_attention_gradients gradients;
    qkv_mask* mask;
} call;

static call good_call(void) {
    call c = {.q = qkv_tensor_contiguous(numbers, QKV_F32, 1, 2, 3, 2),
              .k = qkv_tensor_contiguous(numbers, QKV_F32, 1, 2, 4, 2),
              .v = qkv_tensor_contiguous(numbers, QKV_F32, 1, 2, 4, 2),
              .out = qkv_tensor_contiguous(results, QKV_F32, 1, 2, 3, 2),
              .lse = qkv_tensor_contiguous(results + 16, QKV_F32, 1, 2, 3, 1),
              .d_out = qkv_tensor_contiguous(numbers, QKV_F32, 1, 2, 3, 2),
              .dq = qkv_tensor_contiguous(results + 32, QKV_F32, 1, 2, 3, 2),
              .options = QKV_ATTENTION_OPTIONS_INIT,
              .extras = QKV_ATTENTION_EXTRAS_INIT,
              .saved = QKV_ATTENTION_SAVED_INIT,
              .gradients = QKV_ATTENTION_GRADIENTS_INIT,
              .mask = NULL};
    CHECK_OK(qkv_mask_create(&c.mask));
    return c;
}

static qkv_status forward(const call* c) {
    return qkv_attention(&c->q, &c->k, &c->v, &c->out, &c->options, &c->extras, NULL);
}

static void test_pointers(void) {
    call c = good_call();
    size_t size = 0;
    CHECK_ERROR(qkv_attention(NULL, &c.k, &c.v, &c.out, NULL, NULL, NULL), QKV_INVALID_ARGUMENT, "q is NULL");
    CHECK_ERROR(qkv_attention(&c.q, NULL, &c.v, &c.out, NULL, NULL, NULL), QKV_INVALID_ARGUMENT, "k is NULL");
    CHECK_ERROR(qkv_attention(&c.q, &c.k, NULL, &c.out, NULL, NULL, NULL), QKV_INVALID_ARGUMENT, "v is NULL");
    CHECK_ERROR(qkv_attention(&c.q, &c.k, &c.v, NULL, NULL, NULL, NULL), QKV_INVALID_ARGUMENT, "out is NULL");
    CHECK_ERROR(qkv_attention_workspace_size(&c.q, &c.k, &c.v, NULL, NULL, NULL, NULL, &size), QKV_INVALID_ARGUMENT,
                "out is NULL");
    CHECK_ERROR(qkv_attention_workspace_size(&c.q, &c.k, &c.v, &c.out, NULL, NULL, NULL, NULL), QKV_INVALID_ARGUMENT,
                "workspace_size is NULL");
    c.gradients.dq = &c.dq;
    CHECK_ERROR(qkv_attention_backward(&c.q, &c.k, &c.v, &c.d_out, &c.saved, &c.gradients, NULL, NULL),
                QKV_INVALID_ARGUMENT, "saved.lse is NULL");
    c.saved.lse = &c.lse;
    CHECK_ERROR(qkv_attention_backward(&c.q, &c.k, &c.v, &c.d_out, &c.saved, &c.gradients, NULL, NULL),
                QKV_INVALID_ARGUMENT, "neither out nor delta");
    c.saved.out = &c.out;
    CHECK_ERROR(qkv_attention_backward(NULL, &c.k, &c.v, &c.d_out, &c.saved, &c.gradients, NULL, NULL),
                QKV_INVALID_ARGUMENT, "q is NULL");
    CHECK_ERROR(qkv_attention_backward(&c.q, NULL, &c.v, &c.d_out, &c.saved, &c.gradients, NULL, NULL),
                QKV_INVALID_ARGUMENT, "k is NULL");
    CHECK_ERROR(qkv_attention_backward(&c.q, &c.k, NULL, &c.d_out, &c.saved, &c.gradients, NULL, NULL),
                QKV_INVALID_ARGUMENT, "v is NULL");
    CHECK_ERROR(qkv_attention_backward(&c.q, &c.k, &c.v, NULL, &c.saved, &c.gradients, NULL, NULL),
                QKV_INVALID_ARGUMENT, "d_out is NULL");
    CHECK_ERROR(qkv_attention_backward(&c.q, &c.k, &c.v, &c.d_out, NULL, &c.gradients, NULL, NULL),
                QKV_INVALID_ARGUMENT, "saved is NULL");
    CHECK_ERROR(qkv_attention_backward(&c.q, &c.k, &c.v, &c.d_out, &c.saved, NULL, NULL, NULL), QKV_INVALID_ARGUMENT,
                "gradients is NULL");
    CHECK_ERROR(
        qkv_attention_backward_workspace_size(&c.q, &c.k, &c.v, &c.d_out, &c.saved, &c.gradients, NULL, NULL, NULL),
        QKV_INVALID_ARGUMENT, "workspace_size is NULL");
    CHECK_ERROR(qkv_attention_merge(NULL, &c.lse, &c.out, &c.lse), QKV_INVALID_ARGUMENT, "out is NULL");
    CHECK_ERROR(qkv_attention_merge(&c.out, NULL, &c.out, &c.lse), QKV_INVALID_ARGUMENT, "lse is NULL");
    CHECK_ERROR(qkv_attention_merge(&c.out, &c.lse, NULL, &c.lse), QKV_INVALID_ARGUMENT, "part_out is NULL");
    CHECK_ERROR(qkv_attention_merge(&c.out, &c.lse, &c.out, NULL), QKV_INVALID_ARGUMENT, "part_lse is NULL");
    CHECK_ERROR(qkv_attention_merge_sinks(&c.out, &c.lse, NULL), QKV_INVALID_ARGUMENT, "sinks is NULL");
    qkv_mask_destroy(c.mask);
}

static void test_tensors(void) {
    call c = good_call();
    CHECK_OK(forward(&c));
    qkv_tensor* tensors[] = {&c.q, &c.k, &c.v, &c.out};
    const char* names[] = {"q ", "k ", "v ", "out "};
    for (size_t i = 0; i < 4; ++i) {
        const qkv_tensor kept = *tensors[i];
        tensors[i]->device = 1;
        CHECK_ERROR(forward(&c), QKV_UNSUPPORTED, names[i]);
        CHECK_ERROR(forward(&c), QKV_UNSUPPORTED, "on device 1");
        tensors[i]->device = 256; /* 0 in eight bits */
        CHECK_ERROR(forward(&c), QKV_UNSUPPORTED, "on device 256");
        *tensors[i] = kept;
        tensors[i]->device_id = -1;
        CHECK_ERROR(forward(&c), QKV_UNSUPPORTED, "id -1");
        *tensors[i] = kept;
        tensors[i]->reserved = 1;
        CHECK_ERROR(forward(&c), QKV_INVALID_ARGUMENT, "reserved is 1");
        *tensors[i] = kept;
        const qkv_dtype unknown[] = {-1, 5, 256, INT32_MAX, INT32_MIN};
        for (size_t n = 0; n < 5; ++n) {
            tensors[i]->dtype = unknown[n];
            CHECK_ERROR(forward(&c), QKV_UNSUPPORTED, "unknown type");
        }
        tensors[i]->dtype = QKV_BOOL;
        CHECK_ERROR(forward(&c), QKV_UNSUPPORTED, "has type bool");
        *tensors[i] = kept;
        tensors[i]->data = NULL;
        CHECK_ERROR(forward(&c), QKV_INVALID_ARGUMENT, "data is null");
        *tensors[i] = kept;
        tensors[i]->data = (char*)kept.data + 1;
        CHECK_ERROR(forward(&c), QKV_INVALID_ARGUMENT, "not aligned");
        *tensors[i] = kept;
        tensors[i]->shape[2] = -1;
        CHECK_ERROR(forward(&c), QKV_SHAPE_MISMATCH, names[i]);
        tensors[i]->shape[2] = INT64_MAX;
        CHECK_ERROR(forward(&c), QKV_OUT_OF_RANGE, "does not fit 64 bits");
        *tensors[i] = kept;
        tensors[i]->strides[3] = 2;
        CHECK_ERROR(forward(&c), QKV_INVALID_ARGUMENT, "last stride 2");
        *tensors[i] = kept;
        CHECK_OK(forward(&c));
    }
    c.k.shape[2] = 5;
    CHECK_ERROR(forward(&c), QKV_SHAPE_MISMATCH, "v has shape [1, 2, 4, 2]");
    c.k.shape[2] = 4;
    c.out.data = numbers;
    CHECK_ERROR(forward(&c), QKV_INVALID_ARGUMENT, "out overlaps q");
    qkv_mask_destroy(c.mask);
}

static void test_options(void) {
    call c = good_call();
    double scale = NAN;
    c.options.scale = &scale;
    CHECK_ERROR(forward(&c), QKV_INVALID_ARGUMENT, "scale is nan");
    c.options.scale = NULL;
    c.options.dropout.p = 1.5;
    CHECK_ERROR(forward(&c), QKV_INVALID_ARGUMENT, "dropout.p is 1.5");
    c.options.dropout.p = 0.5;
    c.options.dropout.sequence_ids_count = 1;
    CHECK_ERROR(forward(&c), QKV_INVALID_ARGUMENT, "dropout.sequence_ids is NULL");
    c.options.dropout.sequence_ids_count = -1;
    CHECK_ERROR(forward(&c), QKV_INVALID_ARGUMENT, "dropout.sequence_ids has -1");
    c.options.dropout.sequence_ids_count = 0;
    c.options.dropout.keep = &c.q;
    CHECK_ERROR(forward(&c), QKV_UNSUPPORTED, "dropout.keep has type f32");
    c.options.dropout.keep = NULL;
    c.options.offsets.head = -3;
    CHECK_ERROR(forward(&c), QKV_OUT_OF_RANGE, "offsets.head is -3");
    c.options.offsets.head = 0;
    c.options.sinks = &c.q;
    CHECK_ERROR(forward(&c), QKV_SHAPE_MISMATCH, "sinks has shape");
    c.options.sinks = NULL;

    c.extras.scores_at = 4;
    CHECK_ERROR(forward(&c), QKV_UNSUPPORTED, "scores_at is 4");
    c.extras.scores_at = -1;
    CHECK_ERROR(forward(&c), QKV_UNSUPPORTED, "scores_at is -1");
    c.extras.scores_at = 0;
    c.extras.lse_without_sinks = 2;
    CHECK_ERROR(forward(&c), QKV_INVALID_ARGUMENT, "lse_without_sinks is 2");
    c.extras.lse_without_sinks = 0;
    c.extras.workspace = results;
    CHECK_ERROR(forward(&c), QKV_INVALID_ARGUMENT, "workspace_size 0");
    c.extras.workspace = NULL;
    c.extras.workspace_size = 64;
    CHECK_ERROR(forward(&c), QKV_INVALID_ARGUMENT, "workspace is NULL");
    qkv_mask_destroy(c.mask);
}

static void test_masks(void) {
    call c = good_call();
    const int64_t list[2] = {0, 1};
    CHECK_ERROR(qkv_mask_create(NULL), QKV_INVALID_ARGUMENT, "mask is NULL");
    CHECK_ERROR(qkv_mask_add_causal(NULL, QKV_TOP_LEFT), QKV_INVALID_ARGUMENT, "mask is NULL");
    CHECK_ERROR(qkv_mask_add_causal(c.mask, 2), QKV_UNSUPPORTED, "align is 2");
    CHECK_ERROR(qkv_mask_add_causal(c.mask, -1), QKV_UNSUPPORTED, "align is -1");
    CHECK_ERROR(qkv_mask_add_causal_offset(NULL, 0), QKV_INVALID_ARGUMENT, "mask is NULL");
    CHECK_ERROR(qkv_mask_add_causal_offset(c.mask, INT64_MAX), QKV_INVALID_ARGUMENT, "causal offset");
    CHECK_ERROR(qkv_mask_add_window(NULL, 0, 0, QKV_TOP_LEFT), QKV_INVALID_ARGUMENT, "mask is NULL");
    CHECK_ERROR(qkv_mask_add_window(c.mask, -1, 0, QKV_TOP_LEFT), QKV_INVALID_ARGUMENT, "window left is -1");
    CHECK_ERROR(qkv_mask_add_window(c.mask, 0, 0, 9), QKV_UNSUPPORTED, "align is 9");
    CHECK_ERROR(qkv_mask_add_allowed(NULL, &c.q), QKV_INVALID_ARGUMENT, "mask is NULL");
    CHECK_ERROR(qkv_mask_add_allowed(c.mask, NULL), QKV_INVALID_ARGUMENT, "allowed is NULL");
    CHECK_ERROR(qkv_mask_add_bias(NULL, &c.q), QKV_INVALID_ARGUMENT, "mask is NULL");
    CHECK_ERROR(qkv_mask_add_bias(c.mask, NULL), QKV_INVALID_ARGUMENT, "bias is NULL");
    CHECK_ERROR(qkv_mask_add_alibi(NULL, &c.q, QKV_TOP_LEFT), QKV_INVALID_ARGUMENT, "mask is NULL");
    CHECK_ERROR(qkv_mask_add_alibi(c.mask, NULL, QKV_TOP_LEFT), QKV_INVALID_ARGUMENT, "slopes is NULL");
    CHECK_ERROR(qkv_mask_add_key_begin(NULL, list, 1), QKV_INVALID_ARGUMENT, "mask is NULL");
    CHECK_ERROR(qkv_mask_add_key_begin(c.mask, NULL, 1), QKV_INVALID_ARGUMENT, "begin is NULL");
    CHECK_ERROR(qkv_mask_add_key_end(NULL, list, 1), QKV_INVALID_ARGUMENT, "mask is NULL");
    CHECK_ERROR(qkv_mask_add_key_end(c.mask, list, -1), QKV_INVALID_ARGUMENT, "end has -1 numbers");
    CHECK_ERROR(qkv_mask_add_packed(NULL, list, list, 1), QKV_INVALID_ARGUMENT, "mask is NULL");
    CHECK_ERROR(qkv_mask_add_packed(c.mask, NULL, list, 1), QKV_INVALID_ARGUMENT, "cumulative_queries is NULL");
    CHECK_ERROR(qkv_mask_add_packed(c.mask, list, NULL, 1), QKV_INVALID_ARGUMENT, "cumulative_keys is NULL");
    CHECK_ERROR(qkv_mask_add_packed(c.mask, list, list, -1), QKV_INVALID_ARGUMENT, "sequences is -1");
    CHECK_ERROR(qkv_mask_add_packed(c.mask, list, list, INT64_MAX), QKV_INVALID_ARGUMENT, "sequences is");
    CHECK_ERROR(qkv_mask_add_blocks(NULL, NULL), QKV_INVALID_ARGUMENT, "mask is NULL");
    CHECK_ERROR(qkv_mask_add_blocks(c.mask, NULL), QKV_INVALID_ARGUMENT, "blocks is NULL");
    qkv_block_list blocks = QKV_BLOCK_LIST_INIT;
    blocks.starts_count = 1;
    CHECK_ERROR(qkv_mask_add_blocks(c.mask, &blocks), QKV_INVALID_ARGUMENT, "blocks.starts is NULL");
    blocks.starts_count = 0;
    blocks.key_blocks_count = -5;
    CHECK_ERROR(qkv_mask_add_blocks(c.mask, &blocks), QKV_INVALID_ARGUMENT, "blocks.key_blocks has -5");

    /* What was refused has left no trace; a second bias is refused and the first stays. */
    c.options.mask = c.mask;
    CHECK_OK(forward(&c));
    qkv_tensor bias = qkv_tensor_contiguous(numbers, QKV_F32, 1, 1, 3, 4);
    CHECK_OK(qkv_mask_add_bias(c.mask, &bias));
    CHECK_ERROR(qkv_mask_add_bias(c.mask, &bias), QKV_INVALID_ARGUMENT, "two of bias");
    CHECK_OK(forward(&c));
    CHECK_OK(qkv_mask_add_key_end(c.mask, list, 2));
    CHECK_ERROR(forward(&c), QKV_SHAPE_MISMATCH, "key_end");
    qkv_mask_destroy(c.mask);
}

static int32_t never(void* user, int64_t tasks, qkv_task task, void* context) {
    (void)user, (void)tasks, (void)task, (void)context;
    return 1;
}

static void test_runtimes(void) {
    qkv_runtime* runtime = NULL;
    qkv_runtime_options options = QKV_RUNTIME_OPTIONS_INIT;
    CHECK_ERROR(qkv_runtime_create(&options, NULL), QKV_INVALID_ARGUMENT, "runtime is NULL");
    options.threads = -1;
    CHECK_ERROR(qkv_runtime_create(&options, &runtime), QKV_INVALID_ARGUMENT, "threads is -1");
    options.parallel_for = never;
    options.threads = 5000;
    CHECK_ERROR(qkv_runtime_create(&options, &runtime), QKV_INVALID_ARGUMENT, "threads is 5000");
    options.threads = 2;
    options.device = 2;
    CHECK_ERROR(qkv_runtime_create(&options, &runtime), QKV_UNSUPPORTED, "runtime is on device 2");
    options.device = QKV_CPU;
    options.device_id = 1;
    CHECK_ERROR(qkv_runtime_create(&options, &runtime), QKV_UNSUPPORTED, "id 1");
    options.device_id = 0;
    options.stream = &options;
    CHECK_ERROR(qkv_runtime_create(&options, &runtime), QKV_UNSUPPORTED, "stream");
    CHECK(runtime == NULL);
    CHECK_OK(qkv_runtime_create(NULL, &runtime));
    CHECK(qkv_runtime_threads(runtime) >= 1);
    qkv_runtime_destroy(runtime);
}

static void test_status(void) {
    CHECK(strcmp(qkv_status_name(QKV_OK), "ok") == 0);
    CHECK(strcmp(qkv_status_name(QKV_SHAPE_MISMATCH), "shape mismatch") == 0);
    CHECK(strcmp(qkv_status_name(-1), "unknown status") == 0);
    CHECK(strcmp(qkv_status_name(QKV_INTERNAL + 1), "unknown status") == 0);
    CHECK(qkv_version() == QKV_VERSION);
    CHECK(strlen(qkv_version_string()) >= 5);
}

void test_errors(void) {
    for (size_t i = 0; i < COUNT; ++i) {
        numbers[i] = 1;
        results[i] = 7;
    }
    test_pointers();
    for (size_t i = 0; i < COUNT; ++i) {
        CHECK(results[i] == 7); /* refused calls wrote nothing */
    }
    test_tensors();
    test_options();
    test_masks();
    test_runtimes();
    test_status();
}
