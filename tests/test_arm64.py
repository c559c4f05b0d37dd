"""The runtime on 64-bit Arm, as in a Jetson: what is installed, its tests, and a stream.

`make test-arm64` prepares the machine and runs these tests, which QEMU slows down about tenfold.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from builders import write_squares
from fakes import arm64
from fakes.arm64 import CODE, Machine

from flawline.runtime.bundle import read_bundle
from flawline.runtime.infer_stream import main as stream

pytestmark = pytest.mark.slow

# Python of JetPack 6, Debian 12 and JetPack 7.
PYTHONS = ("3.10", "3.11", "3.12")
TEST_PACKAGES = ("pytest", "pytest-timeout", "hypothesis")
FEWEST_TESTS = 500


def requirements() -> list[str]:
    """Return what an edge box installs."""
    tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11")
    text = (arm64.REPOSITORY / "pyproject.toml").read_text()
    names: list[str] = tomllib.loads(text)["project"]["dependencies"]
    return names


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    reason = arm64.missing()
    if reason is not None:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("arm64")
    shared = folder / "shared"
    shared.mkdir()
    return Machine.make(folder / "root", shared, [*requirements(), *TEST_PACKAGES])


@pytest.mark.parametrize("python", PYTHONS)
def test_an_edge_box_needs_wheels_only(python: str, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    flags = ["--dry-run", "--quiet", "--ignore-installed", "--report", str(report)]
    target = ["--target", str(tmp_path / "target")]
    arm64.pip("install", *flags, *target, *arm64.only_wheels(python), *requirements())
    names = [item["metadata"]["name"] for item in json.loads(report.read_text())["install"]]
    assert {"numpy", "onnxruntime", "opencv-python-headless", "tifffile", "msgspec"} <= set(names)


def test_the_runtime_passes_its_tests(machine: Machine) -> None:
    flags = ["-q", "-p", "no:cacheprovider", "-c", f"{CODE}/pyproject.toml", "--rootdir", CODE]
    done = machine.python("-m", "pytest", *flags, "-m", "not alone", f"{CODE}/tests/runtime")
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) > FEWEST_TESTS


def test_a_stream_gives_the_scores_of_this_machine(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch", reason="needs the train extra")
    from flawline.export.build import main as build

    counts = {"train/good": 24, "test/good": 6, "test/square": 6}
    data = write_squares(machine.shared / "data", counts)
    bundle = machine.shared / "bundle"
    words = ["--method", "padim", "--data", str(data), "--weights", "texture", "--size", "64"]
    assert build([*words, "--engine", "none", "--out", str(bundle)]) == 0
    capsys.readouterr()
    camera = data / "test"
    assert stream(["--bundle", str(bundle), "--camera", str(camera)]) == 0
    expected = lines(capsys.readouterr().out)
    flags = ["--bundle", machine.inside(bundle), "--camera", machine.inside(camera)]
    done = machine.python("-m", "flawline", "stream", *flags)
    assert done.returncode == 0, done.stderr
    assert "self-test passed" in done.stderr
    found = lines(done.stdout)
    assert len(found) == len(expected) == 12
    tolerance = read_bundle(bundle).manifest.score_tolerance
    for ours, theirs in zip(expected, found, strict=True):
        assert Path(theirs["source"]).name == Path(ours["source"]).name
        assert theirs["score"] == pytest.approx(ours["score"], abs=tolerance)
        assert theirs["verdict"] == ours["verdict"]


def lines(text: str) -> list[dict[str, Any]]:
    """Return the JSON lines of a stream without its summary."""
    records = [json.loads(line) for line in text.splitlines()]
    return [record for record in records if "summary" not in record]
