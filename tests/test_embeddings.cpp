// Embedding files: what each format may hold, and by hand-made attacks what is refused and how.
#include <gtest/gtest.h>

#include <clocale>
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "core/check.hpp"
#include "io/embeddings.hpp"
#include "io/number.hpp"
#include "qkv/io.hpp"
#include "support/expect_error.hpp"
#include "support/temporary_directory.hpp"

namespace qkv::io {
namespace {

using test::TemporaryDirectory;

Embeddings read(const std::string& extension, const std::string& content) {
    static const TemporaryDirectory directory;
    return read_embeddings(directory.write("file" + extension, content));
}

std::string npy(const std::string& dictionary, const std::string& data, char major = 1) {
    const std::size_t length_bytes = major == 1 ? 2 : 4;
    std::string length;
    for (std::size_t byte = 0; byte < length_bytes; ++byte) {
        length += static_cast<char>(dictionary.size() >> (8 * byte) & 0xFFU);
    }
    return concat("\x93NUMPY", major, '\0', length, dictionary, data);
}

template <class T>
std::string bytes_of(const std::vector<T>& values) {
    std::string bytes(values.size() * sizeof(T), '\0');
    std::memcpy(bytes.data(), values.data(), bytes.size());
    return bytes;
}

std::string dictionary(const std::string& descr, const std::string& shape, const std::string& fortran = "False") {
    return concat("{'descr': '", descr, "', 'fortran_order': ", fortran, ", 'shape': ", shape, ", }");
}

const Tensor kMatrix({2, 3}, {1, 2, 3, 4, 5, 6});
const std::vector<std::string> kNone;
const std::vector<std::string> kAB{"a", "b"};

TEST(EmbeddingsCsv, NumbersAlone) {
    for (const char* text :
         {"1,2,3\n4,5,6\n", "1,2,3\n4,5,6", "1,2,3\r\n4,5,6\r\n",
          "\xEF\xBB\xBF"
          "1,2,3\n4,5,6\n\n\r\n\n",
          "1, 2 ,\t3\n 4,5,6 \n", "\"1\",\"2\",\"3\"\n\"4\",\"5\",\"6\"\n", "1.0,2e0,.3e1\n4.,0.5E+1,600e-2"}) {
        const Embeddings embeddings = read(".csv", text);
        EXPECT_EQ(embeddings.vectors, kMatrix) << text;
        EXPECT_EQ(embeddings.tokens, kNone) << text;
    }
    EXPECT_EQ(read(".csv", "5").vectors, Tensor({1, 1}, {5}));
    EXPECT_TRUE(std::signbit(read(".csv", "-0").vectors.values()[0]));
}

TEST(EmbeddingsCsv, Labels) {
    for (const char* text : {"a,1,2,3\nb,4,5,6", "\"a\",1,2,3\r\n\"b\",4,5,6\r\n", "a,1,2,3\n\"b\",\"4\",5,6\n"}) {
        const Embeddings embeddings = read(".csv", text);
        EXPECT_EQ(embeddings.vectors, kMatrix) << text;
        EXPECT_EQ(embeddings.tokens, kAB) << text;
    }
    const Embeddings odd = read(".csv", "\"a,\"\"b\"\"\nc\",1\n7,2\nnan,3\n é😀 ,4\n");
    EXPECT_EQ(odd.tokens, (std::vector<std::string>{"a,\"b\"\nc", "7", "nan", " é😀 "}));
    EXPECT_EQ(odd.vectors, Tensor({4, 1}, {1, 2, 3, 4}));
    // A quoted number before an unquoted one is a label; when all are quoted it is a number.
    EXPECT_EQ(read(".csv", "\"2023\",1\n\"2024\",2\n").tokens, (std::vector<std::string>{"2023", "2024"}));
    EXPECT_EQ(read(".csv", concat(std::string(kMaxLabelBytes, 'x'), ",1")).tokens[0].size(), kMaxLabelBytes);
}

TEST(EmbeddingsJson, BothForms) {
    for (const char* text :
         {"[[1,2,3],[4,5,6]]", " [ [1.0, 2e0, 0.3e1],\n[4,5,6] ] \n", "\xEF\xBB\xBF[[1,2,3],[4,5,6]]"}) {
        EXPECT_EQ(read(".json", text).vectors, kMatrix) << text;
        EXPECT_EQ(read(".json", text).tokens, kNone) << text;
    }
    for (const char* text : {R"({"tokens":["a","b"],"embeddings":[[1,2,3],[4,5,6]]})",
                             R"({"embeddings":[[1,2,3],[4,5,6]],"\u0074okens":["\u0061","b"]})"}) {
        EXPECT_EQ(read(".json", text).vectors, kMatrix) << text;
        EXPECT_EQ(read(".json", text).tokens, kAB) << text;
    }
    EXPECT_TRUE(std::signbit(read(".json", "[[-0]]").vectors.values()[0]));
    EXPECT_EQ(read(".json", "[[18446744073709551615,-9223372036854775808,16777217]]").vectors,
              Tensor({1, 3}, {0x1p64F, -0x1p63F, 0x1p24F}));
}

TEST(EmbeddingsNpy, VersionsTypesAndOrders) {
    const std::string data = bytes_of<float>({1, 2, 3, 4, 5, 6});
    for (const char version : {'\1', '\2', '\3'}) {
        EXPECT_EQ(read(".npy", npy(dictionary("<f4", "(2, 3)") + "   \n", data, version)).vectors, kMatrix);
    }
    EXPECT_EQ(read(".npy", npy(R"({"shape":(2,3,),"descr":"<f4","fortran_order":False})", data)).vectors, kMatrix);
    EXPECT_EQ(read(".npy", npy(dictionary("<f4", "(2, 3)", "True"), bytes_of<float>({1, 4, 2, 5, 3, 6}))).vectors,
              kMatrix);
    EXPECT_EQ(read(".npy", npy(dictionary("<f8", "(2, 3)"), bytes_of<double>({1, 2, 3, 4, 5, 6}))).vectors, kMatrix);
    EXPECT_EQ(read(".npy", npy(dictionary("<f2", "(1, 2)"), bytes_of<std::uint16_t>({0x3C00, 0xC000}))).vectors,
              Tensor({1, 2}, {1, -2}));
    EXPECT_EQ(read(".npy", npy(dictionary("<i8", "(2, 3)"), bytes_of<std::int64_t>({1, 2, 3, 4, 5, 6}))).vectors,
              kMatrix);
    EXPECT_EQ(read(".npy", npy(dictionary("|u1", "(2, 3)"), "\1\2\3\4\5\6")).vectors, kMatrix);
    EXPECT_EQ(read(".npy", npy(dictionary("|b1", "(1, 2)"), std::string("\1\0", 2))).vectors, Tensor({1, 2}, {1, 0}));
}

TEST(EmbeddingsSafetensors, ChoosesTheMatrix) {
    const TemporaryDirectory directory;
    const auto path = directory / "e.safetensors";
    const auto read_back = [&](const StateDict<float>& tensors) {
        write_safetensors(path, tensors);
        return read_embeddings(path).vectors;
    };
    const Tensor other({1, 1}, {9});
    EXPECT_EQ(read_back({{"x", kMatrix}, {"bias", Tensor({2})}}), kMatrix);
    EXPECT_EQ(read_back({{"x", other}, {"inputs", kMatrix}}), kMatrix);
    EXPECT_EQ(read_back({{"embeddings", kMatrix}, {"inputs", other}}), kMatrix);
    EXPECT_ERROR(read_back({{"x", other}, {"y", kMatrix}}), ErrorCode::format, "2 of its 2 tensors have rank 2");
    EXPECT_ERROR(read_back({}), ErrorCode::format, "0 of its 0 tensors");
    EXPECT_ERROR(read_back({{"inputs", Tensor({3})}}), ErrorCode::format, "shape [3]; expected [tokens, dim]");
    EXPECT_ERROR(read_back({{"x", Tensor({0, 3})}}), ErrorCode::format, "shape [0, 3]");
    EXPECT_ERROR(read_back({{"x", Tensor({3, 0})}}), ErrorCode::format, "shape [3, 0]");
    EXPECT_ERROR(read_back({{"x", Tensor({2, 2}, {1, 2, 3, NAN})}}), ErrorCode::format,
                 "row 1, column 1 (from 0) is nan");
    EXPECT_ERROR(read_back({{"x", Tensor({2, 2}, {1, INFINITY, 3, 4})}}), ErrorCode::format,
                 "row 0, column 1 (from 0) is inf");
}

TEST(Embeddings, TheExtensionDecides) {
    const TemporaryDirectory directory;
    EXPECT_ERROR(read_embeddings("e.txt"), ErrorCode::unsupported,
                 R"(".txt"; expected .csv, .json, .npy or .safetensors)");
    EXPECT_ERROR(read_embeddings("e"), ErrorCode::unsupported, "expected .csv, .json, .npy or .safetensors");
    EXPECT_ERROR(read_embeddings(directory / "missing.csv"), ErrorCode::io, "No such file or directory");
    std::filesystem::create_directory(directory / "d.csv");
    EXPECT_ERROR(read_embeddings(directory / "d.csv"), ErrorCode::io, "it is a directory");
}

TEST(Embeddings, TextHasASizeLimit) {
    const TemporaryDirectory directory;
    const auto path = directory.write("sparse.csv", "1");
    std::filesystem::resize_file(path, kMaxEmbeddingTextBytes + 1);  // a hole: takes no room on the disk
    EXPECT_ERROR(read_embeddings(path), ErrorCode::format, "expected at most 2147483648");
}

struct Attack {
    const char* extension;
    std::string content;
    const char* message;
};

void expect_refused(const std::vector<Attack>& attacks) {
    for (const Attack& attack : attacks) {
        SCOPED_TRACE(concat(attack.extension, ": ", attack.content.substr(0, 80), " -> ", attack.message));
        EXPECT_ERROR(read(attack.extension, attack.content), ErrorCode::format, attack.message);
        EXPECT_ERROR(read(attack.extension, attack.content), ErrorCode::format, concat("file", attack.extension));
    }
}

TEST(EmbeddingsCsv, AttacksAreRefusedWithTheirPlace) {
    expect_refused({
        {".csv", "", "no rows"},
        {".csv", "\n\r\n\n", "no rows"},
        {".csv", "\xEF\xBB\xBF", "no rows"},
        {".csv", "1,2\n3\n", "line 2, column 1: the row ends after 1 numbers; expected 2"},
        {".csv", "1,2\n3,4,5\n", "line 2, column 3: the row ends after 3 numbers; expected 2"},
        {".csv", "1,2\n3,4,\n", "line 2, column 3: \"\" is not a number"},
        {".csv", "1,2\n,4\n", "line 2, column 1: \"\" is not a number"},
        {".csv", "1,2\n\n3,4\n", "line 2, column 1: \"\" is not a number"},
        {".csv", "a,1\n\nb,2\n", "line 2, column 1: empty label"},
        {".csv", "1,x\n", "line 1, column 2: \"x\" is not a number; expected numbers and no header row"},
        {".csv", "token,d0,d1\na,1,2\n", "line 1, column 2: \"d0\" is not a number"},
        {".csv", ",0,1\n0,1,2\n", "line 1, column 1: empty label"},
        {".csv", "1,2\nb,3\n", "line 2, column 1: \"b\" is not a number"},
        {".csv", "a\nb\n", "line 1, column 1: the row ends after 0 numbers; expected at least 1"},
        {".csv", "a;1;2\n", "separated by commas"},
        {".csv", "a\t1\t2\n", "separated by commas"},
        {".csv", "a,1\nb\n", "line 2, column 1: the row ends after 0 numbers"},
        {".csv", "1,nan\n", "line 1, column 2: \"nan\" is not finite"},
        {".csv", "nan,1\n", "line 1, column 1: \"nan\" is not finite"},
        {".csv", "1,-inf\n", "\"-inf\" is not finite"},
        {".csv", "1,Infinity\n", "is not finite"},
        {".csv", "1,NaN(7)\n", "is not finite"},
        {".csv", "1,1e39\n", "beyond the largest float"},
        {".csv", "1,-1e400\n", "beyond the largest float"},
        {".csv", "1,1e99999999999999999999\n", "beyond the largest float"},
        {".csv", "1,0x10\n", "is not a number"},
        {".csv", "1,+1\n", "is not a number"},
        {".csv", "1,--1\n", "is not a number"},
        {".csv", "1,1e\n", "is not a number"},
        {".csv", "1,1 2\n", "is not a number"},
        {".csv", "1,1.5f\n", "is not a number"},
        {".csv", "1,1_000\n", "is not a number"},
        {".csv", "1,\xD9\xA1\n", "is not a number"},
        {".csv",
         "1,\xC2\xA0"
         "2\n",
         "is not a number"},
        {".csv", "1,.\n", "is not a number"},
        {".csv", std::string("1,2\0\n", 5), "\"2\\u{0}\" is not a number"},
        {".csv", "\"a,1\n", "line 1, column 1: a quoted field is never closed"},
        {".csv", "a,1\n\"b\"\"\n\n", "line 2, column 1: a quoted field is never closed"},
        {".csv", "\"a\"b,1\n", "line 1, column 1: \"b\" inside or after a field"},
        {".csv", "a\"b,1\n", "\"\\\"\" inside or after a field"},
        {".csv", "1\r2\n", "\"\\u{d}\" inside or after a field"},
        {".csv", "\xFF,1\n", "the label \"\\xff\" is not UTF-8"},
        {".csv", "\xC0\xAF,1\n", "is not UTF-8"},
        {".csv", std::string("a\0b,1\n", 6), "without NUL"},
        {".csv", concat(std::string(kMaxLabelBytes + 1, 'x'), ",1\n"), "1025 bytes long; expected at most 1024"},
        {".csv", "\"\",1\n", "empty label"},
        {".csv", "\"a\nb\",1\nc,x\n", "line 3, column 2: \"x\" is not a number"},
        {".csv",
         "\xFF\xFE"
         "1\0,\0",
         "not UTF-8"},
    });
}

TEST(EmbeddingsJson, AttacksAreRefusedWithTheirPlace) {
    expect_refused({
        {".json", "", "no valid JSON at line 1, column 1"},
        {".json", "[]", "no rows"},
        {".json", "[[]]", "row 0 (from 0) has 0 numbers; expected at least 1"},
        {".json", "[[1,2],[3]]", "row 1 (from 0) has 1 numbers; expected 2"},
        {".json", "[[1],[2,3]]", "row 1 (from 0) has 2 numbers; expected 1"},
        {".json", "[1,2]", "row 0 (from 0) is the number \"1\"; expected an array of numbers"},
        {".json", "[[[1]]]", "an array at row 0, column 0"},
        {".json", "[[1,null]]", "null at row 0, column 1"},
        {".json", "[[1],[true]]", "true at row 1, column 0"},
        {".json", "[[\"1\"]]", "the string \"1\" at row 0"},
        {".json", "[{}]", "row 0 (from 0) is an object"},
        {".json", "[null]", "row 0 (from 0) is null"},
        {".json", "1", "the content is the number"},
        {".json", "null", "the content is null"},
        {".json", "\"x\"", "the content is the string"},
        {".json", "[[NaN]]", "no valid JSON at line 1, column 3"},
        {".json", "[[Infinity]]", "no valid JSON"},
        {".json", "[[1e39]]", "\"1e39\" at row 0, column 0 (from 0) is beyond the largest float"},
        {".json", "[[1e999]]", "no valid JSON"},
        {".json", "[[01]]", "no valid JSON"},
        {".json", "[[.5]]", "no valid JSON"},
        {".json", "[[1.]]", "no valid JSON"},
        {".json", "[[+1]]", "no valid JSON"},
        {".json", "[[1,]]", "no valid JSON"},
        {".json", "[[1]],", "no valid JSON"},
        {".json", "[[1]][[2]]", "no valid JSON"},
        {".json", "[[1]", "no valid JSON"},
        {".json", "[[1] // x\n]", "no valid JSON"},
        {".json", std::string("[[1]]\0x", 7), "NUL byte in JSON"},
        {".json", "[[1],\n[\xFF]]", "not UTF-8 at line 2, column 2"},
        {".json", concat("[[", std::string(100'000, '['), "1"), "an array at row 0"},
        {".json", "{}", "no \"tokens\""},
        {".json", R"({"tokens":["a"]})", "no \"embeddings\""},
        {".json", R"({"embeddings":[[1]]})", "no \"tokens\""},
        {".json", R"({"tokens":["a","b"],"embeddings":[[1]]})", "2 tokens for 1 rows"},
        {".json", R"({"tokens":[],"embeddings":[]})", "no rows"},
        {".json", R"({"tokens":["a"],"tokens":["a"],"embeddings":[[1]]})", "the key \"tokens\" appears twice"},
        {".json", R"({"embeddings":[[1]],"tokens":["a"],"\u0065mbeddings":[[1]]})",
         "the key \"embeddings\" appears twice"},
        {".json", R"({"tokens":["a"],"embeddings":[[1]],"x":1})", "unknown key \"x\""},
        {".json", R"({"tokens":"a","embeddings":[[1]]})", "\"tokens\" is the string \"a\"; expected an array"},
        {".json", R"({"tokens":[1],"embeddings":[[1]]})", "token 0 (from 0) is the number"},
        {".json", R"({"tokens":["a",null],"embeddings":[[1],[2]]})", "token 1 (from 0) is null"},
        {".json", R"({"tokens":[["a"]],"embeddings":[[1]]})", "token 0 (from 0) is an array"},
        {".json", R"({"tokens":[""],"embeddings":[[1]]})", "token 0 (from 0): empty label"},
        {".json", R"({"tokens":["\u0000"],"embeddings":[[1]]})", "without NUL"},
        {".json", R"({"tokens":["\ud800"],"embeddings":[[1]]})", "no valid JSON"},
        {".json", concat(R"({"tokens":[")", std::string(1025, 'x'), R"("],"embeddings":[[1]]})"), "1025 bytes long"},
        {".json", R"({"tokens":["a"],"embeddings":1})", "expected an array"},
        {".json", R"({"tokens":["a"],"embeddings":{}})", "is an object"},
    });
}

TEST(EmbeddingsNpy, AttacksAreRefusedWithTheirPlace) {
    const std::string data = bytes_of<float>({1, 2, 3, 4, 5, 6});
    const std::string good = dictionary("<f4", "(2, 3)");
    const auto shape = [&](const char* tuple) { return npy(dictionary("<f4", tuple), data); };
    const auto descr = [&](const char* type) { return npy(dictionary(type, "(2, 3)"), data); };
    expect_refused({
        {".npy", "", "too short for a .npy header"},
        {".npy", "\x93NUMPY\x01", "too short"},
        {".npy", std::string("\x93NUMPY\x01\0", 8), "too short"},
        {".npy", std::string("\x93NUMPY\x01\0\xFF\0{", 11), "too short"},
        {".npy", std::string("\x93NUMPY\x02\0\xFF\xFF\xFF\xFF{}", 14), "header of 4294967295 bytes"},
        {".npy", npy(good + std::string(10'000, ' '), data), "expected at most 10000"},
        {".npy", std::string("PK\x03\x04xxxxxxxxxxxx"), "expected a .npy file"},
        {".npy", npy(good, data, '\0'), "expected a .npy file of version"},
        {".npy", npy(good, data, '\4'), "expected a .npy file of version"},
        {".npy", npy("", data), "expected \"{\""},
        {".npy", npy("{}", data), "expected the keys"},
        {".npy", npy("{'descr': '<f4', 'shape': (2, 3)}", data), "expected the keys"},
        {".npy", npy(good + "x", data), "something after the dictionary"},
        {".npy", npy(good + std::string(1, '\0'), data), "something after the dictionary"},
        {".npy", npy("{'descr': '<f4', 'descr': '<f8', 'fortran_order': False, 'shape': (2, 3)}", data),
         "repeated key \"descr\""},
        {".npy", npy("{'x': '<f4'}", data), "repeated key \"x\""},
        {".npy", npy("{'descr' '<f4'}", data), "expected \":\""},
        {".npy", npy("{'descr': '<f4' 'shape': (2, 3)}", data), "expected \"}\""},
        {".npy", npy("{'descr': '<f4\"}", data), "expected a string that ends with '"},
        {".npy", npy("{'descr': '<f4", data), "expected a string that ends with"},
        {".npy", npy("{'de\\x73cr': '<f4'}", data), "expected a string"},
        {".npy", npy("{b'descr': '<f4'}", data), "expected"},
        {".npy", npy("{'descr': [('a', '<f4')]}", data), "expected"},
        {".npy", npy("{'descr': '<f4', 'fortran_order': 0, 'shape': (2, 3)}", data), "expected \"False\""},
        {".npy", npy("{'fortran_order': __import__('os').system('x')}", data), "expected \"False\""},
        {".npy", descr(">f4"), "element type \">f4\""},
        {".npy", descr("|O"), "element type \"|O\""},
        {".npy", descr("<c8"), "element type \"<c8\""},
        {".npy", descr("<U4"), "element type"},
        {".npy", descr("f4"), "element type"},
        {".npy", descr("<f16"), "element type"},
        {".npy", descr("<M8[ns]"), "element type"},
        {".npy", shape("()"), "shape []; expected [tokens, dim]"},
        {".npy", shape("(6,)"), "shape [6]; expected [tokens, dim]"},
        {".npy", shape("(6)"), "expected a comma"},
        {".npy", shape("(1, 2, 3)"), "shape [1, 2, 3]; expected"},
        {".npy", shape("(0, 3)"), "neither of them 0"},
        {".npy", shape("(3, 0)"), "neither of them 0"},
        {".npy", shape("(-2, -3)"), "expected a size from 0"},
        {".npy", shape("(2L, 3L)"), "expected a comma"},
        {".npy", shape("(2.0, 3)"), "expected a comma"},
        {".npy", shape("(True, 3)"), "expected a size"},
        {".npy", shape("[2, 3]"), "expected \"(\""},
        {".npy", shape("(2, 3"), "expected"},
        {".npy", shape("((2, 3), 1)"), "expected a size"},
        {".npy", shape("(9223372036854775808, 1)"), "expected a size from 0 to 2^63 - 1"},
        {".npy", shape("(4294967296, 4294967296)"), "do not make shape"},
        {".npy", shape("(4611686018427387904, 4)"), "do not make shape"},
        {".npy", shape("(9223372036854775807, 1)"), "do not make shape"},
        {".npy", shape("(1000000000, 1000000000)"), "do not make shape"},
        {".npy", shape("(2, 2)"), "24 bytes of data do not make shape [2, 2] of type F32"},
        {".npy", shape("(2, 4)"), "do not make shape"},
        {".npy", npy(good, data + "x"), "25 bytes of data do not make"},
        {".npy", npy(good, ""), "0 bytes of data do not make"},
        {".npy", npy(good, bytes_of<float>({1, 2, 3, 4, NAN, 6})), "row 1, column 1 (from 0) is nan"},
        {".npy", npy(dictionary("<f4", "(2, 3)", "True"), bytes_of<float>({1, 2, 3, -INFINITY, 5, 6})),
         "row 1, column 1 (from 0) is -inf"},
        {".npy", npy(dictionary("<f8", "(1, 2)"), bytes_of<double>({1, 1e300})), "element 1 of its data"},
        {".npy", npy(dictionary("<i4", "(1, 2)"), bytes_of<std::int32_t>({1, 16777217})), "element 1 of its data"},
        {".npy", npy(dictionary("|b1", "(1, 2)"), "\1\2"), "element 1 of its data"},
    });
}

TEST(Numbers, RoundOnceAndUnderflowToZero) {
    EXPECT_EQ(parse_float("0.1").value, 0.1F);
    // Between two floats; going through double first would round the other way.
    EXPECT_EQ(parse_float("1.00000005960464477550").value, 0x1.000002p0F);
    EXPECT_EQ(parse_float("1e-45").value, 0x1p-149F);
    for (const char* tiny : {"1e-46", "-1e-400", "0.00000000000000000000000000000000000000000000000001",
                             "1e-99999999999999999999", "12345e-60", "000.0001e-60"}) {
        EXPECT_EQ(parse_float(tiny).problem, nullptr) << tiny;
        EXPECT_EQ(parse_float(tiny).value, 0.0F) << tiny;
        EXPECT_EQ(std::signbit(parse_float(tiny).value), tiny[0] == '-') << tiny;
    }
    for (const char* huge :
         {"3.5e38", "-1e400", "1000000000000000000000000000000000000000000", "0.1e50", "1e+99999999999999999999"}) {
        EXPECT_NE(parse_float(huge).problem, nullptr) << huge;
    }
    EXPECT_EQ(parse_float("3.4028234e38").value, 3.4028234e38F);
}

TEST(Numbers, MagnitudeIsThatOfDigitsAndExponentTogether) {
    const std::string zeros(60, '0');
    EXPECT_NE(parse_float(concat("1", zeros, "e-10")).problem, nullptr);
    EXPECT_EQ(parse_float(concat("1", zeros, "e-61")).value, 0.1F);
    EXPECT_EQ(parse_float(concat("0.", zeros, "1e5")).problem, nullptr);
    EXPECT_EQ(parse_float(concat("0.", zeros, "1e5")).value, 0.0F);
    EXPECT_NE(parse_float(concat("0.", zeros, "1e105")).problem, nullptr);
}

TEST(Numbers, DoNotDependOnTheLocale) {
    const std::string previous = std::setlocale(LC_ALL, nullptr);
    bool changed = false;
    for (const char* locale : {"de_DE.UTF-8", "de_DE.utf8", "fr_FR.UTF-8"}) {
        changed = changed || std::setlocale(LC_ALL, locale) != nullptr;
    }
    if (!changed) {
        GTEST_SKIP() << "no locale with a decimal comma is installed";
    }
    const Tensor json = read(".json", "[[1.5,2e-1]]").vectors;
    const Tensor csv = read(".csv", "1.5,2e-1").vectors;
    (void)std::setlocale(LC_ALL, previous.c_str());
    EXPECT_EQ(json, Tensor({1, 2}, {1.5F, 0.2F}));
    EXPECT_EQ(csv, Tensor({1, 2}, {1.5F, 0.2F}));
}

/// Changes one to four bytes: another byte, a piece of the formats' alphabets, a deletion or a repetition.
std::string mutated(std::string text, std::mt19937_64& generator) {
    static const std::vector<std::string> kPieces{"\"",
                                                  ",",
                                                  "\n",
                                                  "\r",
                                                  "[",
                                                  "]",
                                                  "{",
                                                  "}",
                                                  "nan",
                                                  "1e999",
                                                  "-",
                                                  "(",
                                                  ")",
                                                  "'",
                                                  "\xFF",
                                                  "\\u0000",
                                                  std::string(1, '\0'),
                                                  "9223372036854775807",
                                                  ":",
                                                  ".",
                                                  "e",
                                                  "True",
                                                  "0"};
    for (std::uint64_t faults = 1 + generator() % 4; faults > 0; --faults) {
        const std::size_t place = generator() % (text.size() + 1);
        switch (generator() % 4) {
            case 0:
                text.insert(place, kPieces[generator() % kPieces.size()]);
                break;
            case 1:
                text.erase(place, generator() % 4);
                break;
            case 2:
                text.insert(place, text.substr(place, generator() % 8));
                break;
            default:
                if (place < text.size()) {
                    text[place] = static_cast<char>(generator());
                }
        }
    }
    return text;
}

TEST(EmbeddingsMutation, IsReadOrRefusedAndNothingElse) {
    constexpr std::uint64_t kSeed = 20'240'608;
    constexpr int kInputs = 20'000;
    std::mt19937_64 generator(kSeed);
    const std::vector<std::string> csv{"a,1,2\nb,3.5,-4e-3\n", "1,2\r\n3,4\r\n", "\"x,\"\"y\"\"\",1\n\"z\",2\n"};
    const std::vector<std::string> json{"[[1,2],[3,4.5]]",
                                        R"({"tokens":["a","\u00e9"],"embeddings":[[1,2],[-3,4e2]]})"};
    const std::vector<std::string> npys{npy(dictionary("<f4", "(2, 3)"), bytes_of<float>({1, 2, 3, 4, 5, 6})),
                                        npy(dictionary("<i2", "(1, 2)", "True"), "\1\0\2\0", '\3')};
    int accepted = 0;
    for (int input = 0; input < kInputs; ++input) {
        const auto run = [&](const std::vector<std::string>& seeds, const auto& parse) {
            const std::string text = mutated(seeds[generator() % seeds.size()], generator);
            try {
                const Embeddings embeddings = parse(text);
                ++accepted;
                ASSERT_TRUE(embeddings.tokens.empty() ||
                            static_cast<std::int64_t>(embeddings.tokens.size()) == embeddings.vectors.size(0));
                check_finite(embeddings.vectors, "accepted");
            } catch (const Error& error) {
                ASSERT_EQ(error.code(), ErrorCode::format) << error.what() << "; seed " << kSeed << ", input " << input;
            } catch (const std::exception& error) {
                FAIL() << error.what() << "; seed " << kSeed << ", input " << input;
            }
        };
        run(csv, [](const std::string& text) { return parse_csv(text, "csv"); });
        run(json, [](const std::string& text) { return parse_json_embeddings(text, "json"); });
        run(npys, [](const std::string& text) { return read_npy(MemoryBytes(std::as_bytes(std::span(text)), "npy")); });
    }
    std::printf("seed %llu: %d of %d mutated files were accepted\n", static_cast<unsigned long long>(kSeed), accepted,
                3 * kInputs);
    EXPECT_GT(accepted, kInputs / 10);
    EXPECT_LT(accepted, 2 * kInputs);
}

}  // namespace
}  // namespace qkv::io
