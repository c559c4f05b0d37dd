"""An engine that is unavailable for a while rejects its frames, and the stream continues."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from flawline.cameras import Camera, CameraError, Frame
from flawline.runtime.bundle import Bundle
from flawline.runtime.detector import Detector
from flawline.runtime.engines import EngineUnavailable
from flawline.runtime.good_parts import score_frames
from flawline.runtime.outputs import Judgement, Output
from flawline.runtime.station.pipeline import run_stream
from flawline.runtime.station.several_cameras import Station, StationSettings
from flawline.runtime.station.tally import Tally

REASON = "the server is gone"
# Grey values of the frames that the engine does not judge.
LOST = (30, 40)


class Line(Camera):
    """Grey frames."""

    def __init__(self, *values: int) -> None:
        super().__init__()
        self.values = values

    def __iter__(self) -> Iterator[Frame]:
        for index, value in enumerate(self.values):
            yield Frame("line", index, np.full((60, 80, 3), value, np.uint8))


class Remembering(Output):
    """Notes the verdicts."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, str, str | None]] = []
        self.summary: dict[str, Any] = {}

    def write(self, judgement: Judgement) -> None:
        assert judgement.frame.image is not None
        value = int(judgement.frame.image[0, 0, 0])
        self.seen.append((value, judgement.verdict.name, judgement.verdict.reason))

    def finish(self, summary: Any) -> None:
        self.summary = dict(summary)


@pytest.fixture
def detector(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Iterator[Detector]:
    with Detector(bundle, "onnxruntime") as detector:
        kind = type(detector.engine)
        compute = kind.__call__

        def failing(engine: Any, image: Any) -> Any:
            if image.min() in LOST or image.max() in LOST:
                raise EngineUnavailable(REASON)
            return compute(engine, image)

        monkeypatch.setattr(kind, "__call__", failing)
        yield detector


def expected(*values: int) -> list[tuple[int, str, str | None]]:
    found: list[tuple[int, str, str | None]] = []
    for value in values:
        if value in LOST:
            found.append((value, "unjudged", REASON))
        else:
            found.append((value, "anomalous" if value > 100 else "good", None))
    return found


@pytest.mark.parametrize("batch", [None, 1])
def test_the_frames_of_that_time_are_rejected_with_the_reason(
    batch: int | None, detector: Detector
) -> None:
    output = Remembering()
    values = (10, 120, 30, 40, 50, 130)
    run_stream(Line(*values), detector, [output], None, threading.Event(), Tally(), batch)
    assert output.seen == expected(*values)
    assert (output.summary["frames"], output.summary["unjudged"]) == (6, 2)


def test_a_batch_is_rejected_as_a_whole(detector: Detector) -> None:
    output = Remembering()
    values = (10, 20, 25, 30, 50, 130)
    run_stream(Line(*values), detector, [output], None, threading.Event(), Tally(), 2)
    names = [name for _value, name, _reason in output.seen]
    assert names == ["good", "good", "unjudged", "unjudged", "good", "anomalous"]


def test_several_cameras_continue(detector: Detector) -> None:
    output = Remembering()
    station = Station([Line(10, 30, 120), Line(40, 60)], StationSettings(batch=1))
    station.run(detector, [output], None, Tally())
    assert sorted(output.seen) == sorted(expected(10, 30, 120, 40, 60))


def test_a_larger_batch_than_the_engine_takes_loses_only_the_call_that_failed(
    detector: Detector,
) -> None:
    detector.engine.largest_batch = 1
    frames = list(Line(10, 30, 120))
    verdicts = detector.judge_batch(frames)
    assert [verdict.name for verdict in verdicts] == ["good", "unjudged", "anomalous"]
    assert verdicts[1].anomalous
    assert verdicts[2].score == 120


def test_no_threshold_is_set_from_a_part_of_the_images(detector: Detector) -> None:
    with pytest.raises(CameraError, match=f"^line: {REASON}$"):
        score_frames(detector, Line(10, 20, 30))
