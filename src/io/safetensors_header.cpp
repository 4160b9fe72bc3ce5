#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <limits>
#include <tuple>

#include "core/check.hpp"
#include "io/dtype.hpp"
#include "io/json.hpp"
#include "io/quote.hpp"
#include "io/safetensors.hpp"

namespace qkv::io {
namespace {

constexpr std::size_t kLengthBytes = 8;
constexpr std::string_view kMetadataKey = "__metadata__";

/// Builds the tensors of a header from its JSON: {"name": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, ...}.
class HeaderHandler final : public JsonHandler {
public:
    static constexpr std::size_t kMaxDepth = 3;

    HeaderHandler(SafetensorsHeader& header, std::string_view name) : header_(header), name_(name) {}

    void open_object() override {
        switch (place_) {
            case Place::outside:
                place_ = Place::header;
                return;
            case Place::header_value:
                place_ = in_metadata_ ? Place::metadata : Place::tensor;
                fields_seen_ = 0;
                return;
            default:
                refuse("an object");
        }
    }

    void close_object() override {
        if (place_ == Place::header) {
            place_ = Place::done;
            return;
        }
        if (place_ == Place::tensor) {
            for (std::size_t field = 0; field < kFields.size(); ++field) {
                if ((fields_seen_ & 1U << field) == 0) {
                    fail_here("has no ", quote(kFields[field]));
                }
            }
        }
        place_ = Place::header;
    }

    void open_array() override {
        if (place_ != Place::field_value || field_ == kDtype) {
            refuse("an array");
        }
        place_ = Place::numbers;
        offsets_read_ = 0;
    }

    void close_array() override {
        if (field_ == kDataOffsets && offsets_read_ != 2) {
            fail_here("has ", offsets_read_, " data_offsets; expected 2");
        }
        place_ = Place::tensor;
    }

    void key(std::string&& name) override {
        if (place_ == Place::header) {
            open_entry(std::move(name));
        } else if (place_ == Place::metadata) {
            if (header_.metadata.contains(name)) {
                fail_here("has the key ", quote(name), " twice");
            }
            metadata_key_ = std::move(name);
            place_ = Place::metadata_value;
        } else {
            const auto* const known = std::ranges::find(kFields, name);
            if (known == kFields.end()) {
                fail_here("has the unknown key ", quote(name), "; expected dtype, shape and data_offsets");
            }
            field_ = static_cast<std::size_t>(known - kFields.begin());
            if ((fields_seen_ & 1U << field_) != 0) {
                fail_here("has the key ", quote(name), " twice");
            }
            fields_seen_ |= 1U << field_;
            place_ = Place::field_value;
        }
    }

    void string(std::string&& value) override {
        if (place_ == Place::metadata_value) {
            header_.metadata.emplace(std::move(metadata_key_), std::move(value));
            place_ = Place::metadata;
        } else if (place_ == Place::field_value && field_ == kDtype) {
            const auto dtype = dtype_from_name(value);
            if (!dtype) {
                fail_here("has the unknown dtype ", quote(value));
            }
            tensor().dtype = *dtype;
            place_ = Place::tensor;
        } else {
            refuse(concat("the string ", quote(value)));
        }
    }

    void number(std::string_view text) override {
        if (place_ != Place::numbers) {
            refuse(concat("the number ", text));
        }
        std::uint64_t value = 0;
        const auto result = std::from_chars(text.data(), text.data() + text.size(), value);
        if (result.ec != std::errc{} || result.ptr != text.data() + text.size() ||
            value > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
            fail_here("has ", quote(text), " in its ", kFields[field_], "; expected an integer from 0 to 2^63 - 1");
        }
        if (field_ == kShape) {
            if (tensor().shape.size() == kMaxTensorRank) {
                fail_here("has more than ", kMaxTensorRank, " dimensions");
            }
            tensor().shape.push_back(static_cast<std::int64_t>(value));
        } else {
            if (offsets_read_ == 2) {
                fail_here("has more than 2 data_offsets");
            }
            (offsets_read_ == 0 ? tensor().begin : tensor().end) = value;
            ++offsets_read_;
        }
    }

    void literal(std::string_view text) override { refuse(text); }

private:
    /// What has been read up to now, and so what may come next.
    enum class Place : std::uint8_t {
        outside,
        header,
        header_value,
        metadata,
        metadata_value,
        tensor,
        field_value,
        numbers,
        done,
    };
    static constexpr std::array<std::string_view, 3> kFields{"dtype", "shape", "data_offsets"};
    static constexpr std::size_t kDtype = 0;
    static constexpr std::size_t kShape = 1;
    static constexpr std::size_t kDataOffsets = 2;

    TensorInfo& tensor() { return header_.tensors.back(); }

    void open_entry(std::string&& name) {
        place_ = Place::header_value;
        in_metadata_ = name == kMetadataKey;
        if (in_metadata_) {
            if (metadata_seen_) {
                fail(ErrorCode::format, name_, ": the key ", quote(name), " appears twice");
            }
            metadata_seen_ = true;
            return;
        }
        if (name.size() > kMaxTensorNameBytes) {
            fail(ErrorCode::format, name_, ": the tensor name ", quote(name), " is ", name.size(),
                 " bytes long; expected at most ", kMaxTensorNameBytes);
        }
        if (name.find('\0') != std::string::npos) {
            fail(ErrorCode::format, name_, ": the tensor name ", quote(name), " contains a NUL");
        }
        if (header_.tensors.size() == kMaxTensors) {
            fail(ErrorCode::format, name_, ": more than ", kMaxTensors, " tensors");
        }
        header_.tensors.emplace_back().name = std::move(name);
    }

    template <class... Part>
    [[noreturn]] void fail_here(const Part&... part) {
        if (in_metadata_) {
            fail(ErrorCode::format, name_, ": ", kMetadataKey, " ", part...);
        }
        fail(ErrorCode::format, name_, ": tensor ", quote(tensor().name), " ", part...);
    }

    [[noreturn]] void refuse(std::string_view found) {
        switch (place_) {
            case Place::header_value:
                fail_here("is ", found, "; expected an object");
            case Place::metadata_value:
                fail_here("has ", found, " under ", quote(metadata_key_), "; expected a string");
            case Place::field_value:
                fail_here("has ", found, " as its ", kFields[field_], "; expected ",
                          field_ == kDtype ? "a string" : "an array");
            case Place::numbers:
                fail_here("has ", found, " in its ", kFields[field_], "; expected an integer from 0 to 2^63 - 1");
            default:
                fail(ErrorCode::format, name_, ": the header is ", found, "; expected an object");
        }
    }

    SafetensorsHeader& header_;
    std::string_view name_;
    Place place_ = Place::outside;
    bool in_metadata_ = false;
    bool metadata_seen_ = false;
    std::string metadata_key_;
    std::size_t field_ = 0;
    unsigned fields_seen_ = 0;
    std::size_t offsets_read_ = 0;
};

/// Size in bytes of a tensor's data, from its shape and type.
std::uint64_t data_size(const TensorInfo& info, std::string_view name) {
    const std::string what = concat(name, ": tensor ", quote(info.name), " of shape ", qkv::to_string(info.shape));
    // Sizes of zero are left out until the end: [2^40, 2^40, 0] is refused in any order.
    std::int64_t count = 1;
    bool empty = false;
    for (const std::int64_t size : info.shape) {
        if (size == 0) {
            empty = true;
        } else if (__builtin_mul_overflow(count, size, &count)) {
            fail(ErrorCode::format, what, " has more elements than 64 bits count");
        }
    }
    std::int64_t bit_count = 0;
    if (__builtin_mul_overflow(empty ? 0 : count, bits(info.dtype), &bit_count)) {
        fail(ErrorCode::format, what, " and type ", to_string(info.dtype), " has more bits than 64 bits count");
    }
    constexpr std::int64_t kBitsPerByte = 8;
    if (bit_count % kBitsPerByte != 0) {
        fail(ErrorCode::format, what, " and type ", to_string(info.dtype), " does not fill whole bytes");
    }
    return static_cast<std::uint64_t>(bit_count / kBitsPerByte);
}

void check_names_differ(const std::vector<TensorInfo>& tensors, std::string_view name) {
    std::vector<std::string_view> names;
    names.reserve(tensors.size());
    for (const TensorInfo& info : tensors) {
        names.push_back(info.name);
    }
    std::ranges::sort(names);
    const auto twice = std::ranges::adjacent_find(names);
    if (twice != names.end()) {
        fail(ErrorCode::format, name, ": the tensor name ", quote(*twice), " appears twice");
    }
}

/// Sorts by offset and checks that the tensors tile the data: from 0 to its end, no hole, no overlap. Otherwise one
/// file could show different content to different readers.
void check_layout(std::vector<TensorInfo>& tensors, std::uint64_t data_bytes, std::string_view name) {
    // By name among empty tensors in one place, so that the order is always the same.
    std::ranges::sort(tensors, {}, [](const TensorInfo& info) {
        return std::tuple(info.begin, info.end, std::string_view(info.name));
    });
    std::uint64_t expected_begin = 0;
    for (const TensorInfo& info : tensors) {
        if (info.begin != expected_begin) {
            fail(ErrorCode::format, name, ": the data of tensor ", quote(info.name), " begins at ", info.begin,
                 "; expected ", expected_begin, ", where the data before it ends");
        }
        if (info.end < info.begin) {
            fail(ErrorCode::format, name, ": the data of tensor ", quote(info.name), " ends at ", info.end,
                 ", before its begin at ", info.begin);
        }
        const std::uint64_t size = data_size(info, name);
        if (info.end - info.begin != size) {
            fail(ErrorCode::format, name, ": tensor ", quote(info.name), " has ", info.end - info.begin,
                 " bytes of data; expected ", size, " for type ", to_string(info.dtype), " and shape ",
                 qkv::to_string(info.shape));
        }
        expected_begin = info.end;
    }
    if (expected_begin != data_bytes) {
        fail(ErrorCode::format, name, ": the tensors' data ends at ", expected_begin, ", but the file has ", data_bytes,
             " bytes of data");
    }
}

}  // namespace

SafetensorsHeader read_header(const ByteSource& source) {
    const std::string& name = source.name();
    if (source.size() < kLengthBytes) {
        fail(ErrorCode::format, name, " is ", source.size(), " bytes long; expected at least ", kLengthBytes);
    }
    std::uint64_t length = 0;
    source.read_at(0, std::as_writable_bytes(std::span(&length, 1)));
    const std::uint64_t rest = source.size() - kLengthBytes;
    if (length > kMaxSafetensorsHeaderBytes || length > rest) {
        fail(ErrorCode::format, name, ": no safetensors file, or cut off: its first 8 bytes declare a header of ",
             length, " bytes; expected at most ", std::min(kMaxSafetensorsHeaderBytes, rest));
    }
    std::string json(static_cast<std::size_t>(length), '\0');
    source.read_at(kLengthBytes, std::as_writable_bytes(std::span(json)));
    if (!json.starts_with('{')) {
        fail(ErrorCode::format, name, ": the header begins with ", quote(json.substr(0, 1)), "; expected \"{\"");
    }
    SafetensorsHeader header;
    header.data_begin = kLengthBytes + length;
    HeaderHandler handler(header, name);
    parse_json(json, HeaderHandler::kMaxDepth, handler, name);
    check_names_differ(header.tensors, name);
    check_layout(header.tensors, rest - length, name);
    return header;
}

SafetensorsHeader parse_safetensors_header(std::span<const std::byte> file, std::string_view name) {
    return read_header(MemoryBytes(file, name));
}

}  // namespace qkv::io
