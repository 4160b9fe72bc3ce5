#include "qkv/models/language_model.hpp"

#include <algorithm>
#include <cmath>

#include "core/check.hpp"
#include "io/quote.hpp"
#include "io/safetensors.hpp"
#include "models/metadata.hpp"

namespace qkv::models {

namespace {

constexpr std::string_view kFormat = "qkv gpt 1";
constexpr std::int64_t kMostHeads = 1024;

nn::GptOptions checked(const nn::GptOptions& options, const text::Tokenizer& tokenizer) {
    if (options.vocab_size != tokenizer.vocab_size()) {
        fail(ErrorCode::shape_mismatch, "vocab_size is ", options.vocab_size, "; expected the tokenizer's ",
             tokenizer.vocab_size());
    }
    return options;
}

}  // namespace

LanguageModel::LanguageModel(const nn::GptOptions& options, std::shared_ptr<const text::Tokenizer> speaks,
                             Generator& generator)
    : gpt(checked(options, *speaks), generator), tokenizer(std::move(speaks)) {}

ModelFile read_model_file(const std::filesystem::path& path) {
    const io::InputFile source(path);
    try {
        const io::SafetensorsHeader header = io::read_header(source);
        ModelFile file{.tensors = {}, .metadata = header.metadata};
        if (const auto found = file.metadata.find("format"); found == file.metadata.end() || found->second != kFormat) {
            fail(ErrorCode::format, source.name(), " is no model of qkv train: its metadata does not say format ",
                 kFormat);
        }
        for (const io::TensorInfo& info : header.tensors) {
            Tensor tensor = io::read_tensor<float>(source, header, info);
            if (!finite(tensor)) {
                fail(ErrorCode::format, source.name(), ": tensor ", io::quote(info.name),
                     " holds what is no finite number");
            }
            file.tensors.emplace(info.name, std::move(tensor));
        }
        return file;
    } catch (const std::bad_alloc&) {
        fail(ErrorCode::out_of_memory, source.name(), ": no memory to read it (", source.size(), " bytes)");
    }
}

LanguageModel load_language_model(const ModelFile& file, const std::string& name) {
    StateDict<float> state;
    for (const auto& [key, tensor] : file.tensors) {
        if (!key.starts_with("training.")) {
            state.emplace(key, tensor);
        }
    }
    try {
        // Sizes come from the shapes of what is there, so that no number in the file makes anything larger than it.
        // What grows with two of them, a cache of context × layers, has their limits.
        nn::GptOptions options =
            nn::gpt_options_of(state, whole_entry(file.metadata, "num_heads", 1, kMostHeads, name));
        const auto limit = [](const char* what, std::int64_t value, std::int64_t most) {
            if (value > most) {
                fail(ErrorCode::format, what, " is ", value, "; expected at most ", most);
            }
        };
        limit("context_length", options.context_length, kMaxContext);
        limit("num_layers", options.num_layers, kMaxLayers);
        options.dropout = real_entry(file.metadata, "dropout", 0, 1, name);
        options.gelu = whole_entry(file.metadata, "gelu_tanh", 0, 1, name) == 1 ? nn::Gelu::tanh : nn::Gelu::erf;
        std::shared_ptr<const text::Tokenizer> tokenizer =
            text::load_tokenizer(entry(file.metadata, "tokenizer", name), entry(file.metadata, "tokenizer_data", name));
        Generator unused;
        LanguageModel model(options, std::move(tokenizer), unused);
        model.gpt.load_state_dict(state);
        model.gpt.eval();
        return model;
    } catch (const Error& error) {
        const std::string message = error.what();
        const bool named = message.starts_with(name);
        const bool usage = error.code() == ErrorCode::invalid_argument || error.code() == ErrorCode::out_of_range;
        throw Error(usage ? ErrorCode::format : error.code(), named ? message : name + ": " + message);
    }
}

ModelFile to_model_file(const LanguageModel& model) {
    const nn::GptOptions& options = model.gpt.options();
    return {.tensors = model.gpt.state_dict(),
            .metadata = {{"format", std::string(kFormat)},
                         {"num_heads", std::to_string(options.num_heads)},
                         {"dropout", to_text(options.dropout)},
                         {"gelu_tanh", options.gelu == nn::Gelu::tanh ? "1" : "0"},
                         {"tokenizer", std::string(model.tokenizer->kind())},
                         {"tokenizer_data", model.tokenizer->saved()}}};
}

}  // namespace qkv::models
