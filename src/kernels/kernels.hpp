// Verbs on blocks of numbers, one table of them per instruction set. They know nothing of tensors, threads or options.
//
// A is the type of computation: float, or double for checks. Blocks are row-major; a row's bits never depend on the
// rows around it, and every sum runs in one written order.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

#include "qkv/instruction_set.hpp"
#include "qkv/types.hpp"

namespace qkv::kernels {

/// Rows and columns of a tile of scores. Fixed numbers: a row's sums run over key tiles cut at multiples of kKeyTile.
inline constexpr std::int64_t kQueryTile = 64;
inline constexpr std::int64_t kKeyTile = 64;

inline constexpr std::int64_t kRowBlock = 16;

/// Widths of blocks in memory are multiples of this: the longest vector, in floats. What lies past a row's own width is
/// zero on entry and stays so.
inline constexpr std::int64_t kLanes = 16;

[[nodiscard]] constexpr std::int64_t padded(std::int64_t width) noexcept {
    return (width + kLanes - 1) / kLanes * kLanes;
}

/// Rows of stored numbers: row r begins at data + r · stride elements of `dtype`, its elements side by side.
struct Rows {
    const std::byte* data = nullptr;
    DType dtype = DType::f32;
    std::int64_t stride = 0;
    std::int64_t rows = 0;
};

/// The same, to be written.
struct RowsOut {
    std::byte* data = nullptr;
    DType dtype = DType::f32;
    std::int64_t stride = 0;
    std::int64_t rows = 0;
};

/// Rows as `load` leaves them.
template <class A>
[[nodiscard]] Rows loaded(const A* rows, std::int64_t count, std::int64_t width) noexcept {
    return {reinterpret_cast<const std::byte*>(rows), dtype_of<A>, padded(width), count};
}

/// Memory that will be wanted, in that order. Verbs that take their time ask for it along their steps: asked for faster
/// than it comes, lines are not brought (Zen 5) or the core waits (Golden Cove).
// NOLINTNEXTLINE(cppcoreguidelines-pro-type-member-init): pieces that nobody reads cost a small call's item 15 ns
class Ahead {
public:
    /// Lines of 64 bytes, in rows a step apart.
    struct Lines {
        const std::byte* at;
        const std::byte* row_end;
        std::int64_t row_bytes;
        std::int64_t row_step;
        std::int64_t count;
    };
    static constexpr std::int64_t kLine = 64;

    /// Lines that packing asks for at each of its steps; products ask for about as much as they read.
    std::int64_t packing_pace = 2;

    void clear() { first_ = last_ = 0; }
    [[nodiscard]] bool empty() const { return first_ == last_; }
    /// What finds no place is not asked for.
    void add(const Rows& rows, std::int64_t width) {
        if (last_ == kMost || rows.rows == 0) {
            return;
        }
        const std::int64_t bytes = width * size_of(rows.dtype);
        const std::int64_t step = rows.stride * size_of(rows.dtype);
        const bool together = step == bytes || rows.rows == 1;
        const std::int64_t row_bytes = together ? bytes * rows.rows : bytes;
        const std::int64_t count = lines_of(row_bytes) * (together ? 1 : rows.rows);
        pieces_[static_cast<std::size_t>(last_++)] = {rows.data, rows.data + row_bytes, row_bytes, step, count};
    }
    /// At most so many of the next ones.
    Lines take(std::int64_t lines) {
        if (first_ == last_) {
            return {};
        }
        Lines& piece = pieces_[static_cast<std::size_t>(first_)];
        Lines taken = piece;
        taken.count = std::min(lines, piece.count);
        piece.count -= taken.count;
        if (piece.count == 0) {
            ++first_;
            return taken;
        }
        const std::int64_t passed = (piece.at - (piece.row_end - piece.row_bytes)) / kLine + taken.count;
        piece.row_end += passed / lines_of(piece.row_bytes) * piece.row_step;
        piece.at = piece.row_end - piece.row_bytes + passed % lines_of(piece.row_bytes) * kLine;
        return taken;
    }

private:
    static constexpr int kMost = 12;

    [[nodiscard]] static std::int64_t lines_of(std::int64_t bytes) { return (bytes + kLine - 1) / kLine; }

    std::array<Lines, kMost> pieces_;  // from first_ to last_; no others are set
    int first_ = 0;
    int last_ = 0;
};

/// Columns of a tile that its rows meet: row r the first of_first_row + r of them, as under a causal diagonal.
///
///     all = 4, of_first_row = 2     1 1 0 0
///                                   1 1 1 0
///                                   1 1 1 1
///
/// Products may leave out the others: their scores are to be finished to −∞, and their weights are 0.
struct Columns {
    // NOLINTNEXTLINE(google-explicit-constructor): a number of columns is that many for each row
    constexpr Columns(std::int64_t columns = 0, std::int64_t first = kKeyTile) noexcept
        : all(columns), of_first_row(first) {}

    std::int64_t all;
    std::int64_t of_first_row;

    [[nodiscard]] constexpr bool slanted() const noexcept { return of_first_row < all; }
    [[nodiscard]] constexpr std::int64_t of_row(std::int64_t row) const noexcept {
        return std::clamp<std::int64_t>(of_first_row + row, 0, all);
    }
    /// The first row that meets the column.
    [[nodiscard]] constexpr std::int64_t first_row(std::int64_t column) const noexcept {
        return std::max<std::int64_t>(0, column + 1 - of_first_row);
    }
};

/// How a left matrix is walked: element (row, inner) at data[row · row_step + inner · inner_step].
template <class A>
struct Left {
    const A* data;
    std::int64_t row_step;
    std::int64_t inner_step;
};

/// The running softmax of a tile's rows (Milakov & Gimelshein 2018): weights are exp(score − reference), and each row
/// has kLanes interleaved sums of them.
///
/// The reference is a maximum that was: it moves only when a score exceeds it by more than kSlack, so that the context
/// is hardly ever rescaled. Until then a weight may be up to exp(kSlack), far from where floats end.
template <class A>
struct SoftmaxRows {
    static constexpr A kSlack = A(8);

    A* reference;  // (rows), −∞ before the first score
    A* sums;       // (rows, kLanes)
};

/// Makes scores of a tile's products; `number` is the tile's place in its call of `attend`.
template <class A>
struct FinishScores {
    void (*apply)(void* with, std::int64_t number, A* products);  // nullptr: they are scores
    void* with;
};

/// Rows of queries and what they gather, for `attend`.
template <class A>
struct AttendedRows {
    const A* queries;  // packed
    SoftmaxRows<A> softmax;
    A* context;  // (rows, padded(value_dim))
    FinishScores<A> finish;
    A scale;  // of the scores, taken in by the softmax
    std::int64_t rows;
    std::int64_t head_dim;
    std::int64_t value_dim;
};

/// A tile of keys and their values. Scores past its columns are to be finished to −∞.
template <class A>
struct AttendedKeys {
    // Packed, or nullptr where a few rows take them as they are stored.
    const A* keys = nullptr;
    const A* values = nullptr;
    Rows stored_keys;
    Rows stored_values;
    Columns columns;
    Ahead* ahead = nullptr;  // to be asked for meanwhile
};

/// Tiles that one call of `attend` takes.
inline constexpr std::int64_t kMostAttended = 4;

/// Where rows of dropout's draws stand: the word of Philox that belongs to row r and key k is word k mod 4 of counter
/// (k / 4, counter[0] + r, counter[1], counter[2]), so it is the same in any tiling.
template <class A>
struct DropoutRows {
    std::int64_t first_key;  // below 2³², as the counter's parts
    std::uint32_t counter[3];
    std::uint64_t seed;
    std::uint32_t drop_below;
    A keep_scale;
};

template <class A>
struct Kernels {
    /// Around all other calls, once per thread and task: what the instruction set wants set up and given back.
    void (*enter)();
    void (*leave)();

    // Rows in and out.

    /// to (rows, to_stride) ← factor · rows, zero from width up to padded(width). Whether all of them are finite.
    bool (*load)(A* to, std::int64_t to_stride, const Rows& from, std::int64_t width, A factor);
    /// Rows of `width` elements ← factor · from (rows, padded(width)) + 0: the 0 turns −0, which a product that
    /// underflowed may leave, into the 0 of a sum that skipped it. The factors of two rows are `factor_step` apart: 0
    /// for one that all share.
    void (*store)(const RowsOut& to, const A* from, std::int64_t width, const A* factors, std::int64_t factor_step);
    /// dots (rows) ← a · b for each row of two (rows, padded(width)) as `load` leaves them, summed in double: once per
    /// row that costs little, and every score gradient of the row rests on it.
    void (*dot_rows)(A* dots, const A* a, const A* b, std::int64_t rows, std::int64_t width);

    // Forward's operands in the form that its two products want, made of rows as `load` leaves them, or of stored ones
    // of which `packs` is true (kQueryTile or kKeyTile of them fit), wherever these lie. A form that is those very rows
    // needs no room: pack returns the rows themselves.

    /// Whether queries are packed with the scale, which `load` brings in; else scores come without it.
    bool scales_queries;
    /// How many A a packed tile takes.
    std::int64_t (*query_room)(std::int64_t width);
    std::int64_t (*key_room)(std::int64_t width);
    std::int64_t (*value_room)(std::int64_t width);
    bool (*packs)(const Rows& rows, std::int64_t width);
    const A* (*pack_queries)(A* room, const Rows& rows, std::int64_t width);
    /// The keys of a tile from `first` on, a multiple of kLanes: they may come in runs. The form of the tile.
    const A* (*pack_keys)(A* room, std::int64_t first, const Rows& rows, std::int64_t width, Ahead* ahead);
    const A* (*pack_values)(A* room, const Rows& rows, std::int64_t width);
    /// scores (rows, kKeyTile) ← queries · keysᵀ; rows as above. Past the columns there may be anything.
    /// `ahead`, where there is one, is asked for meanwhile.
    void (*multiply_keys)(A* scores, const A* queries, const A* keys, std::int64_t rows, Columns columns,
                          std::int64_t width, Ahead* ahead);
    /// context (rows, padded(width)) += weights, as `soften` leaves them, · values. Rows of both up to the next
    /// multiple of kRowBlock are there to be read and, of the context, written.
    void (*add_values)(A* context, const A* weights, const A* values, std::int64_t rows, Columns columns,
                       std::int64_t width);

    /// So few rows meet keys as they are stored, which are transposed in registers, for each of a few blocks of rows
    /// anew: packing writes and reads them once more. 0: they are always packed.
    std::int64_t few_key_rows;
    /// Whether those take keys from where they are stored.
    bool (*takes_stored_keys)(const Rows& keys, std::int64_t width);
    /// multiply_keys with the bits of packed ones for 1 to few_key_rows rows and the keys of a tile from `first` on, a
    /// multiple of kLanes: columns [first, first + keys.rows) of scores, and anything up to the next multiple.
    void (*multiply_stored_keys)(A* scores, const A* queries, std::int64_t first, const Rows& keys, std::int64_t rows,
                                 std::int64_t width, Ahead* ahead);

    /// So few rows pass the values once: packing them would cost more than it saves. 0: they are always packed.
    std::int64_t few_value_rows;
    /// Whether those take values from where they are stored: `rows` of a tile, up to its last or not. Those that `load`
    /// leaves they take always.
    bool (*takes_stored_values)(const Rows& values, std::int64_t width, bool last);
    /// add_values with the bits of packed ones for 1 to few_value_rows rows and the values of keys from `first` of the
    /// tile on, which is 0 but for runs of stored ones. `ahead`, where there is one, is asked for meanwhile.
    void (*add_stored_values)(A* context, const A* weights, std::int64_t first, const Rows& values, std::int64_t rows,
                              std::int64_t width, Ahead* ahead);

    /// Takes up to kMostAttended tiles of keys, in their order, into the rows' softmax and context: multiply_keys,
    /// what finishes the scores, soften and add_values for each, with those verbs' bits. `scores` is room for
    /// `attended_scores` tiles, and more at a time are not taken.
    std::int64_t attended_scores;
    void (*attend)(const AttendedRows<A>& rows, const AttendedKeys<A>* tiles, std::int64_t count, A* scores);

    // Backward's: dP is multiply_keys of dO and V, dQ add_values of dS and K; dV and dK are sums over queries.

    /// A tile (rows, kKeyTile) in the place of its numbers, in the form in which add_values meets them.
    void (*round_weights)(A* weights, std::int64_t rows);
    /// The same tile as add_over_queries meets it; the room is kQueryTile × kKeyTile A.
    const A* (*pack_weights)(A* room, const A* weights, std::int64_t rows);
    /// Rows of queries, or of dO, as add_over_queries meets them.
    std::int64_t (*query_sum_room)(std::int64_t width);
    const A* (*pack_query_sums)(A* room, const A* rows, std::int64_t count, std::int64_t width);
    /// sums += weightsᵀ (columns, rows) · packed (rows, width). How kKeyTile × padded(width) sums lie is the set's own
    /// affair; 0 is 0.
    void (*add_over_queries)(A* sums, const A* weights, const A* packed, std::int64_t rows, Columns columns,
                             std::int64_t width);
    /// Whether they lie as (padded(width), kKeyTile) and not as (kKeyTile, padded(width)).
    bool sums_transposed;
    /// They as (kKeyTile, padded(width)).
    const A* (*sums_as_rows)(A* room, const A* sums, std::int64_t width);

    // From products to scores; tiles (rows, kKeyTile).

    /// scores ← factor · scores
    void (*scale)(A* scores, std::int64_t rows, A factor);

    /// scores ← cap · tanh(scores / cap)
    void (*cap)(A* scores, std::int64_t rows, A cap);
    /// scores ← factor · scores + bias, the product rounded; −∞ where the bias is, even of NaN. kKeyTile numbers a row.
    void (*add)(A* scores, const Rows& bias, A factor);
    /// scores ← scores − slope · |distance + r − c|
    void (*slope)(A* scores, std::int64_t rows, A slope, A distance);
    /// scores ← −∞ where a row's word has bit c 0, for column c.
    void (*mask)(A* scores, const std::uint64_t* allowed, std::int64_t rows);
    /// allowed[r] loses the bits where a row's byte is 0; kKeyTile bytes a row, rows `stride` apart.
    void (*keep_true)(std::uint64_t* allowed, const std::uint8_t* bytes, std::int64_t stride, std::int64_t rows);
    /// allowed[r] loses the bits where a row's number is −∞; kKeyTile numbers a row.
    void (*keep_unmasked)(std::uint64_t* allowed, const Rows& bias);

    // Softmax; tiles (rows, kKeyTile).

    /// Takes scale · scores into the rows' softmax: weights ← exp(scale · scores − reference) · factors (nullptr: 1),
    /// the sums without them. `weights` may be `scores`; add_values knows what it holds. Where the reference moves, the
    /// row's sums and its context (rows, padded(width)) shrink with it. Past `columns` all scores of the tile are −∞,
    /// and there may be no weights.
    void (*soften)(A* weights, const A* scores, A scale, const A* factors, const SoftmaxRows<A>& softmax, A* context,
                   std::int64_t width, std::int64_t rows, std::int64_t columns);
    /// factors (rows, kKeyTile) ← keep_scale where the draw is at least drop_below, else 0, as from `columns` on.
    void (*draw_factors)(A* factors, const DropoutRows<A>& draw, std::int64_t rows, std::int64_t columns);
    /// weights ← exp(scores − base[row]), base −∞ taken for 0.
    void (*weigh)(A* weights, const A* scores, const A* base, std::int64_t rows);
    /// weights ← P ∘ Z and gradients ← P ∘ (Z ∘ gradients − delta), with P = exp(scores − lse) and Z = factors
    /// (nullptr: 1); both are 0 where the score is −∞, whatever stands in `gradients` there.
    void (*score_gradients)(A* weights, A* gradients, const A* scores, const A* factors, const A* lse, const A* delta,
                            std::int64_t rows);
};

/// The table of an available instruction set, for queries, keys and values stored as `dtype`.
template <class A>
[[nodiscard]] const Kernels<A>& table(InstructionSet set, DType dtype) noexcept;

/// While it lives, the calling thread may use the kernels.
template <class A>
class Entered {
public:
    explicit Entered(const Kernels<A>& kernels) : kernels_(kernels) { kernels_.enter(); }
    ~Entered() { kernels_.leave(); }
    Entered(const Entered&) = delete;
    Entered& operator=(const Entered&) = delete;
    Entered(Entered&&) = delete;
    Entered& operator=(Entered&&) = delete;

private:
    const Kernels<A>& kernels_;
};

}  // namespace qkv::kernels
