// Why attention: a dictionary keeps the wrong order, and one vector for everybody answers every question alike.
#include <cstdint>
#include <cstdio>
#include <utility>

#include "qkv/qkv.hpp"
#include "walk.hpp"

int main() {
    constexpr std::pair<const char*, const char*> kDictionary[] = {
        {"Kannst", "Can"},  {"du", "you"},        {"mir", "me"}, {"helfen", "help"},
        {"diesen", "this"}, {"Satz", "sentence"}, {"zu", "to"},  {"übersetzen", "translate"}};
    std::printf("word by word:");
    for (const auto& [german, english] : kDictionary) {
        std::printf(" %s", english);
    }
    std::printf("\n");

    // One fixed vector for the whole sentence: the mean of its tokens. Whoever asks gets this.
    const qkv::Tensor x = journey();
    qkv::Tensor mean({1, x.size(1)});
    for (std::int64_t token = 0; token < x.size(0); ++token) {
        for (std::int64_t dim = 0; dim < x.size(1); ++dim) {
            mean(0, dim) += x(token, dim) / static_cast<float>(x.size(0));
        }
    }
    print("one vector for everybody", mean);

    // Attention: a mix of the tokens for each one that asks.
    print("one vector for each query", qkv::nn::SimpleSelfAttention().forward(x));
}
