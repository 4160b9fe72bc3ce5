#include "explain/screen_parts.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/check.hpp"
#include "explain/text_cells.hpp"

namespace qkv::explain {

namespace {

constexpr std::int64_t kMargin = 3;       // " ▸ " before the chosen query, blanks before the others
constexpr std::int64_t kLabelWidth = 10;  // longer labels are clipped
constexpr std::int64_t kGap = 2;
constexpr std::int64_t kElided = 2;  // " …" after the last number shown

std::int64_t widest(const std::vector<std::string>& labels, std::int64_t limit) {
    std::int64_t width = 1;
    for (const std::string& label : labels) {
        width = std::max(width, cell_width(printable(label)));
    }
    return std::min(width, limit);
}

/// How the matrix and the context share the width.
struct Layout {
    int digits = 4;
    std::int64_t label = 0;
    std::int64_t cell = 0;          // a weight and the blank before it
    std::int64_t context_cell = 0;  // a context value and the blanks before it
    std::vector<std::int64_t> keys;
    std::string hidden_mark;  // " +12" where keys are hidden
    std::int64_t context_columns = 0;
};

std::int64_t widest_number(const Tensor& tensor, int digits) {
    std::int64_t width = digits + 2;
    for (const float value : tensor.values()) {
        width = std::max(width, static_cast<std::int64_t>(number(value, digits).size()));
    }
    return width;
}

Layout fitted_layout(const StageReport& stage, const Tensor& weights, const Tensor& context, const TextStyle& style) {
    const std::int64_t key_count = weights.size(-1);
    const std::int64_t width = context.size(-1);
    std::vector<std::int64_t> needed;
    if (stage.stage != Stage::cross) {
        needed.push_back(stage.query);
    }
    const auto lay_out = [&](int digits, std::int64_t longest_key, std::int64_t least_context) {
        Layout layout;
        layout.digits = digits;
        layout.label = widest(stage.tokens, kLabelWidth);
        layout.cell = std::max<std::int64_t>(digits + 2, widest(stage.keys(), longest_key)) + 1;
        layout.context_cell = widest_number(context, digits) + kGap;
        const std::int64_t room = style.width - kMargin - layout.label;
        const std::int64_t least = least_context * layout.context_cell + (least_context < width ? kElided : 0);
        layout.keys = shown_places(key_count, std::max<std::int64_t>(1, (room - least) / layout.cell), needed);
        const auto shown = static_cast<std::int64_t>(layout.keys.size());
        layout.hidden_mark = shown < key_count ? fmt::format(" +{}", key_count - shown) : "";
        const std::int64_t left = room - shown * layout.cell - cell_width(layout.hidden_mark);
        const bool whole = left >= width * layout.context_cell;
        layout.context_columns =
            whole ? width : std::clamp<std::int64_t>((left - kElided) / layout.context_cell, 0, width);
        return layout;
    };
    const std::int64_t usual_context = style.width < 80 ? 1 : 2;
    Layout layout = lay_out(style.digits, 7, std::min(usual_context, width));
    // All keys at fewer digits say more than some keys at all digits, unless the reader asked for the digits.
    for (int digits = style.digits; !style.digits_fixed && digits >= 2; --digits) {
        Layout tighter = lay_out(digits, digits + 3, std::min<std::int64_t>(1, width));
        if (static_cast<std::int64_t>(layout.keys.size()) < key_count &&
            static_cast<std::int64_t>(tighter.keys.size()) == key_count) {
            return tighter;
        }
    }
    return layout;
}

bool is_masked(const StageReport& stage, std::int64_t head, std::int64_t query, std::int64_t key) {
    const Tensor* masked = stage.tensors.find("masked");
    return masked != nullptr &&
           row_of(*masked, head, query)[static_cast<std::size_t>(key)] == -std::numeric_limits<float>::infinity();
}

/// One column of the step-by-step table.
struct Column {
    std::string title;
    Lines cells;
    std::string sum;
    bool optional = false;  // may go when the terminal is narrow
};

Column number_column(std::string title, std::span<const float> values, const std::vector<std::int64_t>& keys,
                     int digits, bool optional = false) {
    Column column{std::move(title), {}, "", optional};
    for (const std::int64_t key : keys) {
        const float value = values[static_cast<std::size_t>(key)];
        column.cells.push_back(value == 0.0F ? "0" : number(value, digits));
    }
    return column;
}

float sum_of(std::span<const float> values) {
    float sum = 0;
    for (const float value : values) {
        sum += value;
    }
    return sum;
}

std::int64_t column_width(const Column& column) {
    std::int64_t width = std::max(cell_width(column.title), cell_width(column.sum));
    for (const std::string& cell : column.cells) {
        width = std::max(width, cell_width(cell));
    }
    return width + kGap;
}

/// exp(s − max) of a row, or exp(s) for the naive softmax; what the weights are proportional to.
std::vector<float> exponentials(std::span<const float> scores, bool naive) {
    float maximum = -std::numeric_limits<float>::infinity();
    for (const float score : scores) {
        maximum = std::max(maximum, score);
    }
    std::vector<float> values;
    for (const float score : scores) {
        values.push_back(std::exp(naive ? score : score - maximum));
    }
    return values;
}

std::vector<Column> step_columns(const StageReport& stage, const std::vector<std::int64_t>& keys, int digits) {
    const auto row = [&](const char* name) { return row_of(*stage.tensors.find(name), stage.head, stage.query); };
    const bool simple = stage.stage == Stage::simple;
    std::vector<Column> columns;
    columns.push_back(number_column(simple ? "x·x" : "q·k", row("scores"), keys, digits));
    std::span<const float> last = row("scores");
    if (!simple) {
        last = row("scaled");
        const std::int64_t head_dim = stage.tensors.find("queries")->size(-1);
        columns.push_back(number_column(fmt::format("÷√{}", head_dim), last, keys, digits));
    }
    if (stage.tensors.find("masked") != nullptr) {
        last = row("masked");
        columns.push_back(number_column("masked", last, keys, digits, true));
    }
    if (!simple || stage.normalise != nn::Normalise::sum) {
        const bool naive = simple && stage.normalise == nn::Normalise::naive_softmax;
        const std::vector<float> powers = exponentials(last, naive);
        columns.push_back(number_column(naive ? "exp(s)" : "exp(s-max)", powers, keys, digits, true));
        columns.back().sum = number(sum_of(powers), digits);
    }
    columns.push_back(number_column("weight", row("weights"), keys, digits));
    columns.back().sum = number(sum_of(row("weights")), digits);
    if (stage.heads > 1) {
        const std::int64_t other = stage.head == 0 ? 1 : 0;
        columns.push_back(number_column(fmt::format("head {}", other + 1),
                                        row_of(*stage.tensors.find("weights"), other, stage.query), keys, digits,
                                        true));
    }
    if (simple && stage.normalise != nn::Normalise::sum) {
        columns.push_back(number_column("s/Σs", row("sum_normalised"), keys, digits, true));
        columns.back().sum = number(sum_of(row("sum_normalised")), digits);
    }
    if (stage.tensors.find("dropped_weights") != nullptr) {
        columns.push_back(number_column("dropped", row("dropped_weights"), keys, digits));
        columns.back().sum = number(sum_of(row("dropped_weights")), digits);
    }
    return columns;
}

/// Cells of the widest number among the shown values and the context they make.
std::int64_t value_width(const StageReport& stage, const std::vector<std::int64_t>& keys, int digits) {
    const Tensor& values = *stage.tensors.find(stage.stage == Stage::simple ? "inputs" : "values");
    std::size_t width = 0;
    for (const std::int64_t key : keys) {
        for (const float value : row_of(values, stage.head, key)) {
            width = std::max(width, number(value, digits).size());
        }
    }
    return static_cast<std::int64_t>(width);
}

std::string hidden_line(std::int64_t hidden, const char* what, std::int64_t width) {
    return clipped(fmt::format("{}… {} more {}; --full shows them", std::string(kMargin, ' '), hidden, what), width);
}

}  // namespace

std::string number(float value, int digits) {
    if (std::isnan(value)) {
        return "nan";
    }
    if (std::isinf(value)) {
        return value > 0 ? "inf" : "-inf";
    }
    if (std::fabs(value) >= 1e6F) {
        return fmt::format("{:.{}e}", value, std::min(digits, 3));
    }
    std::string text = fmt::format("{:.{}f}", value, digits);
    // What rounds to zero carries no sign: "-0.0000" would make a reader look for a meaning.
    if (text.front() == '-' && text.find_first_not_of("-0.") == std::string::npos) {
        text.erase(0, 1);
    }
    return text;
}

std::string tuple(std::span<const float> values, int digits, std::int64_t width, std::int64_t cell) {
    std::string text = "(";
    for (std::size_t i = 0; i < values.size(); ++i) {
        const std::string digits_shown = number(values[i], digits);
        const auto least = static_cast<std::int64_t>(digits_shown.size());
        const std::string next = (i == 0 ? "" : " ") + padded(digits_shown, std::max(least, cell), Align::right);
        const std::int64_t closing = i + 1 < values.size() ? 3 : 1;  // " …)" or ")"
        if (cell_width(text) + cell_width(next) + closing > width) {
            return text + (i == 0 ? "…)" : " …)");
        }
        text += next;
    }
    return text + ")";
}

std::span<const float> row_of(const Tensor& tensor, std::int64_t head, std::int64_t query) {
    return tensor.row(tensor.rank() == 3 ? head * tensor.size(1) + query : query);
}

const Tensor& final_weights(const StageReport& stage) {
    const Tensor* dropped = stage.tensors.find("dropped_weights");
    const Tensor* weights = dropped != nullptr ? dropped : stage.tensors.find("weights");
    if (weights == nullptr) {
        fail(ErrorCode::invalid_argument, "stage ", stage_name(stage.stage), " has no weights to show");
    }
    return *weights;
}

std::vector<std::int64_t> shown_places(std::int64_t count, std::int64_t room, std::vector<std::int64_t> needed) {
    std::vector<std::int64_t> places;
    if (count <= room) {
        for (std::int64_t place = 0; place < count; ++place) {
            places.push_back(place);
        }
        return places;
    }
    const std::int64_t keep = std::max<std::int64_t>(room - 1, 1);
    std::ranges::sort(needed);
    const auto [first, last] = std::ranges::unique(needed);
    needed.erase(first, last);
    needed.resize(std::min(needed.size(), static_cast<std::size_t>(keep)));
    for (std::int64_t place = 0; place < count && static_cast<std::int64_t>(places.size()) < keep; ++place) {
        const auto to_come = std::ranges::count_if(needed, [place](std::int64_t n) { return n >= place; });
        const bool free = static_cast<std::int64_t>(places.size()) + to_come < keep;
        if (free || std::ranges::find(needed, place) != needed.end()) {
            places.push_back(place);
        }
    }
    return places;
}

Lines weights_beside_context(const StageReport& stage, const TextStyle& style, const Ink& ink, std::int64_t rows) {
    const Tensor& weights = final_weights(stage);
    const Tensor& context = *stage.tensors.find("context");
    const Layout layout = fitted_layout(stage, weights, context, style);
    const std::int64_t query_count = weights.size(-2);

    std::string header(static_cast<std::size_t>(kMargin + layout.label), ' ');
    for (const std::int64_t key : layout.keys) {
        const std::string label = printable(stage.keys()[static_cast<std::size_t>(key)]);
        header += ' ' + padded(label, layout.cell - 1, Align::right);
    }
    header += layout.hidden_mark;
    const std::string title = fmt::format("context [{},{}]", context.size(0), context.size(1));
    if (const std::int64_t left = style.width - cell_width(header) - kGap; left > 0) {
        header += std::string(kGap, ' ') + clipped(title, left);
    }
    Lines lines{header};

    const std::vector<std::int64_t> queries = shown_places(query_count, rows, {stage.query});
    for (const std::int64_t query : queries) {
        const bool chosen = query == stage.query;
        const std::string label =
            padded(printable(stage.tokens[static_cast<std::size_t>(query)]), layout.label, Align::left);
        std::string line = chosen ? " ▸ " + ink.bold(label) : "   " + label;
        for (const std::int64_t key : layout.keys) {
            const float weight = row_of(weights, stage.head, query)[static_cast<std::size_t>(key)];
            const bool masked = is_masked(stage, stage.head, query, key);
            const std::string cell =
                padded(masked ? "·" : number(weight, layout.digits), layout.cell - 1, Align::right);
            line += ' ' + (masked ? cell : ink.shaded(cell, weight));
        }
        if (!layout.hidden_mark.empty()) {
            line += padded(" …", cell_width(layout.hidden_mark), Align::left);
        }
        for (std::int64_t column = 0; column < layout.context_columns; ++column) {
            line += padded(number(context(query, column), layout.digits), layout.context_cell, Align::right);
        }
        lines.push_back(line + (layout.context_columns < context.size(-1) ? " …" : ""));
    }
    if (const auto hidden = query_count - static_cast<std::int64_t>(queries.size()); hidden > 0) {
        lines.push_back(ink.faint(hidden_line(hidden, "queries", style.width)));
    }
    return lines;
}

Lines step_by_step(const StageReport& stage, const TextStyle& style, const Ink& ink, std::int64_t rows) {
    const bool simple = stage.stage == Stage::simple;
    const std::span<const float> weights = row_of(final_weights(stage), stage.head, stage.query);
    const auto heaviest = std::ranges::max_element(weights) - weights.begin();
    std::vector<std::int64_t> needed{heaviest};
    if (stage.stage != Stage::cross) {
        needed.push_back(stage.query);
    }
    const auto key_count = static_cast<std::int64_t>(weights.size());
    const std::vector<std::int64_t> keys = shown_places(key_count, rows, needed);
    std::vector<Column> columns = step_columns(stage, keys, style.digits);

    const std::int64_t label = std::max<std::int64_t>(3, widest(stage.keys(), kLabelWidth));  // under "key"
    const auto used = [&] {
        std::int64_t total = kMargin + label;
        for (const Column& column : columns) {
            total += column_width(column);
        }
        return total;
    };
    const std::int64_t least_value = style.digits + 8;
    while (used() + kGap + least_value > style.width) {
        const auto spare = std::ranges::find_if(columns, &Column::optional);
        if (spare == columns.end()) {
            break;
        }
        columns.erase(spare);
    }
    // A very narrow terminal keeps the weights to the last: they make the context.
    constexpr std::int64_t kLeastTuple = 5;  // "value", and "(…)" under it
    while (columns.size() > 1 && used() + kGap + kLeastTuple > style.width) {
        columns.erase(columns.begin());
    }
    const std::int64_t value_room = std::max(kLeastTuple, style.width - used() - kGap);

    const std::int64_t value_cell = value_width(stage, keys, style.digits);
    const Tensor& asking = *stage.tensors.find(simple ? "inputs" : "queries");
    const Tensor& values = *stage.tensors.find(simple ? "inputs" : "values");
    const std::int64_t words_width = stage.heads > 1 ? 28 : 18;
    const std::string token = clipped(printable(stage.tokens[static_cast<std::size_t>(stage.query)]),
                                      std::min<std::int64_t>(24, style.width - words_width));
    std::string title = fmt::format(" ▸ {}, step by step{}", ink.bold(token),
                                    stage.heads > 1 ? fmt::format(" in head {}", stage.head + 1) : "");
    if (const std::int64_t left = style.width - cell_width(token) - words_width - 7; left >= kLeastTuple) {
        title += fmt::format("   {} = {}", simple ? "x" : "q",
                             tuple(row_of(asking, stage.head, stage.query), style.digits, left));
    }
    Lines lines{title};

    const auto assemble = [&](const std::string& first, const auto& cell_of, const std::string& last) {
        std::string line = std::string(kMargin, ' ') + padded(first, label, Align::left);
        for (const Column& column : columns) {
            line += padded(cell_of(column), column_width(column), Align::right);
        }
        line += std::string(kGap, ' ') + last;
        return line.substr(0, line.find_last_not_of(' ') + 1);
    };
    lines.push_back(ink.faint(assemble("key", [](const Column& c) { return c.title; }, "value")));
    for (std::size_t place = 0; place < keys.size(); ++place) {
        const std::int64_t key = keys[place];
        lines.push_back(assemble(
            printable(stage.keys()[static_cast<std::size_t>(key)]), [place](const Column& c) { return c.cells[place]; },
            tuple(row_of(values, stage.head, key), style.digits, value_room, value_cell)));
    }
    if (const std::int64_t hidden = key_count - static_cast<std::int64_t>(keys.size()); hidden > 0) {
        lines.push_back(ink.faint(hidden_line(hidden, "keys", style.width)));
    }
    // The context holds all heads side by side; the step-by-step follows one.
    const auto head_width = static_cast<std::size_t>(values.size(-1));
    const std::span<const float> context = stage.tensors.find("context")
                                               ->row(stage.query)
                                               .subspan(static_cast<std::size_t>(stage.head) * head_width, head_width);
    std::string result = tuple(context, style.digits, value_room, value_cell);
    constexpr std::string_view kMeaning = " = context";
    result += cell_width(result) + cell_width(kMeaning) <= value_room ? kMeaning : "";
    lines.push_back(assemble("Σ", [](const Column& c) { return c.sum; }, result));
    return lines;
}

Lines every_matrix(const StageReport& stage, const TextStyle& style, const Ink& ink) {
    const auto is_keys = [&](std::int64_t columns) {
        return columns == static_cast<std::int64_t>(stage.keys().size());
    };
    Lines lines;
    for (const auto& [name, tensor] : stage.tensors.entries()) {
        const bool square = name == "scores" || name == "scaled" || name == "masked" || name.ends_with("weights") ||
                            name == "sum_normalised" || name == "dropout_mask";
        const bool of_source = stage.stage == Stage::cross && (name == "source" || name == "keys" || name == "values");
        const bool of_tokens = square || of_source || name == "inputs" || name == "queries" || name == "keys" ||
                               name == "values" || name == "context" || name == "output";
        const std::vector<std::string>& labels = of_source ? stage.source_tokens : stage.tokens;
        const std::int64_t columns = tensor.size(-1);
        const std::int64_t rows = tensor.rank() > 1 ? tensor.size(-2) : 1;
        const std::int64_t label = of_tokens ? widest(labels, kLabelWidth) : 3;
        const bool key_titles = square && is_keys(columns);
        const std::int64_t cell =
            std::max(widest_number(tensor, style.digits), key_titles ? widest(stage.keys(), 7) : 2) + 1;
        const std::int64_t block = std::max<std::int64_t>(1, (style.width - kMargin - label) / cell);
        for (std::int64_t matrix = 0; matrix < tensor.numel() / std::max<std::int64_t>(rows * columns, 1); ++matrix) {
            lines.emplace_back();
            lines.push_back(ink.bold(fmt::format(" {} {}{}", name, to_string(tensor.shape()),
                                                 tensor.rank() > 2 ? fmt::format(", head {}", matrix + 1) : "")));
            for (std::int64_t begin = 0; begin < columns; begin += block) {
                const std::int64_t end = std::min(columns, begin + block);
                std::string header(static_cast<std::size_t>(kMargin + label), ' ');
                for (std::int64_t column = begin; column < end; ++column) {
                    const std::string text = key_titles ? printable(stage.keys()[static_cast<std::size_t>(column)])
                                                        : fmt::format("{}", column + 1);
                    header += ' ' + padded(text, cell - 1, Align::right);
                }
                lines.push_back(ink.faint(header));
                for (std::int64_t row = 0; row < rows; ++row) {
                    const std::string text =
                        of_tokens ? printable(labels[static_cast<std::size_t>(row)]) : fmt::format("{}", row + 1);
                    std::string line = std::string(kMargin, ' ') + padded(text, label, Align::left);
                    for (std::int64_t column = begin; column < end; ++column) {
                        const float value = tensor.data()[(matrix * rows + row) * columns + column];
                        const std::string shown = padded(number(value, style.digits), cell - 1, Align::right);
                        line += ' ' + (name.ends_with("weights") ? ink.shaded(shown, value) : shown);
                    }
                    lines.push_back(line);
                }
            }
        }
    }
    return lines;
}

}  // namespace qkv::explain
