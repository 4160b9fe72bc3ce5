// What models learn from: windows of a text, tasks, files.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "qkv/models/data.hpp"
#include "support/expect_error.hpp"
#include "support/temporary_directory.hpp"

namespace qkv::models {
namespace {

std::vector<std::int64_t> counting(std::int64_t count) {
    std::vector<std::int64_t> ids(static_cast<std::size_t>(count));
    std::iota(ids.begin(), ids.end(), std::int64_t{0});
    return ids;
}

TEST(TextData, TrainingAndValidationDoNotOverlap) {
    const TextData data(counting(200), 8);
    EXPECT_EQ(data.training_tokens(), 180);
    EXPECT_EQ(data.validation_tokens(), 20);
    Generator generator(1);
    const Batch batch = data.draw(500, generator);
    ASSERT_EQ(batch.ids.size(), 4000U);
    for (std::size_t i = 0; i < batch.ids.size(); ++i) {
        EXPECT_EQ(batch.targets[i], batch.ids[i] + 1);
    }
    // Every window of the training part, and no token of the other.
    EXPECT_EQ(std::ranges::min(batch.ids), 0);
    EXPECT_EQ(std::ranges::max(batch.targets), 179);
    const Batch validation = data.validation(64);
    EXPECT_EQ(validation.sequences, 12);  // places for 8 tokens and a target among 20
    EXPECT_EQ(validation.ids.front(), 180);
    EXPECT_EQ(validation.targets.back(), 199);
    const Batch fewer = data.validation(3);
    EXPECT_EQ(fewer.sequences, 3);
    EXPECT_EQ(fewer.ids[0], 180);
    EXPECT_EQ(fewer.ids[8], 184);
}

// torch.manual_seed(123); torch.randint(1000 - 100 - 16, (4,))
TEST(TextData, DrawsWindowsAsRandint) {
    const TextData data(counting(1000), 16);
    Generator generator(123);
    const Batch batch = data.draw(4, generator);
    std::vector<std::int64_t> begins;
    for (std::size_t i = 0; i < batch.ids.size(); i += 16) {
        begins.push_back(batch.ids[i]);
    }
    EXPECT_THAT(begins, testing::ElementsAre(474, 365, 202, 726));
}

TEST(TextData, RefusesAShortText) {
    EXPECT_ERROR(TextData(counting(17), 8), ErrorCode::out_of_range, "the text has 17 tokens; expected 18");
    EXPECT_EQ(TextData(counting(18), 8).validation(9).sequences, 1);
    EXPECT_ERROR(TextData(counting(18), 0), ErrorCode::invalid_argument, "context is 0");
}

TEST(TextData, FingerprintTellsTextsApart) {
    std::vector<std::int64_t> other = counting(100);
    std::swap(other[3], other[4]);
    EXPECT_EQ(TextData(counting(100), 8).fingerprint(), TextData(counting(100), 4).fingerprint());
    EXPECT_NE(TextData(counting(100), 8).fingerprint(), TextData(other, 8).fingerprint());
    EXPECT_NE(TextData(counting(100), 8).fingerprint(), TextData(counting(101), 8).fingerprint());
}

class TaskTest : public testing::TestWithParam<Task> {
protected:
    const text::CharacterTokenizer tokenizer{task_characters()};
    const TaskData data{GetParam(), 12, tokenizer};
};

TEST_P(TaskTest, AnswersAreRight) {
    Generator generator(4);
    for (int i = 0; i < 200; ++i) {
        const auto [question, answer] = data.puzzle(generator);
        ASSERT_EQ(question.size(), 7U);
        ASSERT_EQ(question.back(), '>');
        std::string asked = question.substr(0, 6);
        switch (GetParam()) {
            case Task::copy:
                EXPECT_EQ(answer, asked);
                break;
            case Task::reverse:
                EXPECT_EQ(answer, std::string(asked.rbegin(), asked.rend()));
                break;
            case Task::sort:
                EXPECT_TRUE(std::ranges::is_sorted(answer));
                EXPECT_TRUE(std::ranges::is_permutation(answer, asked));
                break;
            case Task::induction:
                EXPECT_EQ(std::set<char>(asked.begin(), asked.end()).size(), 6U);
                EXPECT_NE((asked + asked).find(answer), std::string::npos);
                break;
        }
    }
}

TEST_P(TaskTest, OnlyTheAnswerCounts) {
    Generator generator(4);
    const Batch batch = data.draw(3, generator);
    ASSERT_EQ(batch.ids.size(), 36U);
    ASSERT_EQ(batch.targets.size(), 36U);
    const bool induction = GetParam() == Task::induction;
    for (std::size_t i = 0; i < 36; ++i) {
        const std::size_t place = i % 12;
        const bool counts = place >= (induction ? 7 : 6);
        EXPECT_EQ(batch.targets[i] != kNoTarget, counts) << place;
        if (counts && place < 11) {
            EXPECT_EQ(batch.targets[i], batch.ids[i + 1]);
        }
    }
    EXPECT_EQ(tokenizer.token(batch.ids[6]), ">");
    EXPECT_EQ(data.validation(5).ids, data.validation(5).ids);
}

INSTANTIATE_TEST_SUITE_P(All, TaskTest, testing::Values(Task::copy, Task::reverse, Task::sort, Task::induction),
                         [](const auto& task) { return task_names()[static_cast<std::size_t>(task.param)]; });

TEST(TaskDataLimits, AreNamed) {
    const text::CharacterTokenizer tokenizer(task_characters());
    EXPECT_EQ(tokenizer.vocab_size(), kMaxTaskLetters + 1);
    for (const std::int64_t context : {0, 2, 13, 34}) {
        EXPECT_ERROR(TaskData(Task::copy, context, tokenizer), ErrorCode::invalid_argument, "expected for a task");
    }
    EXPECT_EQ(TaskData(Task::copy, 12, tokenizer).fingerprint(), "task copy of 6 letters");
    std::vector<text::BpeTokenizer::Merge> merges;  // of every two letters
    for (std::int64_t first = 'a'; first <= 'p'; ++first) {
        for (std::int64_t second = 'a'; second <= 'p'; ++second) {
            merges.emplace_back(first, second);
        }
    }
    const text::BpeTokenizer joining(std::move(merges));
    EXPECT_ERROR((void)TaskData(Task::copy, 12, joining).validation(1), ErrorCode::invalid_argument,
                 "expected a token a letter");
}

TEST(ReadText, JoinsFilesAndRefusesWhatIsNoText) {
    const test::TemporaryDirectory directory;
    const auto one = directory.write("one.txt", "first ");
    const auto two = directory.write("two.txt", "zwölf");
    EXPECT_EQ(read_text({one, two}), "first zwölf");
    EXPECT_ERROR(read_text({one, directory.write("empty", "")}), ErrorCode::format, "empty\" is empty");
    EXPECT_ERROR(read_text({directory.write("nul", std::string("ab\0c", 4))}), ErrorCode::format, "byte 2 is NUL");
    EXPECT_ERROR(read_text({directory.write("latin1", "z\xf6lf")}), ErrorCode::format, "byte 1 is not UTF-8");
    EXPECT_ERROR(read_text({directory / "absent"}), ErrorCode::io, "No such file");
    EXPECT_ERROR(read_text({directory.path()}), ErrorCode::io, "a directory");
}

}  // namespace
}  // namespace qkv::models
