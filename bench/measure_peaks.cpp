// What this machine can do at best, measured now: multiply-adds of float32 in registers, products of bf16 in tiles or
// pairs where there are such, and bytes read from memory. One JSON object on standard output.
//
//     measure_peaks THREADS
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

/// The best of some rounds in which all threads run `work` (which returns how much it did) at once: amount per second.
double best_rate(int threads, const std::function<double(int)>& work) {
    constexpr int kRounds = 7;
    double best = 0.0;
    for (int round = 0; round < kRounds; ++round) {
        std::atomic<int> ready{0};
        std::vector<double> amounts(static_cast<std::size_t>(threads));
        std::vector<std::thread> crew;
        std::atomic<bool> go{false};
        for (int t = 0; t < threads; ++t) {
            crew.emplace_back([&, t] {
                ++ready;
                while (!go) {
                }
                amounts[static_cast<std::size_t>(t)] = work(t);
            });
        }
        while (ready < threads) {
        }
        const auto start = Clock::now();
        go = true;
        for (std::thread& thread : crew) {
            thread.join();
        }
        const double seconds = seconds_since(start);
        double total = 0.0;
        for (const double amount : amounts) {
            total += amount;
        }
        best = std::max(best, total / seconds);
    }
    return best;
}

/// Makes the compiler believe that `value` is used.
template <class T>
void keep(const T& value) {
    asm volatile("" : : "r,m"(value) : "memory");
}

#if defined(__x86_64__)

// Twelve chains: a multiply-add takes four cycles and two can start in each.
constexpr int kChains = 12;
constexpr std::int64_t kFmaSteps = 8'000'000;

__attribute__((target("avx512f"))) double fma_avx512(int /*thread*/) {
    __m512 sums[kChains];
    std::fill(std::begin(sums), std::end(sums), _mm512_set1_ps(0.0F));
    const __m512 a = _mm512_set1_ps(0.5F);
    const __m512 b = _mm512_set1_ps(0.25F);
    for (std::int64_t step = 0; step < kFmaSteps; ++step) {
        for (__m512& sum : sums) {
            sum = _mm512_fmadd_ps(a, sum, b);
        }
    }
    float out[16];
    for (const __m512& sum : sums) {
        _mm512_storeu_ps(out, sum);
        keep(out[0]);
    }
    return static_cast<double>(kFmaSteps) * kChains * 16 * 2;
}

__attribute__((target("avx512f,avx512bf16"))) double bf16_pairs(int /*thread*/) {
    __m512 sums[kChains];
    std::fill(std::begin(sums), std::end(sums), _mm512_set1_ps(0.0F));
    auto a = reinterpret_cast<__m512bh>(_mm512_set1_epi16(0x3F80));
    auto b = reinterpret_cast<__m512bh>(_mm512_set1_epi16(0x3F00));
    for (std::int64_t step = 0; step < kFmaSteps; ++step) {
        for (__m512& sum : sums) {
            sum = _mm512_dpbf16_ps(sum, a, b);
        }
    }
    float out[16];
    for (const __m512& sum : sums) {
        _mm512_storeu_ps(out, sum);
        keep(out[0]);
    }
    return static_cast<double>(kFmaSteps) * kChains * 32 * 2;
}

__attribute__((target("avx2,fma"))) double fma_avx2(int /*thread*/) {
    __m256 sums[kChains];
    std::fill(std::begin(sums), std::end(sums), _mm256_set1_ps(0.0F));
    const __m256 a = _mm256_set1_ps(0.5F);
    const __m256 b = _mm256_set1_ps(0.25F);
    for (std::int64_t step = 0; step < kFmaSteps; ++step) {
        for (__m256& sum : sums) {
            sum = _mm256_fmadd_ps(a, sum, b);
        }
    }
    float out[8];
    for (const __m256& sum : sums) {
        _mm256_storeu_ps(out, sum);
        keep(out[0]);
    }
    return static_cast<double>(kFmaSteps) * kChains * 8 * 2;
}

bool amx_allowed() {
    // Linux hands out the tile state on request: ARCH_REQ_XCOMP_PERM (0x1023) for XFEATURE_XTILEDATA (18).
    unsigned a = 7;
    unsigned b = 0;
    unsigned c = 0;
    unsigned d = 0;
    asm volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    constexpr unsigned kBf16 = 1U << 22U;
    constexpr unsigned kTile = 1U << 24U;
    return (d & kBf16) != 0 && (d & kTile) != 0 && syscall(SYS_arch_prctl, 0x1023, 18) == 0;
}

struct alignas(64) TileConfig {
    std::uint8_t palette = 1;
    std::uint8_t start_row = 0;
    std::uint8_t reserved[14] = {};
    std::uint16_t columns[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

__attribute__((target("amx-tile,amx-bf16"))) double amx_bf16(int /*thread*/) {
    static constexpr TileConfig config;  // in memory as it stands: GCC 12 takes only its first 8 bytes for read
    alignas(64) std::uint16_t zeros[512] = {};
    _tile_loadconfig(&config);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_loadd(4, zeros, 64);
    _tile_loadd(5, zeros, 64);
    _tile_loadd(6, zeros, 64);
    _tile_loadd(7, zeros, 64);
    constexpr std::int64_t kSteps = 2'000'000;
    for (std::int64_t step = 0; step < kSteps; ++step) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_release();
    return static_cast<double>(kSteps) * 4 * 16 * 16 * 32 * 2;
}

#endif

double read_rate(int threads) {
    // Past any cache: 256 MiB for each thread.
    constexpr std::size_t kNumbers = std::size_t{256} << 17U;
    std::vector<std::vector<std::uint64_t>> memory(static_cast<std::size_t>(threads),
                                                   std::vector<std::uint64_t>(kNumbers, 1));
    return best_rate(threads, [&](int thread) {
        const std::uint64_t* at = memory[static_cast<std::size_t>(thread)].data();
        std::uint64_t sums[16] = {};
        for (std::size_t i = 0; i < kNumbers; i += 16) {
            for (std::size_t lane = 0; lane < 16; ++lane) {
                sums[lane] += at[i + lane];
            }
        }
        keep(sums[0] + sums[15]);
        return static_cast<double>(kNumbers * sizeof(std::uint64_t));
    });
}

}  // namespace

int main(int argc, char** argv) {
    const int threads = argc == 2 ? std::atoi(argv[1]) : 0;
    if (threads < 1 || threads > 4096) {
        std::fprintf(stderr, "usage: measure_peaks THREADS\n");
        return 2;
    }
    double fma = 0.0;
    double bf16 = 0.0;
    const char* set = "none";
    const char* bf16_set = "none";
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f")) {
        set = "AVX-512";
        fma = best_rate(threads, fma_avx512);
    } else if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        set = "AVX2";
        fma = best_rate(threads, fma_avx2);
    }
    if (amx_allowed()) {
        bf16_set = "AMX";
        bf16 = best_rate(threads, amx_bf16);
    } else if (__builtin_cpu_supports("avx512bf16")) {
        bf16_set = "AVX512-BF16";
        bf16 = best_rate(threads, bf16_pairs);
    }
#endif
    std::printf(
        R"({"threads": %d, "fma_set": "%s", "fma_gflops": %.1f, "bf16_set": "%s", "bf16_gflops": %.1f, "read_gb_per_s": %.2f})"
        "\n",
        threads, set, fma / 1e9, bf16_set, bf16 / 1e9, read_rate(threads) / 1e9);
    return 0;
}
