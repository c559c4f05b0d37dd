"""An FP32 graph with Q/DQ nodes, calibrated on good images with ONNX Runtime's quantizer.

One rule for every method decides what becomes INT8: convolutions with constant weights, except

- those in the method's FP32 islands;
- those with fewer than `FEWEST_CHANNELS` output channels, which are final projections;
- those that change the score of a good image by more than `LARGEST_CHANGE` of the standard
  deviation of good scores, see `_harmless`.

Everything else stays FP32: the normalisation of the input, matrix products (resizing, smoothing,
distances), the score and the map.

Activations are signed and symmetric, weights are quantized per output channel, biases stay float.
That is the only form that TensorRT accepts, and OpenVINO runs it as fast as the unsigned one. ONNX
Runtime computes it correctly, for parity, but at 0.6 to 0.8 times the speed of FP32, so that its
engine does not offer it: it has integer convolutions only where outputs are quantized too, and
merges them with a ReLU only for unsigned activations. In that form, which TensorRT refuses, it was
1.1 to 1.4 times as fast as FP32 (SimpleNet and PatchCore, ResNet18, on a CPU with AVX-512 VNNI),
where OpenVINO's INT8 is several times as fast.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QDQQuantizer,
    QuantType,
    create_calibrator,
)

from flawline.export import ExportError
from flawline.export.graphs import GraphContext, evenly_spaced
from flawline.export.graphs.edit import initializers
from flawline.runtime.console import log
from flawline.runtime.engines import Engine, open_reference
from flawline.runtime.image import Image
from flawline.runtime.precisions import islands_of
from flawline.train.progress import Progress, no_progress

FEWEST_CHANNELS = 8
LARGEST_CHANGE = 0.2  # of the standard deviation of good images' scores
CALIBRATION_IMAGES = 64  # good images that set the ranges of a bundle's graph
FEWEST_IMAGES = 5
PROBES = 16  # images on which convolutions are tried


def write(fp32: bytes, context: GraphContext) -> bytes:
    """Write the INT8 graph of a bundle from its FP32 graph. Raises ExportError."""
    images = evenly_spaced(context.good_images, CALIBRATION_IMAGES)
    model = to_int8(fp32, images, context.fp32_islands, context.score_std, context.progress)
    log(describe_int8(model))
    return model


def to_int8(
    model: bytes,
    images: Sequence[Image],
    islands: Sequence[str],
    score_std: float,
    progress: Progress = no_progress,
) -> bytes:
    """Quantize a serialised FP32 graph. Inputs and outputs keep their types.

    The same arguments give the same bytes.

    Args:
        model: the serialised FP32 graph.
        images: good images, uint8 [H, W, 3] as the graph takes them; they set the ranges.
        islands: FP32 islands, see `islands_of`; their convolutions stay float.
        score_std: standard deviation of the scores of good images; infinite to let every
            convolution be INT8, for a graph that is only timed.
        progress: called with (what is being done, done, total).

    Raises:
        ExportError: there are fewer than `FEWEST_IMAGES` images, or no convolution can be INT8.
    """
    if len(images) < FEWEST_IMAGES:
        raise ExportError(
            f"INT8 needs at least {FEWEST_IMAGES} good images to set its ranges, got "
            f"{len(images)}; add some"
        )
    proto = onnx.load_model_from_string(model)
    candidates = _convolutions(proto, islands)
    quantizer = _Quantizer(proto, images, progress)
    selected = candidates
    # An infinite deviation allows any change, so that none has to be measured.
    if not math.isinf(score_std):
        selected = _harmless(quantizer, candidates, LARGEST_CHANGE * score_std, progress)
    if not selected:
        raise ExportError("no convolution of this graph can be INT8; use fp32, fp16 or bf16")
    quantized = quantizer.quantize(selected)
    onnx.checker.check_model(quantized, full_check=True)
    serialised: bytes = quantized.SerializeToString(deterministic=True)
    return serialised


def _harmless(
    quantizer: _Quantizer, names: Sequence[str], largest_change: float, progress: Progress
) -> list[str]:
    """Return the convolutions that change no score of a good image by more than this.

    They are tried together, and a group that changes a score too much is tried again in halves, in
    the order of the graph, down to single convolutions. Most are harmless, so that this takes far
    fewer tries than one per convolution. Errors of several groups add up, but this shows which
    convolutions matter.
    """
    probes = evenly_spaced(quantizer.images, PROBES)
    with closing(_open(quantizer.proto)) as engine:
        reference = [_score(engine, image) for image in probes]
    selected: list[str] = []
    groups = [list(names)]
    decided = 0
    while groups:
        group = groups.pop()
        if _is_harmless(quantizer.quantize(group), probes, reference, largest_change):
            selected += group
        elif len(group) > 1:
            middle = len(group) // 2
            groups += [group[middle:], group[:middle]]
            continue
        decided += len(group)
        progress("convolutions", decided, len(names))
    return selected


def _is_harmless(
    model: onnx.ModelProto,
    probes: Sequence[Image],
    reference: Sequence[float],
    largest_change: float,
) -> bool:
    with closing(_open(model)) as engine:
        for image, score in zip(probes, reference, strict=True):
            # One image is enough to reject.
            if not abs(_score(engine, image) - score) <= largest_change:
                return False
    return True


def describe_int8(model: bytes) -> str:
    """Say in one line which convolutions of a graph are INT8."""
    graph = onnx.load_model_from_string(model).graph
    operators = {}
    for node in graph.node:
        for output in node.output:
            operators[output] = node.op_type
    convolutions = 0
    floats = []
    for node in graph.node:
        if node.op_type == "Conv":
            convolutions += 1
            if operators.get(node.input[1]) != "DequantizeLinear":
                floats.append(node.name)
    return (
        f"{convolutions - len(floats)} of {convolutions} convolutions in INT8; "
        f"in float: {', '.join(floats) or 'none'}"
    )


def _convolutions(proto: onnx.ModelProto, islands: Sequence[str]) -> list[str]:
    """Return the names of the convolutions that may become INT8. Raises ExportError for none."""
    weights = initializers(proto.graph)
    names = []
    for node in proto.graph.node:
        if node.op_type != "Conv" or node.input[1] not in weights:
            continue
        channels = weights[node.input[1]].dims[0]
        if channels >= FEWEST_CHANNELS and not islands_of(node.name, islands):
            names.append(node.name)
    if not names:
        raise ExportError(
            "the graph has no convolution outside of its FP32 islands; use fp32 or fp16"
        )
    return names


class _Quantizer:
    """Measures the ranges of all activations once, then quantizes any set of convolutions."""

    def __init__(self, proto: onnx.ModelProto, images: Sequence[Image], progress: Progress) -> None:
        self.proto = proto
        self.images = images
        with tempfile.TemporaryDirectory(prefix="flawline-") as folder:
            model = Path(folder) / "model.onnx"
            onnx.save(proto, str(model))
            calibrator: Any = create_calibrator(
                model,
                ["Conv"],
                str(Path(folder) / "augmented.onnx"),
                CalibrationMethod.MinMax,
            )
            calibrator.collect_data(_CalibrationImages(images, progress))
            self.ranges = calibrator.compute_data()

    def quantize(self, convolutions: Sequence[str]) -> onnx.ModelProto:
        """Return a copy of the graph in which the named convolutions are INT8."""
        # The quantizer works in place.
        copy = onnx.ModelProto()
        copy.CopyFrom(self.proto)
        quantizer = QDQQuantizer(
            copy,
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QInt8,
            tensors_range=self.ranges,
            nodes_to_quantize=list(convolutions),
            nodes_to_exclude=[],
            op_types_to_quantize=["Conv"],
            # TensorRT wants Q/DQ at the inputs of quantized operators only, weights included, and
            # biases in float.
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "AddQDQPairToWeight": True,
                "QuantizeBias": False,
                "OpTypesToExcludeOutputQuantization": ["Conv"],
            },
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
        quantized: onnx.ModelProto = quantizer.model.model
        quantized.ir_version = self.proto.ir_version
        return quantized


class _CalibrationImages(CalibrationDataReader):  # type: ignore[misc]
    """Gives one image per call, so that memory holds the activations of one image only."""

    def __init__(self, images: Sequence[Image], progress: Progress) -> None:
        self._images = images
        self._progress = progress
        self._next = 0

    def get_next(self) -> dict[str, Image] | None:
        if self._next == len(self._images):
            return None
        image = self._images[self._next]
        self._next += 1
        self._progress("ranges", self._next, len(self._images))
        return {"image": image[None]}


def _open(proto: onnx.ModelProto) -> Engine:
    """Open a graph in the reference engine."""
    map_size = (0, 0)
    for value in proto.graph.output:
        if value.name == "map":
            _, height, width = value.type.tensor_type.shape.dim
            map_size = (height.dim_value, width.dim_value)
    return open_reference(proto.SerializeToString(), map_size)


def _score(engine: Engine, image: Image) -> float:
    scores, _map = engine(image[None])
    return float(scores[0])
