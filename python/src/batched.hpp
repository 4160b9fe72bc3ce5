// Tensors of any rank as a row of four-dimensional ones: [.., H, T, D] with broadcast leading dimensions, in place.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "operand.hpp"
#include "qkv/view.hpp"

namespace qkv::python {

/// Leading dimensions that several operands share. Those that lie one after the other in every operand's memory become
/// one batch dimension; over what is left, one call is made for each index.
class Batched {
public:
    /// How an operand's dimensions are read.
    enum class Kind : std::uint8_t {
        tokens,     ///< [.., H, T, D], broadcast over the leading dimensions
        key_value,  ///< the same with the heads of keys and values
        pairs,      ///< [.., H, Tq, Tk] that broadcasts itself: a size of 1 stays 1
        rows,       ///< [.., H, T]
    };

    /// `lead`: the sizes before the last two, heads last. `kv_heads`: how many heads keys and values have.
    Batched(Shape lead, std::int64_t kv_heads) : lead_(std::move(lead)), kv_heads_(kv_heads) {}

    /// Adds an operand, which must outlive this; views come in the order of adding. Throws ValueError unless it
    /// broadcasts to the leading sizes.
    void add(const Operand& operand, Kind kind);

    /// Merges the dimensions; call once, after the last add.
    void merge();

    [[nodiscard]] std::int64_t calls() const noexcept { return calls_; }
    [[nodiscard]] std::int64_t batch() const noexcept { return batch_; }
    /// Operand number `part` as call number `call` sees it.
    [[nodiscard]] TensorView view(std::size_t part, std::int64_t call) const;

private:
    struct Part {
        const Operand* operand;
        Kind kind;
        TensorView view;                    // of call 0, batch not set before merge
        std::vector<std::int64_t> strides;  // over lead_ without the heads
    };
    [[nodiscard]] bool mergeable(std::size_t outer) const;

    Shape lead_;
    std::int64_t kv_heads_;
    std::vector<Part> parts_;
    Shape outer_;  // sizes of the loop over calls
    std::int64_t calls_ = 1;
    std::int64_t batch_ = 1;
};

}  // namespace qkv::python
