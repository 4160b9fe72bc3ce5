// A Gpt with its tokenizer, and the one file that both live in.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>

#include "qkv/export.h"
#include "qkv/io.hpp"
#include "qkv/nn/gpt.hpp"
#include "qkv/text.hpp"

namespace qkv {
namespace models QKV_EXPORT {

/// Limits of what `qkv train` makes and its files are read for.
inline constexpr std::int64_t kMaxContext = 8192;
inline constexpr std::int64_t kMaxLayers = 256;

/// A trained (or yet untrained) model that speaks text.
struct LanguageModel {
    /// Draws the parameters from `generator`. `options.vocab_size` must be that of the tokenizer it `speaks`:
    /// Error(shape_mismatch).
    LanguageModel(const nn::GptOptions& options, std::shared_ptr<const text::Tokenizer> speaks, Generator& generator);

    nn::Gpt gpt;
    std::shared_ptr<const text::Tokenizer> tokenizer;
};

/// A model file as it lies on the disk (docs/train.md): tensors and free text. Tensors and metadata whose name begins
/// with `training.` are the trainer's; all others are the model's.
struct ModelFile {
    StateDict<float> tensors;
    io::Metadata metadata;
};

/// Reads the file. Throws as io::read_safetensors does, and Error(format) for a file that `qkv train` did not write and
/// for tensors that hold what is no finite number.
[[nodiscard]] ModelFile read_model_file(const std::filesystem::path& path);

/// The model in the file, ready to be used (eval). `name` is what messages call it. Throws Error(format) for metadata
/// that make no sense, Error(shape_mismatch) for tensors that do not fit each other or the tokenizer.
[[nodiscard]] LanguageModel load_language_model(const ModelFile& file, const std::string& name);

/// The model as the content of a file: its state_dict, the options that no shape tells, the tokenizer.
[[nodiscard]] ModelFile to_model_file(const LanguageModel& model);

}  // namespace models QKV_EXPORT
}  // namespace qkv
