// The screens as a terminal shows them: never too wide, never too long, coloured only when asked.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <wchar.h>

#include <clocale>
#include <cmath>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "explain/screen_parts.hpp"
#include "explain/text_cells.hpp"
#include "qkv/explain.hpp"

namespace qkv::explain {
namespace {

using testing::HasSubstr;
using testing::Not;

std::vector<std::string> lines_of(const std::string& screen) {
    std::vector<std::string> lines;
    std::istringstream stream(screen);
    for (std::string line; std::getline(stream, line);) {
        lines.push_back(line);
    }
    return lines;
}

std::string without_colours(const std::string& text) {
    std::string kept;
    for (std::size_t i = 0; i < text.size(); ++i) {
        if (text.compare(i, 2, "\x1b[") == 0) {
            i = text.find('m', i);
        } else {
            kept += text[i];
        }
    }
    return kept;
}

/// Columns by the C library, which knows nothing of ours.
int columns(const std::string& line) {
    static const char* locale = std::setlocale(LC_CTYPE, "C.UTF-8");
    if (locale == nullptr) {
        throw std::runtime_error("no C.UTF-8 locale");
    }
    std::wstring wide(line.size() + 1, L'\0');
    const std::size_t length = std::mbstowcs(wide.data(), line.c_str(), wide.size());
    if (length == static_cast<std::size_t>(-1)) {
        return -1;
    }
    return ::wcswidth(wide.c_str(), length);
}

void expect_fits(const Report& report, const TextStyle& style, const std::string& what, bool check_lines = true) {
    SCOPED_TRACE(what + ", width " + std::to_string(style.width) + ", digits " + std::to_string(style.digits));
    const std::vector<std::string> screens = render_screens(report, style);
    ASSERT_EQ(screens.size(), report.stages.size());
    for (const std::string& screen : screens) {
        const std::vector<std::string> lines = lines_of(screen);
        if (check_lines) {
            EXPECT_LE(lines.size(), 25U) << screen;
        }
        EXPECT_EQ(screen.back(), '\n');
        for (const std::string& coloured : lines) {
            const std::string line = without_colours(coloured);
            const int width = columns(line);
            EXPECT_GE(width, 0) << "a control character, or no UTF-8: " << line;
            EXPECT_LE(width, style.width) << line << "\n" << screen;
        }
    }
}

std::vector<std::pair<std::string, Request>> requests() {
    const std::string zwj = "👩‍👩‍👧 👍🏽 🇩🇪";
    std::vector<std::pair<std::string, Request>> all{
        {"default", {}},
        {"sun", {.example = "sun"}},
        {"notebook", {.example = "notebook"}},
        {"translate", {.example = "translate"}},
        {"one token", {.text = "alone"}},
        {"two tokens", {.text = "to be"}},
        {"twelve tokens", {.text = "the quick brown fox jumps over the lazy dog , and rests"}},
        {"many tokens", {.tokens = 200, .dim = 8}},
        {"wide vectors", {.tokens = 5, .dim = 64, .heads = 8}},
        {"one head", {.heads = 1}},
        {"training", {.dropout = 0.5, .train = true}},
        {"idle dropout", {.dropout = 0.123456789}},
        {"everything dropped", {.dropout = 1.0, .train = true}},
        {"bias", {.qkv_bias = true, .seed = 18446744073709551615U}},
        {"naive", {.normalise = nn::Normalise::naive_softmax}},
        {"sum", {.normalise = nn::Normalise::sum}},
        {"last query", {.query = "6"}},
        {"long words", {.text = "Donaudampfschifffahrtsgesellschaftskapitän Rindfleischetikettierungsgesetz"}},
        {"wide characters", {.text = "注意 力 機 制 你好世界你好世界 ok"}},
        {"emoji", {.text = zwj}},
        {"combining", {.text = "e\u0301a\u0300\u0302 n\u0303 x"}},
        {"right to left", {.text = "שלום עולם مرحبا بالعالم"}},
        {"control characters", {.text = "a\x1b[31mred\x1b[0m b\x07\x08 \u202eevil\u202c \u0085 \x7f"}},
        {"other source", {.source = "un seul mot et quelques autres mots de plus dans la phrase source"}},
        {"long source", {.text = "hi there", .source = std::string(3000, 'a') + " " + std::string(500, 'b')}},
        {"everything at once",
         {.text = "some words of some other text",
          .dim = 16,
          .d_out = 32,
          .heads = 16,
          .qkv_bias = true,
          .dropout = 0.25,
          .train = true}},
    };
    return all;
}

/// The stages whose screens take no time: that of the stage without weights times its loops for its reader.
Report without_simple(Report report) {
    std::erase_if(report.stages, [](const StageReport& stage) { return stage.stage == Stage::simple; });
    return report;
}

TEST(Screens, FitEightyColumnsAndTwentyFiveLines) {
    for (const auto& [name, request] : requests()) {
        expect_fits(run(request), {}, name);
    }
}

TEST(Screens, FitWithOtherDigits) {
    for (const auto& [name, request] : requests()) {
        const Report report = run(request);
        expect_fits(report, {.digits = 9, .digits_fixed = true}, name);
        for (const int digits : {1, 2, 7}) {
            expect_fits(without_simple(report), {.digits = digits, .digits_fixed = true}, name);
        }
    }
}

TEST(Screens, FitEveryWidth) {
    for (const auto& [name, request] : requests()) {
        const Report report = run(request);
        expect_fits(report, {.width = 40}, name, false);
        expect_fits(report, {.width = 45, .digits = 9, .digits_fixed = true}, name, false);
        expect_fits(report, {.width = 1000}, name);
        const Report quick = without_simple(report);
        for (std::int64_t width = 41; width < 80; ++width) {
            expect_fits(quick, {.width = width}, name, false);
        }
        expect_fits(quick, {.width = 79, .colour = Colour::true_colour}, name, false);
        expect_fits(quick, {.width = 132}, name);
    }
}

TEST(Screens, FullFitsTheWidth) {
    for (const auto& [name, request] : requests()) {
        if (name == "many tokens") {
            continue;
        }
        const Report report = run(request);
        expect_fits(report, {.width = 40, .full = true}, name, false);
        expect_fits(without_simple(report), {.width = 80, .full = true}, name, false);
        expect_fits(without_simple(report), {.width = 120, .full = true}, name, false);
    }
}

TEST(Screens, ColoursOnlyWhenAsked) {
    const Report report = run({});
    const std::vector<std::string> plain = render_screens(report, {});
    const std::vector<std::string> few = render_screens(report, {.colour = Colour::palette_256});
    const std::vector<std::string> many = render_screens(report, {.colour = Colour::true_colour});
    for (std::size_t i = 0; i < plain.size(); ++i) {
        EXPECT_THAT(plain[i], Not(HasSubstr("\x1b")));
        EXPECT_THAT(few[i], HasSubstr("\x1b[48;5;"));
        EXPECT_THAT(few[i], Not(HasSubstr("\x1b[48;2;")));
        EXPECT_THAT(many[i], HasSubstr("\x1b[48;2;"));
        if (report.stages[i].stage != Stage::simple) {  // which has times on it
            EXPECT_EQ(without_colours(few[i]), plain[i]);
            EXPECT_EQ(without_colours(many[i]), plain[i]);
        }
    }
}

TEST(Screens, EveryColourIsEndedOnItsLine) {
    for (const auto& [name, request] : requests()) {
        for (const std::string& screen :
             render_screens(without_simple(run(request)), {.colour = Colour::true_colour})) {
            for (const std::string& line : lines_of(screen)) {
                const std::size_t last = line.rfind("\x1b[");
                EXPECT_TRUE(last == std::string::npos || line.substr(last, 4) == "\x1b[0m") << name << ": " << line;
            }
        }
    }
}

TEST(Screens, ElideAndSayHowMany) {
    const std::string screen = render_screens(run({.stages = {Stage::causal}, .tokens = 100}), {}).at(0);
    std::smatch found;
    ASSERT_TRUE(std::regex_search(screen, found, std::regex("… ([0-9]+) more queries")));
    const auto hidden_queries = std::stoi(found[1]);
    ASSERT_TRUE(std::regex_search(screen, found, std::regex("… ([0-9]+) more keys")));
    const auto hidden_keys = std::stoi(found[1]);
    ASSERT_TRUE(std::regex_search(screen, found, std::regex(" \\+([0-9]+) ")));
    const auto hidden_columns = std::stoi(found[1]);
    int rows = 0;
    int keys = 0;
    bool steps = false;
    for (const std::string& line : lines_of(screen)) {
        steps = steps || line.find("step by step") != std::string::npos;
        if (std::regex_search(line, std::regex("^ (▸|  ) x[0-9]+ "))) {
            (steps ? keys : rows) += line.find("step by step") == std::string::npos ? 1 : 0;
        } else if (std::regex_search(line, std::regex("^   x[0-9]+ "))) {
            (steps ? keys : rows) += 1;
        }
    }
    EXPECT_EQ(rows + hidden_queries, 100) << screen;
    EXPECT_EQ(keys + hidden_keys, 100) << screen;
    EXPECT_GT(hidden_columns, 80);
    EXPECT_LT(hidden_columns, 100);
}

TEST(Screens, FullShowsEveryNumber) {
    for (const Request& request : {Request{}, Request{.tokens = 30, .dim = 12}, Request{.dropout = 0.5, .train = true},
                                   Request{.text = "x", .dim = 6, .heads = 3}}) {
        const Report report = run(request);
        const std::vector<std::string> screens = render_screens(report, {.digits = 6, .full = true});
        for (std::size_t i = 0; i < screens.size(); ++i) {
            // Every number of every tensor, as often as it is there.
            std::multiset<std::string> shown;
            static const std::regex kNumber("-?(inf|[0-9]+\\.[0-9]{6}|[0-9]\\.[0-9]+e[+-][0-9]+)");
            const std::string& screen = screens[i];
            for (std::sregex_iterator it(screen.begin(), screen.end(), kNumber), end; it != end; ++it) {
                shown.insert(it->str());
            }
            for (const auto& [name, tensor] : report.stages[i].tensors.entries()) {
                EXPECT_THAT(screen, HasSubstr(" " + name + " " + to_string(tensor.shape())));
                for (const float value : tensor.values()) {
                    const auto found = shown.find(number(value, 6));
                    ASSERT_NE(found, shown.end()) << name << " " << number(value, 6);
                    shown.erase(found);
                }
            }
        }
    }
}

TEST(Screens, SayWhatLearnersStumbleOver) {
    const std::vector<std::string> screens = render_screens(run({}), {});
    std::vector<std::string> flat;
    flat.reserve(screens.size());
    for (const std::string& screen : screens) {
        flat.push_back(std::regex_replace(screen, std::regex("\\s+"), " "));
    }
    EXPECT_THAT(flat[0], HasSubstr("1/7 SIMPLE"));
    EXPECT_THAT(flat[0], HasSubstr("Why softmax?"));
    EXPECT_THAT(flat[0], HasSubstr("× 1000"));
    EXPECT_THAT(flat[1], HasSubstr("what am I looking for?"));
    EXPECT_THAT(flat[1], HasSubstr("Why ÷√2?"));
    EXPECT_THAT(flat[2], HasSubstr("each row sums to one"));
    EXPECT_THAT(flat[3], HasSubstr("Why −∞ first?"));
    EXPECT_THAT(flat[3], HasSubstr("0 · ∞ = nan"));
    EXPECT_THAT(flat[3], HasSubstr("a token sees itself"));
    EXPECT_THAT(flat[3], HasSubstr("--dropout without --train is idle"));
    EXPECT_THAT(flat[4], HasSubstr("reads all 3 columns"));
    EXPECT_THAT(flat[5], HasSubstr("transpose"));
    EXPECT_THAT(flat[5], HasSubstr("Heads split d_out = 2"));
    EXPECT_THAT(flat[6], HasSubstr("Which side asks?"));
    EXPECT_THAT(flat[6], HasSubstr("nothing is trained"));
}

TEST(Screens, ShinySunMarksTheSlips) {
    const std::string screen = render_screens(run({.stages = {Stage::simple}, .example = "sun"}), {}).at(0);
    EXPECT_THAT(screen, HasSubstr("0.3990"));
    EXPECT_THAT(screen, HasSubstr("0.3992*"));
    EXPECT_THAT(screen, HasSubstr("0.8610"));
    EXPECT_THAT(screen, Not(HasSubstr("0.8610*")));
}

TEST(TextCells, CountLikeTheCLibrary) {
    for (const char* text : {"plain", "übersetzen", "注意力", "e\u0301", "שלום", "▸ √2 · −∞ …", "Ａ", "가나다"}) {
        EXPECT_EQ(cell_width(text), columns(text)) << text;
        EXPECT_EQ(columns(clipped(text, 3)), std::min(columns(text), columns(clipped(text, 3))));
        for (std::int64_t width = 1; width < 8; ++width) {
            EXPECT_LE(columns(clipped(text, width)), width) << text;
            EXPECT_EQ(columns(padded(text, width, Align::left)), width) << text;
            EXPECT_EQ(columns(padded(text, width, Align::right)), width) << text;
        }
    }
}

}  // namespace
}  // namespace qkv::explain
