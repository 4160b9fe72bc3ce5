// What the library throws. It never prints, aborts or exits.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "qkv/export.h"

namespace qkv QKV_EXPORT {

/// What kind of thing went wrong, for callers who branch on it.
enum class ErrorCode : std::uint8_t {
    invalid_argument,  ///< a value that is never acceptable (dropout 1.5, NaN scale)
    shape_mismatch,    ///< shapes that do not fit each other
    out_of_range,      ///< an index or a length past its limit, a size that overflows
    unsupported,       ///< well-formed, but not available here
    io,                ///< a file that cannot be opened, read or written
    format,            ///< a file whose content breaks its format
    out_of_memory,     ///< an allocation that failed
};

/// The one exception type of the library. The message names the thing, what it was and what was expected.
class Error : public std::runtime_error {
public:
    Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
    [[nodiscard]] ErrorCode code() const noexcept { return code_; }

private:
    ErrorCode code_;
};

}  // namespace qkv QKV_EXPORT
