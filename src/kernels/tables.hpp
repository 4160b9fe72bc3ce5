// The tables that the files of the instruction sets define.
#pragma once

#include "core/draws.hpp"
#include "kernels/kernels.hpp"
#include "kernels/layers.hpp"
#include "kernels/products.hpp"

namespace qkv::kernels {

struct Tables {
    Kernels<float> f32;
    Kernels<double> f64;
    Products<float> products_f32;
    Products<double> products_f64;
    Layers<float> layers_f32;
    Layers<double> layers_f64;
    Draws draws;
};

extern const Tables scalar_tables;
#if defined(__x86_64__)
extern const Tables sse4_tables;
extern const Tables avx2_tables;
extern const Tables avx512_tables;
extern const Kernels<float> avx512_bf16_table;
extern const Kernels<float> amx_bf16_table;
#elif defined(__aarch64__)
extern const Tables neon_tables;
#endif

}  // namespace qkv::kernels
