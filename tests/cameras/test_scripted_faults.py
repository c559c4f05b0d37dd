"""The faults that the synthetic camera has on request, through the stream command."""

from __future__ import annotations

import json

import pytest

from flawline.cameras import CameraError, open_camera
from flawline.runtime import infer_stream
from flawline.runtime.bundle import Bundle

FAULTS = "5:damaged,10:old,15:lost,20:stall,25:size,30:mono"


def test_every_fault_is_a_line_of_the_log_and_in_the_counters(
    bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    options = f"fps=50&frames=40&width=64&height=48&stall=1.5&max_age=1.5&faults={FAULTS}"
    arguments = ["--bundle", str(bundle.path), "--camera", f"synthetic://?{options}"]
    assert infer_stream.main(arguments) == 0
    captured = capsys.readouterr()
    *lines, end = [json.loads(line) for line in captured.out.splitlines()]
    for line in lines:
        assert line["age_ms"] >= 0
        assert line["verdict"] != "unjudged"
    summary = end["summary"]
    assert summary["corrupt"] == 1
    assert summary["stale"] == 1
    assert summary["reconnects"] == 2
    # The two frames at which the camera failed do not exist.
    assert summary["captured"] == 40 - 3
    assert summary["frames"] + summary["dropped"] + summary["stale"] == summary["captured"]
    for text in (
        "camera synthetic://: a damaged frame was left out: the image is incomplete, as scripted",
        "camera synthetic://: a frame was left out that is 3.0 s old; max_age is 1.5 s",
        "camera synthetic://: failed, as scripted; it is opened again (attempt 1 of 60)",
        "camera synthetic://: no frame for 1.5 s; it is opened again (attempt 2 of 60)",
        "camera synthetic://: gives frames again after",
        "camera synthetic://: the resolution changed from 64x48 to 32x24",
        "camera synthetic://: the pixel format changed from bgr of 8 bits to mono of 8 bits",
    ):
        assert text in captured.err


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        (
            "10:rain",
            "'10:rain' is not INDEX:KIND with one of damaged, old, lost, stall, missing",
        ),
        ("x:lost", "'x:lost' is not INDEX:KIND"),
        ("10", "'10' is not INDEX:KIND"),
        ("", "'' is not INDEX:KIND"),
        ("10:lost,010:old", "frame 10 has two"),
    ],
)
def test_a_wrong_script_is_refused(faults: str, message: str) -> None:
    with pytest.raises(CameraError, match=message):
        open_camera(f"synthetic://?faults={faults}")
