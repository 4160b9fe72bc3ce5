// What a user of the library writes; each way of finding qkv builds and runs this.
#include <cmath>
#include <cstdio>
#include <qkv/qkv.hpp>

int main() {
    qkv::Generator generator(123);
    const qkv::Tensor words({6, 3}, {.43F, .15F, .89F, .55F, .87F, .66F, .57F, .85F, .64F, .22F, .58F, .33F, .77F, .25F,
                                     .10F, .05F, .80F, .55F});
    const qkv::nn::CausalAttention attention({.d_in = 3, .d_out = 2, .context_length = 6}, generator);
    const qkv::Tensor context = attention.forward(words);
    std::printf("%.4f %.4f\n", static_cast<double>(context(1, 0)), static_cast<double>(context(1, 1)));
    qkv::io::write_safetensors("attention.safetensors", attention.state_dict());
    return std::fabs(context(1, 0) + 0.5874F) < 1e-4F ? 0 : 1;
}
