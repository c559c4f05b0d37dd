"""The check of drift on demo products: quick with few small frames, slow as a stream sees them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the train extra")

from builders import write_squares

from flawline.benchmarks.perturbations import perturb
from flawline.benchmarks.studies.drift import measure, simulate
from flawline.benchmarks.studies.drift.__main__ import main
from flawline.benchmarks.studies.drift.measure import REQUIRED, measure_changes
from flawline.benchmarks.studies.drift.readers import Judged, plain_reader
from flawline.benchmarks.studies.drift.report import add_rows, drift_page
from flawline.benchmarks.studies.drift.subjects import Subject, open_subjects
from flawline.runtime.drift.gauge import Gauge
from flawline.runtime.drift.learn import learn_reference
from flawline.runtime.drift.quantities import POSITION, PRODUCT
from flawline.runtime.graph_input import GraphInput
from flawline.runtime.image import Geometry, Image
from flawline.train.data.demo import render

pytestmark = pytest.mark.torch

INPUT = GraphInput(Geometry("stretch", 128, 128))
# Half the side of the demo data, and half of what its changes move or blur.
SIZE = 160
SCALE = 0.5
GOOD = 40
FRAMES = 60


@cache
def frame(product: str, number: int) -> Image:
    return np.asarray(render(product, None, number, SIZE)[0], np.uint8)


@cache
def gauge(product: str) -> Gauge:
    return Gauge(reference(product), INPUT)


@cache
def reference(product: str) -> Any:
    images = [INPUT.of_frame(frame(product, number)) for number in range(GOOD)]
    scores = np.random.default_rng(0).normal(size=GOOD)
    return learn_reference(images, scores, INPUT)


def judged(product: str, shown: str, change: str | None, strength: float) -> list[Judged]:
    """What the check of a product gets of frames, with scores like those of good images."""
    rng = np.random.default_rng(1)
    found = []
    for number in range(1000, 1000 + FRAMES):
        image = frame(shown, number)
        if change is not None:
            image = np.asarray(perturb(image, change, strength), np.uint8)
        reading = gauge(product).read(INPUT.of_frame(image))
        found.append(Judged(reading, float(rng.normal())))
    return found


@pytest.mark.parametrize("product", ["bearing", "weave"])
def test_changes_of_demo_frames_are_named(product: str) -> None:
    good = judged(product, product, None, 0)
    assert not measure._warnings(reference(product), good)
    for change, strength, cause in REQUIRED:
        scaled = strength if change == "gain" else SCALE * strength
        changed = judged(product, product, change, scaled)
        row = measure._named(reference(product), good, changed, cause, streams=2)
        # A cloth lies anywhere.
        watched = cause != POSITION or product == "bearing"
        assert (row["named"], row["others"]) == (2 if watched else 0, {}), (change, strength)
    other = "board" if product == "bearing" else "metal"
    row = measure._named(reference(product), good, judged(product, other, None, 0), PRODUCT, 2)
    assert (row["named"], row["others"]) == (2, {})


def test_the_frames_of_a_stream_are_drawn_from_the_test_images(tmp_path: Path) -> None:
    (subject,) = open_subjects([], [write_squares(tmp_path / "squares")], tmp_path, 0)
    assert subject.different == 4
    assert set(subject.numbers(100)) == {0, 1, 2, 3}
    assert sorted(subject.numbers(3)) == sorted(set(subject.numbers(3)))
    assert subject.frame(0).shape == (80, 90, 3)
    assert sorted(Subject("weave", tmp_path, "weave", 50).numbers(50)) == list(range(50))


def test_the_study_writes_what_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(simulate, "FRAMES", 100)
    monkeypatch.setattr(simulate, "GOOD_IMAGES", (20,))
    monkeypatch.setattr(measure, "ROUNDS", 20)
    monkeypatch.setattr(measure, "CHANGES", REQUIRED[:1])
    data = write_squares(tmp_path / "squares")
    words = ["--products", "--data", str(data), "--frames", "30", "--streams", "2"]
    words += ["--simulated", "1", "--folder", str(tmp_path / "work")]
    words += ["--out", str(tmp_path / "drift"), "--method", "padim", "--weights", "random"]
    words += ["--size", "64", "--engine", "none", "--false-alarm-rate", "0.3"]
    assert main(words) == 0
    rows = json.loads((tmp_path / "drift.json").read_text())
    parts = [row["part"] for row in rows]
    assert parts == ["time"] + ["simulation"] * len(simulate.PROCESSES) + [
        "good",
        "change",
        "blocks",
    ]
    page = (tmp_path / "drift.md").read_text()
    assert "| gain 0.7 |" in page
    assert rows[-1]["images"] == 20
    assert "| squares | 20 | 28 |" in page
    assert "CPU time of a frame of 640x480" in page
    assert str(tmp_path) not in page


def test_the_check_alone_needs_no_detector(tmp_path: Path) -> None:
    data = write_squares(tmp_path / "squares")
    words = ["--products", "--data", str(data), "--frames", "200", "--streams", "2"]
    words += ["--simulated", "0", "--out", str(tmp_path / "drift"), "--no-detector"]
    assert main(words) == 0
    rows = json.loads((tmp_path / "drift.json").read_text())
    assert rows[0]["warnings"] == {}
    assert rows[0]["good_scores"] == 0
    named = {(row["change"], row["strength"]): row["named"] for row in rows[1:-1]}
    assert (named["gain", 0.7], named["gain", 1.3]) == (2, 2)
    # Noise lies anywhere.
    assert named["shift", 8.0] == 0


def test_what_is_not_measured_cannot_be_chosen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--products", "--out", str(tmp_path / "drift"), "--only", "bearing"]
    assert main(words) == 2
    assert "--only bearing is not in --products or --data ()" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_rows_of_the_same_measurement_are_replaced() -> None:
    row = {"part": "good", "data": "bearing", "frames": 1}
    other = {**row, "data": "board"}
    assert add_rows([row, other], [{**row, "frames": 2}]) == [other, {**row, "frames": 2}]


def test_the_page_says_what_was_not_named() -> None:
    facts = {
        "part": "change",
        "data": "bearing",
        "device": "CPU",
        "versions": {},
        "command": "c",
        "position": False,
        "streams": 20,
        "frames": [25, 60],
        "others": {},
    }
    rows = [
        {**facts, "change": "gain", "strength": 0.7, "cause": "light", "named": 20},
        {**facts, "change": "shift", "strength": 8.0, "cause": "position", "named": 0},
        {**facts, "change": "board", "strength": None, "cause": "product", "named": 20},
        {
            **facts,
            "change": "weave",
            "strength": None,
            "cause": "product",
            "named": 3,
            "others": {"light": 17},
        },
    ]
    lines = drift_page(rows).splitlines()
    assert "| gain 0.7 | 20: 25 / 60 |" in lines
    assert "| shift 8 | not watched |" in lines
    assert "| another product | 1 of 2: at most 60; weave 3 (light 17) |" in lines


def test_batches_share_a_part_of_their_variance() -> None:
    process = next(process for process in simulate.PROCESSES if process.batch == 200)
    numbers = process.numbers(np.random.default_rng(0), 200_000)
    assert numbers.std() == pytest.approx(1, abs=0.05)
    means = numbers[: 200 * 990].reshape(-1, 200).mean(1)
    assert 0.2 < means.var() < 0.7


@pytest.mark.slow
@pytest.mark.parametrize("product", ["bearing", "board", "weave", "metal"])
def test_a_stream_names_each_change_and_gives_no_other_warning(
    product: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within 100 frames, and none in 5,000 good frames."""
    monkeypatch.setattr(measure, "CHANGES", REQUIRED)
    names = [product, *(name for name in ("bearing", "metal") if name != product)]
    subjects = open_subjects(names, [], tmp_path, 1000)
    good, *changes = measure_changes(subjects[0], subjects, plain_reader(subjects[0]), 0, 5000, 10)
    assert good["warnings"] == {}
    for row in changes:
        watched = row["cause"] != POSITION or row["position"]
        expected = (10 if watched else 0, {})
        assert (row["named"], row["others"]) == expected, (row["change"], row["strength"])
    assert good["position"] == (product in ("bearing", "board"))
