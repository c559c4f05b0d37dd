"""What a row of the benchmarks states about decisions: docs/protocol.md says how it is measured.

`evaluate_bundles(..., protocol=True)` adds these keys to its rows. All values are of raw scores and
maps. A value that cannot be measured is None, and `reasons` says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from flawline.benchmarks.bundle_report.confidence import rate_interval
from flawline.benchmarks.labels import labels_of
from flawline.benchmarks.pixel_threshold import PixelThreshold
from flawline.cameras.decode import decode_image
from flawline.runtime.bundle import Bundle
from flawline.runtime.image import Map
from flawline.train import TrainError, metrics
from flawline.train.data import DataSet, Sample
from flawline.train.data.masks import Mask, decode_mask, fit_mask

Row = dict[str, Any]

# Share of the other kind of image that PG2 and PB2 give up.
GIVEN_UP = 0.02
# Area of the smallest group of defects, and how many times larger each further one is: twice in
# height and width.
SMALLEST_AREA = 16
AREA_RATIO = 4
NO_MASKS = "the data set has no masks"


@dataclass(frozen=True)
class Truth:
    """What is known about the test images of a data set before they are judged.

    labels: bool [n], True for an image with a defect.
    areas: its defective pixels in the source image; None where there is no mask, or an empty one.
    """

    data_set: DataSet
    labels: metrics.Labels
    areas: tuple[int | None, ...]


def read_truth(data_set: DataSet) -> Truth:
    """Read the masks of the test images.

    Raises DataError for masks that cannot be used, and unless there are good and defective images.
    """
    labels = labels_of(data_set)
    return Truth(data_set, labels, tuple(_defect_area(sample) for sample in data_set.test))


def _defect_area(sample: Sample) -> int | None:
    if sample.mask is None:
        return None
    height, width = decode_image(sample.path).shape[:2]
    mask = fit_mask(decode_mask(sample.mask), (height, width), sample.mask)
    # A mask without a defective pixel does not say how large the defect is.
    return int(np.count_nonzero(mask)) or None


def protocol_of(
    truth: Truth,
    scores: npt.NDArray[Any],
    bundle: Bundle,
    pixel: PixelThreshold,
    masks: Sequence[Mask | None] = (),
    maps: Sequence[Map] = (),
) -> Row:
    """Return the protocol's keys for one engine.

    Args:
        truth: the test images.
        scores: their raw scores, float [n].
        bundle: whose threshold decides; it was set before the test images were judged.
        pixel: the threshold of the maps.
        masks: on the grid of the model's input, bool [H, W] each; None where a defective image has
            none. Empty where no image has one.
        maps: float32 [H, W] each; empty where they are not known.
    """
    threshold = bundle.calibration.threshold
    rejected = np.asarray(scores) > threshold
    reasons: dict[str, str] = {}
    row = decisions(truth.labels, rejected)
    row["asked_rate"] = bundle.calibration.false_alarm_rate
    row["pg2"] = rounded(metrics.good_passed(truth.labels, scores, GIVEN_UP))
    row["pb2"] = rounded(metrics.bad_caught(truth.labels, scores, GIVEN_UP))
    row["pixel_threshold"] = pixel.value
    row["seg_f1"] = _seg_f1(pixel, masks, maps, reasons)
    row["recall_by_area"] = _recall_by_area(truth.areas, rejected, reasons)
    row["tuning_set"] = _tuning_set(bundle, truth.data_set, reasons)
    row["reasons"] = reasons
    return row


def decisions(labels: metrics.Labels, rejected: metrics.Labels) -> Row:
    """Return the rates of false alarms and of found defects with their exact binomial intervals.

    labels and rejected are bool [n], with images of both kinds.
    """
    row: Row = {}
    row["false_alarm_rate"], row["false_alarm_interval"] = _rate(rejected[~labels])
    row["recall"], row["recall_interval"] = _rate(rejected[labels])
    return row


def _rate(counted: metrics.Labels) -> tuple[float, list[float]]:
    """Return the share that is True, and the interval of the true rate."""
    low, high = rate_interval(int(counted.sum()), counted.size)
    return round(float(counted.mean()), 4), [round(low, 4), round(high, 4)]


def _seg_f1(
    pixel: PixelThreshold,
    masks: Sequence[Mask | None],
    maps: Sequence[Map],
    reasons: dict[str, str],
) -> float | None:
    """Return the F1 of all pixels whose truth is known, on the grid of the model's input."""
    if pixel.value is None:
        reasons["seg_f1"] = reasons["pixel_threshold"] = pixel.reason or "it was not measured"
        return None
    if not masks:
        reasons["seg_f1"] = NO_MASKS
        return None
    known = []
    found = []
    for mask, anomaly_map in zip(masks, maps, strict=True):
        if mask is not None:
            known.append(mask)
            found.append(anomaly_map > pixel.value)
    return rounded(metrics.f1(np.array(known), np.array(found)))


def _recall_by_area(
    areas: Sequence[int | None], rejected: metrics.Labels, reasons: dict[str, str]
) -> list[Row] | None:
    known = [area is not None for area in areas]
    if not any(known):
        reasons["recall_by_area"] = NO_MASKS
        return None
    sizes = np.array([area for area in areas if area is not None])
    return recall_by_area(sizes, rejected[known])


def recall_by_area(areas: npt.NDArray[np.int_], found: metrics.Labels) -> list[Row]:
    """Return how many defective images of each size are found, from small to large.

    areas [n] are the defective pixels of each image, found is bool [n]. The groups have fixed
    limits, so that they are the same for every data set and method: below 16 pixels, then up to 64,
    256 and so on. `from_px` is in the group, `to_px` in the next one. Empty groups are left out.
    """
    rows: list[Row] = []
    low = 0
    high = SMALLEST_AREA
    while len(areas) and low <= areas.max():
        inside = (areas >= low) & (areas < high)
        if inside.any():
            count = int(np.count_nonzero(inside))
            hits = int(np.count_nonzero(found[inside]))
            rows.append({"from_px": low, "to_px": high, "defects": count, "found": hits})
        low = high
        high *= AREA_RATIO
    return rows


def _tuning_set(bundle: Bundle, data_set: DataSet, reasons: dict[str, str]) -> bool | None:
    """Whether the method's settings were chosen on this data set; None where it is not known."""
    try:
        # Methods need torch, which a machine that inspects may lack.
        from flawline.train.method import resolve_method
        from flawline.train.tuning_sets import was_tuned_on

        return was_tuned_on(resolve_method(bundle.manifest.method), data_set.root)
    except ModuleNotFoundError as error:
        reasons["tuning_set"] = f"{error.name} is not installed"
    except TrainError as error:
        reasons["tuning_set"] = str(error)
    return None


def rounded(value: float) -> float | None:
    """Return a metric with four decimals; None when it is undefined."""
    return None if np.isnan(value) else round(value, 4)
