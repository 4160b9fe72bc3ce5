// Byte pairs: the vocabulary, and a text in it.
#include <algorithm>
#include <unordered_map>

#include "core/check.hpp"
#include "qkv/text.hpp"
#include "text/pieces.hpp"

namespace qkv::text {

namespace {

enum class ByteClass : std::uint8_t { letter, digit, blank, other };

ByteClass class_of(char character) {
    const auto byte = static_cast<unsigned char>(character);
    const unsigned lower = byte | 0x20U;
    if (byte > 127 || (lower >= 'a' && lower <= 'z')) {
        return ByteClass::letter;
    }
    if (byte >= '0' && byte <= '9') {
        return ByteClass::digit;
    }
    return byte == ' ' || (byte >= '\t' && byte <= '\r') ? ByteClass::blank : ByteClass::other;
}

std::vector<std::string> tokens_of(const std::vector<BpeTokenizer::Merge>& merges) {
    const auto count = static_cast<std::int64_t>(merges.size());
    if (count > kMaxVocabulary - kBytes) {
        fail(ErrorCode::invalid_argument, "the tokenizer has ", count, " merges; expected at most ",
             kMaxVocabulary - kBytes);
    }
    std::vector<std::string> tokens;
    tokens.reserve(static_cast<std::size_t>(kBytes + count));
    for (std::int64_t byte = 0; byte < kBytes; ++byte) {
        tokens.emplace_back(1, static_cast<char>(static_cast<unsigned char>(byte)));
    }
    for (const auto& [left, right] : merges) {
        const auto made = static_cast<std::int64_t>(tokens.size());
        if (left < 0 || right < 0 || left >= made || right >= made) {
            fail(ErrorCode::invalid_argument, "merge ", made - kBytes, " joins ", left, " and ", right,
                 "; expected ids from 0 to ", made - 1);
        }
        std::string joined = tokens[static_cast<std::size_t>(left)] + tokens[static_cast<std::size_t>(right)];
        if (joined.size() > kMaxTokenBytes) {
            fail(ErrorCode::invalid_argument, "merge ", made - kBytes, " makes a token of ", joined.size(),
                 " bytes; expected at most ", kMaxTokenBytes);
        }
        tokens.push_back(std::move(joined));
    }
    return tokens;
}

}  // namespace

void for_each_piece(std::string_view text, const std::function<void(std::string_view)>& take) {
    while (!text.empty()) {
        const std::size_t begin = text.front() == ' ' && text.size() > 1 ? 1 : 0;
        const ByteClass kind = class_of(text[begin]);
        std::size_t end = begin + 1;
        while (end < text.size() && end < kMaxTokenBytes && class_of(text[end]) == kind) {
            ++end;
        }
        // The last space of a run belongs to the word that follows it.
        if (kind == ByteClass::blank && end < text.size() && end > 1 && text[end - 1] == ' ' &&
            class_of(text[end]) != ByteClass::blank) {
            --end;
        }
        take(text.substr(0, end));
        text.remove_prefix(end);
    }
}

BpeTokenizer::BpeTokenizer(std::vector<Merge> merges) : Tokenizer(tokens_of(merges)), merges_(std::move(merges)) {
    for (std::size_t i = 0; i < merges_.size(); ++i) {
        if (!ranks_.emplace(merges_[i], static_cast<std::int64_t>(i)).second) {
            fail(ErrorCode::invalid_argument, "merge ", i, " joins ", merges_[i].first, " and ", merges_[i].second,
                 ", as an earlier one does");
        }
    }
}

/// Joins the pair of the lowest rank until none is left; a piece is short, so looking at all pairs again is cheap.
std::vector<std::int64_t> BpeTokenizer::encode_piece(std::string_view piece) const {
    std::vector<std::int64_t> ids;
    for (const char byte : piece) {
        ids.push_back(static_cast<unsigned char>(byte));
    }
    while (true) {
        auto best = ranks_.end();
        for (std::size_t i = 0; i + 1 < ids.size(); ++i) {
            const auto found = ranks_.find({ids[i], ids[i + 1]});
            if (found != ranks_.end() && (best == ranks_.end() || found->second < best->second)) {
                best = found;
            }
        }
        if (best == ranks_.end()) {
            return ids;
        }
        std::size_t kept = 0;
        for (std::size_t i = 0; i < ids.size(); ++i) {
            const bool joins = i + 1 < ids.size() && Merge{ids[i], ids[i + 1]} == best->first;
            ids[kept++] = joins ? kBytes + best->second : ids[i];
            i += joins ? 1 : 0;
        }
        ids.resize(kept);
    }
}

std::vector<std::int64_t> BpeTokenizer::encode(std::string_view text) const {
    std::vector<std::int64_t> ids;
    std::unordered_map<std::string_view, std::vector<std::int64_t>> known;  // words repeat
    for_each_piece(text, [&](std::string_view piece) {
        auto found = known.find(piece);
        if (found == known.end()) {
            found = known.emplace(piece, encode_piece(piece)).first;
        }
        ids.insert(ids.end(), found->second.begin(), found->second.end());
    });
    return ids;
}

std::string BpeTokenizer::saved() const {
    std::string all;
    for (const auto& [left, right] : merges_) {
        all += (all.empty() ? "" : " ") + std::to_string(left) + " " + std::to_string(right);
    }
    return all;
}

}  // namespace qkv::text
