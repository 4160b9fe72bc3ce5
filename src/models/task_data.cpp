#include <algorithm>
#include <numeric>
#include <utility>

#include "core/check.hpp"
#include "qkv/models/data.hpp"

namespace qkv::models {

namespace {

constexpr std::uint64_t kValidationSeed = 0x76616C69;  // apart from what anyone would train from

std::int64_t below(std::int64_t limit, Generator& generator) {
    return static_cast<std::int64_t>(generator.random()) % limit;
}

char letter(std::int64_t place) { return static_cast<char>('a' + place); }

std::string random_letters(std::int64_t count, Generator& generator) {
    std::string letters;
    for (std::int64_t i = 0; i < count; ++i) {
        letters += letter(below(kMaxTaskLetters, generator));
    }
    return letters;
}

/// The first of a shuffled alphabet (Fisher & Yates).
std::string different_letters(std::int64_t count, Generator& generator) {
    std::string alphabet;
    for (std::int64_t i = 0; i < kMaxTaskLetters; ++i) {
        alphabet += letter(i);
    }
    for (std::int64_t i = 0; i < count; ++i) {
        std::swap(alphabet[static_cast<std::size_t>(i)],
                  alphabet[static_cast<std::size_t>(i + below(kMaxTaskLetters - i, generator))]);
    }
    return alphabet.substr(0, static_cast<std::size_t>(count));
}

}  // namespace

const std::vector<std::string>& task_names() {
    static const std::vector<std::string> names{"copy", "reverse", "sort", "induction"};
    return names;
}

std::string_view task_characters() {
    static_assert(kMaxTaskLetters == 16);
    return ">abcdefghijklmnop";
}

TaskData::TaskData(Task task, std::int64_t context, const text::Tokenizer& tokenizer)
    : task_(task), letters_(context / 2), tokenizer_(tokenizer) {
    if (context % 2 != 0 || context < 4 || letters_ > kMaxTaskLetters) {
        fail(ErrorCode::invalid_argument, "context is ", context, "; expected for a task an even number from 4 to ",
             2 * kMaxTaskLetters, ", twice the letters");
    }
}

std::pair<std::string, std::string> TaskData::puzzle(Generator& generator) const {
    const bool induction = task_ == Task::induction;
    const std::string asked = induction ? different_letters(letters_, generator) : random_letters(letters_, generator);
    std::string answer = asked;
    switch (task_) {
        case Task::copy:
            break;
        case Task::reverse:
            std::ranges::reverse(answer);
            break;
        case Task::sort:
            std::ranges::sort(answer);
            break;
        case Task::induction:
            std::ranges::rotate(answer, answer.begin() + below(letters_, generator));
            break;
    }
    return {asked + '>', answer};
}

Batch TaskData::draw(std::int64_t sequences, Generator& generator) const {
    Batch batch;
    batch.sequences = sequences;
    for (std::int64_t i = 0; i < sequences; ++i) {
        const auto [question, answer] = puzzle(generator);
        const std::vector<std::int64_t> ids = tokenizer_.encode(question + answer);
        if (ids.size() != question.size() + answer.size()) {
            fail(ErrorCode::invalid_argument, "the tokenizer makes ", ids.size(), " tokens of ", question, answer,
                 "; expected a token a letter");
        }
        batch.ids.insert(batch.ids.end(), ids.begin(), ids.end() - 1);
        // Up to here nothing can be known; of induction's answer, neither can the first letter.
        const auto unknown = static_cast<std::ptrdiff_t>(question.size()) - 1 + (task_ == Task::induction ? 1 : 0);
        batch.targets.insert(batch.targets.end(), static_cast<std::size_t>(unknown), kNoTarget);
        batch.targets.insert(batch.targets.end(), ids.begin() + 1 + unknown, ids.end());
    }
    return batch;
}

Batch TaskData::validation(std::int64_t sequences) const {
    Generator generator(kValidationSeed);
    return draw(sequences, generator);
}

std::string TaskData::fingerprint() const {
    return concat("task ", task_names()[static_cast<std::size_t>(task_)], " of ", letters_, " letters");
}

}  // namespace qkv::models
