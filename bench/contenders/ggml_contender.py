"""ggml's flash_attn_ext, from the library that llama-cpp-python brings. Queries are float32; keys and values float32 or
fp16, as llama.cpp's caches have them."""

import ctypes
import importlib.metadata
import importlib.util
import pathlib

import numpy
import torch

from inputs import allowed_rows

from . import Prepared, Unavailable

F32, F16 = 0, 1  # enum ggml_type


class InitParams(ctypes.Structure):
    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


class Plan(ctypes.Structure):
    """struct ggml_cplan of the pinned version."""

    _fields_ = (("work_size", ctypes.c_size_t), ("work_data", ctypes.c_void_p), ("n_threads", ctypes.c_int),
                ("threadpool", ctypes.c_void_p), ("abort_callback", ctypes.c_void_p), ("abort_data", ctypes.c_void_p),
                ("use_ref", ctypes.c_bool))


def load():
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("llama-cpp-python is not installed; ./dev bench --ggml builds it")
    folder = pathlib.Path(spec.submodule_search_locations[0]) / "lib"
    base = ctypes.CDLL(str(folder / "libggml-base.so"), ctypes.RTLD_GLOBAL)
    cpu = ctypes.CDLL(str(folder / "libggml-cpu.so"), ctypes.RTLD_GLOBAL)
    pointer = ctypes.c_void_p
    base.ggml_init.argtypes, base.ggml_init.restype = [InitParams], pointer
    base.ggml_free.argtypes, base.ggml_free.restype = [pointer], None
    base.ggml_new_tensor_4d.argtypes = [pointer, ctypes.c_int, *[ctypes.c_int64] * 4]
    base.ggml_new_tensor_4d.restype = pointer
    base.ggml_get_data.argtypes, base.ggml_get_data.restype = [pointer], pointer
    base.ggml_flash_attn_ext.argtypes = [pointer] * 5 + [ctypes.c_float] * 3
    base.ggml_flash_attn_ext.restype = pointer
    base.ggml_new_graph.argtypes, base.ggml_new_graph.restype = [pointer], pointer
    base.ggml_build_forward_expand.argtypes, base.ggml_build_forward_expand.restype = [pointer, pointer], None
    cpu.ggml_graph_plan.argtypes, cpu.ggml_graph_plan.restype = [pointer, ctypes.c_int, pointer], Plan
    cpu.ggml_graph_compute.argtypes, cpu.ggml_graph_compute.restype = [pointer, ctypes.POINTER(Plan)], ctypes.c_int
    cpu.ggml_cpu_init.argtypes, cpu.ggml_cpu_init.restype = [], None
    cpu.ggml_cpu_init()
    return base, cpu


class Ggml:
    name = "ggml"

    def __init__(self):
        self.base, self.cpu = load()
        self.version = "llama-cpp-python " + importlib.metadata.version("llama-cpp-python")

    def prepare(self, case, inputs, threads):
        if case.work == "backward":
            raise Unavailable("its backward is not implemented")
        if case.dtype == "bf16":
            raise Unavailable("bf16 keys go row by row; its 16-bit type is fp16")
        if case.mask == "packed":
            raise Unavailable("no packed batches")
        base = self.base
        size = case.batch * (case.heads * case.queries + case.kv_heads * case.keys) * 2 * 4 * max(
            case.head_dim, case.value_dim) + 4 * case.queries * case.keys + (256 << 20)
        context = base.ggml_init(InitParams(size, None, False))
        if not context:
            raise Unavailable("no memory")

        def tensor(array, kind):
            dims = list(reversed(array.shape))
            made = base.ggml_new_tensor_4d(context, kind, *dims)
            flat = numpy.ascontiguousarray(array)
            ctypes.memmove(base.ggml_get_data(made), flat.ctypes.data, flat.nbytes)
            return made

        kind, numpy_type = (F32, numpy.float32) if case.dtype == "f32" else (F16, numpy.float16)
        q = tensor(inputs.q.float().numpy(), F32)
        k = tensor(inputs.k.numpy().astype(numpy_type), kind)
        v = tensor(inputs.v.numpy().astype(numpy_type), kind)
        mask = None
        if case.mask != "none":
            rows = torch.arange(case.queries)
            if inputs.bias is not None:
                added = inputs.bias.float()
            else:
                added = torch.zeros(case.queries, case.keys).masked_fill(~allowed_rows(case, inputs, rows), -torch.inf)
            mask = tensor(added.numpy().astype(numpy.float16)[None, None], F16)
        out = base.ggml_flash_attn_ext(context, q, k, v, mask, case.head_dim**-0.5, 0.0, 0.0)
        graph = base.ggml_new_graph(context)
        base.ggml_build_forward_expand(graph, out)

        # Room for the work once: ggml_graph_compute_with_ctx takes more of the context at every call.
        plan = self.cpu.ggml_graph_plan(graph, threads, None)
        room = ctypes.create_string_buffer(max(1, plan.work_size))
        plan.work_data = ctypes.addressof(room)

        def run(plan=plan, room=room):
            if self.cpu.ggml_graph_compute(graph, ctypes.byref(plan)) != 0:
                raise RuntimeError("ggml_graph_compute failed")

        return GgmlPrepared(run, lambda: self.context(out, case), lambda: base.ggml_free(context))

    def context(self, out, case):
        """ggml leaves [B, T, H, Dv] in float32; one rounding to the case's type is not counted against it."""
        shape = (case.batch, case.queries, case.heads, case.value_dim)
        data = (ctypes.c_float * int(numpy.prod(shape))).from_address(self.base.ggml_get_data(out))
        return torch.from_numpy(numpy.array(data, numpy.float32).reshape(shape)).transpose(1, 2)


class GgmlPrepared(Prepared):
    """Gives ggml's memory back with the last reference."""

    def __init__(self, run, context, release):
        super().__init__(run, context)
        self.release = release

    def __del__(self):
        self.release()


def contenders():
    return [Ggml()]
