// 256-bit vectors with FMA and F16C.
#include <hwy/detect_targets.h>

#include "kernels/tables.hpp"
#undef HWY_TARGET
#define HWY_TARGET HWY_AVX2
#include "kernels/table-inl.hpp"

namespace qkv::kernels {

constinit const Tables avx2_tables = HWY_NAMESPACE::MakeTables();

}  // namespace qkv::kernels
