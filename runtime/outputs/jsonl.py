"""One JSON line per judgement, and the summary as the last line, on stdout or in a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

from flawline.runtime.bundle import Bundle
from flawline.runtime.console import printable
from flawline.runtime.find_part import Pose
from flawline.runtime.outputs import (
    Judgement,
    Output,
    OutputOptions,
    OutputState,
    ViewVerdict,
)
from flawline.runtime.outputs.line_file import LineFile
from flawline.runtime.regions import Region, Regions
from flawline.runtime.strict_json import finite


class JsonLines(Output):
    """Prints lines, each at once; what becomes of those that cannot be written, `LineFile` says.

    Each line, and the summary, holds the short identifier of the bundle as "bundle".
    `target` is a file, or empty for stdout. The first line replaces the content of the file.
    """

    uses_regions = True
    usage: ClassVar[str] = "jsonl for stdout, jsonl:FILE"

    def __init__(self, target: str, options: OutputOptions, bundle: Bundle) -> None:
        self._bundle_id = bundle.short_id
        self._file = LineFile("jsonl", target)

    def change_bundle(self, bundle: Bundle) -> None:
        self._bundle_id = bundle.short_id

    def write(self, judgement: Judgement) -> None:
        self._print({**record(judgement), "bundle": self._bundle_id})

    def stop_waiting(self) -> None:
        self._file.stop_waiting()

    def totals(self) -> Mapping[str, int]:
        return self._file.totals()

    def state(self) -> OutputState:
        return OutputState(self._file.totals(), self._file.fault)

    def finish(self, summary: Mapping[str, Any]) -> None:
        self._print({"summary": {**summary, "bundle": self._bundle_id}})
        self._file.require_all()

    def _print(self, content: Mapping[str, Any]) -> None:
        self._file.print(json.dumps(content, allow_nan=False))

    def close(self) -> None:
        self._file.close()


def record(judgement: Judgement) -> dict[str, Any]:
    """Return the content of the JSON line of a judgement.

    "verdict" is "good", "review", "anomalous" or "unjudged"; the last two are "rejected". If the
    part was not judged, "score" is null and "reason" says why. "review_threshold" is there if parts
    are reviewed. Live cameras add "age_ms", the time from capture to verdict, and "dropped", the
    number of frames dropped so far. "camera" is there if there are several or it has a name, "part"
    if the camera knows the part, and "views" if the part has several exposures. A judged frame has
    "regions" and "regions_total" if the bundle gives them. "recipe" is there if the stream has
    recipes, "recent_bad" if frames are rejected by several of them, "drift" while warnings of the
    drift check are on, and "pose" if a fixture found the part.
    """
    frame = judgement.frame
    verdict = judgement.verdict
    milliseconds = {}
    for stage, duration in verdict.milliseconds.items():
        milliseconds[stage] = round(duration, 3)
    line: dict[str, Any] = {
        "source": printable(frame.source),
        "index": frame.index,
        "captured_at": round(frame.captured_at, 6),
        "score": finite(verdict.score, 6),
        "threshold": verdict.threshold,
        "verdict": verdict.name,
        "rejected": verdict.anomalous,
        "milliseconds": milliseconds,
        "fps": round(judgement.fps, 2),
    }
    if verdict.review_threshold is not None:
        line["review_threshold"] = verdict.review_threshold
    if verdict.recent_bad is not None:
        line["recent_bad"] = verdict.recent_bad
    if verdict.drift:
        line["drift"] = list(verdict.drift)
    if verdict.pose is not None:
        line["pose"] = _pose(verdict.pose)
    if judgement.live:
        line["age_ms"] = None
        if judgement.age is not None:
            line["age_ms"] = round(1e3 * judgement.age, 3)
        line["dropped"] = judgement.dropped
    return line | _origin(judgement)


def _pose(pose: Pose) -> dict[str, float]:
    """Return how the part lies relative to the reference picture: degrees, pixels, the match."""
    return {
        "turn": pose.turn,
        "dx": pose.shift_x,
        "dy": pose.shift_y,
        "match": pose.quality,
    }


def _origin(judgement: Judgement) -> dict[str, Any]:
    """Return what is there only in some streams: of which camera, part and recipe, and why."""
    frame = judgement.frame
    keys: dict[str, Any] = {}
    if judgement.recipe is not None:
        keys["recipe"] = judgement.recipe
    if judgement.camera is not None:
        keys["camera"] = printable(judgement.camera)
    if frame.part is not None:
        keys["part"] = printable(frame.part)
    if judgement.views:
        keys["views"] = [_view(view) for view in judgement.views]
    if judgement.verdict.reason is not None:
        keys["reason"] = printable(judgement.verdict.reason)
    if judgement.regions is not None:
        keys |= _regions(judgement.regions)
    return keys


def _regions(regions: Regions) -> dict[str, Any]:
    """Return the regions that are listed, and the number of all."""
    listed = [_region(region, regions.mm_per_pixel) for region in regions.listed]
    return {"regions": listed, "regions_total": regions.total}


def _region(region: Region, mm_per_pixel: float | None) -> dict[str, Any]:
    """Return a region in pixels of the source image, and in millimetres if their size is known."""
    content: dict[str, Any] = {
        "box": list(region.box),
        "area": region.area,
        "peak": finite(region.peak, 6),
        "peak_at": list(region.peak_at),
    }
    if mm_per_pixel is not None:
        content["box_mm"] = [finite(mm_per_pixel * side, 6) for side in region.box]
        content["area_mm2"] = finite(mm_per_pixel**2 * region.area, 6)
        content["peak_at_mm"] = [finite(mm_per_pixel * place, 6) for place in region.peak_at]
    return content


def _view(view: ViewVerdict) -> dict[str, Any]:
    """Return the verdict on one exposure of a part."""
    content: dict[str, Any] = {
        "view": view.view,
        "index": view.index,
        "score": finite(view.score, 6),
        "verdict": view.name,
    }
    if view.camera is not None:
        content["camera"] = printable(view.camera)
    if view.reason is not None:
        content["reason"] = printable(view.reason)
    return content
