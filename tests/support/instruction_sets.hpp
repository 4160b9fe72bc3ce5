// The instruction sets that this machine has, to run a test under each.
#pragma once

#include <vector>

#include "qkv/instruction_set.hpp"

namespace support {

inline std::vector<qkv::InstructionSet> available_sets() {
    std::vector<qkv::InstructionSet> sets;
    for (const qkv::InstructionSetInfo& info : qkv::instruction_sets()) {
        if (info.available) {
            sets.push_back(info.set);
        }
    }
    return sets;
}

}  // namespace support
