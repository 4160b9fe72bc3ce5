// A small GPT: its parts, its logits, and how it learns to read a word backwards.
//
// Prints:
//   tok_emb.weight                       [17, 32]
//   pos_emb.weight                       [12, 32]
//   trf_blocks.0.att.W_query.weight      [32, 32]
//   trf_blocks.0.att.W_key.weight        [32, 32]
//   trf_blocks.0.att.W_value.weight      [32, 32]
//   trf_blocks.0.att.out_proj.weight     [32, 32]
//   trf_blocks.0.att.out_proj.bias       [32]
//   trf_blocks.0.ff.layers.0.weight      [128, 32]
//   trf_blocks.0.ff.layers.0.bias        [128]
//   trf_blocks.0.ff.layers.2.weight      [32, 128]
//   trf_blocks.0.ff.layers.2.bias        [32]
//   trf_blocks.0.norm1.scale             [32]
//   trf_blocks.0.norm1.shift             [32]
//   trf_blocks.0.norm2.scale             [32]
//   trf_blocks.0.norm2.shift             [32]
//   final_norm.scale                     [32]
//   final_norm.shift                     [32]
//   out_head.weight                      [17, 32]
//   14144 parameters
//   logits [1, 7, 17], those of the last token begin 0.4714 -0.4263 -0.1545 -0.7293
//   before: badcab>eiaaim
//   step   1  loss 3.054
//   step  50  loss 0.494
//   step 100  loss 0.018
//   step 150  loss 0.008
//   step 200  loss 0.005
//   step 250  loss 0.004
//   step 300  loss 0.003
//   after: badcab>bacdab
#include <algorithm>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "qkv/qkv.hpp"

namespace {

namespace nn = qkv::nn;
namespace models = qkv::models;
using Gpt = nn::BasicGpt<double>;  // in double the printed digits are the same on every machine

/// The most likely token after the last one.
std::int64_t likeliest(const qkv::Tensor64& logits) {
    const auto row = logits.row(logits.numel() / logits.size(-1) - 1);
    return std::ranges::max_element(row) - row.begin();
}

/// `prompt` and as many letters as it has before its `>`, each read back as the next input.
std::string answered(const Gpt& gpt, const qkv::text::Tokenizer& tokenizer, const std::string& prompt) {
    nn::GptCache cache(gpt.options(), 1, qkv::DType::f64);  // keys and values of all that was read
    std::vector<std::int64_t> ids = tokenizer.encode(prompt);
    std::string text = prompt;
    for (std::size_t letter = 1; letter < prompt.size(); ++letter) {
        ids = {likeliest(gpt.forward(ids, cache))};
        text += tokenizer.decode(ids);
    }
    return text;
}

}  // namespace

int main() {
    // Characters are tokens: > and a to p. A sequence is six letters, >, and the same six backwards.
    const qkv::text::CharacterTokenizer tokenizer(models::task_characters());
    const models::TaskData task(models::Task::reverse, 12, tokenizer);

    qkv::Generator generator(123);
    Gpt gpt(
        {.vocab_size = tokenizer.vocab_size(), .context_length = 12, .emb_dim = 32, .num_heads = 2, .num_layers = 1},
        generator);
    std::int64_t count = 0;
    for (const auto& [name, parameter] : gpt.parameters()) {
        std::printf("%-36s %s\n", name.c_str(), qkv::to_string(parameter->value.shape()).c_str());
        count += parameter->value.numel();
    }
    std::printf("%lld parameters\n", static_cast<long long>(count));

    const qkv::Tensor64 logits = gpt.forward(tokenizer.encode("badcab>"), 1);
    std::printf("logits %s, those of the last token begin", qkv::to_string(logits.shape()).c_str());
    for (std::int64_t id = 0; id < 4; ++id) {
        std::printf(" %.4f", logits(0, 6, id));
    }
    std::printf("\nbefore: %s\n", answered(gpt, tokenizer, "badcab>").c_str());

    nn::AdamW<double> optimizer(gpt.parameters(), {.lr = 5e-3});
    for (int step = 1; step <= 300; ++step) {
        const models::Batch batch = task.draw(16, generator);
        auto [loss, d_logits] = nn::cross_entropy_backward(gpt.forward(batch.ids, batch.sequences), batch.targets,
                                                           {.ignore_index = models::kNoTarget});
        gpt.zero_gradients();
        gpt.backward(std::move(d_logits));
        optimizer.step();
        if (step == 1 || step % 50 == 0) {
            std::printf("step %3d  loss %.3f\n", step, loss);
        }
    }
    gpt.eval();
    std::printf("after: %s\n", answered(gpt, tokenizer, "badcab>").c_str());
}
