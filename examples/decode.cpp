// Generation with a cache of keys and values: one attention head, set by hand, continues a text from what it has read.
//
// The head is an induction head (Olsson et al. 2022): the key of a place says which two letters came before it, its
// value which letter stands there, and the query asks for the two letters read last. What followed them the last times
// follows them again.
//
// Prints:
//   after the fork: 3 blocks in use, 3 of them shared
//   the cat sat on the mat and the dog lay on the ...
//     ...cat on the cat on the cat on
//     ...dog lay on the dog lay on th
//   after both: 8 blocks in use, 2 of them shared
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "qkv/kv_cache.hpp"

namespace {

constexpr std::int64_t kLetters = 27;        // space and a to z
constexpr std::int64_t kDim = 2 * kLetters;  // one number per letter, for each of two places

std::int64_t number(char letter) { return letter == ' ' ? 0 : letter - 'a' + 1; }
char letter(std::int64_t number) { return number == 0 ? ' ' : static_cast<char>('a' + number - 1); }

/// The two letters before place `end`, as a vector.
std::vector<float> letters_before(const std::string& text, std::int64_t end) {
    std::vector<float> vector(kDim);
    for (std::int64_t back = 1; back <= 2 && back <= end; ++back) {
        vector[static_cast<std::size_t>((back - 1) * kLetters + number(text[static_cast<std::size_t>(end - back)]))] =
            1.0F;
    }
    return vector;
}

/// [batch, heads, tokens, head_dim] of a single token.
auto one_token(auto& vector) { return qkv::view(vector.data(), {1, 1, 1, static_cast<std::int64_t>(vector.size())}); }

class Head {
public:
    Head()
        : cache_(qkv::KvCache::paged({.kv_heads = 1, .head_dim = kDim, .value_dim = kLetters},
                                     {.blocks = 16, .block_tokens = 16})) {}

    qkv::KvCache& cache() { return cache_; }

    /// Appends the letters of `text` from place `begin` on.
    void read(qkv::SequenceId sequence, const std::string& text, std::int64_t begin) {
        for (std::int64_t place = begin; place < static_cast<std::int64_t>(text.size()); ++place) {
            const std::vector<float> key = letters_before(text, place);
            std::vector<float> value(kLetters);
            value[static_cast<std::size_t>(number(text[static_cast<std::size_t>(place)]))] = 1.0F;
            cache_.append({{&sequence, 1}}, one_token(key), one_token(value));
        }
    }

    /// The letter that most likely comes next.
    [[nodiscard]] char next(qkv::SequenceId sequence, const std::string& text) const {
        const std::vector<float> query = letters_before(text, static_cast<std::int64_t>(text.size()));
        std::vector<float> out(kLetters);
        qkv::AttentionOptions options;
        options.scale = 10.0;  // two matching letters outweigh one by e^10
        attention(one_token(query), cache_, {{&sequence, 1}}, one_token(out), options);
        return letter(std::max_element(out.begin(), out.end()) - out.begin());
    }

    /// Reads and writes in turn.
    std::string generate(qkv::SequenceId sequence, std::string text, int letters) {
        for (int step = 0; step < letters; ++step) {
            text += next(sequence, text);
            read(sequence, text, static_cast<std::int64_t>(text.size()) - 1);
        }
        return text;
    }

private:
    qkv::KvCache cache_;
};

}  // namespace

int main() {
    const std::string prompt = "the cat sat on the mat and the dog lay on the ";
    Head head;
    const qkv::SequenceId first = head.cache().add();
    head.read(first, prompt, 0);

    // A second continuation shares the prompt's blocks and begins with a word of its own.
    const qkv::SequenceId second = head.cache().fork(first);
    const auto print_pool = [&head](const char* when) {
        std::printf("%s: %d blocks in use, %d of them shared\n", when,
                    static_cast<int>(head.cache().blocks() - head.cache().free_blocks()),
                    static_cast<int>(head.cache().shared_blocks()));
    };
    print_pool("after the fork");
    std::printf("%s...\n", prompt.c_str());
    std::printf("  ...%s\n", head.generate(first, prompt, 28).substr(prompt.size()).c_str());
    head.read(second, prompt + "do", static_cast<std::int64_t>(prompt.size()));
    std::printf("  ...%s\n", head.generate(second, prompt + "do", 26).substr(prompt.size()).c_str());
    print_pool("after both");
}
