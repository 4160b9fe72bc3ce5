// Cross-attention: the English asks, the German is read.
#include <cstdio>
#include <vector>

#include "qkv/qkv.hpp"
#include "walk.hpp"

int main() {
    namespace nn = qkv::nn;
    // As `qkv explain --stage cross` draws them: 7 English tokens, 8 German ones, then the parameters.
    qkv::Generator generator(123);
    const qkv::Tensor english = generator.rand({7, 4});
    const qkv::Tensor german = generator.rand({8, 4});
    nn::CrossAttention attention({.d_query = 4, .d_source = 4, .d_out = 4, .num_heads = 2}, generator);

    qkv::Trace trace;
    print("output", attention.forward(english, german, {.trace = &trace}));
    std::printf("weights %s: heads, queries, keys\n", qkv::to_string(trace.find("weights")->shape()).c_str());

    // Padding: the last two source tokens are filler, so nobody may attend to them (true = may).
    const std::vector<bool> real{true, true, true, true, true, true, false, false};
    qkv::Trace padded;
    (void)attention.forward(english, german, {.trace = &padded}, real);
    print("weights of Can, head 1", row_of(*trace.find("weights"), 0));
    print("with two tokens of padding", row_of(*padded.find("weights"), 0));

    // A source of another length and another width.
    const qkv::Tensor picture = generator.rand({16, 10});
    const nn::CrossAttention reads_pictures({.d_query = 4, .d_source = 10, .d_out = 6, .num_heads = 3}, generator);
    std::printf("english %s reads a source %s: output %s\n", qkv::to_string(english.shape()).c_str(),
                qkv::to_string(picture.shape()).c_str(),
                qkv::to_string(reads_pictures.forward(english, picture).shape()).c_str());
}
