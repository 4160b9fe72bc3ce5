// Training: cross-attention learns to read a sequence backwards.
//
// Prints:
//   weights before: row = query, column = source place
//     0.16  0.17  0.17  0.17  0.16  0.16
//     0.16  0.18  0.17  0.17  0.15  0.16
//     0.17  0.17  0.17  0.17  0.17  0.16
//     0.17  0.17  0.16  0.16  0.16  0.17
//     0.17  0.17  0.17  0.18  0.16  0.16
//     0.17  0.17  0.16  0.15  0.18  0.17
//   step  1  loss 0.4791
//   step 10  loss 0.1145
//   step 20  loss 0.0856
//   step 30  loss 0.0778
//   step 40  loss 0.0525
//   step 50  loss 0.0364
//   weights after: row = query, column = source place
//     0.00  0.00  0.00  0.00  0.00  1.00
//     0.00  0.00  0.00  0.00  1.00  0.00
//     0.00  0.00  0.00  1.00  0.00  0.00
//     0.00  0.00  1.00  0.00  0.00  0.00
//     0.00  1.00  0.00  0.00  0.00  0.00
//     1.00  0.00  0.00  0.00  0.00  0.00
#include <cstdio>

#include "reversal.hpp"
#include "walk.hpp"

namespace {

/// Who looks where, in the first sequence of a batch.
void print_weights(const char* when, const qkv::nn::CrossAttention& attention, const Reversal& task) {
    qkv::Trace trace;
    (void)attention.forward(task.queries, task.source, {.trace = &trace});
    const qkv::Tensor& weights = *trace.find("weights");  // [batch, heads, queries, keys]
    std::printf("weights %s: row = query, column = source place\n", when);
    for (std::int64_t query = 0; query < Reversal::tokens; ++query) {
        for (std::int64_t place = 0; place < Reversal::tokens; ++place) {
            std::printf("%6.2f", static_cast<double>(weights(0, 0, query, place)));
        }
        std::printf("\n");
    }
}

}  // namespace

int main() {
    namespace nn = qkv::nn;
    qkv::Generator generator(123);
    nn::CrossAttention attention(
        {.d_query = Reversal::tokens, .d_source = Reversal::width + Reversal::tokens, .d_out = Reversal::width},
        generator);
    nn::AdamW<float> optimizer(attention.parameters(), {.lr = 0.1});
    qkv::Generator unseen(7);
    const Reversal other(unseen);
    print_weights("before", attention, other);

    for (int step = 1; step <= 50; ++step) {
        const Reversal task(generator);
        const auto [loss, d_output] = mean_squared_error(attention.forward(task.queries, task.source), task.wanted);
        attention.zero_gradients();
        (void)attention.backward(d_output);
        optimizer.step();
        if (step == 1 || step % 10 == 0) {
            std::printf("step %2d  loss %.4f\n", step, loss);
        }
    }
    print_weights("after", attention, other);
}
