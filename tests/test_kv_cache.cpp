// Caches against a model that keeps every token of every sequence in a plain array: random programs.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <optional>

#include "qkv/kv_cache.hpp"
#include "support/cache_tokens.hpp"
#include "support/expect_error.hpp"
#include "support/oracle.hpp"

namespace qkv {
namespace {

using support::chance;
using support::held_tokens;
using support::layout_of;
using support::pick;
using support::Random;
using support::random_tokens;
using support::Token;
using support::Tokens;

double rounded(double value, DType dtype) {
    switch (dtype) {
        case DType::bf16:
            return oracle::round_to(value, oracle::Arithmetic::bf16);
        case DType::f16:
            return oracle::round_to(value, oracle::Arithmetic::f16);
        case DType::f32:
            return oracle::round_to(value, oracle::Arithmetic::f32);
        default:
            return value;
    }
}

/// What a cache must be: all tokens of each sequence, and its blocks as shared pointers, whose counts say who shares.
struct Model {
    struct Sequence {
        std::vector<Token> tokens;
        std::vector<std::shared_ptr<int>> blocks;
    };
    std::int64_t block_tokens = 0;
    std::map<SequenceId, Sequence> sequences;

    [[nodiscard]] std::int64_t blocks_of(std::int64_t tokens) const {
        return (tokens + block_tokens - 1) / block_tokens;
    }
    void append(SequenceId id, const std::vector<Token>& tokens) {
        Sequence& sequence = sequences.at(id);
        const auto before = static_cast<std::int64_t>(sequence.tokens.size());
        if (!tokens.empty() && before % block_tokens != 0 && sequence.blocks.back().use_count() > 1) {
            sequence.blocks.back() = std::make_shared<int>();
        }
        sequence.tokens.insert(sequence.tokens.end(), tokens.begin(), tokens.end());
        while (static_cast<std::int64_t>(sequence.blocks.size()) <
               blocks_of(static_cast<std::int64_t>(sequence.tokens.size()))) {
            sequence.blocks.push_back(std::make_shared<int>());
        }
    }
    void truncate(Sequence& sequence, std::int64_t tokens) const {
        sequence.tokens.resize(static_cast<std::size_t>(tokens));
        sequence.blocks.resize(static_cast<std::size_t>(blocks_of(tokens)));
    }
    [[nodiscard]] std::int64_t used_blocks() const {
        std::map<const int*, int> used;
        for (const auto& [id, sequence] : sequences) {
            for (const auto& block : sequence.blocks) {
                ++used[block.get()];
            }
        }
        return static_cast<std::int64_t>(used.size());
    }
    [[nodiscard]] std::int64_t shared_blocks() const {
        std::map<const int*, int> used;
        for (const auto& [id, sequence] : sequences) {
            for (const auto& block : sequence.blocks) {
                ++used[block.get()];
            }
        }
        return std::count_if(used.begin(), used.end(), [](const auto& entry) { return entry.second > 1; });
    }
    /// A model of the same sharing whose counts are its own.
    [[nodiscard]] Model copy() const {
        Model other;
        other.block_tokens = block_tokens;
        std::map<const int*, std::shared_ptr<int>> copies;
        for (const auto& [id, sequence] : sequences) {
            Sequence& to = other.sequences[id];
            to.tokens = sequence.tokens;
            for (const auto& block : sequence.blocks) {
                auto& copied = copies[block.get()];
                copied = copied ? copied : std::make_shared<int>();
                to.blocks.push_back(copied);
            }
        }
        return other;
    }
};

struct Kind {
    const char* name;
    KvCache (*make)(DType);
    bool ring;
};

const Kind kKinds[] = {
    {"contiguous", [](DType dtype) { return KvCache::contiguous(layout_of(dtype), {.capacity = 90, .sequences = 4}); },
     false},
    {"windowed",
     [](DType dtype) {
         return KvCache::windowed(layout_of(dtype),
                                  {.window = 20, .max_append = 25, .sequences = 5, .block_tokens = 16});
     },
     true},
    {"paged", [](DType dtype) { return KvCache::paged(layout_of(dtype), {.blocks = 17, .block_tokens = 16}); }, false},
};

class KvCachePrograms : public testing::TestWithParam<Kind> {
protected:
    /// The cache is what the model is; rings hold at least what their window needs, and no wrong token.
    static void check(const KvCache& cache, const Model& model, const Kind& kind) {
        ASSERT_EQ(cache.sequences(), static_cast<std::int64_t>(model.sequences.size()));
        for (const auto& [id, sequence] : model.sequences) {
            const auto size = static_cast<std::int64_t>(sequence.tokens.size());
            ASSERT_EQ(cache.size(id), size);
            const std::int64_t first = cache.first(id);
            ASSERT_GE(first, 0);
            ASSERT_LE(first, kind.ring ? std::max<std::int64_t>(0, size - 20) : 0);
            const std::vector<Token> expected(sequence.tokens.begin() + first, sequence.tokens.end());
            ASSERT_EQ(held_tokens(cache, id), expected);
        }
        if (!kind.ring) {
            ASSERT_EQ(cache.blocks() - cache.free_blocks(), model.used_blocks());
            ASSERT_EQ(cache.shared_blocks(), model.shared_blocks());
        }
    }
};

TEST_P(KvCachePrograms, AreWhatAModelSays) {
    const Kind& kind = GetParam();
    constexpr DType kTypes[] = {DType::f32, DType::bf16, DType::f16, DType::f64};
    std::int64_t refused = 0;
    std::int64_t shared = 0;
    for (std::uint64_t seed = 0; seed < 16; ++seed) {
        Random random(seed);
        const DType dtype = kTypes[seed % 4];
        KvCache cache = kind.make(dtype);
        Model model;
        model.block_tokens = cache.block_tokens();
        const auto some = [&] {
            auto at = model.sequences.begin();
            std::advance(at, pick(random, 0, static_cast<std::int64_t>(model.sequences.size()) - 1));
            return at;
        };
        for (int step = 0; step < 90; ++step) {
            SCOPED_TRACE(testing::Message() << kind.name << " seed " << seed << " step " << step);
            const std::int64_t action = model.sequences.empty() ? 0 : pick(random, 0, 11);
            if (action == 0 && model.sequences.size() < 6) {
                const SequenceId id = cache.add();
                ASSERT_FALSE(model.sequences.contains(id));
                model.sequences[id];
            } else if (action == 1) {
                const auto [id, sequence] = *some();
                cache.remove(id);
                model.sequences.erase(id);
                EXPECT_ERROR(cache.size(id), ErrorCode::invalid_argument, "sequence");
            } else if (action == 2 && model.sequences.size() < 6) {
                const auto& [id, sequence] = *some();
                const auto size = static_cast<std::int64_t>(sequence.tokens.size());
                const std::int64_t tokens = kind.ring ? size : pick(random, 0, size);
                Model::Sequence child = sequence;
                model.truncate(child, tokens);
                const SequenceId forked =
                    tokens == size && chance(random, 0.5) ? cache.fork(id) : cache.fork(id, tokens);
                model.sequences[forked] = child;
            } else if (action == 3) {
                auto& [id, sequence] = *some();
                const auto size = static_cast<std::int64_t>(sequence.tokens.size());
                const std::int64_t tokens = pick(random, 0, size);
                if (kind.ring && tokens > 0 && cache.first(id) > std::max<std::int64_t>(0, tokens - 20)) {
                    EXPECT_ERROR(cache.truncate(id, tokens), ErrorCode::out_of_range, "tokens is");
                } else {
                    cache.truncate(id, tokens);
                    model.truncate(sequence, tokens);
                }
            } else if (action == 4) {
                auto& [id, sequence] = *some();
                cache.reset(id);
                model.truncate(sequence, 0);
            } else if (action > 4) {
                // Some of the sequences, as rows with equally many tokens or packed.
                std::vector<SequenceId> ids;
                for (const auto& [id, sequence] : model.sequences) {
                    if (chance(random, 0.5)) {
                        ids.push_back(id);
                    }
                }
                const bool packed = chance(random, 0.5);
                const std::int64_t most = chance(random, 0.1) ? 120 : 25;
                const std::int64_t each = pick(random, 0, most);
                std::vector<std::int64_t> starts{0};
                for (std::size_t s = 0; s < ids.size(); ++s) {
                    starts.push_back(starts.back() + (packed ? pick(random, 0, most) : each));
                }
                const std::vector<Token> tokens = random_tokens(random, starts.back(), dtype);
                const Tokens given(random, packed ? 1 : static_cast<std::int64_t>(ids.size()), tokens, dtype);
                Model after = model.copy();
                bool fits = true;
                for (std::size_t s = 0; s < ids.size(); ++s) {
                    after.append(ids[s], {tokens.begin() + starts[s], tokens.begin() + starts[s + 1]});
                    const auto size = static_cast<std::int64_t>(after.sequences.at(ids[s]).tokens.size());
                    fits = fits && size <= cache.capacity().value_or(size);
                }
                const CacheBatch batch{
                    ids, packed ? std::span<const std::int64_t>(starts) : std::span<const std::int64_t>()};
                if (kind.ring) {
                    // Forks share what the pool has no other place for; otherwise a ring never runs out.
                    try {
                        cache.append(batch, given.k.view, given.v.view);
                        model = std::move(after);
                    } catch (const Error& error) {
                        ASSERT_EQ(error.code(), ErrorCode::out_of_memory);
                        ASSERT_GT(model.sequences.size(), 5U);
                        ++refused;
                    }
                } else if (fits && after.used_blocks() <= cache.blocks()) {
                    cache.append(batch, given.k.view, given.v.view);
                    model = std::move(after);
                } else {
                    EXPECT_ERROR(cache.append(batch, given.k.view, given.v.view),
                                 fits ? ErrorCode::out_of_memory : ErrorCode::out_of_range,
                                 fits ? "append needs" : "k: ");
                    ++refused;
                }
            }
            ASSERT_NO_FATAL_FAILURE(check(cache, model, kind));
            shared += cache.shared_blocks();
        }
        for (const auto& [id, sequence] : model.sequences) {
            cache.remove(id);
        }
        EXPECT_EQ(cache.free_blocks(), cache.blocks());
        EXPECT_EQ(cache.shared_blocks(), 0);
    }
    EXPECT_GT(refused, 0) << "no program ever filled the pool";
    EXPECT_GT(shared, 0) << "no program ever shared a block";
}

INSTANTIATE_TEST_SUITE_P(Kind, KvCachePrograms, testing::ValuesIn(kKinds),
                         [](const auto& test) { return std::string(test.param.name); });

TEST(KvCache, RoundsToItsType) {
    constexpr DType kTypes[] = {DType::f32, DType::bf16, DType::f16, DType::f64};
    for (const DType from : kTypes) {
        for (const DType to : kTypes) {
            Random random(3);
            KvCache cache = KvCache::paged(layout_of(to), {.blocks = 2, .block_tokens = 16});
            const SequenceId id = cache.add();
            const std::vector<Token> tokens = random_tokens(random, 20, from);
            const Tokens given(random, 1, tokens, from);
            cache.append({{&id, 1}}, given.k.view, given.v.view);
            const std::vector<Token> held = held_tokens(cache, id);
            for (std::size_t t = 0; t < tokens.size(); ++t) {
                for (std::size_t at = 0; at < tokens[t].size(); ++at) {
                    // float64 becomes 16 bits by way of float.
                    const double narrow = to == DType::f64 ? tokens[t][at] : rounded(tokens[t][at], DType::f32);
                    ASSERT_EQ(held[t][at], rounded(narrow, to)) << name(from) << " to " << name(to);
                }
            }
        }
    }
}

}  // namespace
}  // namespace qkv
