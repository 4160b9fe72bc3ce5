// What the header parser accepts and, by hand-made attacks, what it refuses and how it says so.
#include <gtest/gtest.h>

#include <span>
#include <string>
#include <vector>

#include "core/check.hpp"
#include "qkv/io.hpp"
#include "support/expect_error.hpp"
#include "support/safetensors_mutator.hpp"

namespace qkv::io {
namespace {

using test::frame;

SafetensorsHeader parse(const std::string& file) {
    return parse_safetensors_header(std::as_bytes(std::span(file)), "m.safetensors");
}

/// A header with one tensor "a" whose body is `fields`, before `data_bytes` of data.
std::string one(const std::string& fields, std::size_t data_bytes) {
    return frame(concat("{\"a\":{", fields, "}}"), std::string(data_bytes, '\0'));
}

TEST(SafetensorsHeader, ReadsWhatTheFormatAllows) {
    const std::string json =
        R"({"__metadata__":{"format":"pt","\u00e9":""},"b":{"shape":[2,3],"dtype":"F32","data_offsets":[2,26]},)"
        R"("a":{"dtype":"F16","shape":[],"data_offsets":[0,2]},"z":{"dtype":"U8","shape":[4,0],"data_offsets":[26,26]}}   )";
    const SafetensorsHeader header = parse(frame(json, std::string(26, '\0')));
    ASSERT_EQ(header.tensors.size(), 3U);
    EXPECT_EQ(header.tensors[0].name, "a");
    EXPECT_EQ(header.tensors[0].dtype, Dtype::F16);
    EXPECT_EQ(header.tensors[0].shape, Shape{});
    EXPECT_EQ(header.tensors[1].name, "b");
    EXPECT_EQ(header.tensors[1].shape, (Shape{2, 3}));
    EXPECT_EQ(header.tensors[1].begin, 2U);
    EXPECT_EQ(header.tensors[1].end, 26U);
    EXPECT_EQ(header.tensors[2].shape, (Shape{4, 0}));
    EXPECT_EQ(header.metadata, (Metadata{{"format", "pt"}, {"é", ""}}));
    EXPECT_EQ(header.data_begin, 8 + json.size());
}

TEST(SafetensorsHeader, AcceptsTheEdges) {
    EXPECT_TRUE(parse(frame("{}", "")).tensors.empty());
    EXPECT_TRUE(parse(frame(R"({"__metadata__":{}})", "")).metadata.empty());
    EXPECT_EQ(parse(one(R"("dtype":"F4","shape":[2],"data_offsets":[0,1])", 1)).tensors[0].dtype, Dtype::F4);
    EXPECT_EQ(parse(one(R"("dtype":"F6_E2M3","shape":[4],"data_offsets":[0,3])", 3)).tensors.size(), 1U);
    EXPECT_EQ(parse(one(R"("dtype":"F8_E8M0","shape":[3],"data_offsets":[0,3])", 3)).tensors.size(), 1U);
    EXPECT_EQ(parse(one(R"("dtype":"C64","shape":[1],"data_offsets":[0,8])", 8)).tensors.size(), 1U);
    // A size of 0 makes a tensor empty however long its other sizes are.
    EXPECT_EQ(parse(one(R"("dtype":"F32","shape":[0,9223372036854775807],"data_offsets":[0,0])", 0)).tensors.size(),
              1U);
    EXPECT_EQ(parse(frame(R"({"":{"dtype":"U8","shape":[],"data_offsets":[0,1]}})", "x")).tensors[0].name, "");
    const std::string longest(kMaxTensorNameBytes, 'n');
    EXPECT_EQ(parse(frame(concat("{\"", longest, R"(":{"dtype":"U8","shape":[],"data_offsets":[0,1]}})"), "x"))
                  .tensors[0]
                  .name,
              longest);
}

TEST(SafetensorsHeader, KnowsTheSizeOfEveryType) {
    struct Type {
        const char* name;
        std::size_t bytes;
    };
    for (const Type& type : {Type{"BOOL", 1},
                             {"U8", 1},
                             {"I8", 1},
                             {"I16", 2},
                             {"U16", 2},
                             {"F16", 2},
                             {"BF16", 2},
                             {"I32", 4},
                             {"U32", 4},
                             {"F32", 4},
                             {"F64", 8},
                             {"I64", 8},
                             {"U64", 8},
                             {"F8_E5M2", 1},
                             {"F8_E4M3", 1},
                             {"F8_E5M2FNUZ", 1},
                             {"F8_E4M3FNUZ", 1}}) {
        const std::string fields = std::string(R"("dtype":")") + type.name + R"(","shape":[3],"data_offsets":[0,)" +
                                   std::to_string(3 * type.bytes) + "]";
        const SafetensorsHeader header = parse(one(fields, 3 * type.bytes));
        EXPECT_EQ(to_string(header.tensors[0].dtype), type.name);
    }
}

struct Attack {
    const char* name;
    std::string file;
    const char* message;
};

void PrintTo(const Attack& attack, std::ostream* stream) { *stream << attack.name; }

class SafetensorsAttack : public testing::TestWithParam<Attack> {};

TEST_P(SafetensorsAttack, IsRefusedWithItsReason) {
    EXPECT_ERROR(parse(GetParam().file), ErrorCode::format, GetParam().message);
    EXPECT_ERROR(parse(GetParam().file), ErrorCode::format, "m.safetensors");
}

std::string attack_name(const testing::TestParamInfo<Attack>& attack) { return attack.param.name; }

std::string repeated(const std::string& text, int times) {
    std::string all;
    for (int count = 0; count < times; ++count) {
        all += text;
    }
    return all;
}

const std::string kGood = R"("dtype":"F32","shape":[2],"data_offsets":[0,8])";
const std::string kTensor = "{" + kGood + "}";

std::string shape(const std::string& sizes, const std::string& offsets = "0,8") {
    return one(concat(R"("dtype":"F32","shape":)", sizes, R"(,"data_offsets":[)", offsets, "]"), 8);
}

std::string two(const std::string& first, const std::string& second, std::size_t data_bytes) {
    return frame(concat(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[)", first,
                        R"(]},"b":{"dtype":"U8","shape":[2],"data_offsets":[)", second, "]}}"),
                 std::string(data_bytes, '\0'));
}

const std::vector<Attack> kFraming{
    Attack{"empty", "", "0 bytes long"},
    Attack{"seven_bytes", std::string(7, '\0'), "7 bytes long"},
    Attack{"length_zero", std::string(8, '\0'), "begins with \"\""},
    Attack{"length_one_too_many", frame("{}", "", 1), "declare a header of 3 bytes; expected at most 2"},
    Attack{"length_all_ones", std::string(8, '\xFF') + "{}", "18446744073709551615"},
    Attack{"length_sign_bit", std::string(7, '\0') + "\x80{}", "9223372036854775808"},
    Attack{"length_wraps_with_8", concat("\xF8", std::string(7, '\xFF'), "{}"), "no safetensors file, or cut off"},
    Attack{"length_100_000_001", std::string("\x01\xE1\xF5\x05\0\0\0\0", 8) + "{}", "100000001"},
    Attack{"length_too_short", frame("{}", "", -1), "no valid JSON"},
    Attack{"leading_space", frame(" {}", ""), "begins with \" \""},
    Attack{"leading_newline", frame("\n{}", ""), "begins with"},
    Attack{"byte_order_mark", frame("\xEF\xBB\xBF{}", ""), "begins with"},
    Attack{"array", frame("[]", ""), "begins with \"[\""},
    Attack{"trailing_garbage", frame("{}x", ""), "no valid JSON at line 1, column 3"},
    Attack{"trailing_object", frame("{}{}", ""), "no valid JSON"},
    Attack{"trailing_nul", frame(std::string("{}\0", 3), ""), "NUL byte"},
    Attack{"hidden_after_nul", frame(std::string("{}\0{\"a\":1}", 10), ""), "NUL byte"},
    Attack{"unclosed", frame("{", ""), "no valid JSON"},
    Attack{"comment", frame("{/**/}", ""), "no valid JSON"},
    Attack{"trailing_comma", frame(concat("{\"a\":", kTensor, ",}"), std::string(8, 'x')), "no valid JSON"},
    Attack{"single_quotes", frame("{'a':1}", ""), "no valid JSON"},
    Attack{"data_without_tensor", frame("{}", "x"), "the file has 1 bytes of data"},
    Attack{"data_missing", one(kGood, 7), "ends at 8, but the file has 7"},
    Attack{"data_left_over", one(kGood, 9), "ends at 8, but the file has 9"}};

const std::vector<Attack> kText{
    Attack{"overlong_slash", frame(concat("{\"\xC0\xAF\":", kTensor, "}"), std::string(8, 'x')), "not UTF-8"},
    Attack{"raw_surrogate", frame(concat("{\"\xED\xA0\x80\":", kTensor, "}"), std::string(8, 'x')), "not UTF-8"},
    Attack{"past_10ffff", frame("{\"\xF4\x90\x80\x80\":1}", ""), "not UTF-8"},
    Attack{"cut_sequence", frame("{\"\xE2\x82\":1}", ""), "not UTF-8 at line 1, column 3"},
    Attack{"latin1", frame("{\"\xE9\":1}", ""), "not UTF-8"},
    Attack{"escaped_lone_surrogate", frame(R"({"\ud800":1})", ""), "no valid JSON"},
    Attack{"escaped_low_surrogate", frame(R"({"\udc00":1})", ""), "no valid JSON"},
    Attack{"control_character", frame("{\"\x01\":1}", ""), "no valid JSON"},
    Attack{"bad_escape", frame(R"({"\x41":1})", ""), "no valid JSON"},
    Attack{"nul_in_name", frame(concat(R"({"a\u0000b":)", kTensor, "}"), std::string(8, 'x')), "contains a NUL"},
    Attack{"long_name", frame(concat("{\"", std::string(65'536, 'n'), "\":", kTensor, "}"), ""), "65536 bytes long"},
    Attack{"same_name", frame(concat("{\"a\":", kTensor, ",\"a\":", kTensor, "}"), std::string(8, 'x')),
           "\"a\" appears twice"},
    Attack{"same_name_escaped", frame(concat("{\"a\":", kTensor, ",\"\\u0061\":", kTensor, "}"), std::string(8, 'x')),
           "\"a\" appears twice"},
    Attack{"metadata_twice", frame(R"({"__metadata__":{},"__metadata__":{}})", ""), "appears twice"},
    Attack{"metadata_twice_escaped", frame(R"({"__metadata__":{},"\u005f_metadata__":{}})", ""), "appears twice"},
    Attack{"metadata_key_twice", frame(R"({"__metadata__":{"a":"1","\u0061":"2"}})", ""), "the key \"a\" twice"},
    Attack{"metadata_number", frame(R"({"__metadata__":{"a":1}})", ""), "expected a string"},
    Attack{"metadata_null_value", frame(R"({"__metadata__":{"a":null}})", ""), "has null under \"a\""},
    Attack{"metadata_object_value", frame(R"({"__metadata__":{"a":{}}})", ""), "expected a string"},
    Attack{"metadata_array_value", frame(R"({"__metadata__":{"a":[]}})", ""), "expected a string"},
    Attack{"metadata_null", frame(R"({"__metadata__":null})", ""), "expected an object"},
    Attack{"metadata_array", frame(R"({"__metadata__":[]})", ""), "expected an object"},
    Attack{"metadata_string", frame(R"({"__metadata__":"x"})", ""), "expected an object"}};

const std::vector<Attack> kFields{
    Attack{"tensor_null", frame(R"({"a":null})", ""), "tensor \"a\" is null; expected an object"},
    Attack{"tensor_array", frame(R"({"a":["F32",[2],[0,8]]})", std::string(8, 'x')), "is an array"},
    Attack{"tensor_number", frame(R"({"a":1})", ""), "is the number 1"},
    Attack{"tensor_empty", one("", 0), "has no \"dtype\""},
    Attack{"no_shape", one(R"("dtype":"F32","data_offsets":[0,8])", 8), "has no \"shape\""},
    Attack{"no_offsets", one(R"("dtype":"F32","shape":[2])", 8), "has no \"data_offsets\""},
    Attack{"dtype_twice", one(concat(kGood, R"(,"dtype":"F32")"), 8), "the key \"dtype\" twice"},
    Attack{"shape_twice_escaped", one(concat(kGood, R"(,"sh\u0061pe":[2])"), 8), "the key \"shape\" twice"},
    Attack{"unknown_key", one(concat(kGood, R"(,"x":1)"), 8), "unknown key \"x\""},
    Attack{"deep_unknown_key", one(concat(kGood, ",\"x\":", repeated("[", 100'000)), 8), "unknown key \"x\""},
    Attack{"deep_shape", one(concat("\"shape\":", repeated("[", 100'000)), 8), "nested deeper than 3"},
    Attack{"deep_objects", frame(repeated("{\"a\":", 100'000), ""), "unknown key"},
    Attack{"dtype_unknown", one(R"("dtype":"F128","shape":[2],"data_offsets":[0,8])", 8), "unknown dtype \"F128\""},
    Attack{"dtype_lower", one(R"("dtype":"f32","shape":[2],"data_offsets":[0,8])", 8), "unknown dtype \"f32\""},
    Attack{"dtype_number", one(R"("dtype":3,"shape":[2],"data_offsets":[0,8])", 8), "expected a string"},
    Attack{"dtype_array", one(R"("dtype":["F32"],"shape":[2],"data_offsets":[0,8])", 8), "expected a string"},
    Attack{"shape_number", shape("2"), "expected an array"},
    Attack{"shape_string", shape("\"2\""), "expected an array"},
    Attack{"shape_object", shape("{}"), "expected an array"},
    Attack{"shape_of_strings", shape("[\"2\"]"), "expected an integer"},
    Attack{"shape_of_null", shape("[null]"), "expected an integer"},
    Attack{"shape_negative", shape("[-2]"), "\"-2\" in its shape"},
    Attack{"shape_minus_zero", shape("[-0]", "0,0"), "\"-0\""},
    Attack{"shape_float", shape("[2.0]"), "\"2.0\""},
    Attack{"shape_exponent", shape("[2e0]"), "\"2e0\""},
    Attack{"shape_leading_zero", shape("[02]"), "no valid JSON"},
    Attack{"shape_plus", shape("[+2]"), "no valid JSON"},
    Attack{"shape_hex", shape("[0x2]"), "no valid JSON"},
    Attack{"shape_2_to_63", shape("[9223372036854775808]"), "2^63 - 1"},
    Attack{"shape_2_to_64", shape("[18446744073709551616]"), "past 2^64"},
    Attack{"shape_huge_float", shape("[1e999]"), "no valid JSON"},
    Attack{"shape_product_wraps_to_2", shape("[9223372036854775807,4]"), "more elements than 64 bits"},
    Attack{"shape_product_wraps_to_0", shape("[4294967296,4294967296]", "0,0"), "more elements"},
    Attack{"shape_overflow_then_zero", shape("[4294967296,4294967296,0]", "0,0"), "more elements"},
    Attack{"shape_bytes_wrap", shape("[4611686018427387906]"), "more bits"},
    Attack{"shape_rank_65", shape("[" + repeated("1,", 64) + "1]"), "more than 64 dimensions"},
    Attack{"offsets_one", shape("[2]", "0"), "1 data_offsets"},
    Attack{"offsets_none", shape("[2]", ""), "0 data_offsets"},
    Attack{"offsets_three", shape("[2]", "0,8,8"), "more than 2"},
    Attack{"offsets_negative", shape("[2]", "-8,0"), "\"-8\""},
    Attack{"offsets_float", shape("[2]", "0,8.0"), "\"8.0\""},
    Attack{"offsets_swapped", shape("[2]", "8,0"), "begins at 8"},
    Attack{"offsets_end_before_begin", two("0,2", "2,1", 2), "before its begin"},
    Attack{"offsets_past_file", shape("[2]", "0,16"), "has 16 bytes of data; expected 8"},
    Attack{"offsets_2_to_64_minus_1", shape("[2]", "0,18446744073709551615"), "expected an integer from 0"},
    Attack{"offsets_not_shape", shape("[3]"), "has 8 bytes of data; expected 12"},
    Attack{"offsets_overlap", two("0,2", "1,3", 3), "begins at 1; expected 2"},
    Attack{"offsets_same_range", two("0,2", "0,2", 2), "begins at 0; expected 2"},
    Attack{"offsets_hole", two("0,2", "3,5", 5), "begins at 3; expected 2"},
    Attack{"offsets_hole_at_start", one(R"("dtype":"U8","shape":[2],"data_offsets":[1,3])", 3),
           "begins at 1; expected 0"},
    Attack{"empty_tensor_in_hole", one(R"("dtype":"U8","shape":[0],"data_offsets":[4,4])", 8), "begins at 4"},
    Attack{"half_a_byte", one(R"("dtype":"F4","shape":[1],"data_offsets":[0,0])", 0), "whole bytes"},
    Attack{"half_a_byte_rounded_up", one(R"("dtype":"F4","shape":[3],"data_offsets":[0,2])", 2), "whole bytes"}};

INSTANTIATE_TEST_SUITE_P(Framing, SafetensorsAttack, testing::ValuesIn(kFraming), attack_name);
INSTANTIATE_TEST_SUITE_P(Text, SafetensorsAttack, testing::ValuesIn(kText), attack_name);
INSTANTIATE_TEST_SUITE_P(Fields, SafetensorsAttack, testing::ValuesIn(kFields), attack_name);

TEST(SafetensorsHeader, NamesFromTheFileCannotSteerATerminal) {
    const std::string file = frame("{\"\\u001b[2J\\u202e\":null}", "");
    EXPECT_ERROR(parse(file), ErrorCode::format, R"("\u{1b}[2J\u{202e}")");
}

}  // namespace
}  // namespace qkv::io
