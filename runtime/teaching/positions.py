"""Where a graph has features of positions, and the anomaly value of each, whatever its method.

A graph that was exported from a method with a backbone calls the nodes of that so. Needs onnx.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx
import onnx.shape_inference

# Nodes of the pretrained network; its levels are what other nodes read of it.
BACKBONE = "/backbone/"
# Pixels of the input per feature, at least, where values are not on the grid of a level: finer
# features are of few pixels, and there are many of them.
STRIDE = 8

# By how much the proportions of two grids of one image differ at most: sizes are rounded.
PROPORTION = 1.15

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Levels:
    """What a graph has for each position.

    `value` is the name of the anomaly values, through which alone the image has an influence on
    the outputs; their shape is [N, *value_shape]. `levels` are the names of the feature maps
    [N, *shape] of the backbone, which the values are computed from, with their shapes. `grid` is
    the height and width on which features are compared.
    """

    value: str
    value_shape: Shape
    levels: dict[str, Shape]
    grid: tuple[int, int]


def find_levels(model: onnx.ModelProto, image: str, height: int) -> Levels | None:
    """Return where the features and the anomaly values of a graph are; None if it has none.

    `image` is the name of the input, and `height` that of the input of the backbone in pixels.
    """
    shapes = _shapes(model)
    nodes = list(model.graph.node)
    levels = _levels(nodes, shapes)
    if not levels:
        return None
    finest = max((shapes[level] for level in levels), key=_size)
    after = _descendants(nodes, levels)
    outputs = [output.name for output in model.graph.output]
    found = None
    for node in nodes:
        for name in node.output:
            shape = shapes.get(name, ())
            if name not in after or not _is_map(shape, finest):
                continue
            # The last one of the coarsest grid: what comes later may be enlarged.
            if found is not None and _size(shape) > _size(shapes[found]):
                continue
            if not _reaches(nodes, image, outputs, name):
                found = name
    if found is None:
        return None
    read = {name: shapes[name] for name in levels if found in _descendants(nodes, [name])}
    return Levels(found, shapes[found], read, _grid(shapes[found], read, height))


def _shapes(model: onnx.ModelProto) -> dict[str, Shape]:
    """Return the shapes of float values without their first axis, where all sizes are known."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    shapes = {}
    for value in (*inferred.value_info, *inferred.output):
        kind = value.type.tensor_type
        sizes = [size.dim_value for size in kind.shape.dim][1:]
        if kind.elem_type == onnx.TensorProto.FLOAT and all(sizes):
            shapes[value.name] = tuple(sizes)
    return shapes


def _levels(nodes: Sequence[onnx.NodeProto], shapes: dict[str, Shape]) -> list[str]:
    """Return the feature maps of the backbone that other nodes read, in their order."""
    given = [name for node in nodes if _in_backbone(node) for name in node.output]
    read = {name for node in nodes if not _in_backbone(node) for name in node.input}
    return [name for name in given if name in read and _is_level(shapes.get(name, ()))]


def _in_backbone(node: onnx.NodeProto) -> bool:
    return node.name.startswith(BACKBONE)


def _is_level(shape: Shape) -> bool:
    return len(shape) == 3 and min(shape) > 1


def _is_map(shape: Shape, level: Shape) -> bool:
    """Tell whether a value is one number for each position: [h, w] or [1, h, w].

    Its grid has the proportions of a level. Tables of features, and grids below each other, have
    others.
    """
    channels, plane = shape[:-2], shape[-2:]
    if channels not in ((), (1,)) or len(plane) != 2 or min(plane) < 2:
        return False
    proportion = plane[0] * level[-1] / (plane[1] * level[-2])
    return 1 / PROPORTION < proportion < PROPORTION


def _size(shape: Shape) -> int:
    return shape[-1] * shape[-2]


def _descendants(nodes: Sequence[onnx.NodeProto], values: Iterable[str]) -> set[str]:
    """Return the values that depend on some values, and are none of these."""
    known = set(values)
    found: set[str] = set()
    for node in nodes:
        if not known.isdisjoint(node.input):
            found.update(node.output)
            known.update(node.output)
    return found


def _reaches(
    nodes: Sequence[onnx.NodeProto], start: str, ends: Sequence[str], without: str
) -> bool:
    """Tell whether one of the ends depends on the start in a way that is not through one value."""
    known = {start}
    for node in nodes:
        if not known.isdisjoint(node.input):
            known.update(name for name in node.output if name != without)
    return not known.isdisjoint(ends)


def _grid(values: Shape, levels: dict[str, Shape], height: int) -> tuple[int, int]:
    grids = sorted({shape[-2:] for shape in levels.values()}, reverse=True)
    if values[-2:] in grids:
        return values[-2], values[-1]
    coarse = [grid for grid in grids if height >= STRIDE * grid[0]]
    chosen = coarse[0] if coarse else grids[-1]
    return chosen[0], chosen[1]
