// A check that several who take an instruction set share.
#pragma once

#include "qkv/instruction_set.hpp"

namespace qkv {

/// Throws Error(unsupported), naming `what`, unless this machine runs `set`.
void require_available(InstructionSet set, const char* what);

}  // namespace qkv
