"""python -m benchmarks.demo: the whole line on built-in data. Render, train, export, stream, measure, draw.

Each step is the command a user would type; it is printed before it runs.
"""

from __future__ import annotations

from flawline.train import require_extra

require_extra("benchmarks.demo")

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2

from flawline.benchmarks.figure import write_report
from flawline.benchmarks.run import measure
from flawline.cameras.decode import read_image
from flawline.export import build as export_build
from flawline.runtime import infer_stream
from flawline.runtime.bundle import read_bundle
from flawline.runtime.console import log
from flawline.runtime.detector import Detector
from flawline.runtime.engines import EngineOptions
from flawline.train.data.demo import PRODUCTS, write_demo
from flawline.train.data.images import DataError, Sample, open_data
from flawline.train.progress import Bars


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="The whole line on built-in data.")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="default %(default)s")
    parser.add_argument(
        "--weights", default="texture", help="as for train.fit; default %(default)s: no download"
    )
    parser.add_argument(
        "--steps", type=int, help="optimiser steps per product; default is the method's"
    )
    parser.add_argument("--products", nargs="+", choices=PRODUCTS, default=list(PRODUCTS))
    args = parser.parse_args(argv)
    data, bars = args.out / "data", Bars()
    try:
        write_demo(data, progress=lambda done, total: bars("demo data", done, total))
    except (ValueError, OSError) as error:
        log(f"demo: {error}")
        return 2
    rows = []
    for product in args.products:
        bundle = args.out / "bundles" / product
        build = [
            "--method",
            "simplenet",
            "--data",
            data / product,
            "--out",
            bundle,
            "--weights",
            args.weights,
        ]
        build += ["--steps", args.steps] if args.steps is not None else []
        if code := _run("export.build", export_build.main, build):
            return code
        stream = ["--bundle", bundle, "--camera", data / product / "test"]
        if code := _run("runtime.infer_stream", infer_stream.main, stream):
            return code
        rows.append(measure(bundle, data / product, "auto", EngineOptions(), repeats=1))
    if args.weights == "random":
        log("note: random weights show the line, not accuracy; --weights texture finds the defects")
    for row in rows:
        accuracy = f"image AUROC {row['image_auroc']:.3f}  pixel AUROC {row['pixel_auroc']:.3f}"
        log(f"{row['data']:<10} {accuracy}  {row['fps']} FPS")
    picture = draw(args.out, args.products)
    for path in [picture, *write_report(rows, args.out)]:
        log(f"wrote {path}")
    return 0


def _run(module: str, command: Callable[[Sequence[str]], int], arguments: Sequence[object]) -> int:
    words = [str(a) for a in arguments]
    log(f"\n$ python -m {module} {shlex.join(words)}")
    return command(words)


def draw(out: Path, products: Sequence[str]) -> Path:
    """A row per product: a good part and two defective ones, each as input, map over it, and verdict."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        len(products), 6, figsize=(13, 2.5 * len(products)), layout="constrained", squeeze=False
    )
    for row, product in zip(axes, products, strict=True):
        with Detector(read_bundle(out / "bundles" / product)) as detector:
            for pair, sample in zip(
                (row[0:2], row[2:4], row[4:6]), _examples(out / "data" / product), strict=True
            ):
                image = read_image(sample.path)
                verdict = detector(image)
                assert verdict.anomaly_map is not None
                painted = detector.paint(image, verdict.anomaly_map)
                right = verdict.anomalous == (sample.defect is not None)
                text = f"{'anomalous' if verdict.anomalous else 'good'}  {verdict.score:.2f} / {verdict.threshold:.2f}"
                pair[0].set_title(f"{product}: {sample.defect or 'good part'}", fontsize=9)
                pair[1].set_title(text, fontsize=9, color="#0a7d32" if right else "#c01c28")
                for axis, picture in zip(pair, (image, painted), strict=True):
                    axis.imshow(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))
                    axis.set_axis_off()
    figure.suptitle("verdict, score / threshold (red where it is wrong)", fontsize=9)
    path = out / "demo.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _examples(data: Path) -> list[Sample]:
    """The first good part and the first of two kinds of defect: not chosen by how well they went."""
    samples = open_data(data).test
    kinds = sorted({s.defect for s in samples if s.defect})
    if len(kinds) < 2:
        raise DataError(
            f"data {data}: the demo data is incomplete; delete the folder and run the demo again"
        )
    wanted = [None, kinds[0], kinds[-1]]
    return [next(s for s in samples if s.defect == kind) for kind in wanted]


if __name__ == "__main__":
    sys.exit(main())
