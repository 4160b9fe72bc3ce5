// Cross-attention: the English asks, the German is read.
//
// Prints:
//   output [7, 4]
//     0.4524 -0.2044  0.2056  0.1868
//     0.4519 -0.2053  0.2063  0.1876
//     0.4513 -0.2043  0.2065  0.1859
//     0.4523 -0.2041  0.2059  0.1867
//     0.4508 -0.2042  0.2071  0.1853
//     0.4531 -0.2039  0.2044  0.1865
//     0.4517 -0.2042  0.2061  0.1860
//   weights [2, 7, 8]: heads, queries, keys
//   weights of Can, head 1 [1, 8]
//     0.1201  0.1249  0.1264  0.1228  0.1251  0.1240  0.1269  0.1297
//   with two tokens of padding [1, 8]
//     0.1616  0.1681  0.1700  0.1652  0.1683  0.1669  0.0000  0.0000
//   english [7, 4] reads a source [16, 10]: output [7, 6]
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
