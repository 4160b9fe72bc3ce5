#include "support/attention_case.hpp"

#include <cmath>
#include <limits>

namespace support {

using qkv::Align;
using qkv::DType;
using qkv::Mask;

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

const char* align_name(Align align) { return align == Align::top_left ? "tl" : "br"; }

/// A function of score and place, and its derivative.
template <class T>
T bend(T s, std::int64_t head, std::int64_t query, std::int64_t key) {
    return s + T(0.03125) * s * s + T(0.125) * static_cast<T>((head + 2 * query + 3 * key) % 5);
}
constexpr auto kValue = [](auto s, std::int64_t, std::int64_t head, std::int64_t query, std::int64_t key) {
    return bend(s, head, query, key);
};
constexpr auto kDerivative = [](auto s, std::int64_t, std::int64_t, std::int64_t, std::int64_t) {
    using T = decltype(s);
    return T(1) + T(0.0625) * s;
};
const qkv::ElementwiseScore kBend{kValue, kDerivative};

}  // namespace

AttentionCase::AttentionCase(std::uint64_t case_seed) : seed(case_seed), random_(case_seed) {
    make_shapes();
    make_scores();
    make_offsets();
    make_bands();
    make_limits();
    make_views();
    make_blocks();
    make_dropout();
    make_function();
    make_tensors();
    threads = pick(random_, 1, 4);
    if (chance(random_, 0.5)) {
        poison_unused();
    }
}

oracle::Arithmetic arithmetic(qkv::DType dtype) {
    switch (dtype) {
        case DType::bf16:
            return oracle::Arithmetic::bf16;
        case DType::f16:
            return oracle::Arithmetic::f16;
        case DType::f64:
            return oracle::Arithmetic::f64;
        default:
            return oracle::Arithmetic::f32;
    }
}

void AttentionCase::make_shapes() {
    constexpr std::int64_t kTokens[] = {1, 2, 3, 5, 7, 9, 16, 17, 31, 33, 40, 63, 64, 65, 70, 97, 129, 0};
    constexpr std::int64_t kDims[] = {1, 2, 3, 4, 5, 8, 13, 16, 17, 32, 33, 64, 80, 128, 192, 576, 0};
    const auto tokens = [&] {
        return kTokens[static_cast<std::size_t>(pick(random_, 0, chance(random_, 0.3) ? 17 : 9))];
    };
    const auto dim = [&] { return kDims[static_cast<std::size_t>(pick(random_, 0, chance(random_, 0.15) ? 16 : 10))]; };
    const double type = std::uniform_real_distribution<double>()(random_);
    dtype = type < 0.5 ? DType::f32 : type < 0.65 ? DType::bf16 : type < 0.8 ? DType::f16 : DType::f64;
    compute = dtype == DType::f64 ? DType::f64 : DType::f32;
    dense.score_rounding = dtype == DType::bf16 ? 0x1p-16 : dtype == DType::f16 ? 0x1p-13 : 1.0;
    dense.kv_heads = pick(random_, 1, 3);
    dense.heads = dense.kv_heads * pick(random_, 1, 3);
    dense.head_dim = dim();
    dense.value_dim = chance(random_, 0.6) ? dense.head_dim : dim();
    packed_ = chance(random_, 0.2);
    if (packed_) {
        cumulative_queries_ = cumulative_keys_ = {0};
        const std::int64_t count = pick(random_, 1, 4);
        for (std::int64_t s = 0; s < count; ++s) {
            cumulative_queries_.push_back(cumulative_queries_.back() + tokens());
            cumulative_keys_.push_back(cumulative_keys_.back() + tokens());
        }
        dense.queries = cumulative_queries_.back();
        dense.keys = cumulative_keys_.back();
        for (std::size_t s = 0; s + 1 < cumulative_queries_.size(); ++s) {
            segments_.push_back({static_cast<std::int64_t>(s), 0, cumulative_queries_[s],
                                 cumulative_queries_[s + 1] - cumulative_queries_[s], cumulative_keys_[s],
                                 cumulative_keys_[s + 1] - cumulative_keys_[s], 0});
        }
        options.mask = Mask::packed(cumulative_queries_, cumulative_keys_);
        note("packed");
    } else {
        dense.batch = pick(random_, 1, 3);
        dense.queries = tokens();
        dense.keys = chance(random_, 0.5) ? dense.queries : tokens();
        for (std::int64_t b = 0; b < dense.batch; ++b) {
            segments_.push_back({b, b, 0, dense.queries, 0, dense.keys, 0});
        }
    }
    dense.allowed.assign(static_cast<std::size_t>(dense.batch * dense.heads * dense.queries * dense.keys), 0);
    for (const Segment& s : segments_) {
        for (std::int64_t h = 0; h < dense.heads; ++h) {
            for (std::int64_t i = 0; i < s.queries; ++i) {
                for (std::int64_t j = 0; j < s.keys; ++j) {
                    dense.allowed[static_cast<std::size_t>(
                        dense.score_index(s.batch, h, s.query_start + i, s.key_start + j))] = 1;
                }
            }
        }
    }
    summary = std::string(name(dtype)) + " B" + std::to_string(dense.batch) + " H" + std::to_string(dense.heads) + "/" +
              std::to_string(dense.kv_heads) + " T" + std::to_string(dense.queries) + "x" + std::to_string(dense.keys) +
              " D" + std::to_string(dense.head_dim) + "/" + std::to_string(dense.value_dim);
}

template <class Keep>
void AttentionCase::restrict(Keep keep) {
    for (const Segment& s : segments_) {
        for (std::int64_t h = 0; h < dense.heads; ++h) {
            for (std::int64_t i = 0; i < s.queries; ++i) {
                for (std::int64_t j = 0; j < s.keys; ++j) {
                    if (!keep(s, h, i, j)) {
                        dense.allowed[static_cast<std::size_t>(
                            dense.score_index(s.batch, h, s.query_start + i, s.key_start + j))] = 0;
                    }
                }
            }
        }
    }
}

void AttentionCase::make_scores() {
    constexpr double kScales[] = {0.3, -0.5, 1.0, 0.0, 2.0};
    dense.scale = dense.head_dim == 0 ? 1.0 : 1.0 / std::sqrt(static_cast<double>(dense.head_dim));
    if (chance(random_, 0.2)) {
        dense.scale = kScales[pick(random_, 0, 4)];
        options.scale = dense.scale;
        note("scale");
    }
    if (chance(random_, 0.25)) {
        dense.softcap = options.softcap = static_cast<double>(pick(random_, 1, 12));
        note("softcap");
    }
}

void AttentionCase::make_offsets() {
    if (chance(random_, 0.15)) {
        options.offsets = {pick(random_, 0, 200), pick(random_, 0, 200), pick(random_, 0, 5), 0, 0};
        if (!packed_ && chance(random_, 0.5)) {
            options.offsets.queries = options.offsets.query + dense.queries + pick(random_, 1, 50);
            options.offsets.keys = options.offsets.key + dense.keys + pick(random_, 1, 50);
        }
        note("offsets");
    }
}

/// How far right of the top-left diagonal the bottom-right one lies.
std::int64_t AttentionCase::corner(const Segment& s) const {
    const qkv::Offsets& o = options.offsets;
    const std::int64_t queries = o.queries != 0 ? o.queries : o.query + s.queries;
    const std::int64_t keys = o.keys != 0 ? o.keys : o.key + s.keys;
    return (key_end_.empty() ? keys : key_end_[static_cast<std::size_t>(s.index)]) - queries;
}

void AttentionCase::make_limits() {
    // key_end was drawn in make_bands, which needs it.
    if (!key_end_.empty()) {
        options.mask = options.mask & Mask::key_end(key_end_);
        restrict([&](const Segment& s, auto, auto, auto j) {
            return options.offsets.key + j < key_end_[static_cast<std::size_t>(s.index)];
        });
        note("key_end");
    }
    if (chance(random_, 0.2)) {
        for (const Segment& s : segments_) {
            key_begin_.push_back(pick(random_, 0, options.offsets.key + s.keys));
        }
        options.mask = options.mask & Mask::key_begin(key_begin_);
        restrict([&](const Segment& s, auto, auto, auto j) {
            return options.offsets.key + j >= key_begin_[static_cast<std::size_t>(s.index)];
        });
        note("key_begin");
    }
}

void AttentionCase::make_bands() {
    if (chance(random_, 0.2)) {
        for (const Segment& s : segments_) {
            key_end_.push_back(pick(random_, 0, options.offsets.key + s.keys));
        }
    }
    const auto shift = [&](const Segment& s, Align align) { return align == Align::top_left ? 0 : corner(s); };
    const auto global = [&](std::int64_t i, std::int64_t j) {
        return (options.offsets.key + j) - (options.offsets.query + i);
    };
    if (chance(random_, 0.45)) {
        const std::int64_t kind = pick(random_, 0, 2);
        if (kind == 2) {
            const std::int64_t offset = pick(random_, -5, 20);
            options.mask = options.mask & Mask::causal(offset);
            restrict([&](const Segment&, auto, auto i, auto j) { return global(i, j) <= offset; });
            note("causal" + std::to_string(offset));
        } else {
            const Align align = kind == 0 ? Align::top_left : Align::bottom_right;
            options.mask = options.mask & Mask::causal(align);
            restrict([&](const Segment& s, auto, auto i, auto j) { return global(i, j) <= shift(s, align); });
            note(std::string("causal-") + align_name(align));
        }
    }
    if (chance(random_, 0.25)) {
        const Align align = chance(random_, 0.5) ? Align::top_left : Align::bottom_right;
        std::optional<std::int64_t> left, right;
        if (chance(random_, 0.8)) {
            left = pick(random_, 0, 40);
        }
        if (chance(random_, 0.7)) {
            right = pick(random_, 0, 40);
        }
        options.mask = options.mask & Mask::window(left, right, align);
        restrict([&](const Segment& s, auto, auto i, auto j) {
            const std::int64_t distance = global(i, j) - shift(s, align);
            return (!left || distance >= -*left) && (!right || distance <= *right);
        });
        note(std::string("window-") + align_name(align));
    }
    if (chance(random_, 0.2)) {
        const Align align = chance(random_, 0.5) ? Align::top_left : Align::bottom_right;
        const bool per_batch = chance(random_, 0.5);
        slopes_shape = {per_batch ? dense.batch : 1, dense.heads, 1, 1};
        const std::vector<double> values = normals(random_, slopes_shape[0] * dense.heads, compute, 0.2);
        slopes = allocate(slopes_shape, compute);
        write(slopes->view, values);
        options.mask = options.mask & Mask::alibi(slopes->view, align);
        dense.slopes.resize(static_cast<std::size_t>(dense.batch * dense.heads));
        for (std::int64_t b = 0; b < dense.batch; ++b) {
            for (std::int64_t h = 0; h < dense.heads; ++h) {
                dense.slopes[static_cast<std::size_t>(b * dense.heads + h)] =
                    values[static_cast<std::size_t>((per_batch ? b * dense.heads : 0) + h)];
            }
        }
        dense.distance.assign(static_cast<std::size_t>(dense.batch * dense.queries * dense.keys), 0.0);
        for (const Segment& s : segments_) {
            for (std::int64_t i = 0; i < s.queries; ++i) {
                for (std::int64_t j = 0; j < s.keys; ++j) {
                    const std::int64_t at =
                        (s.batch * dense.queries + s.query_start + i) * dense.keys + s.key_start + j;
                    dense.distance[static_cast<std::size_t>(at)] =
                        static_cast<double>(std::abs(global(i, j) - shift(s, align)));
                }
            }
        }
        note(std::string("alibi-") + align_name(align));
    }
}

void AttentionCase::make_views() {
    const qkv::Shape4 full{dense.batch, dense.heads, dense.queries, dense.keys};
    const auto broadcast_shape = [&] {
        qkv::Shape4 shape = full;
        for (auto& size : shape) {
            size = chance(random_, 0.4) ? 1 : size;
        }
        return shape;
    };
    // Dense index → index into a tensor of `shape` that is repeated along its dimensions of size 1.
    const auto spread = [&](const qkv::Shape4& shape, auto visit) {
        for (std::int64_t b = 0; b < full[0]; ++b) {
            for (std::int64_t h = 0; h < full[1]; ++h) {
                for (std::int64_t i = 0; i < full[2]; ++i) {
                    for (std::int64_t j = 0; j < full[3]; ++j) {
                        const std::int64_t at =
                            (((shape[0] == 1 ? 0 : b) * shape[1] + (shape[1] == 1 ? 0 : h)) * shape[2] +
                             (shape[2] == 1 ? 0 : i)) *
                                shape[3] +
                            (shape[3] == 1 ? 0 : j);
                        visit(static_cast<std::size_t>(dense.score_index(b, h, i, j)), static_cast<std::size_t>(at));
                    }
                }
            }
        }
    };
    const auto count = [](const qkv::Shape4& shape) { return shape[0] * shape[1] * shape[2] * shape[3]; };
    if (chance(random_, 0.25)) {
        const qkv::Shape4 shape = broadcast_shape();
        std::vector<double> values(static_cast<std::size_t>(count(shape)));
        const double density = chance(random_, 0.5) ? 0.7 : 0.1;
        for (double& value : values) {
            value = chance(random_, density) ? 1.0 : 0.0;
        }
        views_.push_back(allocate(shape, DType::boolean, Layout::contiguous, pick_side(random_)));
        write(views_.back().view, values);
        options.mask = options.mask & Mask::allowed(views_.back().view);
        spread(shape, [&](std::size_t to, std::size_t from) {
            dense.allowed[to] = static_cast<char>(dense.allowed[to] != 0 && values[from] != 0.0);
        });
        note("allowed" + to_string(views_.back().view));
    }
    if (chance(random_, 0.3)) {
        constexpr DType kTypes[] = {DType::f32, DType::bf16, DType::f16};
        const DType type = dtype == DType::f64 ? DType::f64 : kTypes[pick(random_, 0, 2)];
        bias_shape = broadcast_shape();
        std::vector<double> values = normals(random_, count(bias_shape), type);
        if (chance(random_, 0.5)) {
            for (double& value : values) {
                value = chance(random_, 0.2) ? -kInfinity : value;
            }
        }
        bias = allocate(bias_shape, type, pick_layout(random_), pick_side(random_));
        write(bias->view, values);
        options.mask = options.mask & Mask::bias(bias->view);
        dense.bias.resize(dense.allowed.size());
        spread(bias_shape, [&](std::size_t to, std::size_t from) { dense.bias[to] = values[from]; });
        note("bias" + to_string(bias->view));
    }
}

void AttentionCase::make_blocks() {
    if (!chance(random_, 0.12)) {
        return;
    }
    constexpr std::int64_t kSizes[] = {1, 3, 16, 64, 128};
    qkv::BlockList blocks;
    blocks.query_block = kSizes[pick(random_, 0, 4)];
    blocks.key_block = kSizes[pick(random_, 0, 4)];
    blocks.sequences = chance(random_, 0.5) ? 1 : static_cast<std::int64_t>(segments_.size());
    blocks.heads = chance(random_, 0.5) ? 1 : dense.heads;
    std::int64_t queries = 0;
    std::int64_t keys = 0;
    for (const Segment& s : segments_) {
        queries = std::max(queries, s.queries);
        keys = std::max(keys, s.keys);
    }
    const std::int64_t query_blocks = (queries + blocks.query_block - 1) / blocks.query_block;
    const std::int64_t key_blocks = (keys + blocks.key_block - 1) / blocks.key_block;
    std::vector<char> listed(static_cast<std::size_t>(blocks.sequences * blocks.heads * query_blocks * key_blocks));
    starts_ = {0};
    for (std::size_t list = 0; list < static_cast<std::size_t>(blocks.sequences * blocks.heads * query_blocks);
         ++list) {
        for (std::int64_t block = 0; block < key_blocks; ++block) {
            if (chance(random_, 0.6)) {
                key_blocks_.push_back(block);
                listed[list * static_cast<std::size_t>(key_blocks) + static_cast<std::size_t>(block)] = 1;
            }
        }
        starts_.push_back(static_cast<std::int64_t>(key_blocks_.size()));
    }
    blocks.starts = starts_;
    blocks.key_blocks = key_blocks_;
    options.mask = options.mask & Mask::blocks(blocks);
    restrict([&](const Segment& s, auto h, auto i, auto j) {
        const std::int64_t list =
            ((blocks.sequences == 1 ? 0 : s.index) * blocks.heads + (blocks.heads == 1 ? 0 : h)) * query_blocks +
            i / blocks.query_block;
        return listed[static_cast<std::size_t>(list * key_blocks + j / blocks.key_block)] != 0;
    });
    note("blocks");
}

void AttentionCase::make_dropout() {
    const double kind = std::uniform_real_distribution<double>()(random_);
    if (kind > 0.3) {
        return;
    }
    const double p = chance(random_, 0.1) ? 1.0 : 0.1 * static_cast<double>(pick(random_, 0, 8));
    options.dropout.p = p;
    dense.factors.assign(dense.allowed.size(), 0.0);
    const double factor = p == 1.0 ? 0.0 : 1.0 / (1.0 - p);
    if (kind < 0.1) {
        views_.push_back(allocate({dense.batch, dense.heads, dense.queries, dense.keys}, DType::boolean));
        std::vector<double> keep(dense.allowed.size());
        for (std::size_t at = 0; at < keep.size(); ++at) {
            keep[at] = chance(random_, 0.6) ? 1.0 : 0.0;
            dense.factors[at] = keep[at] * factor;
        }
        write(views_.back().view, keep);
        options.dropout.keep = views_.back().view;
        note("keep-mask");
        return;
    }
    options.dropout.seed = random_();
    if (chance(random_, 0.5)) {
        for (const Segment& s : segments_) {
            ids_.push_back(100 + 7 * s.index);
        }
        options.dropout.sequence_ids = ids_;
    }
    for (const Segment& s : segments_) {
        for (std::int64_t h = 0; h < dense.heads; ++h) {
            for (std::int64_t i = 0; i < s.queries; ++i) {
                for (std::int64_t j = 0; j < s.keys; ++j) {
                    const std::int64_t key = options.offsets.key + j;
                    const std::int64_t id = ids_.empty() ? s.index : ids_[static_cast<std::size_t>(s.index)];
                    const std::uint32_t counter[4] = {
                        static_cast<std::uint32_t>(key / 4), static_cast<std::uint32_t>(options.offsets.query + i),
                        static_cast<std::uint32_t>(options.offsets.head + h), static_cast<std::uint32_t>(id)};
                    const double draw =
                        oracle::philox(counter, options.dropout.seed, static_cast<int>(key % 4)) * 0x1p-32;
                    dense.factors[static_cast<std::size_t>(
                        dense.score_index(s.batch, h, s.query_start + i, s.key_start + j))] = draw >= p ? factor : 0.0;
                }
            }
        }
    }
    note("dropout");
}

void AttentionCase::make_function() {
    if (!chance(random_, 0.12)) {
        return;
    }
    options.score_function = kBend.function();
    // From a dense index to the place that the library names: within the segment, offsets added.
    const auto place = [this](std::int64_t b, std::int64_t i, std::int64_t j) {
        for (const Segment& s : segments_) {
            if (s.batch == b && i >= s.query_start && i < s.query_start + s.queries && j >= s.key_start &&
                j < s.key_start + s.keys) {
                return std::pair{options.offsets.query + i - s.query_start, options.offsets.key + j - s.key_start};
            }
        }
        return std::pair<std::int64_t, std::int64_t>{0, 0};  // not in one segment: masked anyway
    };
    dense.function = [this, place](double s, auto b, auto h, auto i, auto j) {
        const auto [query, key] = place(b, i, j);
        return bend(s, options.offsets.head + h, query, key);
    };
    dense.derivative = [](double s, auto...) { return 1.0 + 0.0625 * s; };
    note("function");
}

void AttentionCase::make_tensors() {
    const auto make = [&](Stored& stored, std::vector<double>& values, const qkv::Shape4& shape) {
        values = normals(random_, shape[0] * shape[1] * shape[2] * shape[3], dtype);
        stored = allocate(shape, dtype, pick_layout(random_), pick_side(random_));
        write(stored.view, values);
    };
    make(q, dense.q, {dense.batch, dense.heads, dense.queries, dense.head_dim});
    make(k, dense.k, {dense.batch, dense.kv_heads, dense.keys, dense.head_dim});
    make(v, dense.v, {dense.batch, dense.kv_heads, dense.keys, dense.value_dim});
    make(d_out, dense.d_out, {dense.batch, dense.heads, dense.queries, dense.value_dim});
    if (chance(random_, 0.25)) {
        dense.sinks = normals(random_, dense.heads, compute, 2.0);
        if (chance(random_, 0.2)) {
            dense.sinks[0] = -kInfinity;
        }
        sinks = allocate({1, dense.heads, 1, 1}, compute);
        write(sinks->view, dense.sinks);
        options.sinks = sinks->view;
        note("sinks");
    }
}

/// Keys and values that no query may attend to become NaN: nobody may notice.
void AttentionCase::poison_unused() {
    const std::int64_t group = dense.heads / dense.kv_heads;
    for (std::int64_t b = 0; b < dense.batch; ++b) {
        for (std::int64_t kv_head = 0; kv_head < dense.kv_heads; ++kv_head) {
            for (std::int64_t j = 0; j < dense.keys; ++j) {
                bool used = false;
                for (std::int64_t h = kv_head * group; h < (kv_head + 1) * group; ++h) {
                    for (std::int64_t i = 0; i < dense.queries; ++i) {
                        const auto at = static_cast<std::size_t>(dense.score_index(b, h, i, j));
                        used = used || (dense.allowed[at] != 0 && (dense.bias.empty() || dense.bias[at] != -kInfinity));
                    }
                }
                for (std::int64_t d = 0; d < dense.head_dim && !used; ++d) {
                    write_one(k.view, b, kv_head, j, d, std::nan(""));
                }
                for (std::int64_t d = 0; d < dense.value_dim && !used; ++d) {
                    write_one(v.view, b, kv_head, j, d, std::nan(""));
                }
            }
        }
    }
    note("poison");
}

}  // namespace support
