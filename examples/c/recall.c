// A cache as a memory, from C: each token's key is a number as a unit vector, its value the number's square.
//
// Prints:
//   7 squared: 49
//   12 squared: 144, and 28.5 where it was never learnt: the mean of all
//   2 sequences, 2 of 4 blocks in use
//   tokens is 99; expected 0 to 10, the size of the sequence
#include <qkv/qkv.h>
#include <stdio.h>
#include <stdlib.h>

enum { D = 16 };

/* Every call that can fail gives a status; what went wrong is in qkv_last_error(). */
static void check(qkv_status status) {
    if (status != QKV_OK) {
        fprintf(stderr, "%s: %s\n", qkv_status_name(status), qkv_last_error());
        exit(1);
    }
}

static qkv_cache_batch only(const int64_t* sequence) {
    qkv_cache_batch batch = QKV_CACHE_BATCH_INIT;
    batch.sequences = sequence;
    batch.sequences_count = 1;
    return batch;
}

/* One token: a batch of 1, 1 head. */
static void learn(qkv_cache* cache, int64_t sequence, int number) {
    float key[D] = {0}, value[1] = {(float)(number * number)};
    key[number] = 1;
    const qkv_tensor k = qkv_tensor_contiguous(key, QKV_F32, 1, 1, 1, D);
    const qkv_tensor v = qkv_tensor_contiguous(value, QKV_F32, 1, 1, 1, 1);
    const qkv_cache_batch batch = only(&sequence);
    check(qkv_cache_append(cache, &batch, &k, &v, NULL));
}

static float recall(const qkv_cache* cache, int64_t sequence, int number) {
    float query[D] = {0}, context[1];
    query[number] = 1;
    const qkv_tensor q = qkv_tensor_contiguous(query, QKV_F32, 1, 1, 1, D);
    const qkv_tensor out = qkv_tensor_contiguous(context, QKV_F32, 1, 1, 1, 1);
    const double scale = 50; /* the number's own key outweighs the others by e^50 */
    qkv_attention_options options = QKV_ATTENTION_OPTIONS_INIT;
    options.scale = &scale;
    const qkv_cache_batch batch = only(&sequence);
    check(qkv_cache_attention(&q, cache, &batch, &out, &options, NULL, NULL));
    return context[0];
}

int main(void) {
    qkv_cache_layout layout = QKV_CACHE_LAYOUT_INIT;
    layout.head_dim = D;
    layout.value_dim = 1;
    qkv_cache_paged options = QKV_CACHE_PAGED_INIT;
    options.blocks = 4;
    options.block_tokens = 16;
    qkv_cache* cache = NULL;
    check(qkv_cache_create_paged(&layout, &options, &cache));

    int64_t first = 0, second = 0;
    check(qkv_cache_add(cache, &first));
    for (int number = 0; number < 10; ++number) {
        learn(cache, first, number);
    }
    printf("7 squared: %g\n", recall(cache, first, 7));

    /* A second sequence goes on from the first one's tokens. */
    check(qkv_cache_fork(cache, first, QKV_UNLIMITED, &second));
    learn(cache, second, 12);
    printf("12 squared: %g, and %g where it was never learnt: the mean of all\n", recall(cache, second, 12),
           recall(cache, first, 12));

    qkv_cache_info info = QKV_CACHE_INFO_INIT;
    check(qkv_cache_get_info(cache, &info));
    printf("%d sequences, %d of %d blocks in use\n", (int)info.sequences, (int)(info.blocks - info.free_blocks),
           (int)info.blocks);

    if (qkv_cache_truncate(cache, first, 99) != QKV_OK) {
        printf("%s\n", qkv_last_error());
    }
    qkv_cache_destroy(cache);
    return 0;
}
