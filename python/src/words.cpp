#include "words.hpp"

#include <array>
#include <regex>
#include <utility>

namespace qkv::python {

namespace {

/// What C++ calls otherwise, and the short notations of sizes and types.
const std::array<std::pair<std::regex, const char*>, 11>& translations() {
    static const std::array<std::pair<std::regex, const char*>, 11> all{{
        {std::regex(R"(\binput has shape)"), "x has shape"},
        {std::regex(R"(the gradient of the output)"), "d_output"},
        {std::regex(R"(the gradient of the context)"), "d_context"},
        {std::regex(R"(a Generator in the Pass; give one)"), "a generator; give generator=qkv.Generator(seed)"},
        {std::regex(R"(\bpositions\.each\b)"), "positions"},
        {std::regex(R"(\b(Runtime: |KvCache: |saved\.|positions\.))"), ""},
        {std::regex(R"(([ (])\[(-?\d+)\])"), "$1($2,)"},
        {std::regex(R"(([ (])\[(-?\d+(, -?\d+)+)\])"), "$1($2)"},
        {std::regex(R"(([ (])\[\])"), "$1()"},
        {std::regex(R"(\bf(16|32|64)\b)"), "float$1"},
        {std::regex(R"(\bbf16\b)"), "bfloat16"},
    }};
    return all;
}

}  // namespace

std::string in_python_words(std::string_view message) {
    std::string result;
    bool quoted = false;
    while (true) {
        const std::size_t quote = message.find('\'');
        std::string part(message.substr(0, quote));
        if (!quoted) {
            for (const auto& [pattern, words] : translations()) {
                part = std::regex_replace(part, pattern, words);
            }
        }
        result += part;
        if (quote == std::string_view::npos) {
            return result;
        }
        result += '\'';
        message.remove_prefix(quote + 1);
        quoted = !quoted;
    }
}

}  // namespace qkv::python
