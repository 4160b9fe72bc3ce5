"""OpenVINO on the CPU: its scaled_dot_product_attention, compiled for the shape."""

import numpy
import openvino
import torch
from openvino import opset13

from inputs import allowed_rows

from . import Prepared, Unavailable

TYPES = {"f32": openvino.Type.f32, "bf16": openvino.Type.bf16, "f16": openvino.Type.f16}


def to_tensor(x):
    if x.dtype == torch.bfloat16:
        bits = x.contiguous().view(torch.int16).numpy()
        return openvino.Tensor(bits, list(x.shape), openvino.Type.bf16)
    return openvino.Tensor(numpy.ascontiguousarray(x.numpy()))


class OpenVino:
    name = "openvino"
    version = openvino.__version__.split("-")[0]

    def prepare(self, case, inputs, threads):
        if case.work == "backward":
            raise Unavailable("no backward")
        if case.dtype == "f16":
            raise Unavailable("fp16 is computed as float32 or bf16 on this CPU")
        if case.mask == "packed":
            raise Unavailable("no packed batches in this operator")
        if case.kv_heads != case.heads:
            # The operator has no grouped heads; a model repeats keys and values, and the plug-in may fold that away.
            repeat = case.heads // case.kv_heads
        else:
            repeat = 1
        dtype = TYPES[case.dtype]
        parameters = [opset13.parameter(list(x.shape), dtype) for x in (inputs.q, inputs.k, inputs.v)]
        q, k, v = parameters
        if repeat > 1:
            k, v = (self.repeated(x, case, repeat, width) for x, width in ((k, case.head_dim), (v, case.value_dim)))
        tensors = [to_tensor(x) for x in (inputs.q, inputs.k, inputs.v)]
        arguments = [q, k, v]
        causal = case.mask == "causal" and case.queries == case.keys
        mask = inputs.bias
        if not causal and (case.mask in ("boolean", "causal") or case.window is not None):
            mask = allowed_rows(case, inputs, torch.arange(case.queries))
        if mask is not None:
            kind = openvino.Type.boolean if mask.dtype == torch.bool else dtype
            parameters.append(opset13.parameter(list(mask.shape), kind))
            tensors.append(to_tensor(mask))
            arguments.append(parameters[-1])
        out = opset13.scaled_dot_product_attention(*arguments, causal=causal)
        model = openvino.Model([out], parameters)
        compiled = openvino.Core().compile_model(model, "CPU", {
            "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": dtype})
        request = compiled.create_infer_request()
        for index, tensor in enumerate(tensors):
            request.set_input_tensor(index, tensor)
        return Prepared(request.infer, lambda: self.context(request, case))

    @staticmethod
    def repeated(x, case, repeat, width):
        five = opset13.unsqueeze(x, opset13.constant(2))
        shape = [case.batch, case.kv_heads, repeat, case.keys, width]
        wide = opset13.broadcast(five, opset13.constant(shape), broadcast_spec="BIDIRECTIONAL")
        return opset13.reshape(wide, opset13.constant([case.batch, case.heads, case.keys, width]), special_zero=False)

    @staticmethod
    def context(request, case):
        out = request.get_output_tensor(0)
        if out.element_type == openvino.Type.bf16:
            bits = numpy.array(out.data.view(numpy.int16))
            return torch.from_numpy(bits).view(torch.bfloat16).view(case.batch, case.heads, case.queries, -1)
        return torch.from_numpy(numpy.array(out.data))


def contenders():
    return [OpenVino()]
