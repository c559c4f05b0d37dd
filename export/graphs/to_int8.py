"""A float32 graph to the same graph with Q/DQ nodes, calibrated on good images with ONNX Runtime's quantizer.

What becomes INT8, by one rule for every method: convolutions with constant weights, except

- the method's FP32 islands;
- those of fewer than `FEWEST_CHANNELS` outputs, which are final projections;
- those that alone move the score of a good image by more than `HARM` of the good images' spread.

All else stays float32: the input's arithmetic, matrix products (resizing, smoothing, distances), the score, the map.

Activations are signed and symmetric, weights per output channel, biases float: the one form that TensorRT takes, and
OpenVINO runs it as fast as the unsigned one. ONNX Runtime computes it right, but slower than FP32: it merges a
convolution with its ReLU only where activations are unsigned, and even then gains little once the convolutions that
harm stay float.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from flawline.export.graphs.to_fp16 import in_island
from flawline.export.parity import ExportError
from flawline.runtime.image import Image
from flawline.train.progress import Progress

FEWEST_CHANNELS = 8
HARM = 0.2  # of the spread of good images' scores
PROBES = 16  # images that judge each convolution alone
FEWEST_IMAGES = 5


def to_int8(
    model: bytes,
    images: Sequence[Image],
    float_nodes: Sequence[str],
    spread: float,
    progress: Progress = lambda what, done, total: None,
) -> bytes:
    """The serialised graph with Q/DQ, inputs and outputs as they were.

    `images` are good ones uint8 [H, W, 3] as the graph takes them: they give the ranges. `float_nodes` are the method's
    FP32 islands. `spread` is the standard deviation of good images' scores. The same arguments give the same bytes.
    Raises ExportError where images are too few or nothing can be quantized.
    """
    if len(images) < FEWEST_IMAGES:
        raise ExportError(
            f"INT8 needs at least {FEWEST_IMAGES} good images for its ranges, got {len(images)}; add some"
        )
    proto = onnx.load_model_from_string(model)
    convolutions = _convolutions(proto, float_nodes)
    with tempfile.TemporaryDirectory(prefix="flawline-") as folder:
        quantizer = _Quantizer(proto, images, Path(folder), progress)
    probes = [images[int(i)] for i in np.linspace(0, len(images) - 1, min(PROBES, len(images)))]
    reference, kept = _scores(proto, probes), []
    for i, name in enumerate(convolutions):
        moved = np.abs(_scores(quantizer([name]), probes) - reference).max()
        if moved <= HARM * spread:
            kept.append(name)
        progress("convolutions", i + 1, len(convolutions))
    if not kept:
        raise ExportError("no convolution of this graph can be INT8; keep to fp32, fp16 or bf16")
    written = quantizer(kept)
    onnx.checker.check_model(written, full_check=True)
    serialised: bytes = written.SerializeToString(deterministic=True)
    return serialised


def describe(model: bytes) -> str:
    """What of a graph that to_int8 wrote is INT8, in one line."""
    graph = onnx.load_model_from_string(model).graph
    made_by = {output: node.op_type for node in graph.node for output in node.output}
    every = [node for node in graph.node if node.op_type == "Conv"]
    floats = [node.name for node in every if made_by.get(node.input[1]) != "DequantizeLinear"]
    return f"{len(every) - len(floats)} of {len(every)} convolutions in INT8; in float: {', '.join(floats) or 'none'}"


def _convolutions(proto: onnx.ModelProto, float_nodes: Sequence[str]) -> list[str]:
    shapes = {tensor.name: tensor.dims for tensor in proto.graph.initializer}
    found = [
        node.name
        for node in proto.graph.node
        if node.op_type == "Conv"
        and node.input[1] in shapes
        and shapes[node.input[1]][0] >= FEWEST_CHANNELS
        and not in_island(node.name, float_nodes)
    ]
    if not found:
        raise ExportError(
            "the graph has no convolution outside of its FP32 islands; keep to fp32 or fp16"
        )
    return found


class _Quantizer:
    """Calibrates once; each call gives a graph in which the named convolutions are INT8."""

    def __init__(
        self, proto: onnx.ModelProto, images: Sequence[Image], folder: Path, progress: Progress
    ) -> None:
        from onnxruntime.quantization import CalibrationMethod, create_calibrator

        self.proto = proto
        onnx.save(proto, str(folder / "model.onnx"))
        calibrator: Any = create_calibrator(
            folder / "model.onnx",
            ["Conv"],
            str(folder / "augmented.onnx"),
            CalibrationMethod.MinMax,
        )
        calibrator.collect_data(_reader(images, progress))
        self.ranges = calibrator.compute_data()

    def __call__(self, convolutions: Sequence[str]) -> onnx.ModelProto:
        from onnxruntime.quantization import QDQQuantizer, QuantType

        copy = onnx.ModelProto()
        copy.CopyFrom(self.proto)  # the quantizer works in place
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
            # NVIDIA asks for Q/DQ only at the inputs of what is quantized, weights included, and for biases in float.
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
        written: onnx.ModelProto = quantizer.model.model
        written.ir_version = self.proto.ir_version
        return written


def _reader(images: Sequence[Image], progress: Progress) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """One image a call, so that memory holds the activations of one."""

        def __init__(self) -> None:
            self.rest: Iterator[tuple[int, Image]] = enumerate(images)

        def get_next(self) -> dict[str, Image] | None:
            i, image = next(self.rest, (0, None))
            if image is None:
                return None
            progress("ranges", i + 1, len(images))
            return {"image": image[None]}

    return Reader()


def _scores(proto: onnx.ModelProto, images: Sequence[Image]) -> npt.NDArray[np.float32]:
    """Scores [n] by ONNX Runtime."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(proto.SerializeToString(), options, ["CPUExecutionProvider"])
    return np.concatenate([session.run(["score"], {"image": image[None]})[0] for image in images])
