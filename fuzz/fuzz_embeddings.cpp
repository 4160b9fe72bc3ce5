// Embedding files; the first byte of the input chooses the format, the rest is the file.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <string_view>

#include "io/embeddings.hpp"

namespace {

qkv::io::Embeddings parse(unsigned format, std::string_view content) {
    switch (format) {
        case 0:
            return qkv::io::parse_csv(content, "csv");
        case 1:
            return qkv::io::parse_json_embeddings(content, "json");
        case 2:
            return qkv::io::read_npy(qkv::io::MemoryBytes(std::as_bytes(std::span(content)), "npy"));
        default:
            return qkv::io::read_safetensors_embeddings(
                qkv::io::MemoryBytes(std::as_bytes(std::span(content)), "safetensors"));
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    if (size == 0) {
        return 0;
    }
    try {
        const auto embeddings = parse(data[0] % 4, {reinterpret_cast<const char*>(data) + 1, size - 1});
        const auto rows = embeddings.vectors.size(0);
        if (rows == 0 || embeddings.vectors.numel() > static_cast<std::int64_t>(size) ||
            (!embeddings.tokens.empty() && static_cast<std::int64_t>(embeddings.tokens.size()) != rows)) {
            std::abort();
        }
        for (const float value : embeddings.vectors.values()) {
            if (!std::isfinite(value)) {
                std::abort();
            }
        }
    } catch (const qkv::Error&) {  // refused: the other good outcome; anything else thrown is a finding
    }
    return 0;
}
