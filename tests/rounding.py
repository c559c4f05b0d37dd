"""An evaluator of ONNX graphs that stores every FP16 value as FP16, as a GPU does.

ONNX Runtime has no FP16 kernels for most operators of a CPU: it widens them to FP32 and may leave
out the rounding between neighbours, so that an overflow does not show. Here every node is a session
of its own, and the values between nodes are arrays of the type that the graph declares. Within a
node, sums are FP32, as on tensor cores.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper


class RoundingEvaluator:
    def __init__(self, model: bytes) -> None:
        self.proto = onnx.load_model_from_string(model)
        graph = onnx.shape_inference.infer_shapes(
            self.proto, check_type=True, strict_mode=True
        ).graph
        self.types = {}
        for value in (*graph.value_info, *graph.input, *graph.output):
            self.types[value.name] = value.type.tensor_type.elem_type
        self.weights = {}
        for tensor in self.proto.graph.initializer:
            self.types[tensor.name] = tensor.data_type
            self.weights[tensor.name] = onnx.numpy_helper.to_array(tensor)

    def _session(self, node: onnx.NodeProto) -> ort.InferenceSession:
        graph = helper.make_graph(
            [node], "node", self._values(node.input), self._values(node.output)
        )
        alone = helper.make_model(
            graph, opset_imports=self.proto.opset_import, ir_version=self.proto.ir_version
        )
        return _session_of(alone.SerializeToString())

    def _values(self, names: Iterable[str]) -> list[onnx.ValueInfoProto]:
        values = []
        for name in dict.fromkeys(names):
            if name:
                values.append(helper.make_tensor_value_info(name, self.types[name], None))
        return values

    def __call__(self, **inputs: Any) -> dict[str, np.ndarray[Any, Any]]:
        """Compute every value of the graph, by its name, without the weights."""
        values: dict[str, Any] = dict(inputs)
        for node in self.proto.graph.node:
            feeds = {}
            for name in node.input:
                if name:
                    feeds[name] = values[name] if name in values else self.weights[name]
            outputs = [name for name in node.output if name]
            values.update(zip(outputs, self._session(node).run(None, feeds), strict=True))
        return values


# Graphs that differ in a few islands share most nodes; making a session is slower than running it.
@lru_cache(maxsize=4096)
def _session_of(model: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model, options, ["CPUExecutionProvider"])
