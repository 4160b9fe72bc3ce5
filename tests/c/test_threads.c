/* Many threads at once, sharing a runtime and a mask; each keeps its own last error. */
#include <pthread.h>
#include <stdlib.h>

#include "problem.h"

enum { THREADS = 8, ROUNDS = 20 };

typedef struct {
    const qkv_runtime* runtime;
    const qkv_mask* mask;
    int number;
    int wrong;
} worker;

/* CHECK is not for threads: the worker counts. */
static void* work(void* argument) {
    worker* self = argument;
    float q[8] = {1, 2, 3, 4, 5, 6, 7, 8}, out[8], expected[8];
    qkv_tensor tq = qkv_tensor_contiguous(q, QKV_F32, 1, 1, 4, 2);
    const qkv_tensor tout = qkv_tensor_contiguous(out, QKV_F32, 1, 1, 4, 2);
    const qkv_tensor texpected = qkv_tensor_contiguous(expected, QKV_F32, 1, 1, 4, 2);
    qkv_attention_options options = QKV_ATTENTION_OPTIONS_INIT;
    options.mask = self->mask;
    self->wrong += qkv_last_error()[0] != '\0';
    self->wrong += qkv_attention(&tq, &tq, &tq, &texpected, &options, NULL, NULL) != QKV_OK;
    char words[32];
    snprintf(words, sizeof(words), "softcap is -%d;", self->number + 1);
    for (int round = 0; round < ROUNDS; ++round) {
        options.softcap = -1 - self->number;
        self->wrong += qkv_attention(&tq, &tq, &tq, &tout, &options, NULL, self->runtime) != QKV_INVALID_ARGUMENT;
        options.softcap = 0;
        self->wrong += qkv_attention(&tq, &tq, &tq, &tout, &options, NULL, self->runtime) != QKV_OK;
        self->wrong += memcmp(out, expected, sizeof(out)) != 0;
        self->wrong += strstr(qkv_last_error(), words) == NULL; /* a call that succeeds leaves it */
    }
    return NULL;
}

void test_threads(void) {
    qkv_runtime_options options = QKV_RUNTIME_OPTIONS_INIT;
    options.threads = 3;
    qkv_runtime* runtime = NULL;
    CHECK_OK(qkv_runtime_create(&options, &runtime));
    qkv_mask* mask = NULL;
    CHECK_OK(qkv_mask_create(&mask));
    CHECK_OK(qkv_mask_add_causal(mask, QKV_TOP_LEFT));
    pthread_t threads[THREADS];
    worker workers[THREADS];
    for (int i = 0; i < THREADS; ++i) {
        workers[i] = (worker){.runtime = runtime, .mask = mask, .number = i, .wrong = 0};
        CHECK(pthread_create(&threads[i], NULL, work, &workers[i]) == 0);
    }
    for (int i = 0; i < THREADS; ++i) {
        CHECK(pthread_join(threads[i], NULL) == 0);
        CHECK(workers[i].wrong == 0);
    }
    qkv_mask_destroy(mask);
    qkv_runtime_destroy(runtime);
}
