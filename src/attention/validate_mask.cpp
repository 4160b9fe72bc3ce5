#include "attention/validate_mask.hpp"

#include <algorithm>

#include "attention/validate_views.hpp"

namespace qkv::detail {

namespace {

using Numbers = std::span<const std::int64_t>;

void take_sequences(Problem& problem) {
    if (problem.cache != nullptr) {
        return;  // counted with its batch
    }
    problem.sequences = problem.batch;
    if (!problem.packed()) {
        return;
    }
    if (problem.batch != 1) {
        fail(ErrorCode::shape_mismatch, "q has shape ", to_string(problem.q),
             "; a packed batch expects a first size of 1");
    }
    const Numbers queries = *problem.mask.packed_queries;
    const Numbers keys = *problem.mask.packed_keys;
    check_cumulative(queries, "packed cumulative_queries", problem.queries);
    check_cumulative(keys, "packed cumulative_keys", problem.keys);
    if (queries.size() != keys.size()) {
        fail(ErrorCode::shape_mismatch, "packed has ", queries.size(), " cumulative_queries and ", keys.size(),
             " cumulative_keys; expected as many of each");
    }
    problem.sequences = static_cast<std::int64_t>(queries.size()) - 1;
}

/// One number per sequence, each a place among the sequence's keys, counted globally.
void check_key_limits(const Problem& problem, const std::optional<Numbers>& limits, const char* name) {
    if (!limits) {
        return;
    }
    if (static_cast<std::int64_t>(limits->size()) != problem.sequences) {
        fail(ErrorCode::shape_mismatch, name, " has ", limits->size(), " numbers; expected ", problem.sequences,
             ", one per sequence");
    }
    for (std::size_t i = 0; i < limits->size(); ++i) {
        const std::int64_t keys = sequence_keys(problem, static_cast<std::int64_t>(i));
        const std::int64_t most = std::max(problem.offsets.keys, problem.offsets.key + keys);
        if ((*limits)[i] < 0 || (*limits)[i] > most) {
            fail(ErrorCode::out_of_range, name, " of sequence ", i, " is ", (*limits)[i], "; expected 0 to ", most);
        }
    }
}

/// Key blocks of every list rise and lie within the keys.
void check_lists(const BlockList& blocks, std::int64_t key_blocks) {
    for (std::size_t list = 0; list + 1 < blocks.starts.size(); ++list) {
        const std::int64_t begin = blocks.starts[list];
        const std::int64_t end = blocks.starts[list + 1];
        std::int64_t last = -1;
        for (std::int64_t i = begin; i < end; ++i) {
            const std::int64_t block = blocks.key_blocks[static_cast<std::size_t>(i)];
            if (block <= last || block >= key_blocks) {
                fail(ErrorCode::invalid_argument, "blocks: list ", list, " holds ", block, " after ", last,
                     "; expected rising numbers below ", key_blocks);
            }
            last = block;
        }
    }
}

void check_blocks(const Problem& problem, const BlockList& blocks) {
    if (blocks.query_block < 1 || blocks.key_block < 1) {
        fail(ErrorCode::invalid_argument, "blocks of ", blocks.query_block, " queries and ", blocks.key_block,
             " keys; expected at least 1 of each");
    }
    const auto check_count = [](std::int64_t count, std::int64_t all, const char* name) {
        if (count != 1 && count != all) {
            fail(ErrorCode::shape_mismatch, "blocks.", name, " is ", count, "; expected 1 or ", all);
        }
    };
    check_count(blocks.sequences, problem.sequences, "sequences");
    check_count(blocks.heads, problem.heads, "heads");
    std::int64_t queries = problem.packed() ? 0 : problem.queries;
    std::int64_t keys = problem.packed() ? 0 : problem.keys;
    for (std::int64_t index = 0; problem.packed() && index < problem.sequences; ++index) {
        queries = std::max(queries, sequence_queries(problem, index));
        keys = std::max(keys, sequence_keys(problem, index));
    }
    const std::int64_t lists =
        checked_multiply(checked_multiply(blocks.sequences, blocks.heads, "blocks"),
                         queries / blocks.query_block + (queries % blocks.query_block != 0 ? 1 : 0), "blocks");
    if (static_cast<std::int64_t>(blocks.starts.size()) != lists + 1) {
        fail(ErrorCode::shape_mismatch, "blocks.starts has ", blocks.starts.size(), " numbers; expected ", lists + 1,
             " (sequences × heads × query blocks, and one)");
    }
    check_cumulative(blocks.starts, "blocks.starts", static_cast<std::int64_t>(blocks.key_blocks.size()));
    check_lists(blocks, keys / blocks.key_block + (keys % blocks.key_block != 0 ? 1 : 0));
}

}  // namespace

void take_mask(Problem& problem, const Mask& mask) {
    problem.mask = mask;
    if (problem.cache == nullptr && mask.packed_queries.has_value() != mask.packed_keys.has_value()) {
        fail(ErrorCode::invalid_argument, "packed has cumulative lengths of one side only; expected both");
    }
    take_sequences(problem);
    check_key_limits(problem, mask.key_begins, "key_begin");
    check_key_limits(problem, mask.key_ends, "key_end");
    const Shape4 scores{problem.batch, problem.heads, problem.queries, problem.keys};
    const char* letters = "[B, Hq, Tq, Tk]";
    if (mask.allowed_view) {
        check_view(*mask.allowed_view, "allowed");
        check_dtype(*mask.allowed_view, "allowed", {DType::boolean});
        problem.mask.allowed_view = broadcast(*mask.allowed_view, "allowed", letters, scores);
    }
    if (mask.bias_view) {
        check_view(*mask.bias_view, "bias");
        problem.compute == DType::f64
            ? check_dtype(*mask.bias_view, "bias", {DType::f64, DType::f32, DType::bf16, DType::f16})
            : check_dtype(*mask.bias_view, "bias", {DType::f32, DType::bf16, DType::f16});
        problem.bias_shape = mask.bias_view->shape;
        problem.mask.bias_view = broadcast(*mask.bias_view, "bias", letters, scores);
    }
    if (mask.alibi_slopes) {
        check_view(*mask.alibi_slopes, "alibi");
        check_dtype(*mask.alibi_slopes, "alibi", {problem.compute});
        problem.alibi_shape = mask.alibi_slopes->shape;
        if (problem.alibi_shape[1] != problem.heads) {
            fail(ErrorCode::shape_mismatch, "alibi has shape ", to_string(*mask.alibi_slopes),
                 "; expected [1 or B, Hq, 1, 1] with Hq = ", problem.heads);
        }
        problem.mask.alibi_slopes =
            broadcast(*mask.alibi_slopes, "alibi", "[1 or B, Hq, 1, 1]", {problem.batch, problem.heads, 1, 1});
    }
    if (mask.block_list) {
        check_blocks(problem, *mask.block_list);
    }
}

void check_mask_gradients(const Problem& problem, const AttentionGradients& gradients) {
    const auto check = [](const std::optional<TensorView>& view, const char* name, bool has_input, const Shape4& shape,
                          std::initializer_list<DType> types) {
        if (!view) {
            return;
        }
        if (!has_input) {
            fail(ErrorCode::invalid_argument, name, " is asked for without its input in the mask");
        }
        check_view(*view, name);
        check_shape(*view, name, "the shape of its input", shape);
        check_dtype(*view, name, types);
    };
    const bool f64 = problem.compute == DType::f64;
    const DType bias = problem.mask.bias_view ? problem.mask.bias_view->dtype : problem.compute;
    check(gradients.dbias, "dbias", problem.mask.bias_view.has_value(), problem.bias_shape,
          {bias, f64 ? DType::f64 : DType::f32});
    check(gradients.dalibi, "dalibi", problem.mask.alibi_slopes.has_value(), problem.alibi_shape, {problem.compute});
}

}  // namespace qkv::detail
