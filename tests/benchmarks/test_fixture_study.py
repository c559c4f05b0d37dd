"""The study of parts that do not lie still, on few frames."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the train extra")

from flawline.benchmarks.studies.fixture.__main__ import main
from flawline.benchmarks.studies.fixture.frames import (
    AT_REST,
    HEIGHT,
    REGION,
    SHIFT,
    TURN,
    WIDTH,
    Place,
    moved_place,
    render_frame,
    write_frames,
)
from flawline.benchmarks.studies.fixture.measure import _errors
from flawline.benchmarks.studies.fixture.report import add_rows, fixture_page
from flawline.runtime.find_part import Pose
from flawline.train.data import open_data

pytestmark = pytest.mark.torch


def test_places_fill_the_limits_and_do_not_exceed_them() -> None:
    places = [moved_place(number) for number in range(300)]
    turns = np.array([place.turn for place in places])
    shifts = np.array([np.hypot(place.x, place.y) for place in places])
    assert np.abs(turns).max() <= TURN
    assert shifts.max() <= SHIFT
    assert np.abs(turns).max() > 0.9 * TURN
    assert shifts.max() > 0.9 * SHIFT


def test_a_moved_frame_shows_the_piece_at_rest_elsewhere() -> None:
    rest, mask = render_frame("missing_part", 3, AT_REST)
    shifted, shifted_mask = render_frame("missing_part", 3, Place(0.0, 11, -7))
    assert rest.shape == (HEIGHT, WIDTH, 3)
    x, y, width, height = REGION
    # Where the piece covers the belt.
    middle = (slice(y + 70, y + height - 70), slice(x + 70, x + width - 70))
    moved = (slice(middle[0].start - 7, middle[0].stop - 7), slice(x + 81, x + width - 59))
    assert np.abs(rest[middle].astype(int) - shifted[moved]).max() <= 1
    assert np.array_equal(np.roll(mask, (-7, 11), (0, 1)), shifted_mask)
    turned, _ = render_frame("missing_part", 3, Place(25.0, 0, 0))
    assert np.abs(rest[middle].astype(int) - turned[middle]).mean() > 2


def test_errors_know_the_symmetry() -> None:
    assert _errors(Pose(-31.0, 3, 4, 1), Place(28.0, 0, 0), 60.0) == pytest.approx((1, 5))
    assert _errors(Pose(-31.0, 0, 0, 1), Place(28.0, 0, 0), 360.0) == pytest.approx((59, 0))


def test_a_set_has_both_kinds_of_test_images_with_masks(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "bearing", True, 1, 1, 1)
    data = open_data(folder)
    assert len(data.train_good) == 1
    assert len(data.test) == 5
    for sample in data.test:
        if sample.mask is not None:
            assert cv2.imread(str(sample.mask), cv2.IMREAD_GRAYSCALE).shape == (HEIGHT, WIDTH)
    again = (folder / "train" / "good" / "000.png").read_bytes()
    write_frames(folder, False, 1, 1, 1)
    assert (folder / "train" / "good" / "000.png").read_bytes() == again


def test_the_page_compares_the_ways_and_states_the_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "fixture"
    assert main(["--poses", "1", "--rounds", "1", "--out", str(out)]) == 0
    page = out.with_suffix(".md").read_text()
    assert page.count("| bearing |") == 4
    assert "together" in page
    assert page in capsys.readouterr().out
    rows = json.loads(out.with_suffix(".json").read_text())
    own = [row for row in rows if "the fixture" in row.get("way", "")]
    assert [row["wrong"] for row in own] == [0, 0]
    # A further run replaces the rows that it measures again.
    assert len(add_rows(rows, rows[:1])) == len(rows)
    detector = {
        "part": "detector",
        "case": "moved",
        "method": "toy",
        "backbone": "none",
        "weights": "random",
        "input": "64x64 stretch",
        "image_auroc": 0.75,
        "pixel_auroc": None,
        "false_alarms": 1,
        "good_images": 2,
        "missed": 0,
        "defective_images": 4,
        "seed": 0,
        "engine": "engine",
        "device": rows[0]["device"],
        "versions": {},
        "command": "command",
    }
    text = fixture_page(add_rows(rows, [detector]))
    assert "| toy none | moved | 0.7500 | no map | 1 of 2 | 0 of 4 |" in text


def test_a_flag_that_no_build_has_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["--methods", "padim", "--colour", "red"])
    assert ended.value.code == 2
    assert "--colour" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
