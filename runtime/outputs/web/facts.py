"""A judged part as the page gets it."""

from __future__ import annotations

from flawline.runtime.console import printable
from flawline.runtime.outputs.web.lane import Shown
from flawline.runtime.outputs.web.shapes import PartState, RegionState
from flawline.runtime.regions import Region
from flawline.runtime.strict_json import finite

DIGITS = 6


def part_state(shown: Shown) -> PartState:
    """Return a judged part as the page gets it."""
    judgement = shown.judgement
    verdict = judgement.verdict
    frame = judgement.frame
    height, width = (0, 0) if frame.image is None else frame.image.shape[:2]
    regions = judgement.regions
    return PartState(
        lane=shown.lane,
        number=shown.number,
        verdict=verdict.name,
        score=finite(verdict.score, DIGITS),
        threshold=verdict.threshold,
        review_threshold=verdict.review_threshold,
        reason=None if verdict.reason is None else printable(verdict.reason),
        camera=judgement.camera,
        part=None if frame.part is None else printable(frame.part),
        source=printable(frame.source),
        captured_at=round(frame.captured_at, 3),
        width=width,
        height=height,
        regions=tuple(map(_region, () if regions is None else regions.listed)),
        regions_total=0 if regions is None else regions.total,
    )


def _region(region: Region) -> RegionState:
    return RegionState(region.box, region.area, finite(region.peak, DIGITS) or 0.0)
