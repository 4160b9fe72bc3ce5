// What the opaque handles of qkv.h hold.
#pragma once

#include "qkv/kv_cache.hpp"
#include "qkv/mask.hpp"
#include "qkv/qkv.h"
#include "qkv/random.hpp"
#include "qkv/rope.hpp"
#include "qkv/runtime.hpp"

struct qkv_runtime {
    qkv::Runtime runtime;
};

struct qkv_mask {
    qkv::Mask mask;
};

struct qkv_generator {
    qkv::Generator generator;
};

struct qkv_rope {
    qkv::Rope rope;
};

struct qkv_cache {
    qkv::KvCache cache;
};

namespace qkv::c_api {

/// NULL: the calling thread alone.
inline const Runtime& runtime_of(const qkv_runtime* runtime) {
    return runtime == nullptr ? Runtime::serial() : runtime->runtime;
}

}  // namespace qkv::c_api
