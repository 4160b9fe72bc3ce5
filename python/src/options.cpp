#include "options.hpp"

#include <nanobind/operators.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/vector.h>

#include <span>
#include <string>
#include <utility>

#include "define.hpp"

namespace qkv::python {

namespace {

using Numbers = std::vector<std::int64_t>;

std::shared_ptr<const Operand> hold(nb::handle object, const char* name) {
    return std::make_shared<const Operand>(object, name);
}

std::shared_ptr<const Numbers> hold_integers(nb::handle object, const char* name) {
    return std::make_shared<const Numbers>(integers(object, name));
}

nb::object to_tuple(const Numbers& numbers) { return nb::steal(PySequence_Tuple(nb::cast(numbers).ptr())); }

Align to_align(nb::handle text, const std::string& expected = "'top_left' or 'bottom_right'") {
    if (!PyUnicode_Check(text.ptr())) {
        refuse(text, "align", expected);
    }
    const auto align = nb::cast<std::string>(text);
    if (align != "top_left" && align != "bottom_right") {
        raise(PyExc_ValueError, "align is ", nb::repr(text).c_str(), "; expected ", expected);
    }
    return align == "top_left" ? Align::top_left : Align::bottom_right;
}

HeldMask causal(nb::handle align) {
    const std::string expected = "'top_left', 'bottom_right' or a whole number";
    if (PyUnicode_Check(align.ptr())) {
        return {Mask::causal(to_align(align, expected)), {}, {{"Mask.causal", {{"align", nb::borrow(align)}}}}};
    }
    const std::int64_t offset = to_integer(align, "align", expected);
    return {Mask::causal(offset), {}, {{"Mask.causal", {{"align", nb::cast(offset)}}}}};
}

HeldMask window(std::optional<std::int64_t> left, std::optional<std::int64_t> right, nb::handle align) {
    return {Mask::window(left, right, to_align(align)),
            {},
            {{"Mask.window", {{"left", nb::cast(left)}, {"right", nb::cast(right)}, {"align", nb::borrow(align)}}}}};
}

HeldMask allowed(nb::handle array) {
    auto held = hold(array, "allowed");
    return {Mask::allowed(held->view()), {held}, {{"Mask.allowed", {{"allowed", nb::borrow(array)}}}}};
}

HeldMask bias(nb::handle array) {
    auto held = hold(array, "bias");
    return {Mask::bias(held->view()), {held}, {{"Mask.bias", {{"bias", nb::borrow(array)}}}}};
}

HeldMask alibi(nb::handle slopes, nb::handle align) {
    auto held = hold(slopes, "slopes");
    return {Mask::alibi(held->head_view(), to_align(align)),
            {held},
            {{"Mask.alibi", {{"slopes", nb::borrow(slopes)}, {"align", nb::borrow(align)}}}}};
}

HeldMask key_begin(nb::handle begin) {
    auto held = hold_integers(begin, "begin");
    return {Mask::key_begin(*held), {held}, {{"Mask.key_begin", {{"begin", to_tuple(*held)}}}}};
}

HeldMask key_end(nb::handle end) {
    auto held = hold_integers(end, "end");
    return {Mask::key_end(*held), {held}, {{"Mask.key_end", {{"end", to_tuple(*held)}}}}};
}

HeldMask packed(nb::handle queries, nb::handle keys) {
    auto held_queries = hold_integers(queries, "cumulative_queries");
    auto held_keys = hold_integers(keys, "cumulative_keys");
    return {Mask::packed(*held_queries, *held_keys),
            {held_queries, held_keys},
            {{"Mask.packed",
              {{"cumulative_queries", to_tuple(*held_queries)}, {"cumulative_keys", to_tuple(*held_keys)}}}}};
}

HeldMask blocks(std::int64_t query_block, std::int64_t key_block, nb::handle starts, nb::handle key_blocks,
                std::int64_t sequences, std::int64_t heads) {
    auto held_starts = hold_integers(starts, "starts");
    auto held_blocks = hold_integers(key_blocks, "key_blocks");
    const BlockList list{query_block, key_block, sequences, heads, *held_starts, *held_blocks};
    return {Mask::blocks(list),
            {held_starts, held_blocks},
            {{"Mask.blocks",
              {{"query_block", nb::cast(query_block)},
               {"key_block", nb::cast(key_block)},
               {"starts", to_tuple(*held_starts)},
               {"key_blocks", to_tuple(*held_blocks)},
               {"sequences", nb::cast(sequences)},
               {"heads", nb::cast(heads)}}}}};
}

HeldMask both(const HeldMask& a, const HeldMask& b) {
    HeldMask all{a.mask & b.mask, a.held, a.parts};
    all.held.insert(all.held.end(), b.held.begin(), b.held.end());
    all.parts.insert(all.parts.end(), b.parts.begin(), b.parts.end());
    return all;
}

std::string text_of(const HeldMask& mask) {
    std::string text;
    for (const Recipe& part : mask.parts) {
        text += concat(text.empty() ? "" : " & ", part.text());
    }
    return text.empty() ? "qkv.Mask()" : text;
}

nb::tuple reduce(const HeldMask& mask) {
    nb::list parts;
    for (const Recipe& part : mask.parts) {
        parts.append(part.pair());
    }
    return reduced("join", nb::tuple(parts));
}

void bind_mask(nb::module_& module) {
    nb::class_<HeldMask> type(
        module, "Mask",
        "Who may attend to whom: named values that combine with `&`. True means \"may attend\".\n\n"
        "    Mask.causal(\"top_left\") & Mask.key_end([5, 3])\n\n"
        "A mask refers to the arrays it was made of and keeps them alive; lists are copied. Shapes are checked by the\n"
        "call that uses it. `align` says which corner of the scores a diagonal runs through when there are more keys\n"
        "than queries or fewer: \"top_left\" (PyTorch's is_causal) or \"bottom_right\" (decoding).");
    define(
        type, "__init__", [](HeldMask* self) { new (self) HeldMask(); }, nb::sig("def __init__(self) -> None"),
        "A mask that allows all.");
    define_static(type, "causal", &causal, nb::arg("align"),
                  nb::sig("def causal(align: typing.Literal['top_left', 'bottom_right'] | int) -> Mask"),
                  "Query i sees keys up to its own place; with a whole number n, keys up to i + n.");
    define_static(type, "window", &window, nb::arg("left"), nb::arg("right"), nb::arg("align"),
                  nb::sig("def window(left: int | None, right: int | None, "
                          "align: typing.Literal['top_left', 'bottom_right']) -> Mask"),
                  "Keys from `left` before the diagonal to `right` after it; None does not limit that side.");
    define_static(type, "allowed", &allowed, nb::arg("allowed"), nb::sig("def allowed(allowed: object) -> Mask"),
                  "A bool array, True = may attend, that broadcasts to [B, Hq, Tq, Tk].");
    define_static(type, "bias", &bias, nb::arg("bias"), nb::sig("def bias(bias: object) -> Mask"),
                  "A float array that broadcasts to [B, Hq, Tq, Tk], added to the scores after softcap; -inf masks.");
    define_static(type, "alibi", &alibi, nb::arg("slopes"), nb::arg("align") = "bottom_right",
                  nb::sig("def alibi(slopes: object, "
                          "align: typing.Literal['top_left', 'bottom_right'] = 'bottom_right') -> Mask"),
                  "Adds -slope·|query - key| to the scores. `slopes` is float32, [Hq] or [B, Hq].");
    define_static(type, "key_begin", &key_begin, nb::arg("begin"), nb::sig("def key_begin(begin: object) -> Mask"),
                  "The first key of each sequence (left padding): whole numbers, [B].");
    define_static(type, "key_end", &key_end, nb::arg("end"), nb::sig("def key_end(end: object) -> Mask"),
                  "One past the last key of each sequence (right padding): whole numbers, [B].");
    define_static(type, "packed", &packed, nb::arg("cumulative_queries"), nb::arg("cumulative_keys"),
                  nb::sig("def packed(cumulative_queries: object, cumulative_keys: object) -> Mask"),
                  "A packed batch, B = 1: sequence s owns queries [queries[s], queries[s+1]) and keys likewise.");
    define_static(type, "blocks", &blocks, nb::arg("query_block"), nb::arg("key_block"), nb::arg("starts"),
                  nb::arg("key_blocks"), nb::arg("sequences") = 1, nb::arg("heads") = 1,
                  nb::sig("def blocks(query_block: int, key_block: int, starts: object, key_blocks: object, "
                          "sequences: int = 1, heads: int = 1) -> Mask"),
                  "Block-sparse attention: the key blocks that each block of queries may attend to.\n"
                  "List ((s·heads + h)·query_blocks + n) is key_blocks[starts[list] : starts[list + 1]], ascending.");
    type.def("__and__", &both, nb::arg("other"), nb::is_operator(), "What both allow.");
    type.def("__repr__", &text_of).def("__reduce__", &reduce, nb::sig(kReduce));
}

void bind_dropout(nb::module_& module) {
    nb::class_<HeldDropout> type(module, "Dropout",
                                 "Dropout on the weights, drawn by Philox4x32-10 from the seed and the weight's place, "
                                 "so that backward draws it\n"
                                 "again and neither batch nor threads change it.");
    define(
        type, "__init__",
        [](HeldDropout* self, double p, std::uint64_t seed, nb::handle keep, nb::handle sequence_ids) {
            auto held = keep.is_none() ? nullptr : hold(keep, "keep");
            Numbers ids = sequence_ids.is_none() ? Numbers() : integers(sequence_ids, "sequence_ids");
            const Recipe recipe{"Dropout",
                                {{"p", nb::cast(p)},
                                 {"seed", nb::cast(seed)},
                                 {"keep", nb::borrow(keep)},
                                 {"sequence_ids", sequence_ids.is_none() ? nb::none() : to_tuple(ids)}}};
            new (self) HeldDropout{p, seed, std::move(held), std::move(ids), recipe};
        },
        nb::arg("p"), nb::arg("seed") = 0, nb::arg("keep") = nb::none(), nb::arg("sequence_ids") = nb::none(),
        nb::sig("def __init__(self, p: float, seed: int = 0, keep: object | None = None, "
                "sequence_ids: object | None = None) -> None"),
        "p: probability of dropping a weight, 0 to 1. keep: in place of the draw, a bool array (True = keep) that\n"
        "broadcasts to [B, Hq, Tq, Tk]. sequence_ids: whole numbers [B], for draws that follow a sequence from "
        "batch\n"
        "to batch.");
    type.def_ro("p", &HeldDropout::p, "Probability of dropping a weight.")
        .def_ro("seed", &HeldDropout::seed, "Seed of the draw.");
    define_copies(type, [](const HeldDropout& self) { return self.recipe; });
}

void bind_offsets(nb::module_& module) {
    nb::class_<Offsets> type(
        module, "Offsets",
        "Where a call's tokens and heads lie in a larger problem that is spread over several calls.");
    define(
        type, "__init__",
        [](Offsets* self, std::int64_t query, std::int64_t key, std::int64_t head, std::int64_t queries,
           std::int64_t keys) { new (self) Offsets{query, key, head, queries, keys}; },
        nb::arg("query") = 0, nb::arg("key") = 0, nb::arg("head") = 0, nb::arg("queries") = 0, nb::arg("keys") = 0,
        nb::sig("def __init__(self, query: int = 0, key: int = 0, head: int = 0, queries: int = 0, keys: int = 0) "
                "-> None"),
        "query, key, head: the places of the call's first ones. queries, keys: those of the whole sequence, for\n"
        "\"bottom_right\"; 0: offset plus the call's own.");
    type.def_ro("query", &Offsets::query)
        .def_ro("key", &Offsets::key)
        .def_ro("head", &Offsets::head)
        .def_ro("queries", &Offsets::queries)
        .def_ro("keys", &Offsets::keys);
    define_copies(type, [](const Offsets& self) {
        return Recipe{"Offsets",
                      {{"query", nb::cast(self.query)},
                       {"key", nb::cast(self.key)},
                       {"head", nb::cast(self.head)},
                       {"queries", nb::cast(self.queries)},
                       {"keys", nb::cast(self.keys)}}};
    });
}

}  // namespace

Options::Options(const OptionArguments& arguments) : sinks_(optional_operand(arguments.sinks, "sinks")) {
    if (arguments.mask != nullptr) {
        value_.mask = arguments.mask->mask;
    }
    value_.scale = arguments.scale;
    value_.softcap = arguments.softcap;
    if (sinks_.given()) {
        value_.sinks = sinks_.head_view();
    }
    if (arguments.dropout != nullptr) {
        const HeldDropout& dropout = *arguments.dropout;
        value_.dropout.p = dropout.p;
        value_.dropout.seed = dropout.seed;
        if (dropout.keep) {
            value_.dropout.keep = dropout.keep->view();
        }
        value_.dropout.sequence_ids = dropout.sequence_ids;
    }
    if (arguments.offsets != nullptr) {
        value_.offsets = *arguments.offsets;
    }
}

void bind_options(nb::module_& module) {
    bind_mask(module);
    bind_dropout(module);
    bind_offsets(module);
}

}  // namespace qkv::python
