/* The same problem in other memory, with the caller's workspace, and on other runtimes: the same bits. */
#include <stdlib.h>

#include "problem.h"

static int32_t backwards(void* user, int64_t tasks, qkv_task task, void* context) {
    *(int64_t*)user += tasks;
    for (int64_t i = tasks; i-- > 0;) {
        task(context, i);
    }
    return 0;
}
static int32_t give_up(void* user, int64_t tasks, qkv_task task, void* context) {
    (void)user, (void)tasks, (void)task, (void)context;
    return 3;
}
static int32_t leave_one_out(void* user, int64_t tasks, qkv_task task, void* context) {
    (void)user;
    for (int64_t i = 1; i < tasks; ++i) {
        task(context, i);
    }
    return 0;
}
static int32_t run_one_twice(void* user, int64_t tasks, qkv_task task, void* context) {
    (void)user;
    task(context, 0);
    for (int64_t i = 0; i + 1 < tasks; ++i) {
        task(context, i);
    }
    return 0;
}
static int32_t go_too_far(void* user, int64_t tasks, qkv_task task, void* context) {
    (void)user;
    for (int64_t i = -1; i <= tasks; ++i) {
        task(context, i);
    }
    return 0;
}

static qkv_runtime* runtime_with(int64_t threads, qkv_parallel_for parallel_for, void* user) {
    qkv_runtime_options options = QKV_RUNTIME_OPTIONS_INIT;
    options.threads = threads;
    options.parallel_for = parallel_for;
    options.parallel_for_user = user;
    qkv_runtime* runtime = NULL;
    CHECK_OK(qkv_runtime_create(&options, &runtime));
    CHECK(qkv_runtime_threads(runtime) == threads);
    return runtime;
}

static void test_runtimes(const big_problem* expected) {
    int64_t tasks = 0;
    qkv_runtime* runtimes[] = {runtime_with(1, NULL, NULL), runtime_with(3, NULL, NULL),
                               runtime_with(4, backwards, &tasks)};
    for (size_t i = 0; i < 3; ++i) {
        big_problem p;
        big_problem_create(&p, 0);
        big_problem_run(&p, runtimes[i]);
        CHECK(big_problem_same(&p, expected));
        big_problem_destroy(&p);
        qkv_runtime_destroy(runtimes[i]);
    }
    CHECK(tasks > 1);
    CHECK(qkv_runtime_threads(NULL) == 1);
    qkv_runtime_destroy(NULL);

    const struct {
        qkv_parallel_for parallel_for;
        const char* words;
    } bad[] = {{give_up, "parallel_for returned 3"},
               {leave_one_out, "parallel_for ran "},
               {go_too_far, "do not exist"},
               {run_one_twice, "some twice"}};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; ++i) {
        qkv_runtime* runtime = runtime_with(4, bad[i].parallel_for, NULL);
        big_problem p;
        big_problem_create(&p, 0);
        CHECK_ERROR(qkv_attention(&p.tq, &p.tk, &p.tv, &p.tout, NULL, NULL, runtime), QKV_INVALID_ARGUMENT,
                    bad[i].words);
        big_problem_destroy(&p);
        qkv_runtime_destroy(runtime);
    }
}

static void test_workspace(void) {
    big_problem p;
    big_problem_create(&p, 0);
    qkv_attention_extras extras = QKV_ATTENTION_EXTRAS_INIT;
    extras.lse = &p.tlse;
    size_t size = 0;
    CHECK_OK(qkv_attention_workspace_size(&p.tq, &p.tk, &p.tv, &p.tout, NULL, &extras, NULL, &size));
    CHECK(size > 0);
    CHECK_OK(qkv_attention(&p.tq, &p.tk, &p.tv, &p.tout, NULL, &extras, NULL));
    const float before = p.out[17];
    extras.workspace = malloc(size);
    extras.workspace_size = size;
    p.out[17] = NAN;
    CHECK_OK(qkv_attention(&p.tq, &p.tk, &p.tv, &p.tout, NULL, &extras, NULL));
    CHECK(p.out[17] == before);
    extras.workspace_size = size - 1;
    CHECK_ERROR(qkv_attention(&p.tq, &p.tk, &p.tv, &p.tout, NULL, &extras, NULL), QKV_INVALID_ARGUMENT, "workspace");
    free(extras.workspace);

    qkv_attention_saved saved = QKV_ATTENTION_SAVED_INIT;
    saved.lse = &p.tlse;
    saved.out = &p.tout;
    qkv_attention_gradients gradients = QKV_ATTENTION_GRADIENTS_INIT;
    gradients.dq = &p.tdq;
    size = 0;
    CHECK_OK(
        qkv_attention_backward_workspace_size(&p.tq, &p.tk, &p.tv, &p.td_out, &saved, &gradients, NULL, NULL, &size));
    gradients.workspace = malloc(size);
    gradients.workspace_size = size;
    CHECK_OK(qkv_attention_backward(&p.tq, &p.tk, &p.tv, &p.td_out, &saved, &gradients, NULL, NULL));
    gradients.workspace_size = size - 1;
    CHECK_ERROR(qkv_attention_backward(&p.tq, &p.tk, &p.tv, &p.td_out, &saved, &gradients, NULL, NULL),
                QKV_INVALID_ARGUMENT, "workspace");
    free(gradients.workspace);
    big_problem_destroy(&p);
}

void test_layouts(void) {
    big_problem heads_first, tokens_first;
    big_problem_create(&heads_first, 0);
    big_problem_create(&tokens_first, 1);
    big_problem_run(&heads_first, NULL);
    big_problem_run(&tokens_first, NULL);
    CHECK(big_problem_same(&heads_first, &tokens_first));
    test_runtimes(&heads_first);
    big_problem_destroy(&heads_first);
    big_problem_destroy(&tokens_first);
    test_workspace();
}
