// The products of a linear layer, timed: x Wᵀ (forward), d_y W and d_yᵀ x (backward), for x [m, k] and W [n, k]. One
// JSON object a line on standard output. `./dev bench --multiply` runs it beside torch.
//
//     bench_multiply M K N [--threads N] [--seconds S] [--clock wall|processor]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <random>
#include <string>
#include <vector>

#include "nn/matrix_product.hpp"
#include "qkv/tensor.hpp"

namespace {

using qkv::nn::multiply;
using qkv::nn::Product;
using qkv::nn::row_major;

/// Of all threads together on request, which a busy machine disturbs less; else on the wall.
bool processor_time = false;

double now() {
    if (processor_time) {
        return static_cast<double>(std::clock()) / CLOCKS_PER_SEC;
    }
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

qkv::Tensor normals(std::int64_t count) {
    std::mt19937_64 random(static_cast<std::uint64_t>(count));
    std::normal_distribution<float> normal;
    qkv::Tensor values({count});
    std::ranges::generate(values.values(), [&] { return normal(random); });
    return values;
}

/// The median of as many runs as fit into `budget`, at least three; a run is as many products as take a millisecond.
double seconds_of(const Product<float>& product, const qkv::Runtime& runtime, double budget) {
    const auto time = [&](int calls) {
        const double start = now();
        for (int call = 0; call < calls; ++call) {
            multiply(product, runtime);
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

int usage() {
    std::fprintf(stderr, "usage: bench_multiply M K N [--threads N] [--seconds S] [--clock wall|processor]\n");
    return 2;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 4 || argc % 2 != 0) {
        return usage();
    }
    const std::int64_t m = std::atoll(argv[1]);
    const std::int64_t k = std::atoll(argv[2]);
    const std::int64_t n = std::atoll(argv[3]);
    std::int64_t threads = 1;
    double budget = 0.3;
    for (int at = 4; at + 1 < argc; at += 2) {
        if (std::strcmp(argv[at], "--threads") == 0) {
            threads = std::atoll(argv[at + 1]);
        } else if (std::strcmp(argv[at], "--seconds") == 0) {
            budget = std::atof(argv[at + 1]);
        } else if (std::strcmp(argv[at], "--clock") == 0) {
            processor_time = std::strcmp(argv[at + 1], "processor") == 0;
        } else {
            return usage();
        }
    }
    constexpr std::int64_t kMost = 1 << 20;
    if (std::min({m, k, n, threads}) < 1 || std::max({m, k, n}) > kMost || threads > 4096) {
        return usage();
    }
    const qkv::Runtime runtime(threads);
    // Tensors, as layers have them: large ones lie in large pages.
    const qkv::Tensor x = normals(m * k);
    const qkv::Tensor w = normals(n * k);
    const qkv::Tensor d_y = normals(m * n);
    qkv::Tensor out({std::max({m * n, m * k, n * k})});
    const auto x_rows = row_major(x.data(), k);
    const auto w_rows = row_major(w.data(), k);
    const auto d_rows = row_major(d_y.data(), n);
    const struct {
        const char* name;
        Product<float> product;
    } products[] = {
        {"x W^T", {.m = m, .n = n, .k = k, .a = x_rows, .b = w_rows.transposed(), .c = out.data()}},
        {"d_y W", {.m = m, .n = k, .k = n, .a = d_rows, .b = w_rows, .c = out.data()}},
        {"d_y^T x", {.m = n, .n = k, .k = m, .a = d_rows.transposed(), .b = x_rows, .c = out.data()}},
    };
    for (const auto& [name, product] : products) {
        const double seconds = seconds_of(product, runtime, budget);
        const double operations = 2.0 * static_cast<double>(m) * static_cast<double>(k) * static_cast<double>(n);
        std::printf(
            R"({"product": "%s", "m": %lld, "k": %lld, "n": %lld, "isa": "%s", "threads": %lld, "seconds": %.3e, )"
            R"("gflops": %.1f})"
            "\n",
            name, static_cast<long long>(m), static_cast<long long>(k), static_cast<long long>(n),
            qkv::name(runtime.instruction_set()), static_cast<long long>(threads), seconds,
            operations / seconds * 1e-9);
    }
    return 0;
}
