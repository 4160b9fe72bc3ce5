// PyTorch's CPU random numbers.
#include <nanobind/nanobind.h>

#include "array.hpp"
#include "bindings.hpp"
#include "define.hpp"
#include "qkv/random.hpp"
#include "recipe.hpp"

namespace qkv::python {

namespace {

/// A contiguous float array that is to be filled.
class Filled {
public:
    explicit Filled(nb::handle object) : operand_(object, "values", Operand::Access::write) {
        std::int64_t step = 1;
        for (int dim = operand_.rank() - 1; dim >= 0; --dim) {
            if (operand_.size(dim) > 1 && operand_.stride(dim) != step) {
                raise(PyExc_ValueError, "values is not contiguous; expected row-major memory without gaps");
            }
            step *= operand_.size(dim);
        }
        count_ = static_cast<std::size_t>(step);
    }

    /// Calls `draw` with the elements as a span of their type. Throws TypeError for another type than f32 and f64.
    template <class Draw>
    void with(const Draw& draw) const {
        switch (operand_.dtype()) {
            case DType::f32:
                return draw(std::span(static_cast<float*>(operand_.data()), count_));
            case DType::f64:
                return draw(std::span(static_cast<double*>(operand_.data()), count_));
            default:
                raise(PyExc_TypeError, "values has elements of type ", operand_.type_name(),
                      "; expected float32 or float64");
        }
    }

private:
    Operand operand_;
    std::size_t count_ = 0;
};

bool is_double(const std::string& name) {
    if (name != "float32" && name != "float64") {
        raise(PyExc_ValueError, "dtype is '", name, "'; expected 'float32' or 'float64'");
    }
    return name == "float64";
}

}  // namespace

void bind_generator(nb::module_& module) {
    constexpr const char* kDtype = "typing.Literal['float32', 'float64'] = 'float32') -> typing.Any";
    static const std::string rand_signature =
        concat("def rand(self, shape: int | collections.abc.Sequence[int], dtype: ", kDtype);
    static const std::string randn_signature =
        concat("def randn(self, shape: int | collections.abc.Sequence[int], dtype: ", kDtype);
    nb::class_<Generator> type(
        module, "Generator",
        "torch.Generator('cpu'), bit for bit: a program that draws in the same order gets the same\n"
        "numbers.\n\n"
        ">>> import qkv\n"
        ">>> qkv.Generator(123).rand(3).tolist()\n"
        "[0.29611194133758545, 0.516562283039093, 0.2516707181930542]");
    type.def_prop_ro("seed", &Generator::seed, "The last seed.")
        .def("__repr__", [](const Generator& self) { return concat("<qkv.Generator of seed ", self.seed(), ">"); })
        .def("__copy__", [](const Generator& self) { return Generator(self); })
        .def(
            "__deepcopy__", [](const Generator& self, nb::handle) { return Generator(self); }, nb::arg("memo"),
            nb::sig("def __deepcopy__(self, memo: object) -> Generator"), "Another one at the same place.");
    refuse_copies(type, "a qkv.Generator cannot be pickled; copy.copy makes another one at the same place");
    define(
        type, "__init__", [](Generator* self, std::uint64_t seed) { new (self) Generator(seed); },
        nb::arg("seed") = Generator::default_seed, nb::sig("def __init__(self, seed: int = 67280421310721) -> None"),
        "As torch.manual_seed(seed).");
    define(
        type, "manual_seed", [](Generator& self, std::uint64_t seed) { self.manual_seed(seed); }, nb::arg("seed"),
        nb::sig("def manual_seed(self, seed: int) -> None"), "Starts again from a seed.");
    define(
        type, "random", [](Generator& self) { return self.random(); }, nb::sig("def random(self) -> int"),
        "32 random bits.");
    define(
        type, "random64", [](Generator& self) { return self.random64(); }, nb::sig("def random64(self) -> int"),
        "64 random bits.");
    define(
        type, "rand",
        [](Generator& self, nb::handle shape, const std::string& dtype) {
            return is_double(dtype) ? to_array(self.rand<double>(to_shape(shape)))
                                    : to_array(self.rand<float>(to_shape(shape)));
        },
        nb::arg("shape"), nb::arg("dtype") = "float32", nb::sig(rand_signature.c_str()),
        "torch.rand(shape): uniform in [0, 1).");
    define(
        type, "randn",
        [](Generator& self, nb::handle shape, const std::string& dtype) {
            return is_double(dtype) ? to_array(self.randn<double>(to_shape(shape)))
                                    : to_array(self.randn<float>(to_shape(shape)));
        },
        nb::arg("shape"), nb::arg("dtype") = "float32", nb::sig(randn_signature.c_str()),
        "torch.randn(shape): standard normal.");
    define(
        type, "uniform_",
        [](Generator& self, nb::handle values, double from, double to) {
            Filled(values).with([&](auto span) { self.uniform_(span, from, to); });
        },
        nb::arg("values"), nb::arg("low") = 0.0, nb::arg("high") = 1.0,
        nb::sig("def uniform_(self, values: object, low: float = 0.0, high: float = 1.0) -> None"),
        "Fills a contiguous float32 or float64 array as tensor.uniform_(low, high).");
    define(
        type, "normal_",
        [](Generator& self, nb::handle values, double mean, double std) {
            Filled(values).with([&](auto span) { self.normal_(span, mean, std); });
        },
        nb::arg("values"), nb::arg("mean") = 0.0, nb::arg("std") = 1.0,
        nb::sig("def normal_(self, values: object, mean: float = 0.0, std: float = 1.0) -> None"),
        "Fills it as tensor.normal_(mean, std).");
    define(
        type, "bernoulli_",
        [](Generator& self, nb::handle values, double probability) {
            Filled(values).with([&](auto span) { self.bernoulli_(span, probability); });
        },
        nb::arg("values"), nb::arg("probability") = 0.5,
        nb::sig("def bernoulli_(self, values: object, probability: float = 0.5) -> None"),
        "Fills it as tensor.bernoulli_(probability).");
}

}  // namespace qkv::python
