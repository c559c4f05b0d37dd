"""Parts that are named from outside: each line is one verdict."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from flawline.cameras import Camera, open_camera
from flawline.cameras.triggered import TriggeredCamera
from flawline.runtime import infer_stream
from flawline.runtime.bundle import Bundle
from flawline.runtime.detector import Detector
from flawline.runtime.outputs import Judgement, Output
from flawline.runtime.station.part_feed import PartFeed, PartFeedError
from flawline.runtime.station.pipeline import run_stream
from flawline.runtime.station.tally import Tally

pytestmark = pytest.mark.usefixtures("patient_pulses")
CAMERA = "synthetic://?width=64&height=48&queue=1000&answer_s=20&trigger="
WAIT_S = 10.0


def stream(bundle: Bundle, camera: str, parts: str, folder: Path) -> list[dict[str, Any]]:
    """Run the command; return its lines, of which the last is the summary."""
    lines = folder / "lines.jsonl"
    flags = ["--bundle", str(bundle.path), "--camera", camera, "--parts", parts]
    assert infer_stream.main([*flags, "--output", f"jsonl:{lines}"]) == 0
    return [json.loads(line) for line in lines.read_text().splitlines()]


def test_every_line_is_a_pulse_and_a_verdict_and_the_last_one_ends_the_stream(
    bundle: Bundle, tmp_path: Path
) -> None:
    names = [f"SN {number}" for number in range(100)]
    names[7] = ""
    file = tmp_path / "parts.txt"
    file.write_text("\n".join(names))
    *lines, end = stream(bundle, f"{CAMERA}software", str(file), tmp_path)
    names[7] = "8"
    assert [line["part"] for line in lines] == names
    assert [line["index"] for line in lines] == list(range(100))
    assert end["summary"]["frames"] == 100
    assert end["summary"]["unjudged"] == 0


def test_lines_of_stdin_are_read_to_their_end(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = os.pipe()
    os.write(writer, "A\n Bé \nC".encode())
    os.close(writer)
    monkeypatch.setattr("flawline.runtime.station.part_feed._open", lambda path: reader)
    *lines, _ = stream(bundle, f"{CAMERA}software", "-", tmp_path)
    assert [line["part"] for line in lines] == ["A", "Bé", "C"]


def test_a_lost_block_is_an_unjudged_verdict_with_the_name_of_its_part(
    bundle: Bundle, tmp_path: Path
) -> None:
    file = tmp_path / "parts.txt"
    file.write_text("A\nB\nC\n")
    camera = f"{CAMERA}software&faults=1:damaged"
    *lines, end = stream(bundle, camera, str(file), tmp_path)
    assert [(line["part"], line["verdict"] == "unjudged") for line in lines] == [
        ("A", False),
        ("B", True),
        ("C", False),
    ]
    assert "as scripted" in lines[1]["reason"]
    assert end["summary"]["unjudged"] == 1


def test_a_named_pipe_outlives_its_writer(tmp_path: Path) -> None:
    pipe = tmp_path / "parts"
    os.mkfifo(pipe)
    with open_camera(f"{CAMERA}software") as camera:
        PartFeed(str(pipe), camera).start()
        frames = iter(camera)

        def write(text: str) -> None:
            with pipe.open("w") as file:
                file.write(text)

        for name in ("A", "B"):
            writer = threading.Thread(target=write, args=(f"{name}\n",))
            writer.start()
            assert next(frames).part == name
            writer.join(WAIT_S)


def test_lines_name_the_pulses_of_the_line(tmp_path: Path) -> None:
    file = tmp_path / "parts.txt"
    file.write_text("A\n\nB\n")
    with open_camera(f"{CAMERA}line1&fps=1000&frames=3") as camera:
        feed = PartFeed(str(file), camera)
        feed.start()
        feed._thread.join(WAIT_S)
        assert [frame.part for frame in camera] == ["A", "B", "3"]


@pytest.mark.parametrize("camera", ["synthetic://", "{folder}"])
def test_a_camera_without_pulses_is_one_line(camera: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    with (
        open_camera(camera.format(folder=tmp_path)) as opened,
        pytest.raises(PartFeedError, match="add trigger=software or trigger=line1"),
    ):
        PartFeed("-", opened)


def test_a_file_that_is_absent_is_one_line(tmp_path: Path) -> None:
    with (
        open_camera(f"{CAMERA}software") as camera,
        pytest.raises(PartFeedError, match=r"cannot be read \(No such file.*check the path"),
    ):
        PartFeed(str(tmp_path / "absent"), camera)


class Plc(Output):
    """An output that receives the part in front of the camera, and sends the pulse for it."""

    def __init__(self) -> None:
        self.parts: list[str | None] = []

    def attach(self, camera: Camera) -> None:
        assert isinstance(camera, TriggeredCamera)

        def send() -> None:
            assert camera.wait_until_open()
            for part in ("PLC1", "PLC2"):
                camera.pulse(part)
            camera.end_of_pulses()

        threading.Thread(target=send, daemon=True).start()

    def write(self, judgement: Judgement) -> None:
        self.parts.append(judgement.frame.part)

    def finish(self, summary: Mapping[str, Any]) -> None:
        assert summary["frames"] == 2


def test_an_output_may_send_the_pulses(bundle: Bundle) -> None:
    output = Plc()
    with (
        open_camera(f"{CAMERA}software") as camera,
        Detector(bundle, "onnxruntime") as detector,
    ):
        run_stream(camera, detector, [output], None, threading.Event(), Tally())
    assert output.parts == ["PLC1", "PLC2"]
