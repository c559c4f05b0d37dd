"""A graph that exempts positions, and its parts as a teacher needs them. Needs onnx and no torch.

The parts are joined by one value [N, K, 1, 1], the features of all positions and the anomaly values
before any exemption, so that both are computed, stored and scored as the features of any teacher.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from flawline.runtime.teaching.bank_of_patches import PatchBank
from flawline.runtime.teaching.exempting_nodes import EXEMPTING, ISLAND, add_exemptions
from flawline.runtime.teaching.graph import (
    INPUT,
    Constants,
    TaughtGraph,
    replace_constants,
)
from flawline.runtime.teaching.positions import find_levels

PACKED = f"{ISLAND}/packed"


def exempting_graph(model: bytes, height: int) -> ExemptingGraph | None:
    """Return a graph with nodes that exempt positions; they are added to one that has none.

    `height` is that of the input of the backbone. Returns None for a graph without features of
    positions, or values of positions that decide about all outputs.
    """
    proto = onnx.load_model_from_string(model)
    if all(entry.key != EXEMPTING for entry in proto.metadata_props):
        levels = find_levels(proto, INPUT, height)
        if levels is None:
            return None
        add_exemptions(proto, levels)
    return ExemptingGraph(proto.SerializeToString())


class ExemptingGraph(TaughtGraph):
    """A graph with nodes that exempt positions; its distances are the values that these give."""

    key: ClassVar[str] = EXEMPTING
    islands: ClassVar[tuple[str, ...]] = (ISLAND,)

    @property
    def feature_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the features of an input."""
        channels, height, width = self.record.settings["features"]
        return channels, height, width

    @property
    def value_shape(self) -> tuple[int, ...]:
        """Shape of the anomaly values of an input: [h, w] or [1, h, w]."""
        return tuple(self.record.settings["values"])

    @property
    def bank(self) -> PatchBank:
        """The bank of the graph."""
        names = PatchBank.without_rows(1).constants()
        return PatchBank.of_constants({name: self.constant(name) for name in names})

    def backbone(self, constants: Constants) -> bytes:
        """Return the part from the image to the features and values of its positions."""
        model = onnx.ModelProto()
        model.CopyFrom(self._part([INPUT], self._starts))
        graph = model.graph
        flat = []
        for name in self._starts:
            flat.append(f"{name}.flat")
            graph.node.append(helper.make_node("Flatten", [name], flat[-1:], axis=1))
        joined = f"{PACKED}.flat"
        graph.node.append(helper.make_node("Concat", flat, [joined], axis=1))
        axes = _constant(graph, f"{PACKED}.axes", [2, 3])
        graph.node.append(helper.make_node("Unsqueeze", [joined, axes], [PACKED]))
        del graph.output[:]
        graph.output.append(self._packed)
        return replace_constants(model, constants)

    def head(self, constants: Constants) -> bytes:
        """Return the part from features and values of positions to the outputs and new values."""
        values = self.record.distances
        model = onnx.ModelProto()
        model.CopyFrom(self._part(self._starts, list(dict.fromkeys([*self.outputs, values]))))
        graph = model.graph
        parts = [f"{name}.part" for name in self._starts]
        sizes = _constant(graph, f"{PACKED}.sizes", self._sizes)
        nodes = [helper.make_node("Split", [PACKED, sizes], parts, axis=1)]
        for name, part, shape in zip(self._starts, parts, self._shapes, strict=True):
            wanted = _constant(graph, f"{name}.shape", [-1, *shape])
            nodes.append(helper.make_node("Reshape", [part, wanted], [name]))
        nodes += [onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.node]
        # The values may be the map, which is an output already.
        result = f"{PACKED}.result"
        nodes.append(helper.make_node("Identity", [values], [result]))
        del graph.node[:]
        graph.node.extend(nodes)
        del graph.input[:]
        graph.input.append(self._packed)
        outputs = [output for output in graph.output if output.name in self.outputs]
        outputs = [onnx.ValueInfoProto.FromString(one.SerializeToString()) for one in outputs]
        del graph.output[:]
        graph.output.extend(outputs)
        graph.output.append(_declared(result, *self.value_shape))
        return replace_constants(model, constants)

    @property
    def _starts(self) -> list[str]:
        return [self.record.features, self.record.settings["given"]]

    @property
    def _shapes(self) -> list[tuple[int, ...]]:
        return [self.feature_shape, self.value_shape]

    @property
    def _sizes(self) -> list[int]:
        return [math.prod(shape) for shape in self._shapes]

    @property
    def _packed(self) -> onnx.ValueInfoProto:
        return _declared(PACKED, sum(self._sizes), 1, 1)


def _declared(name: str, *shape: int) -> onnx.ValueInfoProto:
    """Return the declaration of a value [N, *shape]."""
    sizes: list[str | int | None] = ["N", *shape]
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes)


def _constant(graph: onnx.GraphProto, name: str, values: list[int]) -> str:
    graph.initializer.append(numpy_helper.from_array(np.array(values), name))
    return name
