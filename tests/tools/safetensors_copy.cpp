// For the comparison with other readers (tests/python/test_safetensors_interop.py). Reads file names from standard
// input, one a line, and answers each with a line: "ok" and the names of the tensors, or "error" and the message. With
// a directory as argument every file that was read is also written there under its own name.
#include <algorithm>
#include <filesystem>
#include <iostream>
#include <string>

#include "qkv/io.hpp"

int main(int argument_count, char** arguments) {
    std::string path;
    while (std::getline(std::cin, path)) {
        try {
            const auto tensors = qkv::io::read_safetensors<double>(std::filesystem::path(path));
            if (argument_count > 1) {
                const std::filesystem::path target(arguments[1]);
                qkv::io::write_safetensors(target / std::filesystem::path(path).filename(), tensors);
            }
            std::cout << "ok";
            for (const auto& [name, tensor] : tensors) {
                std::cout << '\t' << name;
            }
        } catch (const qkv::Error& error) {
            std::string message = error.what();
            std::ranges::replace(message, '\n', ' ');
            std::cout << (error.code() == qkv::ErrorCode::unsupported ? "unsupported\t" : "error\t") << message;
        }
        std::cout << '\n' << std::flush;
    }
    return 0;
}
