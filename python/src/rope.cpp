#include "rope.hpp"

#include <nanobind/stl/vector.h>

#include <optional>
#include <string>
#include <utility>

#include "arguments.hpp"
#include "define.hpp"
#include "runtime.hpp"

namespace qkv::python {

namespace {

RopePairing to_pairing(const std::string& name) {
    if (name != "half_split" && name != "interleaved") {
        raise(PyExc_ValueError, "pairing is '", name, "'; expected 'half_split' or 'interleaved'");
    }
    return name == "interleaved" ? RopePairing::interleaved : RopePairing::half_split;
}

/// The entries of a scaling's dict, each taken once.
class Entries {
public:
    explicit Entries(nb::handle dict) {
        if (!PyDict_Check(dict.ptr())) {
            raise(PyExc_TypeError, "scaling is a ", Py_TYPE(dict.ptr())->tp_name, "; expected a dict or None");
        }
        left_ = nb::steal<nb::dict>(PyDict_Copy(dict.ptr()));
    }

    /// Sets `value` to the entry of that name, where there is one. Throws TypeError or ValueError naming it.
    template <class T>
    Entries& take(const char* name, T& value) {
        if (left_.contains(name)) {
            const nb::object entry = left_[name];
            value = python::take<T>(entry, concat("scaling['", name, "']").c_str());
            PyDict_DelItemString(left_.ptr(), name);
        }
        return *this;
    }

    /// Throws ValueError where something is left.
    void finish(const std::string& kind) const {
        for (const auto& [name, value] : left_) {
            raise(PyExc_ValueError, "scaling has ", nb::repr(name).c_str(), ", which '", kind, "' does not know");
        }
    }

private:
    nb::dict left_;
};

RopeScaling to_scaling(nb::handle dict) {
    if (dict.is_none()) {
        return {};
    }
    Entries entries(dict);
    std::string kind;
    entries.take("kind", kind);
    RopeScaling scaling;
    if (kind == "linear") {
        entries.take("factor", scaling.emplace<RopeLinear>().factor);
    } else if (kind == "ntk") {
        entries.take("factor", scaling.emplace<RopeNtk>().factor);
    } else if (kind == "dynamic_ntk") {
        auto& to = scaling.emplace<RopeDynamicNtk>();
        entries.take("factor", to.factor).take("original_context", to.original_context);
    } else if (kind == "yarn") {
        auto& to = scaling.emplace<RopeYarn>();
        entries.take("factor", to.factor).take("original_context", to.original_context);
        entries.take("beta_fast", to.beta_fast).take("beta_slow", to.beta_slow).take("truncate", to.truncate);
        entries.take("mscale", to.mscale).take("mscale_all_dim", to.mscale_all_dim);
        double factor = -1.0;
        if (entries.take("attention_factor", factor); factor != -1.0) {
            to.attention_factor = factor;
        }
    } else if (kind == "llama3") {
        auto& to = scaling.emplace<RopeLlama3>();
        entries.take("factor", to.factor).take("original_context", to.original_context);
        entries.take("low_freq_factor", to.low_freq_factor).take("high_freq_factor", to.high_freq_factor);
    } else {
        raise(PyExc_ValueError, "scaling['kind'] is '", kind,
              "'; expected 'linear', 'ntk', 'dynamic_ntk', 'yarn' or 'llama3'");
    }
    entries.finish(kind);
    return scaling;
}

void construct(HeldRope* self, std::int64_t head_dim, std::int64_t rotary_dim, double base, const std::string& pairing,
               nb::handle scaling) {
    const RopeOptions options{rotary_dim, base, to_pairing(pairing), to_scaling(scaling)};
    Rope rope(options, head_dim);
    const Recipe recipe{"Rope",
                        {{"head_dim", nb::cast(head_dim)},
                         {"rotary_dim", nb::cast(rope.rotary_dim())},
                         {"base", nb::cast(base)},
                         {"pairing", nb::cast(pairing)},
                         {"scaling", scaling.is_none() ? nb::none() : nb::steal(PyDict_Copy(scaling.ptr()))}}};
    new (self) HeldRope{std::move(rope), nullptr, nullptr, recipe};
}

HeldRope from_tables(nb::handle cos, nb::handle sin, std::int64_t head_dim, const std::string& pairing) {
    auto cosines = std::make_shared<const Operand>(cos, "cos");
    auto sines = std::make_shared<const Operand>(sin, "sin");
    return {Rope::from_tables(cosines->view(), sines->view(), head_dim, to_pairing(pairing)),
            cosines,
            sines,
            {"Rope.from_tables",
             {{"cos", nb::borrow(cos)},
              {"sin", nb::borrow(sin)},
              {"head_dim", nb::cast(head_dim)},
              {"pairing", nb::cast(pairing)}}}};
}

/// Rope::apply or apply_backward over arrays.
template <auto Turn>
nb::object turn(const HeldRope& self, nb::handle x, std::int64_t start, nb::handle positions, std::int64_t length,
                nb::handle out, const Runtime* runtime) {
    const Operand input = read_input(x, "x");
    Shape shape;
    for (int dim = 0; dim < input.rank(); ++dim) {
        shape.push_back(input.size(dim));
    }
    const Wanted result(out.is_none() ? nb::handle(Py_True) : out, "out", shape, input.dtype(), x);
    check_rank(result.memory(), input);
    const std::vector<std::int64_t> each =
        positions.is_none() ? std::vector<std::int64_t>() : integers(positions, "positions");
    const auto threads = runtime_of(runtime);
    const ConstTensorView from = input.view();
    const TensorView to = result.memory().view();
    {
        const nb::gil_scoped_release without_gil;
        (self.rope.*Turn)(from, to, {start, each, length}, *threads);
    }
    return result.result();
}

constexpr const char* kTurnDoc =
    "x [B, H, T, D], [H, T, D] or [T, D] -> the same shape. Token t stands at start + t, or at positions[b·T + t].\n"
    "length: of the sequence, for 'dynamic_ntk'. out: an array to fill, x itself too.";

}  // namespace

void bind_rope(nb::module_& module) {
    nb::class_<HeldRope> type(
        module, "Rope",
        "Rotary position embedding (Su et al. 2021): turns queries and keys by angles that grow with "
        "their position.\n\n"
        ">>> import numpy, qkv\n"
        ">>> qkv.Rope(2).apply(numpy.array([[1, 0], [1, 0]], numpy.float32)).round(4).tolist()[1]\n"
        "[0.5403000116348267, 0.8414999842643738]");
    define(type, "__init__", &construct, nb::arg("head_dim"), nb::arg("rotary_dim") = 0, nb::arg("base") = 10000.0,
           nb::arg("pairing") = "half_split", nb::arg("scaling") = nb::none(),
           nb::sig("def __init__(self, head_dim: int, rotary_dim: int = 0, base: float = 10000.0, "
                   "pairing: typing.Literal['half_split', 'interleaved'] = 'half_split', "
                   "scaling: dict[str, typing.Any] | None = None) -> None"),
           "rotary_dim: how many columns of a head are turned, 0: all. scaling: {'kind': 'linear' | 'ntk' |\n"
           "'dynamic_ntk' | 'yarn' | 'llama3', 'factor': …} with the names of docs/rope.md.");
    define_static(type, "from_tables", &from_tables, nb::arg("cos"), nb::arg("sin"), nb::arg("head_dim"),
                  nb::arg("pairing") = "half_split",
                  nb::sig("def from_tables(cos: object, sin: object, head_dim: int, "
                          "pairing: typing.Literal['half_split', 'interleaved'] = 'half_split') -> Rope"),
                  "Cosines and sines given, [positions, rotary_dim / 2]; the arrays are kept, not copied.");
    define(type, "apply", &turn<&Rope::apply>, nb::arg("x"), nb::arg("start") = 0, nb::arg("positions") = nb::none(),
           nb::arg("length") = 0, nb::arg("out") = nb::none(), nb::arg("runtime") = nb::none(),
           nb::sig("def apply(self, x: object, start: int = 0, positions: object | None = None, length: int = 0, "
                   "out: object | None = None, runtime: Runtime | None = None) -> typing.Any"),
           kTurnDoc);
    define(type, "apply_backward", &turn<&Rope::apply_backward>, nb::arg("x"), nb::arg("start") = 0,
           nb::arg("positions") = nb::none(), nb::arg("length") = 0, nb::arg("out") = nb::none(),
           nb::arg("runtime") = nb::none(),
           nb::sig("def apply_backward(self, x: object, start: int = 0, positions: object | None = None, "
                   "length: int = 0, out: object | None = None, runtime: Runtime | None = None) -> typing.Any"),
           "The gradient of the result -> the gradient of apply's x: the same pairs turned back.");
    define(
        type, "frequencies", [](const HeldRope& self, std::int64_t length) { return self.rope.frequencies(length); },
        nb::arg("length") = 0, nb::sig("def frequencies(self, length: int = 0) -> list[float]"),
        "Radians a token for each pair.");
    type.def_prop_ro(
            "head_dim", [](const HeldRope& self) { return self.rope.head_dim(); }, "D.")
        .def_prop_ro(
            "rotary_dim", [](const HeldRope& self) { return self.rope.rotary_dim(); }, "How many columns are turned.")
        .def_prop_ro(
            "attention_factor", [](const HeldRope& self) { return self.rope.attention_factor(); },
            "What cosines and sines are multiplied by.");
    define_copies(type, [](const HeldRope& self) { return self.recipe; });
}

}  // namespace qkv::python
