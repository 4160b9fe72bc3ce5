#include "attention/validate.hpp"

#include <cmath>
#include <limits>

#include "attention/cache_batch.hpp"
#include "attention/mask_ranges.hpp"
#include "attention/validate_mask.hpp"
#include "attention/validate_views.hpp"

namespace qkv::detail {

namespace {

constexpr const char* kScoreShape = "[B, Hq, Tq, Tk]";

/// The type of statistics and per-head numbers: that of computation.
void check_compute_type(const Problem& problem, const ConstTensorView& view, const char* name) {
    check_dtype(view, name, {problem.compute});
}

/// Results are of the inputs' type, or f32.
void check_result(const Problem& problem, const ConstTensorView& view, const char* name, const char* letters,
                  const Shape4& shape) {
    check_view(view, name);
    check_shape(view, name, letters, shape);
    problem.compute == DType::f64 ? check_dtype(view, name, {DType::f64})
                                  : check_dtype(view, name, {problem.q.dtype, DType::f32});
    check_unit_stride(view, name);
}

void check_statistic(const Problem& problem, const ConstTensorView& view, const char* name) {
    check_view(view, name);
    check_shape(view, name, "[B, Hq, Tq, 1]", {problem.batch, problem.heads, problem.queries, 1});
    check_compute_type(problem, view, name);
}

void check_record(const Problem& problem, const std::optional<TensorView>& view, const char* name) {
    if (view) {
        check_view(*view, name);
        check_shape(*view, name, kScoreShape, {problem.batch, problem.heads, problem.queries, problem.keys});
        check_dtype(*view, name, {DType::f32, DType::bf16, DType::f16, DType::f64});
    }
}

/// Repeated dimensions (stride 0) make sizes that no memory backs. Scratch memory holds at most a number of 8 bytes for
/// each element of q, for each of at most 2^12 threads: up to here that is counted in 64 bits.
void check_count(std::int64_t count, const char* name, const char* what) {
    constexpr std::int64_t kMost = std::int64_t{1} << 46U;
    if (count > kMost) {
        fail(ErrorCode::out_of_range, name, " has ", count, " ", what, "; expected at most 2^46");
    }
}

void take_queries(Problem& problem, const ConstTensorView& q) {
    check_view(q, "q");
    check_dtype(q, "q", {DType::f32, DType::bf16, DType::f16, DType::f64});
    check_unit_stride(q, "q");
    problem.q = q;
    problem.batch = q.size(0);
    problem.heads = q.size(1);
    problem.queries = q.size(2);
    problem.head_dim = q.size(3);
    problem.compute = q.dtype == DType::f64 ? DType::f64 : DType::f32;
    const std::int64_t rows =
        checked_multiply(checked_multiply(problem.batch, problem.heads, "q: rows"), problem.queries, "q: rows");
    check_count(checked_multiply(rows, std::max<std::int64_t>(problem.head_dim, 1), "q: elements"), "q", "elements");
    check_count(problem.queries, "q", "queries");
}

/// Query heads share the key/value heads evenly.
void take_groups(Problem& problem, std::int64_t kv_heads, const char* owner) {
    const bool divides = kv_heads == 0 ? problem.heads == 0 : problem.heads % kv_heads == 0;
    if (!divides) {
        fail(ErrorCode::shape_mismatch, "q has ", problem.heads, " heads and ", owner, " has ", kv_heads,
             "; expected the heads of q to be a multiple of those of ", owner);
    }
    problem.kv_heads = kv_heads;
    problem.group = kv_heads == 0 ? 1 : problem.heads / kv_heads;
}

void take_tensors(Problem& problem, const ConstTensorView& k, const ConstTensorView& v) {
    check_view(k, "k");
    check_view(v, "v");
    check_dtype(k, "k", {problem.q.dtype});
    check_dtype(v, "v", {problem.q.dtype});
    check_unit_stride(k, "k");
    check_unit_stride(v, "v");
    problem.k = k;
    problem.v = v;
    problem.keys = k.size(2);
    problem.value_dim = v.size(3);
    check_count(problem.keys, "k", "keys");
    check_shape(k, "k", "[B, Hkv, Tk, D]", {problem.batch, k.size(1), k.size(2), problem.head_dim});
    check_shape(v, "v", "[B, Hkv, Tk, Dv]", {problem.batch, k.size(1), k.size(2), v.size(3)});
    take_groups(problem, k.size(1), "k");
    constexpr std::int64_t kWidest = 1 << 16;
    if (problem.head_dim > kWidest || problem.value_dim > kWidest) {
        fail(ErrorCode::unsupported, "head_dim is ", problem.head_dim, " (q) and ", problem.value_dim,
             " (v); expected at most ", kWidest);
    }
}

void take_cache(Problem& problem, const KvStorage& cache, const CacheBatch& batch) {
    const KvLayout& layout = cache.layout();
    const ConstTensorView& q = problem.q;
    check_shape(q, "q", "[B, Hq, Tq, D]", {q.size(0), q.size(1), q.size(2), layout.head_dim});
    take_groups(problem, layout.kv_heads, "the cache");
    check_batch(cache, batch, q, "q");
    problem.cache = &cache;
    problem.cache_sequences = batch.sequences;
    problem.blocks = cache.blocks();
    problem.value_dim = *layout.value_dim;
    problem.sequences = static_cast<std::int64_t>(batch.sequences.size());
    for (std::int64_t index = 0; index < problem.sequences; ++index) {
        problem.keys = std::max(problem.keys, sequence_keys(problem, index));
    }
}

/// What a cache decides itself, or what has no meaning when nothing is trained.
void refuse_with_cache(const AttentionOptions& options) {
    const auto refuse = [](bool given, const char* what) {
        if (given) {
            fail(ErrorCode::unsupported, what, " is given; expected none with a cache");
        }
    };
    refuse(options.mask.packed_queries || options.mask.packed_keys, "Mask::packed");
    refuse(options.dropout.p != 0.0 || options.dropout.keep, "dropout");
    const Offsets& offsets = options.offsets;
    refuse(offsets.query != 0 || offsets.key != 0 || offsets.queries != 0 || offsets.keys != 0,
           "an offset of queries or keys");
}

/// The mask of a call over a cache: the caller's, the batch's cut of packed queries, and the window of a ring.
Mask cache_mask(const KvStorage& cache, const CacheBatch& batch, const Mask& given) {
    Mask mask = given;
    if (!batch.cumulative_tokens.empty()) {
        mask.packed_queries = batch.cumulative_tokens;
    }
    const std::optional<std::int64_t> window = cache.policy().window;
    return window ? mask & Mask::window(*window - 1, std::nullopt, Align::top_left) : mask;
}

void check_ring(const Problem& problem) {
    for (std::int64_t index = 0; index < problem.sequences; ++index) {
        const Sequence sequence = sequence_of(problem, index);
        const std::int64_t first = problem.cache->find(problem.cache_sequences[static_cast<std::size_t>(index)])->first;
        const KeyRange needed = needed_keys(sequence, 0, sequence.queries);
        if (needed.begin < first && needed.begin < needed.end) {
            fail(ErrorCode::out_of_range, "q: its ", sequence.queries, " queries of sequence ", index,
                 " see positions from ", needed.begin, " on, and the ring holds them from ", first,
                 " on; expected at most max_append queries, or a narrower mask");
        }
    }
}

void take_offsets(Problem& problem, const Offsets& offsets) {
    const auto check = [](std::int64_t value, const char* name) {
        if (value < 0 || value >= Mask::unbounded / 4) {
            fail(ErrorCode::out_of_range, "offsets.", name, " is ", value, "; expected 0 to ", Mask::unbounded / 4 - 1);
        }
    };
    check(offsets.query, "query");
    check(offsets.key, "key");
    check(offsets.head, "head");
    check(offsets.queries, "queries");
    check(offsets.keys, "keys");
    problem.offsets = offsets;
}

void take_scores(Problem& problem, const AttentionOptions& options) {
    // D = 0: every product is the empty sum, and all keys weigh the same whatever the scale.
    problem.scale =
        options.scale.value_or(problem.head_dim == 0 ? 1.0 : 1.0 / std::sqrt(static_cast<double>(problem.head_dim)));
    const double largest =
        problem.compute == DType::f64 ? std::numeric_limits<double>::max() : std::numeric_limits<float>::max();
    if (!(std::fabs(problem.scale) <= largest)) {
        fail(ErrorCode::invalid_argument, "scale is ", problem.scale, "; expected a finite number of at most ",
             largest);
    }
    problem.softcap = options.softcap;
    // 1 / softcap is computed too.
    const bool capped = options.softcap >= 4.0 / largest && options.softcap <= largest;
    if (options.softcap != 0.0 && !capped) {
        fail(ErrorCode::invalid_argument, "softcap is ", options.softcap, "; expected 0 (off) or ", 4.0 / largest,
             " to ", largest);
    }
    if (options.sinks) {
        check_view(*options.sinks, "sinks");
        check_compute_type(problem, *options.sinks, "sinks");
        check_shape(*options.sinks, "sinks", "[1, Hq, 1, 1]", {1, problem.heads, 1, 1});
        problem.sinks = options.sinks;
    }
    problem.score_function = options.score_function;
}

void take_dropout(Problem& problem, const Dropout& dropout) {
    if (!(dropout.p >= 0.0 && dropout.p <= 1.0)) {
        fail(ErrorCode::invalid_argument, "dropout.p is ", dropout.p, "; expected 0 to 1");
    }
    problem.dropout = dropout.p > 0.0 || dropout.keep.has_value();
    problem.keep_scale = dropout.p == 1.0 ? 0.0 : 1.0 / (1.0 - dropout.p);
    problem.drop_below = static_cast<std::uint64_t>(std::llround(dropout.p * 4294967296.0));
    problem.dropout_seed = dropout.seed;
    problem.sequence_ids = dropout.sequence_ids;
    if (dropout.keep) {
        check_view(*dropout.keep, "dropout.keep");
        check_dtype(*dropout.keep, "dropout.keep", {DType::boolean});
        problem.keep = broadcast(*dropout.keep, "dropout.keep", kScoreShape,
                                 {problem.batch, problem.heads, problem.queries, problem.keys});
        return;
    }
    if (!problem.dropout) {
        return;
    }
    constexpr std::int64_t kPlaces = std::int64_t{1} << 32;
    const auto check = [](std::int64_t places, const char* name) {
        if (places < 0 || places > kPlaces) {
            fail(ErrorCode::out_of_range, "dropout: ", name, " reach ", places, "; expected at most 2^32");
        }
    };
    check(problem.offsets.query + problem.queries, "queries");
    check(problem.offsets.key + problem.keys, "keys");
    check(problem.offsets.head + problem.heads, "heads");
    check(problem.sequences, "sequences");
    if (!dropout.sequence_ids.empty() && static_cast<std::int64_t>(dropout.sequence_ids.size()) != problem.sequences) {
        fail(ErrorCode::shape_mismatch, "dropout.sequence_ids has ", dropout.sequence_ids.size(), " ids; expected ",
             problem.sequences, ", one per sequence");
    }
    for (const std::int64_t id : dropout.sequence_ids) {
        if (id < 0 || id >= kPlaces) {
            fail(ErrorCode::out_of_range, "dropout.sequence_ids holds ", id, "; expected 0 to 2^32 - 1");
        }
    }
}

/// Scores of masked keys need the keys.
void check_all_held(const Problem& problem) {
    for (const SequenceId id : problem.cache_sequences) {
        if (problem.cache->find(id)->first > 0) {
            fail(ErrorCode::unsupported,
                 "scores_at shows masked keys too, and a ring has let go of some; expected masked or weights");
        }
    }
}

}  // namespace

Problem validate_problem(const ConstTensorView& q, const ConstTensorView& k, const ConstTensorView& v,
                         const AttentionOptions& options) {
    Problem problem;
    take_queries(problem, q);
    take_tensors(problem, k, v);
    take_offsets(problem, options.offsets);
    take_mask(problem, options.mask);
    take_scores(problem, options);
    take_dropout(problem, options.dropout);
    return problem;
}

Problem validate_cache_problem(const ConstTensorView& q, const KvStorage& cache, const CacheBatch& batch,
                               const AttentionOptions& options) {
    Problem problem;
    take_queries(problem, q);
    take_cache(problem, cache, batch);
    refuse_with_cache(options);
    take_offsets(problem, options.offsets);
    take_mask(problem, cache_mask(cache, batch, options.mask));
    take_scores(problem, options);
    check_ring(problem);
    return problem;
}

void validate_outputs(const Problem& problem, const TensorView& out, const AttentionExtras& extras) {
    check_result(problem, out, "out", "[B, Hq, Tq, Dv]",
                 {problem.batch, problem.heads, problem.queries, problem.value_dim});
    if (extras.lse) {
        check_statistic(problem, *extras.lse, "lse");
    }
    check_record(problem, extras.weights, "weights");
    check_record(problem, extras.scores, "scores");
    if (extras.scores && (extras.scores_at == ScorePoint::scaled || extras.scores_at == ScorePoint::capped)) {
        check_all_held(problem);
    }
    const NamedView outputs[] = {named("out", out), named("lse", extras.lse), named("weights", extras.weights),
                                 named("scores", extras.scores), named_bytes("workspace", extras.workspace)};
    const NamedView inputs[] = {named("q", problem.q),
                                named("k", problem.k),
                                named("v", problem.v),
                                named("allowed", problem.mask.allowed_view),
                                named("bias", problem.mask.bias_view),
                                named("alibi", problem.mask.alibi_slopes),
                                named("sinks", problem.sinks),
                                named("dropout.keep", problem.keep)};
    check_overlap(outputs, inputs);
}

void validate_gradients(const Problem& problem, const ConstTensorView& d_out, const AttentionSaved& saved,
                        const AttentionGradients& gradients) {
    const Shape4 out_shape{problem.batch, problem.heads, problem.queries, problem.value_dim};
    check_result(problem, d_out, "d_out", "[B, Hq, Tq, Dv]", out_shape);
    check_statistic(problem, saved.lse, "saved.lse");
    if (saved.out) {
        check_result(problem, *saved.out, "saved.out", "[B, Hq, Tq, Dv]", out_shape);
    }
    if (saved.delta) {
        check_statistic(problem, *saved.delta, "saved.delta");
    }
    if (!saved.out && !saved.delta) {
        fail(ErrorCode::invalid_argument, "saved has neither out nor delta; expected one of them");
    }
    if (problem.score_function.apply != nullptr && problem.score_function.gradient == nullptr) {
        fail(ErrorCode::invalid_argument, "score_function has no gradient; attention_backward needs it");
    }
    if (gradients.dq) {
        check_result(problem, *gradients.dq, "dq", "the shape of q", problem.q.shape);
    }
    if (gradients.dk) {
        check_result(problem, *gradients.dk, "dk", "the shape of k", problem.k.shape);
    }
    if (gradients.dv) {
        check_result(problem, *gradients.dv, "dv", "the shape of v", problem.v.shape);
    }
    check_mask_gradients(problem, gradients);
    if (gradients.dsinks) {
        if (!problem.sinks) {
            fail(ErrorCode::invalid_argument, "dsinks is asked for without sinks in the options");
        }
        check_view(*gradients.dsinks, "dsinks");
        check_shape(*gradients.dsinks, "dsinks", "[1, Hq, 1, 1]", problem.sinks->shape);
        check_compute_type(problem, *gradients.dsinks, "dsinks");
    }
    const NamedView outputs[] = {named("dq", gradients.dq),
                                 named("dk", gradients.dk),
                                 named("dv", gradients.dv),
                                 named("dbias", gradients.dbias),
                                 named("dsinks", gradients.dsinks),
                                 named("dalibi", gradients.dalibi),
                                 named_bytes("workspace", gradients.workspace)};
    const NamedView inputs[] = {named("q", problem.q),
                                named("k", problem.k),
                                named("v", problem.v),
                                named("d_out", d_out),
                                named("saved.lse", saved.lse),
                                named("saved.out", saved.out),
                                named("saved.delta", saved.delta),
                                named("allowed", problem.mask.allowed_view),
                                named("bias", problem.mask.bias_view),
                                named("alibi", problem.mask.alibi_slopes),
                                named("sinks", problem.sinks),
                                named("dropout.keep", problem.keep)};
    check_overlap(outputs, inputs);
}

}  // namespace qkv::detail
