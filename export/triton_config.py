"""The configuration of a model for Triton: its inputs, outputs, backend and parameters."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from string import Template

from flawline.runtime.bundle import Bundle
from flawline.runtime.console import printable
from flawline.runtime.fixture import FIXTURE
from flawline.runtime.inspected_area import INSPECTED_AREA
from flawline.runtime.tiles import TILES

CONFIG = "config.pbtxt"
WARM_UP = "image"
QUEUE_MICROSECONDS = 500  # how long Triton waits for more images to form a batch


@dataclass(frozen=True)
class Backend:
    """One way in which Triton runs a bundle.

    `setting` is the line of the configuration that names it, `file` the file that it loads, and
    `device` where it runs. With `needs_plan` the file is a compiled plan, and otherwise a graph of
    the bundle.
    """

    setting: str
    file: str
    device: str
    needs_plan: bool = False


# By the name of the engine.
BACKENDS = {
    "onnxruntime": Backend('backend: "onnxruntime"', "model.onnx", "KIND_AUTO"),
    "tensorrt": Backend('platform: "tensorrt_plan"', "model.plan", "KIND_GPU", needs_plan=True),
}
DEFAULT_BACKEND = "onnxruntime"


def config_text(
    bundle: Bundle,
    name: str,
    engine: str,
    precision: str,
    max_batch: int,
    graph: str | None = None,
) -> str:
    """Return config.pbtxt: Triton's ModelConfig as protobuf text.

    With `max_batch` 0, a request is one image, without batching. `graph` is the precision of the
    bundle's graph that is served or was compiled; by default `precision`.
    """
    image = list(bundle.manifest.graph_input.shape)
    map_shape = list(bundle.map_size)
    batching = ""
    if max_batch:
        # Triton adds the axis of the batch to every shape itself.
        batching = f"dynamic_batching {{\n  max_queue_delay_microseconds: {QUEUE_MICROSECONDS}\n}}"
    else:
        image = [1, *image]
        map_shape = [1, *map_shape]
    backend = BACKENDS[engine]
    template = resources.files("flawline.export").joinpath(CONFIG).read_text(encoding="utf-8")
    return Template(template).substitute(
        name=_quoted(name),
        backend=backend.setting,
        file=_quoted(backend.file),
        max_batch=max_batch,
        dims=image,
        outputs=_outputs(bundle.manifest.outputs, map_shape, bool(max_batch)),
        batching=batching,
        device=backend.device,
        warm_up=_quoted(WARM_UP),
        parameters=_parameters(bundle, precision, graph or precision),
    )


def _outputs(names: Sequence[str], map_shape: Sequence[int], batched: bool) -> str:
    """Return the entries of the configuration's output list."""
    entries = []
    for name in names:
        lines = [f"name: {_quoted(name)}", "data_type: TYPE_FP32"]
        if name == "map":
            lines.append(f"dims: {list(map_shape)}")
        else:
            lines.append("dims: [1]")
            if batched:
                # Triton has no batch of scalars: it sees each image's score as a vector of one.
                lines.append("reshape: { shape: [ ] }")
        body = "\n".join(f"    {line}" for line in lines)
        entries.append(f"  {{\n{body}\n  }}")
    return ",\n".join(entries)


def _parameters(bundle: Bundle, precision: str, graph: str) -> str:
    """Return the parameters with which a client prepares a frame and judges a score.

    Triton gives the parameters to its clients with the configuration.
    """
    manifest = bundle.manifest
    values: dict[str, str] = {
        "threshold": repr(bundle.calibration.threshold),
        "geometry": json.dumps(manifest.geometry.to_json(), sort_keys=True),
        "method": manifest.method,
        "backbone": manifest.backbone,
        "precision": precision,
        "onnx_sha256": bundle.model_sha256(graph),
    }
    review = bundle.calibration.review_threshold
    if review is not None:
        values["review_threshold"] = repr(review)
    if manifest.source is not None:
        values["source"] = str(manifest.source)
    if manifest.tiles is not None:
        values[TILES] = json.dumps(manifest.tiles.to_json(), sort_keys=True)
    if manifest.inspected_area is not None:
        values[INSPECTED_AREA] = json.dumps(manifest.inspected_area.to_json(), sort_keys=True)
    if manifest.fixture is not None:
        values[FIXTURE] = json.dumps(manifest.fixture.to_json(), sort_keys=True)
    lines = []
    for key, value in values.items():
        entry = f"key: {_quoted(key)} value {{ string_value: {_quoted(value)} }}"
        lines.append(f"parameters {{ {entry} }}")
    return "\n".join(lines)


def _quoted(value: str) -> str:
    """Return a protobuf text string. Its escapes include those of JSON, except surrogate pairs."""
    return json.dumps(printable(value), ensure_ascii=False)
