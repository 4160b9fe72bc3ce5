// Why attention: a dictionary keeps the wrong order, and one vector for everybody answers every question alike.
//
// Prints:
//   word by word: Can you me help this sentence to translate
//   one vector for everybody [1, 3]
//     0.4317  0.5833  0.5283
//   one vector for each query [6, 3]
//     0.4421  0.5931  0.5790
//     0.4419  0.6515  0.5683
//     0.4431  0.6496  0.5671
//     0.4304  0.6298  0.5510
//     0.4671  0.5910  0.5266
//     0.4177  0.6503  0.5645
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
