#include "support/stored.hpp"

#include "support/oracle.hpp"

namespace support {

using qkv::DType;
using qkv::Shape4;

std::int64_t pick(Random& random, std::int64_t low, std::int64_t high) {
    return std::uniform_int_distribution<std::int64_t>(low, high)(random);
}

bool chance(Random& random, double probability) { return std::bernoulli_distribution(probability)(random); }

double normal(Random& random) { return std::normal_distribution<double>()(random); }

Layout pick_layout(Random& random) { return static_cast<Layout>(pick(random, 0, 3)); }

Guarded::Side pick_side(Random& random) { return chance(random, 0.5) ? Guarded::Side::begin : Guarded::Side::end; }

Stored allocate(const Shape4& shape, DType dtype, Layout layout, Guarded::Side side) {
    Shape4 strides = qkv::contiguous_strides(shape);
    std::int64_t count = shape[0] * shape[1] * shape[2] * shape[3];
    std::int64_t first = 0;
    if (count != 0 && layout == Layout::tokens_first) {
        strides = {shape[1] * shape[2] * shape[3], shape[3], shape[1] * shape[3], 1};
    } else if (count != 0 && layout == Layout::padded) {
        const std::int64_t row = shape[3] + 3;
        strides = {shape[1] * shape[2] * row, shape[2] * row, row, 1};
        count = shape[0] * shape[1] * shape[2] * row - 3;
    } else if (count != 0 && layout == Layout::reversed) {
        first = (shape[2] - 1) * strides[2];
        strides[2] = -strides[2];
    }
    Stored stored;
    stored.memory = Guarded(static_cast<std::size_t>(count * qkv::size_of(dtype)), side);
    stored.view = {stored.memory.data() + first * qkv::size_of(dtype), dtype, shape, strides, qkv::Device::cpu};
    return stored;
}

namespace {

std::uint16_t bits16(double value, DType dtype) {
    if (dtype == DType::bf16) {
        return qkv::BFloat16(static_cast<float>(value)).bits;
    }
    return qkv::Float16(static_cast<float>(value)).bits;
}

double value16(std::uint16_t bits, DType dtype) {
    if (dtype == DType::bf16) {
        qkv::BFloat16 value;
        value.bits = bits;
        return static_cast<double>(static_cast<float>(value));
    }
    qkv::Float16 value;
    value.bits = bits;
    return static_cast<double>(static_cast<float>(value));
}

template <class T>
T as(const std::byte* from) {
    T value;
    std::memcpy(&value, from, sizeof(T));
    return value;
}

double read_one(const std::byte* from, DType dtype) {
    switch (dtype) {
        case DType::f32:
            return static_cast<double>(as<float>(from));
        case DType::f64:
            return as<double>(from);
        case DType::boolean:
            return as<std::uint8_t>(from) != 0 ? 1.0 : 0.0;
        default:
            return value16(as<std::uint16_t>(from), dtype);
    }
}

}  // namespace

void write_one(const qkv::TensorView& view, std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j,
               double value) {
    std::byte* to = view.at(b, h, i, j);
    switch (view.dtype) {
        case DType::f32: {
            const auto narrow = static_cast<float>(value);
            std::memcpy(to, &narrow, sizeof narrow);
            break;
        }
        case DType::f64:
            std::memcpy(to, &value, sizeof value);
            break;
        case DType::boolean:
            *to = value != 0.0 ? std::byte{1} : std::byte{0};
            break;
        default: {
            const std::uint16_t bits = bits16(value, view.dtype);
            std::memcpy(to, &bits, sizeof bits);
        }
    }
}

template <class View, class Visit>
static void for_each_element(const View& view, Visit visit) {
    for (std::int64_t b = 0; b < view.size(0); ++b) {
        for (std::int64_t h = 0; h < view.size(1); ++h) {
            for (std::int64_t i = 0; i < view.size(2); ++i) {
                for (std::int64_t j = 0; j < view.size(3); ++j) {
                    visit(b, h, i, j);
                }
            }
        }
    }
}

void write(const qkv::TensorView& view, const std::vector<double>& values) {
    std::size_t at = 0;
    for_each_element(view, [&](auto b, auto h, auto i, auto j) { write_one(view, b, h, i, j, values[at++]); });
}

std::vector<double> read(const qkv::ConstTensorView& view) {
    std::vector<double> values;
    for_each_element(
        view, [&](auto b, auto h, auto i, auto j) { values.push_back(read_one(view.at(b, h, i, j), view.dtype)); });
    return values;
}

std::vector<double> normals(Random& random, std::int64_t count, DType dtype, double spread) {
    using oracle::Arithmetic;
    const Arithmetic arithmetic = dtype == DType::bf16  ? Arithmetic::bf16
                                  : dtype == DType::f16 ? Arithmetic::f16
                                  : dtype == DType::f32 ? Arithmetic::f32
                                                        : Arithmetic::f64;
    std::vector<double> values(static_cast<std::size_t>(count));
    for (double& value : values) {
        value = oracle::round_to(spread * normal(random), arithmetic);
    }
    return values;
}

}  // namespace support
