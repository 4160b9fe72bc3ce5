#include "kernels/tables.hpp"

namespace qkv::kernels {

namespace {

const Tables& tables(InstructionSet set) noexcept {
    switch (set) {
#if defined(__x86_64__)
        case InstructionSet::amx:  // of these two, what is not bf16
        case InstructionSet::avx512bf16:
        case InstructionSet::avx512:
            return avx512_tables;
        case InstructionSet::avx2:
            return avx2_tables;
        case InstructionSet::sse4:
            return sse4_tables;
#elif defined(__aarch64__)
        case InstructionSet::neon:
            return neon_tables;
#endif
        default:
            return scalar_tables;
    }
}

}  // namespace

template <>
const Kernels<float>& table<float>(InstructionSet set, DType dtype) noexcept {
#if defined(__x86_64__)
    if (dtype == DType::bf16 && set == InstructionSet::amx) {
        return amx_bf16_table;
    }
    if (dtype == DType::bf16 && set == InstructionSet::avx512bf16) {
        return avx512_bf16_table;
    }
#endif
    (void)dtype;
    return tables(set).f32;
}

template <>
const Kernels<double>& table<double>(InstructionSet set, DType /*dtype*/) noexcept {
    return tables(set).f64;
}

template <>
const Products<float>& products<float>(InstructionSet set) noexcept {
    return tables(set).products_f32;
}

template <>
const Products<double>& products<double>(InstructionSet set) noexcept {
    return tables(set).products_f64;
}

template <>
const Layers<float>& layers<float>(InstructionSet set) noexcept {
    return tables(set).layers_f32;
}

template <>
const Layers<double>& layers<double>(InstructionSet set) noexcept {
    return tables(set).layers_f64;
}

}  // namespace qkv::kernels

namespace qkv {

const Draws& draws(InstructionSet set) noexcept { return kernels::tables(set).draws; }

}  // namespace qkv
