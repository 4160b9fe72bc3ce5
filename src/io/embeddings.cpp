#include "io/embeddings.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <new>

#include "core/check.hpp"
#include "core/utf8.hpp"
#include "io/quote.hpp"
#include "io/safetensors.hpp"

namespace qkv::io {
namespace {

constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";

std::string read_text(const ByteSource& source) {
    std::string text = io::read_all(source, kMaxEmbeddingTextBytes);
    if (text.starts_with(kByteOrderMark)) {
        text.erase(0, kByteOrderMark.size());
    }
    return text;
}

struct Format {
    std::string_view extension;
    Embeddings (*read)(const ByteSource&);
};

constexpr std::array<Format, 4> kFormats{{
    {".csv", [](const ByteSource& source) { return parse_csv(read_text(source), source.name()); }},
    {".json", [](const ByteSource& source) { return parse_json_embeddings(read_text(source), source.name()); }},
    {".npy", read_npy},
    {".safetensors", read_safetensors_embeddings},
}};

const TensorInfo& choose_tensor(const SafetensorsHeader& header, std::string_view name) {
    for (const std::string_view preferred : {"embeddings", "inputs"}) {
        const auto found = std::ranges::find(header.tensors, preferred, &TensorInfo::name);
        if (found != header.tensors.end()) {
            return *found;
        }
    }
    const auto is_matrix = [](const TensorInfo& info) { return info.shape.size() == 2; };
    const auto matrices = std::ranges::count_if(header.tensors, is_matrix);
    if (matrices != 1) {
        fail(ErrorCode::format, name, ": ", matrices, " of its ", header.tensors.size(),
             " tensors have rank 2; expected one, or one named \"embeddings\" or \"inputs\"");
    }
    return *std::ranges::find_if(header.tensors, is_matrix);
}

}  // namespace

void check_label(std::string_view label, std::string_view where) {
    if (label.empty()) {
        fail(ErrorCode::format, where, ": empty label");
    }
    if (label.size() > kMaxLabelBytes) {
        fail(ErrorCode::format, where, ": the label ", quote(label), " is ", label.size(),
             " bytes long; expected at most ", kMaxLabelBytes);
    }
    if (!is_valid_utf8(label) || label.find('\0') != label.npos) {
        fail(ErrorCode::format, where, ": the label ", quote(label), " is not UTF-8 text without NUL");
    }
}

void check_finite(const Tensor& vectors, std::string_view name) {
    const auto bad = std::ranges::find_if_not(vectors.values(), [](float value) { return std::isfinite(value); });
    if (bad != vectors.values().end()) {
        const auto index = bad - vectors.values().begin();
        fail(ErrorCode::format, name, ": the value at row ", index / vectors.size(1), ", column ",
             index % vectors.size(1), " (from 0) is ", *bad, "; expected a finite one");
    }
}

Embeddings read_safetensors_embeddings(const ByteSource& source) {
    const SafetensorsHeader header = read_header(source);
    const TensorInfo& info = choose_tensor(header, source.name());
    if (info.shape.size() != 2 || info.shape[0] == 0 || info.shape[1] == 0) {
        fail(ErrorCode::format, source.name(), ": tensor ", quote(info.name), " has shape ", qkv::to_string(info.shape),
             "; expected [tokens, dim], neither of them 0");
    }
    Embeddings embeddings{{}, read_tensor<float>(source, header, info)};
    check_finite(embeddings.vectors, source.name());
    return embeddings;
}

Embeddings read_embeddings(const std::filesystem::path& path) {
    const std::string extension = path.extension().string();
    const auto* const format = std::ranges::find(kFormats, extension, &Format::extension);
    if (format == kFormats.end()) {
        fail(ErrorCode::unsupported, "cannot read ", quote(path.native()), ": its extension is ", quote(extension),
             "; expected .csv, .json, .npy or .safetensors");
    }
    const InputFile file(path);
    try {
        return format->read(file);
    } catch (const std::bad_alloc&) {
        fail(ErrorCode::out_of_memory, file.name(), ": no memory to read it (", file.size(), " bytes)");
    }
}

}  // namespace qkv::io
