"""Saved overlays: what is saved, what is counted, and that a stream never waits for the disk."""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from flawline.cameras import Frame
from flawline.runtime.bundle import Bundle
from flawline.runtime.outputs import Judgement, OutputError, open_output, overlays
from flawline.runtime.outputs.overlays import Overlays
from flawline.runtime.verdict import Verdict

LONG = 30.0  # seconds after which a test that hangs fails


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = tmp_path / "saved"
    folder.mkdir()
    return folder


def judgement(index: int, score: float = 20.0, live: bool = False) -> Judgement:
    """A frame of 64 x 48 pixels; the threshold is 100."""
    frame = Frame(f"part{index}", index, np.full((48, 64, 3), 90, np.uint8))
    anomaly_map = np.full((64, 64), score, np.float32)
    if math.isnan(score):
        return Judgement(frame, Verdict(score, 100.0, True, anomaly_map, {}, "not finite"), 1.0)
    verdict = Verdict(score, 100.0, score > 100, anomaly_map)
    return Judgement(frame, verdict, 1.0, live=live, can_wait=not live)


def opened(bundle: Bundle, folder: Path, options: str = "") -> Overlays:
    output = open_output(f"overlays:{folder}{options}", bundle)
    assert isinstance(output, Overlays)
    return output


def images_in(folder: Path) -> list[str]:
    return sorted(path.stem.split("-", 3)[3] for path in folder.iterdir())


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """A disk that writes nothing until the event is set."""
    ready = threading.Event()
    write = overlays.write_atomically

    def wait_and_write(path: Path, data: bytes, durable: bool) -> None:
        assert ready.wait(LONG)
        write(path, data, durable)

    monkeypatch.setattr(overlays, "write_atomically", wait_and_write)
    yield ready
    ready.set()


def test_a_live_stream_never_waits_and_what_is_lost_is_counted(
    bundle: Bundle,
    saved: Path,
    disk: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(overlays, "CAPACITY", 3 * 48 * 64 * 3)
    with opened(bundle, saved) as output:
        for index in range(20):
            output.write(judgement(index, live=True))
        disk.set()
        totals = output.totals()
    # Three wait, and the thread may have taken a fourth.
    assert totals["saved"] in (3, 4)
    assert totals["saved"] + totals["not_saved"] == 20
    assert len(images_in(saved)) == totals["saved"]
    lines = capsys.readouterr().err.splitlines()
    # After 1, 2, 4, 8 and 16 frames.
    assert len(lines) == 5
    assert "part4 was not saved" in lines[0] or "part3 was not saved" in lines[0]
    assert lines[-1].endswith("16 in all; save fewer with ?frames=rejected")


def test_files_lose_no_frame_to_a_slow_disk(
    bundle: Bundle, saved: Path, disk: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overlays, "CAPACITY", 1)
    threading.Timer(0.05, disk.set).start()
    with opened(bundle, saved) as output:
        for index in range(10):
            output.write(judgement(index))
        assert output.totals() == {"saved": 10, "not_saved": 0, "over_limit": 0}
    assert len(images_in(saved)) == 10


def test_closing_waits_for_the_rest(bundle: Bundle, saved: Path, disk: threading.Event) -> None:
    output = opened(bundle, saved)
    for index in range(5):
        output.write(judgement(index, live=True))
    assert not list(saved.iterdir())
    threading.Timer(0.05, disk.set).start()
    output.close()
    assert len(images_in(saved)) == 5


def test_a_full_folder_is_said_once_and_deletes_nothing(
    bundle: Bundle, saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (saved / "19990101-000000-00000000-000000-old-good.png").write_bytes(b"of an earlier run")
    with opened(bundle, saved, "?limit=3") as output:
        for index in range(6):
            output.write(judgement(index))
        assert output.totals() == {"saved": 2, "not_saved": 0, "over_limit": 4}
    assert images_in(saved) == [
        "000000-old-good",
        "000000-part0-good",
        "000001-part1-good",
    ]
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"output overlays: {saved} is full, at its limit of 3 images; no more are saved; move them "
        f"away, raise the limit with ?limit=N, or delete the oldest ones with &when_full=replace"
    )


def test_a_frame_that_was_not_written_leaves_its_place_to_another(
    bundle: Bundle, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with opened(bundle, saved, "?limit=1") as output:
        with monkeypatch.context() as broken:
            broken.setattr(overlays, "write_atomically", full)
            output.write(judgement(0))
            assert output.totals() == {"saved": 0, "not_saved": 1, "over_limit": 0}
        with pytest.raises(OutputError, match=r"No space left on device\); free disk space"):
            output.finish({})
        output.write(judgement(1))
        assert output.totals() == {"saved": 1, "not_saved": 1, "over_limit": 0}


def test_several_failures_are_one_line(
    bundle: Bundle, saved: Path, monkeypatch: pytest.MonkeyPatch, disk: threading.Event
) -> None:
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(5, "I/O error")))
    output = opened(bundle, saved)
    for index in range(4):
        output.write(judgement(index))
    disk.set()
    with pytest.raises(OutputError) as error:
        output.close()
    assert str(error.value).startswith("4 images were not saved; the first: output overlays: ")
    assert "\n" not in str(error.value)
    output.close()


def test_only_rejected_frames_are_saved_on_request(bundle: Bundle, saved: Path) -> None:
    with opened(bundle, saved, "?frames=rejected") as output:
        for index, score in enumerate((20.0, 120.0, math.nan)):
            output.write(judgement(index, score))
        assert output.totals()["saved"] == 2
    assert images_in(saved) == ["000001-part1-anomalous", "000002-part2-unjudged"]


def test_an_unjudged_frame_is_saved_as_it_came(bundle: Bundle, saved: Path) -> None:
    deep = np.arange(30 * 40, dtype=np.uint16).reshape(30, 40) * 50
    verdict = Verdict(math.nan, 100.0, True, None, {}, "its bit depth is unknown")
    with opened(bundle, saved) as output:
        output.write(Judgement(Frame("deep", 0, deep), verdict, 1.0))
        output.write(Judgement(Frame("lost", 1, None, fault="cut off"), verdict, 1.0))
        assert output.totals() == {"saved": 1, "not_saved": 0, "over_limit": 0}
    (path,) = saved.iterdir()
    assert (cv2.imread(str(path), cv2.IMREAD_UNCHANGED) == deep).all()


def test_judged_frames_are_saved_as_they_came_on_request(bundle: Bundle, saved: Path) -> None:
    judged = judgement(0, score=120.0)
    with opened(bundle, saved, "?frames=rejected&paint=0") as output:
        output.write(judged)
        output.write(judgement(1, score=20.0))
    (path,) = saved.iterdir()
    np.testing.assert_array_equal(cv2.imread(str(path)), judged.frame.image)


def test_a_judged_frame_has_a_caption_below_it(bundle: Bundle, saved: Path) -> None:
    with opened(bundle, saved) as output:
        output.write(judgement(0))
    (path,) = saved.iterdir()
    image = cv2.imread(str(path))
    # Five times 64 x 48 pixels, and the strip.
    assert image.shape[1] == 320
    assert (image[:240] == 90).all()
    assert (image[240:] > 128).any()


def test_a_limit_below_one_is_refused(bundle: Bundle, saved: Path) -> None:
    messages = {
        "limit=0": r"limit is 0, not 1 or more$",
        "limit=many": r"limit=many: not a whole number; limit \(int, default 10000\): the number",
        "frames=some": r"frames=some: not one of all, rejected; frames \(",
        "max_mb=0": r"max_mb is 0, not 1 or more$",
        "per_minute=-1": r"per_minute is -1, not 1 or more$",
    }
    for option, message in messages.items():
        with pytest.raises(OutputError, match=message):
            open_output(f"overlays:{saved}?{option}", bundle)


def test_the_oldest_images_make_room_and_other_files_stay(bundle: Bundle, saved: Path) -> None:
    (saved / "holiday.png").write_bytes(b"of another program")
    earlier = saved / "19990101-000000-00000000-000000-old-good.png"
    earlier.write_bytes(b"of an earlier run")
    earlier.with_suffix(".json").write_bytes(b"{}")
    os.utime(earlier, (1, 1))
    with opened(bundle, saved, "?limit=3&when_full=replace&record=1") as output:
        for index in range(5):
            output.write(judgement(index))
        assert output.totals() == {"saved": 5, "not_saved": 0, "over_limit": 0}
    left = sorted(path.name.split("-", 3)[-1] for path in saved.iterdir())
    assert left == [
        "000003-part3-good.json",
        "000003-part3-good.png",
        "000004-part4-good.json",
        "000004-part4-good.png",
        "holiday.png",
    ]


def test_a_folder_stays_below_its_size(bundle: Bundle, saved: Path) -> None:
    """Images of noise, of about 0.3 MB each, after a small one that alone makes no room."""
    (saved / "19990101-000000-00000000-000000-old-good.png").write_bytes(b"of an earlier run")
    noise = np.random.default_rng(0).integers(0, 256, (320, 320, 3), dtype=np.uint8)
    verdict = Verdict(math.nan, 100.0, True, None, {}, "not finite")
    with opened(bundle, saved, "?max_mb=1&when_full=replace") as output:
        for index in range(8):
            output.write(Judgement(Frame(f"part{index}", index, noise), verdict, 1.0))
        assert output.totals() == {"saved": 8, "not_saved": 0, "over_limit": 0}
    names = images_in(saved)
    assert names == [f"{index:06d}-part{index}-unjudged" for index in range(8 - len(names), 8)]
    size = sum(path.stat().st_size for path in saved.iterdir())
    assert 0.5e6 < size <= 1e6
    with opened(bundle, saved, "?max_mb=1") as output:
        output.write(Judgement(Frame("more", 9, noise), verdict, 1.0))
        assert output.totals() == {"saved": 0, "not_saved": 0, "over_limit": 1}
    assert images_in(saved) == names


def test_images_beyond_a_rate_are_counted(
    bundle: Bundle,
    saved: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # Seconds at which the frames come.
    times = iter([0.0, 1.0, 2.0, 59.0, 60.0, 61.0, 62.0])
    monkeypatch.setattr(overlays, "_now", lambda: next(times))
    with opened(bundle, saved, "?per_minute=2") as output:
        for index in range(7):
            output.write(judgement(index))
        assert output.totals() == {"saved": 4, "not_saved": 0, "over_limit": 3}
    assert [name.split("-")[1] for name in images_in(saved)] == ["part0", "part1", "part4", "part5"]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("output overlays: more than 2 images in 60 s; ")


def test_the_record_of_an_image_is_its_json_line(bundle: Bundle, saved: Path) -> None:
    with opened(bundle, saved, "?record=1") as output:
        assert output.uses_regions
        output.write(judgement(0, score=120.0))
    (image,) = saved.glob("*.png")
    line = json.loads(image.with_suffix(".json").read_text(encoding="utf-8"))
    assert line["image"] == image.name
    assert (line["verdict"], line["score"], line["bundle"]) == ("anomalous", 120.0, bundle.short_id)


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clock_that_is_set_does_not_let_the_newest_images_make_room(
    hours: int, bundle: Bundle, saved: Path
) -> None:
    """Five images of the time before, which the clock calls the future or the past."""
    for index in range(5):
        before = saved / f"20300101-000000-00000000-{index:06d}-before-good.png"
        before.write_bytes(b"of an earlier run")
        moment = time.time() - 3600 * hours + index
        os.utime(before, (moment, moment))
    with opened(bundle, saved, "?limit=5&when_full=replace") as output:
        for index in range(8):
            output.write(judgement(index))
        assert output.totals() == {"saved": 8, "not_saved": 0, "over_limit": 0}
    assert images_in(saved) == [f"{index:06d}-part{index}-good" for index in range(3, 8)]
