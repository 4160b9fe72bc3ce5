// Safetensors files with one to three faults in their fields, made from the file's structure rather than from its
// bytes: a mutated file gets past the length, the JSON and the keys and so reaches the checks behind them. Standard
// library only; the tests draw its choices from a seeded generator, the fuzzer from its input.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace qkv::test {

/// A number below its argument.
using Choose = std::function<std::uint64_t(std::uint64_t)>;

/// One tensor as it stands in the header: every field is JSON text, so that a mutation may put anything there.
struct MutableTensor {
    std::string name;
    std::string dtype;
    std::vector<std::string> shape;
    std::vector<std::string> offsets;
    std::string extra;
};

struct MutableFile {
    std::vector<MutableTensor> tensors;
    std::string metadata;
    std::string prefix;
    std::string suffix;
    std::string data;
    std::int64_t length_error = 0;
};

inline std::string frame(std::string_view json, std::string_view data, std::int64_t length_error = 0) {
    const auto length = static_cast<std::uint64_t>(static_cast<std::int64_t>(json.size()) + length_error);
    std::string file;
    for (unsigned byte = 0; byte < 8; ++byte) {
        file += static_cast<char>(length >> (8 * byte) & 0xFFU);
    }
    return file.append(json).append(data);
}

inline std::string serialise(const MutableFile& file) {
    std::string json = file.prefix + "{";
    std::string_view separator;
    if (!file.metadata.empty()) {
        json += "\"__metadata__\":" + file.metadata;
        separator = ",";
    }
    const auto join = [](const std::vector<std::string>& parts) {
        std::string text;
        for (const std::string& part : parts) {
            text += (text.empty() ? "" : ",") + part;
        }
        return "[" + text + "]";
    };
    for (const MutableTensor& tensor : file.tensors) {
        json.append(separator).append(tensor.name).append(":{\"dtype\":").append(tensor.dtype);
        json.append(",\"shape\":").append(join(tensor.shape));
        json.append(",\"data_offsets\":").append(join(tensor.offsets)).append(tensor.extra).append("}");
        separator = ",";
    }
    return frame(json + "}" + file.suffix, file.data, file.length_error);
}

/// A correct file of up to four tensors.
inline MutableFile make_valid(const Choose& choose) {
    struct Type {
        std::string_view name;
        std::size_t bytes;
    };
    static constexpr std::array<Type, 9> kTypes{{{"\"F32\"", 4},
                                                 {"\"F64\"", 8},
                                                 {"\"F16\"", 2},
                                                 {"\"BF16\"", 2},
                                                 {"\"I64\"", 8},
                                                 {"\"U8\"", 1},
                                                 {"\"BOOL\"", 1},
                                                 {"\"I32\"", 4},
                                                 {"\"F8_E4M3\"", 1}}};
    MutableFile file;
    const std::uint64_t count = choose(5);
    for (std::uint64_t index = 0; index < count; ++index) {
        const Type& type = kTypes[choose(kTypes.size())];
        MutableTensor tensor{"\"t" + std::to_string(index) + "\"", std::string(type.name), {}, {}, ""};
        std::size_t bytes = type.bytes;
        for (std::uint64_t dims = choose(4); dims > 0; --dims) {
            const std::uint64_t size = choose(5);
            tensor.shape.push_back(std::to_string(size));
            bytes *= size;
        }
        tensor.offsets = {std::to_string(file.data.size()), std::to_string(file.data.size() + bytes)};
        for (std::size_t byte = 0; byte < bytes; ++byte) {
            file.data += static_cast<char>(choose(2));  // a BOOL must be 0 or 1
        }
        file.tensors.push_back(tensor);
    }
    if (choose(3) == 0) {
        file.metadata = R"({"format":"pt"})";
    }
    return file;
}

inline void mutate_once(MutableFile& file, const Choose& choose) {
    static constexpr std::array<std::string_view, 24> kNumbers{"0",
                                                               "1",
                                                               "2",
                                                               "7",
                                                               "-1",
                                                               "-0",
                                                               "1.0",
                                                               "1e1",
                                                               "4294967296",
                                                               "2147483648",
                                                               "9223372036854775807",
                                                               "9223372036854775808",
                                                               "18446744073709551615",
                                                               "18446744073709551616",
                                                               "1152921504606846976",
                                                               "null",
                                                               "\"4\"",
                                                               "true",
                                                               "[]",
                                                               "{}",
                                                               "1e999",
                                                               "0x10",
                                                               "00",
                                                               "99999999999999999999999999"};
    static constexpr std::array<std::string_view, 12> kNames{
        "\"t0\"",       "\"\\u00740\"",     "\"\"",        "\"__metadata__\"",     "\"a\\u0000b\"", "\"\\ud800\"",
        "\"\xC0\xAF\"", "\"\xED\xA0\x80\"", "\"\\u202e\"", "\"\xF0\x9F\x98\x80\"", "null",          "\"t1"};
    static constexpr std::array<std::string_view, 10> kTypes{
        "\"F32\"", "\"f32\"", "\"I64\"", "\"C64\"", "\"F4\"", "\"F6_E2M3\"", "\"X\"", "3", "null", "[\"F32\"]"};
    static constexpr std::array<std::string_view, 8> kExtras{",\"dtype\":\"F32\"",
                                                             ",\"shape\":[]",
                                                             ",\"data_offsets\":[0,0]",
                                                             ",\"x\":1",
                                                             ",\"x\":{\"y\":[[[[[]]]]]}",
                                                             ",",
                                                             "}",
                                                             ",\"\\u0064type\":\"F32\""};
    static constexpr std::array<std::string_view, 9> kMetadata{"{}",
                                                               "null",
                                                               "[]",
                                                               "{\"a\":1}",
                                                               "{\"a\":null}",
                                                               "{\"a\":\"b\",\"a\":\"c\"}",
                                                               "{\"a\":\"b\",\"\\u0061\":\"c\"}",
                                                               "{\"a\":{}}",
                                                               "\"x\""};
    static constexpr std::array<std::string_view, 8> kAround{" ", "\n", "x", "{}", "[", "]", "   ", "\xEF\xBB\xBF"};

    const auto pick = [&choose](const auto& list) { return std::string(list[choose(list.size())]); };
    const std::uint64_t what = choose(12);
    if (what < 8 && file.tensors.empty()) {
        file.tensors.push_back({"\"t0\"", "\"F32\"", {"0"}, {"0", "0"}, ""});
    }
    const std::uint64_t which = file.tensors.empty() ? 0 : choose(file.tensors.size());
    switch (what) {
        case 0:
            file.tensors[which].name = pick(kNames);
            break;
        case 1:
            file.tensors[which].dtype = pick(kTypes);
            break;
        case 2:
            file.tensors[which].shape.push_back(pick(kNumbers));
            break;
        case 3:
            if (!file.tensors[which].shape.empty()) {
                file.tensors[which].shape[choose(file.tensors[which].shape.size())] = pick(kNumbers);
            }
            break;
        case 4:
            if (!file.tensors[which].offsets.empty()) {
                file.tensors[which].offsets[choose(file.tensors[which].offsets.size())] = pick(kNumbers);
            }
            break;
        case 5:
            if (choose(2) == 0) {
                file.tensors[which].offsets.push_back(pick(kNumbers));
            } else if (!file.tensors[which].offsets.empty()) {
                file.tensors[which].offsets.pop_back();
            }
            break;
        case 6:
            file.tensors[which].extra = pick(kExtras);
            break;
        case 7:
            file.tensors.push_back(file.tensors[which]);
            break;
        case 8:
            file.metadata = pick(kMetadata);
            break;
        case 9:
            (choose(2) == 0 ? file.prefix : file.suffix) = pick(kAround);
            break;
        case 10:
            file.data.resize(choose(file.data.size() + 8));
            break;
        default:
            file.length_error = static_cast<std::int64_t>(choose(17)) - 8;
            break;
    }
}

/// A correct file with one to three faults (some of which leave it correct).
inline std::string mutated_safetensors(const Choose& choose) {
    MutableFile file = make_valid(choose);
    for (std::uint64_t faults = 1 + choose(3); faults > 0; --faults) {
        mutate_once(file, choose);
    }
    return serialise(file);
}

}  // namespace qkv::test
