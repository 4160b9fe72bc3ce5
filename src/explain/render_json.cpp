// One strict JSON document; docs/explain.md documents every name.
#include <array>
#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>

#include "core/check.hpp"
#include "qkv/explain.hpp"

namespace qkv::explain {

namespace {

std::string quoted(const std::string& text) { return nlohmann::json(text).dump(); }

std::string quoted_list(const std::vector<std::string>& texts) { return nlohmann::json(texts).dump(); }

/// The shortest digits that read back as the same float; what JSON has no number for as a string.
void append_number(std::string& out, float value) {
    if (!std::isfinite(value)) {
        out += std::isnan(value) ? "\"nan\"" : value > 0 ? "\"inf\"" : "\"-inf\"";
        return;
    }
    std::array<char, 32> digits{};
    const auto [end, error] = std::to_chars(digits.data(), digits.data() + digits.size(), value);
    out.append(digits.data(), end);
}

void write_tensor(const Tensor& tensor, const std::function<void(std::string_view)>& write) {
    constexpr std::size_t kPiece = std::size_t{1} << 16U;
    std::string out = R"({"shape":)" + nlohmann::json(tensor.shape()).dump() + R"(,"data":[)";
    for (std::int64_t i = 0; i < tensor.numel(); ++i) {
        if (i != 0) {
            out += ',';
        }
        append_number(out, tensor.data()[i]);
        if (out.size() > kPiece) {
            write(out);
            out.clear();
        }
    }
    write(out + "]}");
}

std::string_view normalise_name(nn::Normalise how) {
    constexpr std::array<std::string_view, 3> kNames{"sum", "naive", "softmax"};
    return kNames[static_cast<std::size_t>(how)];
}

/// Counted from 0, as the rows of the tensors are.
nlohmann::ordered_json query_of(const StageReport& stage) {
    return {{"index", stage.query}, {"token", stage.tokens[static_cast<std::size_t>(stage.query)]}};
}

std::string stage_head(const StageReport& stage) {
    nlohmann::ordered_json head;
    head["stage"] = stage_name(stage.stage);
    if (stage.init) {
        head["init"] = *stage.init == nn::Init::uniform ? "uniform" : "linear";
    }
    if (!stage.layer) {  // a trained model's layer is not drawn
        head["seed"] = stage.seed;
    }
    if (stage.stage == Stage::simple) {
        head["normalise"] = normalise_name(stage.normalise);
    } else {
        const auto width = [&stage](const char* tensor) { return stage.tensors.find(tensor)->size(-1); };
        head["heads"] = stage.heads;
        head["d_in"] = width("inputs");
        head["d_out"] =
            width(stage.stage == Stage::wrapper ? "values" : "context");  // a wrapper's is that of each head
        head["head_dim"] = width("queries");
        head["dropout"] = stage.dropout;
        head["training"] = stage.training;
    }
    if (stage.layer) {
        head["layer"] = *stage.layer;
        head["head"] = stage.head;
    }
    if (!stage.weights_file.empty()) {
        head["weights_file"] = stage.weights_file;
    }
    head["tokens"] = stage.tokens;
    if (stage.stage == Stage::cross) {
        head["source_tokens"] = stage.source_tokens;
    }
    head["query"] = query_of(stage);
    head["remarks"] = stage.remarks;
    return head.dump();
}

}  // namespace

void write_json(const Report& report, const std::function<void(std::string_view)>& write) {
    std::string head = R"({"version":1,"tokens":)" + quoted_list(report.tokens);
    if (const auto shown = static_cast<std::int64_t>(report.tokens.size()); shown < report.given_tokens) {
        head += concat(R"(,"elided":{"tokens":)", report.given_tokens, R"(,"shown":)", shown, "}");
    }
    // The main sentence's query; cross-attention may ask with another sentence and then has its own.
    head += R"(,"query":)" + query_of(report.stages.front()).dump();
    write(head + R"(,"stages":[)");
    bool first_stage = true;
    for (const StageReport& stage : report.stages) {
        std::string members = stage_head(stage);
        members.pop_back();  // the closing brace: the tensors follow
        write((first_stage ? "" : ",") + members + R"(,"tensors":{)");
        first_stage = false;
        bool first_tensor = true;
        for (const auto& [name, tensor] : stage.tensors.entries()) {
            write((first_tensor ? "" : ",") + quoted(name) + ":");
            first_tensor = false;
            write_tensor(tensor, write);
        }
        write("}}");
    }
    write("]}\n");
}

}  // namespace qkv::explain
