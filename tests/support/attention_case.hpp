// Random attention problems with all features crossed: once dense for the oracle, once as views and options for the
// library. What each mask means is written here from its definition.
#pragma once

#include <deque>
#include <string>

#include "qkv/attention.hpp"
#include "support/oracle.hpp"
#include "support/stored.hpp"

namespace support {

/// The arithmetic that the library's error with inputs of `dtype` may be twice of.
[[nodiscard]] oracle::Arithmetic arithmetic(qkv::DType dtype);

struct AttentionCase {
    explicit AttentionCase(std::uint64_t seed);

    std::uint64_t seed;
    std::string summary;  // features, for messages
    qkv::DType dtype = qkv::DType::f32;
    qkv::DType compute = qkv::DType::f32;
    oracle::Problem dense;
    qkv::AttentionOptions options;
    std::int64_t threads = 1;

    Stored q, k, v, d_out;
    std::optional<Stored> bias, slopes, sinks;
    qkv::Shape4 bias_shape{}, slopes_shape{};

    /// The reference in the arithmetic that the library's error may be twice of.
    [[nodiscard]] oracle::Arithmetic plain() const { return arithmetic(dtype); }

    /// Memory for a result, in a layout of its own.
    [[nodiscard]] Stored result(const qkv::Shape4& shape, qkv::DType type) {
        return allocate(shape, type, pick_layout(random_), pick_side(random_));
    }

    AttentionCase(const AttentionCase&) = delete;
    AttentionCase& operator=(const AttentionCase&) = delete;
    AttentionCase(AttentionCase&&) = delete;
    AttentionCase& operator=(AttentionCase&&) = delete;
    ~AttentionCase() = default;

private:
    struct Segment {
        std::int64_t index, batch, query_start, queries, key_start, keys, id;
    };
    void make_shapes();
    void make_scores();
    void make_offsets();
    void make_bands();
    void make_limits();
    void make_views();
    void make_blocks();
    void make_dropout();
    void make_function();
    void make_tensors();
    void poison_unused();
    /// Takes away what `keep(segment, h, i, j)` (indices within the segment) denies.
    template <class Keep>
    void restrict(Keep keep);
    [[nodiscard]] std::int64_t corner(const Segment& segment) const;
    void note(const std::string& feature) { summary += " " + feature; }

    Random random_;
    bool packed_ = false;
    std::vector<Segment> segments_;
    std::vector<std::int64_t> cumulative_queries_, cumulative_keys_, key_begin_, key_end_, starts_, key_blocks_, ids_;
    std::deque<Stored> views_;
};

}  // namespace support
