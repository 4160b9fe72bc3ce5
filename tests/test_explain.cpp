// What `qkv explain` runs: how text becomes tokens, which numbers are drawn when, and every default.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "explain/inputs.hpp"
#include "qkv/explain.hpp"
#include "qkv/io.hpp"
#include "qkv/nn.hpp"
#include "support/expect_error.hpp"
#include "support/known_inputs.hpp"
#include "support/temporary_directory.hpp"

namespace qkv::explain {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

const StageReport& stage_of(const Report& report, Stage stage, std::optional<nn::Init> init = std::nullopt) {
    for (const StageReport& candidate : report.stages) {
        if (candidate.stage == stage && (!init || candidate.init == init)) {
            return candidate;
        }
    }
    throw std::runtime_error("no such stage");
}

StageReport only(Request request, Stage stage) {
    request.stages = {stage};
    return run(request).stages.at(0);
}

TEST(SplitText, BlanksSeparateAndPunctuationStandsAlone) {
    EXPECT_THAT(split_text("Your journey starts"), ElementsAre("Your", "journey", "starts"));
    EXPECT_THAT(split_text("  a\tb\nc\r\nd  "), ElementsAre("a", "b", "c", "d"));
    EXPECT_THAT(split_text("Stop. (Now!) \"Yes\", ok?"),
                ElementsAre("Stop", ".", "(", "Now", "!", ")", "\"", "Yes", "\"", ",", "ok", "?"));
    EXPECT_THAT(split_text("don't re-do a_b 3.5"), ElementsAre("don't", "re-do", "a_b", "3", ".", "5"));
    EXPECT_THAT(split_text("übersetzen 日本 👩‍👩‍👧"),
                ElementsAre("übersetzen", "日本", "👩‍👩‍👧"));
    EXPECT_THAT(split_text(""), IsEmpty());
    EXPECT_THAT(split_text(" \n\t "), IsEmpty());
    EXPECT_THAT(split_text("..."), ElementsAre(".", ".", "."));
}

TEST(Labels, RepeatedWordsAreNumbered) {
    EXPECT_THAT(run({.stages = {Stage::simple}, .text = "the cat the dog the the"}).tokens,
                ElementsAre("the", "cat", "the#2", "dog", "the#3", "the#4"));
    // A word that looks like a number already keeps its name.
    EXPECT_THAT(run({.stages = {Stage::simple}, .text = "the the the#2 the"}).tokens,
                ElementsAre("the", "the#3", "the#2", "the#4"));
    EXPECT_THAT(run({.stages = {Stage::simple}, .text = "The the"}).tokens, ElementsAre("The", "the"));
    EXPECT_THAT(run({.stages = {Stage::simple}, .tokens = 3}).tokens, ElementsAre("x1", "x2", "x3"));
}

TEST(Query, ByTokenByPlaceAndByDefault) {
    const std::vector<std::string> tokens{"Your", "journey", "3", "the", "the#2"};
    EXPECT_EQ(find_query(tokens, std::nullopt), 1);
    EXPECT_EQ(find_query(tokens, "Your"), 0);
    EXPECT_EQ(find_query(tokens, "1"), 0);
    EXPECT_EQ(find_query(tokens, "5"), 4);
    EXPECT_EQ(find_query(tokens, "3"), 2);  // a token of that name before a place
    EXPECT_EQ(find_query(tokens, "the#2"), 4);
    EXPECT_EQ(find_query({"one"}, std::nullopt), 0);
    EXPECT_EQ(find_query({"a", "b", "c"}, std::nullopt), 1);
    EXPECT_EQ(find_query({"a", "b", "journey"}, std::nullopt), 2);
    using enum ErrorCode;
    EXPECT_ERROR(find_query(tokens, "0"), invalid_argument, "expected 1 to 5");
    EXPECT_ERROR(find_query(tokens, "6"), invalid_argument, "query 6 is not one of the 5 tokens");
    EXPECT_ERROR(find_query(tokens, "99999999999999999999"), invalid_argument, "is not in the sentence");
    EXPECT_ERROR(find_query(tokens, "jurney"), invalid_argument, "Did you mean journey?");
    EXPECT_ERROR(find_query(tokens, ""), invalid_argument, "query token ''");
    EXPECT_ERROR(find_query(tokens, "a\x1b[2J\n"), invalid_argument, "\\u{1b}[2J\\u{a}");
}

TEST(NearestWord, OnlyWhatIsNear) {
    EXPECT_EQ(nearest_word("journy", {"journey", "sun"}), "journey");
    EXPECT_EQ(nearest_word("explian", {"explain"}), "explain");
    EXPECT_EQ(nearest_word("zzzzz", {"journey", "sun"}), "");
    EXPECT_EQ(nearest_word("", {"sun"}), "");
    EXPECT_EQ(nearest_word("x", {}), "");
}

TEST(Printable, NothingMovesTheCursor) {
    EXPECT_EQ(printable("plain übersetzen 日本"), "plain übersetzen 日本");
    EXPECT_EQ(printable("a\x1b[31m\n\t\x7f"), "a\\u{1b}[31m\\u{a}\\u{9}\\u{7f}");
    EXPECT_EQ(printable("\u202eabc\u2066"), "\\u{202e}abc\\u{2066}");
    EXPECT_EQ(printable("\u0085\u009b"), "\\u{85}\\u{9b}");
    EXPECT_EQ(printable("a\xff"
                        "b\xc3"),
              "a\uFFFDb\uFFFD");
    EXPECT_EQ(printable(std::string_view("\0", 1)), "\\u{0}");
    EXPECT_EQ(printable(""), "");
    EXPECT_EQ(in_quotes("a\n"), "'a\\u{a}'");
    EXPECT_EQ(in_quotes(std::string(500, 'x')), "'" + std::string(59, 'x') + "…'");
}

TEST(Run, AllStagesInTeachingOrderWithTheirSeeds) {
    const Report report = run({});
    std::vector<std::pair<std::string_view, std::uint64_t>> found;
    found.reserve(report.stages.size());
    for (const StageReport& stage : report.stages) {
        found.emplace_back(stage_name(stage.stage), stage.seed);
    }
    EXPECT_THAT(found, ElementsAre(std::pair{"simple", 123U}, std::pair{"self", 123U}, std::pair{"self", 789U},
                                   std::pair{"causal", 123U}, std::pair{"wrapper", 123U}, std::pair{"multi-head", 123U},
                                   std::pair{"cross", 123U}));
    EXPECT_EQ(report.stages[1].init, nn::Init::uniform);
    EXPECT_EQ(report.stages[2].init, nn::Init::linear);
    for (const StageReport& stage : report.stages) {
        EXPECT_FALSE(stage.training);
        EXPECT_EQ(stage.query, 1);
    }
    EXPECT_EQ(report.stages.back().tokens.front(), "Can");
    EXPECT_EQ(report.stages.back().source_tokens.back(), "übersetzen");
    EXPECT_EQ(report.stages.back().heads, 2);
}

TEST(Run, ASeedSetsAll) {
    for (const StageReport& stage : run({.seed = 7}).stages) {
        EXPECT_EQ(stage.seed, 7U);
    }
}

TEST(Run, EachStageStartsWhereTheInputsLeftTheGenerator) {
    Generator generator(5);
    const Tensor x = generator.rand({4, 6});
    const Report report = run({.text = "some words of mine", .dim = 6, .seed = 5});
    for (const Stage stage : {Stage::causal, Stage::multi_head}) {
        Generator fork = generator;
        const Trace& found = stage_of(report, stage).tensors;
        EXPECT_EQ(*found.find("inputs"), x);
        const nn::Linear query(6, 6, false, fork);
        EXPECT_EQ(*found.find("W_query"), query.weight()) << stage_name(stage);
        EXPECT_EQ(*found.find("W_key"), nn::Linear(6, 6, false, fork).weight());
    }
    Generator fork = generator;
    EXPECT_EQ(*stage_of(report, Stage::self, nn::Init::uniform).tensors.find("W_query"), fork.rand({6, 6}));
    // In cross-attention the source is an input too.
    const Trace& cross = stage_of(report, Stage::cross).tensors;
    EXPECT_EQ(*cross.find("source"), generator.rand({8, 6}));
    EXPECT_EQ(*cross.find("W_query"), nn::Linear(6, 6, false, generator).weight());
}

TEST(Run, AStageAloneIsTheStageAmongOthers) {
    for (const Request& base : {Request{.text = "a b c"}, Request{.tokens = 5, .dim = 8, .seed = 9}, Request{.seed = 2},
                                Request{.example = "sun"}, Request{.example = "translate"}}) {
        for (const StageReport& together : run(base).stages) {
            if (together.init == nn::Init::linear && !base.seed && (base.text || base.example == "translate")) {
                continue;  // alone it has its own seed, 789, for the vectors as well
            }
            Request request = base;
            request.init = together.init;
            const StageReport alone = only(request, together.stage);
            EXPECT_EQ(alone.seed, together.seed);
            EXPECT_EQ(alone.tensors.entries(), together.tensors.entries()) << stage_name(together.stage);
        }
    }
}

TEST(Run, TheNotebookDigitForDigit) {
    const Request request{.tokens = 10, .dim = 4, .init = nn::Init::uniform, .seed = 42};
    const StageReport stage = only(request, Stage::self);
    Generator generator(42);
    for (const char* name : {"inputs", "W_query", "W_key", "W_value"}) {
        const Shape shape{name == std::string("inputs") ? 10 : 4, 4};
        EXPECT_EQ(*stage.tensors.find(name), generator.rand(shape)) << name;
    }
    EXPECT_EQ(stage.tokens.front(), "x1");
    EXPECT_THAT(stage.remarks, testing::Contains(HasSubstr("rand(10, 4) of seed 42")));
}

TEST(Run, WidthsByDefault) {
    const auto d_out = [](const Request& request) {
        return only(request, Stage::causal).tensors.find("W_query")->size(0);
    };
    EXPECT_EQ(d_out({}), 2);
    EXPECT_EQ(d_out({.example = "sun"}), 2);
    EXPECT_EQ(d_out({.example = "notebook"}), 4);
    EXPECT_EQ(d_out({.text = "a b"}), 4);
    EXPECT_EQ(d_out({.text = "a b", .dim = 10}), 10);
    EXPECT_EQ(d_out({.text = "a b", .dim = 10, .d_out = 3}), 3);
}

TEST(Run, DropoutNeedsTraining) {
    const StageReport idle = only({.dropout = 0.5}, Stage::causal);
    EXPECT_EQ(idle.tensors.find("dropped_weights"), nullptr);
    EXPECT_THAT(idle.remarks, testing::Contains(HasSubstr("idle without --train")));
    const StageReport active = only({.dropout = 0.5, .train = true}, Stage::causal);
    EXPECT_NE(active.tensors.find("dropped_weights"), nullptr);
    EXPECT_EQ(*active.tensors.find("weights"), *idle.tensors.find("weights"));
    EXPECT_EQ(only({.train = true}, Stage::causal).tensors.find("dropped_weights"), nullptr);
}

TEST(Run, RefusesWhatMakesNoSense) {
    using enum ErrorCode;
    constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
    EXPECT_ERROR(run({.stages = {}}), invalid_argument, "no stage");
    EXPECT_ERROR(run({.text = ""}), invalid_argument, "TEXT has no tokens");
    EXPECT_ERROR(run({.text = "\xff"}), invalid_argument, "UTF-8 at byte 0");
    EXPECT_ERROR(run({.example = "nothing"}), invalid_argument, "'nothing'");
    EXPECT_ERROR(run({.tokens = 0}), invalid_argument, "expected 1 to 2048");
    EXPECT_ERROR(run({.tokens = -5}), invalid_argument, "-5");
    EXPECT_ERROR(run({.tokens = 2049}), out_of_range, "2049");
    EXPECT_ERROR(run({.tokens = std::numeric_limits<std::int64_t>::max()}), out_of_range, "2048");
    EXPECT_ERROR(run({.tokens = 3, .dim = 0}), invalid_argument, "--dim is 0");
    EXPECT_ERROR(run({.d_out = 0}), invalid_argument, "--d-out is 0");
    EXPECT_ERROR(run({.d_out = 100000}), invalid_argument, "--d-out is 100000");
    EXPECT_ERROR(run({.heads = 0}), invalid_argument, "--heads is 0");
    EXPECT_ERROR(run({.context_length = -1}), invalid_argument, "--context-length is -1");
    EXPECT_ERROR(run({.context_length = 5}), out_of_range, "6 tokens are more than the context_length of 5");
    EXPECT_ERROR(run({.dropout = -0.1}), invalid_argument, "dropout is -0.1");
    EXPECT_ERROR(run({.dropout = 1.5, .train = true}), invalid_argument, "dropout is 1.5");
    EXPECT_ERROR(run({.dropout = kNan}), invalid_argument, "dropout is nan");
    EXPECT_ERROR(run({.stages = {Stage::multi_head}, .d_out = 8, .heads = 3}), invalid_argument, "try 2 or 4");
    EXPECT_ERROR(run({.stages = {Stage::self}, .init = nn::Init::uniform, .qkv_bias = true}), invalid_argument, "bias");
    EXPECT_ERROR(run({.stages = {Stage::simple}, .heads = 2}), invalid_argument,
                 "--heads does nothing in stage simple");
    EXPECT_ERROR(run({.text = "a", .tokens = 2}), invalid_argument, "--tokens");
    EXPECT_ERROR(run({.embeddings = "/nowhere/x.csv"}), io, "/nowhere/x.csv");
    EXPECT_ERROR(run({.weights = "x.safetensors"}), invalid_argument, "--stage");
}

TEST(Run, WeightsAreThoseOfTheFile) {
    const test::TemporaryDirectory directory;
    Generator generator(11);
    const nn::MultiHeadAttention module({.d_in = 3, .d_out = 8, .context_length = 9, .num_heads = 4, .qkv_bias = true},
                                        generator);
    io::write_safetensors(directory / "mha.safetensors", module.state_dict());
    const StageReport stage = only({.weights = directory / "mha.safetensors", .heads = 4}, Stage::multi_head);
    EXPECT_EQ(*stage.tensors.find("output"), module.forward(test::journey()));
    EXPECT_EQ(stage.weights_file, "mha.safetensors");
    EXPECT_ERROR(only({.weights = directory / "mha.safetensors"}, Stage::causal), ErrorCode::shape_mismatch,
                 "out_proj");
    EXPECT_ERROR(only({.tokens = 10, .dim = 3, .weights = directory / "mha.safetensors"}, Stage::multi_head),
                 ErrorCode::out_of_range, "context_length of 9");
}

TEST(Json, IsStrictAndReadsBackToTheBit) {
    const Report report = run({.dropout = 0.3, .train = true});
    std::string text;
    write_json(report, [&](std::string_view piece) { text += piece; });
    const nlohmann::json document = nlohmann::json::parse(text);
    EXPECT_EQ(document.at("version"), 1);
    ASSERT_EQ(document.at("stages").size(), report.stages.size());
    for (std::size_t i = 0; i < report.stages.size(); ++i) {
        const auto& tensors = document.at("stages").at(i).at("tensors");
        ASSERT_EQ(tensors.size(), report.stages[i].tensors.entries().size());
        for (const auto& [name, tensor] : report.stages[i].tensors.entries()) {
            EXPECT_EQ(tensors.at(name).at("shape").get<Shape>(), tensor.shape());
            const auto& data = tensors.at(name).at("data");
            ASSERT_EQ(data.size(), static_cast<std::size_t>(tensor.numel()));
            for (std::size_t k = 0; k < data.size(); ++k) {
                const float value = tensor.values()[k];
                if (data[k].is_string()) {
                    EXPECT_EQ(data[k], "-inf");
                    EXPECT_EQ(value, -std::numeric_limits<float>::infinity());
                } else {
                    EXPECT_EQ(data[k].get<float>(), value);
                }
            }
        }
    }
}

TEST(Json, NamesOfTensorsInOrder) {
    const auto names = [](const StageReport& stage) {
        std::vector<std::string> found;
        for (const auto& [name, tensor] : stage.tensors.entries()) {
            found.push_back(name);
        }
        return found;
    };
    EXPECT_THAT(names(only({}, Stage::simple)),
                ElementsAre("inputs", "scores", "sum_normalised", "weights", "context"));
    EXPECT_THAT(names(only({}, Stage::multi_head)),
                ElementsAre("inputs", "W_query", "W_key", "W_value", "queries", "keys", "values", "scores", "scaled",
                            "masked", "weights", "context", "out_proj.weight", "out_proj.bias", "output"));
    EXPECT_THAT(names(only({.qkv_bias = true, .dropout = 0.5, .train = true}, Stage::causal)),
                ElementsAre("inputs", "W_query", "W_query.bias", "W_key", "W_key.bias", "W_value", "W_value.bias",
                            "queries", "keys", "values", "scores", "scaled", "masked", "weights", "dropout_mask",
                            "dropped_weights", "context"));
}

}  // namespace
}  // namespace qkv::explain
