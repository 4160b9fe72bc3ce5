// 128-bit vectors of AArch64.
#include <hwy/detect_targets.h>

#include "kernels/tables.hpp"
#undef HWY_TARGET
#define HWY_TARGET HWY_NEON
#include "kernels/table-inl.hpp"

namespace qkv::kernels {

constinit const Tables neon_tables = HWY_NAMESPACE::MakeTables();

}  // namespace qkv::kernels
