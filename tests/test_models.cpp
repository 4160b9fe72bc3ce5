// Trainer, checkpoints, generation, the loss curve.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numbers>
#include <string>
#include <vector>

#include "qkv/models.hpp"
#include "support/expect_error.hpp"
#include "support/temporary_directory.hpp"

namespace qkv::models {
namespace {

using testing::HasSubstr;

/// A tiny model on a tiny text, with dropout, accumulation and evaluations: all that a checkpoint must hold.
struct Setting {
    explicit Setting(std::uint64_t seed = 1, const std::string& text = sentence())
        : generator(seed),
          tokenizer(std::make_shared<text::CharacterTokenizer>(text)),
          data(tokenizer->encode(text), 8),
          model({.vocab_size = tokenizer->vocab_size(),
                 .context_length = 8,
                 .emb_dim = 8,
                 .num_heads = 2,
                 .num_layers = 2,
                 .dropout = 0.1},
                tokenizer, generator) {}
    static std::string sentence() {
        std::string text;
        for (int i = 0; i < 12; ++i) {
            text += "the quick brown fox jumps over the lazy dog. ";
        }
        return text;
    }
    Generator generator;
    std::shared_ptr<const text::Tokenizer> tokenizer;
    TextData data;
    LanguageModel model;
};

constexpr TrainOptions kOptions{.steps = 12,
                                .batch = 3,
                                .accumulate = 2,
                                .lr = 1e-2,
                                .min_lr = 1e-3,
                                .warmup = 3,
                                .evaluate_every = 5,
                                .validation_sequences = 4};

TEST(LearningRate, RisesAndFallsAsDefined) {
    const TrainOptions options{.steps = 110, .lr = 1.0, .min_lr = 0.2, .warmup = 10};
    EXPECT_DOUBLE_EQ(learning_rate(options, 1), 0.1);
    EXPECT_DOUBLE_EQ(learning_rate(options, 10), 1.0);
    EXPECT_DOUBLE_EQ(learning_rate(options, 60), 0.6);  // half-way down the cosine
    EXPECT_DOUBLE_EQ(learning_rate(options, 35), 0.2 + 0.8 * (1 + std::numbers::sqrt2 / 2) / 2);
    EXPECT_DOUBLE_EQ(learning_rate(options, 110), 0.2);
    EXPECT_DOUBLE_EQ(learning_rate({.steps = 5, .lr = 1.0, .min_lr = 0.0, .warmup = 0}, 5), 0.0);
    EXPECT_DOUBLE_EQ(learning_rate({.steps = 5, .lr = 1.0, .min_lr = 0.0, .warmup = 10}, 5), 0.5);
}

TEST(Trainer, LearnsASentence) {
    Setting setting;
    const TrainOptions options{.steps = 150, .batch = 8, .lr = 1e-2, .warmup = 10, .evaluate_every = 50};
    Trainer trainer(setting.model, setting.data, options, setting.generator);
    const double before = trainer.evaluate().loss;
    while (!trainer.finished()) {
        (void)trainer.step();
    }
    const Evaluation after = trainer.evaluate();
    EXPECT_GT(before, 3.0);
    EXPECT_LT(after.loss, 1.5);
    EXPECT_GT(after.accuracy, 0.5);
    EXPECT_EQ(trainer.history().validations.size(), 3U);
    EXPECT_EQ(trainer.history().losses.size(), 150U);
}

TEST(Trainer, ResumedAtAnyStepHasTheSameBits) {
    const test::TemporaryDirectory directory;
    Setting whole;
    Trainer uninterrupted(whole.model, whole.data, kOptions, whole.generator);
    for (int step = 1; step <= 12; ++step) {
        (void)uninterrupted.step();
        uninterrupted.save(directory / std::to_string(step));
    }
    const std::string last = test::TemporaryDirectory::read(directory / "12");
    const Runtime two(2);
    for (const int stop : {1, 4, 5, 11}) {
        const ModelFile file = read_model_file(directory / std::to_string(stop));
        LanguageModel model = load_language_model(file, "file");
        // Another seed: nothing may depend on what resume replaces. Another number of threads: nothing may on that.
        Trainer trainer(model, whole.data, train_options_of(file, "file"), Generator(99), two);
        trainer.resume(file, "file");
        EXPECT_EQ(trainer.steps_done(), stop);
        while (!trainer.finished()) {
            (void)trainer.step();
        }
        trainer.save(directory / "resumed");
        EXPECT_TRUE(test::TemporaryDirectory::read(directory / "resumed") == last) << "stopped after " << stop;
    }
}

TEST(Trainer, OneStepIsAdamWOnTheMeanLoss) {
    // Two batches accumulated, by hand, with a plain loop.
    Setting a;
    Setting b;
    TrainOptions options = kOptions;
    options.clip = 0.05;
    Trainer trainer(a.model, a.data, options, a.generator);
    const Trainer::Step step = trainer.step();

    Generator generator = b.generator;
    double loss = 0;
    for (int part = 0; part < 2; ++part) {
        const Batch batch = b.data.draw(3, generator);
        auto result = nn::cross_entropy_backward(b.model.gpt.forward(batch.ids, 3, {.generator = &generator}),
                                                 batch.targets, {.scale = 0.5});
        b.model.gpt.backward(std::move(result.d_logits));
        loss += result.loss / 2;
    }
    const auto parameters = b.model.gpt.parameters();
    const double norm = nn::clip_gradient_norm(parameters, 0.05);
    EXPECT_EQ(step.loss, static_cast<double>(static_cast<float>(loss)));
    EXPECT_EQ(step.gradient_norm, norm);
    EXPECT_GT(norm, 0.05);
    for (const auto& named : parameters) {
        const bool matrix = named.second->value.rank() == 2;
        nn::AdamW<float> adamw({named}, {.lr = options.lr / 3, .beta2 = 0.99, .weight_decay = matrix ? 0.1 : 0.0});
        adamw.step();
    }
    EXPECT_EQ(a.model.gpt.state_dict(), b.model.gpt.state_dict());
}

TEST(Trainer, SaysWhereTheFirstNonFiniteNumberIs) {
    const auto broken = [](const std::string& name, float value) {
        Setting setting;
        StateDict<float> state = setting.model.gpt.state_dict();
        state.at(name).data()[1] = value;
        setting.model.gpt.load_state_dict(state);
        Trainer trainer(setting.model, setting.data, kOptions, setting.generator);
        (void)trainer.step();
    };
    const float nan = std::numeric_limits<float>::quiet_NaN();
    EXPECT_ERROR(
        broken("trf_blocks.1.norm1.scale", nan), ErrorCode::out_of_range,
        "step 1: the loss is nan; the first tensor that is not finite is the parameter trf_blocks.1.norm1.scale");
    // Finite parameters whose product is not: what the first layer's attention gets overflows.
    EXPECT_ERROR(broken("trf_blocks.0.norm1.scale", 3e38F), ErrorCode::out_of_range, "is trf_blocks.0.att.inputs");
}

TEST(Trainer, KeepsTheFileRatherThanSaveWhatIsNotFinite) {
    const test::TemporaryDirectory directory;
    Setting setting;
    const Trainer trainer(setting.model, setting.data, kOptions, setting.generator);
    trainer.save(directory / "file");
    const StateDict<float> saved = read_model_file(directory / "file").tensors;
    setting.model.gpt.parameters().front().second->value.data()[3] = std::numeric_limits<float>::infinity();
    EXPECT_ERROR(trainer.save(directory / "file"), ErrorCode::out_of_range,
                 "after step 0 the tensor tok_emb.weight is not finite");
    EXPECT_EQ(read_model_file(directory / "file").tensors, saved);
}

TEST(Trainer, RefusesOptionsOutOfRange) {
    Setting setting;
    const auto refused = [&](TrainOptions options, const char* part) {
        EXPECT_ERROR(Trainer(setting.model, setting.data, options, setting.generator), ErrorCode::invalid_argument,
                     part);
    };
    refused({.steps = 0}, "steps is 0");
    refused({.batch = -1}, "batch is -1");
    refused({.lr = std::numeric_limits<double>::quiet_NaN()}, "lr is nan");
    refused({.clip = -1}, "clip is -1");
}

/// A saved training, and what becomes of it when something in it is changed.
class BrokenFile : public testing::Test {
protected:
    BrokenFile() : trainer(setting.model, setting.data, kOptions, setting.generator) {
        (void)trainer.step();
        trainer.save(directory / "file");
        file = read_model_file(directory / "file");
    }
    void expect_resume_refused(ErrorCode code, const char* part) {
        const StateDict<float> before = setting.model.gpt.state_dict();
        EXPECT_ERROR(trainer.resume(file, "FILE"), code, part);
        EXPECT_ERROR(trainer.resume(file, "FILE"), code, "FILE");
        EXPECT_EQ(setting.model.gpt.state_dict(), before);
        EXPECT_EQ(trainer.steps_done(), 1);
    }
    void expect_load_refused(ErrorCode code, const char* part) {
        EXPECT_ERROR(load_language_model(file, "FILE"), code, part);
        EXPECT_ERROR(load_language_model(file, "FILE"), code, "FILE");
    }
    test::TemporaryDirectory directory;
    Setting setting;
    Trainer trainer;
    ModelFile file;
};

TEST_F(BrokenFile, OtherDataAreNamed) {
    Setting other(1, Setting::sentence() + "x");
    Trainer trainer_of_other(other.model, other.data, kOptions, other.generator);
    EXPECT_ERROR(
        trainer_of_other.resume(file, "FILE"), ErrorCode::shape_mismatch,
        "FILE was trained on a " + setting.data.fingerprint() + "; these data are a " + other.data.fingerprint());
}

TEST_F(BrokenFile, TrainingStateIsChecked) {
    const ModelFile good = file;
    const auto metadata = [&](const char* key, const std::string& value, const char* part) {
        file = good;
        file.metadata[key] = value;
        expect_resume_refused(ErrorCode::format, part);
    };
    metadata("training.generator", "12", "set_state");
    metadata("training.generator", std::string(8 * 630, 'g'), "no list of hexadecimal");
    file = good;
    file.metadata.erase("training.data");
    expect_resume_refused(ErrorCode::format, "no training.data");
    file = good;
    file.tensors.erase("training.losses");
    expect_resume_refused(ErrorCode::format, "no tensor training.losses");
    file = good;
    file.tensors["training.validations"] = Tensor({1, 2});
    expect_resume_refused(ErrorCode::format, "has shape [1, 2]");
    file = good;
    file.tensors["training.validations"] = Tensor({1, 3}, {2, 0, 0});
    expect_resume_refused(ErrorCode::format, "has step 2 in row 0");
    file = good;
    file.tensors["training.adamw.pos_emb.weight.exp_avg"] = Tensor({2});
    expect_resume_refused(ErrorCode::shape_mismatch, "pos_emb.weight.exp_avg");
    file = good;
    file.tensors["training.adamw.nothing.step"] = Tensor({2});
    expect_resume_refused(ErrorCode::shape_mismatch, "nothing.step");
    for (const char* value : {"", "0", "-5", "1e3", "9999999999", "12 "}) {
        file = good;
        file.metadata["training.steps"] = value;
        EXPECT_ERROR(train_options_of(file, "FILE"), ErrorCode::format, "FILE: training.steps is");
    }
    file.metadata.erase("training.steps");
    EXPECT_ERROR(train_options_of(file, "FILE"), ErrorCode::format, "no training.steps");
}

TEST_F(BrokenFile, ModelIsChecked) {
    const ModelFile good = file;
    const auto metadata = [&](const char* key, const std::string& value, ErrorCode code, const char* part) {
        file = good;
        file.metadata[key] = value;
        expect_load_refused(code, part);
    };
    metadata("num_heads", "0", ErrorCode::format, "num_heads is");
    metadata("num_heads", "3", ErrorCode::format, "3");
    metadata("dropout", "nan", ErrorCode::format, "dropout is");
    metadata("gelu_tanh", "2", ErrorCode::format, "gelu_tanh is");
    metadata("tokenizer", "wordpiece", ErrorCode::format, "unknown kind");
    metadata("tokenizer_data", "abc", ErrorCode::shape_mismatch, "the tokenizer's 3");
    file = good;
    file.tensors.erase("final_norm.scale");
    expect_load_refused(ErrorCode::shape_mismatch, "final_norm.scale");
    file = good;
    file.tensors["trf_blocks.1.ff.layers.0.weight"] = Tensor({8, 8});
    expect_load_refused(ErrorCode::shape_mismatch, "trf_blocks.1.ff.layers.0.weight");
    file = good;
    file.tensors["extra"] = Tensor({8, 8});
    expect_load_refused(ErrorCode::shape_mismatch, "extra");
}

TEST_F(BrokenFile, FilesOfOthersAreRefused) {
    io::write_safetensors<float>(directory / "other", {{"weight", Tensor({1})}});
    EXPECT_ERROR(read_model_file(directory / "other"), ErrorCode::format, "is no model of qkv train");
    file.tensors["tok_emb.weight"].data()[0] = std::numeric_limits<float>::infinity();
    io::write_safetensors(directory / "other", file.tensors, file.metadata);
    EXPECT_ERROR(read_model_file(directory / "other"), ErrorCode::format, "\"tok_emb.weight\" holds what is no finite");
    EXPECT_ERROR(read_model_file(directory / "absent"), ErrorCode::io, "No such file");
}

std::map<std::int64_t, int> drawn(const std::vector<float>& logits, const SampleOptions& options, int draws = 4000) {
    Generator generator(3);
    std::map<std::int64_t, int> counts;
    for (int i = 0; i < draws; ++i) {
        ++counts[sample(logits, options, generator)];
    }
    return counts;
}

TEST(Sample, FollowsTheShares) {
    const std::vector<float> logits{std::log(0.1F), std::log(0.6F), std::log(0.3F)};
    auto counts = drawn(logits, {});
    EXPECT_NEAR(counts[0], 400, 80);  // four deviations
    EXPECT_NEAR(counts[1], 2400, 125);
    counts = drawn(logits, {.temperature = 0.5});  // squares: 0.01, 0.36, 0.09 of 0.46
    EXPECT_NEAR(counts[0], 4000.0 / 46, 40);
    EXPECT_NEAR(counts[1], 4000.0 * 36 / 46, 105);
    counts = drawn(logits, {.top_k = 2});
    EXPECT_EQ(counts[0], 0);
    EXPECT_NEAR(counts[2], 4000.0 / 3, 120);
    counts = drawn(logits, {.top_p = 0.6});
    EXPECT_EQ(counts[1], 4000);
    counts = drawn(logits, {.top_p = 0.61});
    EXPECT_EQ(counts[0], 0);
    EXPECT_NEAR(counts[2], 4000.0 / 3, 120);
}

TEST(Sample, GreedyTakesTheFirstOfEqualsAndDrawsNothing) {
    Generator generator(3);
    const std::vector<std::uint32_t> state = generator.state();
    EXPECT_EQ(sample(std::vector<float>{1, 5, 5, -1}, {.temperature = 0}, generator), 1);
    EXPECT_EQ(generator.state(), state);
    EXPECT_EQ(drawn({0, 500, 0}, {.temperature = 1e-30})[1], 4000);
    EXPECT_EQ(drawn({-std::numeric_limits<float>::infinity(), 0}, {})[1], 4000);
}

TEST(Sample, RefusesNonsense) {
    Generator generator(3);
    const std::vector<float> logits{1, 2};
    EXPECT_ERROR(sample(logits, {.temperature = -1}, generator), ErrorCode::invalid_argument, "temperature is -1");
    EXPECT_ERROR(sample(logits, {.top_k = -1}, generator), ErrorCode::invalid_argument, "top_k is -1");
    EXPECT_ERROR(sample(logits, {.top_p = 0}, generator), ErrorCode::invalid_argument, "top_p is 0");
    EXPECT_ERROR(sample(logits, {.top_p = std::nan("")}, generator), ErrorCode::invalid_argument, "top_p is nan");
    EXPECT_ERROR(sample({}, {}, generator), ErrorCode::shape_mismatch, "no logits");
    EXPECT_ERROR(sample(std::vector<float>{1, std::nanf("")}, {}, generator), ErrorCode::out_of_range,
                 "token 1 is nan");
}

/// The most likely next token by a forward over all tokens, without a cache.
std::int64_t likeliest(const LanguageModel& model, const std::vector<std::int64_t>& ids) {
    const Tensor logits = model.gpt.forward(ids, 1);
    const auto row = logits.row(static_cast<std::int64_t>(ids.size()) - 1);
    return std::ranges::max_element(row) - row.begin();
}

TEST(Generation, IsTheModelsOwnContinuationAndSlidesByHalves) {
    Setting setting;
    setting.model.gpt.eval();
    std::vector<std::int64_t> window = setting.tokenizer->encode("the");
    Generation generation(setting.model, window, {.temperature = 0}, 1);
    for (int token = 0; token < 30; ++token) {
        if (window.size() > 8) {
            window.erase(window.begin(), window.end() - 4);
        }
        const std::int64_t next = generation.next();
        ASSERT_EQ(next, likeliest(setting.model, window)) << "token " << token;
        window.push_back(next);
    }
}

TEST(Generation, ReadsTheEndOfALongPromptAndBeginsWithoutOne) {
    Setting setting;
    setting.model.gpt.eval();
    const std::vector<std::int64_t> long_prompt = setting.tokenizer->encode("the quick brown fox");
    Generation from_long(setting.model, long_prompt, {.temperature = 0}, 1);
    EXPECT_EQ(from_long.next(), likeliest(setting.model, {long_prompt.end() - 8, long_prompt.end()}));
    const auto text_of = [&](std::uint64_t seed) {
        Generation generation(setting.model, {}, {}, seed);
        std::vector<std::int64_t> ids(20);
        std::ranges::generate(ids, [&] { return generation.next(); });
        return setting.tokenizer->decode(ids);
    };
    EXPECT_EQ(text_of(1), text_of(1));
    EXPECT_NE(text_of(1), text_of(2));
}

TEST(LossCurve, HasAPointForEveryEvaluationAndAFewForManySteps) {
    History history;
    for (int step = 1; step <= 1000; ++step) {
        history.losses.push_back(4.0F * std::exp(-static_cast<float>(step) / 300));
    }
    history.validations = {{.step = 500, .loss = 1.5F}, {.step = 1000, .loss = 0.5F}};
    const std::string svg = loss_curve_svg(history);
    EXPECT_EQ(svg, loss_curve_svg(history));
    EXPECT_THAT(svg, HasSubstr("validation 0.500"));
    const auto count = [&](std::string_view what) {
        std::size_t found = 0;
        for (std::size_t at = svg.find(what); at != std::string::npos; at = svg.find(what, at + 1)) {
            ++found;
        }
        return found;
    };
    EXPECT_EQ(count("<circle"), 2U);
    EXPECT_EQ(count("<polyline"), 2U);
    // Half-way and at the end of 568 columns from 56 on; losses 0 … 4 on 282 rows from 34 on.
    EXPECT_THAT(svg, HasSubstr("cx=\"340.0\" cy=\"210.2\""));
    EXPECT_THAT(svg, HasSubstr("cx=\"624.0\" cy=\"280.8\""));
    EXPECT_LT(count(","), 260U);
    EXPECT_EQ(svg.find("nan"), std::string::npos);
}

TEST(LossCurve, OfNothingOrOneStepIsStillAPicture) {
    for (const auto& losses : {std::vector<float>{}, {2.5F}, {2.5F, 2.5F}}) {
        const std::string svg = loss_curve_svg({.losses = losses, .lrs = losses, .validations = {}});
        EXPECT_THAT(svg, HasSubstr("</svg>"));
        EXPECT_EQ(svg.find("nan"), std::string::npos);
        EXPECT_EQ(svg.find("inf"), std::string::npos);
    }
}

}  // namespace
}  // namespace qkv::models
