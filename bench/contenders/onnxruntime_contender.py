"""ONNX Runtime on the CPU, float32: its two attention operators. The inputs are bound once, so that nothing is copied
in or out."""

import numpy
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper

from inputs import allowed_rows

from . import Prepared, Unavailable


class Operator:
    writes_scores = True
    version = onnxruntime.__version__

    def __init__(self, name):
        self.name = name

    def prepare(self, case, inputs, threads):
        if case.work == "backward":
            raise Unavailable("no backward")
        if case.dtype != "f32":
            raise Unavailable("its attention is float32 only on a CPU")
        if case.mask == "packed":
            raise Unavailable("no packed batches")
        node, feeds, domain = self.node(case, inputs)
        model = helper.make_model(
            helper.make_graph([node], "attention",
                              [helper.make_tensor_value_info(name, TensorProto.BOOL if x.dtype == bool else
                                                             TensorProto.FLOAT, x.shape) for name, x in feeds.items()],
                              [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)]),
            opset_imports=[helper.make_opsetid("", 23), *domain], ir_version=10)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        # Threads that wait busily would take time from whoever is timed next.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            session = onnxruntime.InferenceSession(model.SerializeToString(), options,
                                                   providers=["CPUExecutionProvider"])
        except Exception as error:
            raise Unavailable(str(error).splitlines()[0]) from error
        binding = session.io_binding()
        values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(x) for name, x in feeds.items()}
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        binding.bind_output("out", "cpu")
        return Prepared(lambda: session.run_with_iobinding(binding),
                        lambda: self.context(case, binding.copy_outputs_to_cpu()[0]))


def contiguous(x):
    return numpy.ascontiguousarray(x.numpy())


class Attention(Operator):
    """The standard's operator, since opset 23."""

    def node(self, case, inputs):
        feeds = {"q": contiguous(inputs.q), "k": contiguous(inputs.k), "v": contiguous(inputs.v)}
        options = {}
        if case.mask == "causal" and case.queries == case.keys:
            options["is_causal"] = 1
        elif case.mask in ("boolean", "causal") or case.window is not None:
            feeds["mask"] = allowed_rows(case, inputs, torch.arange(case.queries)).numpy()
        elif case.mask == "additive":
            feeds["mask"] = contiguous(inputs.bias)
        return helper.make_node("Attention", list(feeds), ["out"], **options), feeds, []

    def context(self, case, out):  # noqa: ARG002
        return torch.from_numpy(out)


class MultiHeadAttention(Operator):
    """Its own operator, with the fused kernel. [B, T, H·D] queries and context."""

    def node(self, case, inputs):
        if case.kv_heads != case.heads:
            raise Unavailable("all heads need keys of their own")
        if case.window is not None:
            raise Unavailable("no windows")
        feeds = {"q": contiguous(inputs.q.transpose(1, 2).reshape(case.batch, case.queries, -1)),
                 "k": contiguous(inputs.k), "v": contiguous(inputs.v)}
        options = {"num_heads": case.heads}
        names = list(feeds)
        if case.mask == "causal":
            options["unidirectional"] = 1
        elif case.mask == "additive":
            feeds["bias"] = contiguous(inputs.bias[None, None])
            names += ["", "", "bias"]
        elif case.mask != "none":
            raise Unavailable("no such mask")
        node = helper.make_node("MultiHeadAttention", names, ["out"], domain="com.microsoft", **options)
        return node, feeds, [helper.make_opsetid("com.microsoft", 1)]

    def context(self, case, out):
        return torch.from_numpy(out).view(case.batch, case.queries, case.heads, -1).transpose(1, 2)


def contenders():
    assert onnx.__version__
    return [Attention("onnxruntime"), MultiHeadAttention("onnxruntime-mha")]
