// Simple self-attention: scores, weights, context, without anything to train.
//
// Prints:
//   scores of journey [1, 6]
//     0.9544  1.4950  1.4754  0.8434  0.7070  1.0865
//   divided by their sum [1, 6]
//     0.1455  0.2278  0.2249  0.1285  0.1077  0.1656
//   weights of journey [1, 6]
//     0.1385  0.2379  0.2333  0.1240  0.1082  0.1581
//   context [6, 3]
//     0.4421  0.5931  0.5790
//     0.4419  0.6515  0.5683
//     0.4431  0.6496  0.5671
//     0.4304  0.6298  0.5510
//     0.4671  0.5910  0.5266
//     0.4177  0.6503  0.5645
//   context of starts [3]
//     0.4431  0.6496  0.5671
//   loops and matrix products are equal: yes
//   naive softmax [3]
//        nan     nan     nan
//   stable softmax [3]
//     0.0000  1.0000  0.0000
//   plain sum [3]
//    -0.6667  0.3333  1.3333
//   softmax [3]
//     0.0391  0.1753  0.7856
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
