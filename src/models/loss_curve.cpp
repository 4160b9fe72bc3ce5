#include "qkv/models/loss_curve.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <limits>
#include <span>

#include "core/check.hpp"
#include "io/file.hpp"

namespace qkv::models {

namespace {

struct Point {
    double step = 0, loss = 0;
};
using Line = std::vector<Point>;

// Okabe & Ito's palette: told apart without colour vision, and here by shape as well.
constexpr std::string_view kTraining = "#0072b2";
constexpr std::string_view kValidation = "#d55e00";

constexpr double kWidth = 640, kHeight = 360, kLeft = 56, kRight = 16, kTop = 34, kBottom = 44;
constexpr std::size_t kMostPoints = 240;

/// `value` with so many digits after the point.
std::string fixed(double value, int digits) {
    std::array<char, 64> text{};
    const auto [end, error] =
        std::to_chars(text.data(), text.data() + text.size(), value, std::chars_format::fixed, digits);
    return error == std::errc{} ? std::string(text.data(), end) : concat(value);
}

/// Mean losses of runs of steps, so that a long training is a line and no smear.
Line training_line(const std::vector<float>& losses) {
    const std::size_t run = (losses.size() + kMostPoints - 1) / kMostPoints;
    Line line;
    for (std::size_t first = 0; first < losses.size(); first += run) {
        const std::size_t count = std::min(run, losses.size() - first);
        Point mean;
        for (std::size_t i = first; i < first + count; ++i) {
            mean.step += static_cast<double>(i + 1) / static_cast<double>(count);
            mean.loss += static_cast<double>(losses[i]) / static_cast<double>(count);
        }
        line.push_back(mean);
    }
    return line;
}

Line validation_line(const std::vector<History::Validation>& validations) {
    Line line;
    for (const History::Validation& validation : validations) {
        line.push_back({static_cast<double>(validation.step), static_cast<double>(validation.loss)});
    }
    return line;
}

/// 1, 2 or 5 times a power of ten: the distance of at most `most` marks between 0 and `range`.
double mark_distance(double range, int most) {
    const double power = std::pow(10.0, std::floor(std::log10(range / most)));
    for (const double factor : {1.0, 2.0, 5.0}) {
        if (range <= factor * power * most) {
            return factor * power;
        }
    }
    return 10 * power;
}

class Drawing {
public:
    explicit Drawing(const History& history)
        : history_(&history),
          training_(training_line(history.losses)),
          validation_(validation_line(history.validations)) {
        last_step_ = std::max<double>(1, static_cast<double>(history.losses.size()));
        double lowest = std::numeric_limits<double>::infinity();
        double highest = -lowest;
        for (const Line* line : {&training_, &validation_}) {
            for (const Point& point : *line) {
                lowest = std::min(lowest, point.loss);
                highest = std::max(highest, point.loss);
            }
        }
        if (!(lowest <= highest)) {
            lowest = highest = 0;
        }
        distance_ = mark_distance(std::max(highest - lowest, 1e-3), 6);
        bottom_ = std::floor(lowest / distance_) * distance_;
        top_ = std::max(std::ceil(highest / distance_) * distance_, bottom_ + distance_);
    }

    std::string svg() {
        out_ = concat("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 ", kWidth, ' ', kHeight, "\" width=\"",
                      kWidth, "\" height=\"", kHeight,
                      "\" font-family=\"system-ui, sans-serif\" font-size=\"12\" role=\"img\">\n"
                      "<title>Loss of training and validation by step</title>\n"
                      "<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n");
        axes();
        polyline(training_, kTraining);
        polyline(validation_, kValidation);
        for (const Point& point : validation_) {
            out_ +=
                concat("<circle cx=\"", x(point), "\" cy=\"", y(point), "\" r=\"3\" fill=\"", kValidation, "\"/>\n");
        }
        legend();
        return std::move(out_) + "</svg>\n";
    }

private:
    [[nodiscard]] std::string x(const Point& point) const {
        return fixed(kLeft + (kWidth - kLeft - kRight) * point.step / last_step_, 1);
    }
    [[nodiscard]] std::string y(const Point& point) const {
        return fixed(kTop + (kHeight - kTop - kBottom) * (top_ - point.loss) / (top_ - bottom_), 1);
    }

    void text(const std::string& at_x, const std::string& at_y, std::string_view anchor, std::string_view words,
              std::string_view fill = "#333333") {
        out_ += concat("<text x=\"", at_x, "\" y=\"", at_y, "\" text-anchor=\"", anchor, "\" fill=\"", fill, "\">",
                       words, "</text>\n");
    }

    void axes() {
        const int digits = std::max(0, static_cast<int>(-std::floor(std::log10(distance_))));
        const auto marks = static_cast<std::int64_t>(std::lround((top_ - bottom_) / distance_));
        for (std::int64_t mark = 0; mark <= marks; ++mark) {
            const Point point{0, bottom_ + distance_ * static_cast<double>(mark)};
            out_ += concat("<path d=\"M", kLeft, ' ', y(point), 'H', kWidth - kRight, "\" stroke=\"#dddddd\"/>\n");
            text(fixed(kLeft - 8, 1), fixed(std::stod(y(point)) + 4, 1), "end", fixed(point.loss, digits));
        }
        const double step_distance = std::max(1.0, mark_distance(last_step_, 6));
        const auto step_marks = static_cast<std::int64_t>(last_step_ / step_distance);
        for (std::int64_t mark = 0; mark <= step_marks; ++mark) {
            const Point point{step_distance * static_cast<double>(mark), bottom_};
            out_ += concat("<path d=\"M", x(point), ' ', y(point), "v5\" stroke=\"#333333\"/>\n");
            text(x(point), fixed(kHeight - kBottom + 20, 1), "middle", fixed(point.step, 0));
        }
        out_ += concat("<path d=\"M", kLeft, ' ', kTop, 'V', kHeight - kBottom, 'H', kWidth - kRight,
                       "\" fill=\"none\" stroke=\"#333333\"/>\n");
        text(fixed((kLeft + kWidth - kRight) / 2, 1), fixed(kHeight - 8, 1), "middle", "step");
        text(fixed(kLeft - 8, 1), "18", "end", "loss");
    }

    void polyline(const Line& line, std::string_view colour) {
        std::string points;
        for (const Point& point : line) {
            points += (points.empty() ? "" : " ") + x(point) + "," + y(point);
        }
        out_ +=
            concat("<polyline fill=\"none\" stroke=\"", colour, "\" stroke-width=\"1.5\" points=\"", points, "\"/>\n");
    }

    void legend() {
        const auto last = [](const auto& losses, auto loss_of) {
            return losses.empty() ? "–" : fixed(static_cast<double>(loss_of(losses.back())), 3);
        };
        const auto itself = [](float loss) { return loss; };
        text(fixed(kWidth - kRight - 150, 1), "18", "end", "— training " + last(history_->losses, itself), kTraining);
        text(fixed(kWidth - kRight, 1), "18", "end",
             "● validation " + last(history_->validations, [](const auto& one) { return one.loss; }), kValidation);
    }

    const History* history_;
    Line training_, validation_;
    double last_step_ = 1, distance_ = 1, bottom_ = 0, top_ = 1;
    std::string out_;
};

}  // namespace

std::string loss_curve_svg(const History& history) { return Drawing(history).svg(); }

void write_loss_curve(const History& history, const std::filesystem::path& path) {
    const std::string svg = loss_curve_svg(history);
    io::write_file(path, [&svg](const io::WriteBytes& write) { write(std::as_bytes(std::span(svg))); });
}

}  // namespace qkv::models
