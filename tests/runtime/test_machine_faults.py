"""Faults of the machine: a disk that is full, a clock that is set, too little shared memory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import pytest
from conftest import write_tiny_bundle
from fakes.judgements import judgement
from fakes.mounts import fill, small_disk

from flawline.runtime import infer_stream
from flawline.runtime.bundle import Bundle
from flawline.runtime.outputs import OutputError, open_output
from flawline.runtime.station.recipe import main as recipe

# Their lines alone have more than 32 KB.
FRAMES = 100
CAMERA = f"synthetic://?width=64&height=48&fps=500&frames={FRAMES}&every_frame=1&queue={FRAMES}"
FULL = "(No space left on device); free disk space"
STATION = {
    "recipe": "low",
    "recipes": [
        {"name": "low", "bundle": "../bundle", "threshold": 40},
        {"name": "high", "bundle": "../bundle", "threshold": 60},
    ],
    "cameras": [{"uri": CAMERA}],
    "engine": {"name": "onnxruntime", "threads": 1},
    "outputs": ["jsonl:../lines.jsonl"],
}


def records(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the lines of a file, and its summary."""
    *lines, end = [json.loads(line) for line in path.read_text().splitlines()]
    return lines, end["summary"]


def test_a_full_disk_costs_lines_and_images_and_no_verdict(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = tmp_path / "lines.jsonl"
    words = ["--bundle", str(bundle.path), "--camera", CAMERA, "--output", f"jsonl:{elsewhere}"]
    with small_disk(tmp_path / "disk", "32k") as disk:
        for output in ("jsonl:{}/lines.jsonl", "csv:{}/table.csv", "overlays:{}/saved?record=1"):
            words += ["--output", output.format(disk)]
        assert infer_stream.main(words) == 2
        kept = (disk / "lines.jsonl").read_text().splitlines()
        rows = (disk / "table.csv").read_text().splitlines()
        pictures = sorted((disk / "saved").glob("*.png"))
        for picture in pictures:
            # Each picture that is there is whole, and has its record.
            assert cv2.imread(str(picture)) is not None
            assert json.loads(picture.with_suffix(".json").read_text())["image"] == picture.name
        # Neither a temporary file nor the record of another picture is left.
        assert len(list((disk / "saved").iterdir())) == 2 * len(pictures)
    lines, summary = records(elsewhere)
    assert [line["index"] for line in lines] == list(range(FRAMES))
    assert all(line["verdict"] != "unjudged" for line in lines)
    for line in kept:
        json.loads(line)
    assert len({row.count(",") for row in rows}) == 1
    # The last line of the file would have been the summary.
    assert summary["not_written"] == 2 * FRAMES - len(kept) - (len(rows) - 1)
    assert summary["not_written"] > 0
    assert summary["saved"] == len(pictures) < FRAMES
    assert summary["saved"] + summary["not_saved"] == FRAMES
    err = capsys.readouterr().err
    for output in ("jsonl", "overlays"):
        assert f"output {output}: " in err
    assert f"{FULL}, or choose another output; inspection continues" in err
    assert f"{FULL}, or choose another folder; inspection continues" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("name", ["jsonl", "csv"])
def test_lines_continue_when_a_full_disk_has_room_again(
    name: str, bundle: Bundle, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:
        output = open_output(f"{name}:{disk}/lines", bundle)
        filler = fill(disk)
        for index in range(20):
            output.write(judgement(index))
        lost = output.totals()["not_written"]
        assert lost > 0
        filler.unlink()
        output.write(judgement(20))
        assert output.totals() == {"not_written": lost}
        with pytest.raises(OutputError, match=f"{lost} lines cannot be written to .*No space left"):
            output.finish({"frames": 21})
        output.close()
        content = (disk / "lines").read_text().splitlines()
    last = content[-2] if name == "jsonl" else content[-1]
    assert "20" in last


def test_no_recipe_is_changed_while_the_audit_log_has_no_room(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tiny_bundle(tmp_path / "bundle")
    with small_disk(tmp_path / "disk", "64k") as disk:
        station = disk / "station.json"
        station.write_text(json.dumps(STATION))
        words = ["--station", str(station)]
        assert infer_stream.main(words) == 0
        assert "in use" in (disk / "audit.jsonl").read_text()
        before = (disk / "audit.jsonl").read_bytes()
        # The last block of the log has some room that belongs to it.
        padding = 4096 - len(before) % 4096
        filler = fill(disk)
        with (disk / "audit.jsonl").open("ab") as log:
            log.write(b"\n" * padding)
        capsys.readouterr()
        assert recipe([str(station), "high"]) == 2
        err = capsys.readouterr().err
        assert "cannot be written (No space left on device), so that nothing is changed" in err
        assert err.count("\n") == 1
        assert (disk / "audit.jsonl").read_bytes() == before + b"\n" * padding
        assert json.loads(station.read_text())["recipe"] == "low"
        filler.unlink()
        os.truncate(disk / "audit.jsonl", len(before))
        assert recipe([str(station), "high"]) == 0
        assert json.loads(station.read_text())["recipe"] == "high"


@pytest.mark.parametrize("hours", [1, -1])
def test_a_clock_that_is_set_while_the_stream_runs_changes_no_verdict(
    hours: int,
    bundle: Bundle,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    true_time = time.time
    calls = 0

    def jumping() -> float:
        nonlocal calls
        calls += 1
        return true_time() + 3600.0 * hours * (calls > 20)

    monkeypatch.setattr(time, "time", jumping)
    lines = tmp_path / "lines.jsonl"
    camera = "synthetic://?width=64&height=48&fps=100&frames=60&stall=1"
    words = ["--bundle", str(bundle.path), "--camera", camera, "--output", f"jsonl:{lines}"]
    assert infer_stream.main([*words, "--save", str(tmp_path / "saved")]) == 0
    assert calls > 40
    found, summary = records(lines)
    assert summary["stale"] == summary["reconnects"] == summary["unjudged"] == 0
    assert summary["frames"] + summary["dropped"] == summary["captured"] == 60
    assert all(0 <= line["age_ms"] < 60_000 for line in found)
    # The time is a label, which follows the clock.
    assert abs(found[-1]["captured_at"] - found[0]["captured_at"]) > 3000
    # No event of the camera, and no failure of an output.
    err = capsys.readouterr().err
    assert "camera synthetic" not in err
    assert "output " not in err


def test_a_station_needs_no_shared_memory(bundle: Bundle, tmp_path: Path) -> None:
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare; apt install util-linux")
    lines = tmp_path / "lines.jsonl"
    command = [sys.executable, "-m", "flawline.runtime.infer_stream", "--bundle", str(bundle.path)]
    for name in ("left", "right"):
        command += ["--camera", f"{CAMERA}&name={name}"]
    command += ["--output", f"jsonl:{lines}", "--save", str(tmp_path / "saved")]
    mounted = 'mount -t tmpfs -o size=4k tmpfs /dev/shm || exit 77; exec "$@"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", mounted, "sh", *command],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode == 77 or "unshare failed" in done.stderr:
        pytest.skip(f"needs root to mount /dev/shm ({done.stderr.strip()})")
    assert done.returncode == 0, done.stderr
    found, summary = records(lines)
    assert len(found) == summary["frames"] == 2 * FRAMES
    assert summary["unjudged"] == 0
