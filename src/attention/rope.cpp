#include "qkv/rope.hpp"

#include <algorithm>
#include <utility>

#include "attention/rope_frequencies.hpp"
#include "attention/rope_rows.hpp"
#include "attention/validate_views.hpp"
#include "core/convert.hpp"
#include "core/float_environment.hpp"

namespace qkv {

namespace {

/// A task's tokens: so many that handing it out costs nothing beside them.
constexpr std::int64_t kTokensPerTask = 64;

std::int64_t checked_rotary_dim(std::int64_t rotary_dim, std::int64_t head_dim) {
    if (rotary_dim < 2 || rotary_dim % 2 != 0 || rotary_dim > head_dim) {
        fail(ErrorCode::invalid_argument, "rope rotary_dim is ", rotary_dim, " and head_dim ", head_dim,
             "; expected an even number of columns, from 2 to head_dim");
    }
    return rotary_dim;
}

/// One call, all of it checked.
struct Job {
    const Rope& rope;
    ConstTensorView x;
    TensorView out;
    bool back;
    const RopePositions& positions;
    std::vector<std::vector<double>> frequencies;  ///< of each sequence, or one for all

    [[nodiscard]] std::int64_t position(std::int64_t sequence, std::int64_t token) const {
        return positions.each.empty() ? positions.start + token
                                      : positions.each[static_cast<std::size_t>(sequence * x.size(2) + token)];
    }
};

/// Tokens in the order token, sequence: in a batch whose sequences start alike, angles are found once for all of them.
template <class T>
void turn_tokens(const Job& job, std::int64_t begin, std::int64_t end) {
    const auto& [batch, heads, tokens, head_dim] = job.x.shape;
    detail::RopeRows<T> rows(job.rope, job.back);
    std::vector<T> row(static_cast<std::size_t>(head_dim));
    for (std::int64_t n = begin; n < end; ++n) {
        const std::int64_t token = n / batch;
        const std::int64_t sequence = n % batch;
        rows.move_to(job.position(sequence, token),
                     job.frequencies[job.frequencies.size() > 1 ? static_cast<std::size_t>(sequence) : 0]);
        for (std::int64_t head = 0; head < heads; ++head) {
            detail::load(row.data(), job.x.at(sequence, head, token, 0), job.x.dtype, job.x.strides[3], head_dim);
            rows.turn(row.data());
            detail::store(job.out.at(sequence, head, token, 0), job.out.dtype, job.out.strides[3], row.data(),
                          head_dim);
        }
    }
}

}  // namespace

Rope::Rope(const RopeOptions& options, std::int64_t head_dim)
    : options_(options),
      head_dim_(head_dim),
      rotary_dim_(checked_rotary_dim(options.rotary_dim == 0 ? head_dim : options.rotary_dim, head_dim)) {
    detail::check_rope_options(options_, rotary_dim_);
    attention_factor_ = detail::rope_attention_factor(options_.scaling);
}

Rope Rope::from_tables(ConstTensorView cos, ConstTensorView sin, std::int64_t head_dim, RopePairing pairing) {
    for (const auto& [table, name] : {std::pair{cos, "cos"}, std::pair{sin, "sin"}}) {
        detail::check_view(table, name);
        detail::check_dtype(table, name, {DType::f32, DType::bf16, DType::f16, DType::f64});
        detail::check_shape(table, name, "[1, 1, positions, R/2]", {1, 1, cos.size(2), cos.size(3)});
    }
    Rope rope;
    rope.options_.pairing = pairing;
    rope.head_dim_ = head_dim;
    rope.rotary_dim_ = checked_rotary_dim(checked_multiply(2, cos.size(3), "cos"), head_dim);
    rope.cos_ = cos;
    rope.sin_ = sin;
    return rope;
}

std::vector<double> Rope::frequencies(std::int64_t length) const {
    return cos_ ? std::vector<double>{} : detail::rope_frequencies(options_, rotary_dim_, length);
}

bool Rope::steady_up_to(std::int64_t length) const noexcept {
    const auto* dynamic = std::get_if<RopeDynamicNtk>(&options_.scaling);
    return dynamic == nullptr || length <= dynamic->original_context;
}

void Rope::check_views(const ConstTensorView& x, const char* x_name, const TensorView& out,
                       const char* out_name) const {
    const auto check = [](const ConstTensorView& view, const char* name, const Shape4& shape) {
        detail::check_view(view, name);
        detail::check_dtype(view, name, {DType::f32, DType::bf16, DType::f16, DType::f64});
        detail::check_shape(view, name, "[B, H, T, D]", shape);
    };
    check(x, x_name, {x.size(0), x.size(1), x.size(2), head_dim_});
    check(out, out_name, x.shape);
    const bool in_place = out.data == x.data && out.dtype == x.dtype && out.strides == x.strides;
    const detail::NamedView output = detail::named(out_name, out);
    const detail::NamedView input = detail::named(x_name, in_place ? ConstTensorView{} : x);
    detail::check_overlap({&output, 1}, {&input, 1});
}

void Rope::check_positions(const RopePositions& positions, std::int64_t batch, std::int64_t tokens) const {
    const std::int64_t end = this->positions();
    const std::string expected =
        cos_ ? concat("; the table has rows for ", end, " positions") : concat("; expected 0 to ", end - 1);
    if (positions.length < 0 || positions.length > kComputedPositions) {
        fail(ErrorCode::out_of_range, "positions.length is ", positions.length, "; expected 0 to ", kComputedPositions);
    }
    if (positions.each.empty()) {
        if (positions.start < 0 || positions.start > end || tokens > end - positions.start) {
            fail(ErrorCode::out_of_range, "positions.start is ", positions.start, " for ", tokens, " tokens", expected);
        }
        return;
    }
    if (static_cast<std::int64_t>(positions.each.size()) != checked_multiply(batch, tokens, "positions.each")) {
        fail(ErrorCode::shape_mismatch, "positions.each has ", positions.each.size(), " entries; expected ",
             batch * tokens, ", one per token of the batch");
    }
    for (std::size_t i = 0; i < positions.each.size(); ++i) {
        if (positions.each[i] < 0 || positions.each[i] >= end) {
            fail(ErrorCode::out_of_range, "positions.each[", i, "] is ", positions.each[i], expected);
        }
    }
}

void Rope::turn(const ConstTensorView& x, const TensorView& out, bool back, const RopePositions& positions,
                const Runtime& runtime) const {
    const std::int64_t batch = x.size(0);
    const std::int64_t tokens = x.size(2);
    check_positions(positions, batch, tokens);
    if (x.empty()) {
        return;
    }
    Job job{.rope = *this, .x = x, .out = out, .back = back, .positions = positions, .frequencies = {}};
    const bool by_sequence =
        std::holds_alternative<RopeDynamicNtk>(options_.scaling) && positions.length == 0 && !positions.each.empty();
    for (std::int64_t sequence = 0; sequence < (by_sequence ? batch : 1); ++sequence) {
        std::int64_t length = positions.length == 0 ? positions.start + tokens : positions.length;
        if (by_sequence) {
            const auto own =
                positions.each.subspan(static_cast<std::size_t>(sequence * tokens), static_cast<std::size_t>(tokens));
            length = *std::ranges::max_element(own) + 1;
        }
        job.frequencies.push_back(frequencies(length));
    }
    const std::int64_t count = batch * tokens;
    runtime.parallel_for((count + kTokensPerTask - 1) / kTokensPerTask, [&](std::int64_t task) {
        const FloatEnvironment environment;
        const std::int64_t begin = task * kTokensPerTask;
        const std::int64_t end = std::min(begin + kTokensPerTask, count);
        x.dtype == DType::f64 ? turn_tokens<double>(job, begin, end) : turn_tokens<float>(job, begin, end);
    });
}

void Rope::apply(ConstTensorView x, TensorView out, const RopePositions& positions, const Runtime& runtime) const {
    check_views(x, "x", out, "out");
    turn(x, out, false, positions, runtime);
}

void Rope::apply_backward(ConstTensorView d_out, TensorView d_x, const RopePositions& positions,
                          const Runtime& runtime) const {
    check_views(d_out, "d_out", d_x, "d_x");
    turn(d_out, d_x, true, positions, runtime);
}

}  // namespace qkv
