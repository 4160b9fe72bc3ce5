// JSON as events, from text that may be hostile. The handler sees one event at a time and throws to refuse it.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace qkv::io {

class JsonHandler {
public:
    JsonHandler() = default;
    virtual ~JsonHandler() = default;
    JsonHandler(const JsonHandler&) = delete;
    JsonHandler& operator=(const JsonHandler&) = delete;
    JsonHandler(JsonHandler&&) = delete;
    JsonHandler& operator=(JsonHandler&&) = delete;

    virtual void open_object() = 0;
    virtual void close_object() = 0;
    virtual void open_array() = 0;
    virtual void close_array() = 0;
    virtual void key(std::string&& name) = 0;
    virtual void string(std::string&& value) = 0;
    /// A number as text in the form of the "C" locale: digits alone if and only if it is a non-negative integer.
    virtual void number(std::string_view text) = 0;
    /// "null", "true" or "false".
    virtual void literal(std::string_view text) = 0;
};

/// Reads `text`, which must be one JSON value nested at most `max_depth` deep, valid UTF-8 and free of NUL bytes.
/// Duplicate keys are the handler's to find. Throws Error(format) that begins with `name`.
void parse_json(std::string_view text, std::size_t max_depth, JsonHandler& handler, std::string_view name);

/// `text` (valid UTF-8) as a JSON string with its quotes.
[[nodiscard]] std::string to_json_string(std::string_view text);

}  // namespace qkv::io
