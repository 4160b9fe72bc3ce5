#include <utility>

#include "core/check.hpp"
#include "io/embeddings.hpp"
#include "io/json.hpp"
#include "io/number.hpp"
#include "io/quote.hpp"

namespace qkv::io {
namespace {

/// [[1, 2], [3, 4]] or {"tokens": ["a", "b"], "embeddings": [[1, 2], [3, 4]]}.
class EmbeddingsHandler final : public JsonHandler {
public:
    static constexpr std::size_t kMaxDepth = 3;

    explicit EmbeddingsHandler(std::string_view name) : name_(name) {}

    void open_object() override {
        if (place_ != Place::outside) {
            refuse("an object");
        }
        place_ = Place::object;
        is_object_ = true;
    }

    void close_object() override {
        if (!has_tokens_ || !has_rows_) {
            fail(ErrorCode::format, name_, ": no \"", has_tokens_ ? "embeddings" : "tokens", "\" in the object");
        }
    }

    void open_array() override {
        switch (place_) {
            case Place::outside:
            case Place::before_rows:
                place_ = Place::rows;
                has_rows_ = true;
                return;
            case Place::before_tokens:
                place_ = Place::tokens;
                has_tokens_ = true;
                return;
            case Place::rows:
                place_ = Place::row;
                row_begin_ = values_.size();
                return;
            default:
                refuse("an array");
        }
    }

    void close_array() override {
        if (place_ == Place::row) {
            const std::size_t count = values_.size() - row_begin_;
            if (row_count_ == 0) {
                width_ = count;
            }
            if (count == 0 || count != width_) {
                fail(ErrorCode::format, name_, ": row ", row_count_, " (from 0) has ", count, " numbers; expected ",
                     width_ == 0 ? "at least 1" : std::to_string(width_));
            }
            ++row_count_;
            place_ = Place::rows;
        } else {
            place_ = Place::object;
        }
    }

    void key(std::string&& key) override {
        const bool is_tokens = key == "tokens";
        if (!is_tokens && key != "embeddings") {
            fail(ErrorCode::format, name_, ": unknown key ", quote(key), "; expected \"tokens\" and \"embeddings\"");
        }
        if (is_tokens ? has_tokens_ : has_rows_) {
            fail(ErrorCode::format, name_, ": the key ", quote(key), " appears twice");
        }
        place_ = is_tokens ? Place::before_tokens : Place::before_rows;
    }

    void string(std::string&& value) override {
        if (place_ != Place::tokens) {
            refuse(concat("the string ", quote(value)));
        }
        check_label(value, concat(name_, ": token ", tokens_.size(), " (from 0)"));
        tokens_.push_back(std::move(value));
    }

    void number(std::string_view text) override {
        if (place_ != Place::row) {
            refuse(concat("the number ", quote(text)));
        }
        const ParsedFloat number = parse_float(text);
        if (number.problem != nullptr) {
            fail(ErrorCode::format, name_, ": ", quote(text), " at row ", row_count_, ", column ",
                 values_.size() - row_begin_, " (from 0) ", number.problem);
        }
        values_.push_back(number.value);
    }

    void literal(std::string_view text) override { refuse(text); }

    [[nodiscard]] Embeddings take() {
        if (row_count_ == 0) {
            fail(ErrorCode::format, name_, ": no rows");
        }
        if (is_object_ && tokens_.size() != row_count_) {
            fail(ErrorCode::format, name_, ": ", tokens_.size(), " tokens for ", row_count_, " rows of embeddings");
        }
        const Shape shape{static_cast<std::int64_t>(row_count_), static_cast<std::int64_t>(width_)};
        return {std::move(tokens_), Tensor(shape, std::move(values_))};
    }

private:
    enum class Place : std::uint8_t { outside, object, before_tokens, tokens, before_rows, rows, row };

    [[noreturn]] void refuse(std::string_view found) const {
        switch (place_) {
            case Place::outside:
                fail(ErrorCode::format, name_, ": the content is ", found, "; expected an array of rows or an object");
            case Place::before_tokens:
                fail(ErrorCode::format, name_, ": \"tokens\" is ", found, "; expected an array of strings");
            case Place::tokens:
                fail(ErrorCode::format, name_, ": token ", tokens_.size(), " (from 0) is ", found,
                     "; expected a string");
            case Place::row:
                fail(ErrorCode::format, name_, ": ", found, " at row ", row_count_, ", column ",
                     values_.size() - row_begin_, " (from 0); expected a number");
            default:
                fail(ErrorCode::format, name_, ": row ", row_count_, " (from 0) is ", found,
                     "; expected an array of numbers");
        }
    }

    std::string_view name_;
    Place place_ = Place::outside;
    bool is_object_ = false;
    bool has_tokens_ = false;
    bool has_rows_ = false;
    std::vector<std::string> tokens_;
    std::vector<float> values_;
    std::size_t row_begin_ = 0;
    std::size_t row_count_ = 0;
    std::size_t width_ = 0;
};

}  // namespace

Embeddings parse_json_embeddings(std::string_view text, std::string_view name) {
    EmbeddingsHandler handler(name);
    parse_json(text, EmbeddingsHandler::kMaxDepth, handler, name);
    return handler.take();
}

}  // namespace qkv::io
