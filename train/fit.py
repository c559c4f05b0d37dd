"""python -m train.fit: good images in, checkpoint out."""

from __future__ import annotations

from flawline.train import TrainError, require_extra

require_extra("flawline-train")

import argparse
import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from flawline.cameras import CameraError
from flawline.runtime.console import log
from flawline.runtime.image import GEOMETRIES, Geometry
from flawline.train import METHODS
from flawline.train.anomalies import choose_product
from flawline.train.backbones.cait import CAITS
from flawline.train.backbones.resnet import BACKBONES, calibrate_batchnorm, load_weights
from flawline.train.data.images import (
    DataError,
    PreparedImages,
    describe_sizes,
    hold_out,
    open_data,
)
from flawline.train.method import (
    Budget,
    Method,
    create,
    load_checkpoint,
    resolve_method,
    save_checkpoint,
)
from flawline.train.progress import Bars


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that say how to train; `export.build` takes them too."""
    parser.add_argument(
        "--backbone",
        default="resnet18",
        help=f"one of {', '.join(BACKBONES)}; ssnf also {', '.join(CAITS)}; default %(default)s",
    )
    parser.add_argument(
        "--weights",
        default=None,
        help="imagenet (downloads them), texture (in this package, from formulas alone), random, or a FILE of "
        "torchvision's; default imagenet (demo data: texture)",
    )
    parser.add_argument(
        "--size", type=int, help="input height and width in pixels; default is the method's"
    )
    parser.add_argument(
        "--geometry",
        choices=GEOMETRIES,
        help="how images become the input; default is the method's",
    )
    parser.add_argument("--steps", type=int, help="optimiser steps in all")
    parser.add_argument("--epochs", type=int, help="passes over the images, instead of --steps")
    parser.add_argument(
        "--max-minutes", type=float, help="stop after so long; the same command goes on from there"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--bits", type=int, help="bits that carry the picture in 16-bit images, such as 12"
    )
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1; auto takes a GPU where there is one"
    )
    for flag, (kind, meaning, names) in _method_options().items():
        parser.add_argument(flag, type=kind, help=f"{', '.join(names)}: {meaning}")


def _method_options() -> dict[str, tuple[Any, str, list[str]]]:
    """Flags that are hyperparameters of some methods: type, meaning, names of the methods."""
    found: dict[str, tuple[Any, str, list[str]]] = {}
    for name in METHODS:
        for flag, (kind, meaning) in resolve_method(name).options.items():
            found.setdefault(flag, (kind, meaning, []))[2].append(name)
    return found


def fit_from_arguments(args: argparse.Namespace, method: str, data: Path, out: Path) -> Path:
    """Train as the flags say and write the checkpoint `out`. An unfinished run of the same flags is continued."""
    args.weights = args.weights or "imagenet"
    hyperparameters = _hyperparameters(args, method)
    if "--product" in resolve_method(method).options:
        hyperparameters["product"] = choose_product(args.product, data)
    model = create(method, hyperparameters)
    good, held = hold_out(open_data(data).train_good)
    for line in describe_sizes(good, model.geometry, args.bits):
        log(f"note: {line}")
    images = PreparedImages(good, model.geometry, args.bits)
    used = min(hyperparameters.get("shots") or len(good), len(good))
    steps = args.steps or resolve_method(method).steps(args.backbone, used, args.epochs)
    provenance = {
        "data": str(data.resolve()),
        "good_images": f"{used} trained on, {len(held)} held out",
        "seed": str(args.seed),
        "steps": str(steps),
        "bits": str(args.bits or 8),
        "data_sha256": _fingerprint(good),
    }
    unfinished = out.with_name(f"{out.stem}.unfinished.pt")
    if out.is_dir() or not _writable(out.parent):
        raise TrainError(f"--out {out}: cannot be written; choose another")
    model, state = _begin(model, args, images, provenance, unfinished)
    device = _device(args.device)
    log(
        f"training {method} on {used} good images for {steps} steps on {device} (weights {provenance['weights']})"
    )
    bars = Bars()
    try:
        done = model.to(device).fit(
            images,
            Budget(steps, args.max_minutes),
            args.seed,
            bars,
            lambda snapshot: save_checkpoint(unfinished, model, provenance, snapshot),
            state,
        )
    finally:
        bars.close()
    for note in model.notes:
        log(note)
    provenance["steps"] = str(done)
    save_checkpoint(out, model.cpu(), provenance)
    if done < steps:
        log(
            f"stopped by --max-minutes after {done} of {steps} steps; the same command goes on from there"
        )
    else:
        unfinished.unlink(missing_ok=True)
    log(f"checkpoint {out}")
    return out


def _hyperparameters(args: argparse.Namespace, method: str) -> dict[str, Any]:
    known = (*BACKBONES, *CAITS)
    if args.backbone not in known:
        raise TrainError(f"backbone {args.backbone!r} is unknown; known: {', '.join(known)}")
    for name in ("steps", "epochs", "max_minutes"):
        value = getattr(args, name)
        if value is not None and value <= 0:
            raise TrainError(f"--{name.replace('_', '-')} {value} is not above 0")
    if not 0 <= args.seed < 2**31:
        raise TrainError(f"--seed {args.seed} is not from 0 to {2**31 - 1}")
    if args.bits is not None and not 9 <= args.bits <= 16:
        raise TrainError(f"--bits {args.bits} is not from 9 to 16; 8-bit images need none")
    if args.steps and args.epochs:
        raise TrainError("--steps and --epochs both say how long to train; give one of them")
    if args.backbone in CAITS and method != "ssnf":
        raise TrainError(
            f"backbone {args.backbone} goes with --method ssnf alone; others: {', '.join(BACKBONES)}"
        )
    hyperparameters = resolve_method(method).defaults(args.backbone)
    for flag, (_, _, names) in _method_options().items():
        if (value := getattr(args, flag.lstrip("-").replace("-", "_"))) is not None:
            if method not in names:
                raise TrainError(
                    f"{flag} is not of {method}; it goes with --method {' or '.join(names)}"
                )
            hyperparameters[flag.lstrip("-").replace("-", "_")] = value
    if args.size is not None or args.geometry:
        default = hyperparameters["geometry"]
        kind, size = (
            args.geometry or default["kind"],
            default["height"] if args.size is None else args.size,
        )
        geometry = {"kind": kind, "height": size, "width": size}
        if kind == "shorter-crop":
            # The published ratio: 329 scaled, 288 kept.
            geometry["shorter"] = round(size * 329 / 288)
        hyperparameters["geometry"] = geometry
    try:
        Geometry(**hyperparameters["geometry"])
    except ValueError as error:
        raise TrainError(f"{error}; see --size and --geometry") from error
    return hyperparameters


def _begin(
    model: Method,
    args: argparse.Namespace,
    images: PreparedImages,
    provenance: dict[str, str],
    unfinished: Path,
) -> tuple[Method, dict[str, Any] | None]:
    """A fresh model with its weights, or the unfinished one of the same flags; fills in provenance["weights"]."""
    if unfinished.exists():
        previous, told, state = load_checkpoint(unfinished)
        same = {
            k: told.get(k) for k in provenance
        } == provenance and previous.hyperparameters == model.hyperparameters
        if not same or told.get("weights_flag") != args.weights:
            raise TrainError(
                f"{unfinished} is from a run with other flags; repeat those, or delete it to start anew"
            )
        log(f"going on from {unfinished} at step {state['step'] if state else 0}")
        provenance.update(told)
        return previous, state
    trunk: Any = model.trunk
    provenance["weights_flag"] = args.weights
    provenance["weights"] = load_weights(trunk, args.weights, args.seed)
    if args.weights == "random":
        log("note: --weights random: the features know nothing, expect verdicts near chance")
        calibrate_batchnorm(trunk, images)
    return model, None


def _writable(folder: Path) -> bool:
    """Whether a file can be made there, asked before hours of training rather than after."""
    while not folder.exists():
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK)


def _fingerprint(paths: Sequence[Path]) -> str:
    """Of the names and sizes of the images: a run is only continued on the pictures that it began with."""
    described = "\n".join(f"{path.name} {path.stat().st_size}" for path in paths if path.exists())
    return hashlib.sha256(described.encode()).hexdigest()[:16]


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise TrainError(
            f"--device {name}: {str(error).splitlines()[0]}; use --device cpu"
        ) from error
    return device


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="flawline-train", description="Train a detector on good images."
    )
    parser.add_argument("--method", default="simplenet", help=f"one of {', '.join(METHODS)}")
    parser.add_argument(
        "--data", type=Path, required=True, help="MVTec-like folder, or a folder of good images"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/checkpoint.pt"), help="the checkpoint to write"
    )
    add_training_arguments(parser)
    args = parser.parse_args(argv)
    try:
        fit_from_arguments(args, args.method, args.data, args.out)
    except (TrainError, DataError, CameraError) as error:
        log(f"flawline-train: {error}")
        return 2
    except KeyboardInterrupt:
        log("interrupted; the same command goes on from the last saved step")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
