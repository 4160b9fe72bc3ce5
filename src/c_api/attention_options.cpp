#include "c_api/attention_options.hpp"

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

}  // namespace

Options::Options(const qkv_attention_options* options) : given_(read_struct(options, "options")) {
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

AttentionExtras to_extras(const qkv_attention_extras* extras) {
    const qkv_attention_extras given = read_struct(extras, "extras");
    return {to_optional_view(given.lse, "lse"),
            !checked_flag(given.lse_without_sinks, "lse_without_sinks"),
            to_optional_view(given.weights, "weights"),
            to_optional_view(given.scores, "scores"),
            checked_enum(given.scores_at, ScorePoint::weights, "scores_at"),
            to_workspace(given.workspace, given.workspace_size)};
}

AttentionExtras without_workspace(AttentionExtras extras) {
    extras.workspace = {};
    return extras;
}

}  // namespace qkv::c_api
