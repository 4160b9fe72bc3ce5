// Model and embedding files. Everything here treats a file as hostile: it is checked completely before anything is
// allocated from what it declares, and whatever breaks its format is refused with an Error that says where and why.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "qkv/export.h"
#include "qkv/tensor.hpp"

namespace qkv {
namespace io QKV_EXPORT {

/// Element types of the safetensors format (https://github.com/huggingface/safetensors), under its own names.
enum class Dtype : std::uint8_t {
    BOOL,
    U8,
    I8,
    I16,
    U16,
    F16,
    BF16,
    I32,
    U32,
    F32,
    F64,
    I64,
    U64,
    // Known to the header, refused when read:
    F4,
    F6_E2M3,
    F6_E3M2,
    F8_E5M2,
    F8_E4M3,
    F8_E8M0,
    F8_E5M2FNUZ,
    F8_E4M3FNUZ,
    C64,
};

/// The format's name of a type: "F32".
[[nodiscard]] std::string_view to_string(Dtype dtype) noexcept;

/// Storage of one element in bits; a whole number of bytes for every type that can be read.
[[nodiscard]] std::int64_t bits(Dtype dtype) noexcept;

/// One tensor of a safetensors header. Its bytes are [begin, end) of the data that follows the header.
struct TensorInfo {
    std::string name;
    Dtype dtype = Dtype::F32;
    Shape shape;
    std::uint64_t begin = 0;
    std::uint64_t end = 0;
};

/// Free text that a safetensors file carries under `__metadata__`.
using Metadata = std::map<std::string, std::string>;

struct SafetensorsHeader {
    std::vector<TensorInfo> tensors;  ///< in the order of their data
    Metadata metadata;
    std::uint64_t data_begin = 0;  ///< offset in the file at which the tensors' data starts
};

/// Limits beyond those of the format: it has none for these.
inline constexpr std::size_t kMaxTensorNameBytes = 65'535;
inline constexpr std::size_t kMaxTensorRank = 64;
inline constexpr std::size_t kMaxTensors = 1'000'000;
/// The format's own.
inline constexpr std::uint64_t kMaxSafetensorsHeaderBytes = 100'000'000;

/// The checked header of a whole safetensors file in memory; `name` is what messages call it.
///
/// Stricter than the reference reader, which lets these pass: a header that starts with white space, keys given twice
/// (also when spelled differently with escapes), keys other than dtype, shape and data_offsets, NUL in a name,
/// `__metadata__` null, a tensor given as an array, a size of 0 that hides an overflow of the sizes after it.
/// Throws Error(format) for everything that breaks the format or the limits above.
[[nodiscard]] SafetensorsHeader parse_safetensors_header(std::span<const std::byte> file,
                                                         std::string_view name = "safetensors");

/// All tensors of a safetensors file as T (float or double).
///
/// F16, BF16, F32 and F64 are rounded to the nearest T; a finite value that would become infinite is refused. Integers
/// and BOOL must be exact in T. Infinities and NaN pass: the format allows them. Throws Error(io) if the file cannot be
/// read, Error(format) if its content is refused, Error(unsupported) for a type without a reader (F4, F6, F8, C64) and
/// Error(out_of_memory).
template <class T>
[[nodiscard]] QKV_EXPORT StateDict<T> read_safetensors(const std::filesystem::path& path);

/// The same from memory; `name` is what messages call it.
template <class T>
[[nodiscard]] QKV_EXPORT StateDict<T> read_safetensors(std::span<const std::byte> file,
                                                       std::string_view name = "safetensors");

/// Writes `tensors` as F32 (float) or F64 (double), in the order of their names, data aligned to 8 bytes.
///
/// The file appears whole or not at all: it is written beside `path`, flushed to the disk and then renamed, so an error
/// leaves an older file as it was. A symbolic link is followed; anything but a regular file at `path` is refused.
/// Throws Error(io) if it cannot be written, Error(invalid_argument) for names or metadata that the format cannot hold.
template <class T>
QKV_EXPORT void write_safetensors(const std::filesystem::path& path, const StateDict<T>& tensors,
                                  const Metadata& metadata = {});

/// Token vectors from a file, with their labels where the file has them.
struct Embeddings {
    std::vector<std::string> tokens;  ///< one per row, or empty
    Tensor vectors;                   ///< [tokens, dim], every value finite
};

/// Limits of embedding files.
inline constexpr std::size_t kMaxLabelBytes = 1024;
inline constexpr std::uint64_t kMaxEmbeddingTextBytes = std::uint64_t{1} << 31U;  ///< .csv and .json

/// Reads embeddings; the extension says how.
///
/// - `.csv`: a row per token, comma-separated (RFC 4180 quoting; LF or CRLF; a UTF-8 byte order mark is skipped), no
/// header
///   row. The first column holds labels if the first row's first field is not a number, or is quoted while the
///   second is not.
/// - `.json`: `[[1, 2], [3, 4]]` or `{"tokens": ["a", "b"], "embeddings": [[1, 2], [3, 4]]}`.
/// - `.npy`: rank 2, format 1.0 to 3.0, little-endian float, integer or bool, C or Fortran order.
/// - `.safetensors`: the tensor named "embeddings", else "inputs", else the only one of rank 2.
///
/// Values are rounded to the nearest float. Labels are non-empty UTF-8 of at most kMaxLabelBytes.
/// Throws Error(io) if the file cannot be read, Error(unsupported) for another extension, and Error(format) for
/// everything else that is wrong (no rows, rows of different lengths, NaN, infinity ...), naming the line or the index.
[[nodiscard]] Embeddings read_embeddings(const std::filesystem::path& path);

extern template StateDict<float> read_safetensors<float>(const std::filesystem::path&);
extern template StateDict<double> read_safetensors<double>(const std::filesystem::path&);
extern template StateDict<float> read_safetensors<float>(std::span<const std::byte>, std::string_view);
extern template StateDict<double> read_safetensors<double>(std::span<const std::byte>, std::string_view);
extern template void write_safetensors<float>(const std::filesystem::path&, const StateDict<float>&, const Metadata&);
extern template void write_safetensors<double>(const std::filesystem::path&, const StateDict<double>&, const Metadata&);

}  // namespace io QKV_EXPORT
}  // namespace qkv
