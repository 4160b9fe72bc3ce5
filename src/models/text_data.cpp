#include <algorithm>
#include <cstdint>

#include "core/check.hpp"
#include "core/utf8.hpp"
#include "io/file.hpp"
#include "qkv/models/data.hpp"

namespace qkv::models {

namespace {

constexpr std::int64_t kValidationShare = 10;  // a tenth

/// FNV-1a over the ids (Fowler, Noll & Vo), as 16 hexadecimal digits: it need not resist an attacker, only a mistake.
std::string digest(const std::vector<std::int64_t>& ids) {
    std::uint64_t hash = 0xCBF29CE484222325U;
    for (const std::int64_t id : ids) {
        for (unsigned shift = 0; shift < 64; shift += 8) {
            hash = (hash ^ (static_cast<std::uint64_t>(id) >> shift & 0xFFU)) * 0x100000001B3U;
        }
    }
    constexpr std::string_view kDigits = "0123456789abcdef";
    std::string text;
    for (unsigned shift = 64; shift > 0; shift -= 4) {
        text += kDigits[hash >> (shift - 4) & 0xFU];
    }
    return text;
}

}  // namespace

std::string read_text(const std::vector<std::filesystem::path>& files) {
    std::string all;
    for (const std::filesystem::path& path : files) {
        const io::InputFile source(path);
        const std::string text = io::read_all(source, static_cast<std::uint64_t>(kMaxTextTokens) - all.size());
        if (text.empty()) {
            fail(ErrorCode::format, source.name(), " is empty; expected text");
        }
        const std::size_t odd = std::min(text.find('\0'), first_invalid_utf8(text));
        if (odd != std::string::npos) {
            fail(ErrorCode::format, source.name(), " is no text: byte ", odd, " is ",
                 text[odd] == '\0' ? "NUL" : "not UTF-8");
        }
        all += text;
    }
    return all;
}

TextData::TextData(std::vector<std::int64_t> ids, std::int64_t context) : ids_(std::move(ids)), context_(context) {
    const auto count = static_cast<std::int64_t>(ids_.size());
    const std::int64_t window = context + 1;  // the last token is only a target
    if (context < 1) {
        fail(ErrorCode::invalid_argument, "context is ", context, "; expected 1 or more");
    }
    if (count < 2 * window || count > kMaxTextTokens) {
        fail(ErrorCode::out_of_range, "the text has ", count, " tokens; expected ", 2 * window,
             " (a window of context + 1 tokens for training and one for validation) to ", kMaxTextTokens);
    }
    training_ = count - std::max(count / kValidationShare, window);
}

void TextData::append_window(std::int64_t begin, Batch& batch) const {
    const auto first = ids_.begin() + begin;
    batch.ids.insert(batch.ids.end(), first, first + context_);
    batch.targets.insert(batch.targets.end(), first + 1, first + 1 + context_);
    ++batch.sequences;
}

Batch TextData::draw(std::int64_t sequences, Generator& generator) const {
    Batch batch;
    for (std::int64_t i = 0; i < sequences; ++i) {
        append_window(generator.random() % (training_ - context_), batch);
    }
    return batch;
}

Batch TextData::validation(std::int64_t sequences) const {
    const std::int64_t places = validation_tokens() - context_;
    const std::int64_t count = std::min(sequences, places);
    Batch batch;
    for (std::int64_t i = 0; i < count; ++i) {
        append_window(training_ + i * places / count, batch);
    }
    return batch;
}

std::string TextData::fingerprint() const { return concat("text of ", ids_.size(), " tokens, fnv1a ", digest(ids_)); }

}  // namespace qkv::models
