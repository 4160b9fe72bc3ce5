// A GPT learns a rhyme by heart, letter by letter, and says it from a beginning, over a cache.
//
// Prints:
//   step   1  loss 3.4
//   step 100  loss 0.8
//   step 200  loss 0.2
//   step 300  loss 0.2
//   three... four knock at the door
//   seven... eight lay them straight
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <iterator>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "qkv/qkv.hpp"

namespace {

constexpr std::string_view kRhyme =
    "one two buckle my shoe three four knock at the door five six pick up sticks seven eight lay them straight ";
constexpr std::int64_t kLetters = 27;  // space and a to z
constexpr std::int64_t kBatch = 4;
constexpr std::int64_t kTokens = 32;

std::int64_t id_of(char letter) { return letter == ' ' ? 0 : letter - 'a' + 1; }
char letter_of(std::int64_t id) { return id == 0 ? ' ' : static_cast<char>('a' + id - 1); }

/// `count` ids of the rhyme, which goes round, from place `first` on.
void append_ids(std::vector<std::int64_t>& ids, std::size_t first, std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i) {
        ids.push_back(id_of(kRhyme[(first + static_cast<std::size_t>(i)) % kRhyme.size()]));
    }
}

/// The likeliest letter after the last one.
std::int64_t likeliest(const qkv::Tensor& logits) {
    const std::span<const float> last = logits.row(logits.size(1) - 1);
    return std::distance(last.begin(), std::ranges::max_element(last));
}

}  // namespace

int main() {
    namespace nn = qkv::nn;
    qkv::Generator generator(123);
    nn::Gpt model({.vocab_size = kLetters, .context_length = kTokens, .emb_dim = 32, .num_heads = 2, .num_layers = 2},
                  generator);
    nn::AdamW<float> optimizer(model.parameters(), {.lr = 0.01});

    for (int step = 1; step <= 300; ++step) {
        std::vector<std::int64_t> ids;
        std::vector<std::int64_t> targets;
        for (std::int64_t sequence = 0; sequence < kBatch; ++sequence) {
            const std::size_t first = generator.random() % kRhyme.size();
            append_ids(ids, first, kTokens);
            append_ids(targets, first + 1, kTokens);
        }
        auto [loss, d_logits] = nn::cross_entropy_backward(model.forward(ids, kBatch), targets);
        model.zero_gradients();
        model.backward(std::move(d_logits));
        optimizer.step();
        if (step == 1 || step % 100 == 0) {
            std::printf("step %3d  loss %.1f\n", step, loss);
        }
    }

    model.eval();
    for (const std::string_view beginning : {"three", "seven"}) {
        nn::GptCache cache(model.options());
        std::vector<std::int64_t> next;
        std::ranges::transform(beginning, std::back_inserter(next), id_of);
        std::printf("%.*s...", static_cast<int>(beginning.size()), beginning.data());
        for (int i = 0; i < 24; ++i) {
            next = {likeliest(model.forward(next, cache))};
            std::printf("%c", letter_of(next.front()));
        }
        std::printf("\n");
    }
}
