"""The graph of a bundle as a teacher needs it: its parts, and other constants in it.

Needs onnx, which the extra `teach` brings, and no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx
import onnx.shape_inference
import onnx.utils
from onnx import numpy_helper

from flawline.runtime.strict_json import SchemaError
from flawline.runtime.teaching import OTHER_GRAPH, TeachError
from flawline.runtime.teaching.record import TEACHING, TeachingRecord, record_from_json

Array = npt.NDArray[Any]
# Constants by their names, which take the place of those of a graph.
Constants = Mapping[str, Array]
INPUT = "image"


class TaughtGraph:
    """An FP32 graph whose metadata say where its features are.

    `record` is what they say. Raises TeachError for a graph without such metadata.
    """

    # Of the metadata.
    key: ClassVar[str] = TEACHING
    # FP32 islands that it has in addition to those of the method.
    islands: ClassVar[tuple[str, ...]] = ()

    def __init__(self, model: bytes) -> None:
        self._model = onnx.load_model_from_string(model)
        self._nodes = {node.name: node for node in self._model.graph.node}
        self._tensors = {tensor.name: tensor for tensor in self._model.graph.initializer}
        self.record = self._read_record()
        # By the values that they begin with.
        self._parts: dict[tuple[str, ...], onnx.ModelProto] = {}

    @property
    def outputs(self) -> list[str]:
        """The names of the outputs: the score, and the map if there is one."""
        return [value.name for value in self._model.graph.output]

    def has_node(self, node: str) -> bool:
        """Tell whether there is a node of this name."""
        return node in self._nodes

    def has_constant(self, name: str) -> bool:
        """Tell whether there is a constant of this name."""
        return name in self._tensors

    def constant_name(self, node: str, place: int) -> str:
        """Return the name of the constant that a node reads at a place. Raises TeachError."""
        found = self._nodes.get(node)
        if found is None or place >= len(found.input) or found.input[place] not in self._tensors:
            raise TeachError(OTHER_GRAPH)
        name: str = found.input[place]
        return name

    def constant(self, name: str) -> Array:
        """Return the value of a constant."""
        value: Array = numpy_helper.to_array(self._tensors[name])
        return value

    def with_constants(self, constants: Constants) -> bytes:
        """Return the serialised graph with other constants, which may have other shapes."""
        return replace_constants(self._model, constants)

    def backbone(self, constants: Constants) -> bytes:
        """Return the part from the image to the features."""
        return replace_constants(self._part([INPUT], [self.record.features]), constants)

    def head(self, constants: Constants) -> bytes:
        """Return the part from the features to the outputs of the graph and the distances.

        The outputs come first, in their order.
        """
        ends = [*self.outputs, self.record.distances]
        return replace_constants(self._part([self.record.features], ends), constants)

    def _part(self, starts: Sequence[str], ends: Sequence[str]) -> onnx.ModelProto:
        """Return the nodes from values to others; a part that was cut before is not cut again."""
        place = tuple(starts)
        if place not in self._parts:
            # The extractor must know the shapes of what it cuts.
            inferred = onnx.shape_inference.infer_shapes(self._model)
            extractor = onnx.utils.Extractor(inferred)
            part = extractor.extract_model(list(starts), list(ends))
            for value in part.graph.output:
                for size in value.type.tensor_type.shape.dim:
                    # Other constants may change it.
                    size.Clear()
            self._parts[place] = part
        return self._parts[place]

    def _read_record(self) -> TeachingRecord:
        for entry in self._model.metadata_props:
            if entry.key == self.key:
                try:
                    return record_from_json(entry.value.encode())
                except SchemaError as error:
                    raise TeachError(f"{error}; {OTHER_GRAPH}") from error
        raise TeachError(
            "the graph does not say where its features are, as those of older versions; build the "
            "bundle again from its checkpoint, then teach that"
        )


def replace_constants(original: onnx.ModelProto, constants: Constants) -> bytes:
    """Return a serialised model with other constants, which may have other shapes."""
    model = onnx.ModelProto()
    model.CopyFrom(original)
    for tensor in model.graph.initializer:
        if tensor.name in constants:
            value = np.ascontiguousarray(constants[tensor.name])
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    # The shapes of values in between may have changed.
    del model.graph.value_info[:]
    onnx.checker.check_model(model, full_check=True)
    serialised: bytes = model.SerializeToString()
    return serialised
