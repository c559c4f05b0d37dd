"""calibration.json of a bundle: its record, and how it is read and written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from flawline.runtime.drift.reference import Range, range_from_json
from flawline.runtime.manifest import SCHEMA, leave_out_no_folds, take_schema
from flawline.runtime.scored_by import ScoredBy, scored_by_from_json
from flawline.runtime.strict_json import StrictReader, parse_json, to_json

# Keys that are left out where there is no value. An older version refuses each of them, because
# it would run another engine, review no part, find no regions, state rates of other thresholds, or
# compare with other scores.
OPTIONAL = ("scored_by", "review", "pixels", "by_hand", "scores")


@dataclass(frozen=True)
class Level:
    """A threshold from the good images of a calibration.

    A share `rate` of good images is expected above `threshold`; the true one lies in `interval`
    with the confidence of the calibration.
    """

    threshold: float
    rate: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class ByHand:
    """Who moved the thresholds by hand, and the ones from good images, which the rates are of."""

    person: str
    threshold: float
    review_threshold: float | None = None


@dataclass(frozen=True)
class Calibration:
    """The thresholds of a bundle, and what supports them: calibration.json.

    A part is anomalous if its score is above `threshold`. The true false-alarm rate lies in
    `interval` with probability `confidence`, given `good_images` good images. With `folds`, so many
    further detectors scored them, each those that it was not trained on; with 0, the detector
    itself was not trained on them. `scored_by` is the engine whose scores set the threshold; None
    if these were the reference's, or equal to them within the tolerance.

    `review` is the score above which a person looks at a part that is not rejected; its rate is the
    share of good parts that are reviewed or rejected. `pixels` is the value of the anomaly map
    above which a region begins; its rate is the share of good images with at least one region. Both
    are None where the bundle has none, and come from the same images.

    `by_hand` is None for thresholds that follow from the good images. Otherwise a person moved
    those of the score; rates and intervals are still those of the thresholds before that.

    `scores` are those of the good images, for the check of drift, where they are not those of the
    manifest; otherwise None.
    """

    threshold: float
    false_alarm_rate: float
    interval: tuple[float, float]
    confidence: float
    good_images: int
    folds: int = 0
    scored_by: ScoredBy | None = None
    review: Level | None = None
    pixels: Level | None = None
    by_hand: ByHand | None = None
    scores: Range | None = None

    @property
    def review_threshold(self) -> float | None:
        """The score above which a part is reviewed; None if none is."""
        return None if self.review is None else self.review.threshold

    @property
    def pixel_threshold(self) -> float | None:
        """The value of the map above which a region begins; None if it is not known."""
        return None if self.pixels is None else self.pixels.threshold


def calibration_to_json(calibration: Calibration) -> bytes:
    """Write calibration.json."""
    content = asdict(calibration)
    content["schema"] = SCHEMA
    leave_out_no_folds(content)
    if calibration.scores is not None:
        content["scores"] = calibration.scores.to_json()
    for key in OPTIONAL:
        if content[key] is None:
            del content[key]
    return to_json(content)


def calibration_from_json(data: bytes) -> Calibration:
    """Read calibration.json. Raises SchemaError."""
    content = parse_json(data)
    take_schema(content)
    reader = StrictReader(content)
    calibration = Calibration(
        threshold=reader.take("threshold", float),
        false_alarm_rate=reader.take("false_alarm_rate", float),
        interval=reader.take_interval("interval"),
        confidence=reader.take("confidence", float),
        good_images=reader.take("good_images", int),
        folds=reader.take_count("folds"),
        scored_by=scored_by_from_json(reader.take_object("scored_by")),
        review=_level_from_json(reader.take_object("review"), "review"),
        pixels=_level_from_json(reader.take_object("pixels"), "pixels"),
        by_hand=_by_hand_from_json(reader.take_object("by_hand")),
        scores=_scores_from_json(reader.take_object("scores")),
    )
    reader.finish()
    if not 0 < calibration.false_alarm_rate < 1:
        reader.refuse("false_alarm_rate is not between 0 and 1")
    if not 0 < calibration.confidence < 1:
        reader.refuse("confidence is not between 0 and 1")
    if calibration.good_images < 1:
        reader.refuse("good_images is below 1")
    _check_review(reader, calibration)
    return calibration


def _check_review(reader: StrictReader, calibration: Calibration) -> None:
    """Refuse a review level that no part reaches without being rejected."""
    review = calibration.review
    if review is None:
        return
    if review.threshold > calibration.threshold:
        reader.refuse(
            f"review: its threshold {review.threshold:g} is above the one that rejects, "
            f"{calibration.threshold:g}"
        )
    if review.rate < calibration.false_alarm_rate:
        reader.refuse(
            f"review: its rate {review.rate:g} is below the false-alarm rate, "
            f"{calibration.false_alarm_rate:g}"
        )


def _level_from_json(content: Mapping[str, Any] | None, name: str) -> Level | None:
    if content is None:
        return None
    reader = StrictReader(content, name)
    level = Level(
        threshold=reader.take("threshold", float),
        rate=reader.take("rate", float),
        interval=reader.take_interval("interval"),
    )
    reader.finish()
    if not 0 < level.rate < 1:
        reader.refuse("rate is not between 0 and 1")
    return level


def _scores_from_json(content: Mapping[str, Any] | None) -> Range | None:
    return None if content is None else range_from_json(content, "scores")


def _by_hand_from_json(content: Mapping[str, Any] | None) -> ByHand | None:
    if content is None:
        return None
    reader = StrictReader(content, "by_hand")
    by_hand = ByHand(
        person=reader.take("person", str),
        threshold=reader.take("threshold", float),
        review_threshold=reader.take_optional("review_threshold", float),
    )
    reader.finish()
    return by_hand
