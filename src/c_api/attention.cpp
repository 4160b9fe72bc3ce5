#include "qkv/attention.hpp"

#include "c_api/attention_options.hpp"
#include "c_api/boundary.hpp"
#include "c_api/handles.hpp"

namespace qkv::c_api {

namespace {

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
        size = qkv::attention_workspace_size(to_view(q, "q"), to_view(k, "k"), to_view(v, "v"), to_view(out, "out"),
                                             Options(options).get(), without_workspace(to_extras(extras)),
                                             runtime_of(runtime));
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
