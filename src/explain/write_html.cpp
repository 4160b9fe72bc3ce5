#include <cstdint>
#include <span>
#include <string>

#include "explain/render_html.hpp"
#include "io/file.hpp"
#include "qkv/explain.hpp"

namespace qkv::explain {

std::uint64_t write_html(const Report& report, const std::filesystem::path& path) {
    std::string document;
    write_json(report, [&document](std::string_view piece) { document += piece; });
    const std::string page = render_html(document);
    io::write_file(path, [&page](const io::WriteBytes& write) { write(std::as_bytes(std::span(page))); });
    return page.size();
}

}  // namespace qkv::explain
