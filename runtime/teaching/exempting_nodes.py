"""The nodes that exempt positions, in a graph of any method that has features of positions.

Where the features of a position are close to a row of the bank, its anomaly value is lowered to
that of an ordinary position. With the mean m, and for each row b its squared radius r:

    share = clip(max over b of (1 - |x - m - b|^2 / r) / (1 - INNER), 0, 1)
    lowered = value - share * max(value - cap, 0)

A value whose share is 0 stays as it is, to the last bit. The share rises linearly within the
radius, so that the rounding of another engine changes no value by much. Needs onnx and no torch.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from flawline.runtime.teaching.bank_of_patches import PatchBank
from flawline.runtime.teaching.graph import Array
from flawline.runtime.teaching.positions import Levels
from flawline.runtime.teaching.record import TeachingRecord
from flawline.runtime.teaching.resampling import cells_matrix, resampled_means

# The key of the metadata.
EXEMPTING = "flawline.exempting"
# The path of the nodes. They are an FP32 island.
ISLAND = "/exempt"
FEATURES = f"{ISLAND}/features"
# The anomaly value before any exemption.
GIVEN = f"{ISLAND}/given"


def add_exemptions(model: onnx.ModelProto, levels: Levels) -> None:
    """Add the nodes to a graph, with a bank without rows, and metadata that say where they are."""
    writer = _Writer()
    channels = writer.features(levels)
    writer.lowered(levels, channels)
    nodes = []
    for node in model.graph.node:
        nodes.append(node)
        if levels.value in node.output:
            place = list(node.output).index(levels.value)
            node.output[place] = GIVEN
            nodes += writer.nodes
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    model.graph.initializer.extend(writer.constants)
    # The value has another producer, which shape inference finds.
    del model.graph.value_info[:]
    settings = {
        "given": GIVEN,
        "features": [channels, *levels.grid],
        "values": list(levels.value_shape),
    }
    record = TeachingRecord(FEATURES, levels.value, settings)
    model.metadata_props.add(key=EXEMPTING, value=json.dumps(record.to_json()))


class _Writer:
    """Collects nodes and constants."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def features(self, levels: Levels) -> int:
        """Resize the levels to one grid and join them; return the number of channels."""
        height, width = levels.grid
        resized = []
        for number, (level, (_, rows, columns)) in enumerate(levels.levels.items()):
            right = self._constant(f"columns.{number}", resampled_means(columns, width).T)
            left = self._constant(f"rows.{number}", resampled_means(rows, height))
            wide = self._node("MatMul", [level, right], f"columns.{number}")
            resized.append(self._node("MatMul", [left, wide], f"rows.{number}"))
        self._node("Concat", resized, "features", axis=1)
        return sum(shape[0] for shape in levels.levels.values())

    def lowered(self, levels: Levels, channels: int) -> None:
        """Lower the values of those positions whose features are in the bank."""
        bank = {
            name: self._named(name, value)
            for name, value in PatchBank.without_rows(channels).constants().items()
        }
        mean, rows, bias, cap = bank.values()
        centred = self._node("Sub", [FEATURES, mean], "centred")
        squares = self._node("Mul", [centred, centred], "squares")
        channel = self._constant("channel", np.array([1]))
        length = self._node("ReduceSum", [squares, channel], "length", keepdims=1)
        both = self._node("Concat", [centred, length], "both", axis=1)
        inside = self._node("Conv", [both, rows, bias], "inside")
        nearest = self._node("ReduceMax", [inside], "nearest", axes=[1], keepdims=1)
        zero = self._constant("zero", np.float32(0))
        one = self._constant("one", np.float32(1))
        share = self._node("Clip", [nearest, zero, one], "share")
        share = self._on_grid_of_values(share, levels)
        above = self._node("Sub", [GIVEN, cap], "above")
        excess = self._node("Relu", [above], "excess")
        taken = self._node("Mul", [excess, share], "taken")
        self._node("Sub", [GIVEN, taken], "lowered", result=levels.value)

    def _on_grid_of_values(self, share: str, levels: Levels) -> str:
        height, width = levels.value_shape[-2:]
        if (height, width) != levels.grid:
            right = self._constant("value_columns", cells_matrix(levels.grid[1], width).T)
            left = self._constant("value_rows", cells_matrix(levels.grid[0], height))
            share = self._node("MatMul", [share, right], "value_columns")
            share = self._node("MatMul", [left, share], "value_rows")
        if len(levels.value_shape) == 2:
            share = self._node("Squeeze", [share, self._constant("axis", np.array([1]))], "plane")
        return share

    def _constant(self, name: str, value: Array) -> str:
        return self._named(f"exempt.{name}", value)

    def _named(self, name: str, value: Array) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(value, order="C"), name))
        return name

    def _node(
        self,
        kind: str,
        inputs: list[str],
        name: str,
        result: str | None = None,
        **attributes: Any,
    ) -> str:
        path = f"{ISLAND}/{name}"
        result = result or path
        self.nodes.append(helper.make_node(kind, inputs, [result], path, **attributes))
        return result
