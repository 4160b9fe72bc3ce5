// Training a small GPT, timed in turns: for every line with a number on standard input so many steps are taken, and a
// JSON object with their seconds and losses is written. `./dev bench --training` puts it beside torch.
//
//     bench_training TEXT --context N --layers N --heads N --dim N --batch N --dropout P --seed N --threads N
#include <sys/resource.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <map>
#include <string>

#include "qkv/error.hpp"
#include "qkv/models.hpp"

namespace {

namespace models = qkv::models;

/// The largest share of memory so far, in MiB.
double peak_mib() {
    struct rusage usage{};
    (void)getrusage(RUSAGE_SELF, &usage);
    return static_cast<double>(usage.ru_maxrss) / 1024;
}

void say_ready(std::int64_t parameters) {
    std::printf(R"({"parameters": %lld, "peak_mib": %.1f})"
                "\n",
                static_cast<long long>(parameters), peak_mib());
    (void)std::fflush(stdout);
}

void take_turns(models::Trainer& trainer) {
    for (std::string line; std::getline(std::cin, line);) {
        std::string losses;
        const auto start = std::chrono::steady_clock::now();
        for (std::int64_t step = std::atoll(line.c_str()); step > 0; --step) {
            losses += (losses.empty() ? "" : ", ") + std::to_string(trainer.step().loss);
        }
        const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        std::printf(R"({"seconds": %.6f, "losses": [%s], "peak_mib": %.1f})"
                    "\n",
                    seconds, losses.c_str(), peak_mib());
        (void)std::fflush(stdout);
    }
}

int run(int argc, char** argv) {
    std::map<std::string, double> options{{"--context", 64}, {"--layers", 4},    {"--heads", 4},  {"--dim", 64},
                                          {"--batch", 16},   {"--dropout", 0.1}, {"--seed", 123}, {"--threads", 0}};
    for (int at = 2; at + 1 < argc; at += 2) {
        options.at(argv[at]) = std::atof(argv[at + 1]);
    }
    const auto whole = [&options](const char* name) { return static_cast<std::int64_t>(options.at(name)); };
    const std::string text = models::read_text({argv[1]});
    const auto tokenizer = std::make_shared<qkv::text::CharacterTokenizer>(text);
    const models::TextData data(tokenizer->encode(text), whole("--context"));
    qkv::nn::GptOptions sizes;
    sizes.vocab_size = tokenizer->vocab_size();
    sizes.context_length = whole("--context");
    sizes.num_layers = whole("--layers");
    sizes.num_heads = whole("--heads");
    sizes.emb_dim = whole("--dim");
    sizes.dropout = options.at("--dropout");
    qkv::Generator generator(static_cast<std::uint64_t>(whole("--seed")));
    models::LanguageModel model(sizes, tokenizer, generator);
    const qkv::Runtime runtime(whole("--threads"));
    const models::TrainOptions train{
        .steps = models::kMaxSteps, .batch = whole("--batch"), .evaluate_every = models::kMaxSteps};
    models::Trainer trainer(model, data, train, generator, runtime);
    std::int64_t parameters = 0;
    for (const auto& [name, parameter] : model.gpt.parameters()) {
        parameters += parameter->value.numel();
    }
    say_ready(parameters);
    take_turns(trainer);
    return 0;
}

}  // namespace

int main(int argc, char** argv) {
    try {
        if (argc < 2 || argc % 2 != 0) {
            std::fprintf(stderr, "usage: bench_training TEXT [--OPTION VALUE]...\n");
            return 2;
        }
        return run(argc, argv);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "bench_training: %s\n", error.what());
        return 1;
    }
}
