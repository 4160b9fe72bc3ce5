/* Checks that count failures and go on. */
#ifndef QKV_TESTS_CHECK_H
#define QKV_TESTS_CHECK_H

#include <math.h>
#include <qkv/qkv.h>
#include <stdio.h>
#include <string.h>

extern int failures;

#define CHECK(condition)                                                            \
    do {                                                                            \
        if (!(condition)) {                                                         \
            ++failures;                                                             \
            fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition); \
        }                                                                           \
    } while (0)

#define CHECK_OK(call)                                                                                  \
    do {                                                                                                \
        const qkv_status status_ = (call);                                                              \
        if (status_ != QKV_OK) {                                                                        \
            ++failures;                                                                                 \
            fprintf(stderr, "%s:%d: %s: %s: %s\n", __FILE__, __LINE__, #call, qkv_status_name(status_), \
                    qkv_last_error());                                                                  \
        }                                                                                               \
    } while (0)

/* The call fails with this status, and its message says `words`. */
#define CHECK_ERROR(call, expected, words)                                                                          \
    do {                                                                                                            \
        const qkv_status status_ = (call);                                                                          \
        if (status_ != (expected) || strstr(qkv_last_error(), (words)) == NULL) {                                   \
            ++failures;                                                                                             \
            fprintf(stderr, "%s:%d: %s gave \"%s\" with \"%s\"; expected \"%s\" with \"%s\"\n", __FILE__, __LINE__, \
                    #call, qkv_status_name(status_), qkv_last_error(), qkv_status_name(expected), (words));         \
        }                                                                                                           \
    } while (0)

#define CHECK_NEAR(value, expected, tolerance)                                                                    \
    do {                                                                                                          \
        const double value_ = (double)(value), expected_ = (double)(expected);                                    \
        if (!(fabs(value_ - expected_) <= (tolerance))) {                                                         \
            ++failures;                                                                                           \
            fprintf(stderr, "%s:%d: %s is %.9g; expected %.9g\n", __FILE__, __LINE__, #value, value_, expected_); \
        }                                                                                                         \
    } while (0)

/* One file each. */
void test_numbers(void);
void test_layouts(void);
void test_errors(void);
void test_structs(void);
void test_threads(void);
void test_random(void);
void test_rope(void);
void test_cache(void);
void test_cache_errors(void);

#endif
