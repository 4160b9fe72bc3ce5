// One reader per embedding format, from content in memory; `name` is what messages call the content.
#pragma once

#include <string>
#include <string_view>

#include "io/file.hpp"
#include "qkv/io.hpp"

namespace qkv::io {

[[nodiscard]] Embeddings parse_csv(std::string_view text, std::string_view name);
[[nodiscard]] Embeddings parse_json_embeddings(std::string_view text, std::string_view name);
[[nodiscard]] Embeddings read_npy(const ByteSource& source);
[[nodiscard]] Embeddings read_safetensors_embeddings(const ByteSource& source);

/// Throws Error(format) that begins with `where` unless `label` is what read_embeddings allows.
void check_label(std::string_view label, std::string_view where);

/// Throws Error(format) naming the position if a value is NaN or infinite. `vectors` is of rank 2.
void check_finite(const Tensor& vectors, std::string_view name);

}  // namespace qkv::io
