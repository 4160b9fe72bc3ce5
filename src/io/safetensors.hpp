// The safetensors reader in parts, for readers that want one tensor of a file.
#pragma once

#include "io/file.hpp"
#include "qkv/io.hpp"

namespace qkv::io {

/// The checked header of the whole of `source`.
[[nodiscard]] SafetensorsHeader read_header(const ByteSource& source);

/// One tensor of a header that read_header gave for `source`.
template <class T>
[[nodiscard]] BasicTensor<T> read_tensor(const ByteSource& source, const SafetensorsHeader& header,
                                         const TensorInfo& info);

}  // namespace qkv::io
