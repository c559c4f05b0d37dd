"""An evaluator of ONNX graphs that stores every FP16 value as FP16, as a GPU does.

ONNX Runtime has no FP16 kernels for most operators on a CPU: it widens them to FP32 and may leave
out the rounding between neighbouring nodes, so that an overflow does not show. Here every node is a
session of its own, and each value that passes between nodes is an array of the type that the graph
declares. Within a node, sums are FP32, as on tensor cores.
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
    """Evaluates a serialised graph node by node."""

    def __init__(self, model: bytes) -> None:
        self.proto = onnx.load_model_from_string(model)
        inferred = onnx.shape_inference.infer_shapes(self.proto, check_type=True, strict_mode=True)
        graph = inferred.graph
        self.types = {}
        for value in (*graph.value_info, *graph.input, *graph.output):
            self.types[value.name] = value.type.tensor_type.elem_type
        self.weights = {}
        for tensor in graph.initializer:
            self.types[tensor.name] = tensor.data_type
            self.weights[tensor.name] = onnx.numpy_helper.to_array(tensor)
        self.sessions = [(node, self._session(node)) for node in self.proto.graph.node]

    def _session(self, node: onnx.NodeProto) -> ort.InferenceSession:
        inputs = self._values(node.input)
        outputs = self._values(node.output)
        graph = helper.make_graph([node], "node", inputs, outputs)
        model = helper.make_model(
            graph, opset_imports=self.proto.opset_import, ir_version=self.proto.ir_version
        )
        return _session_of(model.SerializeToString())

    def _values(self, names: Iterable[str]) -> list[onnx.ValueInfoProto]:
        values = []
        # An input that is used twice is declared once; an optional one left out has no name.
        for name in dict.fromkeys(filter(None, names)):
            values.append(helper.make_tensor_value_info(name, self.types[name], None))
        return values

    def __call__(self, **inputs: Any) -> dict[str, np.ndarray[Any, Any]]:
        """Every value of the graph by its name, without the weights."""
        values: dict[str, Any] = dict(inputs)
        for node, session in self.sessions:
            feeds = {}
            for name in filter(None, node.input):
                feeds[name] = values[name] if name in values else self.weights[name]
            names = list(filter(None, node.output))
            values.update(zip(names, session.run(None, feeds), strict=True))
        return values


# Graphs that differ in a few islands share most nodes; making a session is slower than running it.
@lru_cache(maxsize=4096)
def _session_of(model: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    # Thousands of sessions would each keep a block of memory.
    options.enable_cpu_mem_arena = False
    return ort.InferenceSession(model, options, ["CPUExecutionProvider"])
