// Causal multi-head attention whole, projections included, timed in turns: for every line `forward N` or `both N` on
// standard input so many passes are made, and a JSON object with their seconds is written; `write FILE` writes the
// output and the gradient of the input, raw floats. `./dev bench --multi-head` puts it beside torch.
//
//     bench_multi_head BATCH TOKENS WIDTH HEADS SEED THREADS
#include <array>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <sstream>
#include <string>

#include "qkv/nn.hpp"

namespace {

/// Numbers in [-1, 1) that any program can make again: the places' products with 2^32 / golden ratio.
qkv::Tensor scattered(const qkv::Shape& shape, std::uint32_t first) {
    qkv::Tensor values(shape);
    std::uint32_t place = first;
    for (float& value : values.values()) {
        value = static_cast<float>(static_cast<double>(place++ * 2654435761U) / 2147483648.0 - 1.0);
    }
    return values;
}

void take_turns(qkv::nn::MultiHeadAttention& attention, const qkv::Tensor& x, const qkv::Tensor& d_y,
                const qkv::nn::Pass<float>& pass) {
    const auto both = [&] {
        attention.zero_gradients();
        qkv::Tensor y = attention.forward(x, pass);
        return std::pair(std::move(y), attention.backward(d_y));
    };
    for (std::string line; std::getline(std::cin, line);) {
        std::istringstream words(line);
        std::string what, argument;
        words >> what >> argument;
        if (what == "write") {
            attention.train();
            const auto [y, d_x] = both();
            std::ofstream file(argument, std::ios::binary);
            for (const qkv::Tensor* tensor : {&y, &d_x}) {
                file.write(reinterpret_cast<const char*>(tensor->data()),
                           static_cast<std::streamsize>(tensor->numel() * 4));
            }
            std::puts(file.flush() ? "{}" : R"({"error": "could not write"})");
        } else if (what != "both" && what != "forward") {
            std::puts(R"({"error": "expected forward N, both N or write FILE"})");
        } else {
            const bool backward = what == "both";
            backward ? attention.train() : attention.eval();
            const auto start = std::chrono::steady_clock::now();
            for (std::int64_t left = std::atoll(argument.c_str()); left > 0; --left) {
                if (backward) {
                    (void)both();
                } else {
                    (void)attention.forward(x, pass);
                }
            }
            const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
            std::printf("{\"seconds\": %.9f}\n", seconds);
        }
        (void)std::fflush(stdout);
    }
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 7) {
        std::fprintf(stderr, "usage: bench_multi_head BATCH TOKENS WIDTH HEADS SEED THREADS\n");
        return 2;
    }
    try {
        std::array<std::int64_t, 6> numbers{};
        for (std::size_t at = 0; at < numbers.size(); ++at) {
            numbers[at] = std::atoll(argv[at + 1]);
        }
        const auto [batch, tokens, width, heads, seed, threads] = numbers;
        qkv::nn::MultiHeadAttentionOptions options;
        options.d_in = options.d_out = width;
        options.context_length = tokens;
        options.num_heads = heads;
        qkv::Generator generator(static_cast<std::uint64_t>(seed));
        qkv::nn::MultiHeadAttention attention(options, generator);
        const qkv::Runtime runtime(threads);
        qkv::nn::Pass<float> pass;
        pass.runtime = &runtime;
        const qkv::Shape shape{batch, tokens, width};
        take_turns(attention, scattered(shape, 1), scattered(shape, 1000003), pass);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "bench_multi_head: %s\n", error.what());
        return 1;
    }
    return 0;
}
