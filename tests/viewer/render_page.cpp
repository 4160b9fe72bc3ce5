// A document on standard input, the page on standard output.
#include <exception>
#include <iostream>
#include <iterator>
#include <string>

#include "explain/render_html.hpp"

int main() {
    try {
        const std::string document((std::istreambuf_iterator<char>(std::cin)), std::istreambuf_iterator<char>());
        std::cout << qkv::explain::render_html(document) << std::flush;
    } catch (const std::exception& error) {
        std::cerr << "render_page: " << error.what() << '\n';
        return 1;
    }
    return std::cout ? 0 : 1;
}
