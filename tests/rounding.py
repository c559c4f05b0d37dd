"""An evaluator of ONNX graphs that stores every FP16 value as FP16, as a GPU does.

ONNX Runtime has no FP16 kernels for most operators of a CPU: it widens them to FP32 and may leave out the rounding
between neighbours, so that an overflow does not show. Here every node is a session of its own, and what passes from one
to the next is an array of the type that the graph gives it. Within a node sums are FP32, as on tensor cores.
"""

from __future__ import annotations

from collections.abc import Iterator
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
        self.types = {
            v.name: v.type.tensor_type.elem_type
            for v in (*graph.value_info, *graph.input, *graph.output)
        }
        self.weights = {t.name: onnx.numpy_helper.to_array(t) for t in self.proto.graph.initializer}
        self.types.update((t.name, t.data_type) for t in self.proto.graph.initializer)
        self.sessions = list(self._sessions())

    def _sessions(self) -> Iterator[tuple[onnx.NodeProto, ort.InferenceSession]]:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        for node in self.proto.graph.node:
            inputs, outputs = (
                [
                    helper.make_tensor_value_info(name, self.types[name], None)
                    for name in dict.fromkeys(names)
                    if name
                ]
                for names in (node.input, node.output)
            )
            alone = helper.make_model(
                helper.make_graph([node], "node", inputs, outputs),
                opset_imports=self.proto.opset_import,
                ir_version=self.proto.ir_version,
            )
            yield (
                node,
                ort.InferenceSession(alone.SerializeToString(), options, ["CPUExecutionProvider"]),
            )

    def __call__(self, **inputs: Any) -> dict[str, np.ndarray[Any, Any]]:
        """Every value of the graph by its name, weights left out."""
        values: dict[str, Any] = dict(inputs)
        for node, session in self.sessions:
            feeds = {
                name: values[name] if name in values else self.weights[name]
                for name in node.input
                if name
            }
            values.update(zip([o for o in node.output if o], session.run(None, feeds), strict=True))
        return values
