// Random draws in runs against the standard library's twister, under every instruction set of the machine.
#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "core/draws.hpp"
#include "core/mersenne_twister.hpp"
#include "support/instruction_sets.hpp"

namespace qkv {
namespace {

using State = std::array<std::uint32_t, kTwisterWords>;

constexpr std::uint32_t kSeed = 5489;

/// The words before the first refill.
State seeded() {
    State state{kSeed};
    for (std::uint32_t i = 1; i < state.size(); ++i) {
        state.at(i) = 1812433253U * (state.at(i - 1) ^ (state.at(i - 1) >> 30U)) + i;
    }
    return state;
}

/// 64 bits, the first word on top; of them the low 53.
std::uint64_t low53(std::mt19937& twister) {
    const std::uint64_t high = twister();
    return (high << 32U | twister()) & ((std::uint64_t{1} << 53U) - 1);
}

class DrawVerbs : public testing::TestWithParam<InstructionSet> {};
INSTANTIATE_TEST_SUITE_P(Sets, DrawVerbs, testing::ValuesIn(support::available_sets()),
                         [](const auto& set) { return std::string(name(set.param)); });

TEST_P(DrawVerbs, RefillIsTheTwister) {
    State state = seeded();
    std::mt19937 twister(kSeed);
    for (int refill = 0; refill < 3; ++refill) {
        draws(GetParam()).refill(state.data());
        for (const std::uint32_t word : state) {
            ASSERT_EQ(tempered(word), twister());
        }
    }
}

TEST_P(DrawVerbs, KeepsWhatIsBelow) {
    State state = seeded();
    draws(GetParam()).refill(state.data());
    std::mt19937 twister(kSeed);
    std::vector<std::uint64_t> drawn(kTwisterWords / 2);
    for (std::uint64_t& number : drawn) {
        number = low53(twister);
    }
    // Also the very numbers drawn and their neighbours: the comparison is exact, in both halves.
    std::vector<std::uint64_t> limits{0, 1, std::uint64_t{1} << 32U, std::uint64_t{1} << 53U};
    for (std::size_t i = 0; i < drawn.size(); i += 17) {
        limits.insert(limits.end(), {drawn[i], drawn[i] + 1});
    }
    for (const std::uint64_t limit : limits) {
        for (const std::size_t count : {drawn.size(), std::size_t{1}, std::size_t{0}, std::size_t{37}}) {
            std::vector<std::uint8_t> kept(drawn.size(), 9);
            draws(GetParam()).keep(kept.data(), state.data(), static_cast<std::int64_t>(count), limit);
            for (std::size_t i = 0; i < drawn.size(); ++i) {
                ASSERT_EQ(kept[i], i >= count ? 9 : drawn[i] < limit ? 1 : 0) << i << " of " << count << ", " << limit;
            }
        }
    }
}

}  // namespace
}  // namespace qkv
