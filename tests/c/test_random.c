/* The numbers of torch.manual_seed(123): torch.rand(2), torch.randn(2), and a generator's copy. */
#include "check.h"

void test_random(void) {
    qkv_generator *generator = NULL, *copy = NULL;
    CHECK_OK(qkv_generator_create(123, &generator));
    float values[4] = {0, 0, 0, 0};
    CHECK_OK(qkv_generator_uniform(generator, QKV_F32, values, 2, 0, 1));
    CHECK_NEAR(values[0], 0.2961, 5e-5);
    CHECK_NEAR(values[1], 0.5166, 5e-5);
    CHECK_OK(qkv_generator_seed(generator, 123));
    CHECK_OK(qkv_generator_normal(generator, QKV_F32, values, 2, 0, 1));
    CHECK_NEAR(values[0], -0.1115, 5e-5);
    CHECK_NEAR(values[1], 0.1204, 5e-5);

    CHECK_OK(qkv_generator_copy(generator, &copy));
    uint64_t a = 0, b = 1;
    CHECK_OK(qkv_generator_random64(generator, &a));
    CHECK_OK(qkv_generator_random64(copy, &b));
    CHECK(a == b);
    double ones[3] = {0, 0, 0};
    CHECK_OK(qkv_generator_bernoulli(generator, QKV_F64, ones, 3, 1));
    CHECK(ones[0] == 1 && ones[2] == 1);
    CHECK_OK(qkv_generator_uniform(generator, QKV_F32, NULL, 0, 0, 1));

    CHECK_ERROR(qkv_generator_create(1, NULL), QKV_INVALID_ARGUMENT, "generator is NULL");
    CHECK_ERROR(qkv_generator_copy(NULL, &copy), QKV_INVALID_ARGUMENT, "generator is NULL");
    CHECK_ERROR(qkv_generator_copy(generator, NULL), QKV_INVALID_ARGUMENT, "copy is NULL");
    CHECK_ERROR(qkv_generator_seed(NULL, 1), QKV_INVALID_ARGUMENT, "generator is NULL");
    CHECK_ERROR(qkv_generator_random64(NULL, &a), QKV_INVALID_ARGUMENT, "generator is NULL");
    CHECK_ERROR(qkv_generator_random64(generator, NULL), QKV_INVALID_ARGUMENT, "bits is NULL");
    CHECK_ERROR(qkv_generator_uniform(NULL, QKV_F32, values, 2, 0, 1), QKV_INVALID_ARGUMENT, "generator is NULL");
    CHECK_ERROR(qkv_generator_uniform(generator, QKV_F32, NULL, 2, 0, 1), QKV_INVALID_ARGUMENT, "values is NULL");
    CHECK_ERROR(qkv_generator_uniform(generator, QKV_F32, values, -1, 0, 1), QKV_INVALID_ARGUMENT, "count is -1");
    CHECK_ERROR(qkv_generator_uniform(generator, QKV_F32, values, 2, 1, 0), QKV_INVALID_ARGUMENT, "uniform_");
    CHECK_ERROR(qkv_generator_uniform(generator, QKV_F32, (char*)values + 1, 2, 0, 1), QKV_INVALID_ARGUMENT,
                "values is not aligned");
    CHECK_ERROR(qkv_generator_normal(generator, QKV_BF16, values, 2, 0, 1), QKV_UNSUPPORTED, "dtype is 1");
    CHECK_ERROR(qkv_generator_bernoulli(generator, 77, values, 2, 0.5), QKV_UNSUPPORTED, "dtype is 77");
    CHECK_ERROR(qkv_generator_bernoulli(generator, QKV_F32, values, 2, 1.5), QKV_INVALID_ARGUMENT, "probability");
    qkv_generator_destroy(copy);
    qkv_generator_destroy(generator);
    qkv_generator_destroy(NULL);
}
