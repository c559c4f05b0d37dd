"""Teaching from the live page: pictures, its process, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs the extra web")

from conftest import tiny_model, write_tiny_bundle
from fakes.page import Belt, ask, judged

from flawline.cameras import Camera, Frame, open_camera
from flawline.runtime.bundle import Bundle, read_bundle, write_calibration
from flawline.runtime.calibration import Level
from flawline.runtime.frame_image import image_of
from flawline.runtime.outputs import Judgement, StreamState, open_output
from flawline.runtime.outputs.web import collection, kept, lane, teachable, teaching_job
from flawline.runtime.outputs.web.output import LivePage
from flawline.runtime.scratch import PAGE, Scratch, abandoned

WAIT_S = 30.0
# A field of an ONNX file that holds any text.
TAUGHT = tiny_model() + b"\x32\x11flawline.teaching"
STREAM = StreamState("test engine", "cap", False, (), (), "onnxruntime", "fp32", True)


@pytest.fixture(autouse=True)
def _every_frame_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane, "PICTURE_S", 0.0)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_tiny_bundle(tmp_path / "line" / "part", TAUGHT, method="patchcore")


@pytest.fixture
def page(bundle: Bundle) -> Iterator[LivePage]:
    with open_output("web:127.0.0.1:0", bundle) as page:
        assert isinstance(page, LivePage)
        page.follow(lambda: STREAM)
        page.attach(Belt(knows_parts=True))
        yield page


@pytest.fixture
def teacher(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Bundle:
    """Let teaching give the bundle that this returns, in no time."""
    other = write_tiny_bundle(tmp_path / "taught", TAUGHT + b"\x32\x01x", method="patchcore")
    monkeypatch.setattr(teaching_job, "PROGRAM", "fakes.teacher")
    # Other tests may leave no time to a lower priority.
    monkeypatch.setattr(teaching_job, "NICENESS", 1)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    monkeypatch.setenv("FAKE_TEACHER", f"copy:{other.path}")
    return other


def part(score: float, index: int, image: np.ndarray | None = None) -> Judgement:
    """A triggered part; without an image of its own, it has one that no other part has."""
    if image is None:
        image = np.random.default_rng(index).integers(0, 256, (48, 64, 3), np.uint8)
    return dataclasses.replace(judged(score), frame=Frame("belt", index, image, part=str(index)))


def state(page: LivePage) -> Any:
    answer = ask(page.port, "/api/teaching")
    assert answer.status == 200, answer.body
    return answer.json


def post(page: LivePage, what: str, status: int = 200, **body: Any) -> Any:
    answer = ask(page.port, f"/api/teaching/{what}", "POST", {"person": "Anna", **body})
    assert answer.status == status, answer.body
    return answer.json if status == 200 else answer.json["detail"]


def until(page: LivePage, condition: Any) -> Any:
    """Return the first state that meets a condition."""
    limit = time.monotonic() + WAIT_S
    while time.monotonic() < limit:
        found = state(page)
        if condition(found):
            return found
        time.sleep(0.02)
    raise AssertionError(f"it did not come: {found}")


def ended(page: LivePage) -> Any:
    """Return the state when teaching has ended."""
    return until(page, lambda found: found["job"]["ended"] is not None)


def collected(page: LivePage, count: int, first: int = 100) -> Any:
    """Let good parts pass, and return the state when their pictures are there."""
    before = len(state(page)["pictures"])
    post(page, "collect", count=count, person="Bo")
    for index in range(count):
        page.write(part(20.0, first + index))
    return until(page, lambda found: len(found["pictures"]) == before + count)


def folders(bundle: Bundle) -> list[str]:
    """The names beside a bundle, without random digits."""
    return sorted(path.name.partition("-")[0] for path in bundle.path.parent.iterdir())


# Pictures.


def test_a_rejected_part_is_marked_and_kept_as_the_camera_gave_it(
    page: LivePage, bundle: Bundle
) -> None:
    page.write(part(20.0, 0))
    rejected = part(200.0, 1)
    page.write(rejected)
    # Also after a browser has asked for its picture.
    assert ask(page.port, "/api/parts/1/picture").status == 200
    (shown,) = ask(page.port, "/api/parts").json
    assert (shown["has_picture"], shown["has_image"]) == (True, True)
    assert state(page)["markable"] == [1]
    found = post(page, "mark", part=1)
    (picture,) = found["pictures"]
    keys = ("kind", "person", "part_id")
    assert [picture[key] for key in keys] == ["false_reject", "Anna", 1]
    assert picture["part"]["score"] == 200.0
    small = ask(page.port, f"/api/teaching/pictures/{picture['id']}")
    assert small.headers["content-type"] == "image/jpeg"
    (file,) = bundle.path.parent.glob(".part.page-*/*.png")
    np.testing.assert_array_equal(cv2.imread(str(file)), rejected.frame.image)
    assert "is marked already" in post(page, "mark", 409, part=1)
    assert "no longer kept" in post(page, "mark", 409, part=2)
    assert post(page, "remove", picture=picture["id"])["pictures"] == []
    assert not file.exists()
    assert ask(page.port, f"/api/teaching/pictures/{picture['id']}").status == 404


def test_images_that_wait_to_be_marked_have_a_limit(
    page: LivePage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "RAW_BYTES", 2 * (48 * 64 * 3 + 64 * 64 * 4))
    for index in range(4):
        page.write(part(200.0, index))
        assert ask(page.port, f"/api/parts/{index + 1}/picture").status == 200
    assert state(page)["markable"] == [4, 3]
    # The pictures that were encoded stay.
    assert [part["has_picture"] for part in ask(page.port, "/api/parts").json] == 4 * [True]


def test_good_parts_are_collected_whatever_their_verdict(page: LivePage) -> None:
    post(page, "collect", count=3, person="Bo")
    for index, score in enumerate((20.0, 200.0, 80.0, 30.0)):
        page.write(part(score, index))
    page.write(dataclasses.replace(part(20.0, 9), frame=Frame("belt", 9, None, fault="torn")))
    found = until(page, lambda found: len(found["pictures"]) == 3)
    assert [picture["part"]["score"] for picture in found["pictures"]] == [20.0, 200.0, 80.0]
    assert {(picture["kind"], picture["person"]) for picture in found["pictures"]} == {
        ("good", "Bo")
    }
    assert found["collecting"] == 0
    assert post(page, "collect", count=5)["collecting"] == 5
    assert post(page, "collect", count=0)["collecting"] == 0
    # A false reject among them sets no threshold.
    again = post(page, "mark", part=1)
    assert [picture["kind"] for picture in again["pictures"]] == ["good", "good", "false_reject"]
    assert post(page, "remove", picture=None)["pictures"] == []


def test_frames_of_a_free_running_camera_are_not_taken_one_after_the_other(
    page: LivePage, monkeypatch: pytest.MonkeyPatch
) -> None:
    post(page, "collect", count=9)
    for index in range(5):
        page.write(dataclasses.replace(part(20.0, index), frame=Frame("belt", index, GREY)))
    assert state(page)["collecting"] == 8
    monkeypatch.setattr(collection, "PAUSE_S", 0.0)
    page.write(dataclasses.replace(part(20.0, 7), frame=Frame("belt", 7, GREY + 1)))
    assert state(page)["collecting"] == 7


GREY = np.full((48, 64), 100, np.uint8)
DEEP = np.random.default_rng(1).integers(0, 4096, (48, 64), np.uint16)


@pytest.mark.parametrize(
    "frame",
    [
        Frame("belt", 0, GREY, part="1"),
        Frame("belt", 0, DEEP, bit_depth=12, part="1"),
        Frame("belt", 0, np.dstack(3 * [DEEP]), bit_depth=12, part="1"),
    ],
)
def test_what_is_learnt_from_is_what_was_judged(
    page: LivePage, bundle: Bundle, frame: Frame
) -> None:
    page.write(dataclasses.replace(judged(200.0), frame=frame))
    post(page, "mark", part=1)
    (file,) = bundle.path.parent.glob(".part.page-*/*.png")
    options = "" if frame.bit_depth == 8 else f"?bits={frame.bit_depth}"
    with open_camera(f"{file}{options}") as camera:
        (read,) = list(camera)
    np.testing.assert_array_equal(image_of(read, bundle.manifest), image_of(frame, bundle.manifest))


def test_pictures_have_a_limit(page: LivePage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collection, "MOST_PICTURES", 2)
    post(page, "collect", count=5)
    for index in range(5):
        page.write(part(20.0, index))
    found = until(page, lambda found: found["collection_fault"] is not None)
    assert "2 pictures" in found["collection_fault"]
    assert (len(found["pictures"]), found["collecting"]) == (2, 0)
    page.write(part(200.0, 9))
    assert "remove some" in post(page, "mark", 409, part=1)


def test_a_disk_that_is_full_is_said(page: LivePage, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    page.write(part(200.0, 0))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        assert "No space left on device" in post(page, "mark", 409, part=1)
    post(page, "mark", part=1)


def test_folders_of_processes_that_were_killed_are_removed(bundle: Bundle) -> None:
    first = Scratch(bundle.path, PAGE)
    left = first.folder.with_name(".part.page-left")
    left.mkdir()
    (left / "lock").touch()
    with abandoned(bundle.path, PAGE) as found:
        assert found == [left]
    assert not left.exists()
    # The one that is in use stays.
    assert first.folder.is_dir()
    first.close()
    assert folders(bundle) == ["part"]


@pytest.mark.parametrize("killed", [False, True])
def test_the_pictures_of_a_stream_that_ended_are_there_in_the_next_one(
    bundle: Bundle, killed: bool, teacher: Bundle
) -> None:
    with open_output("web:127.0.0.1:0", bundle) as page:
        assert isinstance(page, LivePage)
        page.follow(lambda: STREAM)
        page.attach(Belt(knows_parts=True))
        page.write(part(200.0, 1))
        post(page, "mark", part=1)
        before = collected(page, 6)["pictures"]
        (folder,) = bundle.path.parent.glob(".part.page-*")
        if killed:
            # Nothing is tidied up: what the process leaves is copied.
            shutil.copytree(folder, bundle.path.parent / ".part.page-killed")
            post(page, "remove", picture=None)
            # Cut off while it was written, and while its record was.
            (file, other, *_) = sorted((bundle.path.parent / ".part.page-killed").glob("*.png"))
            file.write_bytes(file.read_bytes()[:-1] + b"\0")
            other.with_suffix(".json").write_text("{")
            before = before[2:]
    with open_output("web:127.0.0.1:0", bundle) as page:
        assert isinstance(page, LivePage)
        page.follow(lambda: STREAM)
        page.attach(Belt(knows_parts=True))
        found = until(page, lambda found: len(found["pictures"]) == len(before))["pictures"]
        for old, new in zip(before, found, strict=True):
            # The numbers of parts begin again.
            assert new == {**old, "id": new["id"], "part_id": None}
            assert ask(page.port, f"/api/teaching/pictures/{new['id']}").status == 200
        assert len(list(bundle.path.parent.glob(".part.page-*"))) == 1
        post(page, "start", mode="new" if killed else "append", bundle=bundle.short_id)
        assert ended(page)["job"]["phase"] == "installed"
    assert folders(bundle) == ["part", "part.previous"]


def test_the_collected_pictures_alone_are_removed(page: LivePage) -> None:
    page.write(part(200.0, 1))
    post(page, "mark", part=1)
    collected(page, 3)
    left = post(page, "remove", picture=None, kind="good")["pictures"]
    assert [picture["kind"] for picture in left] == ["false_reject"]


# The process.


def test_a_bundle_is_taught_tested_put_in_place_and_undone(
    page: LivePage, bundle: Bundle, teacher: Bundle
) -> None:
    page.write(part(200.0, 1))
    post(page, "mark", part=1)
    found = collected(page, 6)
    append = found["modes"][0]
    assert (append["name"], append["missing"]) == ("append", None)
    assert append["false_alarm_rate"] == pytest.approx(1 / 7)
    begun = post(page, "start", mode="append", bundle=bundle.short_id)
    assert begun["job"]["phase"] in ("teaching", "installing", "installed")
    found = ended(page)
    job = found["job"]
    assert (job["phase"], job["bundle"], job["in_use"]) == ("installed", teacher.short_id, False)
    assert (found["in_place"], found["previous"]) == (teacher.short_id, bundle.short_id)
    pictures, words = job["lines"]
    assert pictures == "pictures: false-rejects good-parts"
    expected = f"teach {bundle.path} --append false-rejects --good good-parts --engine onnxruntime"
    assert (
        words == f"{expected} --precision fp32 --threads 1 --out bundle priority {os.nice(0) + 1}"
    )
    assert read_bundle(bundle.path).sha256 == teacher.sha256
    entry = json.loads((bundle.path / "audit.jsonl").read_text().splitlines()[-1])
    assert entry["what"] == "install"
    assert entry["note"] == (
        "false rejects added on the live page by Anna; 1 false rejects marked by Anna; "
        "6 good parts collected by Bo"
    )
    # Until the stream has taken it over, nothing can be taught; its pictures are gone.
    assert "has not taken over" in found["fault"]
    page.change_bundle(read_bundle(bundle.path))
    found = state(page)
    assert (found["fault"], found["job"]["in_use"], found["pictures"]) == (None, True, [])
    assert "look at it again" in post(page, "undo", 409, bundle=bundle.short_id)
    found = post(page, "undo", bundle=teacher.short_id, person="Bo")
    assert (found["in_place"], found["previous"]) == (bundle.short_id, teacher.short_id)
    entry = json.loads((bundle.path / "audit.jsonl").read_text().splitlines()[-1])
    assert (entry["what"], entry["note"]) == ("undo", "on the live page by Bo")
    page.close()
    assert folders(bundle) == ["part", "part.previous"]


def test_a_method_that_adds_nothing_learns_again_from_all_pictures(
    tmp_path: Path, teacher: Bundle
) -> None:
    bundle = write_tiny_bundle(tmp_path / "line" / "part", TAUGHT, method="padim")
    review = Level(60.0, 0.3, (0.2, 0.4))
    calibration = dataclasses.replace(bundle.calibration, false_alarm_rate=0.15, review=review)
    write_calibration(bundle, calibration)
    bundle = read_bundle(bundle.path)
    with open_output("web:127.0.0.1:0", bundle) as page:
        assert isinstance(page, LivePage)
        deep = dataclasses.replace(STREAM, engine_name="tensorrt")
        page.follow(lambda: deep)
        page.attach(Belt(knows_parts=True))
        frame = Frame("belt", 1, DEEP, bit_depth=12, part="1")
        page.write(dataclasses.replace(judged(200.0), frame=frame))
        post(page, "mark", part=1)
        found = collected(page, 4)
        assert [mode["name"] for mode in found["modes"]] == ["new"]
        assert "5 are too few for the review rate of the bundle, 30 %, which takes 6" in str(found)
        collected(page, 1, 200)
        assert "cannot be taught in this way" in post(
            page, "start", 409, mode="append", bundle=bundle.short_id
        )
        post(page, "start", mode="new", bundle=bundle.short_id)
        lines = ended(page)["job"]["lines"]
    # The reference engine tests it, because a plan would take minutes of the GPU.
    assert lines[0] == "pictures: good-parts"
    words = "--source good-parts?bits=12 --false-alarm-rate 0.15 --review-rate 0.3"
    assert f"{words} --engine onnxruntime" in lines[1]


def ready(page: LivePage) -> str:
    """Mark and collect what it takes to teach; return the identifier of the bundle."""
    page.write(part(200.0, 1))
    post(page, "mark", part=1)
    found = collected(page, 5)
    bundle: str = found["bundle"]
    return bundle


def test_a_process_that_fails_changes_nothing(
    page: LivePage, bundle: Bundle, teacher: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_TEACHER", "fail")
    post(page, "start", mode="append", bundle=ready(page))
    found = ended(page)
    assert found["job"]["phase"] == "failed"
    assert found["job"]["reason"] == "the camera is not there"
    assert read_bundle(bundle.path).sha256 == bundle.sha256
    # The pictures are there for another try.
    assert len(found["pictures"]) == 6
    assert found["previous"] is None
    assert "was not taught" in page._board.warnings()[0][1]


def test_a_process_that_is_killed_is_named_as_such(
    page: LivePage, teacher: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last line, such as a count of pictures, would be no reason."""
    monkeypatch.setenv("FAKE_TEACHER", "wait")
    post(page, "start", mode="append", bundle=ready(page))
    until(page, lambda found: found["job"]["lines"])
    process = page._teaching._job._process  # type: ignore[union-attr]
    assert process is not None
    process.kill()
    assert "was ended by signal 9, as where memory runs out" in ended(page)["job"]["reason"]


def test_whatever_fails_ends_what_the_page_shows(
    page: LivePage, bundle: Bundle, teacher: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a fault of a library")

    with monkeypatch.context() as patch:
        patch.setattr(teaching_job, "install_bundle", broken)
        post(page, "start", mode="append", bundle=ready(page))
        assert ended(page)["job"]["reason"] == "RuntimeError: a fault of a library"
    # Names for the same file are not offered by every file system.
    monkeypatch.setattr(os, "link", lambda *_: os.open("/nowhere", os.O_RDONLY))
    post(page, "start", mode="append", bundle=bundle.short_id)
    assert ended(page)["job"]["phase"] == "installed"


def test_teaching_can_be_stopped_and_another_waits_for_its_end(
    page: LivePage, bundle: Bundle, teacher: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "no bundle is being taught" in post(page, "stop", 409)
    monkeypatch.setenv("FAKE_TEACHER", "wait")
    name = ready(page)
    post(page, "start", mode="append", bundle=name)
    for what, body in (
        ("start", {"mode": "append", "bundle": name}),
        ("mark", {"part": 1}),
        ("remove", {"picture": None}),
        ("undo", {"bundle": name}),
    ):
        assert "a bundle is being taught already" in post(page, what, 409, **body)
    until(page, lambda found: found["job"]["lines"])
    post(page, "stop", person="Bo")
    assert ended(page)["job"]["reason"] == "stopped by Bo"
    # The end of the stream stops one as well.
    post(page, "start", mode="append", bundle=name)
    until(page, lambda found: found["job"]["lines"])
    process = page._teaching._job._process  # type: ignore[union-attr]
    assert process is not None
    page.close()
    assert process.poll() is not None
    assert [path.name for path in bundle.path.parent.glob(".part.page-*/teaching")] == []


def test_a_bundle_that_came_meanwhile_is_not_replaced(
    page: LivePage, bundle: Bundle, teacher: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = ready(page)
    monkeypatch.setattr(teaching_job, "manifest_hash", lambda path: "other")
    post(page, "start", mode="append", bundle=name)
    assert "another bundle came" in ended(page)["job"]["reason"]
    assert read_bundle(bundle.path).sha256 == bundle.sha256


# Refusals.


REFUSED_STREAMS: tuple[tuple[dict[str, Any], str], ...] = (
    ({"takes_bundles": False}, "start it without --keep-bundle"),
    ({"own_thresholds": True}, "thresholds of its own"),
    ({"cameras": ("left",)}, "thresholds of its own"),
    ({"engine_name": "kserve"}, "computes on a server"),
    ({"precision": "bf16"}, "start the stream with --precision fp32"),
)


def test_streams_that_would_not_take_the_taught_bundle(page: LivePage, bundle: Bundle) -> None:
    page.write(part(200.0, 1))
    start = {"mode": "append", "bundle": bundle.short_id}
    for changes, reason in REFUSED_STREAMS:
        changed = dataclasses.replace(STREAM, **changes)
        page.follow(lambda changed=changed: changed)  # type: ignore[misc]
        assert reason in state(page)["fault"]
        for what, body in (("mark", {"part": 1}), ("collect", {"count": 3}), ("start", start)):
            assert reason in post(page, what, 409, **body)


def test_bundles_that_cannot_be_taught(
    page: LivePage, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert state(page)["fault"] is None
    (bundle.path / "signature.json").write_text("{}")
    assert "must be signed again" in state(page)["fault"]
    (bundle.path / "signature.json").unlink()
    with monkeypatch.context() as patch:
        patch.setattr("os.access", lambda path, mode: False)
        assert "cannot write" in state(page)["fault"]
        assert "cannot write" in post(page, "undo", 409, bundle=bundle.short_id)
    with monkeypatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: None)
        assert "the station needs onnx for that; run:" in state(page)["fault"]
    assert "leave --undo out" in post(page, "undo", 409, bundle=bundle.short_id)
    page.change_bundle(write_tiny_bundle(tmp_path / "older", method="patchcore"))
    assert "does not say where its features are" in state(page)["fault"]
    page.change_bundle(write_tiny_bundle(tmp_path / "steps", TAUGHT))
    found = state(page)
    assert "score of simplenet does not come from values of positions" in found["fault"]
    assert [mode["name"] for mode in found["modes"]] == ["append"]
    page.change_bundle(write_tiny_bundle(tmp_path / "pixels", TAUGHT, backbone=""))
    found = state(page)
    assert "simplenet is trained in steps, which takes PyTorch, and has no" in found["fault"]
    assert found["modes"] == []
    page.finish({})
    assert state(page)["fault"] == "no stream is running"


def test_exempting_takes_more_than_one_marked_part(
    page: LivePage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if the graph had values of positions.
    monkeypatch.setattr(teachable, "read_exempting", lambda bundle: None)
    page.change_bundle(write_tiny_bundle(tmp_path / "steps", TAUGHT))
    for index, missing in enumerate(["mark 1 more: at least 2", "collect good parts: only 0"], 1):
        page.write(part(200.0, index))
        post(page, "mark", part=index)
        assert missing in state(page)["modes"][0]["missing"]


def test_what_is_missing_to_teach_is_said(page: LivePage, bundle: Bundle) -> None:
    missing = [mode["missing"] for mode in state(page)["modes"]]
    assert missing[0] == "mark a rejected part that is good"
    assert "only 0 good images" in missing[1]
    assert missing[0] in post(page, "start", 409, mode="append", bundle=bundle.short_id)
    assert "another bundle judges" in post(page, "start", 409, mode="new", bundle="0123")
    page.write(part(200.0, 1))
    page.write(dataclasses.replace(judged(200.0), frame=Frame("b", 1, DEEP, bit_depth=12)))
    page.write(dataclasses.replace(judged(200.0), frame=Frame("b", 2, DEEP // 4, bit_depth=10)))
    for number in (1, 2, 3):
        found = post(page, "mark", part=number)
    assert "only 0 good images" in found["modes"][0]["missing"]
    found = collected(page, 5)
    assert "different bit depths" in found["modes"][0]["missing"]


NONSENSE: tuple[tuple[str, dict[str, Any], int], ...] = (
    ("mark", {"person": "", "part": 1}, 422),
    ("mark", {"person": "  ", "part": 1}, 409),
    ("mark", {"person": "A\nB", "part": 1}, 409),
    ("mark", {"part": 0}, 422),
    ("collect", {"count": 501}, 422),
    ("start", {"mode": "other", "bundle": "x"}, 422),
    ("remove", {"picture": 7, "person": "A\nB"}, 409),
    ("undo", {"bundle": ""}, 422),
)


def test_what_makes_no_sense_is_refused(page: LivePage) -> None:
    page.write(part(200.0, 1))
    for what, body, status in NONSENSE:
        post(page, what, status, **body)
    assert state(page)["pictures"] == []
    # Nor does the page of another site change anything.
    body = {"person": "Anna", "part": 1}
    answer = ask(page.port, "/api/teaching/mark", "POST", body, origin="http://elsewhere")
    assert answer.status == 403
    assert state(page)["pictures"] == []


def test_parts_of_another_recipe_are_kept_apart(
    page: LivePage, bundle: Bundle, tmp_path: Path
) -> None:
    page.write(part(200.0, 1))
    post(page, "mark", part=1)
    other = write_tiny_bundle(tmp_path / "other", TAUGHT, method="padim")
    page.change_bundle(other)
    found = state(page)
    assert (found["pictures"], found["markable"]) == ([], [])
    assert "no longer kept" in post(page, "mark", 409, part=1)
    page.change_bundle(bundle)
    assert len(state(page)["pictures"]) == 1


def test_the_state_says_that_there_is_something_new(page: LivePage) -> None:
    before = ask(page.port, "/api/state").json["teaching"]
    page.write(part(200.0, 1))
    assert ask(page.port, "/api/state").json["teaching"] == before
    post(page, "mark", part=1)
    assert ask(page.port, "/api/state").json["teaching"] > before
    assert isinstance(page._board.cameras[0].camera, Camera)
