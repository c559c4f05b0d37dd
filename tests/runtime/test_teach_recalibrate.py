"""`flawline teach` with a bundle that cannot be taught: good pictures set its thresholds again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from conftest import SIZE, write_levels

from flawline.runtime.audit.check import check_log
from flawline.runtime.audit.log import AUDIT_LOG
from flawline.runtime.bundle import Bundle, read_bundle, write_bundle
from flawline.runtime.detector import Detector
from flawline.runtime.source_images import SourceSizes
from flawline.runtime.teach import main

# Of the score of a picture, which is its grey level; the bundle rejects what is above 100.
KNOWN = range(81, 101)
UNKNOWN = range(121, 141)


def teach(bundle: Bundle, levels: range, out: Path, *flags: str) -> int:
    folder = write_levels(out.with_name(f"{out.name}-data"), {"good": levels}, SIZE) / "good"
    return main([str(bundle.path), "--source", str(folder), "--out", str(out), *flags])


def test_good_pictures_set_all_thresholds_of_a_new_bundle_with_the_same_graph(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rates = ["--false-alarm-rate", "0.05", "--review-rate", "0.2"]
    assert teach(bundle, KNOWN, tmp_path / "new", *rates) == 0
    logged = capsys.readouterr().err
    assert "simplenet is trained in steps" in logged
    assert "the old threshold 100 rejects 0 of these 20 good pictures" in logged
    assert "hardly knows" not in logged
    assert f"--install {tmp_path / 'new'}" in logged
    new = read_bundle(tmp_path / "new")
    calibration = new.calibration
    assert calibration.threshold == pytest.approx(100, abs=0.1)
    assert calibration.good_images == 20
    assert calibration.review_threshold == pytest.approx(97.5, abs=0.1)
    assert calibration.pixel_threshold == pytest.approx(100, abs=0.1)
    assert calibration.scores is not None
    assert new.short_id == bundle.short_id
    assert new.manifest == bundle.manifest
    assert [entry.what for entry in check_log(new.path / AUDIT_LOG).entries] == ["teach"]
    assert read_bundle(bundle.path).calibration == bundle.calibration


def test_pictures_that_it_does_not_know_are_warned_of(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert teach(bundle, UNKNOWN, tmp_path / "new") == 0
    logged = capsys.readouterr().err
    assert "rejects 20 of these 20 good pictures" in logged
    assert "hardly knows these pictures" in logged
    assert read_bundle(tmp_path / "new").calibration.threshold > 139


def test_pictures_of_another_size_are_taken_where_that_is_said(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sized"
    sizes = SourceSizes.of([(1000, 1000)])
    models = {"fp32": bundle.read_model()}
    manifest = replace(bundle.manifest, source_sizes=sizes)
    sized = write_bundle(out, manifest, bundle.calibration, models, bundle.golden())
    assert teach(sized, KNOWN, tmp_path / "new") == 2
    assert "pass --accept-size" in capsys.readouterr().err
    assert teach(sized, KNOWN, tmp_path / "other", "--accept-size") == 0


def test_the_bundle_that_is_taught_is_not_written_over(
    bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    assert teach(bundle, KNOWN, bundle.path) == 2
    assert (
        "is the bundle that is taught, which could not be brought back" in capsys.readouterr().err
    )
    assert read_bundle(bundle.path).is_same(bundle)


def test_it_is_put_in_place_and_undone(bundle: Bundle, tmp_path: Path) -> None:
    assert teach(bundle, UNKNOWN, tmp_path / "new") == 0
    thresholds = []
    for words in ([], ["--install", str(tmp_path / "new")], ["--undo"]):
        if words:
            assert main([str(bundle.path), *words]) == 0
        with Detector(bundle.path, "onnxruntime") as detector:
            thresholds.append(detector.threshold)
    assert thresholds[0] == thresholds[2] == 100
    assert thresholds[1] > 139


@pytest.mark.parametrize(
    ("levels", "flags", "message"),
    [
        (range(81, 100), ["--false-alarm-rate", "0.05"], None),
        (range(81, 99), ["--false-alarm-rate", "0.05"], "needs 19 good images, there are 18"),
        (range(81, 101), ["--folds", "2"], "simplenet cannot be taught here"),
    ],
)
def test_what_sets_no_threshold_is_refused(
    bundle: Bundle,
    tmp_path: Path,
    levels: range,
    flags: list[str],
    message: str | None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    status = teach(bundle, levels, tmp_path / "new", *flags)
    assert (status == 0) == (message is None) == (tmp_path / "new").exists()
    if message is not None:
        assert message in capsys.readouterr().err.splitlines()[-1]
