#include "batched.hpp"

#include <utility>

#include "raise.hpp"

namespace qkv::python {

namespace {

std::string lead_text(const Shape& lead) {
    std::string text;
    for (const std::int64_t size : lead) {
        text += concat(size, ", ");
    }
    return text;
}

}  // namespace

void Batched::add(const Operand& operand, Kind kind) {
    const int trailing = kind == Kind::rows ? 1 : 2;
    const int own_lead = operand.rank() - trailing;
    const auto lead = static_cast<int>(lead_.size());
    const auto refuse = [&] {
        raise(PyExc_ValueError, operand.name(), " has shape ", operand.shape_text(),
              "; expected one that broadcasts to (", lead_text(lead_), kind == Kind::rows ? "queries)" : "…, …)");
    };
    if (own_lead > lead || (own_lead < 0 && kind != Kind::pairs)) {
        refuse();
    }
    Part part{&operand, kind, {operand.data(), operand.dtype(), {1, 1, 1, 1}, {0, 0, 0, 1}, Device::cpu}, {}};
    // The operand's dimension that stands at place `dim` of the four, counted from the end; past its rank: size 1.
    const auto set = [&](std::size_t place, int dim) {
        if (dim >= 0) {
            part.view.shape[place] = operand.size(dim);
            part.view.strides[place] = operand.stride(dim);
        }
    };
    if (kind == Kind::rows) {
        set(2, operand.rank() - 1);
    } else {
        set(2, operand.rank() - 2);
        set(3, operand.rank() - 1);
    }
    for (int dim = 0; dim < lead; ++dim) {
        const bool heads = dim == lead - 1;
        const bool of_keys = heads && kind == Kind::key_value;
        const std::int64_t wanted = of_keys ? kv_heads_ : lead_[static_cast<std::size_t>(dim)];
        const int own = dim - (lead - own_lead);
        const std::int64_t size = own < 0 ? 1 : operand.size(own);
        const std::int64_t stride = size == 1 ? 0 : operand.stride(own);
        if (size != wanted && size != 1) {
            refuse();
        }
        if (heads) {
            part.view.shape[1] = kind == Kind::pairs ? size : wanted;
            part.view.strides[1] = stride;
        } else {
            part.strides.push_back(stride);
        }
    }
    parts_.push_back(std::move(part));
}

bool Batched::mergeable(std::size_t outer) const {
    const std::int64_t inner_size = outer_[outer + 1];
    for (const Part& part : parts_) {
        if (part.strides[outer] != part.strides[outer + 1] * inner_size) {
            return false;
        }
    }
    return true;
}

void Batched::merge() {
    outer_.assign(lead_.begin(), lead_.empty() ? lead_.end() : lead_.end() - 1);
    for (std::size_t dim = outer_.size(); dim-- > 1;) {
        if (outer_[dim - 1] == 1 || outer_[dim] == 1 || mergeable(dim - 1)) {
            // A size of 1 has no stride of its own: the other dimension's stays.
            const std::size_t keeps = outer_[dim] == 1 ? dim - 1 : dim;
            outer_[dim - 1] *= outer_[dim];
            outer_.erase(outer_.begin() + static_cast<std::ptrdiff_t>(dim));
            for (Part& part : parts_) {
                part.strides[dim - 1] = part.strides[keeps];
                part.strides.erase(part.strides.begin() + static_cast<std::ptrdiff_t>(dim));
            }
        }
    }
    if (!outer_.empty()) {
        batch_ = outer_.back();
        outer_.pop_back();
        for (Part& part : parts_) {
            part.view.strides[0] = part.strides.back();
            part.view.shape[0] = part.kind == Kind::pairs && part.strides.back() == 0 ? 1 : batch_;
            part.strides.pop_back();
        }
    }
    for (const std::int64_t size : outer_) {
        calls_ *= size;
    }
}

TensorView Batched::view(std::size_t part, std::int64_t call) const {
    TensorView view = parts_[part].view;
    std::int64_t offset = 0;
    for (std::size_t dim = outer_.size(); dim-- > 0;) {
        offset += call % outer_[dim] * parts_[part].strides[dim];
        call /= outer_[dim];
    }
    if (offset != 0) {
        view.data = static_cast<std::byte*>(view.data) + offset * size_of(view.dtype);
    }
    return view;
}

}  // namespace qkv::python
