// Attention from its definition, dense and slow: what the library is checked against. Shares no code with it.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

namespace oracle {

/// One problem, everything spelled out for every (b, h, i, j). All arrays are dense and row-major.
struct Problem {
    std::int64_t batch = 1, heads = 1, kv_heads = 1, queries = 1, keys = 1, head_dim = 1, value_dim = 1;
    std::vector<double> q, k, v, d_out;  // [B, H, T, D]
    double scale = 1.0;
    double softcap = 0.0;
    std::vector<char> allowed;     // [B, Hq, Tq, Tk]
    std::vector<double> bias;      // [B, Hq, Tq, Tk], or empty
    std::vector<double> slopes;    // [B, Hq], or empty
    std::vector<double> distance;  // [B, Tq, Tk]
    std::vector<double> sinks;     // [Hq], or empty
    std::vector<double> factors;   // [B, Hq, Tq, Tk], dropout's: 0 or 1 / (1 − p); or empty
    double score_rounding = 1.0;   // a rounding of scores, in units of the roundings of storage
    /// Score function and its derivative, by dense index; empty: none.
    std::function<double(double score, std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j)> function;
    std::function<double(double score, std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j)> derivative;

    [[nodiscard]] std::int64_t score_index(std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) const {
        return ((b * heads + h) * queries + i) * keys + j;
    }
};

struct Result {
    std::vector<double> out, lse, lse_with_sink;          // [B, Hq, Tq, Dv], [B, Hq, Tq]
    std::vector<double> scaled, capped, masked, weights;  // [B, Hq, Tq, Tk]
    std::vector<double> dq, dk, dv;
    std::vector<double> dbias;    // [B, Hq, Tq, Tk], not yet reduced
    std::vector<double> dsinks;   // [Hq]
    std::vector<double> dslopes;  // [B, Hq], not yet reduced
    // What each result would be if nothing cancelled: the sums of the sizes of their terms, delta = Σ dO · O taken
    // apart too, and each weight as large as a rounding of its score and of lse makes it uncertain. Rounding is
    // relative to these.
    std::vector<double> out_size, lse_size, scores_size, weights_size;
    std::vector<double> dq_size, dk_size, dv_size, dbias_size, dsinks_size, dslopes_size;
};

/// In which arithmetic: `exact` is the reference (long double: also above float64 inputs); the others are the plain
/// computation in the precision under test, every intermediate tensor rounded to the storage type.
enum class Arithmetic { exact, f64, f32, bf16, f16 };

[[nodiscard]] Result run(const Problem& problem, Arithmetic arithmetic);

/// Rounds to the nearest value of a storage type, ties to even, by arithmetic on doubles.
[[nodiscard]] double round_to(double value, Arithmetic arithmetic);

/// Philox4x32-10 as its paper words it; word `which` of counter and key.
[[nodiscard]] std::uint32_t philox(const std::uint32_t (&counter)[4], std::uint64_t key, int which);

}  // namespace oracle
