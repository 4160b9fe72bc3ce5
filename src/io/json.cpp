#include "io/json.hpp"

#include <algorithm>
#include <cstdint>
#include <nlohmann/json.hpp>

#include "core/check.hpp"
#include "core/utf8.hpp"
#include "io/quote.hpp"

namespace qkv::io {
namespace {

/// "line 3, column 7" of a byte offset.
std::string position(std::string_view text, std::size_t offset) {
    const std::string_view before = text.substr(0, std::min(offset, text.size()));
    const auto line = 1 + std::ranges::count(before, '\n');
    const std::size_t line_start = before.rfind('\n') + 1;  // npos + 1 is 0: the first line
    return concat("line ", line, ", column ", before.size() - line_start + 1);
}

class SaxAdapter final : public nlohmann::json::json_sax_t {
public:
    SaxAdapter(std::string_view text, std::size_t max_depth, JsonHandler& handler, std::string_view name)
        : text_(text), max_depth_(max_depth), handler_(handler), name_(name) {}

    bool null() override { return literal("null"); }
    bool boolean(bool value) override { return literal(value ? "true" : "false"); }
    bool number_integer(number_integer_t value) override {
        // Only what has a minus sign comes here, so 0 was spelled -0.
        handler_.number(value == 0 ? "-0" : std::to_string(value));
        return true;
    }
    bool number_unsigned(number_unsigned_t value) override {
        handler_.number(std::to_string(value));
        return true;
    }
    bool number_float(number_float_t /*value*/, const string_t& spelled) override {
        // The lexer hands out the decimal point of the process's locale.
        std::string number = spelled;
        const std::size_t point = number.find_first_not_of("0123456789+-eE");
        if (point != std::string::npos) {
            number[point] = '.';
        }
        if (std::ranges::all_of(number, [](char digit) { return digit >= '0' && digit <= '9'; })) {
            fail(ErrorCode::format, name_, ": the integer ", quote(number), " is past 2^64");
        }
        handler_.number(number);
        return true;
    }
    bool string(string_t& value) override {
        handler_.string(std::move(value));
        return true;
    }
    bool binary(binary_t& /*value*/) override { return false; }  // never comes from JSON text
    bool start_object(std::size_t /*elements*/) override {
        descend();
        handler_.open_object();
        return true;
    }
    bool key(string_t& name) override {
        handler_.key(std::move(name));
        return true;
    }
    bool end_object() override {
        --depth_;
        handler_.close_object();
        return true;
    }
    bool start_array(std::size_t /*elements*/) override {
        descend();
        handler_.open_array();
        return true;
    }
    bool end_array() override {
        --depth_;
        handler_.close_array();
        return true;
    }
    bool parse_error(std::size_t offset, const std::string& /*token*/,
                     const nlohmann::json::exception& error) override {
        // "[json.exception.parse_error.101] parse error at line 1, column 2: what is wrong", which may quote the file.
        std::string_view reason = error.what();
        reason.remove_prefix(std::min(reason.size(), reason.find("] ") + 2));
        if (const std::size_t colon = reason.find(": "); reason.starts_with("parse error") && colon != reason.npos) {
            reason.remove_prefix(colon + 2);
        }
        fail(ErrorCode::format, name_, ": no valid JSON at ", position(text_, offset == 0 ? 0 : offset - 1), ": ",
             quote(reason));
    }

private:
    bool literal(std::string_view text) {
        handler_.literal(text);
        return true;
    }
    void descend() {
        if (++depth_ > max_depth_) {
            fail(ErrorCode::format, name_, ": JSON nested deeper than ", max_depth_, " levels");
        }
    }

    std::string_view text_;
    std::size_t max_depth_;
    JsonHandler& handler_;
    std::string_view name_;
    std::size_t depth_ = 0;
};

}  // namespace

void parse_json(std::string_view text, std::size_t max_depth, JsonHandler& handler, std::string_view name) {
    if (const std::size_t bad = first_invalid_utf8(text); bad != text.npos) {
        fail(ErrorCode::format, name, ": not UTF-8 at ", position(text, bad));
    }
    // nlohmann_json takes a NUL byte for the end of the text and would not look at what follows.
    if (const std::size_t nul = text.find('\0'); nul != text.npos) {
        fail(ErrorCode::format, name, ": NUL byte in JSON at ", position(text, nul));
    }
    SaxAdapter adapter(text, max_depth, handler, name);
    (void)nlohmann::json::sax_parse(text.begin(), text.end(), &adapter);
}

std::string to_json_string(std::string_view text) { return nlohmann::json(text).dump(); }

}  // namespace qkv::io
