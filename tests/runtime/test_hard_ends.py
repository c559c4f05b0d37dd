"""A full disk, a process that is killed while it writes, and bundles in unusual places."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import pytest
from conftest import write_tiny_bundle
from fakes.judgements import judgement

from flawline.runtime import infer_stream, outputs
from flawline.runtime.bundle import Bundle
from flawline.runtime.outputs import Output, OutputError, open_output

CAMERA = "synthetic://?width=64&height=48&fps=500"
COMMAND = [sys.executable, "-m", "flawline.runtime.infer_stream"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


@contextmanager
def longest_file(size: int) -> Iterator[None]:
    """No file of this process can grow beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class Recorded(Output):
    """Remembers the index of each frame, and the summary."""

    def __init__(self) -> None:
        self.indices: list[int] = []
        self.summary: dict[str, Any] = {}

    def write(self, judgement: Any) -> None:
        self.indices.append(judgement.frame.index)

    def finish(self, summary: Any) -> None:
        self.summary = dict(summary)


def test_judging_goes_on_while_the_disk_is_full_and_what_is_lost_is_counted(
    bundle: Bundle,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorded = Recorded()
    monkeypatch.setattr(outputs, "open_output", _opener(recorded))
    lines = tmp_path / "lines.jsonl"
    table = tmp_path / "table.csv"
    words = ["--bundle", str(bundle.path), "--camera", f"{CAMERA}&frames=30&every_frame=1&queue=30"]
    words += ["--output", "recorded", "--output", f"jsonl:{lines}", "--output", f"csv:{table}"]
    words += ["--save", str(tmp_path / "saved")]
    with longest_file(4000):
        assert infer_stream.main(words) == 2
    assert recorded.indices == list(range(30))
    assert recorded.summary["frames"] == 30
    err = capsys.readouterr().err
    assert (
        "(File too large); free disk space, or choose another output; inspection continues" in err
    )
    assert "Traceback" not in err
    # What was written is whole.
    kept = [json.loads(line)["index"] for line in lines.read_text().splitlines()]
    rows = table.read_text().splitlines()
    assert kept == list(range(len(kept)))
    assert len({row.count(",") for row in rows}) == 1
    lost = 30 - len(kept) + 30 - (len(rows) - 1)
    assert lost > 10
    assert recorded.summary["not_written"] == lost
    saved = list((tmp_path / "saved").glob("*.png"))
    assert recorded.summary["saved"] == len(saved)
    assert recorded.summary["saved"] + recorded.summary["not_saved"] == 30


def _opener(recorded: Recorded) -> Any:
    def opened(text: str, *arguments: Any) -> Output:
        return recorded if text == "recorded" else open_output(text, *arguments)

    return opened


@pytest.mark.parametrize("name", ["jsonl", "csv"])
def test_lines_continue_when_the_disk_has_room_again(
    name: str, bundle: Bundle, tmp_path: Path
) -> None:
    file = tmp_path / "lines"
    output = open_output(f"{name}:{file}", bundle)
    with longest_file(0):
        output.write(judgement(0))
    assert file.read_bytes() == b""
    output.write(judgement(1))
    with longest_file(file.stat().st_size + 20):
        output.write(judgement(2))
    output.write(judgement(3))
    assert output.totals() == {"not_written": 2}
    with pytest.raises(OutputError, match=r"2 lines cannot be written to .*File too large"):
        output.finish({"frames": 4})
    output.close()
    content = file.read_text().splitlines()
    if name == "jsonl":
        assert [json.loads(line).get("index") for line in content] == [1, 3, None]
    else:
        assert [line.split(",")[1] for line in content] == ["index", "1", "3"]


def kill_while_it_writes(bundle: Bundle, folder: Path, kills: int) -> None:
    """Run streams that write lines, a table and images, and kill each a moment after its start."""
    folder.mkdir()
    for number in range(kills):
        lines = folder / f"{number}.jsonl"
        command = [*COMMAND, "--bundle", str(bundle.path), "--camera", CAMERA]
        command += ["--output", f"jsonl:{lines}", "--output", f"csv:{folder / f'{number}.csv'}"]
        command += ["--save", str(folder / "saved")]
        before = count_images(folder)
        process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 60
        while count_images(folder) < before + 3:
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.002)
        # At another moment of a frame each time.
        time.sleep(0.003 * (number % 17))
        process.kill()
        process.wait(60)


def count_images(folder: Path) -> int:
    return len(list((folder / "saved").glob("*.png")))


def require_readable(folder: Path, kills: int) -> None:
    """Check that each line and image that a killed process left can be read."""
    for number in range(kills):
        text = (folder / f"{number}.jsonl").read_text()
        # Only the last line may be cut.
        *whole, _ = text.split("\n")
        assert [json.loads(line)["index"] for line in whole]
        *rows, _ = (folder / f"{number}.csv").read_text().split("\n")
        assert len({row.count(",") for row in rows}) == 1
    images = list((folder / "saved").glob("*.png"))
    assert images
    for path in images:
        image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert image is not None, path
        assert path.read_bytes().endswith(b"IEND\xaeB`\x82"), path


@pytest.mark.alone
def test_a_process_that_is_killed_leaves_no_unreadable_file(bundle: Bundle, tmp_path: Path) -> None:
    kill_while_it_writes(bundle, tmp_path / "out", 2)
    require_readable(tmp_path / "out", 2)


@pytest.mark.slow
def test_fifty_processes_that_are_killed_leave_no_unreadable_file(
    bundle: Bundle, tmp_path: Path
) -> None:
    kill_while_it_writes(bundle, tmp_path / "out", 50)
    require_readable(tmp_path / "out", 50)


def judge(bundle: Path, lines: Path, *flags: str) -> None:
    camera = f"{CAMERA}&frames=20&every_frame=1&queue=20"
    words = ["--bundle", str(bundle), "--camera", camera, "--output", f"jsonl:{lines}", *flags]
    assert infer_stream.main(words) == 0


def scores(lines: Path) -> list[float]:
    return [json.loads(line)["score"] for line in lines.read_text().splitlines()[:-1]]


def test_two_stations_use_one_bundle_at_the_same_time(bundle: Bundle, tmp_path: Path) -> None:
    command = [*COMMAND, "--bundle", str(bundle.path)]
    camera = f"{CAMERA}&frames=10&every_frame=1&queue=10"
    processes = []
    for number in range(2):
        flags = ["--camera", camera, "--output", f"jsonl:{tmp_path / str(number)}"]
        # Both save into the same folder.
        flags += ["--save", str(tmp_path / "saved")]
        processes.append(
            subprocess.Popen([*command, *flags], env=ENVIRONMENT, stderr=subprocess.PIPE)
        )
    for process in processes:
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
    first, second = (scores(tmp_path / str(number)) for number in range(2))
    assert first == second
    assert len(first) == 10
    assert len(list((tmp_path / "saved").glob("*.png"))) == 20


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_bundle_may_be_in_a_folder_of_any_name(engine: str, tmp_path: Path) -> None:
    pytest.importorskip(engine)
    placed = write_tiny_bundle(tmp_path / "line #4, 产线 (neu)" / "the bundle 包")
    folder = tmp_path / "out 出"
    folder.mkdir()
    saved = folder / "saved 图"
    judge(placed.path, folder / "lines 行.jsonl", "--engine", engine, "--save", str(saved))
    assert len(scores(folder / "lines 行.jsonl")) == 20
    assert len(list(saved.glob("*.png"))) == 20


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_bundle_may_be_read_only(engine: str, tmp_path: Path, bundle: Bundle) -> None:
    pytest.importorskip(engine)
    before = {path: path.stat().st_mtime_ns for path in bundle.path.rglob("*")}
    for path in [*bundle.path.rglob("*"), bundle.path]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        judge(bundle.path, tmp_path / "lines.jsonl", "--engine", engine)
    finally:
        bundle.path.chmod(0o755)
    # Root may write nevertheless, so that the content is compared, too.
    assert {path: path.stat().st_mtime_ns for path in bundle.path.rglob("*")} == before
    assert len(scores(tmp_path / "lines.jsonl")) == 20
