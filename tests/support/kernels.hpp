// What tests of single verbs share: the instruction sets of this machine, and room as kernels want it.
#pragma once

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "kernels/kernels.hpp"

namespace qkv::kernels {

inline std::vector<InstructionSet> available() {
    std::vector<InstructionSet> sets;
    for (const InstructionSetInfo& info : instruction_sets()) {
        if (info.available) {
            sets.push_back(info.set);
        }
    }
    return sets;
}

/// Room aligned as the kernels want it, full of NaN.
template <class T>
struct Room {
    explicit Room(std::int64_t count) : bytes(static_cast<std::size_t>(count) * sizeof(T) + 64, std::byte{0xFF}) {
        const auto address = reinterpret_cast<std::uintptr_t>(bytes.data());
        data = reinterpret_cast<T*>(bytes.data() + (64 - address % 64) % 64);
    }
    std::vector<std::byte> bytes;
    T* data;
};

template <class T>
void fill(const Room<T>& room, std::int64_t count, std::uint64_t seed) {
    std::mt19937_64 random(seed);
    std::normal_distribution<float> normal;
    for (std::int64_t i = 0; i < count; ++i) {
        room.data[i] = static_cast<T>(normal(random));
    }
}

/// Instantiate with ValuesIn(available()) and name_of.
class EverySet : public testing::TestWithParam<InstructionSet> {};

inline std::string name_of(const testing::TestParamInfo<InstructionSet>& set) { return std::string(name(set.param)); }

}  // namespace qkv::kernels
