"""python -m benchmarks.backbones: what a backbone's weights are worth to a detector, over data sets and seeds.

    python -m benchmarks.backbones --data A B --weights random texture FILE --seeds 0 1 2 --demo runs/demo

Two detectors read the same features. `nearest` fits nothing: an image's score is the largest distance of a patch from
its nearest neighbour among patches of good images, in the manner of PatchCore (Roth et al., CVPR 2022) with a random
bank; 3x3 means of layer2 and layer3, side by side, on layer2's grid. `simplenet` is `train.fit` with its defaults, last
epoch. Rows that the output already holds are kept, so a long run may be cut short and repeated.
"""

from __future__ import annotations

from flawline.train import TrainError, require_extra

require_extra("benchmarks.backbones")

import argparse
import json
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from flawline.cameras import CameraError
from flawline.runtime.console import log
from flawline.runtime.environment import versions
from flawline.runtime.image import Geometry
from flawline.train import fit
from flawline.train.backbones import create_backbone
from flawline.train.backbones.base import Backbone
from flawline.train.checkpoint import load_checkpoint
from flawline.train.data.demo import PRODUCTS, write_demo
from flawline.train.data.images import DataError, PreparedImages, hold_out, open_data
from flawline.train.method import evaluate
from flawline.train.metrics import auroc
from flawline.train.progress import Bars

METHODS = ("nearest", "simplenet")
BANK = 8000  # patches
SIZE = 256


def patches(backbone: Backbone, image: Any) -> Tensor:
    """uint8 [H, W, 3] BGR to vectors [positions of layer2, C2 + C3]."""
    device = backbone.first_convolution.weight.device
    level2, level3 = backbone.extract(torch.from_numpy(np.asarray(image))[None].to(device))
    # Zeros beyond the edge count, as in PatchCore's unfold: without them the borders' patches decide every score.
    level2, level3 = (F.avg_pool2d(level, 3, 1, 1) for level in (level2, level3))
    level3 = F.interpolate(level3, size=level2.shape[2:], mode="bilinear", align_corners=False)
    return torch.cat([level2, level3], 1)[0].flatten(1).T


@torch.inference_mode()
def nearest(data: Path, backbone: str, weights: str, seed: int, bars: Bars) -> float:
    """Image AUROC of nearest neighbours, all test images."""
    dataset = open_data(data)
    geometry = Geometry("stretch", SIZE, SIZE)
    good = PreparedImages(hold_out(dataset.train_good)[0], geometry)
    network = create_backbone(backbone, (2, 3))
    network.load(weights, seed)
    if weights == "random":
        network.estimate_batchnorm(good)
    network.eval()
    rng, bank = np.random.default_rng(seed), []
    for i, image in enumerate(good):
        vectors = patches(network, image)
        count = (i + 1) * BANK // len(good) - i * BANK // len(good)
        bank.append(
            vectors[
                torch.from_numpy(rng.choice(len(vectors), min(count, len(vectors)), replace=False))
            ]
        )
        bars("bank", i + 1, len(good))
    stacked = torch.cat(bank)
    lengths, scores = (stacked**2).sum(1), []
    for i, image in enumerate(PreparedImages([sample.path for sample in dataset.test], geometry)):
        vectors = patches(network, image)
        squared = (lengths - 2 * vectors @ stacked.T).amin(1) + (vectors**2).sum(1)
        scores.append(float(squared.max()))
        bars("scores", i + 1, len(dataset.test))
    return auroc(np.array([sample.defect is not None for sample in dataset.test]), np.array(scores))


def simplenet(
    data: Path, backbone: str, weights: str, seed: int, steps: int | None, bars: Bars
) -> float:
    """Image AUROC of SimpleNet after the last epoch, all test images."""
    with tempfile.TemporaryDirectory(prefix="flawline-") as folder:
        out = Path(folder) / "checkpoint.pt"
        flags = [
            "--backbone",
            backbone,
            "--weights",
            weights,
            "--seed",
            str(seed),
            "--device",
            "cpu",
        ]
        flags += ["--steps", str(steps)] if steps else []
        if fit.main(["--data", str(data), "--out", str(out), *flags]):
            raise TrainError(f"{data.name}: training with weights {weights} failed as said above")
        model, _, _ = load_checkpoint(out)
    test = open_data(data).test
    scores, _ = evaluate(
        model, PreparedImages([sample.path for sample in test], model.geometry), bars
    )
    return auroc(np.array([sample.defect is not None for sample in test]), scores)


def wanted_rows(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What to measure, one row after another, without the result."""
    for data in [*([args.demo / name for name in PRODUCTS] if args.demo else []), *args.data]:
        dataset = open_data(data)
        for method in args.methods:
            for weights in args.weights:
                for seed in args.seeds:
                    yield {
                        "data": f"demo {data.name}"
                        if args.demo and data.parent == args.demo
                        else data.name,
                        "good_images": len(hold_out(dataset.train_good)[0]),
                        "test_images": len(dataset.test),
                        "method": method,
                        "budget": f"bank of {BANK}"
                        if method == "nearest"
                        else f"{args.steps or 'default'} steps",
                        "backbone": args.backbone,
                        "weights": create_backbone(args.backbone, (2, 3))
                        .load(weights, seed)
                        .replace(f", seed {seed}", ""),
                        "seed": seed,
                        "_arguments": (data, weights),
                    }


def measure(args: argparse.Namespace, known: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows asked for, from the known ones or measured now."""
    for row in wanted_rows(args):
        data, weights = row.pop("_arguments")
        found = [k for k in known if {name: k.get(name) for name in row} == row]
        if found:
            yield found[0]
            continue
        start, bars = time.monotonic(), Bars()
        try:
            if row["method"] == "nearest":
                result = nearest(data, args.backbone, weights, row["seed"], bars)
            else:
                result = simplenet(data, args.backbone, weights, row["seed"], args.steps, bars)
        finally:
            bars.close()
        log(
            f"{row['data']}, {row['method']}, {weights}, seed {row['seed']}: image AUROC {result:.4f}"
        )
        yield {
            **row,
            "image_auroc": round(result, 4),
            "minutes": round((time.monotonic() - start) / 60, 2),
            **versions(),
        }


def markdown(rows: list[dict[str, Any]], command: str) -> str:
    """One line per method and weights, one column per data set; means and standard deviations over seeds."""
    names = list(dict.fromkeys(row["data"] for row in rows))
    groups = {"demo mean": [n for n in names if n.startswith("demo ")]}
    groups["real mean"] = [n for n in names if n not in groups["demo mean"]]
    groups = {title: members for title, members in groups.items() if len(members) > 1}
    lines = ["| " + " | ".join(["scoring", "weights", "seeds", *names, *groups]) + " |"]
    lines.append("|" + "---|" * (3 + len(names) + len(groups)))
    for method, weights in dict.fromkeys((row["method"], row["weights"]) for row in rows):
        mine = [row for row in rows if (row["method"], row["weights"]) == (method, weights)]
        values = {
            name: [row["image_auroc"] for row in mine if row["data"] == name] for name in names
        }
        cells = [_mean_and_spread(values[name]) for name in names]
        for members in groups.values():
            whole = all(values[name] for name in members)
            cells.append(
                f"{statistics.mean(statistics.mean(values[n]) for n in members):.4f}"
                if whole
                else "–"
            )
        seeds = sorted({row["seed"] for row in mine})
        lines.append(
            f"| {method} | {weights.split(' sha256')[0]} | {' '.join(map(str, seeds))} | {' | '.join(cells)} |"
        )
    sizes = {
        row["data"]: f"{row['data']} {row['good_images']}/{row['test_images']}" for row in rows
    }
    budgets = dict.fromkeys(f"{row['method']} {row['budget']}" for row in rows)
    weights = dict.fromkeys(row["weights"] for row in rows)
    return "\n".join(lines) + (
        f"\n\nImage AUROC, mean ± standard deviation over seeds; {rows[0]['backbone']}, {SIZE}x{SIZE}, last epoch. "
        f"Good/test images: {', '.join(sizes.values())}. Budget: {', '.join(budgets)}. Weights: {'; '.join(weights)}. "
        f"torch {rows[0].get('torch', torch.__version__)}, CPU. `{command}`\n"
    )


def _mean_and_spread(values: list[float]) -> str:
    if not values:
        return "–"
    return f"{statistics.mean(values):.4f}" + (
        f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    )


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.backbones", description="Weights of a backbone, compared."
    )
    parser.add_argument(
        "--data", type=Path, nargs="+", default=[], help="data sets, as for train.fit"
    )
    parser.add_argument("--demo", type=Path, help="also the demo data, rendered into this folder")
    parser.add_argument(
        "--weights", nargs="+", default=["random", "texture"], help="as for train.fit"
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--steps", type=int, help="of SimpleNet; default is the method's")
    parser.add_argument(
        "--out", type=Path, default=Path("results/backbones"), help="without suffix"
    )
    args = parser.parse_args(argv)
    if not args.data and not args.demo:
        parser.error("give --data, --demo or both")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)
    report = args.out.with_suffix(".json")
    rows: list[dict[str, Any]] = []
    try:
        if args.demo:
            write_demo(args.demo)
        known = json.loads(report.read_text()) if report.exists() else []
        for row in measure(args, known):
            rows.append(row)
            kept = [k for k in known if k not in rows]  # rows of other commands stay
            report.parent.mkdir(parents=True, exist_ok=True)
            report.write_text(json.dumps(rows + kept, indent=1) + "\n")
    except (TrainError, DataError, CameraError, ValueError, OSError) as error:
        log(f"benchmarks.backbones: {error}")
        return 2
    # Names instead of paths: where somebody keeps the data is nobody's business.
    words = ["--demo", args.demo.name] if args.demo else []
    words += ["--data", *(d.name for d in args.data)] if args.data else []
    words += ["--weights", *(Path(w).name for w in args.weights), "--methods", *args.methods]
    words += ["--seeds", *map(str, args.seeds)]
    table = markdown(rows, f"python -m benchmarks.backbones {shlex.join(words)}")
    args.out.with_suffix(".md").write_text(table)
    print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
