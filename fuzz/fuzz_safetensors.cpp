// Safetensors files in three ways, which the first byte of the input chooses: the rest is the file; the rest is a
// header and its data, framed with the right length; the rest makes the choices of the structural mutator
// (tests/support).
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <string>
#include <string_view>

#include "qkv/io.hpp"
#include "support/safetensors_mutator.hpp"

namespace {

/// Tensors hold at most one element per byte of the file; more would be memory that the file only claims.
void read(const std::string& file) {
    try {
        std::size_t elements = 0;
        for (const auto& [name, tensor] : qkv::io::read_safetensors<float>(std::as_bytes(std::span(file)))) {
            elements += tensor.values().size();
        }
        if (elements > file.size()) {
            std::abort();
        }
    } catch (const qkv::Error&) {  // refused: the other good outcome; anything else thrown is a finding
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    if (size == 0) {
        return 0;
    }
    const std::string_view rest(reinterpret_cast<const char*>(data) + 1, size - 1);
    switch (data[0] % 3) {
        case 0:
            read(std::string(rest));
            break;
        case 1: {
            const std::size_t end = rest.rfind('}');
            const std::size_t header = end == rest.npos ? rest.size() : end + 1;
            read(qkv::test::frame(rest.substr(0, header), rest.substr(header)));
            break;
        }
        default: {
            std::size_t next = 0;
            read(qkv::test::mutated_safetensors([&](std::uint64_t limit) {
                // Past the end of the input every choice is the first one.
                return next < rest.size() ? static_cast<std::uint8_t>(rest[next++]) % limit : 0;
            }));
        }
    }
    return 0;
}
