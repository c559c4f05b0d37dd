"""python -m benchmarks.peers: a detector and a model of anomalib judge the same images in turns.

    python -m benchmarks.peers --theirs anomalib/bin/python --model stfpm --exported stfpm \\
        --bundle bundles/stfpm --data DATA --engine openvino --precision fp32

--theirs is the Python of an environment with anomalib, where anomalib's own inferencer runs. The
model is trained and exported there first, with --weights and --epochs, unless --exported holds it.
Both sides get the same image files, in alternating turns on this machine. The times are those of a
decoded image: it is resized, then judged. The AUROCs are those of raw scores.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flawline.benchmarks.peers.theirs import HINTS, MODELS
from flawline.benchmarks.studies.options import add_out_argument
from flawline.runtime.command_parser import Parser, path_argument
from flawline.runtime.console import log, run_command
from flawline.runtime.engines import ENGINES, EngineOptions

if TYPE_CHECKING:
    from flawline.runtime.bundle import Bundle

PROGRAM = "benchmarks.peers"
THEIRS = Path(__file__).with_name("theirs.py")
# What `theirs.py train` writes below its --out, by the value of --inferencer.
EXPORTED = {"openvino": "weights/onnx/model.onnx", "torch": "weights/torch/model.pt"}


def _parser() -> Parser:
    parser = Parser(prog=PROGRAM, description=__doc__)
    parser.add_argument(
        "--theirs", required=True, metavar="PYTHON", help="of an environment with anomalib"
    )
    parser.add_argument("--model", choices=MODELS, required=True, help="of anomalib")
    parser.add_argument(
        "--exported", type=path_argument, required=True, help="folder of the model of anomalib"
    )
    parser.add_argument("--inferencer", choices=EXPORTED, default="openvino", help="of anomalib")
    parser.add_argument("--weights", type=path_argument, help="of the backbone, to train the model")
    parser.add_argument("--epochs", type=int, help="of the training of the model")
    parser.add_argument("--bundle", type=path_argument, required=True, help="our side")
    parser.add_argument("--data", type=path_argument, required=True, help="a data set")
    parser.add_argument("--images", type=int, help="test images at most; default all")
    parser.add_argument("--repeats", type=int, default=3, help="timed calls per image; default 3")
    parser.add_argument("--engine", choices=ENGINES, default="openvino", help="of our side")
    parser.add_argument("--precision", choices=HINTS, default="fp32", help="of both sides")
    parser.add_argument("--threads", type=int, default=1, help="of both sides; default 1")
    add_out_argument(parser, "peers")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()

    def work() -> None:
        args = parser.parse_args(argv)
        for flag in ("images", "repeats", "threads"):
            value = getattr(args, flag)
            if value is not None and value < 1:
                parser.error(f"--{flag} {value} is not at least 1")
        _run(args)

    return run_command(PROGRAM, work)


def _run(args: argparse.Namespace) -> None:
    from flawline.benchmarks.peers.measure import compare
    from flawline.benchmarks.peers.process import Peer
    from flawline.benchmarks.peers.report import page
    from flawline.benchmarks.studies.results import write_results
    from flawline.runtime.bundle import read_bundle
    from flawline.runtime.detector import Detector

    bundle = read_bundle(args.bundle)
    size = _size_of(bundle)
    exported = args.exported / EXPORTED[args.inferencer]
    if not exported.is_file():
        _train(args, exported, size)
    command = [args.theirs, THEIRS, "serve", "--exported", exported, "--size", str(size)]
    command += ["--precision", args.precision, "--threads", str(args.threads)]
    options = EngineOptions(args.threads, args.precision)
    with Detector(bundle, args.engine, options) as detector, Peer(command) as peer:
        row = compare(detector, peer, args.data, args.images, args.repeats)
    row["theirs"]["model"] = args.model
    text = page(row)
    write_results(args.out, [row], text)
    print(text)


def _size_of(bundle: Bundle) -> int:
    """Return the side of the input of a bundle, which both sides have. Raises PeerError."""
    from flawline.benchmarks.peers.process import PeerError

    manifest = bundle.manifest
    parts = (manifest.tiles, manifest.inspected_area, manifest.fixture)
    if any(part is not None for part in parts):
        raise PeerError(
            f"bundle {bundle.path} inspects tiles or a part of each image, or lays parts, and the "
            f"other side does not; compare one that was built without --tiles, --include, "
            f"--exclude and --fixture"
        )
    geometry = manifest.geometry
    if geometry.kind != "stretch" or geometry.height != geometry.width:
        raise PeerError(
            f"bundle {bundle.path} has an input of {geometry.width}x{geometry.height} "
            f"{geometry.kind}; compare one of a square, stretched input, such as a light setting's"
        )
    return geometry.height


def _train(args: argparse.Namespace, exported: Path, size: int) -> None:
    """Train and export the model in its environment. Raises PeerError."""
    from flawline.benchmarks.peers.process import PeerError

    if args.weights is None or args.epochs is None:
        raise PeerError(
            f"--exported {args.exported} has no {exported.name}; give --weights and --epochs to "
            f"train it"
        )
    log(f"training {args.model} with {args.theirs}")
    command = [args.theirs, THEIRS, "train", "--model", args.model, "--data", args.data]
    command += ["--weights", args.weights, "--epochs", str(args.epochs), "--size", str(size)]
    command += ["--out", args.exported]
    try:
        status = subprocess.run([str(word) for word in command], check=False).returncode
    except OSError as error:
        raise PeerError(f"{args.theirs} cannot be run ({error.strerror}); see --theirs") from error
    if status or not exported.is_file():
        raise PeerError(f"the training ended with status {status}; see the lines above")


if __name__ == "__main__":
    sys.exit(main())
