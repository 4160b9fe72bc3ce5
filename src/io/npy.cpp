// The .npy format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>
#include <optional>

#include "core/check.hpp"
#include "io/dtype.hpp"
#include "io/embeddings.hpp"
#include "io/quote.hpp"

namespace qkv::io {
namespace {

constexpr std::string_view kMagic = "\x93NUMPY";
constexpr std::uint32_t kMaxHeaderBytes = 10'000;  // numpy's own limit
constexpr std::size_t kRank = 2;

struct TypeName {
    std::string_view numpy;
    Dtype dtype;
};
constexpr std::array<TypeName, 12> kTypes{{
    {"|b1", Dtype::BOOL},
    {"|i1", Dtype::I8},
    {"|u1", Dtype::U8},
    {"<i2", Dtype::I16},
    {"<u2", Dtype::U16},
    {"<i4", Dtype::I32},
    {"<u4", Dtype::U32},
    {"<i8", Dtype::I64},
    {"<u8", Dtype::U64},
    {"<f2", Dtype::F16},
    {"<f4", Dtype::F32},
    {"<f8", Dtype::F64},
}};

struct NpyHeader {
    Dtype dtype = Dtype::F32;
    bool fortran_order = false;
    Shape shape;
};

/// Reads the one Python literal that the format's header is: {'descr': '<f4', 'fortran_order': False, 'shape': (3, 4),
/// }.
class HeaderParser {
public:
    HeaderParser(std::string_view text, std::string_view name) : text_(text), name_(name) {}

    NpyHeader parse() {
        std::optional<Dtype> dtype;
        std::optional<bool> fortran_order;
        std::optional<Shape> shape;
        expect("{");
        while (!accept("}")) {
            const std::string_view key = string();
            expect(":");
            if (key == "descr" && !dtype) {
                dtype = type(string());
            } else if (key == "fortran_order" && !fortran_order) {
                fortran_order = boolean();
            } else if (key == "shape" && !shape) {
                shape = tuple();
            } else {
                refuse("unknown or repeated key ", quote(key));
            }
            if (!accept(",")) {
                expect("}");
                break;
            }
        }
        skip_space();
        if (offset_ != text_.size()) {
            refuse("something after the dictionary");
        }
        if (!dtype || !fortran_order || !shape) {
            refuse("expected the keys descr, fortran_order and shape");
        }
        return {*dtype, *fortran_order, std::move(*shape)};
    }

private:
    template <class... Part>
    [[noreturn]] void refuse(const Part&... part) const {
        fail(ErrorCode::format, name_, ": .npy header at byte ", offset_, ": ", part...);
    }

    void skip_space() { offset_ = std::min(text_.find_first_not_of(" \t\r\n", offset_), text_.size()); }

    bool accept(std::string_view token) {
        skip_space();
        const bool found = text_.substr(offset_).starts_with(token);
        offset_ += found ? token.size() : 0;
        return found;
    }

    void expect(std::string_view token) {
        if (!accept(token)) {
            refuse("expected ", quote(token), ", found ", quote(text_.substr(offset_)));
        }
    }

    /// A string without escapes: no valid header needs one.
    std::string_view string() {
        skip_space();
        const std::string_view mark = accept("'") ? "'" : "\"";
        if (mark == "\"") {
            expect(mark);
        }
        const std::size_t end = text_.find_first_of("'\"\\\n", offset_);
        if (end == text_.npos || text_[end] != mark[0]) {
            refuse("expected a string that ends with ", mark);
        }
        const std::string_view content = text_.substr(offset_, end - offset_);
        offset_ = end + 1;
        return content;
    }

    [[nodiscard]] Dtype type(std::string_view descr) const {
        const auto* const found = std::ranges::find(kTypes, descr, &TypeName::numpy);
        if (found == kTypes.end()) {
            refuse("element type ", quote(descr), "; expected little-endian floats or integers, or bool");
        }
        return found->dtype;
    }

    bool boolean() {
        if (accept("True")) {
            return true;
        }
        expect("False");
        return false;
    }

    Shape tuple() {
        Shape shape;
        expect("(");
        while (!accept(")")) {
            skip_space();
            std::int64_t size = 0;
            const char* const begin = text_.data() + offset_;
            const auto result = std::from_chars(begin, text_.data() + text_.size(), size);
            if (result.ec != std::errc{} || size < 0) {
                refuse("expected a size from 0 to 2^63 - 1, found ", quote(text_.substr(offset_)));
            }
            if (shape.size() == kMaxTensorRank) {
                refuse("more than ", kMaxTensorRank, " dimensions");
            }
            offset_ += static_cast<std::size_t>(result.ptr - begin);
            shape.push_back(size);
            if (!accept(",")) {
                if (shape.size() == 1) {
                    refuse("expected a comma after the only size of a tuple");
                }
                expect(")");
                break;
            }
        }
        return shape;
    }

    std::string_view text_;
    std::string_view name_;
    std::size_t offset_ = 0;
};

/// Reads `count` bytes at `offset` as text, if the file has them.
std::string read_text(const ByteSource& source, std::uint64_t offset, std::size_t count) {
    if (source.size() < offset || source.size() - offset < count) {
        fail(ErrorCode::format, source.name(), " is ", source.size(), " bytes long, too short for a .npy header");
    }
    std::string text(count, '\0');
    source.read_at(offset, std::as_writable_bytes(std::span(text)));
    return text;
}

}  // namespace

Embeddings read_npy(const ByteSource& source) {
    const std::string& name = source.name();
    constexpr std::size_t kVersionBytes = 2;
    const std::string start = read_text(source, 0, kMagic.size() + kVersionBytes);
    const auto major = static_cast<std::uint8_t>(start[kMagic.size()]);
    const auto minor = static_cast<std::uint8_t>(start[kMagic.size() + 1]);
    if (!start.starts_with(kMagic) || major < 1 || major > 3 || minor != 0) {
        fail(ErrorCode::format, name, ": begins with ", quote(start),
             "; expected a .npy file of version 1.0, 2.0 or 3.0");
    }
    const std::size_t length_bytes = major == 1 ? sizeof(std::uint16_t) : sizeof(std::uint32_t);
    const std::string length_text = read_text(source, start.size(), length_bytes);
    std::uint32_t length = 0;
    std::memcpy(&length, length_text.data(), length_bytes);
    if (length > kMaxHeaderBytes) {
        fail(ErrorCode::format, name, ": a .npy header of ", length, " bytes; expected at most ", kMaxHeaderBytes);
    }
    const std::uint64_t header_begin = start.size() + length_bytes;
    const std::string header_text = read_text(source, header_begin, length);
    const NpyHeader header = HeaderParser(header_text, name).parse();

    if (header.shape.size() != kRank || header.shape[0] == 0 || header.shape[1] == 0) {
        fail(ErrorCode::format, name, ": shape ", qkv::to_string(header.shape),
             "; expected [tokens, dim], neither of them 0");
    }
    std::int64_t count = 0;
    std::int64_t bytes = 0;
    const std::uint64_t data_begin = header_begin + length;
    if (__builtin_mul_overflow(header.shape[0], header.shape[1], &count) ||
        __builtin_mul_overflow(count, bits(header.dtype) / 8, &bytes) ||
        source.size() - data_begin != static_cast<std::uint64_t>(bytes)) {
        fail(ErrorCode::format, name, ": ", source.size() - data_begin, " bytes of data do not make shape ",
             qkv::to_string(header.shape), " of type ", to_string(header.dtype));
    }
    std::vector<std::byte> data(static_cast<std::size_t>(bytes));
    source.read_at(data_begin, data);
    const Shape stored = header.fortran_order ? Shape{header.shape[1], header.shape[0]} : header.shape;
    Tensor vectors(stored);
    const std::size_t refused = decode(header.dtype, data, vectors.values());
    if (refused != vectors.values().size()) {
        fail(ErrorCode::format, name, ": element ", refused, " of its data (type ", to_string(header.dtype),
             ") has no float of the same value");
    }
    Embeddings embeddings{{}, header.fortran_order ? vectors.transposed() : std::move(vectors)};
    check_finite(embeddings.vectors, name);
    return embeddings;
}

}  // namespace qkv::io
