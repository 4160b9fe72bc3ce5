// 512-bit vectors.
#include <hwy/detect_targets.h>

#include "kernels/tables.hpp"
#undef HWY_TARGET
#define HWY_TARGET HWY_AVX3
#include "kernels/table-inl.hpp"

namespace qkv::kernels {

// Known before anything runs: its functions may not even be looked at on a machine that lacks the instructions.
constinit const Tables avx512_tables = HWY_NAMESPACE::MakeTables();

}  // namespace qkv::kernels
