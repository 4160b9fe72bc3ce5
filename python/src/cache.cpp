// Key/value caches and attention over them.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/vector.h>

#include <mutex>
#include <optional>
#include <shared_mutex>
#include <string>
#include <utility>
#include <vector>

#include "arguments.hpp"
#include "bindings.hpp"
#include "define.hpp"
#include "options.hpp"
#include "qkv/kv_cache.hpp"
#include "recipe.hpp"
#include "rope.hpp"
#include "runtime.hpp"

namespace qkv::python {

namespace {

using Numbers = std::vector<std::int64_t>;

/// A cache that several Python threads may use: attention shares it, whatever changes it has it alone. Locks are waited
/// for without the GIL.
class HeldCache {
public:
    explicit HeldCache(KvCache cache) : cache_(std::move(cache)) {}

    template <class Body>
    auto change(const Body& body) {
        const nb::gil_scoped_release without_gil;
        const std::unique_lock alone(mutex_);
        return body(cache_);
    }
    template <class Body>
    auto read(const Body& body) const {
        const nb::gil_scoped_release without_gil;
        const std::shared_lock together(mutex_);
        return body(cache_);
    }

private:
    KvCache cache_;
    mutable std::shared_mutex mutex_;
};

DType to_dtype(const std::string& name) {
    for (const auto& [known, dtype] : {std::pair{"float32", DType::f32}, std::pair{"float16", DType::f16},
                                       std::pair{"bfloat16", DType::bf16}, std::pair{"float64", DType::f64}}) {
        if (name == known) {
            return dtype;
        }
    }
    raise(PyExc_ValueError, "dtype is '", name, "'; expected 'float32', 'bfloat16', 'float16' or 'float64'");
}

/// Which sequences a call is about, with its numbers held.
struct HeldBatch {
    Numbers sequences, cumulative;

    HeldBatch(nb::handle ids, nb::handle tokens)
        : sequences(one_or_more_integers(ids, "sequences")),
          cumulative(tokens.is_none() ? Numbers() : integers(tokens, "cumulative_tokens")) {}
    [[nodiscard]] CacheBatch batch() const { return {sequences, cumulative}; }
};

Operand read_tokens(nb::handle object, const char* name) {
    Operand operand(object, name);
    if (operand.rank() != 4) {
        raise(PyExc_ValueError, name, " has shape ", operand.shape_text(), "; expected [B, H, T, D]");
    }
    return operand;
}

KvLayout layout(std::int64_t kv_heads, std::int64_t head_dim, std::optional<std::int64_t> value_dim,
                const std::string& dtype) {
    return {kv_heads, head_dim, value_dim, to_dtype(dtype)};
}

HeldCache* contiguous(std::int64_t kv_heads, std::int64_t head_dim, std::int64_t capacity, std::int64_t sequences,
                      std::optional<std::int64_t> value_dim, const std::string& dtype) {
    return new HeldCache(KvCache::contiguous(layout(kv_heads, head_dim, value_dim, dtype), {capacity, sequences}));
}

HeldCache* windowed(std::int64_t kv_heads, std::int64_t head_dim, std::int64_t window, std::int64_t max_append,
                    std::int64_t sequences, std::int64_t block_tokens, std::optional<std::int64_t> value_dim,
                    const std::string& dtype) {
    return new HeldCache(
        KvCache::windowed(layout(kv_heads, head_dim, value_dim, dtype), {window, max_append, sequences, block_tokens}));
}

HeldCache* paged(std::int64_t kv_heads, std::int64_t head_dim, std::int64_t blocks, std::int64_t block_tokens,
                 std::optional<std::int64_t> value_dim, const std::string& dtype) {
    return new HeldCache(KvCache::paged(layout(kv_heads, head_dim, value_dim, dtype), {blocks, block_tokens}));
}

void append(HeldCache& self, nb::handle k, nb::handle v, nb::handle sequences, nb::handle cumulative_tokens,
            const HeldRope* rope) {
    const Operand keys = read_tokens(k, "k");
    const Operand values = read_tokens(v, "v");
    const HeldBatch held(sequences, cumulative_tokens);
    const ConstTensorView key_view = keys.view();
    const ConstTensorView value_view = values.view();
    self.change([&](KvCache& cache) {
        if (rope != nullptr) {
            cache.append(held.batch(), key_view, value_view, rope->rope);
        } else {
            cache.append(held.batch(), key_view, value_view);
        }
    });
}

Numbers next_positions(const HeldCache& self, nb::handle tokens, nb::handle sequences, nb::handle cumulative_tokens) {
    const Operand given = read_tokens(tokens, "tokens");
    const HeldBatch held(sequences, cumulative_tokens);
    const ConstTensorView view = given.view();
    return self.read([&](const KvCache& cache) { return cache.next_positions(held.batch(), view); });
}

nb::object attend(const HeldCache& self, nb::handle q, nb::handle sequences, nb::handle cumulative_tokens,
                  nb::handle out, nb::handle lse, const HeldMask* mask, std::optional<double> scale, double softcap,
                  nb::handle sinks, const Offsets* offsets, const Runtime* runtime) {
    const Operand query = read_tokens(q, "q");
    const HeldBatch held(sequences, cumulative_tokens);
    const KvLayout shape = self.read([](const KvCache& cache) { return cache.layout(); });
    const Wanted context(out.is_none() ? nb::handle(Py_True) : out, "out",
                         {query.size(0), query.size(1), query.size(2), *shape.value_dim}, query.dtype(), q);
    check_rank(context.memory(), query);
    const Operand rows = optional_operand(lse, "lse", Operand::Access::write);
    const Options options({mask, scale, softcap, sinks, nullptr, offsets});
    AttentionExtras extras;
    if (rows.given()) {
        extras.lse = rows.row_view();
    }
    const auto threads = runtime_of(runtime);
    const ConstTensorView query_view = query.view();
    const TensorView context_view = context.memory().view();
    self.read([&](const KvCache& cache) {
        attention(query_view, cache, held.batch(), context_view, options.value(), extras, *threads);
    });
    return context.result();
}

/// "<qkv.KvCache paged: 2 heads of 64, float16, 3 sequences, 250 of 256 blocks of 64 tokens free>"
std::string text_of(const KvCache& cache) {
    const KvLayout& layout = cache.layout();
    std::string text = concat("<qkv.KvCache ",
                              cache.window()     ? concat("windowed ", *cache.window())
                              : cache.capacity() ? "contiguous"
                                                 : "paged",
                              ": ", layout.kv_heads, " heads of ", layout.head_dim);
    if (*layout.value_dim != layout.head_dim) {
        text += concat(" and ", *layout.value_dim);
    }
    return concat(text, ", ", python_name(layout.dtype), ", ", cache.sequences(), " sequences, ", cache.free_blocks(),
                  " of ", cache.blocks(), " blocks of ", cache.block_tokens(), " tokens free>");
}

/// Defines a read-only property that a member function of KvCache gives.
template <auto Member>
void property(nb::class_<HeldCache>& type, const char* name, const char* doc) {
    type.def_prop_ro(
        name, [](const HeldCache& self) { return self.read([](const KvCache& cache) { return (cache.*Member)(); }); },
        doc);
}

/// Defines a method that a const member function of KvCache about one sequence is.
template <auto Member>
void question(nb::class_<HeldCache>& type, const char* name, const char* signature, const char* doc) {
    define(
        type, name,
        [](const HeldCache& self, std::int64_t sequence) {
            return self.read([&](const KvCache& cache) { return (cache.*Member)(sequence); });
        },
        nb::arg("sequence"), nb::sig(signature), doc);
}

void bind_making(nb::class_<HeldCache>& type) {
    define_static(type, "contiguous", &contiguous, nb::arg("kv_heads"), nb::arg("head_dim"), nb::arg("capacity"),
                  nb::arg("sequences") = 1, nb::arg("value_dim") = nb::none(), nb::arg("dtype") = "float32",
                  nb::rv_policy::take_ownership,
                  nb::sig("def contiguous(kv_heads: int, head_dim: int, capacity: int, sequences: int = 1, "
                          "value_dim: int | None = None, dtype: str = 'float32') -> KvCache"),
                  "One block of `capacity` tokens for each sequence.");
    define_static(
        type, "windowed", &windowed, nb::arg("kv_heads"), nb::arg("head_dim"), nb::arg("window"),
        nb::arg("max_append") = 1, nb::arg("sequences") = 1, nb::arg("block_tokens") = 64,
        nb::arg("value_dim") = nb::none(), nb::arg("dtype") = "float32", nb::rv_policy::take_ownership,
        nb::sig("def windowed(kv_heads: int, head_dim: int, window: int, max_append: int = 1, "
                "sequences: int = 1, block_tokens: int = 64, value_dim: int | None = None, "
                "dtype: str = 'float32') -> KvCache"),
        "A ring: the last `window` tokens of each sequence, and room for `max_append` that are appended before\n"
        "attention. A longer append is taken; queries that look back past what the ring then holds are refused.");
    define_static(type, "paged", &paged, nb::arg("kv_heads"), nb::arg("head_dim"), nb::arg("blocks"),
                  nb::arg("block_tokens") = 64, nb::arg("value_dim") = nb::none(), nb::arg("dtype") = "float32",
                  nb::rv_policy::take_ownership,
                  nb::sig("def paged(kv_heads: int, head_dim: int, blocks: int, block_tokens: int = 64, "
                          "value_dim: int | None = None, dtype: str = 'float32') -> KvCache"),
                  "Blocks out of a pool as they are needed, shared between sequences with a common prefix.");
}

void bind_changing(nb::class_<HeldCache>& type) {
    define(
        type, "add", [](HeldCache& self) { return self.change([](KvCache& cache) { return cache.add(); }); },
        nb::sig("def add(self) -> int"), "A new, empty sequence: its number, which no other gets.");
    define(
        type, "fork",
        [](HeldCache& self, std::int64_t sequence, std::optional<std::int64_t> tokens) {
            return self.change([&](KvCache& cache) { return cache.fork(sequence, tokens); });
        },
        nb::arg("sequence"), nb::arg("tokens") = nb::none(),
        nb::sig("def fork(self, sequence: int, tokens: int | None = None) -> int"),
        "A new sequence with the first `tokens` tokens of another (all by default), in the same blocks.");
    define(
        type, "remove",
        [](HeldCache& self, std::int64_t sequence) { self.change([&](KvCache& cache) { cache.remove(sequence); }); },
        nb::arg("sequence"), nb::sig("def remove(self, sequence: int) -> None"), "Gives the sequence's blocks back.");
    define(
        type, "append", &append, nb::arg("k"), nb::arg("v"), nb::arg("sequences"),
        nb::arg("cumulative_tokens") = nb::none(), nb::arg("rope") = nb::none(),
        nb::sig("def append(self, k: object, v: object, sequences: int | collections.abc.Sequence[int], "
                "cumulative_tokens: object | None = None, rope: Rope | None = None) -> None"),
        "k [B, Hkv, T, D], v [B, Hkv, T, Dv]: row b belongs to sequences[b]. With cumulative_tokens they are packed,\n"
        "[1, Hkv, all tokens, ..], and tokens [cumulative[s], cumulative[s+1]) belong to sequences[s]. rope turns\n"
        "each key at its position. An append that raises leaves the cache as it was.");
    define(
        type, "truncate",
        [](HeldCache& self, std::int64_t sequence, std::int64_t tokens) {
            self.change([&](KvCache& cache) { cache.truncate(sequence, tokens); });
        },
        nb::arg("sequence"), nb::arg("tokens"), nb::sig("def truncate(self, sequence: int, tokens: int) -> None"),
        "Forgets all but the first `tokens` tokens.");
    define(
        type, "reset",
        [](HeldCache& self, std::int64_t sequence) { self.change([&](KvCache& cache) { cache.reset(sequence); }); },
        nb::arg("sequence"), nb::sig("def reset(self, sequence: int) -> None"),
        "Forgets all tokens; the sequence stays.");
}

void bind_asking(nb::class_<HeldCache>& type) {
    define(type, "next_positions", &next_positions, nb::arg("tokens"), nb::arg("sequences"),
           nb::arg("cumulative_tokens") = nb::none(),
           nb::sig("def next_positions(self, tokens: object, sequences: int | collections.abc.Sequence[int], "
                   "cumulative_tokens: object | None = None) -> list[int]"),
           "The positions that an append of tokens shaped as `tokens` would give them, for Rope.apply on the queries.");
    question<&KvCache::size>(type, "size", "def size(self, sequence: int) -> int",
                             "Tokens appended so far: the position of the next one.");
    question<&KvCache::first>(type, "first", "def first(self, sequence: int) -> int",
                              "Position of the oldest token still held: 0 but for rings.");
    question<&KvCache::block_table>(type, "block_table", "def block_table(self, sequence: int) -> list[int]",
                                    "Numbers of the blocks that hold its tokens, oldest first.");
    property<&KvCache::window>(type, "window", "Of a windowed cache, else None.");
    property<&KvCache::capacity>(type, "capacity", "Of a contiguous cache's sequences, else None.");
    property<&KvCache::block_tokens>(type, "block_tokens", "Tokens of a block.");
    property<&KvCache::sequences>(type, "sequences", "How many there are now.");
    property<&KvCache::blocks>(type, "blocks", "Of the pool.");
    property<&KvCache::free_blocks>(type, "free_blocks", "Of the pool, free now.");
    property<&KvCache::shared_blocks>(type, "shared_blocks", "Held by more than one sequence.");
    property<&KvCache::bytes>(type, "nbytes", "Bytes of the pool.");
    define(
        type, "attention", &attend, nb::arg("q"), nb::arg("sequences"), nb::kw_only(),
        nb::arg("cumulative_tokens") = nb::none(), nb::arg("out") = nb::none(), nb::arg("lse") = nb::none(),
        nb::arg("mask") = nb::none(), nb::arg("scale") = nb::none(), nb::arg("softcap") = 0.0,
        nb::arg("sinks") = nb::none(), nb::arg("offsets") = nb::none(), nb::arg("runtime") = nb::none(),
        nb::sig("def attention(self, q: object, sequences: int | collections.abc.Sequence[int], *, "
                "cumulative_tokens: object | None = None, out: object | None = None, lse: object | None = None, "
                "mask: Mask | None = None, scale: float | None = None, softcap: float = 0.0, "
                "sinks: object | None = None, offsets: Offsets | None = None, "
                "runtime: Runtime | None = None) -> typing.Any"),
        "q [B, Hq, Tq, D] over the keys and values of each sequence -> [B, Hq, Tq, Dv]; packed as in append. The\n"
        "queries are the sequence's last Tq tokens: append first, then attend. One new token needs no mask, several\n"
        "usually want Mask.causal. lse: an array [B, Hq, Tq] to fill. The rest as in qkv.attention.");
}

}  // namespace

void bind_cache(nb::module_& module) {
    nb::class_<HeldCache> type(module, "KvCache",
                               "Keys and values kept from step to step, and attention of new queries over them\n"
                               "(docs/caches.md). Threads may share one: attention runs side by side, changes wait.\n\n"
                               ">>> import numpy, qkv\n"
                               ">>> cache = qkv.KvCache.paged(kv_heads=1, head_dim=2, blocks=4)\n"
                               ">>> sequence = cache.add()\n"
                               ">>> token = numpy.ones((1, 1, 1, 2), numpy.float32)\n"
                               ">>> cache.append(token, token, sequence)\n"
                               ">>> cache.attention(token, sequence).tolist()\n"
                               "[[[[1.0, 1.0]]]]");
    bind_making(type);
    bind_changing(type);
    bind_asking(type);
    type.def("__repr__", [](const HeldCache& self) { return self.read(&text_of); });
    refuse_copies(type,
                  "a qkv.KvCache cannot be copied or pickled; fork(sequence) makes a second sequence of its tokens");
}

}  // namespace qkv::python
