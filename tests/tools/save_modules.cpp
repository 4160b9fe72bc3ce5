// save_modules DIRECTORY: one safetensors file for each attention module, drawn from seed 7, for readers in Python.
#include <cstdio>
#include <exception>
#include <filesystem>

#include "qkv/io.hpp"
#include "qkv/nn.hpp"

namespace {

void save_all(const std::filesystem::path& directory) {
    using namespace qkv::nn;
    const auto save = [&directory](const char* name, const auto& module) {
        qkv::io::write_safetensors(directory / name, module.state_dict());
    };
    const auto fresh = [] { return qkv::Generator(7); };
    qkv::Generator generator = fresh();
    save("self_uniform.safetensors", SelfAttention({.d_in = 3, .d_out = 4, .init = Init::uniform}, generator));
    generator = fresh();
    save("self_linear.safetensors", SelfAttention({.d_in = 3, .d_out = 4, .qkv_bias = true}, generator));
    generator = fresh();
    save("causal.safetensors",
         CausalAttention({.d_in = 3, .d_out = 4, .context_length = 6, .qkv_bias = true}, generator));
    const MultiHeadAttentionOptions heads{.d_in = 3, .d_out = 4, .context_length = 6, .num_heads = 2, .qkv_bias = true};
    generator = fresh();
    save("wrapper.safetensors", MultiHeadAttentionWrapper(heads, generator));
    generator = fresh();
    save("multi-head.safetensors", MultiHeadAttention(heads, generator));
    generator = fresh();
    save("cross.safetensors",
         CrossAttention({.d_query = 3, .d_source = 3, .d_out = 4, .num_heads = 2, .qkv_bias = true}, generator));
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 2) {
        (void)std::fprintf(stderr, "usage: save_modules DIRECTORY\n");
        return 2;
    }
    try {
        save_all(argv[1]);
        return 0;
    } catch (const std::exception& error) {
        (void)std::fprintf(stderr, "save_modules: %s\n", error.what());
        return 1;
    }
}
