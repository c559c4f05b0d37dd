"""flawline triton --bundle B --out model_repository/: a bundle as a model of NVIDIA Triton.

    model_repository/<name>/config.pbtxt    input, output, batching, warm-up, and as parameters
                                            the threshold and the geometry
    model_repository/<name>/1/model.onnx    or model.plan, built by TensorRT on the server's GPU
    model_repository/<name>/warmup/image    a golden image of the bundle

The client sends images of the model's size, resized as the geometry says (`runtime.image.prepare`),
or the camera's frames if the bundle was built for them, and compares the score with the threshold.
If the parameters state a fixture, tiles or an inspected area, `manifest.graph_input` prepares a
frame (`of_frame`): it lays the part and paints what is not inspected. Then it cuts the tiles
(`grid`): each of them is an image of the request, and the score of the frame is the largest one.
This command needs neither torch nor Triton.
"""

from __future__ import annotations

from importlib import import_module

if __name__ == "__main__":
    # The imports below take a while.
    import_module("flawline.interrupts").end_quietly()

import argparse
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flawline.commands import program_of
from flawline.export import ExportError
from flawline.export.local_engine import build_command
from flawline.export.triton_config import (
    BACKENDS,
    CONFIG,
    DEFAULT_BACKEND,
    WARM_UP,
    config_text,
)
from flawline.export.triton_plan import check_plan
from flawline.os_errors import reason_of, remedy_of
from flawline.runtime.bundle import Bundle, read_bundle
from flawline.runtime.command_parser import Parser, path_argument
from flawline.runtime.console import log, run_command
from flawline.runtime.engines.onnxruntime_cpu import open_session
from flawline.runtime.files import replace_folder
from flawline.runtime.precisions import FP32, PRECISIONS
from flawline.runtime.signing.arguments import add_trusted_argument, trusted_keys

# The first line of the template. A folder whose configuration begins with it may be replaced.
MARK = "# flawline.export.triton"
# Names that Triton and a file system accept.
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
DEFAULT_BATCH = 8
EXAMPLES = (
    "flawline triton --bundle bundles/part --out model_repository",
    "flawline triton --bundle bundles/part --engine tensorrt --plan model.plan",
)


def write_repository(
    bundle: Bundle,
    out: Path,
    name: str,
    engine: str = DEFAULT_BACKEND,
    precision: str | None = None,
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
        precision: which graph of the bundle to serve; None means fp32, or that of the plan.
        plan: the compiled plan, for a backend that needs one, next to the record of its build.
        max_batch: largest batch, 0 for none. None means 8, or less if the model takes less.

    Raises ExportError, and BundleError if the bundle has no graph of this precision.
    """
    _check_target(out, name)
    folder = out / name
    model = _choose_model(bundle, engine, precision, plan)
    batch = _max_batch(bundle.model(model.graph), max_batch, model)
    config = config_text(bundle, name, engine, model.precision, batch, model.graph)
    image = np.ascontiguousarray(bundle.golden().images[0]).tobytes()

    try:
        # A server that polls the repository must never load half a model.
        with replace_folder(folder) as new:
            (new / CONFIG).write_text(config, encoding="utf-8")
            (new / "1").mkdir()
            shutil.copyfile(model.file, new / "1" / BACKENDS[engine].file)
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


@dataclass(frozen=True)
class _Model:
    """The file that is served, what it computes in, and the bundle's graph that it comes from.

    `max_batch` is the largest batch of a plan, and None for a graph.
    """

    file: Path
    precision: str
    graph: str
    max_batch: int | None = None


def _choose_model(bundle: Bundle, engine: str, precision: str | None, plan: Path | None) -> _Model:
    """Choose the file that the engine loads. Raises ExportError if --plan does not fit it."""
    if not BACKENDS[engine].needs_plan:
        if plan is not None:
            raise ExportError(
                f"--plan is for --engine {_engines_with_plan()}; leave it out, "
                f"the bundle has the ONNX file"
            )
        precision = precision or FP32.name
        return _Model(bundle.model(precision), precision, precision)
    if plan is None:
        raise ExportError(
            f"--engine {engine} needs --plan FILE, a plan in the bundle's engines/; "
            f"build it on the server's GPU: {build_command(bundle, engine)}"
        )
    facts = check_plan(bundle, plan, engine)
    if precision not in (None, facts.precision):
        raise ExportError(
            f"plan {plan}: computes in {facts.precision}, not {precision}; leave --precision out"
        )
    log(f"note: the plan is for {facts.built_for}; Triton needs that version and that GPU")
    return _Model(plan, facts.precision, facts.graph, facts.max_batch)


def _engines_with_plan() -> str:
    names = []
    for name, backend in BACKENDS.items():
        if backend.needs_plan:
            names.append(name)
    return " or ".join(names)


def _max_batch(graph: Path, wanted: int | None, model: _Model) -> int:
    """Return the largest batch to configure.

    Triton refuses a batch for a graph that was built with --static-batch, and one that is larger
    than that of a plan. Raises ExportError.
    """
    if wanted is not None and wanted < 0:
        raise ExportError(f"--max-batch {wanted} is below 0; give 0 for no batching")
    # The graph itself says which batches it takes; the manifest does not.
    session = open_session(graph)
    static = isinstance(session.get_inputs()[0].shape[0], int)
    if wanted and static:
        raise ExportError(
            f"{graph} takes one image a call; pass --max-batch 0, or build it without "
            f"--static-batch"
        )
    largest = model.max_batch
    if largest is not None and (wanted or 0) > largest:
        raise ExportError(
            f"--max-batch {wanted} is above {largest}, the largest batch of the plan; "
            f"pass --max-batch {largest}"
        )
    if wanted is not None:
        return wanted
    if static:
        return 0
    return DEFAULT_BATCH if largest is None else min(DEFAULT_BATCH, largest)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=program_of("triton"),
        description="Write a bundle into a model repository of NVIDIA Triton Inference Server.",
        examples=EXAMPLES,
    )
    parser.add_argument("--bundle", type=path_argument, required=True, help="the bundle to serve")
    add_trusted_argument(parser)
    parser.add_argument(
        "--out",
        type=path_argument,
        default=Path("model_repository"),
        help="the model repository; default %(default)s",
    )
    parser.add_argument("--name", help="of the model; default is the name of the bundle's folder")
    parser.add_argument(
        "--engine",
        choices=BACKENDS,
        default=DEFAULT_BACKEND,
        help="the library that runs the model in the server; default %(default)s",
    )
    parser.add_argument(
        "--precision",
        choices=_precisions(),
        help=f"which graph of the bundle; default {FP32.name}, or that of the plan",
    )
    parser.add_argument(
        "--plan", type=path_argument, help=f"the compiled plan, for --engine {_engines_with_plan()}"
    )
    parser.add_argument(
        "--max-batch",
        type=int,
        help=f"largest batch size, 0 for no batches; default {DEFAULT_BATCH}, or 0 if the graph "
        "takes one image",
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
    bundle = read_bundle(args.bundle, trusted_keys(args))
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
