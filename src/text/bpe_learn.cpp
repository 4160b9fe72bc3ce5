// Learning byte pairs. The distinct pieces of the text are kept with how often they occur, and for every pair of
// neighbours how often it occurs and in which pieces: a merge looks only at the pieces that it changes.
#include <map>
#include <optional>
#include <queue>
#include <set>
#include <unordered_map>

#include "core/check.hpp"
#include "qkv/text.hpp"
#include "text/pieces.hpp"

namespace qkv::text {

namespace {

using Merge = BpeTokenizer::Merge;

struct Piece {
    std::vector<std::int64_t> ids;
    std::int64_t count = 0;
};

struct Pair {
    std::int64_t count = 0;
    std::set<std::size_t> pieces;
};

/// A pair as it stood when it was queued. Most often first; of several the smaller ids.
struct Candidate {
    std::int64_t count;
    Merge merge;
    [[nodiscard]] bool operator<(const Candidate& other) const {
        return count != other.count ? count < other.count : merge > other.merge;
    }
};

class Learner {
public:
    explicit Learner(std::string_view text) {
        std::unordered_map<std::string_view, std::size_t> places;
        for_each_piece(text, [&](std::string_view piece) {
            const auto [found, is_new] = places.emplace(piece, pieces_.size());
            if (is_new) {
                pieces_.emplace_back();
                for (const char byte : piece) {
                    pieces_.back().ids.push_back(static_cast<unsigned char>(byte));
                }
            }
            ++pieces_[found->second].count;
        });
        for (std::size_t place = 0; place < pieces_.size(); ++place) {
            count_pairs(place, 1);
        }
        for (const auto& [merge, pair] : pairs_) {
            queue_.push({pair.count, merge});
        }
    }

    /// The pair that occurs most often, joined everywhere as `id`; nothing when none occurs twice.
    [[nodiscard]] std::optional<Merge> join_next(std::int64_t id) {
        while (!queue_.empty()) {
            const Candidate best = queue_.top();
            queue_.pop();
            const auto found = pairs_.find(best.merge);
            if (found == pairs_.end() || found->second.count != best.count) {
                continue;  // it has changed since; as it is now, it stands elsewhere in the queue
            }
            if (best.count < 2) {
                return std::nullopt;
            }
            const std::set<std::size_t> changed = found->second.pieces;
            touched_.clear();
            for (const std::size_t place : changed) {
                count_pairs(place, -1);
                join(pieces_[place].ids, best.merge, id);
                count_pairs(place, 1);
            }
            for (const Merge& merge : touched_) {
                if (const auto now = pairs_.find(merge); now != pairs_.end()) {
                    queue_.push({now->second.count, merge});
                }
            }
            return best.merge;
        }
        return std::nullopt;
    }

private:
    /// Adds (sign 1) or takes away (-1) what a piece has of each pair.
    void count_pairs(std::size_t place, std::int64_t sign) {
        const Piece& piece = pieces_[place];
        for (std::size_t i = 0; i + 1 < piece.ids.size(); ++i) {
            const Merge merge{piece.ids[i], piece.ids[i + 1]};
            Pair& pair = pairs_[merge];
            pair.count += sign * piece.count;
            if (sign > 0) {
                pair.pieces.insert(place);
            } else {
                pair.pieces.erase(place);
            }
            if (pair.count == 0) {
                pairs_.erase(merge);
            }
            touched_.insert(merge);
        }
    }

    static void join(std::vector<std::int64_t>& ids, const Merge& merge, std::int64_t id) {
        std::size_t kept = 0;
        for (std::size_t i = 0; i < ids.size(); ++i) {
            const bool joins = i + 1 < ids.size() && Merge{ids[i], ids[i + 1]} == merge;
            ids[kept++] = joins ? id : ids[i];
            i += joins ? 1 : 0;
        }
        ids.resize(kept);
    }

    std::vector<Piece> pieces_;
    std::map<Merge, Pair> pairs_;
    std::set<Merge> touched_;
    std::priority_queue<Candidate> queue_;
};

}  // namespace

std::unique_ptr<BpeTokenizer> BpeTokenizer::learned(std::string_view text, std::int64_t vocab_size) {
    if (vocab_size < kBytes || vocab_size > kMaxVocabulary) {
        fail(ErrorCode::invalid_argument, "vocab_size is ", vocab_size, "; expected ", kBytes, " to ", kMaxVocabulary);
    }
    Learner learner(text);
    std::vector<Merge> merges;
    for (std::int64_t id = kBytes; id < vocab_size; ++id) {
        const std::optional<Merge> merge = learner.join_next(id);
        if (!merge) {
            break;
        }
        merges.push_back(*merge);
    }
    return std::make_unique<BpeTokenizer>(std::move(merges));
}

}  // namespace qkv::text
