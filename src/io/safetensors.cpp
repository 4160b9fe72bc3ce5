#include "io/safetensors.hpp"

#include <algorithm>
#include <new>

#include "core/check.hpp"
#include "core/utf8.hpp"
#include "io/dtype.hpp"
#include "io/json.hpp"
#include "io/quote.hpp"

namespace qkv::io {

template <class T>
BasicTensor<T> read_tensor(const ByteSource& source, const SafetensorsHeader& header, const TensorInfo& info) {
    if (!is_readable(info.dtype)) {
        fail(ErrorCode::unsupported, source.name(), ": tensor ", quote(info.name), " has type ", to_string(info.dtype),
             ", which cannot be read; expected BOOL, an integer type, F16, BF16, F32 or F64");
    }
    BasicTensor<T> tensor = BasicTensor<T>::unwritten(info.shape);
    const std::span<T> values = tensor.values();
    const std::uint64_t begin = header.data_begin + info.begin;
    if (stores<T>(info.dtype)) {
        source.read_at(begin, std::as_writable_bytes(values));
        return tensor;
    }
    constexpr std::size_t kElementsAtATime = 65'536;
    const auto element_bytes = static_cast<std::size_t>(bits(info.dtype) / 8);
    std::vector<std::byte> buffer(std::min(kElementsAtATime, values.size()) * element_bytes);
    for (std::size_t first = 0; first < values.size(); first += kElementsAtATime) {
        const std::span<T> part = values.subspan(first, std::min(kElementsAtATime, values.size() - first));
        const std::span<std::byte> bytes = std::span(buffer).first(part.size() * element_bytes);
        source.read_at(begin + first * element_bytes, bytes);
        const std::size_t refused = decode(info.dtype, bytes, part);
        if (refused != part.size()) {
            fail(ErrorCode::format, source.name(), ": element ", first + refused, " of tensor ", quote(info.name),
                 " (type ", to_string(info.dtype), ") has no ", sizeof(T) == sizeof(float) ? "float" : "double",
                 " of the same value");
        }
    }
    return tensor;
}

template BasicTensor<float> read_tensor<float>(const ByteSource&, const SafetensorsHeader&, const TensorInfo&);
template BasicTensor<double> read_tensor<double>(const ByteSource&, const SafetensorsHeader&, const TensorInfo&);

namespace {

template <class T>
StateDict<T> read_all_tensors(const ByteSource& source) {
    try {
        const SafetensorsHeader header = read_header(source);
        StateDict<T> tensors;
        for (const TensorInfo& info : header.tensors) {
            tensors.emplace(info.name, read_tensor<T>(source, header, info));
        }
        return tensors;
    } catch (const std::bad_alloc&) {
        fail(ErrorCode::out_of_memory, source.name(), ": no memory to read it (", source.size(), " bytes)");
    }
}

void check_text(std::string_view text, std::string_view what) {
    if (const std::size_t bad = first_invalid_utf8(text); bad != text.npos) {
        fail(ErrorCode::invalid_argument, "write_safetensors: ", what, " ", quote(text), " is not UTF-8 at byte ", bad);
    }
}

void check_tensor_name(std::string_view name) {
    check_text(name, "the tensor name");
    if (name == "__metadata__" || name.size() > kMaxTensorNameBytes || name.find('\0') != name.npos) {
        fail(ErrorCode::invalid_argument, "write_safetensors: the tensor name ", quote(name),
             " is not possible; expected at most ", kMaxTensorNameBytes, " bytes, no NUL, and not \"__metadata__\"");
    }
}

template <class T>
std::string header_json(const StateDict<T>& tensors, const Metadata& metadata) {
    std::string json = "{";
    const auto separate = [&json] {
        if (json.back() != '{') {
            json += ',';
        }
    };
    if (!metadata.empty()) {
        json += "\"__metadata__\":{";
        for (const auto& [key, value] : metadata) {
            check_text(key, "the metadata key");
            check_text(value, "the metadata value");
            separate();
            json += to_json_string(key) + ":" + to_json_string(value);
        }
        json += "}";
    }
    std::uint64_t offset = 0;
    for (const auto& [name, tensor] : tensors) {
        check_tensor_name(name);
        if (tensor.shape().size() > kMaxTensorRank) {
            fail(ErrorCode::invalid_argument, "write_safetensors: tensor ", quote(name), " has ", tensor.rank(),
                 " dimensions; expected at most ", kMaxTensorRank);
        }
        const std::uint64_t end = offset + tensor.values().size_bytes();
        separate();
        json += concat(to_json_string(name), ":{\"dtype\":\"", sizeof(T) == sizeof(float) ? "F32" : "F64",
                       "\",\"shape\":", qkv::to_string(tensor.shape()), ",\"data_offsets\":[", offset, ",", end, "]}");
        offset = end;
    }
    json += "}";
    constexpr std::size_t kAlignment = 8;
    json.resize((json.size() + kAlignment - 1) / kAlignment * kAlignment, ' ');
    if (tensors.size() > kMaxTensors || json.size() > kMaxSafetensorsHeaderBytes) {
        fail(ErrorCode::invalid_argument, "write_safetensors: ", tensors.size(), " tensors with a header of ",
             json.size(), " bytes; expected at most ", kMaxTensors, " and ", kMaxSafetensorsHeaderBytes);
    }
    return json;
}

}  // namespace

template <class T>
StateDict<T> read_safetensors(const std::filesystem::path& path) {
    return read_all_tensors<T>(InputFile(path));
}

template <class T>
StateDict<T> read_safetensors(std::span<const std::byte> file, std::string_view name) {
    return read_all_tensors<T>(MemoryBytes(file, name));
}

template <class T>
void write_safetensors(const std::filesystem::path& path, const StateDict<T>& tensors, const Metadata& metadata) {
    const std::string json = header_json(tensors, metadata);
    const std::uint64_t length = json.size();
    write_file(path, [&](const WriteBytes& write) {
        write(std::as_bytes(std::span(&length, 1)));
        write(std::as_bytes(std::span(json)));
        for (const auto& [name, tensor] : tensors) {
            write(std::as_bytes(tensor.values()));
        }
    });
}

template StateDict<float> read_safetensors<float>(const std::filesystem::path&);
template StateDict<double> read_safetensors<double>(const std::filesystem::path&);
template StateDict<float> read_safetensors<float>(std::span<const std::byte>, std::string_view);
template StateDict<double> read_safetensors<double>(std::span<const std::byte>, std::string_view);
template void write_safetensors<float>(const std::filesystem::path&, const StateDict<float>&, const Metadata&);
template void write_safetensors<double>(const std::filesystem::path&, const StateDict<double>&, const Metadata&);

}  // namespace qkv::io
