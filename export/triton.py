"""python -m export.triton --bundle B --out model_repository/: a bundle as a model of NVIDIA Triton.

    model_repository/<name>/config.pbtxt    input, output, batching, warm-up, and as parameters
                                            the threshold and the geometry
    model_repository/<name>/1/model.onnx    or model.plan, built by TensorRT on the server's GPU
    model_repository/<name>/warmup/image    a golden image of the bundle

The client sends images of the model's size, resized as the geometry says (`runtime.image.prepare`),
and compares the score with the threshold. This command needs neither torch nor Triton.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from string import Template

import numpy as np

from flawline.export import ExportError
from flawline.os_errors import reason_of, remedy_of
from flawline.runtime.bundle import Bundle, read_bundle
from flawline.runtime.console import Parser, log, printable, run_command
from flawline.runtime.engines.onnxruntime_cpu import open_session
from flawline.runtime.files import replace_folder
from flawline.runtime.precisions import FP32, PRECISIONS

CONFIG = "config.pbtxt"
WARM_UP = "image"
# The first line of the template. A folder whose configuration begins with it may be replaced.
MARK = "# flawline.export.triton"
# Names that Triton and a file system accept.
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
DEFAULT_BATCH = 8
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


def write_repository(
    bundle: Bundle,
    out: Path,
    name: str,
    engine: str = DEFAULT_BACKEND,
    precision: str = "fp32",
    plan: Path | None = None,
    max_batch: int | None = None,
) -> Path:
    """Write a bundle as a model of a Triton repository and return the model's folder.

    A folder that this command wrote is replaced as a whole; any other is refused.

    Args:
        bundle: the bundle to serve.
        out: the model repository; created if it does not exist.
        name: the name of the model, which is also the name of its folder.
        engine: one of BACKENDS.
        precision: which graph of the bundle to serve.
        plan: the compiled plan, for a backend that needs one.
        max_batch: largest batch, 0 for none. None means 8, or 0 if the graph takes one image.

    Raises ExportError, and BundleError if the bundle has no graph of this precision.
    """
    _check_target(out, name)
    folder = out / name
    source = _model_file(bundle, engine, precision, plan)
    max_batch = _max_batch(bundle.model(precision), max_batch)
    config = config_text(bundle, name, engine, precision, max_batch)
    image = np.ascontiguousarray(bundle.golden().images[0]).tobytes()

    try:
        # A server that polls the repository must never load half a model.
        with replace_folder(folder) as new:
            (new / CONFIG).write_text(config, encoding="utf-8")
            (new / "1").mkdir()
            shutil.copyfile(source, new / "1" / BACKENDS[engine].file)
            (new / "warmup").mkdir()
            (new / "warmup" / WARM_UP).write_bytes(image)
    except OSError as error:
        raise ExportError(
            f"{folder} cannot be written ({reason_of(error)}); {remedy_of(error, '--out')}"
        ) from error
    return folder


def _check_target(out: Path, name: str) -> None:
    """Refuse a name that Triton does not accept, and a folder that this command did not write."""
    if not MODEL_NAME.fullmatch(name):
        raise ExportError(
            f"a model cannot be called {name!r}; pass --name with letters, digits, '_', '-' and '.'"
        )
    folder = out / name
    if folder.exists() and not _is_replaceable(folder):
        raise ExportError(
            f"{folder} exists and was not written by this command; choose another --out or --name"
        )


def _is_replaceable(folder: Path) -> bool:
    """Return whether this command wrote the folder."""
    try:
        with (folder / CONFIG).open(encoding="utf-8") as file:
            return file.readline().rstrip("\n") == MARK
    except (OSError, UnicodeDecodeError):
        return False


def _model_file(bundle: Bundle, engine: str, precision: str, plan: Path | None) -> Path:
    """Return the file that the engine loads. Raises ExportError if --plan does not fit it."""
    if not BACKENDS[engine].needs_plan:
        if plan is not None:
            raise ExportError(
                f"--plan is for --engine {_engines_with_plan()}; leave it out, "
                f"the bundle has the ONNX file"
            )
        return bundle.model(precision)
    if plan is None:
        raise ExportError(
            f"--engine {engine} needs --plan FILE, built on the server's GPU with "
            f"python -m export.build --bundle {bundle.path} --engine {engine}, which writes it "
            f"into the bundle's engines/"
        )
    if not plan.is_file():
        raise ExportError(
            f"plan {plan}: there is no such file; build it on the server's GPU, then pass --plan"
        )
    return plan


def _engines_with_plan() -> str:
    names = []
    for name, backend in BACKENDS.items():
        if backend.needs_plan:
            names.append(name)
    return " or ".join(names)


def _max_batch(model: Path, wanted: int | None) -> int:
    """Return the largest batch to configure.

    Triton refuses a batch for a graph that was built with --static-batch. Raises ExportError.
    """
    if wanted is not None and wanted < 0:
        raise ExportError(f"--max-batch {wanted} is below 0; give 0 for no batching")
    # The graph itself says which batches it takes; the manifest does not.
    session = open_session(model)
    static = isinstance(session.get_inputs()[0].shape[0], int)
    if wanted and static:
        raise ExportError(
            f"{model} takes one image a call; pass --max-batch 0, or build it without "
            f"--static-batch"
        )
    if wanted is not None:
        return wanted
    return 0 if static else DEFAULT_BATCH


def config_text(bundle: Bundle, name: str, engine: str, precision: str, max_batch: int) -> str:
    """Return config.pbtxt: Triton's ModelConfig as protobuf text.

    With `max_batch` 0, a request is one image, without batching.
    """
    geometry = bundle.manifest.geometry
    image = [geometry.height, geometry.width, 3]
    batching = ""
    if max_batch:
        # Triton adds the axis of the batch to every shape itself.
        batching = f"dynamic_batching {{\n  max_queue_delay_microseconds: {QUEUE_MICROSECONDS}\n}}"
    else:
        image = [1, *image]
    backend = BACKENDS[engine]
    template = resources.files("flawline.export").joinpath(CONFIG).read_text(encoding="utf-8")
    return Template(template).substitute(
        name=_quoted(name),
        backend=backend.setting,
        file=_quoted(backend.file),
        max_batch=max_batch,
        dims=image,
        outputs=_outputs(bundle.manifest.outputs, image[:-1], bool(max_batch)),
        batching=batching,
        device=backend.device,
        warm_up=_quoted(WARM_UP),
        parameters=_parameters(bundle, precision),
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


def _parameters(bundle: Bundle, precision: str) -> str:
    """Return the parameters with which a client prepares a frame and judges a score.

    Triton gives the parameters to its clients with the configuration.
    """
    manifest = bundle.manifest
    values = {
        "threshold": repr(bundle.calibration.threshold),
        "geometry": json.dumps(manifest.geometry.to_json(), sort_keys=True),
        "method": manifest.method,
        "backbone": manifest.backbone,
        "precision": precision,
        "onnx_sha256": bundle.model_sha256(precision),
    }
    lines = []
    for key, value in values.items():
        entry = f"key: {_quoted(key)} value {{ string_value: {_quoted(value)} }}"
        lines.append(f"parameters {{ {entry} }}")
    return "\n".join(lines)


def _quoted(value: str) -> str:
    """Return a protobuf text string. Its escapes include those of JSON, except surrogate pairs."""
    return json.dumps(printable(value), ensure_ascii=False)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m export.triton",
        description="Write a bundle into a model repository of NVIDIA Triton Inference Server.",
    )
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument(
        "--out", type=Path, default=Path("model_repository"), help="default %(default)s"
    )
    parser.add_argument("--name", help="of the model; default is the name of the bundle's folder")
    parser.add_argument(
        "--engine", choices=BACKENDS, default=DEFAULT_BACKEND, help="default %(default)s"
    )
    parser.add_argument(
        "--precision",
        choices=_precisions(),
        default=FP32.name,
        help="which graph of the bundle; default %(default)s",
    )
    parser.add_argument(
        "--plan", type=Path, help=f"the compiled plan, for --engine {_engines_with_plan()}"
    )
    parser.add_argument(
        "--max-batch",
        type=int,
        help=f"0 for none; default {DEFAULT_BATCH}, or 0 if the graph takes one image",
    )
    return parser


def _precisions() -> list[str]:
    """Return the precisions that a bundle may have a graph for."""
    names = []
    for precision in PRECISIONS.values():
        if precision.file is not None:
            names.append(precision.name)
    return names


def _run(args: argparse.Namespace) -> None:
    bundle = read_bundle(args.bundle)
    name = args.name or args.bundle.resolve().name
    folder = write_repository(
        bundle, args.out, name, args.engine, args.precision, args.plan, args.max_batch
    )
    repository = shlex.quote(str(args.out.resolve()))
    log(f"{folder}; serve it: tritonserver --model-repository {repository}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status is 0, or 2 for a mistake of the user."""
    parser = _parser()
    return run_command(parser.prog, lambda: _run(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
