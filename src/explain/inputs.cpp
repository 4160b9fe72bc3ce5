#include "explain/inputs.hpp"

#include <algorithm>
#include <charconv>
#include <set>
#include <utility>

#include "core/check.hpp"
#include "core/utf8.hpp"
#include "explain/examples.hpp"
#include "explain/text_cells.hpp"
#include "qkv/io.hpp"

namespace qkv::explain {

namespace {

constexpr std::int64_t kDefaultDim = 4;  // even, so that the default two heads divide it

std::vector<std::string> checked_tokens(const std::string& text, const char* what) {
    if (!is_valid_utf8(text)) {
        fail(ErrorCode::invalid_argument, what, " is not valid UTF-8 at byte ", first_invalid_utf8(text));
    }
    std::vector<std::string> tokens = split_text(text);
    if (tokens.empty()) {
        fail(ErrorCode::invalid_argument, what, " has no tokens; expected at least one word");
    }
    return tokens;
}

void check_token_count(std::int64_t count, const char* what) {
    if (count < 1) {
        fail(ErrorCode::invalid_argument, what, " is ", count, " tokens; expected 1 to ", kMaxTokens);
    }
    if (count > kMaxTokens) {
        const double gigabytes = static_cast<double>(count) * static_cast<double>(count) * sizeof(float) / 1e9;
        fail(ErrorCode::out_of_range, what, " is ", count, " tokens; expected at most ", kMaxTokens,
             ", because every matrix is kept and each would take ", gigabytes, " GB");
    }
}

Sequence drawn_sequence(std::vector<std::string> tokens, std::int64_t dim, Generator& generator) {
    const auto count = static_cast<std::int64_t>(tokens.size());
    Sequence sequence;
    sequence.tokens = unique_labels(std::move(tokens));
    sequence.vectors = generator.rand<float>({count, dim});
    sequence.drawn = true;
    sequence.remarks.push_back(
        concat("Vectors are random, rand(", count, ", ", dim, ") of seed ", generator.seed(), "; nothing is trained."));
    return sequence;
}

std::int64_t checked_dim(std::int64_t dim) {
    if (dim < 1 || dim > kMaxWidth) {
        fail(ErrorCode::invalid_argument, "--dim is ", dim, "; expected 1 to ", kMaxWidth);
    }
    return dim;
}

/// Vectors from a file, labelled by `text` if given, else by the file, else x1, x2, ….
Sequence read_sequence(const std::filesystem::path& path, const std::optional<std::string>& text, const char* what) {
    io::Embeddings embeddings = io::read_embeddings(path);
    const std::int64_t count = embeddings.vectors.size(0);
    check_token_count(count, what);
    Sequence sequence;
    if (text) {
        sequence.tokens = checked_tokens(*text, "TEXT");
        if (static_cast<std::int64_t>(sequence.tokens.size()) != count) {
            fail(ErrorCode::shape_mismatch, path.string(), " has ", count, " rows for the ", sequence.tokens.size(),
                 " tokens of the text; expected one row a token");
        }
    } else if (!embeddings.tokens.empty()) {
        sequence.tokens = std::move(embeddings.tokens);
    } else {
        sequence.tokens = numbered_tokens(count);
    }
    sequence.tokens = unique_labels(std::move(sequence.tokens));
    sequence.vectors = std::move(embeddings.vectors);
    sequence.remarks.push_back(concat("Vectors from ", printable(path.filename().string()), "."));
    return sequence;
}

Sequence built_in(const Example& example) {
    Sequence sequence;
    sequence.tokens = example.tokens;
    sequence.vectors = example.vectors;
    sequence.d_out = example.d_out;
    return sequence;
}

Sequence example_sequence(const std::string& name, const Request& request, Generator& generator) {
    if (name == "translate") {
        return translate_queries(request, generator);
    }
    const Example* example = find_example(name);
    if (example == nullptr) {
        const std::string near = nearest_word(name, example_names());
        fail(ErrorCode::invalid_argument, "unknown example ", in_quotes(name),
             "; expected journey, sun, notebook or translate",
             near.empty() ? "" : concat(". Did you mean ", near, "?"));
    }
    return built_in(*example);
}

void check_one_sentence(const Request& request) {
    const bool files = request.embeddings.has_value();
    if (request.example && (request.text || request.tokens || files)) {
        fail(ErrorCode::invalid_argument,
             "--example brings its own sentence; leave out TEXT, --tokens and --embeddings");
    }
    if (request.tokens && (request.text || files)) {
        fail(ErrorCode::invalid_argument, "--tokens draws unnamed tokens; leave out TEXT and --embeddings");
    }
}

/// Edit distance (Levenshtein 1966), for suggestions.
std::size_t distance(std::string_view a, std::string_view b) {
    std::vector<std::size_t> row(b.size() + 1);
    for (std::size_t j = 0; j <= b.size(); ++j) {
        row[j] = j;
    }
    for (std::size_t i = 1; i <= a.size(); ++i) {
        std::size_t diagonal = row[0];
        row[0] = i;
        for (std::size_t j = 1; j <= b.size(); ++j) {
            const std::size_t replaced = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
            diagonal = row[j];
            row[j] = std::min({replaced, row[j] + 1, row[j - 1] + 1});
        }
    }
    return row[b.size()];
}

}  // namespace

std::vector<std::string> unique_labels(std::vector<std::string> labels) {
    std::set<std::string> taken(labels.begin(), labels.end());
    std::set<std::string> seen;
    for (std::string& label : labels) {
        if (seen.insert(label).second) {
            continue;
        }
        std::string numbered;
        for (int count = 2; numbered.empty() || taken.contains(numbered); ++count) {
            numbered = concat(label, '#', count);
        }
        label = numbered;
        taken.insert(label);
        seen.insert(label);
    }
    return labels;
}

std::vector<std::string> numbered_tokens(std::int64_t count) {
    std::vector<std::string> tokens;
    for (std::int64_t token = 1; token <= count; ++token) {
        tokens.push_back(concat('x', token));
    }
    return tokens;
}

std::vector<std::string> split_text(std::string_view text) {
    constexpr std::string_view kBlanks = " \t\n\v\f\r";
    constexpr std::string_view kAlone = ".,;:!?()\"";
    std::vector<std::string> tokens;
    std::string word;
    const auto finish = [&] {
        if (!word.empty()) {
            tokens.push_back(std::exchange(word, {}));
        }
    };
    for (const char character : text) {
        const bool alone = kAlone.find(character) != std::string_view::npos;
        if (alone || kBlanks.find(character) != std::string_view::npos) {
            finish();
            if (alone) {
                tokens.emplace_back(1, character);
            }
        } else {
            word += character;
        }
    }
    finish();
    return tokens;
}

Sequence main_sequence(const Request& request, Generator& generator) {
    check_one_sentence(request);
    const bool drawn = (request.text && !request.embeddings) || request.tokens;
    const bool only_cross = request.stages == std::vector{Stage::cross};
    const bool translate =
        request.example == "translate" || (!drawn && !request.example && !request.embeddings && only_cross);
    const bool draws_source =
        !request.source_embeddings && std::ranges::find(request.stages, Stage::cross) != request.stages.end();
    if (request.dim && !drawn && !translate && !draws_source) {
        fail(ErrorCode::invalid_argument, "--dim is the width of random vectors; this sentence has vectors of its own");
    }
    if (request.embeddings) {
        return read_sequence(*request.embeddings, request.text, "--embeddings");
    }
    if (request.text || request.tokens) {
        std::vector<std::string> tokens;
        if (request.text) {
            tokens = checked_tokens(*request.text, "TEXT");
            check_token_count(static_cast<std::int64_t>(tokens.size()), "TEXT");
        } else {
            check_token_count(*request.tokens, "--tokens");
            tokens = numbered_tokens(*request.tokens);
        }
        Sequence sequence =
            drawn_sequence(std::move(tokens), checked_dim(request.dim.value_or(kDefaultDim)), generator);
        if (request.text) {
            sequence.remarks.insert(sequence.remarks.begin(),
                                    "TEXT is split at blanks; each of . , ; : ! ? ( ) \" is a token of its own.");
        }
        return sequence;
    }
    if (translate) {
        return translate_queries(request, generator);
    }
    return example_sequence(request.example.value_or("journey"), request, generator);
}

Sequence translate_queries(const Request& request, Generator& generator) {
    return drawn_sequence(split_text(kTranslateQueries), checked_dim(request.dim.value_or(kDefaultDim)), generator);
}

Sequence source_sequence(const Request& request, std::int64_t default_dim, Generator& generator) {
    if (request.source_embeddings) {
        return read_sequence(*request.source_embeddings, request.source, "--source-embeddings");
    }
    std::vector<std::string> tokens =
        request.source ? checked_tokens(*request.source, "--source") : split_text(kTranslateSource);
    check_token_count(static_cast<std::int64_t>(tokens.size()), "--source");
    return drawn_sequence(std::move(tokens), checked_dim(request.dim.value_or(default_dim)), generator);
}

std::int64_t find_query(const std::vector<std::string>& tokens, const std::optional<std::string>& query) {
    const auto count = static_cast<std::int64_t>(tokens.size());
    if (!query) {
        const auto journey = std::ranges::find(tokens, "journey");
        return journey != tokens.end() ? journey - tokens.begin() : std::min<std::int64_t>(1, count - 1);
    }
    if (const auto found = std::ranges::find(tokens, *query); found != tokens.end()) {
        return found - tokens.begin();
    }
    std::int64_t index = 0;
    const auto [end, error] = std::from_chars(query->data(), query->data() + query->size(), index);
    if (error == std::errc{} && end == query->data() + query->size()) {
        if (index < 1 || index > count) {
            fail(ErrorCode::invalid_argument, "query ", index, " is not one of the ", count, " tokens; expected 1 to ",
                 count);
        }
        return index - 1;
    }
    const std::string near = nearest_word(*query, tokens);
    constexpr std::int64_t kLongestLabel = 24;
    std::string known;
    for (std::int64_t i = 0; i < std::min<std::int64_t>(count, 8); ++i) {
        known += (i == 0 ? "" : ", ") + clipped(printable(tokens[static_cast<std::size_t>(i)]), kLongestLabel);
    }
    fail(ErrorCode::invalid_argument, "query token ", in_quotes(*query), " is not in the sentence; expected ", known,
         count > 8 ? ", …" : "", " or a place from 1 to ", count,
         near.empty() ? "" : concat(". Did you mean ", clipped(printable(near), kLongestLabel), "?"));
}

std::string nearest_word(std::string_view word, const std::vector<std::string>& known) {
    std::string nearest;
    // Two slips in a short word, or a third of a long one, is still a likely misspelling.
    std::size_t best = std::max<std::size_t>(2, word.size() / 3) + 1;
    for (const std::string& candidate : known) {
        if (const std::size_t slips = distance(word, candidate); slips < best && slips < candidate.size()) {
            best = slips;
            nearest = candidate;
        }
    }
    return nearest;
}

}  // namespace qkv::explain
