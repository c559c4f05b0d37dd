"""python -m benchmarks.bank_size: how many rows a PatchCore bank needs, and what the coreset keeps.

    python -m benchmarks.bank_size --data DATA --weights FILE --out benchmarks/results/bank-size

One greedy coreset of the largest size is made; its first n rows are the coreset of n. Beside it, n random patches. Each
bank is exported, and every test image goes through ONNX Runtime once: that call gives the score and the time.
"""

from __future__ import annotations

from flawline.train import TrainError, require_extra

require_extra("benchmarks.bank_size")

import argparse
import contextlib
import copy
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from flawline.benchmarks.measure.timing import percentiles
from flawline.cameras import CameraError
from flawline.export.graphs.to_onnx import onnx_from_module
from flawline.runtime.console import log
from flawline.runtime.engines import EngineError
from flawline.runtime.engines.onnxruntime_cpu import OnnxRuntime
from flawline.runtime.environment import cpu_name, versions
from flawline.train import metrics
from flawline.train.checkpoint import load_checkpoint
from flawline.train.data.images import DataError, PreparedImages, hold_out, open_data
from flawline.train.fit import (
    add_method_arguments,
    add_training_arguments,
    recipe_from_arguments,
)
from flawline.train.methods.patchcore import PatchCore
from flawline.train.progress import Bars
from flawline.train.training import train

SIZES = (100, 256, 512, 1024, 2048, 4096, 8192, 16384)
WARM_UP = 5
SCATTERED, SHOWN = 12_000, 24  # patches in the scatter; patches shown as pictures
CROP = 3  # cells of the grid that a shown patch spans: what its aggregation reads of layer2


def measure(
    banks: Sequence[PatchCore], images: Sequence[Any], labels: Any, bars: Bars
) -> list[dict[str, Any]]:
    """Scores and times of each bank, from the same calls of its exported graph; image by image all banks take turns,
    so that a noisy machine is noisy for all."""
    with tempfile.TemporaryDirectory(prefix="flawline-") as folder, contextlib.ExitStack() as stack:
        engines, sizes = [], []
        for i, model in enumerate(banks):
            path = Path(folder) / f"{i}.onnx"
            path.write_bytes(onnx_from_module(model.fused(), model.geometry))
            engines.append(OnnxRuntime(path, (model.geometry.height, model.geometry.width)))
            stack.callback(engines[-1].close)
            sizes.append(path.stat().st_size)
            for _ in range(WARM_UP):
                engines[-1](images[0][None])
        scores, times = np.zeros((len(banks), len(images))), np.zeros((len(banks), len(images)))
        for k, image in enumerate(images):
            for i, engine in enumerate(engines):
                start = time.perf_counter()
                score, _ = engine(image[None])
                times[i, k], scores[i, k] = 1e3 * (time.perf_counter() - start), float(score[0])
            bars("test images", k + 1, len(images))
    return [
        {
            "rows": len(model.bank.vectors),
            "image_auroc": round(metrics.auroc(labels, scores[i]), 4),
            "megabytes": round(sizes[i] / 1e6, 1),
            "engine": engines[i].description,
            **percentiles(list(times[i])),
        }
        for i, model in enumerate(banks)
    ]


def with_rows(model: PatchCore, vectors: Any) -> PatchCore:
    smaller = copy.deepcopy(model)
    smaller.bank.fill(vectors, torch.zeros(len(vectors), dtype=torch.int64))
    return smaller


@torch.inference_mode()
def random_patches(
    model: PatchCore, images: Sequence[Any], most: int, seed: int, bars: Bars
) -> tuple[Any, Any]:
    """Up to `most` patches [k, D] of the good images, in random order, and their indices [k]."""
    cells = np.prod([-(-side // 8) for side in (model.geometry.height, model.geometry.width)])
    chosen = np.random.default_rng(seed).permutation(len(images) * int(cells))[:most]
    vectors = torch.empty(len(chosen), model.settings.target_dim)
    for i in range(len(images)):
        if (mine := np.flatnonzero(chosen // cells == i)).size:
            features = model.features(torch.from_numpy(np.asarray(images[i]))[None])[0].flatten(
                0, 1
            )
            vectors[mine] = features[chosen[mine] % cells]
        bars("random patches", i + 1, len(images))
    return vectors, chosen


def markdown(rows: list[dict[str, Any]], said: str) -> str:
    lines = [
        "| rows | coreset I-AUROC | random I-AUROC | p50 ms | FPS | ONNX MB |",
        "|---" * 6 + "|",
    ]
    by_kind = {
        kind: {row["rows"]: row for row in rows if row["bank"] == kind}
        for kind in ("coreset", "random")
    }
    for size, row in by_kind["coreset"].items():
        other = by_kind["random"][size]["image_auroc"]
        cells = (size, row["image_auroc"], other, row["p50_ms"], row["fps"], row["megabytes"])
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + f"\n\n{said}\n"


def draw_sizes(rows: list[dict[str, Any]], title: str, out: Path) -> None:
    """Image AUROC of both banks and FPS against the number of rows."""
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for kind, style in (("coreset", "C0o-"), ("random", "C1s--")):
        mine = [row for row in rows if row["bank"] == kind]
        aurocs = [100 * row["image_auroc"] for row in mine]
        axes.plot([row["rows"] for row in mine], aurocs, style, label=f"image AUROC, {kind} rows")
    speed = axes.twinx()
    mine = [row for row in rows if row["bank"] == "coreset"]
    speed.plot(
        [row["rows"] for row in mine], [row["fps"] for row in mine], "^-", color="0.55", label="FPS"
    )
    speed.set_ylim(0)
    speed.set_ylabel("frames per second (median, batch 1, engine alone)", color="0.4")
    axes.set_xscale("log", base=2)
    axes.set_xticks(
        sorted({row["rows"] for row in rows}), labels=sorted({row["rows"] for row in rows})
    )
    axes.minorticks_off()
    axes.set_xlabel("rows of the bank")
    axes.set_ylabel("image AUROC [%]")
    axes.grid(color="0.9")
    handles = [*axes.get_legend_handles_labels()[0], *speed.get_legend_handles_labels()[0]]
    axes.legend(handles=handles, loc="lower center", fontsize=9, frameon=False)
    axes.set_title(title, fontsize=10)
    _save(figure, out)


def draw_kept(
    model: PatchCore, rows: int, random: tuple[Any, Any], images: Sequence[Any], out: Path
) -> None:
    """Where the coreset's first `rows` lie among all patches, beside as many random ones; which they are."""
    plt = _pyplot()
    from matplotlib.ticker import MaxNLocator

    grid = [-(-side // 8) for side in (model.geometry.height, model.geometry.width)]
    kept, origin = model.bank.vectors[:rows], model.bank.origin[:rows].numpy()
    everything = random[0][:SCATTERED]
    mean = everything.mean(0)
    axes2 = torch.linalg.svd(everything - mean, full_matrices=False).Vh[:2].T
    figure = plt.figure(figsize=(11, 6.6), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(2, 1))
    panels = top.subplots(1, 3)
    flat = [((points - mean) @ axes2).numpy().T for points in (everything, kept, random[0][:rows])]
    for panel, points, name in zip(
        panels[:2], flat[1:], (f"{rows} rows of the coreset", f"{rows} at random"), strict=True
    ):
        panel.scatter(*flat[0], s=2, color="0.8", linewidths=0)
        panel.scatter(*points, s=5, color="C0", linewidths=0)
        panel.set(xticks=[], yticks=[], xlabel="first principal component", ylabel="second")
        panel.set_title(name, fontsize=10)
    counts = np.bincount(origin % (grid[0] * grid[1]), minlength=grid[0] * grid[1]).reshape(grid)
    shown = panels[2].imshow(counts, cmap="viridis")
    panels[2].set(xticks=[], yticks=[])
    panels[2].set_title("where on the part the coreset's rows were", fontsize=10)
    top.colorbar(shown, ax=panels[2], shrink=0.8, label="rows", ticks=MaxNLocator(integer=True))
    strip = bottom.subplots(2, SHOWN // 2)
    bottom.suptitle(f"the first {SHOWN} rows of the coreset, in the order of choice", fontsize=10)
    for panel, patch in zip(strip.flat, origin[:SHOWN], strict=False):
        panel.imshow(cv2.cvtColor(_patch(images, int(patch), grid), cv2.COLOR_BGR2RGB))
    for panel in strip.flat:
        panel.set(xticks=[], yticks=[])
    _save(figure, out)


def _patch(images: Sequence[Any], patch: int, grid: list[int]) -> Any:
    """The pixels around a patch: `CROP` cells of the grid wide, doubled at the border."""
    image, position = np.asarray(images[patch // (grid[0] * grid[1])]), patch % (grid[0] * grid[1])
    y, x = (8 * cell + 4 for cell in divmod(position, grid[1]))
    reach = 8 * CROP // 2
    padded = cv2.copyMakeBorder(image, reach, reach, reach, reach, cv2.BORDER_REPLICATE)
    return padded[y : y + 2 * reach, x : x + 2 * reach]


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _save(figure: Any, out: Path) -> None:
    for suffix in (".png", ".svg"):
        figure.savefig(out.with_suffix(suffix), dpi=150)
        log(f"wrote {out.with_suffix(suffix)}")
    _pyplot().close(figure)


def run(args: argparse.Namespace) -> None:
    data_set = open_data(args.data)
    labels = np.array([sample.defect is not None for sample in data_set.test])
    if not labels.any() or labels.all():
        raise DataError(
            f"data {args.data}: AUROC needs good and defective test images; see --data in the README"
        )
    args.coreset = float(max(args.sizes))
    with tempfile.TemporaryDirectory(prefix="flawline-") as folder:
        recipe = recipe_from_arguments(args, "patchcore", args.data)
        checkpoint = train(recipe, Path(folder) / "bank.pt")
        model, provenance, _ = load_checkpoint(checkpoint)
    assert isinstance(model, PatchCore)
    good, bars = PreparedImages(hold_out(data_set.train_good)[0], model.geometry, args.bits), Bars()
    random = random_patches(model, good, max(*args.sizes, SCATTERED), args.seed, bars)
    test = [
        np.asarray(image)
        for image in PreparedImages([s.path for s in data_set.test], model.geometry, args.bits)
    ]
    sizes = sorted({min(size, len(model.bank.vectors), len(random[0])) for size in args.sizes})
    both = {"coreset": model.bank.vectors, "random": random[0]}
    kinds = [(kind, vectors[:size]) for size in sizes for kind, vectors in both.items()]
    measured = measure([with_rows(model, vectors) for _, vectors in kinds], test, labels, bars)
    rows = [
        {"bank": kind, "data": args.data.name, **row, "device": cpu_name(), "versions": versions()}
        for (kind, _), row in zip(kinds, measured, strict=True)
    ]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.with_suffix(".json").write_text(json.dumps(rows, indent=2) + "\n")
    said = (
        f"PatchCore, {model.settings.backbone}, {model.settings.target_dim} dimensions, weights {provenance['weights']}, "
        f"input {model.geometry.width}x{model.geometry.height}, {args.data.name} ({len(labels)} test images), "
        f"seed {args.seed}"
    )
    args.out.with_suffix(".md").write_text(
        markdown(rows, f"{said}; {rows[0]['engine']}, batch 1, engine alone.")
    )
    draw_sizes(
        rows,
        f"{args.data.name}, PatchCore {model.settings.backbone}, {rows[0]['engine']}",
        args.out,
    )
    shown = min(args.show, len(model.bank.vectors))
    draw_kept(model, shown, random, good, args.out.with_name(f"{args.out.name}-kept"))
    print(args.out.with_suffix(".md").read_text())


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="AUROC and FPS against the rows of a PatchCore bank."
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=list(SIZES), help="rows; default %(default)s"
    )
    parser.add_argument(
        "--show", type=int, default=1024, help="rows in the picture of what was kept"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("results/bank-size"), help="without suffix"
    )
    add_training_arguments(parser)
    add_method_arguments(parser, "patchcore")
    args = parser.parse_args(argv)
    if min(args.sizes) < 2 or args.show < 2:
        parser.error("--sizes and --show count rows: at least 2")
    try:
        run(args)
    except (TrainError, DataError, CameraError, EngineError) as error:
        log(f"benchmarks.bank_size: {error}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
