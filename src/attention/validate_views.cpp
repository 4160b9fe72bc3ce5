#include "attention/validate_views.hpp"

#include <algorithm>

namespace qkv::detail {

void check_view(const ConstTensorView& view, const char* name) {
    if (view.device != Device::cpu) {
        fail(ErrorCode::unsupported, name, " is on device ", static_cast<int>(view.device), "; expected the CPU (0)");
    }
    if (size_of(view.dtype) == 0) {
        fail(ErrorCode::unsupported, name, " has the unknown type ", static_cast<int>(view.dtype));
    }
    if (std::ranges::any_of(view.shape, [](std::int64_t size) { return size < 0; })) {
        fail(ErrorCode::shape_mismatch, name, " has shape ", to_string(view), "; expected no negative size");
    }
    if (view.empty()) {
        return;
    }
    if (view.data == nullptr) {
        fail(ErrorCode::invalid_argument, name, " has shape ", to_string(view), " and no memory (data is null)");
    }
    if (reinterpret_cast<std::uintptr_t>(view.data) % static_cast<std::uintptr_t>(size_of(view.dtype)) != 0) {
        fail(ErrorCode::invalid_argument, name, " is not aligned to its elements of ", size_of(view.dtype), " bytes");
    }
    (void)byte_range(view, name);
}

void check_dtype(const ConstTensorView& view, const char* name, std::initializer_list<DType> types) {
    if (std::ranges::find(types, view.dtype) != types.end()) {
        return;
    }
    std::string expected;
    for (const DType type : types) {
        expected += (expected.empty() ? "" : " or ") + std::string(qkv::name(type));
    }
    fail(ErrorCode::unsupported, name, " has type ", qkv::name(view.dtype), "; expected ", expected);
}

void check_shape(const ConstTensorView& view, const char* name, const char* letters, const Shape4& expected) {
    if (view.shape != expected) {
        fail(ErrorCode::shape_mismatch, name, " has shape ", to_string(view), "; expected ", letters, " = ",
             to_string(Shape(expected.begin(), expected.end())));
    }
}

void check_unit_stride(const ConstTensorView& view, const char* name) {
    if (!view.empty() && view.shape[3] > 1 && view.strides[3] != 1) {
        fail(ErrorCode::invalid_argument, name, " has last stride ", view.strides[3], "; expected 1");
    }
}

ConstTensorView broadcast(const ConstTensorView& view, const char* name, const char* letters, const Shape4& expected) {
    ConstTensorView repeated = view;
    for (std::size_t d = 0; d < 4; ++d) {
        if (view.shape[d] != expected[d] && view.shape[d] != 1) {
            fail(ErrorCode::shape_mismatch, name, " has shape ", to_string(view), "; expected ", letters, " = ",
                 to_string(Shape(expected.begin(), expected.end())), " or 1 in place of any size");
        }
        if (view.shape[d] == 1) {
            repeated.strides[d] = 0;
        }
    }
    repeated.shape = expected;
    return repeated;
}

void check_cumulative(std::span<const std::int64_t> starts, const char* name, std::int64_t total) {
    if (starts.empty() || starts.front() != 0 || starts.back() != total) {
        fail(ErrorCode::shape_mismatch, name, " has ", starts.size(), " numbers",
             starts.empty() ? "" : concat(" from ", starts.front(), " to ", starts.back()),
             "; expected at least 1, from 0 to ", total);
    }
    for (std::size_t i = 1; i < starts.size(); ++i) {
        if (starts[i] < starts[i - 1]) {
            fail(ErrorCode::invalid_argument, name, " falls from ", starts[i - 1], " to ", starts[i], " at index ", i,
                 "; expected numbers that do not fall");
        }
    }
}

NamedView named_bytes(const char* name, std::span<std::byte> bytes) {
    const auto size = static_cast<std::int64_t>(bytes.size());
    return {name, {bytes.data(), DType::boolean, {1, 1, 1, size}, {0, 0, 0, 1}, Device::cpu}};
}

void check_overlap(std::span<const NamedView> outputs, std::span<const NamedView> inputs) {
    const auto refuse = [](const NamedView& a, const char* b) {
        fail(ErrorCode::invalid_argument, a.name, " overlaps ", b, "; expected memory of its own");
    };
    // Those that are given, few of many most often, each with its range.
    struct Given {
        const NamedView* named = nullptr;
        ByteRange range;
    };
    std::array<Given, kMostNamedViews> given;
    std::size_t count = 0;
    const auto take = [&](std::span<const NamedView> views) {
        for (const NamedView& one : views) {
            if (!one.view.empty()) {
                given.at(count++) = {&one, byte_range(one.view, one.name)};
            }
        }
    };
    take(outputs);
    const std::size_t outputs_given = count;
    take(inputs);
    for (std::size_t i = 0; i < outputs_given; ++i) {
        const Given& output = given[i];
        if (overlaps_itself(output.named->view)) {
            refuse(*output.named, "itself (strides that visit an element twice)");
        }
        for (std::size_t j = 0; j < count; ++j) {
            const bool earlier_or_input = j < i || j >= outputs_given;
            if (earlier_or_input && overlap(output.named->view, output.range, given[j].named->view, given[j].range)) {
                refuse(*output.named, given[j].named->name);
            }
        }
    }
}

}  // namespace qkv::detail
