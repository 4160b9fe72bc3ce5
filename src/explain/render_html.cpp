#include "explain/render_html.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "core/check.hpp"

namespace qkv::explain {

// The files of viewer/, put there by cmake/embed.cmake.
namespace viewer {
extern const std::string_view page;
extern const std::string_view style;
extern const std::string_view style_sha256;
extern const std::string_view script;
extern const std::string_view script_sha256;
}  // namespace viewer

namespace {

using Json = nlohmann::json;

/// Rows and columns of the table without JavaScript.
constexpr std::size_t fallback_most = 12;

/// Documents up to this size are carried as they are.
constexpr std::size_t whole_most = std::size_t{4} << 20U;

Json parse(std::string_view text) {
    Json document;
    try {
        document = Json::parse(text);
    } catch (const Json::exception& error) {
        fail(ErrorCode::format, "the document of the page is not JSON: ", error.what());
    }
    const auto is_array = [&document](const char* name) {
        return document.contains(name) && document[name].is_array();
    };
    if (!document.is_object() || !is_array("tokens") || !is_array("stages") || document["stages"].empty()) {
        fail(ErrorCode::format, R"(the document of the page: expected an object with arrays "tokens" and "stages")");
    }
    return document;
}

/// Takes out of every stage what the page computes from the rest.
void slim(Json& document) {
    for (Json& stage : document["stages"]) {
        if (!stage.is_object() || !stage.contains("tensors") || !stage["tensors"].is_object()) {
            continue;
        }
        Json& tensors = stage["tensors"];
        for (const char* name : {"scores", "sum_normalised", "scaled", "weights"}) {
            tensors.erase(name);
        }
        if (tensors.contains("dropout_mask")) {
            tensors.erase("dropped_weights");
        }
        if (stage.value("stage", Json()) != "cross") {
            tensors.erase("masked");
        }
    }
}

std::string escape_html(std::string_view text) {
    std::string escaped;
    for (const char letter : text) {
        switch (letter) {
            case '&':
                escaped += "&amp;";
                break;
            case '<':
                escaped += "&lt;";
                break;
            case '>':
                escaped += "&gt;";
                break;
            case '"':
                escaped += "&quot;";
                break;
            default:
                escaped += letter;
        }
    }
    return escaped;
}

/// JSON stays the same JSON: outside strings these bytes do not occur, inside they may be written as escapes.
std::string escape_data(std::string_view json) {
    std::string escaped;
    escaped.reserve(json.size() + json.size() / 16);
    for (std::size_t at = 0; at < json.size(); ++at) {
        const std::string_view rest = json.substr(at, 3);
        if (json[at] == '<') {
            escaped += "\\u003c";
        } else if (rest == "\xe2\x80\xa8" || rest == "\xe2\x80\xa9") {
            escaped += rest.back() == '\xa8' ? "\\u2028" : "\\u2029";
            at += 2;
        } else {
            escaped += json[at];
        }
    }
    return escaped;
}

std::string text_of(const Json& value) { return value.is_string() ? value.get<std::string>() : value.dump(); }

/// The weights of the first stage (its first head) as a table; empty where the document has none that fit its tokens.
std::string fallback_table(const Json& document) {
    const Json& stage = document["stages"][0];
    if (!stage.is_object() || !stage.contains("tensors") || !stage["tensors"].contains("weights")) {
        return {};
    }
    const Json& weights = stage["tensors"]["weights"];
    const Json& tokens = stage.contains("tokens") ? stage["tokens"] : document["tokens"];
    const Json& keys = stage.contains("source_tokens") ? stage["source_tokens"] : tokens;
    if (!tokens.is_array() || !keys.is_array() || !weights.contains("data") || !weights["data"].is_array() ||
        weights["data"].size() < tokens.size() * keys.size()) {
        return {};
    }
    const std::size_t rows = std::min(tokens.size(), fallback_most);
    const std::size_t cols = std::min(keys.size(), fallback_most);
    std::string table = "<table><caption>Weights of the first stage. Row = query, column = key.";
    if (rows < tokens.size() || cols < keys.size()) {
        table +=
            concat(" The first ", rows, " of ", tokens.size(), " rows and ", cols, " of ", keys.size(), " columns.");
    }
    table += "</caption><tr><td></td>";
    for (std::size_t col = 0; col < cols; ++col) {
        table += "<th scope=\"col\">" + escape_html(text_of(keys[col])) + "</th>";
    }
    for (std::size_t row = 0; row < rows; ++row) {
        table += "</tr><tr><th scope=\"row\">" + escape_html(text_of(tokens[row])) + "</th>";
        for (std::size_t col = 0; col < cols; ++col) {
            const Json& weight = weights["data"][row * keys.size() + col];
            table += "<td>" + escape_html(text_of(weight)) + "</td>";
        }
    }
    return table + "</tr></table>";
}

/// "sha256-..." of a Content-Security-Policy from a hash in hex.
std::string csp_hash(std::string_view hex) {
    constexpr std::string_view letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    std::string base64;
    std::uint32_t bits = 0;
    unsigned count = 0;
    for (const char digit : hex) {
        bits = bits << 4U | static_cast<std::uint32_t>(digit <= '9' ? digit - '0' : digit - 'a' + 10);
        count += 4;
        if (count >= 6) {
            count -= 6;
            base64 += letters[bits >> count & 63U];
        }
    }
    if (count > 0) {
        base64 += letters[bits << (6 - count) & 63U];
    }
    base64.resize((base64.size() + 3) / 4 * 4, '=');
    return "'sha256-" + base64 + "'";
}

std::string policy() {
    return concat("default-src 'none'; script-src ", csp_hash(viewer::script_sha256), "; style-src ",
                  csp_hash(viewer::style_sha256), "; img-src data: blob:; base-uri 'none'; form-action 'none'");
}

}  // namespace

std::string render_html(std::string_view json_document) {
    Json document = parse(json_document);
    const std::string fallback = fallback_table(document);
    std::string slimmed;
    if (json_document.size() > whole_most) {
        slim(document);
        slimmed = document.dump();
        json_document = slimmed;
    }
    document = nullptr;
    const auto part = [&](std::string_view name) -> std::string {
        if (name == "policy") {
            return policy();
        }
        if (name == "style" || name == "script") {
            return std::string(name == "style" ? viewer::style : viewer::script);
        }
        return name == "data" ? escape_data(json_document) : fallback;
    };
    // One pass over the template: what is put in is never searched for places again.
    std::string html;
    std::string_view rest = viewer::page;
    for (std::size_t open = rest.find("{{"); open != std::string_view::npos; open = rest.find("{{")) {
        const std::size_t close = rest.find("}}", open);
        html += rest.substr(0, open);
        html += part(rest.substr(open + 2, close - open - 2));
        rest.remove_prefix(close + 2);
    }
    html += rest;
    return html;
}

}  // namespace qkv::explain
