// A sentence through the attention stages, every number kept: what `qkv explain` shows.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "qkv/nn/self_attention.hpp"
#include "qkv/nn/simple_attention.hpp"
#include "qkv/tensor.hpp"
#include "qkv/trace.hpp"

namespace qkv::explain {

enum class Stage : std::uint8_t { simple, self, causal, wrapper, multi_head, cross };

/// The stages in teaching order.
[[nodiscard]] const std::vector<Stage>& all_stages();
/// "simple", "self", "causal", "wrapper", "multi-head", "cross".
[[nodiscard]] std::string_view stage_name(Stage stage);

/// The most tokens of a sequence: every matrix of every stage is kept, and 2048² floats are 17 MB each.
inline constexpr std::int64_t kMaxTokens = 2048;
/// The widest vectors and the most heads.
inline constexpr std::int64_t kMaxWidth = 16384;
inline constexpr std::int64_t kMaxHeads = 1024;
inline constexpr std::int64_t kMaxContextLength = 4096;
/// The most weights of a stage, heads × queries × keys: 1 GB a matrix.
inline constexpr std::int64_t kMaxWeights = std::int64_t{1} << 28;

/// What to explain. Every field left empty has a default, see docs/explain.md.
struct Request {
    std::vector<Stage> stages = all_stages();

    // The sentence: one of text, example, tokens, or embeddings (which text may label).
    std::optional<std::string> text = {};
    std::optional<std::string> example = {};  ///< journey, sun, notebook or translate
    std::optional<std::int64_t> tokens = {};  ///< so many unnamed tokens with random vectors
    std::optional<std::filesystem::path> embeddings = {};
    std::optional<std::int64_t> dim = {};   ///< width of random vectors
    std::optional<std::string> query = {};  ///< a token, or its place counted from 1

    // The other sequence of cross-attention.
    std::optional<std::string> source = {};
    std::optional<std::filesystem::path> source_embeddings = {};

    // The parameters.
    std::optional<std::filesystem::path> weights = {};
    std::optional<nn::Init> init = {};
    std::optional<std::int64_t> d_out = {};
    std::optional<std::int64_t> heads = {};
    std::optional<std::int64_t> context_length = {};
    bool qkv_bias = false;
    std::optional<std::uint64_t> seed = {};

    std::optional<double> dropout = {};  ///< with train; default 0
    bool train = false;
    std::optional<nn::Normalise> normalise = {};  ///< simple; default softmax

    /// A trained model (docs/train.md) instead of all that: its own layers, on text that it reads.
    std::optional<std::filesystem::path> model = {};
    std::optional<std::int64_t> layer = {};  ///< counted from 1; default all, a stage each
    std::optional<std::int64_t> head = {};   ///< the head that screens follow, counted from 1; default 1

    /// Sequences longer than this are cut to their first tokens, and the report says so.
    std::optional<std::int64_t> shown_tokens = {};
};

/// One stage, run.
struct StageReport {
    Stage stage = Stage::simple;
    std::optional<nn::Init> init;  ///< self only
    std::uint64_t seed = 0;
    std::vector<std::string> tokens;         ///< the queries' labels, unique (`the`, `the#2`)
    std::vector<std::string> source_tokens;  ///< cross only: the keys' labels
    std::int64_t query = 0;                  ///< the row that is followed, counted from 0
    std::int64_t heads = 1;
    std::int64_t head = 0;              ///< the one that is followed, counted from 0
    std::optional<std::int64_t> layer;  ///< of a trained model, counted from 1
    double dropout = 0.0;
    bool training = false;
    nn::Normalise normalise = nn::Normalise::softmax;
    std::string weights_file;          ///< where the parameters came from, empty: drawn from the seed
    std::vector<std::string> remarks;  ///< how the vectors came to be, what is idle
    Trace tensors;

    /// Labels of the keys: the source's in cross-attention, else the sentence's own.
    [[nodiscard]] const std::vector<std::string>& keys() const {
        return source_tokens.empty() ? tokens : source_tokens;
    }
};

struct Report {
    std::vector<std::string> tokens;
    std::int64_t given_tokens = 0;  ///< how many there were before the sentence was cut
    std::vector<StageReport> stages;
};

/// Runs the stages. Throws qkv::Error: invalid_argument and out_of_range for a request that makes no sense, io, format
/// and shape_mismatch for files that cannot be used.
[[nodiscard]] Report run(const Request& request);

/// How TEXT becomes tokens: split at white space; each of . , ; : ! ? ( ) " stands alone.
[[nodiscard]] std::vector<std::string> split_text(std::string_view text);

/// `text` (valid UTF-8) with control and formatting characters (escape, line breaks, bidirectional overrides) as
/// visible
/// \u{…} codes: nothing from outside moves a terminal's cursor. Bytes that are not UTF-8 become U+FFFD.
[[nodiscard]] std::string printable(std::string_view text);

/// `text` as messages quote it: printable, in single quotes, shortened to 60 columns.
[[nodiscard]] std::string in_quotes(std::string_view text);

/// The known word nearest to `word`, for suggestions; empty when none is near.
[[nodiscard]] std::string nearest_word(std::string_view word, const std::vector<std::string>& known);

/// Writes one strict JSON document (docs/explain.md), piece by piece.
void write_json(const Report& report, const std::function<void(std::string_view)>& write);

/// The most tokens that a page holds: 512² weights still open in a moment.
inline constexpr std::int64_t kMaxPageTokens = 512;

/// Writes the report as one self-contained page to play with (viewer/schema.md), whole or not at all, and returns its
/// size in bytes. Throws Error(io) when it cannot be written.
std::uint64_t write_html(const Report& report, const std::filesystem::path& path);

enum class Colour : std::uint8_t { none, palette_256, true_colour };

struct TextStyle {
    std::int64_t width = 80;    ///< columns of the terminal
    int digits = 4;             ///< after the point
    bool digits_fixed = false;  ///< the reader asked for them: never show fewer
    Colour colour = Colour::none;
    bool full = false;  ///< every matrix, every row
};

/// The report as numbered screens, each at most 25 lines at a width of 80 (full ones are as long as they are).
[[nodiscard]] std::vector<std::string> render_screens(const Report& report, const TextStyle& style);

}  // namespace qkv::explain
