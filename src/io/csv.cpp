#include <algorithm>
#include <utility>

#include "core/check.hpp"
#include "core/utf8.hpp"
#include "io/embeddings.hpp"
#include "io/number.hpp"
#include "io/quote.hpp"

namespace qkv::io {
namespace {

struct Field {
    std::string text;
    bool quoted = false;
    bool ends_row = false;
};

/// Takes comma-separated text (RFC 4180) apart, a field at a time. A copy looks ahead.
class CsvReader {
public:
    CsvReader(std::string_view text, std::string_view name) : text_(text), name_(name) {}

    [[nodiscard]] bool at_end() const { return offset_ == text_.size(); }

    /// Whether only line ends follow.
    [[nodiscard]] bool rest_is_blank() const { return text_.find_first_not_of("\r\n", offset_) == text_.npos; }

    Field next() {
        if (starts_row_) {
            ++line_;
            column_ = 0;
        }
        ++column_;
        Field field;
        field.quoted = peek() == '"';
        if (field.quoted) {
            field.text = quoted_text();
        } else {
            const std::size_t end = std::min(text_.find_first_of(",\r\n\"", offset_), text_.size());
            field.text = text_.substr(offset_, end - offset_);
            offset_ = end;
        }
        field.ends_row = !skip(",");
        if (field.ends_row && !at_end() && !skip("\r\n") && !skip("\n")) {
            refuse(quote(text_.substr(offset_, 1)),
                   " inside or after a field; expected a comma or the end of the line");
        }
        starts_row_ = field.ends_row;
        return field;
    }

    /// "name: line 2, column 3" of the last field.
    [[nodiscard]] std::string where() const { return concat(name_, ": line ", line_, ", column ", column_); }

    template <class... Part>
    [[noreturn]] void refuse(const Part&... part) const {
        fail(ErrorCode::format, where(), ": ", part...);
    }

private:
    [[nodiscard]] char peek() const { return at_end() ? '\0' : text_[offset_]; }

    bool skip(std::string_view expected) {
        const bool found = text_.substr(offset_).starts_with(expected);
        offset_ += found ? expected.size() : 0;
        return found;
    }

    std::string quoted_text() {
        std::string text;
        std::size_t lines = 0;
        ++offset_;
        while (true) {
            const std::size_t end = text_.find('"', offset_);
            if (end == text_.npos) {
                refuse("a quoted field is never closed");
            }
            text += text_.substr(offset_, end - offset_);
            offset_ = end + 1;
            if (!skip("\"")) {
                break;
            }
            text += '"';
        }
        for (const char character : text) {
            lines += character == '\n' ? 1U : 0U;
        }
        line_ += lines;
        return text;
    }

    std::string_view text_;
    std::string_view name_;
    std::size_t offset_ = 0;
    std::size_t line_ = 0;
    std::size_t column_ = 0;
    bool starts_row_ = true;
};

/// The field without the blanks around it, which people type after commas.
std::string_view trimmed(const Field& field) {
    std::string_view text = field.text;
    text.remove_prefix(std::min(text.find_first_not_of(" \t"), text.size()));
    return text.substr(0, text.find_last_not_of(" \t") + 1);
}

/// Whether the first column holds labels, from the first row. NaN and infinity are numbers here, so that they are
/// refused instead of taken for labels.
bool has_labels(CsvReader ahead) {
    const Field first = ahead.next();
    const char* const problem = parse_float(trimmed(first)).problem;
    if (problem != nullptr && std::string_view(problem) == kNotANumber) {
        return true;
    }
    return first.quoted && !first.ends_row && !ahead.next().quoted;
}

}  // namespace

Embeddings parse_csv(std::string_view text, std::string_view name) {
    if (text.find_first_not_of("\r\n") == text.npos) {
        fail(ErrorCode::format, name, ": no rows");
    }
    CsvReader reader(text, name);
    const bool labelled = has_labels(reader);
    Embeddings embeddings;
    std::vector<float> values;
    std::int64_t rows = 0;
    std::int64_t width = 0;
    while (!reader.rest_is_blank()) {
        bool row_ended = false;
        if (labelled) {
            Field label = reader.next();
            check_label(label.text, reader.where());
            embeddings.tokens.push_back(std::move(label.text));
            row_ended = label.ends_row;
        }
        std::int64_t count = 0;
        while (!row_ended) {
            const Field field = reader.next();
            const ParsedFloat number = parse_float(trimmed(field));
            if (number.problem != nullptr) {
                reader.refuse(quote(field.text), " ", number.problem,
                              rows == 0 ? "; expected numbers and no header row" : "");
            }
            values.push_back(number.value);
            ++count;
            row_ended = field.ends_row;
        }
        if (rows == 0) {
            width = count;
        }
        if (count == 0 || count != width) {
            reader.refuse("the row ends after ", count, " numbers; expected ",
                          width == 0 ? "at least 1, separated by commas" : std::to_string(width));
        }
        ++rows;
    }
    embeddings.vectors = Tensor({rows, width}, std::move(values));
    return embeddings;
}

}  // namespace qkv::io
