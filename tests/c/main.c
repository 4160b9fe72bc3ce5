/* The C interface, written from its header alone. */
#include "check.h"

int failures = 0;

int main(void) {
    CHECK(strcmp(qkv_last_error(), "") == 0);
    test_numbers();
    test_layouts();
    test_errors();
    test_structs();
    test_threads();
    test_random();
    test_rope();
    test_cache();
    test_cache_errors();
    printf("%d failures\n", failures);
    return failures == 0 ? 0 : 1;
}
