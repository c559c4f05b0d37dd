"""What a graph says about where a teacher on a box finds what it replaces.

It is in the metadata of the ONNX file, which every engine ignores.
"""

from __future__ import annotations

import json

import onnx

from flawline.export.graphs.edit import element_types, initializers
from flawline.runtime.teaching.record import TEACHING, TeachingRecord
from flawline.train.method import Teachable


def with_teaching(model: bytes, teachable: Teachable | None) -> bytes:
    """Return a serialised graph that states what the method declares; the graph itself if None."""
    if teachable is None:
        return model
    proto = onnx.load_model_from_string(model)
    record = TeachingRecord(
        features=_read_by(proto.graph, teachable.features),
        distances=_given_by(proto, teachable.distances),
        settings=teachable.settings,
    )
    proto.metadata_props.add(key=TEACHING, value=json.dumps(record.to_json()))
    serialised: bytes = proto.SerializeToString()
    return serialised


def _read_by(graph: onnx.GraphProto, module: str) -> str:
    """Return the name of the one value that a module reads, apart from constants."""
    constants = initializers(graph).keys()
    inside = [node for node in graph.node if _is_inside(node, module)]
    given: set[str] = {name for node in inside for name in node.output}
    read: set[str] = {name for node in inside for name in node.input if name}
    (name,) = read - given - constants
    return name


def _given_by(proto: onnx.ModelProto, module: str) -> str:
    """Return the name of the one float value that a module gives to nodes outside of it."""
    graph = proto.graph
    types = element_types(proto)
    given: set[str] = set()
    read: set[str] = {value.name for value in graph.output}
    for node in graph.node:
        if _is_inside(node, module):
            given.update(node.output)
        else:
            read.update(node.input)
    (name,) = (name for name in given & read if types[name] == onnx.TensorProto.FLOAT)
    return name


def _is_inside(node: onnx.NodeProto, module: str) -> bool:
    return node.name.startswith("/" + module.replace(".", "/") + "/")
