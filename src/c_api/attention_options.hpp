// The options and extras of an attention call, over tensors or over a cache.
#pragma once

#include "qkv/attention.hpp"
#include "qkv/qkv.h"

namespace qkv::c_api {

/// The caller's options, kept for as long as a call runs: the score function reads them back.
class Options {
public:
    explicit Options(const qkv_attention_options* options);
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

[[nodiscard]] AttentionExtras to_extras(const qkv_attention_extras* extras);
/// The same for a question about how large the workspace must be.
[[nodiscard]] AttentionExtras without_workspace(AttentionExtras extras);

}  // namespace qkv::c_api
