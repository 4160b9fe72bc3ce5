// The options of attention as Python objects: masks, dropout, offsets.
#pragma once

#include <nanobind/nanobind.h>

#include <memory>
#include <optional>
#include <vector>

#include "operand.hpp"
#include "qkv/attention.hpp"
#include "recipe.hpp"

namespace qkv::python {

/// A qkv::Mask together with the memory that it refers to, and what it was made of.
struct HeldMask {
    qkv::Mask mask;
    std::vector<std::shared_ptr<const void>> held;
    std::vector<Recipe> parts;
};

/// A qkv::Dropout together with the memory that it refers to.
struct HeldDropout {
    double p = 0.0;
    std::uint64_t seed = 0;
    std::shared_ptr<const Operand> keep;
    std::vector<std::int64_t> sequence_ids;
    Recipe recipe;
};

/// The keyword arguments that every attention function shares.
struct OptionArguments {
    const HeldMask* mask;  // null: none, as for those below
    std::optional<double> scale;
    double softcap;
    nb::handle sinks;
    const HeldDropout* dropout;
    const Offsets* offsets;
};

/// AttentionOptions made from them. The arguments must outlive it.
class Options {
public:
    explicit Options(const OptionArguments& arguments);
    [[nodiscard]] const AttentionOptions& value() const noexcept { return value_; }

private:
    Operand sinks_;
    AttentionOptions value_;
};

void bind_options(nb::module_& module);

}  // namespace qkv::python
