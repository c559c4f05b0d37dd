"""What the live page gets from a stream, and that it costs the stream nothing to speak of."""

from __future__ import annotations

import dataclasses
import json
import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs the extra web")

from conftest import tiny_model, write_tiny_bundle
from fakes.page import Belt, Watcher, ask, judged
from prometheus_client.parser import text_string_to_metric_families

from flawline.cameras import Camera, Frame, events
from flawline.cameras.events import CameraEvent
from flawline.runtime.bundle import Bundle
from flawline.runtime.console import warn
from flawline.runtime.detector import Detector
from flawline.runtime.outputs import (
    Judgement,
    OutputState,
    StreamState,
    ViewVerdict,
    open_output,
)
from flawline.runtime.outputs.web import board, kept, lane, pictures, state
from flawline.runtime.outputs.web import desk as desk_module
from flawline.runtime.outputs.web.lane import Lane
from flawline.runtime.outputs.web.output import LivePage
from flawline.runtime.outputs.web.pictures import LONGEST_SIDE, Pictures
from flawline.runtime.station.judge import Exchange, Judge, Levels
from flawline.runtime.station.pipeline import run_stream
from flawline.runtime.station.several_cameras import Station, StationSettings
from flawline.runtime.station.tally import Tally
from flawline.runtime.verdict import Verdict

UNJUDGED = Judgement(
    Frame("belt", 1, None, fault="torn"), Verdict(math.nan, 100.0, True, None, {}, "torn"), 1.0
)


@pytest.fixture(autouse=True)
def _every_frame_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames of tests come faster than those of cameras, and pictures need not wait."""
    monkeypatch.setattr(lane, "PICTURE_S", 0.0)
    monkeypatch.setattr(pictures, "REST", 0.0)


@pytest.fixture
def page(bundle: Bundle) -> Iterator[LivePage]:
    with open_page(bundle) as page:
        yield page


def open_page(bundle: Bundle) -> LivePage:
    page = open_output("web:127.0.0.1:0?title=Line+4", bundle)
    assert isinstance(page, LivePage)
    return page


def begin(page: LivePage, *cameras: Camera) -> None:
    """Attach cameras, or one without a name, to a stream without further outputs."""
    page.follow(lambda: StreamState("test engine", "cap", False, (), ()))
    for camera in cameras or (Belt(),):
        page.attach(camera)


def get(page: LivePage, path: str) -> Any:
    answer = ask(page.port, path)
    assert answer.status == 200, answer.body
    return answer.json


def picture(page: LivePage, path: str) -> np.ndarray:
    answer = ask(page.port, path)
    assert answer.status == 200, answer.body
    assert answer.headers["content-type"] == "image/jpeg"
    image = cv2.imdecode(np.frombuffer(answer.body, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    return np.asarray(image)


# What is shown.


def test_the_state_says_what_judges_and_what_was_judged(page: LivePage, bundle: Bundle) -> None:
    begin(page)
    for score in (20.0, 80.0, 200.0):
        page.write(judged(score))
    page.write(UNJUDGED)
    found = get(page, "/api/state")
    assert (found["title"], found["phase"]) == ("Line 4", "running")
    assert (found["bundle"], found["engine"]) == (bundle.short_id, "test engine")
    assert found["recipe"] == "cap"
    (only,) = found["lanes"]
    assert only["name"] == "1"
    counts = [only[key] for key in ("frames", "judged", "reviewed", "rejected", "unjudged")]
    assert counts == [4, 3, 1, 1, 1]
    # The newest frame; it has no image.
    assert (only["shown"]["verdict"], only["shown"]["score"]) == ("unjudged", None)
    assert only["shown"]["reason"] == "torn"
    assert ask(page.port, "/api/lanes/1/picture").status == 404
    points = get(page, "/api/lanes/1/scores")["points"]
    assert [point[:3] for point in points] == [
        [1, 20.0, 0],
        [2, 80.0, 1],
        [3, 200.0, 2],
        [4, None, 3],
    ]
    assert ask(page.port, "/api/lanes/2/scores").status == 404


def test_the_picture_has_the_map_and_the_regions_are_beside_it(page: LivePage) -> None:
    begin(page)
    page.write(judged(150.0))
    shown = get(page, "/api/state")["lanes"][0]["shown"]
    assert shown["regions"] == [{"box": [8, 6, 20, 12], "area": 240, "peak": 140.0}]
    assert (shown["width"], shown["height"]) == (64, 48)
    painted = picture(page, "/api/lanes/1/picture")
    plain = picture(page, "/api/lanes/1/picture?map=false")
    assert painted.shape == plain.shape == (48, 64, 3)
    # The map lies above the pixel threshold everywhere: red or yellow on grey.
    assert np.ptp(painted.astype(int), axis=-1).mean() > 60
    assert np.ptp(plain.astype(int), axis=-1).max() < 8


def test_a_frame_that_is_not_good_stays_visible_for_a_moment(bundle: Bundle) -> None:
    now = 0.0
    shown = Lane("1", lambda: now)
    shown.add(judged(200.0), bundle)
    shown.add(judged(20.0), bundle)
    assert shown.view().shown is not None
    assert shown.to_show().number == 1  # type: ignore[union-attr]
    now = lane.HOLD_S
    assert shown.to_show().number == 2  # type: ignore[union-attr]


def test_maps_are_copied_at_most_so_often(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream uses the map again for the next frame."""
    monkeypatch.setattr(lane, "PICTURE_S", 0.1)
    now = 0.0
    stored = Lane("1", lambda: now)
    numbers = set()
    for number in range(100):
        now = 0.0101 * number
        stored.add(judged(20.0), bundle)
        numbers.add(stored.view().shown.number)  # type: ignore[union-attr]
    assert len(numbers) == 10
    first = judged(200.0)
    kept_part = stored.add(first, bundle)
    assert kept_part is not None
    assert first.verdict.anomaly_map is not None
    first.verdict.anomaly_map[:] = 0
    copy = kept_part.judgement.verdict.anomaly_map
    assert copy is not None
    assert copy.min() == 200
    # A line whose parts are all bad does not copy each of them either.
    assert stored.add(judged(200.0), bundle) is None
    assert stored.view().counts == (100, 0, 2, 0)


def test_the_rate_falls_while_no_frame_comes(bundle: Bundle) -> None:
    now = 0.0
    slow = Lane("1", lambda: now)
    assert slow.view().fps == 0
    for number in range(50):
        now = 0.1 * number
        slow.add(judged(20.0), bundle)
    assert slow.view().fps == pytest.approx(10)
    now += 30
    assert slow.view().fps < 1
    assert slow.view().silent_s == pytest.approx(30)


def test_only_recent_scores_are_kept(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane, "RECENT", 8)
    short = Lane("1")
    for number in range(20):
        short.add(judged(float(number)), bundle)
    assert [point[0] for point in short.points(0)] == list(range(13, 21))
    assert [point[1] for point in short.points(18)] == [18.0, 19.0]
    assert short.points(20) == []


def test_the_last_parts_that_were_not_good_have_pictures(page: LivePage) -> None:
    begin(page)
    for score in (80.0, 20.0, 200.0):
        page.write(judged(score))
    page.write(UNJUDGED)
    parts = get(page, "/api/parts")
    assert [part["part"]["verdict"] for part in parts] == ["unjudged", "anomalous", "review"]
    assert [part["has_picture"] for part in parts] == [False, True, True]
    assert get(page, "/api/state")["kept"] == 3
    first = picture(page, f"/api/parts/{parts[1]['id']}/picture")
    # Once it is encoded, the image itself is released, and the picture stays.
    assert all(entry.is_gone for entry in page._board.kept.parts() if entry.picture)
    np.testing.assert_array_equal(picture(page, f"/api/parts/{parts[1]['id']}/picture"), first)
    assert ask(page.port, f"/api/parts/{parts[0]['id']}/picture").status == 404
    assert ask(page.port, "/api/parts/99/picture").status == 404


def test_the_images_of_kept_parts_have_a_limit(
    page: LivePage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "RAW_BYTES", 3 * (48 * 64 * 3 + 64 * 64 * 4))
    begin(page)
    for _ in range(kept.MOST_PARTS + 5):
        page.write(judged(200.0))
    parts = get(page, "/api/parts")
    assert [part["id"] for part in parts] == list(range(29, 5, -1))
    assert [part["has_picture"] for part in parts[:5]] == [True, True, True, False, False]
    # What an image was of is still known.
    assert parts[-1]["part"]["score"] == 200.0


def test_pictures_take_a_limited_share_of_the_time(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "REST", 3.0)
    now = 0.0
    slept = []

    def tick() -> float:
        nonlocal now
        now += 0.01
        return now

    made = Pictures(tick, slept.append)
    stored = Lane("1")
    stored.add(judged(200.0), bundle)
    first = made.newest(stored.to_show(), True)  # type: ignore[arg-type]
    stored.add(judged(210.0), bundle)
    # Too early for another one: the last is given again.
    assert made.newest(stored.to_show(), True) == first  # type: ignore[arg-type]
    assert slept == [0.0]
    # A picture that there is none of yet is waited for.
    made.encode(stored.to_show())  # type: ignore[arg-type]
    assert 0 < slept[1] <= 0.03
    now += 1
    assert made.newest(stored.to_show(), True)[0] == 2  # type: ignore[arg-type]


def test_large_and_deep_frames_become_small_pictures(page: LivePage) -> None:
    begin(page)
    deep = dataclasses.replace(
        judged(200.0), frame=Frame("belt", 0, np.full((1200, 1600), 3000, np.uint16), bit_depth=12)
    )
    page.write(deep)
    assert picture(page, "/api/lanes/1/picture").shape == (720, LONGEST_SIDE, 3)
    # One whose bit depth is not known is rejected for that, and shown.
    unknown = Frame("belt", 0, np.full((48, 64), 60_000, np.uint16))
    verdict = Verdict(math.nan, 100.0, True, None, {}, "its bit depth is unknown")
    page.write(Judgement(unknown, verdict, 1.0))
    image = picture(page, f"/api/parts/{get(page, '/api/parts')[0]['id']}/picture")
    assert image.mean() > 200


def test_another_bundle_is_named_and_parts_keep_theirs(page: LivePage, tmp_path: Path) -> None:
    begin(page)
    page.write(judged(200.0))
    other = write_tiny_bundle(tmp_path / "other", tiny_model() + b"\x32\x01x", method="padim")
    page.change_bundle(other)
    found = get(page, "/api/state")
    assert (found["bundle"], found["method"]) == (other.short_id, "padim")
    picture(page, "/api/parts/1/picture")


def test_cameras_have_lanes_of_their_own(page: LivePage) -> None:
    begin(page, Belt("left"), Belt("right"))
    page.write(judged(20.0, camera="right"))
    lanes = {found["name"]: found["frames"] for found in get(page, "/api/state")["lanes"]}
    assert lanes == {"left": 0, "right": 1}


def test_parts_that_several_cameras_see_have_one_lane(page: LivePage) -> None:
    left, right = Belt("left"), Belt("right")
    left.dropped, right.dropped = 2, 3
    begin(page, left, right)
    views = (
        ViewVerdict(0, 0, 20.0, "good", None, "left"),
        ViewVerdict(1, 0, 200.0, "anomalous", None, "right"),
    )
    page.write(judged(200.0, camera="right", views=views))
    found = get(page, "/api/state")
    (only,) = found["lanes"]
    assert (only["name"], only["dropped"], only["shown"]["camera"]) == ("parts", 5, "right")
    assert len(found["cameras"]) == 2


# Health.


def faults(page: LivePage) -> list[str]:
    answer = ask(page.port, "/healthz")
    found: list[str] = answer.json["faults"]
    assert answer.status == (503 if found else 200)
    assert answer.json["status"] == ("fault" if found else "ok")
    return found


def test_a_stream_that_has_not_begun_is_not_healthy(page: LivePage) -> None:
    assert faults(page) == ["the stream has not begun: its engine or its cameras are being opened"]
    assert get(page, "/api/state")["engine"] is None
    begin(page)
    assert faults(page) == []
    page.finish({})
    assert faults(page) == ["the stream has ended"]


def test_a_camera_that_is_lost_is_a_fault_until_it_gives_frames(page: LivePage) -> None:
    camera = Belt("left")
    begin(page, camera)
    page.note_event(camera, CameraEvent(events.STALE, "old"))
    page.note_event(camera, CameraEvent(events.FAILED, "the cable is out"))
    assert faults(page) == ["camera left: the cable is out"]
    assert get(page, "/api/state")["cameras"][0]["fault"] == "the cable is out"
    page.note_event(camera, CameraEvent(events.RECOVERED, "frames again"))
    assert faults(page) == []
    camera.lost = "given up"
    assert faults(page) == ["camera left: given up"]


def test_silence_is_a_fault_of_a_camera_that_runs_freely(
    page: LivePage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "SILENT_S", -1.0)
    begin(page, Belt("free"), Belt("triggered", knows_parts=True))
    page.write(judged(20.0, camera="free"))
    page.write(judged(20.0, camera="triggered"))
    (fault,) = faults(page)
    assert fault.startswith("camera free: no frame for more than ")


def test_frames_that_cannot_be_judged_one_after_the_other_are_a_fault(page: LivePage) -> None:
    begin(page)
    for _ in range(state.UNJUDGED_RUN - 1):
        page.write(UNJUDGED)
    assert faults(page) == []
    page.write(UNJUDGED)
    assert faults(page) == ["camera 1: no frame can be judged any more: torn"]
    page.write(judged(20.0))
    assert faults(page) == []


def test_warnings_and_outputs_are_shown(page: LivePage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board, "MOST_WARNINGS", 3)
    outputs = (("mqtt:broker/line", OutputState({"delivered": 7}, "does not answer")),)
    page.follow(lambda: StreamState("engine", None, False, (), outputs))
    warn("the disk is\nfull")
    found = get(page, "/api/state")
    assert found["warnings"][0]["text"] == "the disk is\\nfull"
    assert found["outputs"] == [
        {"name": "mqtt:broker/line", "counts": {"delivered": 7}, "fault": "does not answer"}
    ]
    page.close()
    warn("after the end")
    assert "after" not in str(page._board.warnings())


def test_metrics_are_those_of_the_stream(page: LivePage) -> None:
    camera = Belt("left")
    camera.dropped = 4
    begin(page, camera)
    for score in (20.0, 80.0, 200.0):
        page.write(judged(score, camera="left"))
    page.write(dataclasses.replace(UNJUDGED, camera="left"))
    text = ask(page.port, "/metrics").body.decode()
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = sample.name.removeprefix("flawline_")
            if "le" in sample.labels:
                key += sample.labels["le"]
            found[key] = sample.value
            assert sample.labels.get("camera", "left") == "left"
    expected = {"judged": 3, "dropped": 4, "reviewed": 1, "rejected": 1, "unjudged": 1}
    for name, count in expected.items():
        assert found[f"frames_{name}_total"] == count, name
    assert (found["threshold"], found["camera_up"], found["healthy"]) == (100, 1, 1)
    buckets = [found[f"latency_seconds_bucket{le}"] for le in ("0.005", "0.01", "+Inf")]
    assert buckets == [0, 3, 3]
    assert found["latency_seconds_sum"] == pytest.approx(0.03)


# Events.


def test_a_browser_gets_the_state_and_each_score_once(page: LivePage) -> None:
    begin(page)
    page.write(judged(20.0))
    watcher = Watcher(page.port)
    assert [point[0] for point in watcher.next("points")["1"]] == [1]
    assert watcher.next("state")["lanes"][0]["frames"] == 1
    page.write(judged(200.0))
    assert [point[:3] for point in watcher.next("points")["1"]] == [[2, 200.0, 2]]
    # Without anything new, something comes all the same.
    assert watcher.next("points")["1"] == []
    page.finish({})
    page.close()
    assert watcher.next("end") == {}
    watcher.close()


def test_browsers_that_drop_or_do_not_read_harm_neither_the_stream_nor_others(
    page: LivePage,
) -> None:
    begin(page)
    deaf = [Watcher(page.port, receive_buffer=1024) for _ in range(4)]
    for number in range(200):
        Watcher(page.port).close() if number % 40 == 0 else page.write(judged(20.0))
    watcher = Watcher(page.port)
    assert watcher.next("state")["lanes"][0]["frames"] == 195
    # A request that is left in the middle.
    half = Watcher(page.port)
    half._socket.sendall(b"GET /api/state HTTP/1.1\r\nHo")
    half.close()
    page.write(judged(20.0))
    assert watcher.next("state")["lanes"][0]["frames"] == 196
    for other in (*deaf, watcher):
        other.close()


def test_no_more_browsers_than_the_page_has_room_for(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flawline.runtime.outputs.web import app

    monkeypatch.setattr(app, "MOST_WATCHERS", 1)
    with open_page(bundle) as page:
        begin(page)
        watcher = Watcher(page.port)
        watcher.next("state")
        answer = ask(page.port, "/api/events")
        assert (answer.status, answer.headers["retry-after"]) == (503, "10")
        watcher.close()


# The threshold desk.


def desk(page: LivePage, **changes: Any) -> Any:
    wanted = {"person": "Anna", "threshold": 120.0, **changes}
    wanted.setdefault("revision", get(page, "/api/threshold")["revision"])
    path = "/api/threshold"
    if wanted.pop("undo", False):
        path += "/undo"
        del wanted["threshold"]
    return ask(page.port, path, "POST", wanted)


def test_a_threshold_is_saved_in_the_name_of_a_person_and_brought_back(
    page: LivePage, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    begin(page)
    before = get(page, "/api/threshold")
    assert before["current"] == {"threshold": 100.0, "review_threshold": None}
    assert before["good"] == {"mean": 50.0, "std": 10.0, "min": 30.0, "max": 90.0}
    assert (before["moved_by"], before["previous"], before["fault"]) == (None, None, None)
    saved = desk(page)
    assert saved.status == 200
    assert saved.json["current"]["threshold"] == 120.0
    assert saved.json["computed"]["threshold"] == saved.json["previous"]["threshold"] == 100.0
    assert saved.json["moved_by"] == "Anna"
    assert "threshold 120 of" in capsys.readouterr().err
    log = (bundle.path / "audit.jsonl").read_text().splitlines()
    entry = json.loads(log[-1])
    assert (entry["what"], entry["note"]) == ("calibrate", "moved by hand by Anna")
    assert entry["to"]["calibration"]["threshold"] == 120.0
    undone = desk(page, undo=True, person="Bo")
    assert undone.json["current"]["threshold"] == 100.0
    assert json.loads((bundle.path / "audit.jsonl").read_text().splitlines()[-1])["note"] == "by Bo"


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"person": ""}, 422),
        ({"person": "A" * 61}, 422),
        ({"person": "  "}, 409),
        ({"person": "A\nB"}, 409),
        ({"threshold": "NaN"}, 422),
        ({"threshold": 1e40}, 422),
        ({"threshold": 1e9}, 409),
        ({"review_threshold": 50.0}, 409),
        ({"revision": "0123"}, 409),
    ],
)
def test_what_the_desk_refuses(
    page: LivePage, bundle: Bundle, changes: dict[str, Any], status: int
) -> None:
    begin(page)
    before = (bundle.path / "calibration.json").read_bytes()
    answer = desk(page, **changes)
    assert answer.status == status
    assert answer.json["detail"]
    assert (bundle.path / "calibration.json").read_bytes() == before


def test_numbers_that_json_does_not_have_are_refused(page: LivePage) -> None:
    body = b'{"person": "Anna", "revision": "x", "threshold": NaN}'
    answer = ask(page.port, "/api/threshold", "POST", body, content_type="application/json")
    assert answer.status == 422


def test_the_desk_says_why_it_cannot_change_anything(
    page: LivePage, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    page.follow(lambda: StreamState("engine", "cap", True, (), ()))
    assert "the recipe in the station file has a threshold" in get(page, "/api/threshold")["fault"]
    assert desk(page).status == 409
    begin(page)
    with monkeypatch.context() as patch:
        patch.setattr(desk_module, "has_signed_thresholds", lambda path, manifest: True)
        assert "are signed with the bundle" in get(page, "/api/threshold")["fault"]
    with monkeypatch.context() as patch:
        patch.setattr(desk_module, "manifest_hash", lambda path: "other")
        assert "another bundle is in its folder" in get(page, "/api/threshold")["fault"]
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert "cannot be written" in get(page, "/api/threshold")["fault"]
    monkeypatch.undo()
    assert desk(page, undo=True).status == 409
    (bundle.path / "calibration.json").write_text("{")
    assert ask(page.port, "/api/threshold").status == 409


# With a real stream.


class Greys(Camera):
    """Frames of these grey values, which are their scores; `before` is called before each."""

    def __init__(self, *greys: int, before: Callable[[int], None] = lambda index: None) -> None:
        super().__init__()
        self.greys = greys
        self.before = before

    def __iter__(self) -> Iterator[Frame]:
        for index, grey in enumerate(self.greys):
            self.before(index)
            self.on_event(CameraEvent(events.STALE, f"event {index}"))
            yield Frame("line", index, np.full((60, 80, 3), grey, np.uint8))


def test_a_stream_fills_the_page(bundle: Bundle) -> None:
    page = open_page(bundle)
    found: list[Any] = []

    def look(index: int) -> None:
        if index == 3:
            found.append(get(page, "/api/state"))

    with page, Detector(bundle, "onnxruntime") as detector:
        camera = Greys(20, 200, 30, 40, before=look)
        run_stream(camera, detector, [page], None, threading.Event(), Tally())
        assert [only["phase"] for only in found] == ["running"]
        assert found[0]["engine"] == detector.engine.description
        assert found[0]["own_thresholds"] == []
        last = get(page, "/api/state")
        assert last["lanes"][0]["frames"] == 4
        assert last["phase"] == "ended"
        assert [point[1] for point in get(page, "/api/lanes/1/scores")["points"]] == [
            20,
            200,
            30,
            40,
        ]


def test_several_cameras_with_thresholds_of_their_own(bundle: Bundle) -> None:
    left, right = Greys(20, 120), Greys(20, 120)
    left.name, right.name = "left", "right"
    judge = Judge(Detector(bundle, "onnxruntime"), "cap", {"left": Levels(50.0)})
    with open_page(bundle) as page, Exchange(judge) as exchange:
        Station([left, right], StationSettings()).run(exchange, [page], None, Tally())
        found = get(page, "/api/state")
        assert found["own_thresholds"] == ["left"]
        assert {only["name"]: only["threshold"] for only in found["lanes"]} == {
            "left": 50,
            "right": 100,
        }
        # Those of the others can be moved.
        assert get(page, "/api/threshold")["fault"] is None


def test_events_of_cameras_reach_every_output(bundle: Bundle) -> None:
    noted: list[str] = []

    class Noting(LivePage):
        def note_event(self, camera: Camera, event: CameraEvent) -> None:
            noted.append(event.text)

    page = Noting("127.0.0.1:0", LivePage.Options(), bundle)
    with page, Detector(bundle, "onnxruntime") as detector:
        run_stream(Greys(20, 30), detector, [page], None, threading.Event(), Tally())
    assert noted == ["event 0", "event 1"]
