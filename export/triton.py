"""python -m export.triton --bundle B --out model_repository/: a bundle as a model of NVIDIA's Triton Inference Server.

    model_repository/<name>/config.pbtxt    input, output, batching, warm-up; threshold and geometry as parameters
    model_repository/<name>/1/model.onnx    or model.plan, which TensorRT built on the server's own GPU
    model_repository/<name>/warmup/image    a golden image of the bundle

The client sends images of the model's size, resized as the geometry says (`runtime.image.prepare`), and compares the
score with the threshold. Needs neither torch nor Triton.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from flawline.export.parity import ExportError
from flawline.runtime.bundle import Bundle, BundleError, read_bundle

CONFIG, WARM_UP = "config.pbtxt", "image"
# engine -> what Triton calls it, and its file's name
ENGINES = {
    "onnxruntime": ('backend: "onnxruntime"', "model.onnx"),
    "tensorrt": ('platform: "tensorrt_plan"', "model.plan"),
}
MARK = "# flawline.export.triton"  # the first line of what this command wrote and may replace
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def write_repository(
    bundle: Bundle,
    out: Path,
    name: str,
    engine: str = "onnxruntime",
    precision: str = "fp32",
    plan: Path | None = None,
    max_batch: int | None = None,
    queue_us: int = 500,
    instances: int = 1,
) -> Path:
    """Write the model's folder beside its place, then move it there; the folder.

    `max_batch` is 8 where it is None and the graph takes batches, else 0. A folder that this command wrote is replaced,
    any other is refused. Raises ExportError or BundleError.
    """
    if not NAME.fullmatch(name):
        raise ExportError(
            f"a model cannot be called {name!r}; pass --name with letters, digits, '_', '-' and '.'"
        )
    folder = out / name
    if folder.exists() and not _is_ours(folder):
        raise ExportError(
            f"{folder} exists and was not written by this command; choose another --out or --name"
        )
    source = _model(bundle, engine, precision, plan)
    max_batch = _batch(bundle.model(precision), max_batch)
    config = config_text(bundle, name, engine, precision, max_batch, queue_us, instances)
    image = np.ascontiguousarray(bundle.golden().images[0]).tobytes()
    work: Path | None = None
    try:
        out.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=out))
        new = work / "new"
        (new / "1").mkdir(parents=True)
        (new / "warmup").mkdir()
        shutil.copyfile(source, new / "1" / ENGINES[engine][1])
        (new / "warmup" / WARM_UP).write_bytes(image)
        (new / CONFIG).write_text(config, encoding="utf-8")
        _exchange(new, folder, work / "old")
    except OSError as error:
        raise ExportError(
            f"{folder} cannot be written ({error.strerror}); free the disk or choose another --out"
        ) from error
    finally:
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)
    return folder


def _is_ours(folder: Path) -> bool:
    try:
        with (folder / CONFIG).open(encoding="utf-8") as file:
            return file.readline().rstrip("\n") == MARK
    except (OSError, UnicodeDecodeError):
        return False


def _exchange(new: Path, folder: Path, old: Path) -> None:
    """Put `new` in the place of `folder`, which moves to `old`; whatever stops it, there is one of them."""
    if folder.exists():
        os.replace(folder, old)
    try:
        os.replace(new, folder)
    finally:
        if old.exists() and not folder.exists():
            os.replace(old, folder)


def _model(bundle: Bundle, engine: str, precision: str, plan: Path | None) -> Path:
    if engine == "onnxruntime":
        if plan is not None:
            raise ExportError(
                "--plan is for --engine tensorrt; leave it out, the bundle has the ONNX file"
            )
        return bundle.model(precision)
    if plan is None:
        raise ExportError(
            f"--engine tensorrt needs --plan FILE, built on the server's GPU: "
            f"python -m export.build --bundle {bundle.path} --engine tensorrt, which puts it into the bundle's engines/"
        )
    if not plan.is_file():
        raise ExportError(
            f"plan {plan}: there is no such file; build it on the server's GPU, then pass it as --plan"
        )
    return plan


def _batch(model: Path, wanted: int | None) -> int:
    """The largest batch to configure. Triton refuses one for a graph that was built with --static-batch."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    dynamic = not isinstance(session.get_inputs()[0].shape[0], int)
    if wanted and not dynamic:
        raise ExportError(
            f"{model} takes one image a call; pass --max-batch 0, or build it without --static-batch"
        )
    return (8 if dynamic else 0) if wanted is None else wanted


def config_text(
    bundle: Bundle,
    name: str,
    engine: str,
    precision: str,
    max_batch: int,
    queue_us: int,
    instances: int,
) -> str:
    """config.pbtxt: Triton's ModelConfig as protobuf text. `max_batch` 0 is one image a request, without batching."""
    if max_batch < 0 or queue_us < 0 or instances < 1:
        raise ExportError("--max-batch and --queue-us must be at least 0, --instances at least 1")
    geometry = bundle.manifest.geometry
    lead = [] if max_batch else [1]  # of a batch, Triton adds the axis itself
    shape = [*lead, geometry.height, geometry.width, 3]
    dims = {"score": [1], "map": shape[:-1]}
    outputs = ",\n".join(
        f"  {{\n    name: {_text(o)}\n    data_type: TYPE_FP32\n    dims: {dims[o]}\n"
        # Triton knows no batch of numbers: the score of each image is a vector of length 1 to it.
        f"{'    reshape: { shape: [ ] }' + chr(10) if o == 'score' and max_batch else ''}  }}"
        for o in bundle.manifest.outputs
    )
    batching = (
        f"dynamic_batching {{\n  max_queue_delay_microseconds: {queue_us}\n}}\n"
        if max_batch
        else ""
    )
    parameters = "".join(
        f"parameters {{ key: {_text(key)} value {{ string_value: {_text(value)} }} }}\n"
        for key, value in _parameters(bundle, precision).items()
    )
    return f"""{MARK}
name: {_text(name)}
{ENGINES[engine][0]}
default_model_filename: {_text(ENGINES[engine][1])}
max_batch_size: {max_batch}
input [
  {{
    name: "image"
    data_type: TYPE_UINT8
    dims: {shape}
  }}
]
output [
{outputs}
]
{batching}instance_group [
  {{
    count: {instances}
    kind: {"KIND_GPU" if engine == "tensorrt" else "KIND_AUTO"}
  }}
]
model_warmup [
  {{
    name: "a golden image"
    batch_size: 1
    inputs {{
      key: "image"
      value {{
        data_type: TYPE_UINT8
        dims: {shape}
        input_data_file: {_text(WARM_UP)}
      }}
    }}
  }}
]
{parameters}"""


def _parameters(bundle: Bundle, precision: str) -> dict[str, str]:
    """What a client needs to prepare a frame and to judge a score; Triton hands them out with the configuration."""
    manifest = bundle.manifest
    return {
        "threshold": repr(bundle.calibration.threshold),
        "geometry": json.dumps(manifest.geometry.to_json(), sort_keys=True),
        "method": manifest.method,
        "backbone": manifest.backbone,
        "precision": precision,
        "onnx_sha256": bundle.model_sha256(precision),
    }


def _text(value: str) -> str:
    """A protobuf text string: JSON's escapes are among its own, but for surrogate pairs."""
    return json.dumps(value, ensure_ascii=False)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m export.triton", description="A bundle for Triton."
    )
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument(
        "--out", type=Path, default=Path("model_repository"), help="default %(default)s"
    )
    parser.add_argument("--name", help="of the model; default the bundle's folder")
    parser.add_argument(
        "--engine", choices=ENGINES, default="onnxruntime", help="default %(default)s"
    )
    parser.add_argument(
        "--precision", default="fp32", help="which graph of the bundle; default %(default)s"
    )
    parser.add_argument("--plan", type=Path, help="what TensorRT built, for --engine tensorrt")
    parser.add_argument(
        "--max-batch", type=int, help="0: none; default 8, or 0 where the graph takes one image"
    )
    parser.add_argument(
        "--queue-us", type=int, default=500, help="wait for a batch so long; default %(default)s"
    )
    parser.add_argument(
        "--instances", type=int, default=1, help="of the model on each device; default %(default)s"
    )
    args = parser.parse_args(argv)
    try:
        bundle = read_bundle(args.bundle)
        folder = write_repository(
            bundle, args.out, args.name or args.bundle.resolve().name, args.engine, args.precision, args.plan,
            args.max_batch, args.queue_us, args.instances,
        )  # fmt: skip
    except (BundleError, ExportError) as error:
        print(f"export.triton: {error}", file=sys.stderr)
        return 2
    print(
        f"{folder}; serve it: tritonserver --model-repository {args.out.resolve()}", file=sys.stderr
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
