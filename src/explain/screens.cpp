// A report as numbered screens.
#include <fmt/format.h>

#include <algorithm>

#include "explain/ink.hpp"
#include "explain/screen_notes.hpp"
#include "explain/screen_parts.hpp"
#include "explain/text_cells.hpp"
#include "qkv/explain.hpp"

namespace qkv::explain {

namespace {

constexpr std::int64_t kScreenLines = 24;  // and a blank one between screens: 25
constexpr std::int64_t kLeastRows = 3;

void append(Lines& lines, const Lines& more) { lines.insert(lines.end(), more.begin(), more.end()); }

Lines paragraphs(const Lines& texts, std::int64_t width) {
    Lines lines;
    for (const std::string& text : texts) {
        append(lines, wrapped(text, width, 1));
    }
    return lines;
}

Lines head_lines(const StageReport& stage, std::size_t place, std::size_t count, const TextStyle& style,
                 const Ink& ink) {
    const std::string title = fmt::format(" {}/{} {}", place, count, screen_title(stage));
    const std::int64_t room = style.width - cell_width(title) - 3;
    const std::string facts = screen_facts(stage, room);
    Lines lines{ink.bold(clipped(title, style.width))};
    if (!facts.empty()) {
        lines.back() += padded(facts, room + 3, Align::right);
    }
    append(lines, wrapped(screen_formula(stage), style.width, 1));
    return lines;
}

std::string render_screen(const StageReport& stage, std::size_t place, std::size_t count, const TextStyle& style) {
    const Ink ink(style.colour);
    Lines lines = head_lines(stage, place, count, style, ink);
    Lines tail = joined_heads(stage, style);
    append(tail, side_by_side(stage, style));
    append(tail, paragraphs(screen_notes(stage), style.width));

    // Rows that are left for queries and keys once everything else has its lines: a header above the queries, a title,
    // a header and a sum around the keys.
    const auto spent = static_cast<std::int64_t>(lines.size() + tail.size()) + 4;
    const auto query_count = static_cast<std::int64_t>(stage.tokens.size());
    const auto key_count = static_cast<std::int64_t>(stage.keys().size());
    const std::int64_t all = query_count + key_count;
    const std::int64_t room = style.full ? all : std::max(kScreenLines - spent, 2 * kLeastRows);
    // Fewer keys than their half leave room for more queries, and the other way round.
    const std::int64_t query_rows = std::min(query_count, std::max(room - key_count, room / 2));
    append(lines, weights_beside_context(stage, style, ink, query_rows));
    append(lines, step_by_step(stage, style, ink, room - query_rows));
    append(lines, tail);
    if (style.full) {
        append(lines, every_matrix(stage, style, ink));
    }
    std::string screen;
    for (const std::string& line : lines) {
        screen += line + '\n';
    }
    return screen;
}

}  // namespace

std::vector<std::string> render_screens(const Report& report, const TextStyle& style) {
    std::vector<std::string> screens;
    screens.reserve(report.stages.size());
    for (std::size_t i = 0; i < report.stages.size(); ++i) {
        screens.push_back(render_screen(report.stages[i], i + 1, report.stages.size(), style));
    }
    return screens;
}

}  // namespace qkv::explain
