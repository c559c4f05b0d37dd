"""flawline stream takes another bundle between two frames, and loses none."""

from __future__ import annotations

import gc
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from conftest import tiny_model, write_tiny_bundle
from fakes.live_camera import WAIT_S

from flawline import cameras
from flawline.cameras import Camera, Frame
from flawline.runtime.bundle import Bundle, read_bundle, write_calibration
from flawline.runtime.detector import Detector
from flawline.runtime.files import replace_folder
from flawline.runtime.infer_stream import main as stream

DOC_STRING = b"\x32\x01x"
FPS = 30
SWAPS = 4


class Line(Camera):
    """30 frames per second of grey 55 until `ended` says so."""

    ended: ClassVar[Callable[[], bool]]

    def __init__(self, path: str = "", options: object = None, clock: object = None) -> None:
        super().__init__()
        self.source = f"line://{path}"

    def __iter__(self) -> Iterator[Frame]:
        image = np.full((48, 64, 3), 55, np.uint8)
        start = time.monotonic()
        index = 0
        while not self._stopped and not type(self).ended():
            yield Frame(self.source, index, image)
            index += 1
            time.sleep(max(0.0, start + index / FPS - time.monotonic()))


class Swaps:
    """Replaces the bundle at a path whenever the one before is in use."""

    def __init__(self, path: Path, others: list[Path], lines: Path) -> None:
        self.path = path
        self.others = others
        self.lines = lines
        self.ids = [read_bundle(other).short_id for other in others]
        self.done = 0
        self.limit = time.monotonic() + 6 * WAIT_S
        # Each camera has a thread of its own.
        self.lock = threading.Lock()

    def __call__(self) -> bool:
        """Make the next swap if it is time for it; return whether all are made."""
        with self.lock:
            return self._next()

    def _next(self) -> bool:
        assert time.monotonic() < self.limit
        found = read_lines(self.lines)
        in_use = found[-1]["bundle"] if found else None
        if self.done > 0 and in_use != self.ids[(self.done - 1) % 2]:
            return False
        if self.done == SWAPS:
            return True
        with replace_folder(self.path) as new:
            shutil.copytree(self.others[self.done % 2], new, dirs_exist_ok=True)
        self.done += 1
        return False


def read_lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    whole = path.read_text().rpartition("\n")[0]
    return [json.loads(line) for line in whole.splitlines()]


@pytest.fixture
def others(bundle: Bundle, tmp_path: Path) -> list[Path]:
    """Two bundles, of which the first one rejects grey 55."""
    first = write_tiny_bundle(tmp_path / "a", tiny_model() + DOC_STRING)
    write_calibration(first, replace(first.calibration, threshold=50.0))
    return [first.path, Path(shutil.copytree(bundle.path, tmp_path / "b"))]


def detectors() -> list[Detector]:
    # isinstance() calls what other libraries define, such as a deprecated class of torch.
    return [found for found in gc.get_objects() if type(found) is Detector]


@pytest.fixture
def replaced_detectors_are_freed() -> Iterator[None]:
    """Check that no cycle keeps a detector, as its collection may come hours later."""
    gc.collect()
    before = detectors()
    gc.disable()
    try:
        yield
        left = [found for found in detectors() if not any(found is other for other in before)]
    finally:
        gc.enable()
    # The one that judged at the end.
    assert len(left) <= 1


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.usefixtures("replaced_detectors_are_freed")
def test_no_frame_is_lost_by_swaps_at_30_fps(
    count: int,
    bundle: Bundle,
    others: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "lines.jsonl"
    swaps = Swaps(bundle.path, others, path)
    monkeypatch.setitem(cameras.CAMERAS, "line", "test_hot_swap:Line")
    monkeypatch.setattr(Line, "ended", swaps, raising=False)
    words = ["--bundle", str(bundle.path), "--engine", "onnxruntime", "--output", f"jsonl:{path}"]
    for number in range(count):
        words += ["--camera", f"line://{number}"]
    assert stream(words) == 0, capsys.readouterr()
    *found, _summary = read_lines(path)
    for number in range(count):
        own = [line for line in found if line["source"] == f"line://{number}"]
        assert [line["index"] for line in own] == list(range(len(own)))
    thresholds = {swaps.ids[0]: (50, "anomalous"), swaps.ids[1]: (100, "good")}
    order = [bundle.short_id]
    for line in found:
        assert (line["threshold"], line["verdict"]) == thresholds[line["bundle"]]
        if line["bundle"] != order[-1]:
            order.append(line["bundle"])
    assert order == [bundle.short_id, *(swaps.ids * SWAPS)[:SWAPS]]
    messages = capsys.readouterr().err
    assert messages.count("from now on: bundle ") == SWAPS


def test_a_stream_may_keep_its_bundle(
    bundle: Bundle,
    others: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "lines.jsonl"
    monkeypatch.setitem(cameras.CAMERAS, "line", "test_hot_swap:Line")

    def ended() -> bool:
        found = read_lines(path)
        if not found:
            with replace_folder(bundle.path) as new:
                shutil.copytree(others[0], new, dirs_exist_ok=True)
        return len(found) > FPS

    monkeypatch.setattr(Line, "ended", ended, raising=False)
    words = ["--bundle", str(bundle.path), "--engine", "onnxruntime", "--output", f"jsonl:{path}"]
    assert stream([*words, "--camera", "line://0", "--keep-bundle"]) == 0
    assert {line["bundle"] for line in read_lines(path)[:-1]} == {bundle.short_id}
    assert "from now on" not in capsys.readouterr().err
