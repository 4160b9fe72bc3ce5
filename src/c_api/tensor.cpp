#include "qkv/qkv.h"
#include "qkv/view.hpp"

namespace {

qkv_tensor to_tensor(void* data, qkv_dtype dtype, const qkv::Shape4& shape, const qkv::Shape4& strides) {
    return {data,
            {shape[0], shape[1], shape[2], shape[3]},
            {strides[0], strides[1], strides[2], strides[3]},
            dtype,
            QKV_CPU,
            0,
            0};
}

}  // namespace

extern "C" {

qkv_tensor qkv_tensor_contiguous(void* data, qkv_dtype dtype, int64_t d0, int64_t d1, int64_t d2, int64_t d3) {
    const qkv::Shape4 shape{d0, d1, d2, d3};
    return to_tensor(data, dtype, shape, qkv::contiguous_strides(shape));
}

qkv_tensor qkv_tensor_tokens_first(void* data, qkv_dtype dtype, int64_t batch, int64_t tokens, int64_t heads,
                                   int64_t head_dim) {
    const qkv::Shape4 strides = qkv::contiguous_strides({batch, tokens, heads, head_dim});
    return to_tensor(data, dtype, {batch, heads, tokens, head_dim}, {strides[0], strides[2], strides[1], strides[3]});
}

}  // extern "C"
