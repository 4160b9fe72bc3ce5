// Times attention, for work on the kernels: one JSON line a case.
//
//     bench_attention [--threads N] [--seconds S] [--filter TEXT] [--clock wall|processor]
//     bench_attention --memory TOKENS [--threads N]       what calls of so many tokens need beside their arguments
//
// "gflops" counts the two products of forward and the five of forward's and backward's minimum; of a causal call, half.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <random>
#include <string>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "qkv/attention.hpp"
#include "qkv/instruction_set.hpp"

namespace {

using qkv::view;

struct Case {
    const char* name;
    std::int64_t batch, heads, kv_heads, queries, keys, head_dim, value_dim;
    bool causal;
};

constexpr Case kCases[] = {
    {"B8-H12-T128-D64", 8, 12, 12, 128, 128, 64, 64, false},
    {"B1-H12-T1024-D64-causal", 1, 12, 12, 1024, 1024, 64, 64, true},
    {"B1-H32/8-T2048-D128-causal", 1, 32, 8, 2048, 2048, 128, 128, true},
    {"B1-H4-T8192-D64-causal", 1, 4, 4, 8192, 8192, 64, 64, true},
    {"B1-H8-T4096-D64", 1, 8, 8, 4096, 4096, 64, 64, false},
    {"B1-H1-T6-D2", 1, 1, 1, 6, 6, 2, 2, false},
    {"B1-H9/3-Tk4096-D64-decode", 1, 9, 3, 1, 4096, 64, 64, false},
};

/// Of all threads together on request, which a busy machine disturbs less; else on the wall.
bool processor_time = false;

double now() {
    if (processor_time) {
        return static_cast<double>(std::clock()) / CLOCKS_PER_SEC;
    }
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// The median of as many runs as fit into `budget`, at least three; a run is as many calls as take a millisecond.
double seconds_of(const std::function<void()>& work, double budget) {
    const auto time = [&](int calls) {
        const double start = now();
        for (int call = 0; call < calls; ++call) {
            work();
        }
        return now() - start;
    };
    int calls = 1;
    while (time(calls) < 1e-3) {
        calls *= 2;
    }
    std::vector<double> times;
    for (double spent = 0; spent < budget || times.size() < 3; spent += times.back()) {
        times.push_back(time(calls));
    }
    std::ranges::nth_element(times, times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2));
    return times[times.size() / 2] / calls;
}

template <class T>
std::vector<T> normals(std::int64_t count) {
    std::mt19937_64 random(static_cast<std::uint64_t>(count));
    std::normal_distribution<float> normal;
    std::vector<T> values;
    values.reserve(static_cast<std::size_t>(count));
    for (std::int64_t i = 0; i < count; ++i) {
        values.push_back(static_cast<T>(normal(random)));
    }
    return values;
}

void print(const Case& c, const char* dtype, const char* pass, const qkv::Runtime& runtime, double seconds,
           double products) {
    const double pairs = static_cast<double>(c.batch * c.heads) * static_cast<double>(c.queries) *
                         static_cast<double>(c.keys) * (c.causal ? 0.5 : 1.0);
    const double operations = products * pairs * static_cast<double>(c.head_dim + c.value_dim);
    std::printf(
        "{\"case\": \"%s\", \"dtype\": \"%s\", \"pass\": \"%s\", \"contender\": \"qkv\", \"isa\": \"%s\", "
        "\"threads\": %d, \"seconds\": %.3e, \"gflops\": %.1f}\n",
        c.name, dtype, pass, qkv::name(runtime.instruction_set()), static_cast<int>(runtime.threads()), seconds,
        operations / seconds * 1e-9);
    std::fflush(stdout);
}

template <class T>
void run(const Case& c, const char* dtype, const qkv::Runtime& runtime, double budget, bool backward) {
    const auto q = normals<T>(c.batch * c.heads * c.queries * c.head_dim);
    const auto k = normals<T>(c.batch * c.kv_heads * c.keys * c.head_dim);
    const auto v = normals<T>(c.batch * c.kv_heads * c.keys * c.value_dim);
    const auto q_view = view(q.data(), {c.batch, c.heads, c.queries, c.head_dim});
    const auto k_view = view(k.data(), {c.batch, c.kv_heads, c.keys, c.head_dim});
    const auto v_view = view(v.data(), {c.batch, c.kv_heads, c.keys, c.value_dim});
    std::vector<T> out(static_cast<std::size_t>(c.batch * c.heads * c.queries * c.value_dim));
    std::vector<float> lse(static_cast<std::size_t>(c.batch * c.heads * c.queries));
    const auto out_view = view(out.data(), {c.batch, c.heads, c.queries, c.value_dim});
    qkv::AttentionOptions options;
    if (c.causal) {
        options.mask = qkv::Mask::causal(qkv::Align::top_left);
    }
    qkv::AttentionExtras extras;
    extras.lse = qkv::per_row(lse.data(), c.batch, c.heads, c.queries);
    std::vector<std::byte> workspace(
        qkv::attention_workspace_size(q_view, k_view, v_view, out_view, options, extras, runtime));
    extras.workspace = workspace;
    const auto forward = [&] { qkv::attention(q_view, k_view, v_view, out_view, options, extras, runtime); };
    if (!backward) {
        print(c, dtype, "forward", runtime, seconds_of(forward, budget), 2.0);
        return;
    }
    const auto d_out = normals<T>(static_cast<std::int64_t>(out.size()));
    std::vector<T> dq(q.size()), dk(k.size()), dv(v.size());
    const qkv::AttentionSaved saved{.lse = *extras.lse, .lse_counts_sinks = true, .out = out_view, .delta = {}};
    qkv::AttentionGradients gradients;
    gradients.dq = view(dq.data(), q_view.shape);
    gradients.dk = view(dk.data(), k_view.shape);
    gradients.dv = view(dv.data(), v_view.shape);
    const auto d_out_view = view(d_out.data(), out_view.shape);
    std::vector<std::byte> backward_workspace(
        qkv::attention_backward_workspace_size(q_view, k_view, v_view, d_out_view, saved, gradients, options, runtime));
    gradients.workspace = backward_workspace;
    const double seconds = seconds_of(
        [&] {
            forward();
            qkv::attention_backward(q_view, k_view, v_view, d_out_view, saved, gradients, options, runtime);
        },
        budget);
    print(c, dtype, "forward+backward", runtime, seconds, 7.0);
}

/// The workspaces of a causal call, forward and backward. Nothing is computed: the addresses hold no memory.
template <class T>
void print_memory(const char* dtype, std::int64_t heads, std::int64_t tokens, std::int64_t head_dim,
                  const qkv::Runtime& runtime) {
    std::uintptr_t next = std::uintptr_t{1} << 40U;
    const auto place = [&next] {
        next += std::uintptr_t{1} << 40U;
        return next;
    };
    const auto tensor = [&] { return view(reinterpret_cast<T*>(place()), {1, heads, tokens, head_dim}); };
    const auto q = tensor(), k = tensor(), v = tensor(), out = tensor(), d_out = tensor();
    qkv::AttentionOptions options;
    options.mask = qkv::Mask::causal(qkv::Align::top_left);
    qkv::AttentionExtras extras;
    extras.lse = qkv::per_row(reinterpret_cast<float*>(place()), 1, heads, tokens);
    const qkv::AttentionSaved saved{.lse = *extras.lse, .lse_counts_sinks = true, .out = out, .delta = {}};
    qkv::AttentionGradients gradients;
    gradients.dq = tensor();
    gradients.dk = tensor();
    gradients.dv = tensor();
    const auto mebibytes = [](std::size_t bytes) { return static_cast<double>(bytes) / 1048576.0; };
    std::printf(
        "{\"heads\": %d, \"tokens\": %lld, \"head_dim\": %d, \"dtype\": \"%s\", \"isa\": \"%s\", \"threads\": %d, "
        "\"forward_mib\": %.2f, \"backward_mib\": %.2f}\n",
        static_cast<int>(heads), static_cast<long long>(tokens), static_cast<int>(head_dim), dtype,
        qkv::name(runtime.instruction_set()), static_cast<int>(runtime.threads()),
        mebibytes(qkv::attention_workspace_size(q, k, v, out, options, extras, runtime)),
        mebibytes(qkv::attention_backward_workspace_size(q, k, v, d_out, saved, gradients, options, runtime)));
}

#if defined(__x86_64__)
/// Twelve chains of multiply-adds that touch no memory: what one core can do.
__attribute__((target("avx512f"))) float chains(std::int64_t rounds) {
    const __m512 factor = _mm512_set1_ps(0.999F);
    __m512 sums[12];
    for (__m512& sum : sums) {
        sum = factor;
    }
    for (std::int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
        for (__m512& sum : sums) {
            sum = _mm512_fmadd_ps(sum, factor, factor);
        }
    }
    float lanes[16];
    for (int chain = 1; chain < 12; ++chain) {
        sums[0] = _mm512_add_ps(sums[0], sums[chain]);
    }
    _mm512_storeu_ps(lanes, sums[0]);
    return lanes[0];
}

double peak_gflops(double budget) {
    constexpr std::int64_t kRounds = 100000;
    volatile float keep = 0;
    const double seconds = seconds_of([&] { keep = chains(kRounds); }, budget);
    return kRounds * 12 * 32 / seconds * 1e-9;
}
#endif

}  // namespace

int main(int argc, char** argv) {
    std::int64_t threads = 1;
    double budget = 0.3;
    std::string filter;
    std::int64_t memory_tokens = 0;
    for (int at = 1; at + 1 < argc; at += 2) {
        if (std::strcmp(argv[at], "--threads") == 0) {
            threads = std::atoi(argv[at + 1]);
        } else if (std::strcmp(argv[at], "--memory") == 0) {
            memory_tokens = std::atoll(argv[at + 1]);
        } else if (std::strcmp(argv[at], "--seconds") == 0) {
            budget = std::atof(argv[at + 1]);
        } else if (std::strcmp(argv[at], "--clock") == 0) {
            processor_time = std::strcmp(argv[at + 1], "processor") == 0;
        } else {
            filter = argv[at + 1];
        }
    }
    const qkv::Runtime runtime(threads);
    if (memory_tokens > 0) {
        for (const std::int64_t heads : {1, 8}) {
            for (const std::int64_t head_dim : {64, 128}) {
                print_memory<float>("f32", heads, memory_tokens, head_dim, runtime);
                print_memory<qkv::BFloat16>("bf16", heads, memory_tokens, head_dim, runtime);
            }
        }
        return 0;
    }
#if defined(__x86_64__)
    if (qkv::Runtime(1).instruction_set() >= qkv::InstructionSet::avx512) {
        std::printf("{\"case\": \"FMA peak of one thread\", \"gflops\": %.1f}\n", peak_gflops(budget));
    }
#endif
    for (const Case& c : kCases) {
        for (const char* dtype : {"f32", "bf16", "f16"}) {
            for (const bool backward : {false, true}) {
                const std::string name =
                    std::string(c.name) + ' ' + dtype + (backward ? " forward+backward." : " forward.");
                if (name.find(filter) == std::string::npos || (backward && c.queries == 1)) {
                    continue;
                }
                if (std::strcmp(dtype, "f32") == 0) {
                    run<float>(c, dtype, runtime, budget, backward);
                } else if (std::strcmp(dtype, "bf16") == 0) {
                    run<qkv::BFloat16>(c, dtype, runtime, budget, backward);
                } else {
                    run<qkv::Float16>(c, dtype, runtime, budget, backward);
                }
            }
        }
    }
}
