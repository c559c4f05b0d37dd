"""Judging with several batches in flight: the verdicts of single frames, in their order."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from typing import Any

import numpy as np
import pytest

from flawline.cameras import CameraError, Frame
from flawline.runtime.ahead import Prepared
from flawline.runtime.bundle import Bundle
from flawline.runtime.detector import Detector
from flawline.runtime.engines import EngineError
from flawline.runtime.throughput import judge_in_flight, require_batch
from flawline.runtime.verdict import Verdict

FAULTS = (0, 4, 5, 6, 7, 11)


def frames(count: int = 14) -> list[Frame]:
    """Frames of growing brightness, some of them without an image, several in succession."""
    found = []
    for index in range(count):
        if index in FAULTS:
            found.append(Frame("line", index, None, f"torn {index}"))
        else:
            image = np.full((60, 80, 3), 10 * index, np.uint8)
            found.append(Frame("line", index, image))
    return found


class LazyEngine:
    """Computes nothing before a result is asked for, and returns the same arrays for each slot."""

    def __init__(self, engine: Any, in_flight: int) -> None:
        self._engine = engine
        self.in_flight = in_flight
        self.largest_batch = None
        self.sizes: list[int] = []
        self.waiting: deque[np.ndarray] = deque()
        self.most = 0
        self.fail_at: int | None = None

    def submit(self, image: np.ndarray) -> None:
        if len(self.waiting) == self.in_flight:
            raise RuntimeError("full")
        self.sizes.append(len(image))
        self.waiting.append(image)
        self.most = max(self.most, len(self.waiting))

    def result(self) -> Any:
        image = self.waiting.popleft()
        if self.fail_at is not None and image.max() >= self.fail_at:
            raise EngineError("the device is gone")
        return self._engine(image)

    def close(self) -> None:
        self._engine.close()


def judge(
    detector: Detector, items: Iterable[Frame], batch: int = 1
) -> Generator[tuple[Frame, Verdict]]:
    prepared = (Prepared.of(frame, detector.prepare) for frame in items)
    yield from judge_in_flight(detector, prepared, batch)


@pytest.fixture
def detector(bundle: Bundle) -> Iterator[Detector]:
    with Detector(bundle, "onnxruntime") as detector:
        yield detector


def lazy(detector: Detector, in_flight: int) -> LazyEngine:
    engine = LazyEngine(detector.engine, in_flight)
    detector.engine = engine  # type: ignore[assignment]
    return engine


@pytest.mark.parametrize("batch", [1, 2, 3, 20])
@pytest.mark.parametrize("in_flight", [1, 2, 5])
def test_the_verdicts_are_those_of_single_frames(
    detector: Detector, batch: int, in_flight: int
) -> None:
    expected = [detector.judge(frame) for frame in frames()]
    engine = lazy(detector, in_flight)
    indices = []
    for frame, verdict in judge(detector, frames(), batch):
        alone = expected[frame.index]
        indices.append(frame.index)
        assert (verdict.name, verdict.reason) == (alone.name, alone.reason)
        if frame.image is None:
            assert math.isnan(verdict.score)
            assert not verdict.milliseconds
            continue
        assert verdict.score == alone.score == 10 * frame.index
        # The map is read before the next verdict is asked for.
        assert verdict.anomaly_map is not None
        assert verdict.anomaly_map.max() == 10 * frame.index
        assert verdict.milliseconds.keys() == {"prepare", "infer"}
    assert indices == list(range(14))
    assert sum(engine.sizes) == 14 - len(FAULTS)
    assert max(engine.sizes) <= batch
    assert engine.most == min(in_flight, len(engine.sizes))
    assert not engine.waiting


def test_frames_without_an_image_are_not_collected_for_ever(detector: Detector) -> None:
    engine = lazy(detector, 2)
    fetched = []

    def endless() -> Iterator[Frame]:
        index = 0
        while True:
            fetched.append(index)
            image = np.zeros((60, 80, 3), np.uint8) if index == 0 else None
            yield Frame("line", index, image, None if image is not None else "torn")
            index += 1

    judged = judge(detector, endless(), 4)
    for expected in range(100):
        frame, _ = next(judged)
        assert frame.index == expected
        assert len(fetched) <= expected + 4 * 2 * 3
    judged.close()
    assert not engine.waiting


def test_what_was_fetched_is_judged_before_the_failure_is_raised(detector: Detector) -> None:
    lazy(detector, 3)

    def failing() -> Iterator[Frame]:
        yield from frames(4)
        raise CameraError("the file is torn")

    judged = judge(detector, failing(), 2)
    assert [next(judged)[0].index for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(CameraError, match="the file is torn"):
        next(judged)


def test_the_detector_can_be_used_after_verdicts_that_nobody_asked_for(
    detector: Detector,
) -> None:
    engine = lazy(detector, 3)
    judged = judge(detector, frames())
    next(judged)
    assert engine.waiting
    judged.close()
    assert not engine.waiting


def test_a_failure_of_the_engine_ends_the_judging(detector: Detector) -> None:
    engine = lazy(detector, 3)
    engine.fail_at = 20
    judged = judge(detector, frames())
    assert [next(judged)[0].index for _ in range(2)] == [0, 1]
    with pytest.raises(EngineError, match="the device is gone"):
        next(judged)
    assert not engine.waiting


def test_a_score_that_is_not_finite_rejects_the_part(
    detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        type(detector.engine),
        "__call__",
        lambda self, image: (np.full(len(image), np.nan, np.float32), np.zeros((len(image), 4, 4))),
    )
    (verdict,) = [verdict for _, verdict in judge(detector, frames(2)[1:])]
    assert verdict.name == "unjudged"
    assert verdict.anomalous


def test_no_frames_are_no_batch(detector: Detector) -> None:
    engine = lazy(detector, 2)
    assert list(judge(detector, [], 3)) == []
    assert engine.sizes == []


def test_a_batch_that_the_engine_does_not_take_is_refused(
    detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_batch(detector, 500)
    monkeypatch.setattr(detector.engine, "largest_batch", 4)
    require_batch(detector, 4)
    with pytest.raises(EngineError, match=r"^--batch 5: .* takes at most 4 .*; give --batch 4$"):
        require_batch(detector, 5)
