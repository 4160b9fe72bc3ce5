// One number at a time, for machines that nothing else fits.
#include <hwy/detect_targets.h>

#include "kernels/tables.hpp"
#undef HWY_TARGET
#define HWY_TARGET HWY_SCALAR
#include "kernels/table-inl.hpp"

namespace qkv::kernels {

constinit const Tables scalar_tables = HWY_NAMESPACE::MakeTables();

}  // namespace qkv::kernels
