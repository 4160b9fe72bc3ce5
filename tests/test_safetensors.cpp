// Reading, writing and round trips of safetensors files; what a disk can do to them.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <bit>
#include <cmath>
#include <csignal>
#include <cstring>
#include <limits>
#include <random>

#include "core/check.hpp"
#include "qkv/io.hpp"
#include "support/expect_error.hpp"
#include "support/safetensors_mutator.hpp"
#include "support/temporary_directory.hpp"

namespace qkv::io {
namespace {

using test::frame;
using test::TemporaryDirectory;

template <class T>
BasicTensor<T> read_one(const std::string& dtype, const std::string& data, std::size_t count) {
    const std::string file = frame(concat(R"({"a":{"dtype":")", dtype, R"(","shape":[)", std::to_string(count),
                                          R"(],"data_offsets":[0,)", std::to_string(data.size()), "]}}"),
                                   data);
    return read_safetensors<T>(std::as_bytes(std::span(file))).at("a");
}

template <class Stored>
std::string bytes_of(std::initializer_list<Stored> values) {
    std::string bytes(values.size() * sizeof(Stored), '\0');
    std::memcpy(bytes.data(), values.begin(), bytes.size());
    return bytes;
}

template <class T>
class Safetensors : public testing::Test {};
using Types = testing::Types<float, double>;
TYPED_TEST_SUITE(Safetensors, Types);

TYPED_TEST(Safetensors, RoundTripKeepsEveryBit) {
    using T = TypeParam;
    const TemporaryDirectory directory;
    const T denormal = std::numeric_limits<T>::denorm_min();
    const T infinity = std::numeric_limits<T>::infinity();
    const StateDict<T> tensors{
        {"", BasicTensor<T>({1}, {T(3)})},
        {"empty", BasicTensor<T>({3, 0})},
        {"scalar", BasicTensor<T>(Shape{}, {T(-0.0)})},
        {"weight \"q\"\\\n\x7F é 😀", BasicTensor<T>({2, 3}, {1, denormal, -infinity, T(0.1), 5, -6})}};
    const Metadata metadata{{"format", "pt"}, {"\t\"", "é"}};
    const auto path = directory / "m.safetensors";
    write_safetensors(path, tensors, metadata);
    const StateDict<T> read = read_safetensors<T>(path);
    ASSERT_EQ(read.size(), tensors.size());
    for (const auto& [name, tensor] : tensors) {
        EXPECT_EQ(read.at(name), tensor) << name;
    }
    EXPECT_TRUE(std::signbit(read.at("scalar").values()[0]));
    const std::string file = TemporaryDirectory::read(path);
    const SafetensorsHeader header = parse_safetensors_header(std::as_bytes(std::span(file)));
    EXPECT_EQ(header.metadata, metadata);
    EXPECT_EQ(header.data_begin % 8, 0U);
    EXPECT_EQ(directory.entries(), 1U);
}

TEST(SafetensorsFile, HasTheLayoutOfTheFormat) {
    const TemporaryDirectory directory;
    write_safetensors<float>(directory / "m.safetensors", {{"a", Tensor({2}, {1, 2})}});
    EXPECT_EQ(TemporaryDirectory::read(directory / "m.safetensors"),
              frame(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}  )", bytes_of({1.0F, 2.0F})));
}

TEST(SafetensorsFile, EmptyDictionary) {
    const TemporaryDirectory directory;
    write_safetensors<float>(directory / "m.safetensors", {});
    EXPECT_TRUE(read_safetensors<float>(directory / "m.safetensors").empty());
}

TEST(SafetensorsTypes, EveryHalfIsExact) {
    // Against a conversion by arithmetic instead of by bits.
    for (unsigned code = 0; code < 0x10000; ++code) {
        const auto stored = static_cast<std::uint16_t>(code);
        const float value = read_one<float>("F16", bytes_of({stored}), 1).values()[0];
        const int exponent = static_cast<int>(code >> 10U & 0x1FU);
        const int fraction = static_cast<int>(code & 0x3FFU);
        const double sign = code >= 0x8000U ? -1 : 1;
        if (exponent == 31 && fraction != 0) {
            ASSERT_TRUE(std::isnan(value)) << code;
        } else if (exponent == 31) {
            ASSERT_EQ(value, sign * std::numeric_limits<double>::infinity()) << code;
        } else {
            const double magnitude =
                exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
            ASSERT_EQ(value, sign * magnitude) << code;
            ASSERT_EQ(std::signbit(value), code >= 0x8000U) << code;
        }
    }
}

TEST(SafetensorsTypes, ConvertsToFloatAndDouble) {
    EXPECT_EQ(read_one<float>("BF16", bytes_of<std::uint16_t>({0x3F80, 0xC049, 0xFF80}), 3),
              Tensor({3}, {1, -3.140625F, -INFINITY}));
    EXPECT_EQ(read_one<double>("F32", bytes_of({0.1F}), 1), Tensor64({1}, {static_cast<double>(0.1F)}));
    EXPECT_EQ(read_one<float>("F64", bytes_of({0.1, 1e-300, std::numeric_limits<double>::infinity()}), 3),
              Tensor({3}, {0.1F, 0, INFINITY}));
    EXPECT_EQ(read_one<float>("BOOL", std::string("\1\0", 2), 2), Tensor({2}, {1, 0}));
    EXPECT_EQ(read_one<float>("I8", "\x80\x7F", 2), Tensor({2}, {-128, 127}));
    EXPECT_EQ(read_one<float>("U8", "\x80\x7F", 2), Tensor({2}, {128, 127}));
    EXPECT_EQ(read_one<float>("I16", bytes_of<std::int16_t>({-32768}), 1), Tensor({1}, {-32768}));
    EXPECT_EQ(read_one<float>("U16", bytes_of<std::uint16_t>({65535}), 1), Tensor({1}, {65535}));
    EXPECT_EQ(read_one<float>("I32", bytes_of<std::int32_t>({std::numeric_limits<std::int32_t>::min(), 16777216}), 2),
              Tensor({2}, {-0x1p31F, 0x1p24F}));
    EXPECT_EQ(read_one<double>("U32", bytes_of<std::uint32_t>({4294967295U}), 1), Tensor64({1}, {4294967295.0}));
    EXPECT_EQ(read_one<double>("I64", bytes_of<std::int64_t>({std::numeric_limits<std::int64_t>::min(), 0}), 2),
              Tensor64({2}, {-0x1p63, 0}));
    EXPECT_EQ(read_one<double>("U64", bytes_of<std::uint64_t>({std::uint64_t{1} << 63U}), 1), Tensor64({1}, {0x1p63}));
}

TEST(SafetensorsTypes, RefusesWhatTheTypeCannotHold) {
    const auto message = "element 1 of tensor \"a\"";
    EXPECT_ERROR(read_one<float>("I32", bytes_of<std::int32_t>({0, 16777217}), 2), ErrorCode::format, message);
    EXPECT_ERROR(read_one<double>("I64", bytes_of<std::int64_t>({0, (std::int64_t{1} << 53U) + 1}), 2),
                 ErrorCode::format, message);
    EXPECT_ERROR(read_one<double>("U64", bytes_of<std::uint64_t>({0, ~std::uint64_t{0}}), 2), ErrorCode::format,
                 message);
    EXPECT_ERROR(read_one<float>("F64", bytes_of({0.0, 1e300}), 2), ErrorCode::format, message);
    EXPECT_ERROR(read_one<float>("BOOL", "\x01\x02", 2), ErrorCode::format, message);
    EXPECT_ERROR(read_one<float>("F8_E4M3", "x", 1), ErrorCode::unsupported, "F8_E4M3");
    EXPECT_ERROR(read_one<float>("C64", "xxxxxxxx", 1), ErrorCode::unsupported, "C64");
    EXPECT_ERROR(read_one<float>("F4", "x", 2), ErrorCode::unsupported, "F4");
}

TEST(SafetensorsTypes, ConvertsMoreThanOneBufferful) {
    std::string data;
    for (int index = 0; index < 200'000; ++index) {
        data += bytes_of<std::int32_t>({index});
    }
    const Tensor tensor = read_one<float>("I32", data, 200'000);
    for (int index = 0; index < 200'000; ++index) {
        ASSERT_EQ(tensor.values()[static_cast<std::size_t>(index)], static_cast<float>(index));
    }
}

TEST(SafetensorsFile, WhatIsNoFileIsRefused) {
    const TemporaryDirectory directory;
    const auto read = [&](const char* name) { return read_safetensors<float>(directory / name); };
    EXPECT_ERROR(read("missing"), ErrorCode::io, "No such file or directory");
    EXPECT_ERROR(read("missing"), ErrorCode::io, "missing\"");
    EXPECT_ERROR(read_safetensors<float>(directory.path()), ErrorCode::io, "it is a directory");
    ASSERT_EQ(::mkfifo((directory / "pipe").c_str(), 0600), 0);
    EXPECT_ERROR(read("pipe"), ErrorCode::io, "it is a pipe");
    EXPECT_ERROR(read_safetensors<float>(std::filesystem::path("/dev/zero")), ErrorCode::io, "it is a device");
    std::filesystem::create_symlink("loop", directory / "loop");
    EXPECT_ERROR(read("loop"), ErrorCode::io, "symbolic links");
    EXPECT_ERROR(read_safetensors<float>(directory / "missing" / "file"), ErrorCode::io, "No such file");
    EXPECT_ERROR(read_safetensors<float>(std::filesystem::path("")), ErrorCode::io, "No such file");
    if (::geteuid() != 0) {  // root may read everything
        const auto secret = directory.write("secret", "x");
        std::filesystem::permissions(secret, std::filesystem::perms::none);
        EXPECT_ERROR(read("secret"), ErrorCode::io, "Permission denied");
    }
}

TEST(SafetensorsWrite, RefusesWhatTheFormatCannotHold) {
    const TemporaryDirectory directory;
    const auto path = directory.write("m.safetensors", "old");
    const auto write = [&](const std::string& name, const Metadata& metadata = {}) {
        write_safetensors<float>(path, {{name, Tensor({1})}}, metadata);
    };
    EXPECT_ERROR(write("__metadata__"), ErrorCode::invalid_argument, "__metadata__");
    EXPECT_ERROR(write("\xFF"), ErrorCode::invalid_argument, "not UTF-8");
    EXPECT_ERROR(write(std::string("a\0b", 3)), ErrorCode::invalid_argument, "NUL");
    EXPECT_ERROR(write(std::string(65'536, 'n')), ErrorCode::invalid_argument, "65535");
    EXPECT_ERROR(write("a", {{"\xC3", ""}}), ErrorCode::invalid_argument, "metadata key");
    EXPECT_ERROR(write("a", {{"", "\xC3"}}), ErrorCode::invalid_argument, "metadata value");
    EXPECT_ERROR(write_safetensors<float>(path, {{"a", Tensor(Shape(65, 1))}}), ErrorCode::invalid_argument, "65 dim");
    EXPECT_EQ(TemporaryDirectory::read(path), "old");
    EXPECT_EQ(directory.entries(), 1U);
}

TEST(SafetensorsWrite, RefusesPlacesThatAreNoFile) {
    const TemporaryDirectory directory;
    const auto write = [](const std::filesystem::path& path) { write_safetensors<float>(path, {{"a", Tensor({1})}}); };
    EXPECT_ERROR(write(directory.path()), ErrorCode::io, "it is a directory");
    EXPECT_ERROR(write("/dev/full"), ErrorCode::io, "it is a device");
    EXPECT_ERROR(write(directory / "missing/m"), ErrorCode::io, "No such file or directory");
    EXPECT_TRUE(std::filesystem::is_character_file("/dev/full"));
}

TEST(SafetensorsWrite, FollowsLinksAndKeepsPermissions) {
    const TemporaryDirectory directory;
    const auto path = directory.write("real", "old");
    const auto mode = std::filesystem::perms::owner_read | std::filesystem::perms::owner_write;
    std::filesystem::permissions(path, mode);
    std::filesystem::create_symlink("real", directory / "link");
    write_safetensors<float>(directory / "link", {{"a", Tensor({1})}});
    EXPECT_TRUE(std::filesystem::is_symlink(directory / "link"));
    EXPECT_EQ(read_safetensors<float>(path).size(), 1U);
    EXPECT_EQ(std::filesystem::status(path).permissions(), mode);
}

TEST(SafetensorsWrite, AFullDiskLeavesTheOldFile) {
    const TemporaryDirectory directory;
    const auto path = directory.write("m.safetensors", "old");
    rlimit unlimited{};
    ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &unlimited), 0);
    const auto previous_handler = std::signal(SIGXFSZ, SIG_IGN);
    const rlimit limited{4096, unlimited.rlim_max};
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &limited), 0);
    EXPECT_ERROR(write_safetensors<float>(path, {{"a", Tensor({10'000})}}), ErrorCode::io, "File too large");
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &unlimited), 0);
    (void)std::signal(SIGXFSZ, previous_handler);
    EXPECT_EQ(TemporaryDirectory::read(path), "old");
    EXPECT_EQ(directory.entries(), 1U);
}

TEST(SafetensorsMutation, IsReadOrRefusedAndNothingElse) {
    constexpr std::uint64_t kSeed = 20'240'607;
    constexpr int kInputs = 20'000;
    RecordProperty("seed", std::to_string(kSeed));
    std::mt19937_64 generator(kSeed);
    const test::Choose choose = [&generator](std::uint64_t limit) { return generator() % limit; };
    int accepted = 0;
    for (int input = 0; input < kInputs; ++input) {
        const std::string file = test::mutated_safetensors(choose);
        try {
            const auto tensors = read_safetensors<float>(std::as_bytes(std::span(file)));
            std::uint64_t stored = 0;
            for (const auto& [name, tensor] : tensors) {
                stored += static_cast<std::uint64_t>(tensor.numel());
            }
            ASSERT_LE(stored, file.size()) << "seed " << kSeed << ", input " << input;
            ++accepted;
        } catch (const Error& error) {
            ASSERT_TRUE(error.code() == ErrorCode::format || error.code() == ErrorCode::unsupported)
                << error.what() << "; seed " << kSeed << ", input " << input;
        } catch (const std::exception& error) {
            FAIL() << error.what() << "; seed " << kSeed << ", input " << input;
        }
    }
    std::printf("seed %llu: %d of %d mutated files were accepted\n", static_cast<unsigned long long>(kSeed), accepted,
                kInputs);
    // Both outcomes must occur, or the mutations prove nothing.
    EXPECT_GT(accepted, kInputs / 50);
    EXPECT_LT(accepted, kInputs / 2);
}

}  // namespace
}  // namespace qkv::io
