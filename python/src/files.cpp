// safetensors files, and other arrays of host memory.
#include <nanobind/nanobind.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/string.h>

#include <filesystem>

#include "bindings.hpp"
#include "define.hpp"
#include "qkv/io.hpp"
#include "state.hpp"

namespace qkv::python {

std::vector<bool> to_flags(nb::handle object, const char* name) {
    std::vector<bool> flags;
    if (PyList_Check(object.ptr()) || PyTuple_Check(object.ptr())) {
        for (const nb::handle item : object) {
            if (!PyBool_Check(item.ptr())) {
                raise(PyExc_TypeError, name, " holds a ", Py_TYPE(item.ptr())->tp_name, "; expected bools");
            }
            flags.push_back(item.ptr() == Py_True);
        }
        return flags;
    }
    const Operand operand(object, name);
    const TensorView view = operand.view();
    if (view.dtype != DType::boolean) {
        raise(PyExc_TypeError, name, " has elements of type ", operand.type_name(), "; expected bool");
    }
    for (std::int64_t a = 0; a < view.shape[0]; ++a) {
        for (std::int64_t b = 0; b < view.shape[1]; ++b) {
            for (std::int64_t c = 0; c < view.shape[2]; ++c) {
                for (std::int64_t d = 0; d < view.shape[3]; ++d) {
                    flags.push_back(*view.at(a, b, c, d) != std::byte{0});
                }
            }
        }
    }
    return flags;
}

namespace {

io::Metadata to_metadata(nb::handle dict) {
    io::Metadata metadata;
    if (!nb::try_cast(dict, metadata)) {
        refuse(dict, "metadata", "a dict of str to str");
    }
    return metadata;
}

}  // namespace

void bind_files(nb::module_& module) {
    define(
        module, "read_safetensors",
        [](const std::filesystem::path& path) { return to_dict(io::read_safetensors<float>(path)); }, nb::arg("path"),
        nb::sig("def read_safetensors(path: str | os.PathLike[str]) -> dict[str, typing.Any]"),
        "All tensors of a safetensors file as float32. The file is checked completely before anything is allocated "
        "from\n"
        "what it declares. Raises OSError if it cannot be read, ValueError if its content is refused.");
    define(
        module, "write_safetensors",
        [](const std::filesystem::path& path, nb::handle tensors, nb::handle metadata) {
            io::write_safetensors(path, to_state(tensors, "tensors"), to_metadata(metadata));
        },
        nb::arg("path"), nb::arg("tensors"), nb::arg("metadata") = nb::dict(),
        nb::sig("def write_safetensors(path: str | os.PathLike[str], tensors: collections.abc.Mapping[str, object], "
                "metadata: dict[str, str] = {}) -> None"),
        "Writes float arrays as F32. The file appears whole or not at all.");
}

}  // namespace qkv::python
