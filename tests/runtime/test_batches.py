"""Batches: verdicts as of single frames, at most one frame of each camera, bounded waiting."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import tiny_model, write_tiny_bundle

from flawline.cameras import Frame
from flawline.runtime.ahead import Prepared
from flawline.runtime.bundle import Bundle
from flawline.runtime.detector import Detector
from flawline.runtime.station.batches import Batches, SignalSafeEvent

IMAGE_COUNT = 5


def frames() -> list[Frame]:
    rng = np.random.default_rng(1)
    found = []
    for index in range(IMAGE_COUNT):
        image = rng.integers(0, 40 + 50 * index, (60, 80, 3), dtype=np.uint8)
        found.append(Frame("line", index, image))
    found.insert(2, Frame("line", 9, None, "torn"))
    return found


@pytest.fixture(params=["onnxruntime", "openvino"])
def detector(request: pytest.FixtureRequest, bundle: Bundle) -> Iterator[Detector]:
    if request.param == "openvino":
        pytest.importorskip("openvino")
    with Detector(bundle, request.param) as detector:
        yield detector


@pytest.mark.parametrize("most", [None, 1, 2, 5])
def test_the_verdicts_of_a_batch_are_those_of_single_frames(
    detector: Detector, most: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = frames()
    single = []
    for frame in given:
        verdict = detector.judge(frame)
        anomaly_map = verdict.anomaly_map
        if anomaly_map is not None:
            anomaly_map = anomaly_map.copy()
        single.append((verdict, anomaly_map))
    monkeypatch.setattr(detector.engine, "largest_batch", most)
    together = detector.judge_batch(given)
    assert [verdict.name for verdict in together].count("anomalous") == 3
    for verdict, (expected, anomaly_map) in zip(together, single, strict=True):
        assert verdict.name == expected.name
        assert verdict.reason == expected.reason
        assert math.isnan(expected.score) or verdict.score == pytest.approx(expected.score, 1e-5)
        if anomaly_map is None:
            assert verdict.anomaly_map is None
        else:
            np.testing.assert_allclose(verdict.anomaly_map, anomaly_map, rtol=1e-5)
            assert verdict.milliseconds.keys() == {"prepare", "infer"}


def test_a_batch_without_images_is_not_given_to_the_engine(
    detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unexpected(*_: object) -> None:
        raise AssertionError("there is nothing to judge")

    monkeypatch.setattr(type(detector.engine), "__call__", unexpected)
    assert detector.judge_batch([]) == []
    (verdict,) = detector.judge_batch([Frame("line", 0, None, "torn")])
    assert verdict.reason == "torn"


def test_the_engine_runs_with_every_size_of_a_batch_before_the_first_frame(
    detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    run = type(detector.engine).__call__

    def noted(engine: Any, image: np.ndarray) -> Any:
        sizes.append(len(image))
        return run(engine, image)

    monkeypatch.setattr(type(detector.engine), "__call__", noted)
    detector.warm_up(3)
    assert sizes == [1, 2, 3]
    monkeypatch.setattr(detector.engine, "largest_batch", 2)
    sizes.clear()
    detector.warm_up(3)
    assert sizes == [1, 2]


def test_the_engines_of_this_machine_take_any_batch(detector: Detector) -> None:
    assert detector.engine.largest_batch is None
    assert detector.batch_size(7) == 7


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_graph_with_a_fixed_batch_says_so(name: str, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    if name == "openvino":
        pytest.importorskip("openvino")
    model = onnx.load_from_string(tiny_model())
    for tensor in (*model.graph.input, *model.graph.output):
        tensor.type.tensor_type.shape.dim[0].dim_value = 1
    fixed = write_tiny_bundle(tmp_path / "fixed", model.SerializeToString())
    with Detector(fixed, name) as detector:
        assert detector.engine.largest_batch == 1
        assert [verdict.judged for verdict in detector.judge_batch(frames())].count(True) == 5


class FakeReader:
    """A camera that has so many frames, the first of them without an image."""

    def __init__(self, name: str, waiting: int, faults: int = 0) -> None:
        self.name = name
        self.waiting = waiting
        self.faults = faults
        self.ended = False
        self.wanted = 0
        self.others: list[bool] = []

    @property
    def ready(self) -> bool:
        return self.waiting > 0

    def take(self) -> Prepared[Frame]:
        self.waiting -= 1
        image = np.zeros((4, 4), np.uint8)
        if self.faults:
            self.faults -= 1
            return Prepared(Frame(self.name, 0, None, "torn"), image)
        return Prepared(Frame(self.name, 0, image), image)

    def want(self) -> None:
        self.wanted += 1

    def report(self, others: bool) -> None:
        self.others.append(others)


class FakeEvent(SignalSafeEvent):
    """Moves the clock instead of waiting; `on_wait` is what happens meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 10.0
        self.waits: list[float | None] = []
        self.on_wait: Callable[[], None] = lambda: None

    def wait(self, timeout: float | None) -> None:
        self.waits.append(timeout)
        before = self.now
        self.on_wait()
        if self.now == before:
            assert timeout is not None, "nothing would ever wake the loop"
            self.now += timeout


def batches(readers: list[FakeReader], largest: int, wait_s: float, changed: FakeEvent) -> Batches:
    return Batches(readers, largest, wait_s, changed, lambda: changed.now)  # type: ignore[arg-type]


def names(batch: list[Any]) -> list[str]:
    return [reader.name for reader, _ in batch]


def test_a_batch_has_one_frame_of_each_camera_that_has_some() -> None:
    readers = [FakeReader("a", 9), FakeReader("b", 0), FakeReader("c", 1)]
    changed = FakeEvent()
    former = batches(readers, 3, 0.0, changed)
    assert names(former.next()) == ["a", "c"]
    assert names(former.next()) == ["a"]
    assert changed.waits == []


def test_a_fast_camera_does_not_starve_a_slow_one() -> None:
    readers = [FakeReader("fast", 99), FakeReader("slow", 3), FakeReader("slower", 2)]
    former = batches(readers, 1, 0.0, FakeEvent())
    taken = [names(former.next())[0] for _ in range(8)]
    assert taken == ["fast", "slow", "slower", "fast", "slow", "slower", "fast", "slow"]
    readers = [FakeReader("a", 9), FakeReader("b", 9), FakeReader("c", 9)]
    former = batches(readers, 2, 0.0, FakeEvent())
    assert [names(former.next()) for _ in range(3)] == [["a", "b"], ["c", "a"], ["b", "c"]]


def test_frames_without_an_image_do_not_count_against_their_camera() -> None:
    readers = [FakeReader("a", 9, faults=4), FakeReader("b", 9)]
    former = batches(readers, 1, 0.0, FakeEvent())
    assert names(former.next()) == ["a"] * 5
    assert names(former.next()) == ["b"]
    readers = [FakeReader("a", 9, faults=4), FakeReader("b", 9)]
    assert names(batches(readers, 1, 0.0, FakeEvent()).next(most=3)) == ["a"] * 3


def test_a_frame_waits_for_others_as_long_as_stated_and_no_longer() -> None:
    readers = [FakeReader("a", 1), FakeReader("b", 0), FakeReader("c", 0)]
    changed = FakeEvent()
    former = batches(readers, 3, 0.02, changed)

    def come() -> None:
        if not readers[1].waiting:
            readers[1].waiting = 1
            changed.now += 0.005

    changed.on_wait = come
    assert names(former.next()) == ["a", "b"]
    assert changed.waits == pytest.approx([0.02, 0.015])
    readers = [FakeReader("a", 1), FakeReader("b", 1)]
    changed = FakeEvent()
    # No camera is missing.
    assert names(batches(readers, 2, 0.02, changed).next()) == ["a", "b"]
    assert changed.waits == []


def test_the_loop_gets_control_at_the_time_that_it_asked_for() -> None:
    changed = FakeEvent()
    former = batches([FakeReader("a", 0)], 1, 0.0, changed)
    assert former.next(until=12.5) == []
    assert changed.waits == [2.5]


def test_frames_are_wanted_of_the_cameras_that_have_none_while_the_loop_waits() -> None:
    readers = [FakeReader("a", 1), FakeReader("b", 0), FakeReader("c", 0)]
    former = batches(readers, 3, 0.02, FakeEvent())
    assert names(former.next(paused=lambda reader: reader.name == "c")) == ["a"]
    assert [reader.wanted for reader in readers] == [0, 1, 0]
    readers[0].waiting = 1
    assert names(batches(readers, 1, 0.0, FakeEvent()).next()) == ["a"]
    assert [reader.wanted for reader in readers] == [0, 1, 0]


def test_a_batch_is_not_larger_than_asked_for_and_leaves_out_cameras_that_are_paused() -> None:
    readers = [FakeReader("a", 2), FakeReader("b", 2)]
    former = batches(readers, 2, 0.0, FakeEvent())
    assert names(former.next(most=1)) == ["a"]
    assert names(former.next(paused=lambda reader: reader.name == "b")) == ["a"]
    assert former.next(stopped=lambda: True) == []


def test_cameras_that_have_ended_are_not_waited_for() -> None:
    readers = [FakeReader("a", 1), FakeReader("b", 0)]
    readers[1].ended = True
    former = batches(readers, 2, 0.02, FakeEvent())
    assert former.next() == []
    assert names(former.next()) == ["a"]
    assert set(readers[0].others) == {False}
    assert set(readers[1].others) == {True}
    readers[0].ended = True
    assert former.next() == []


def test_the_loop_gets_control_when_a_camera_ends() -> None:
    readers = [FakeReader("a", 0), FakeReader("b", 0)]
    changed = FakeEvent()
    former = batches(readers, 2, 0.0, changed)

    def end() -> None:
        assert not readers[1].ended, "the loop waits again"
        readers[1].ended = True
        changed.now += 1.0

    changed.on_wait = end
    # Nothing limits the wait, and the other camera gives nothing.
    assert former.next() == []
    assert changed.waits == [None]


def test_an_event_before_the_wait_is_not_lost() -> None:
    changed = SignalSafeEvent()
    changed.set()
    changed.wait(None)
    changed.set()
    changed.set()
    changed.clear()
    changed.wait(0.0)
