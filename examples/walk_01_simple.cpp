// Simple self-attention: scores, weights, context, without anything to train.
#include <cstdio>

#include "qkv/qkv.hpp"
#include "walk.hpp"

int main() {
    namespace nn = qkv::nn;
    const qkv::Tensor x = journey();
    const nn::SimpleSelfAttention attention;

    qkv::Trace trace;  // receives every matrix on the way
    const qkv::Tensor context = attention.forward(x, {.trace = &trace});
    constexpr int kJourney = 1;  // rows count from 0
    print("scores of journey", row_of(*trace.find("scores"), kJourney));
    print("divided by their sum", row_of(*trace.find("sum_normalised"), kJourney));
    print("weights of journey", row_of(*trace.find("weights"), kJourney));
    print("context", context);

    // The same for one query, and by three loops.
    print("context of starts", attention.forward_query(x, 2));
    std::printf("loops and matrix products are equal: %s\n", attention.forward_loops(x) == context ? "yes" : "no");

    // Large scores: exp overflows, unless the row's maximum is subtracted first.
    const qkv::Tensor large({3}, {954.4F, 1495.0F, 1475.4F});
    print("naive softmax", nn::normalised(large, nn::Normalise::naive_softmax));
    print("stable softmax", nn::normalised(large, nn::Normalise::softmax));
    // Negative scores: the plain sum yields weights below 0 and above 1.
    const qkv::Tensor mixed({3}, {-1.0F, 0.5F, 2.0F});
    print("plain sum", nn::normalised(mixed, nn::Normalise::sum));
    print("softmax", nn::normalised(mixed, nn::Normalise::softmax));
}
