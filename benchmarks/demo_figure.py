"""The figure of the demo: good and defective parts of each product with their verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flawline.cameras.decode import read_image
from flawline.runtime.bundle import read_bundle
from flawline.runtime.detector import Detector
from flawline.runtime.image import Image
from flawline.train.data import DataError, Sample, open_data

CORRECT = "#0a7d32"
WRONG = "#c01c28"
PARTS = 3  # of each product; each takes two columns: the image and its overlay


def draw_verdicts(out: Path, products: Sequence[str]) -> Path:
    """Draw one row per product into demo.png and return its path.

    A row shows a good part and two defective ones, each as the input and with its anomaly map. A
    bundle without maps shows the input twice.
    """
    figure = Figure(figsize=(13, 2.5 * len(products)), layout="constrained")
    axes = figure.subplots(len(products), 2 * PARTS, squeeze=False)
    for row, product in zip(axes, products, strict=True):
        samples = _examples(out / "data" / product)
        with Detector(read_bundle(out / "bundles" / product)) as detector:
            for part, sample in enumerate(samples):
                _draw_part(row[2 * part], row[2 * part + 1], product, sample, detector)
    figure.suptitle("verdict, score / threshold (red where it is wrong)", fontsize=9)
    path = out / "demo.png"
    figure.savefig(path, dpi=110)
    return path


def _draw_part(left: Axes, right: Axes, product: str, sample: Sample, detector: Detector) -> None:
    """Draw the image on the left axes, the overlay with the verdict on the right ones."""
    image = read_image(sample.path)
    verdict = detector(image)
    painted = image
    if detector.bundle.has_map:
        assert verdict.anomaly_map is not None
        painted = detector.paint(image, verdict.anomaly_map)
    correct = verdict.anomalous == (sample.defect is not None)
    decision = "anomalous" if verdict.anomalous else "good"
    scores = f"{verdict.score:.2f} / {verdict.threshold:.2f}"
    left.set_title(f"{product}: {sample.defect or 'good part'}", fontsize=9)
    right.set_title(f"{decision}  {scores}", fontsize=9, color=CORRECT if correct else WRONG)
    _show(left, image)
    _show(right, painted)


def _show(axes: Axes, image: Image) -> None:
    axes.imshow(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
    axes.set_axis_off()


def _examples(data: Path) -> list[Sample]:
    """Return the first good part and the first of two kinds of defect.

    They are not chosen by their verdicts.
    """
    first: dict[str | None, Sample] = {}
    for sample in open_data(data).test:
        first.setdefault(sample.defect, sample)
    good = first.pop(None, None)
    if good is None or len(first) < PARTS - 1:
        raise DataError(
            f"data {data}: the demo data is incomplete; delete the folder and run the demo again"
        )
    kinds = sorted(first, key=str)
    return [good, first[kinds[0]], first[kinds[-1]]]
