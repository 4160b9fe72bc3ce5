// The options of attention as Python objects: masks, dropout, offsets.
#pragma once

#include <nanobind/nanobind.h>

#include <memory>
#include <optional>
#include <vector>

#include "operand.hpp"
#include "qkv/attention.hpp"

namespace qkv::python {

/// A qkv::Mask together with the memory that it refers to.
struct HeldMask {
    qkv::Mask mask;
    std::vector<std::shared_ptr<const void>> held;
};

/// A qkv::Dropout together with the memory that it refers to.
struct HeldDropout {
    double p = 0.0;
    std::uint64_t seed = 0;
    std::shared_ptr<const Operand> keep;
    std::vector<std::int64_t> sequence_ids;
};

/// The keyword arguments that every attention function shares.
struct OptionArguments {
    nb::handle mask;
    std::optional<double> scale;
    double softcap;
    nb::handle sinks;
    nb::handle dropout;
    nb::handle offsets;
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

/// "top_left" or "bottom_right". Throws ValueError naming `align`.
[[nodiscard]] Align to_align(nb::handle text);

void bind_options(nb::module_& module);

}  // namespace qkv::python
