// 128-bit vectors, no fused multiply-add.
#include <hwy/detect_targets.h>

#include "kernels/tables.hpp"
#undef HWY_TARGET
#define HWY_TARGET HWY_SSE4
#include "kernels/table-inl.hpp"

namespace qkv::kernels {

constinit const Tables sse4_tables = HWY_NAMESPACE::MakeTables();

}  // namespace qkv::kernels
