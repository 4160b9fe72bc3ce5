// The library's messages in Python's words.
#pragma once

#include <string>
#include <string_view>

namespace qkv::python {

/// `message` with the names that arguments have in Python, sizes as tuples and types by their long names. What stands
/// in single quotes is somebody else's and stays.
[[nodiscard]] std::string in_python_words(std::string_view message);

}  // namespace qkv::python
