#include "qkv/attention.hpp"

#include "c_api/boundary.hpp"
#include "c_api/handles.hpp"

namespace qkv::c_api {

namespace {

qkv_score_tile to_tile(const ScoreTile& tile) {
    return {tile.values,
            tile.row_stride,
            tile.queries,
            tile.keys,
            tile.sequence,
            tile.head,
            tile.query,
            tile.key,
            static_cast<qkv_dtype>(tile.dtype),
            0};
}

void apply(const void* user, const ScoreTile& tile) {
    const auto& function = *static_cast<const qkv_score_function*>(user);
    const qkv_score_tile scores = to_tile(tile);
    function.apply(function.user, &scores);
}

void multiply_by_gradient(const void* user, const ScoreTile& scores, const ScoreTile& gradients) {
    const auto& function = *static_cast<const qkv_score_function*>(user);
    const qkv_score_tile before = to_tile(scores);
    const qkv_score_tile after = to_tile(gradients);
    function.gradient(function.user, &before, &after);
}

/// The caller's options, kept for as long as a call runs: the score function reads them back.
class Options {
public:
    explicit Options(const qkv_attention_options* options) : given_(read_struct(options, "options")) {
        if (given_.mask != nullptr) {
            options_.mask = given_.mask->mask;
        }
        if (given_.scale != nullptr) {
            options_.scale = *given_.scale;
        }
        options_.softcap = given_.softcap;
        options_.sinks = to_optional_view(given_.sinks, "sinks");
        const qkv_dropout& dropout = given_.dropout;
        options_.dropout = {dropout.p, dropout.seed, to_optional_view(dropout.keep, "dropout.keep"),
                            to_span(dropout.sequence_ids, dropout.sequence_ids_count, "dropout.sequence_ids")};
        const qkv_offsets& offsets = given_.offsets;
        options_.offsets = {offsets.query, offsets.key, offsets.head, offsets.queries, offsets.keys};
        options_.score_function = {given_.score_function.apply == nullptr ? nullptr : &apply,
                                   given_.score_function.gradient == nullptr ? nullptr : &multiply_by_gradient,
                                   &given_.score_function};
    }
    Options(const Options&) = delete;
    Options& operator=(const Options&) = delete;
    Options(Options&&) = delete;
    Options& operator=(Options&&) = delete;
    ~Options() = default;

    [[nodiscard]] const AttentionOptions& get() const { return options_; }

private:
    qkv_attention_options given_;
    AttentionOptions options_;
};

AttentionExtras to_extras(const qkv_attention_extras* extras) {
    const qkv_attention_extras given = read_struct(extras, "extras");
    return {to_optional_view(given.lse, "lse"),
            !checked_flag(given.lse_without_sinks, "lse_without_sinks"),
            to_optional_view(given.weights, "weights"),
            to_optional_view(given.scores, "scores"),
            checked_enum(given.scores_at, ScorePoint::weights, "scores_at"),
            to_workspace(given.workspace, given.workspace_size)};
}

AttentionSaved to_saved(const qkv_attention_saved* saved) {
    const qkv_attention_saved given = read_struct(&required(saved, "saved"), "saved");
    return {to_view(given.lse, "saved.lse"), !checked_flag(given.lse_without_sinks, "saved.lse_without_sinks"),
            to_optional_view(given.out, "saved.out"), to_optional_view(given.delta, "saved.delta")};
}

AttentionGradients to_gradients(const qkv_attention_gradients* gradients) {
    const qkv_attention_gradients given = read_struct(&required(gradients, "gradients"), "gradients");
    return {to_optional_view(given.dq, "dq"),
            to_optional_view(given.dk, "dk"),
            to_optional_view(given.dv, "dv"),
            to_optional_view(given.dbias, "dbias"),
            to_optional_view(given.dsinks, "dsinks"),
            to_optional_view(given.dalibi, "dalibi"),
            to_workspace(given.workspace, given.workspace_size)};
}

}  // namespace

}  // namespace qkv::c_api

using namespace qkv::c_api;

extern "C" {

qkv_status qkv_attention(const qkv_tensor* q, const qkv_tensor* k, const qkv_tensor* v, const qkv_tensor* out,
                         const qkv_attention_options* options, const qkv_attention_extras* extras,
                         const qkv_runtime* runtime) {
    return guarded([&] {
        qkv::attention(to_view(q, "q"), to_view(k, "k"), to_view(v, "v"), to_view(out, "out"), Options(options).get(),
                       to_extras(extras), runtime_of(runtime));
    });
}

qkv_status qkv_attention_workspace_size(const qkv_tensor* q, const qkv_tensor* k, const qkv_tensor* v,
                                        const qkv_tensor* out, const qkv_attention_options* options,
                                        const qkv_attention_extras* extras, const qkv_runtime* runtime,
                                        size_t* workspace_size) {
    return guarded([&] {
        size_t& size = required(workspace_size, "workspace_size");
        qkv::AttentionExtras wanted = to_extras(extras);
        wanted.workspace = {};
        size = qkv::attention_workspace_size(to_view(q, "q"), to_view(k, "k"), to_view(v, "v"), to_view(out, "out"),
                                             Options(options).get(), wanted, runtime_of(runtime));
    });
}

qkv_status qkv_attention_backward(const qkv_tensor* q, const qkv_tensor* k, const qkv_tensor* v,
                                  const qkv_tensor* d_out, const qkv_attention_saved* saved,
                                  const qkv_attention_gradients* gradients, const qkv_attention_options* options,
                                  const qkv_runtime* runtime) {
    return guarded([&] {
        qkv::attention_backward(to_view(q, "q"), to_view(k, "k"), to_view(v, "v"), to_view(d_out, "d_out"),
                                to_saved(saved), to_gradients(gradients), Options(options).get(), runtime_of(runtime));
    });
}

qkv_status qkv_attention_backward_workspace_size(const qkv_tensor* q, const qkv_tensor* k, const qkv_tensor* v,
                                                 const qkv_tensor* d_out, const qkv_attention_saved* saved,
                                                 const qkv_attention_gradients* gradients,
                                                 const qkv_attention_options* options, const qkv_runtime* runtime,
                                                 size_t* workspace_size) {
    return guarded([&] {
        size_t& size = required(workspace_size, "workspace_size");
        qkv::AttentionGradients wanted = to_gradients(gradients);
        wanted.workspace = {};
        size = qkv::attention_backward_workspace_size(to_view(q, "q"), to_view(k, "k"), to_view(v, "v"),
                                                      to_view(d_out, "d_out"), to_saved(saved), wanted,
                                                      Options(options).get(), runtime_of(runtime));
    });
}

qkv_status qkv_attention_merge(const qkv_tensor* out, const qkv_tensor* lse, const qkv_tensor* part_out,
                               const qkv_tensor* part_lse) {
    return guarded([&] {
        qkv::attention_merge({to_view(out, "out"), to_view(lse, "lse")}, to_view(part_out, "part_out"),
                             to_view(part_lse, "part_lse"));
    });
}

qkv_status qkv_attention_merge_sinks(const qkv_tensor* out, const qkv_tensor* lse, const qkv_tensor* sinks) {
    return guarded(
        [&] { qkv::attention_merge_sinks({to_view(out, "out"), to_view(lse, "lse")}, to_view(sinks, "sinks")); });
}

}  // extern "C"
