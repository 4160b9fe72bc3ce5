// The JSON document behind `--json` and the page.
#pragma once

#include <cstdint>
#include <functional>
#include <string_view>

#include "qkv/explain.hpp"

namespace qkv::explain {

/// As write_json, but without those tensors of more than `most_values` values that follow from others.
void write_document(const Report& report, std::int64_t most_values, const std::function<void(std::string_view)>& write);

}  // namespace qkv::explain
