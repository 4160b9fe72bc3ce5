// The task of train_cross_attention: read a sequence backwards.
#pragma once

#include <cstdint>
#include <utility>

#include "qkv/qkv.hpp"

/// Pairs of sequences. The source holds, at each place, a random content and beside it the code of the place (a 1 among
/// zeros). Query i is nothing but the code of place i. Wanted is the content from the last place to the first, so which
/// code has to look for which is left to W_query and W_key.
struct Reversal {
    static constexpr std::int64_t batch = 16;
    static constexpr std::int64_t tokens = 6;
    static constexpr std::int64_t width = 8;  // of the content

    qkv::Tensor queries = qkv::Tensor({batch, tokens, tokens});
    qkv::Tensor source = qkv::Tensor({batch, tokens, width + tokens});
    qkv::Tensor wanted = qkv::Tensor({batch, tokens, width});

    explicit Reversal(qkv::Generator& generator) {
        const qkv::Tensor content = generator.rand({batch, tokens, width});
        for (std::int64_t b = 0; b < batch; ++b) {
            for (std::int64_t place = 0; place < tokens; ++place) {
                queries(b, place, place) = 1;
                source(b, place, width + place) = 1;
                for (std::int64_t column = 0; column < width; ++column) {
                    source(b, place, column) = content(b, place, column);
                    wanted(b, tokens - 1 - place, column) = content(b, place, column);
                }
            }
        }
    }
};

/// The mean of the squared differences, and its slope for each value of `output`: 2 · difference / count.
template <class T>
std::pair<double, qkv::BasicTensor<T>> mean_squared_error(const qkv::BasicTensor<T>& output,
                                                          const qkv::BasicTensor<T>& wanted) {
    const auto count = static_cast<double>(output.numel());
    double squares = 0;
    qkv::BasicTensor<T> d_output(output.shape());
    for (std::int64_t i = 0; i < output.numel(); ++i) {
        const double difference = static_cast<double>(output.data()[i]) - static_cast<double>(wanted.data()[i]);
        squares += difference * difference;
        d_output.data()[i] = static_cast<T>(2 * difference / count);
    }
    return {squares / count, std::move(d_output)};
}
