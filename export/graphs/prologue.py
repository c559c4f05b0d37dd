"""`prepare()` as the first nodes of a graph, which then takes a camera's frames.

They compute the steps of `runtime.image.resize` with OpenCV's weights, and round after each as
OpenCV does. The results are those of `prepare()`, apart from single pixels whose exact value is
half way between two grey levels. All values are FP32 in every precision, because FP16 would round
the sums.

A frame is converted to float first, which TensorRT requires of bytes. The first halving of a frame
in BGR also separates the colours, as a convolution that skips the values of the others: engines
for CPUs transpose whole frames slowly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from flawline.export.graphs.area import Matrix, area_weights, linear_weights
from flawline.export.graphs.bayer import EDGE_ROWS, demosaic_kernels, edge_shares
from flawline.runtime.image import PADDING_BGR, Geometry, ResizeStep, resize_steps
from flawline.runtime.source_frame import BGR, MONO, PREPARED, SourceFrame

# In front of the names of all nodes: an FP32 island.
PROLOGUE = "/source"
INPUT = "image"
TO_PLANES = [0, 3, 1, 2]
# OpenCV's INTER_LINEAR rounds to these parts of a grey level after the columns and the rows.
FIRST_ROUNDING = 128
SECOND_ROUNDING = 4
# Added to quarters of a grey level, it makes Round, which rounds halves to the even level, round
# halves up. Engines fuse a convolution with its bias and Round.
EIGHTH = 0.125

Crop = tuple[range, range]  # rows and columns


def _is_identity(weights: Matrix) -> bool:
    return np.array_equal(weights, np.eye(*weights.shape, dtype=np.float32))


class Prologue:
    """Writes the nodes for frames of a camera.

    `nodes` and `tensors` are its nodes and constants, and `macs` the multiply-accumulates for one
    frame, of which a pixel that is averaged counts as one. `height` and `width` are those of the
    planes so far.
    """

    def __init__(self, source: SourceFrame) -> None:
        self.source = source
        self.height = source.height
        self.width = source.width
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self.macs = 0
        self._channels = 1 if source.layout == MONO else 3

    def prepare(self, geometry: Geometry) -> str:
        """Write all nodes; return the name of the model's input as float planes [N, 3, H, W]."""
        source = self.source
        scaled_height, scaled_width, top, left = geometry.place(source.height, source.width)
        steps = resize_steps(source.height, source.width, scaled_height, scaled_width)
        rows = range(max(top, 0), min(top + geometry.height, scaled_height))
        columns = range(max(left, 0), min(left + geometry.width, scaled_width))
        frame = self._node("Cast", [INPUT], to=TensorProto.FLOAT)
        planes, steps = self._planes(frame, steps)
        for step in steps:
            # Nothing but the crop is computed in the last step.
            last = step is steps[-1]
            planes = self._step(planes, step, (rows, columns) if last else None)
        planes = self._cropped(planes, rows, columns)
        if source.layout == MONO:
            planes = self._node("Concat", [planes] * 3, axis=1)
        planes = self._bars(planes, geometry, max(-top, 0), max(-left, 0))
        self.nodes[-1].output[0] = PREPARED
        return PREPARED

    def _planes(self, frame: str, steps: list[ResizeStep]) -> tuple[str, list[ResizeStep]]:
        """Separate the colours of a frame; return planes [N, C, h, w] and the steps that are left.

        The first step is included where it is a halving.
        """
        first = self._factors(steps[0]) if steps else (1, 1)
        halves = max(first) == 2
        if self.source.is_bayer:
            if first == (2, 2):
                return self._halved_mosaic(frame), steps[1:]
            return self._demosaiced(frame), steps
        if self.source.layout != BGR:
            shape = self._integers("mono", [-1, 1, self.height, self.width])
            return self._node("Reshape", [frame, shape]), steps
        if not halves:
            return self._node("Transpose", [frame], perm=TO_PLANES), steps
        return self._halved_colours(frame, first), steps[1:]

    def _halved_colours(self, frame: str, factors: tuple[int, int]) -> str:
        """Average the pixels of a frame in BGR, whose colours follow each other in a row."""
        down, right = factors
        kernels = np.zeros((3, 1, down, 3 * right), np.float32)
        for colour in range(3):
            kernels[colour, 0, :, colour::3] = 1 / (down * right)
        shape = self._integers("rows", [-1, 1, self.height, 3 * self.width])
        rows = self._node("Reshape", [frame, shape])
        self.height //= down
        self.width //= right
        stride = [down, 3 * right]
        self.macs += kernels.size * self.height * self.width
        inputs = [rows, self._tensor("colours", kernels)]
        if factors == (2, 2):
            inputs.append(self._tensor("eighths", np.full(3, EIGHTH, np.float32)))
        return self._node("Round", [self._node("Conv", inputs, strides=stride)])

    def _positions(self, frame: str) -> str:
        """Demosaic a frame: [N, 12, h / 2, w / 2], the colours of each of four positions.

        Those at the edge of the frame, which OpenCV copies from their neighbours, are not valid.
        """
        shape = self._integers("mosaic", [-1, 1, self.height, self.width])
        mosaic = self._node("Reshape", [frame, shape])
        kernels = demosaic_kernels(self.source.layout)
        self.macs += kernels.size * (self.height // 2) * (self.width // 2)
        weights = self._tensor("demosaic", kernels)
        eighths = self._tensor("eighths", np.full(len(kernels), EIGHTH, np.float32))
        colours = self._node("Conv", [mosaic, weights, eighths], strides=[2, 2], pads=[1] * 4)
        return self._node("Round", [colours])

    def _halved_mosaic(self, frame: str) -> str:
        """Demosaic a frame, and average each four pixels of one position."""
        positions = self._positions(frame)
        self.height //= 2
        self.width //= 2
        for axis, length in ((2, self.height), (3, self.width)):
            # The row or column of a position is one axis, and what is left of it another.
            inner = 6 if axis == 2 else 3
            shape = self._integers(f"pairs{axis}", [-1, 2, inner, self.height, self.width])
            pairs = self._node("Reshape", [positions, shape])
            shares = edge_shares(length).reshape((2, 1, -1, 1) if axis == 2 else (2, 1, 1, -1))
            weighted = self._node("Mul", [pairs, self._tensor(f"edges{axis}", shares)])
            one = self._integers(f"pair{axis}", [1])
            positions = self._node("ReduceSum", [weighted, one], keepdims=0)
            self.macs += 2 * inner * self.height * self.width
        return self._rounded(positions)

    def _demosaiced(self, frame: str) -> str:
        """Demosaic a frame at its full size."""
        planes = self._node("DepthToSpace", [self._positions(frame)], blocksize=2, mode="DCR")
        for axis, length in ((2, self.height), (3, self.width)):
            indices = [EDGE_ROWS, *range(EDGE_ROWS, length - EDGE_ROWS), length - EDGE_ROWS - 1]
            edges = self._integers(f"copied{axis}", indices)
            planes = self._node("Gather", [planes, edges], axis=axis)
        return planes

    def _factors(self, step: ResizeStep) -> tuple[int, int]:
        """Return by which whole numbers a step divides both axes; (0, 0) if it does not."""
        down, rest = divmod(self.height, step.height)
        right, other_rest = divmod(self.width, step.width)
        if rest or other_rest:
            return 0, 0
        return down, right

    def _step(self, planes: str, step: ResizeStep, crop: Crop | None) -> str:
        """Resize planes [N, C, h, w], and round them to whole grey levels.

        A step of fractions computes the rows and columns of `crop` alone, if it is given.
        """
        factors = self._factors(step)
        if min(factors) > 0:
            self.macs += self._channels * self.height * self.width
            self.height, self.width = step.height, step.width
            means = self._node(
                "AveragePool", [planes], kernel_shape=list(factors), strides=list(factors)
            )
            return self._rounded(means, halves_up=factors == (2, 2))
        rows, columns = crop or (range(step.height), range(step.width))
        if step.grows:
            return self._enlarged(planes, step, rows, columns)
        down = area_weights(self.height, step.height)[rows]
        right = area_weights(self.width, step.width)[columns]
        return self._rounded(self._to_columns(self._to_rows(planes, down), right), halves_up=False)

    def _enlarged(self, planes: str, step: ResizeStep, rows: range, columns: range) -> str:
        """Interpolate linearly, with OpenCV's fixed point: it rounds down three times."""
        before, after = linear_weights(self.width, step.width)
        right = FIRST_ROUNDING * (before + after)[columns]
        scaled = self._to_columns(planes, right)
        scaled = self._node("Floor", [scaled])
        shares = []
        length = self.height
        for weights in linear_weights(length, step.height):
            self.height = length
            factor = SECOND_ROUNDING / FIRST_ROUNDING
            share = self._to_rows(scaled, np.asarray(factor * weights[rows], np.float32))
            shares.append(self._node("Floor", [share]))
        total = self._node("Add", shares)
        scale = self._tensor("quarter", np.array(1 / SECOND_ROUNDING, np.float32))
        return self._rounded(self._node("Mul", [total, scale]))

    def _to_rows(self, planes: str, weights: Matrix) -> str:
        """Multiply the rows of planes by weights [rows, h], unless that changes nothing."""
        if _is_identity(weights):
            return planes
        self.macs += self._channels * weights.size * self.width
        self.height = len(weights)
        return self._node("MatMul", [self._tensor(f"down_{len(self.nodes)}", weights), planes])

    def _to_columns(self, planes: str, weights: Matrix) -> str:
        """Multiply the columns of planes by weights [columns, w], unless that changes nothing."""
        if _is_identity(weights):
            return planes
        self.macs += self._channels * weights.size * self.height
        self.width = len(weights)
        matrix = np.ascontiguousarray(weights.T)
        return self._node("MatMul", [planes, self._tensor(f"right_{len(self.nodes)}", matrix)])

    def _cropped(self, planes: str, rows: range, columns: range) -> str:
        """Cut the crop out, unless it is all that was computed."""
        if (self.height, self.width) == (len(rows), len(columns)):
            return planes
        self.height, self.width = len(rows), len(columns)
        begin = self._integers("crop_begin", [rows.start, columns.start])
        end = self._integers("crop_end", [rows.stop, columns.stop])
        return self._node("Slice", [planes, begin, end, self._integers("crop_axes", [2, 3])])

    def _rounded(self, planes: str, halves_up: bool = True) -> str:
        """Round to whole grey levels, as OpenCV does: halves up, or to the even level."""
        if not halves_up:
            return self._node("Round", [planes])
        half = self._tensor("half", np.array(0.5, np.float32))
        return self._node("Floor", [self._node("Add", [planes, half])])

    def _bars(self, planes: str, geometry: Geometry, top: int, left: int) -> str:
        """Surround planes with the bars of the letterbox, which has a colour for each plane."""
        bottom = geometry.height - self.height - top
        right = geometry.width - self.width - left
        if not any((top, left, bottom, right)):
            return planes
        colour = np.array(PADDING_BGR, np.float32).reshape(1, 3, 1, 1)
        bars = self._tensor("bars", colour)
        widths = self._integers("bar_widths", [0, 0, top, left, 0, 0, bottom, right])
        padded = self._node("Pad", [self._node("Sub", [planes, bars]), widths])
        return self._node("Add", [padded, bars])

    def _node(self, kind: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Add a node, and return the name of its output."""
        name = f"{PROLOGUE}/{kind}_{len(self.nodes)}"
        output = f"{name}_output_0"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name, **attributes))
        return output

    def _tensor(self, name: str, values: np.ndarray[Any, Any]) -> str:
        """Add a constant unless it is there already; return its name in the graph."""
        full = f"source.{name}"
        if full not in [tensor.name for tensor in self.tensors]:
            self.tensors.append(numpy_helper.from_array(values, full))
        return full

    def _integers(self, name: str, values: Sequence[int]) -> str:
        return self._tensor(name, np.array(values, np.int64))
