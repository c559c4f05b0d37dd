"""The bundle report, on a bundle whose score is the brightest pixel and whose threshold is 100."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import SIZE, write_tiny_bundle
from score_bundles import write_score_bundle

pytest.importorskip("jinja2", reason="needs the report extra")
pytest.importorskip("tqdm", reason="needs the report extra")

from markupsafe import escape

from flawline.benchmarks.bundle_report.__main__ import main
from flawline.benchmarks.bundle_report.confidence import threshold_interval
from flawline.benchmarks.bundle_report.page import write_bundle_report
from flawline.runtime.bundle import read_bundle, write_calibration
from flawline.runtime.image import Geometry
from flawline.runtime.manifest import Calibration
from flawline.runtime.source_images import SourceSizes
from flawline.runtime.threshold import CONFIDENCE, set_threshold
from flawline.runtime.training_length import TrainingLength
from flawline.train import metrics

GOOD, DENT, HOLE = (30, 60, 90, 140), (250, 120, 80), (200, 99)


def write_image(path: Path, brightest: int) -> None:
    """A dark image with one spot; the spot is where the defect is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.full((SIZE, SIZE, 3), 10, np.uint8)
    image[20:30, 30:40] = brightest
    assert cv2.imwrite(str(path), image)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """MVTec AD's layout; every score is known, because it is the brightness of the spot."""
    root = tmp_path / "part"
    for i in range(20):
        write_image(root / "train" / "good" / f"{i:03}.png", 20 + i)
    for folder, scores in (("good", GOOD), ("dent", DENT), ("hole", HOLE)):
        for i, score in enumerate(scores):
            write_image(root / "test" / folder / f"{i:03}.png", score)
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[20:30, 30:40] = 255
    for folder, scores in (("dent", DENT), ("hole", HOLE)):
        (root / "ground_truth" / folder).mkdir(parents=True)
        for i in range(len(scores)):
            cv2.imwrite(str(root / "ground_truth" / folder / f"{i:03}_mask.png"), mask)
    return root


def remove(*folders: Path) -> None:
    for folder in folders:
        for path in sorted(folder.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        folder.rmdir()


def report(tmp_path: Path, data: Path, **changes: object) -> str:
    bundle = write_tiny_bundle(tmp_path / "bundle", **changes)
    out = tmp_path / "out" / "report.html"
    write_bundle_report(bundle.path, data, out)
    return out.read_text()


def words(page: str) -> str:
    """Return the visible text of a page, on one line and with plain spaces."""
    page = re.sub("<style.*?</style>", "", page, flags=re.S)
    without_inline_tags = re.sub(r"</?(b|span)\b[^>]*>", "", page)
    return " ".join(re.sub("<[^>]*>", " ", without_inline_tags).split())


def test_the_numbers_are_those_of_the_images(tmp_path: Path, data: Path) -> None:
    page = report(tmp_path, data)
    text, defective = words(page), DENT + HOLE
    assert f"false alarms {sum(s > 100 for s in GOOD)} of {len(GOOD)} good test images" in text
    assert f"misses {sum(s <= 100 for s in defective)} of {len(defective)} defective ones" in text
    labels = np.array([False] * len(GOOD) + [True] * len(defective))
    assert f"image AUROC {metrics.auroc(labels, np.array(GOOD + defective)):.4f}" in text
    assert re.search(r"pixel AUROC 0\.\d{4}, AUPRO [01]\.\d{4}", text)
    # Kinds, the worst first: images, found, share, median.
    assert "hole 2 1 50 % 149.5 dent 3 2 66.7 % 120" in text
    assert "false alarm · test/good/003.png score 140 / threshold 100" in text
    assert page.count("<b>false alarm</b>") == 1
    assert page.count("<b>missed</b>") == 2
    assert page.count("<b>correct, near the threshold</b>") == 3 + 3
    assert page.count("data:image/jpeg;base64,") == 2 * (len(GOOD) + len(defective))


def test_the_provenance_is_complete(tmp_path: Path, data: Path) -> None:
    page = report(
        tmp_path, data, provenance={"built": "<today>", "train_weights": "random & seed 0"}
    )
    text, bundle = words(page), read_bundle(tmp_path / "bundle")
    assert "&lt;today&gt;" in page
    assert "random &amp; seed 0" in page
    for expected in (
        bundle.model_sha256(),
        "onnxruntime",
        "CPU fp32",
        "64x64, stretch",
        "numpy",
    ):
        assert expected in text
    # The page may be mailed: it names the bundle and the data, and no folder of this machine.
    assert re.search(r"\bbundle bundle data part engine\b", text)
    assert str(tmp_path) not in page
    assert "The calibration states 1 % false alarms" in text
    assert (
        f"with {CONFIDENCE:.0%}".replace("%", " %")
        + " confidence the true rate is between 0.2 % and 2 %"
        in text
    )
    assert "states the interval 0.2 % to 2 %" in text, "which is not that of 200 images"
    assert "not set from the held-out good images of this data set, but from other images." in text


def test_the_area_that_a_crop_leaves_uninspected_is_stated(tmp_path: Path, data: Path) -> None:
    page = report(tmp_path, data, geometry=Geometry("shorter-crop", SIZE, SIZE, 2 * SIZE))
    assert words(page).lower().count("the centre crop leaves 75% of a 64x64 image uninspected") == 2


def test_a_threshold_changed_by_hand_is_noticed(tmp_path: Path, data: Path) -> None:
    """Also with the manifest's statistics of exactly the held-out images."""
    from flawline.runtime.manifest import Spread
    from flawline.train.data import hold_out, open_data

    scores = np.array([20 + int(p.stem) for p in hold_out(open_data(data).train_good)[1]], float)
    bundle = write_tiny_bundle(tmp_path / "bundle", score=Spread.of(scores))
    calibrated = set_threshold(scores)
    # runtime.calibrate keeps the tolerance of the engines as a margin.
    with_margin = set_threshold(scores, margin=bundle.manifest.score_tolerance).threshold
    cases = (
        (calibrated.threshold, False),
        (with_margin + 0.9 * bundle.manifest.score_tolerance, False),
        (calibrated.threshold + 5, True),
    )
    for threshold, changed in cases:
        calibration = Calibration(
            threshold,
            calibrated.false_alarm_rate,
            calibrated.interval,
            calibrated.confidence,
            len(scores),
        )
        write_calibration(bundle, calibration)
        write_bundle_report(bundle.path, data, tmp_path / "r.html")
        text = words((tmp_path / "r.html").read_text())
        assert ("it was changed since" in text) == changed
        assert "but from other images" not in text
        assert "states the interval" not in text
    write_calibration(
        bundle, Calibration(50.0, 0.01, calibrated.interval, calibrated.confidence, len(scores))
    )
    write_bundle_report(bundle.path, data, tmp_path / "r.html")
    text = words((tmp_path / "r.html").read_text())
    assert (
        "The calibration is not valid: a false-alarm rate of 0.01 needs 99 held-out good images"
        in text
    )


def test_without_masks(tmp_path: Path, data: Path) -> None:
    remove(data / "ground_truth")
    text = words(report(tmp_path, data))
    assert "image AUROC" in text
    assert "pixel AUROC" not in text
    assert "There are no masks" in text


def test_masks_of_no_image_are_in_the_notes(tmp_path: Path, data: Path) -> None:
    for path in sorted((data / "ground_truth").rglob("*.png")):
        path.rename(path.with_name(f"mask_of_{path.name}"))
    text = words(report(tmp_path, data))
    assert "defective images have no mask although ground_truth holds" in text


def test_a_bundle_without_maps_says_so(tmp_path: Path, data: Path) -> None:
    bundle = write_score_bundle(tmp_path / "bundle")
    out = tmp_path / "report.html"
    write_bundle_report(bundle.path, data, out)
    page = out.read_text()
    text = words(page)
    assert "image AUROC" in text
    assert "pixel AUROC" not in text
    assert "has no anomaly maps" in text
    assert "There are no masks" not in text
    # The cards show the images alone.
    assert page.count("data:image/jpeg;base64,") == len(GOOD) + len(DENT + HOLE)
    assert 'alt="overlay"' not in page
    assert "with its anomaly map" not in text


@pytest.mark.parametrize(("rate", "verdict"), [(0.01, "inconsistent"), (0.4, "consistent")])
def test_the_measured_rate_is_compared_with_the_stated_one(
    rate: float, verdict: str, tmp_path: Path, data: Path
) -> None:
    """One of four good test images is a false alarm: 25 %, between 0.6 % and 81 %."""
    bundle = write_tiny_bundle(tmp_path / "bundle")
    interval = (rate / 4, rate / 2)
    write_calibration(bundle, Calibration(100.0, rate, interval, CONFIDENCE, 200))
    write_bundle_report(bundle.path, data, tmp_path / "r.html")
    text = words((tmp_path / "r.html").read_text())
    assert f"; {verdict} with the stated rate." in text


def test_with_good_test_images_only(tmp_path: Path, data: Path) -> None:
    remove(data / "test" / "dent", data / "test" / "hole")
    text = words(report(tmp_path, data))
    assert (
        "false alarms 1 of 4 good test images; misses unknown, there are no defective test images."
        in text
    )
    assert "AUROC" not in text
    assert "a ROC curve needs good and defective test images" in text


def test_with_defective_test_images_only(tmp_path: Path, data: Path) -> None:
    remove(data / "test" / "good")
    text = words(report(tmp_path, data))
    assert (
        "false alarms unknown, there are no good test images; misses 2 of 5 defective ones" in text
    )
    assert "image AUROC" not in text


def test_a_plain_folder_of_good_images(tmp_path: Path, data: Path) -> None:
    page = report(tmp_path, data / "train" / "good")
    text = words(page)
    assert "false alarms unknown" in text
    assert "misses unknown" in text
    assert "held-out good images are judged correctly. These are near the threshold." in text
    assert "<b>correct, near the threshold</b>" in page


def test_names_are_escaped(tmp_path: Path, data: Path) -> None:
    name = "<script>alert('x')&"
    write_image(data / "test" / "good" / f"{name}.png", 200)
    write_image(data / "test" / name / "000.png", 50)
    (data / "test" / "good" / "<script>.png").write_bytes(b"")
    page = report(tmp_path, data)
    assert "<script" not in page.lower()
    assert escape(f"test/good/{name}.png") in page
    assert escape(f"defect: {name}") in page


def test_a_name_that_is_not_unicode(tmp_path: Path, data: Path) -> None:
    (data / "test" / "good" / "003.png").rename(data / "test" / "good" / "\udcff.png")
    assert "test/good/\\udcff.png" in report(tmp_path, data)


def test_an_unreadable_image_is_listed_and_counted_apart(tmp_path: Path, data: Path) -> None:
    (data / "test" / "dent" / "000.png").write_bytes(b"no image")
    text = words(report(tmp_path, data))
    assert "Rejected without a score: 1" in text
    assert re.search(r"test/dent/000\.png: .*is not an image of a format that is read", text)
    assert "misses 2 of 4 defective ones" in text
    assert "1 rejected without a score" in text


def test_nothing_is_loaded_and_nothing_runs(tmp_path: Path, data: Path) -> None:
    page = report(tmp_path, data, provenance={"data": "http://example.org/part"})
    for target in re.findall(
        r"""(?:src|href)\s*=\s*["']?([^"'>\s]+)|url\(([^)]*)\)|@import\s+(\S+)""", page
    ):
        assert "".join(target).startswith(("data:image/jpeg;base64,", "#")), target
    assert "default-src 'none'" in page
    assert not re.search(r"<script|<link|<iframe|<object|\son\w+\s*=", page)


def test_a_bundle_with_its_report_is_still_a_bundle(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture
) -> None:
    before = write_tiny_bundle(tmp_path / "bundle")
    assert main(["--bundle", str(before.path), "--data", str(data)]) == 0
    assert (before.path / "report.html").is_file()
    assert read_bundle(before.path) == before
    assert capsys.readouterr().err.endswith(f"wrote {before.path / 'report.html'}\n")


@pytest.mark.parametrize(
    ("missing", "why"),
    [
        ("bundle", "there is no such folder"),
        ("data", "there is no such folder"),
        ("out", "written"),
    ],
)
def test_errors_are_one_line(
    tmp_path: Path, data: Path, missing: str, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tiny_bundle(tmp_path / "bundle")
    (tmp_path / "taken").mkdir()
    paths = {"bundle": tmp_path / "bundle", "data": data, "out": tmp_path / "report.html"}
    paths[missing] = tmp_path / ("taken" if missing == "out" else "missing")
    arguments = [word for name, path in paths.items() for word in (f"--{name}", str(path))]
    assert main(arguments) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("flawline-report: ")
    assert why in last


def test_a_report_that_cannot_be_written_is_found_before_images_are_judged(
    tmp_path: Path,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def unexpected(*_: object) -> None:
        raise AssertionError("the measurement would be lost")

    monkeypatch.setattr("flawline.benchmarks.bundle_report.page.judge_images", unexpected)
    bundle = write_tiny_bundle(tmp_path / "bundle")
    words = ["--bundle", str(bundle.path), "--data", str(data), "--out", "/proc/report.html"]
    if not Path("/proc/self").exists():
        pytest.skip("needs /proc")
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("flawline-report: /proc/report.html cannot be written (")


def test_the_interval_of_the_threshold_covers_as_often_as_it_says() -> None:
    rng, n, rate = np.random.default_rng(0), 60, 0.1
    covered = 0
    for _ in range(60):
        low, high = threshold_interval(rng.random(n), rate)
        assert low is not None
        assert high is not None
        covered += low <= 1 - rate <= high
    assert covered / 60 > CONFIDENCE - 0.06
    assert threshold_interval(rng.random(60), 0.01)[1] is None, (
        "60 images cannot bound a rate of 1 %"
    )
    assert threshold_interval(rng.random(0), 0.01) == (None, None)


def test_a_training_that_was_cut_short_is_in_the_notes(tmp_path: Path, data: Path) -> None:
    text = words(report(tmp_path, data, training=TrainingLength(17, 100)))
    assert "The training was cut short after 17 of 100 steps" in text
    assert "cut short" not in words(report(tmp_path, data, training=TrainingLength(100, 100)))


def test_the_sizes_of_the_training_are_stated(tmp_path: Path, data: Path) -> None:
    assert "images in training 90x80" in words(
        report(tmp_path, data, source_sizes=SourceSizes.of([(80, 90)]))
    )
    assert "images in training not recorded" in words(report(tmp_path, data))
