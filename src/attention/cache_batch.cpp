#include "attention/cache_batch.hpp"

#include "attention/validate_views.hpp"

namespace qkv::detail {

namespace {

template <class Storage>
auto& find_sequence(Storage& storage, SequenceId id, const char* name) {
    auto* found = storage.find(id);
    if (found == nullptr) {
        fail(ErrorCode::invalid_argument, name, " is ", id,
             "; expected a sequence of this cache, from add() or fork() and not removed");
    }
    return *found;
}

}  // namespace

const CachedSequence& sequence_at(const KvStorage& storage, SequenceId id, const char* name) {
    return find_sequence(storage, id, name);
}

CachedSequence& sequence_at(KvStorage& storage, SequenceId id, const char* name) {
    return find_sequence(storage, id, name);
}

void check_batch(const KvStorage& storage, const CacheBatch& batch, const ConstTensorView& view, const char* name) {
    const auto count = static_cast<std::int64_t>(batch.sequences.size());
    const auto& starts = batch.cumulative_tokens;
    if (starts.empty()) {
        if (view.size(0) != count) {
            fail(ErrorCode::shape_mismatch, name, " has shape ", to_string(view), "; expected a first size of ", count,
                 ", the number of sequences");
        }
    } else {
        if (view.size(0) != 1) {
            fail(ErrorCode::shape_mismatch, name, " has shape ", to_string(view),
                 "; with cumulative_tokens expected a first size of 1");
        }
        check_cumulative(starts, "cumulative_tokens", view.size(2));
        if (static_cast<std::int64_t>(starts.size()) != count + 1) {
            fail(ErrorCode::shape_mismatch, "cumulative_tokens has ", starts.size(), " numbers; expected ", count + 1,
                 ", one more than sequences");
        }
    }
    for (const SequenceId id : batch.sequences) {
        (void)sequence_at(storage, id, "sequences: one");
    }
}

}  // namespace qkv::detail
