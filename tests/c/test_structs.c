/* Option structs of other sizes, as programs of other ages give them. */
#include <stdlib.h>

#include "check.h"

static float numbers[8] = {1, 2, 3, 4};
static float results[2];

static qkv_status attend(const qkv_attention_options* options, const qkv_attention_extras* extras) {
    const qkv_tensor q = qkv_tensor_contiguous(numbers, QKV_F32, 1, 1, 1, 2);
    const qkv_tensor k = qkv_tensor_contiguous(numbers, QKV_F32, 1, 1, 2, 2);
    const qkv_tensor out = qkv_tensor_contiguous(results, QKV_F32, 1, 1, 1, 2);
    return qkv_attention(&q, &k, &k, &out, options, extras, NULL);
}

static void test_shorter(void) {
    CHECK_OK(attend(NULL, NULL));
    const float plain[2] = {results[0], results[1]};

    /* A program that knows nothing but the size; nothing behind it may be read. */
    size_t* least = malloc(sizeof(size_t));
    CHECK(least != NULL);
    *least = sizeof(size_t);
    CHECK_OK(attend((const qkv_attention_options*)least, (const qkv_attention_extras*)least));
    CHECK(memcmp(results, plain, sizeof(plain)) == 0);
    free(least);

    /* One that knows the scale and not the softcap behind it. */
    qkv_attention_options options = QKV_ATTENTION_OPTIONS_INIT;
    const double scale = 0;
    options.scale = &scale;
    options.softcap = -1; /* would be refused */
    options.struct_size = offsetof(qkv_attention_options, softcap);
    CHECK_OK(attend(&options, NULL));
    CHECK(results[0] == 2 && results[1] == 3); /* the mean of (1, 2) and (3, 4) */
}

static void test_longer(void) {
    struct {
        qkv_attention_options options;
        uint64_t news[4];
    } newer = {.options = QKV_ATTENTION_OPTIONS_INIT, .news = {0, 0, 0, 0}};
    newer.options.struct_size = sizeof(newer);
    CHECK_OK(attend(&newer.options, NULL));
    newer.news[3] = (uint64_t)1 << 63;
    CHECK_ERROR(attend(&newer.options, NULL), QKV_UNSUPPORTED, "options.struct_size is");
    newer.news[3] = 0;
    newer.news[0] = 1;
    CHECK_ERROR(attend(&newer.options, NULL), QKV_UNSUPPORTED, qkv_version_string());
}

static void test_absurd(void) {
    const size_t sizes[] = {0,
                            1,
                            7,
                            9,
                            sizeof(qkv_attention_options) - 1,
                            sizeof(qkv_attention_options) + 4,
                            4104,
                            (size_t)1 << 40,
                            SIZE_MAX,
                            SIZE_MAX - 7};
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); ++i) {
        qkv_attention_options options = QKV_ATTENTION_OPTIONS_INIT;
        options.struct_size = sizes[i];
        CHECK_ERROR(attend(&options, NULL), QKV_INVALID_ARGUMENT, "options.struct_size is");
        qkv_attention_extras extras = QKV_ATTENTION_EXTRAS_INIT;
        extras.struct_size = sizes[i] == sizeof(options) + 4 ? sizeof(extras) + 4 : sizes[i];
        CHECK_ERROR(attend(NULL, &extras), QKV_INVALID_ARGUMENT, "extras.struct_size is");
        qkv_attention_saved saved = QKV_ATTENTION_SAVED_INIT;
        saved.struct_size = sizes[i];
        qkv_attention_gradients gradients = QKV_ATTENTION_GRADIENTS_INIT;
        const qkv_tensor q = qkv_tensor_contiguous(numbers, QKV_F32, 1, 1, 1, 2);
        CHECK_ERROR(qkv_attention_backward(&q, &q, &q, &q, &saved, &gradients, NULL, NULL), QKV_INVALID_ARGUMENT,
                    "saved.struct_size is");
        saved.struct_size = sizeof(saved);
        saved.lse = saved.out = &q;
        gradients.struct_size = sizes[i];
        CHECK_ERROR(qkv_attention_backward(&q, &q, &q, &q, &saved, &gradients, NULL, NULL), QKV_INVALID_ARGUMENT,
                    "gradients.struct_size is");
        qkv_runtime_options runtime_options = QKV_RUNTIME_OPTIONS_INIT;
        runtime_options.struct_size = sizes[i];
        qkv_runtime* runtime = NULL;
        CHECK_ERROR(qkv_runtime_create(&runtime_options, &runtime), QKV_INVALID_ARGUMENT, "options.struct_size is");
        qkv_block_list blocks = QKV_BLOCK_LIST_INIT;
        blocks.struct_size = sizes[i];
        qkv_mask* mask = NULL;
        CHECK_OK(qkv_mask_create(&mask));
        CHECK_ERROR(qkv_mask_add_blocks(mask, &blocks), QKV_INVALID_ARGUMENT, "blocks.struct_size is");
        qkv_mask_destroy(mask);
    }
}

void test_structs(void) {
    test_shorter();
    test_longer();
    test_absurd();
}
