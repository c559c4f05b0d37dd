"""What judges a stream is exchanged between two parts, without a lost frame."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import tiny_model, write_tiny_bundle
from fakes.live_camera import WAIT_S

from flawline import FlawlineError
from flawline.cameras import Camera, Frame
from flawline.runtime.bundle import Bundle, BundleError
from flawline.runtime.detector import Detector
from flawline.runtime.outputs import Judgement, Output
from flawline.runtime.outputs.jsonl import JsonLines
from flawline.runtime.outputs.overlays import OverlayOptions, Overlays
from flawline.runtime.station import judge
from flawline.runtime.station.judge import (
    Exchange,
    Judge,
    Levels,
    Window,
    require_same_maps,
)
from flawline.runtime.station.pipeline import run_stream
from flawline.runtime.station.several_cameras import Station, StationSettings
from flawline.runtime.station.tally import Tally
from flawline.runtime.verdict import Verdict

# A field of the graph that changes nothing but its hash.
DOC_STRING = b"\x32\x01x"


class Line(Camera):
    """Frames of these grey values; `before` is called with the index of each before it is given."""

    def __init__(self, *values: int, before: Callable[[int], None], views: int = 1) -> None:
        super().__init__()
        self.values = values
        self.before = before
        self.views = views

    def __iter__(self) -> Iterator[Frame]:
        for index, value in enumerate(self.values):
            if self._stopped:
                return
            self.before(index)
            image = np.full((60, 80, 3), value, np.uint8)
            part, view = divmod(index, self.views)
            name = str(part) if self.views > 1 else None
            yield Frame("line", index, image, part=name, view=view, views=self.views)


class Recorded(Output):
    """Remembers judgements, each with the bundle that was stated before it."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.judgements: list[Judgement] = []
        self.bundles: list[str] = []

    def write(self, judgement: Judgement) -> None:
        self.judgements.append(judgement)
        self.bundles.append(self.bundle.short_id)

    def change_bundle(self, bundle: Bundle) -> None:
        self.bundle = bundle

    def indices(self) -> list[int]:
        return [judgement.frame.index for judgement in self.judgements]

    def recipes(self) -> list[str | None]:
        return [judgement.recipe for judgement in self.judgements]


class Closing(Detector):
    """Knows whether it was closed."""

    closed = False

    def close(self) -> None:
        self.closed = True
        super().close()


@pytest.fixture
def first(bundle: Bundle) -> Judge:
    return Judge(Closing(bundle, "onnxruntime"), "first")


@pytest.fixture
def second(tmp_path: Path) -> Judge:
    other = write_tiny_bundle(tmp_path / "other", tiny_model() + DOC_STRING)
    return Judge(Closing(other, "onnxruntime", threshold=40), "second")


class Offer:
    """Offers a judge before frame `at`, and waits until it is ready."""

    def __init__(self, exchange: Exchange, judge: Judge, at: int) -> None:
        self.exchange = exchange
        self.judge = judge
        self.at = at

    def __call__(self, index: int) -> None:
        if index == self.at:
            self.exchange.offer(lambda: self.judge)
            assert wait_until(lambda: self.exchange.is_due or self.exchange.now is self.judge)


def wait_until(condition: Callable[[], bool]) -> bool:
    """Wait for a condition that another thread makes true."""
    pause = threading.Event()
    for _ in range(int(100 * WAIT_S)):
        if condition():
            return True
        pause.wait(0.01)
    return False


def is_closed(judge: Judge) -> bool:
    """Whether the detector of a judge was closed."""
    detector = judge.detector
    assert isinstance(detector, Closing)
    return detector.closed


@pytest.mark.parametrize("batch", [None, 1, 3])
def test_no_frame_is_lost_and_the_later_ones_are_of_the_other(
    batch: int | None, first: Judge, second: Judge
) -> None:
    output = Recorded(first.detector.bundle)
    with Exchange(first) as exchange:
        camera = Line(*range(10, 200, 10), before=Offer(exchange, second, 8))
        run_stream(camera, exchange, [output], None, threading.Event(), Tally(), batch)
        assert exchange.now is second
        assert is_closed(first)
        assert not is_closed(second)
    assert is_closed(second)
    assert output.indices() == list(range(19))
    recipes = output.recipes()
    changed = recipes.index("second")
    assert recipes == ["first"] * changed + ["second"] * (19 - changed)
    # Those that were prepared or collected already may be of either; this one was not.
    assert changed <= 8
    for judgement, recipe, bundle in zip(output.judgements, recipes, output.bundles, strict=True):
        detector = (first if recipe == "first" else second).detector
        assert bundle == detector.bundle.short_id
        assert judgement.verdict.threshold == detector.threshold
        assert judgement.verdict.score == 10 + 10 * judgement.frame.index
        anomaly_map = judgement.verdict.anomaly_map
        assert anomaly_map is not None


def test_a_part_with_several_views_is_not_divided(first: Judge, second: Judge) -> None:
    output = Recorded(first.detector.bundle)
    with Exchange(first) as exchange:
        # Ready before the second view of the second part of three.
        camera = Line(*range(10, 100, 10), before=Offer(exchange, second, 4), views=3)
        run_stream(camera, exchange, [output], None, threading.Event(), Tally())
    assert output.recipes() == ["first", "first", "second"]
    for judgement in output.judgements:
        assert [view.view for view in judgement.views] == [0, 1, 2]
        assert judgement.verdict.judged


@pytest.mark.parametrize("same_part", [False, True])
def test_several_cameras_take_the_other_without_a_lost_frame(
    same_part: bool, first: Judge, second: Judge
) -> None:
    output = Recorded(first.detector.bundle)
    with Exchange(first) as exchange:
        # The right camera may be some parts ahead, which are completed before.
        left = Line(*range(10, 210, 5), before=Offer(exchange, second, 3))
        right = Line(*range(10, 210, 5), before=lambda index: None)
        station = Station([left, right], StationSettings(same_part=same_part))
        station.run(exchange, [output], None, Tally())
        assert exchange.now is second
    if same_part:
        assert len(output.judgements) == 40
        assert all(judgement.verdict.judged for judgement in output.judgements)
    else:
        assert sorted(output.indices()) == sorted(2 * list(range(40)))
    recipes = output.recipes()
    changed = recipes.index("second")
    assert recipes == ["first"] * changed + ["second"] * (len(recipes) - changed)
    assert {judgement.verdict.threshold for judgement in output.judgements[changed:]} == {40}


def test_what_cannot_be_opened_is_refused_in_one_line(
    first: Judge, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(error: Exception) -> Callable[[], Judge]:
        def opening() -> Judge:
            raise error

        return opening

    with Exchange(first) as exchange:
        for error in (FlawlineError("its graph is damaged; build it"), RuntimeError("a\nb")):
            exchange.offer(fails(error))
            assert wait_until(lambda: capsys_has(capsys, "refused, and inspection continues"))
        assert exchange.take() is first
        assert not exchange.is_due
        assert not is_closed(first)


def capsys_has(capsys: pytest.CaptureFixture[str], text: str) -> bool:
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) <= 1
    return any(text in line for line in lines)


def test_the_latest_offer_takes_the_place_of_those_before(first: Judge, second: Judge) -> None:
    began = threading.Event()
    late = threading.Event()
    third = Judge(Closing(second.detector.bundle, "onnxruntime"), "third")

    def slow() -> Judge:
        began.set()
        assert late.wait(WAIT_S)
        return second

    with Exchange(first) as exchange:
        exchange.offer(slow)
        assert began.wait(WAIT_S)
        exchange.offer(lambda: third)
        late.set()
        assert wait_until(lambda: exchange.is_due)
        assert exchange.take() is third
        assert is_closed(second)
        assert is_closed(first)


def test_what_is_ready_when_the_stream_ends_is_closed(first: Judge, second: Judge) -> None:
    exchange = Exchange(first)
    exchange.offer(lambda: second)
    assert wait_until(lambda: exchange.is_due)
    exchange.close()
    exchange.close()
    exchange.offer(lambda: pytest.fail("nothing is opened any more"))
    assert is_closed(first)
    assert is_closed(second)


def test_the_end_does_not_wait_for_an_engine_that_hangs(
    first: Judge, second: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judge, "JOIN_S", 0.01)
    began = threading.Event()
    late = threading.Event()

    def slow() -> Judge:
        began.set()
        assert late.wait(WAIT_S)
        return second

    with Exchange(first) as exchange:
        exchange.offer(slow)
        assert began.wait(WAIT_S)
    assert is_closed(first)
    late.set()
    # It closes what it has opened in vain.
    assert wait_until(lambda: is_closed(second))


def test_a_camera_may_have_thresholds_of_its_own(first: Judge) -> None:
    levels = {"left": Levels(50.0, 20.0), "right": Levels(60.0)}
    own = Judge(first.detector, None, levels)
    image = np.full((60, 80, 3), 55, np.uint8)
    names = {}
    for camera in ("left", "right", "other"):
        verdict = own.verdict(first.detector(image), camera)
        names[camera] = (verdict.name, verdict.threshold, verdict.review_threshold)
    assert names == {
        "left": ("anomalous", 50.0, 20.0),
        "right": ("good", 60.0, None),
        "other": ("good", 100.0, None),
    }
    low = own.verdict(first.detector(np.full((60, 80, 3), 30, np.uint8)), "left")
    assert low.name == "review"
    unjudged = Verdict(math.nan, 100.0, True, None, {}, "torn")
    assert own.verdict(unjudged, "right").name == "unjudged"


def test_a_window_rejects_while_enough_of_the_last_frames_are_bad(first: Judge) -> None:
    own = Judge(first.detector, window=Window(2, 3))
    names = []
    counts = []
    #        one alone      two of three         none
    for score in (150, 10, 10, 150, 10, 150, 150, 10, 10, 10):
        verdict = own.verdict(Verdict(score, 100.0, score > 100, None), "1")
        names.append(verdict.name)
        counts.append(verdict.recent_bad)
    good, bad = "good", "anomalous"
    assert names == [good, good, good, good, good, bad, bad, bad, good, good]
    assert counts == [1, 1, 1, 1, 1, 2, 2, 2, 1, 0]


def test_a_window_counts_each_camera_and_what_was_not_judged(first: Judge) -> None:
    own = Judge(first.detector, window=Window(2, 3))
    bad = Verdict(150, 100.0, True, None)
    unjudged = Verdict(math.nan, 100.0, True, None, {}, "torn")
    assert own.verdict(bad, "left").name == "good"
    assert own.verdict(bad, "right").name == "good"
    assert own.verdict(unjudged, "left").name == "unjudged"
    assert own.verdict(Verdict(1, 100.0, False, None), "left").name == "anomalous"
    # Without a score above the threshold, it may be for review.
    assert own.verdict(Verdict(90, 100.0, False, None, {}, None, 50.0), "right").name == "review"


def test_the_outputs_name_the_bundle_of_each_line(
    first: Judge, second: Judge, tmp_path: Path
) -> None:
    bundle = first.detector.bundle
    lines = tmp_path / "lines.jsonl"
    painted = tmp_path / "painted"
    with (
        Exchange(first) as exchange,
        JsonLines(str(lines), JsonLines.Options(), bundle) as jsonl,
        Overlays(str(painted), OverlayOptions(), bundle) as overlays,
    ):
        camera = Line(10, 20, 30, 50, before=Offer(exchange, second, 2))
        run_stream(camera, exchange, [jsonl, overlays], None, threading.Event(), Tally())
    found = [json.loads(line) for line in lines.read_text().splitlines()]
    summary: dict[str, Any] = found.pop()["summary"]
    ids = {"first": bundle.short_id, "second": second.detector.bundle.short_id}
    assert ids["first"] != ids["second"]
    assert [line["bundle"] for line in found] == [ids[line["recipe"]] for line in found]
    assert found[-1]["verdict"] == "anomalous"
    assert summary["bundle"] == ids["second"]
    assert len(list(painted.iterdir())) == 4


def test_a_bundle_without_maps_does_not_follow_one_with_maps(
    bundle: Bundle, tmp_path: Path
) -> None:
    scores = write_tiny_bundle(tmp_path / "scores", outputs=("score",))
    require_same_maps(bundle, bundle)
    with pytest.raises(BundleError, match="gives no maps, unlike the one"):
        require_same_maps(scores, bundle)


def test_what_begins_to_judge_is_told_so_and_a_failure_of_that_ends_nothing(
    first: Judge, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    begun: list[str] = []

    def offer(exchange: Exchange, name: str, fails: bool = False) -> None:
        following = Judge(Detector(bundle, "onnxruntime"), name)

        def begin(judge: Judge) -> None:
            assert judge is following
            begun.append(name)
            if fails:
                raise BundleError("the log is full")

        following.on_begin = begin
        exchange.offer(lambda: following)
        assert wait_until(lambda: exchange._next is following)

    with Exchange(first) as exchange:
        offer(exchange, "replaced")
        offer(exchange, "taken")
        # Neither of them has judged.
        assert begun == []
        assert exchange.take().recipe == "taken"
        assert wait_until(lambda: begun == ["taken"])
        offer(exchange, "failing", fails=True)
        exchange.take()
    # The end of the stream waits for it.
    assert begun == ["taken", "failing"]
    assert "the log is full; inspection continues" in capsys.readouterr().err
