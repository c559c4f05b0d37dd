"""Valid ONNX files that are not the graph of a bundle of 64x64 pixels. Needs onnx."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

SIZE = 64


def graph(
    image: tuple[str, int, list[Any]] = ("image", TensorProto.UINT8, ["N", SIZE, SIZE, 3]),
    outputs: tuple[tuple[str, int, list[Any]], ...] = (
        ("score", TensorProto.FLOAT, ["N"]),
        ("map", TensorProto.FLOAT, ["N", SIZE, SIZE]),
    ),
    factor: float | None = None,
    tail: tuple[Any, ...] = (),
    opset: int = 17,
    ir_version: int = 8,
    weights: tuple[Any, ...] = (),
) -> bytes:
    """A graph like tests/golden/tiny.onnx with other inputs, outputs or values."""
    name, kind, shape = image
    last = "map" if factor is None else "mean"
    nodes = [
        helper.make_node("Cast", [name], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float"], [last], axes=[3], keepdims=0),
        helper.make_node("ReduceMax", ["map"], ["score"], axes=[1, 2], keepdims=0),
    ]
    initializers = list(weights)
    if factor is not None:
        initializers.append(helper.make_tensor("factor", TensorProto.FLOAT, [1], [factor]))
        nodes.insert(2, helper.make_node("Mul", ["mean", "factor"], ["map"]))
    made = helper.make_graph(
        [*nodes, *tail],
        "odd",
        [helper.make_tensor_value_info(name, kind, shape)],
        [helper.make_tensor_value_info(*output) for output in outputs],
        initializers,
    )
    opsets = [helper.make_opsetid("", opset)]
    model = helper.make_model(made, opset_imports=opsets, ir_version=ir_version)
    return bytes(model.SerializeToString())


def external_graph(location: str) -> bytes:
    """A graph whose factor, 1.0, is in another file."""
    tensor = TensorProto(name="factor", data_type=TensorProto.FLOAT, dims=[1])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "4")):
        entry = tensor.external_data.add()
        entry.key = key
        entry.value = value
    model = onnx.load_model_from_string(graph(factor=1.0))
    del model.graph.initializer[:]
    model.graph.initializer.append(tensor)
    return bytes(model.SerializeToString())


def odd_graphs(outside: Path) -> dict[str, bytes]:
    """Graphs by what is wrong with them. `outside` is written: weights outside the bundle."""
    np.ones(1, np.float32).tofile(outside)
    uint8 = TensorProto.UINT8
    score = ("score", TensorProto.FLOAT, ["N"])
    anomaly_map = ("map", TensorProto.FLOAT, ["N", SIZE, SIZE])
    crash = (
        helper.make_node("Constant", [], ["shape"], value_ints=[1, 2, 3]),
        helper.make_node("Reshape", ["map"], ["map2"], name="crash"),
    )
    crash[1].input.append("shape")
    return {
        "input of another name": graph(("input", uint8, ["N", SIZE, SIZE, 3])),
        "float input": graph(("image", TensorProto.FLOAT, ["N", SIZE, SIZE, 3])),
        "input of planes": graph(("image", uint8, ["N", 3, SIZE, SIZE])),
        "larger input": graph(("image", uint8, ["N", 96, 96, 3]), (score, anomaly_map)),
        "four colours": graph(("image", uint8, ["N", SIZE, SIZE, 4])),
        "outputs exchanged": graph(outputs=(anomaly_map, score)),
        "map alone": graph(outputs=(anomaly_map,)),
        "score twice": graph(outputs=(score, score)),
        "one output more": graph(outputs=(score, anomaly_map, ("float", 1, None))),
        "other values": graph(factor=1.01),
        "negative values": graph(factor=-1.0),
        "no values": graph(factor=float("nan")),
        "fails when it runs": graph(tail=crash, outputs=(score, ("map2", 1, None))),
        "old operators": graph(opset=6),
        "future operators": graph(opset=99),
        "future format": graph(ir_version=99),
        "weights in another file": external_graph("weights.bin"),
        "weights outside": external_graph("../outside.bin"),
        "weights at a path": external_graph(str(outside.resolve())),
        "weights nowhere": external_graph("nowhere.bin"),
    }
