"""The bundle report, on a bundle whose score is the brightest pixel and whose threshold is 100."""

from __future__ import annotations

import re
import shlex
from html import unescape
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
from flawline.benchmarks.bundle_report.formatting import number
from flawline.benchmarks.bundle_report.page import write_bundle_report
from flawline.runtime import calibrate
from flawline.runtime.bundle import read_bundle, write_calibration
from flawline.runtime.image import Geometry
from flawline.runtime.manifest import Calibration
from flawline.runtime.source_images import SourceSizes
from flawline.runtime.threshold import CONFIDENCE, set_threshold
from flawline.runtime.trained_images import content_hash
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
    assert "Missed defects 2 of 5 defective test images, 40 % (" in text
    assert "False alarms 1 of 4 good test images, 25 % (" in text
    labels = np.array([False] * len(GOOD) + [True] * len(defective))
    assert f"Image AUROC {metrics.auroc(labels, np.array(GOOD + defective)):.4f}" in text
    assert re.search(r"pixel AUROC 0\.\d{4}, AUPRO [01]\.\d{4}", text)
    # Kinds, the worst first: found, share, median.
    assert "hole 1 of 2 50 % 149.5 dent 2 of 3 66.7 % 120" in text
    assert "false alarm · good part score 140 / threshold 100 test/good/003.png" in text
    assert "found · defect: hole score 200 / threshold 100 test/hole/000.png" in text
    assert page.count("<b>false alarm</b>") == 1
    assert page.count("<b>missed</b>") == 2
    assert page.count("<b>found</b>") == 3
    assert page.count("data:image/jpeg;base64,") == 2 * (1 + len(defective))


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
        "prepared images",
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


def test_images_that_were_trained_on_are_not_shown_as_held_out(tmp_path: Path, data: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle", folds=5)
    calibration = set_threshold(np.arange(60.0), folds=5)
    write_calibration(bundle, calibration)
    out = tmp_path / "report.html"
    write_bundle_report(bundle.path, data, out)
    text = words(out.read_text())
    assert "computed from 60 good images, each scored by one of 5 detectors" in text
    assert "with 95 % confidence the true rate is at most 4.9 %" in text
    for absent in ("held-out", "states the interval", "not set from"):
        assert absent not in text


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
        assert ("or it was changed by hand" in text) == changed
        # Its uncertainty is known only where the held-out images set it.
        assert ("the uncertainty of the threshold" in text) == (not changed)
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
    assert "Image AUROC" in text
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
    assert "Image AUROC" in text
    assert "pixel AUROC" not in text
    assert "has no anomaly maps" in text
    assert "There are no masks" not in text
    # The cards show the images alone.
    assert page.count("data:image/jpeg;base64,") == 1 + len(DENT + HOLE)
    assert "under its anomaly map" not in page
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
    assert "False alarms 1 of 4 good test images" in text
    assert "Missed defects unknown there are no defective test images" in text
    assert "AUROC" not in text
    assert "a ROC curve needs good and defective test images" in text


def test_with_defective_test_images_only(tmp_path: Path, data: Path) -> None:
    remove(data / "test" / "good")
    text = words(report(tmp_path, data))
    assert "False alarms unknown there are no good test images" in text
    assert "Missed defects 2 of 5 defective test images" in text
    assert "Image AUROC" not in text


def test_a_plain_folder_of_good_images(tmp_path: Path, data: Path) -> None:
    page = report(tmp_path, data / "train" / "good")
    text = words(page)
    assert "False alarms unknown" in text
    assert "Missed defects unknown" in text
    assert "held-out good images are judged correctly. These have the highest scores" in text
    assert "<b>judged good</b>" in page


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
    assert "Missed defects 2 of 4 defective test images" in text
    assert "Rejected without a score 1 see below" in text


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
    assert last.startswith("flawline report: ")
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
    assert line.startswith("flawline report: /proc/report.html cannot be written (")


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


# ---------------------------------------------------------------- thresholds


def rows_of(page: str) -> list[dict[str, str]]:
    """Return the rows of the table of thresholds: columns by their label, and the command."""
    table = page.split('<table class="thresholds">')[1].split("</table>")[0]
    rows = []
    for body in table.split("<tbody")[1:]:
        row = dict(re.findall(r'data-label="([^"]*)">(.*?)</t[hd]>', body, flags=re.S))
        row = {label: words(cell) for label, cell in row.items()}
        command = re.findall(r"<code>(.*?)</code>", body, flags=re.S)
        row["command"] = unescape(words(command[0])) if command else ""
        row["text"] = words(body.split('class="detail"')[1]) if "detail" in body else ""
        rows.append(row)
    return rows


def write_good_test_images(data: Path, brightness: range) -> None:
    remove(data / "test" / "good")
    for value in brightness:
        write_image(data / "test" / "good" / f"{value:03}.png", value)


def test_the_thresholds_are_counted_on_the_images(tmp_path: Path, data: Path) -> None:
    """Of 20 good test images with the scores 41, 43 to 79, the rate decides how many are above."""
    write_good_test_images(data, range(41, 81, 2))
    rows = rows_of(report(tmp_path, data))
    thresholds = [float(row["threshold"].split()[0]) for row in rows]
    assert thresholds == sorted(thresholds)
    assert thresholds[-1] == 100
    for row, threshold in zip(rows, thresholds, strict=True):
        good = sum(score > threshold for score in range(41, 81, 2))
        found = sum(score > threshold for score in DENT + HOLE)
        assert row["false alarms, good test"].startswith(f"{good} of 20 (")
        assert row["false alarms, held-out good"].startswith("0 of 4 (")
        assert row["defects found"].startswith(f"{found} of 5 (")
        dents = sum(score > threshold for score in DENT)
        assert f"dent {dents}/3" in row["text"]
    # 5 % and 4.8 %, the smallest rate that 20 images support, give the same threshold.
    rates = [row["set for false alarms of"].split(" (")[0] for row in rows]
    assert rates == ["30 %", "20 %", "10 %", "4.8 %", "1 %"]
    assert [bool(row["command"]) for row in rows] == [True, True, True, True, False]
    assert rows[-1]["threshold"] == "100 in use"


def test_the_command_of_a_row_sets_its_threshold(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the folder where the report was made, also where names have spaces."""
    write_good_test_images(data, range(41, 81, 2))
    write_tiny_bundle(tmp_path / "good cells")
    data.rename(tmp_path / "part of 7")
    monkeypatch.chdir(tmp_path)
    for engine in ("auto", "onnxruntime"):
        write_bundle_report(Path("good cells"), Path("part of 7"), Path("r.html"), engine)
        for row in rows_of(Path("r.html").read_text()):
            if not row["command"]:
                continue
            program, name, *flags = shlex.split(row["command"])
            assert [program, name] == ["flawline", "calibrate"]
            assert ("--engine" in flags) == (engine != "auto")
            assert calibrate.main(flags) == 0
            calibration = read_bundle(tmp_path / "good cells").calibration
            assert number(calibration.threshold) == row["threshold"]
            assert calibration.good_images == 20
    last = read_bundle(tmp_path / "good cells").calibration
    codes = re.findall("<code>(.*?)</code>", Path("r.html").read_text(), flags=re.S)
    (undo,) = [code for code in codes if "--undo" in code]
    assert calibrate.main(shlex.split(unescape(words(undo)))[2:]) == 0
    assert read_bundle(tmp_path / "good cells").calibration != last


def test_absolute_paths_are_not_in_the_commands(tmp_path: Path, data: Path) -> None:
    page = report(tmp_path, data)
    assert str(tmp_path) not in page
    commands = [row["command"] for row in rows_of(page) if row["command"]]
    assert commands
    for command in commands:
        assert "--bundle BUNDLE --images DATA/test/good --false-alarm-rate" in command
    assert "BUNDLE and DATA in a command are the folders" in words(page)


def test_without_a_folder_of_their_own_the_user_names_good_parts(
    tmp_path: Path, data: Path
) -> None:
    """A file that cannot be read would stop the calibration, so that folder is not proposed."""
    (data / "test" / "good" / "broken.png").write_bytes(b"no image")
    page = report(tmp_path, data)
    commands = [row["command"] for row in rows_of(page) if row["command"]]
    assert commands
    for command in commands:
        assert "--images GOOD_PARTS " in command
    assert "from GOOD_PARTS, a folder of good parts" in words(page)


def test_equal_scores_support_no_threshold(tmp_path: Path, data: Path) -> None:
    remove(data / "test" / "good")
    for name in ("a", "b"):
        write_image(data / "test" / "good" / f"{name}.png", 50)
    page = report(tmp_path, data)
    assert len(rows_of(page)) == 1
    assert "No other threshold can be set from the good test images: the scores" in words(page)


# ---------------------------------------------------------------- close verdicts, recalibration


def test_only_a_score_near_the_threshold_is_called_close(tmp_path: Path, data: Path) -> None:
    """Good scores deviate by 10, so that 95 to 105 is close to the threshold of 100."""
    write_image(data / "test" / "good" / "004.png", 104)
    page = report(tmp_path, data)
    text = words(page)
    assert "false alarm, close to the threshold · good part score 104 /" in text
    assert "false alarm · good part score 140 /" in text
    assert "missed, close to the threshold · defect: hole score 99 /" in text
    assert "missed · defect: dent score 80 /" in text
    assert text.count("close to the threshold ·") == 2
    assert "differs by at most 5: 0.5 standard deviations of the scores of good images" in text


def test_without_errors_the_far_scores_are_not_called_close(tmp_path: Path, data: Path) -> None:
    for folder, name in (("good", "003"), ("dent", "002"), ("hole", "001")):
        (data / "test" / folder / f"{name}.png").unlink()
    for name in ("dent/002", "hole/001"):
        (data / "ground_truth" / f"{name}_mask.png").unlink()
    text = words(report(tmp_path, data))
    assert "None: all 3 good test images are judged correctly. These have the highest" in text
    assert "judged good · good part score 90 /" in text
    assert "None: all 3 defective test images are judged correctly. These have the lowest" in text
    assert "close to the threshold ·" not in text


def test_found_defects_are_shown_for_each_kind(tmp_path: Path, data: Path) -> None:
    for score in range(150, 160):
        write_image(data / "test" / "scratch" / f"{score}.png", score)
    page = report(tmp_path, data)
    found = page.split("<h2>Found defects</h2>")[1].split("</section>")[0]
    assert found.count("<figure") == 6
    assert found.count("the same image under its anomaly map") == 6
    for kind in ("dent", "hole", "scratch"):
        assert f"defect: {kind}" in found
    # The middle of its kind, neither the best nor the worst.
    assert "test/scratch/154.png" in found
    assert "test/scratch/159.png" not in found


def test_the_report_uses_the_threshold_of_a_recalibration(tmp_path: Path, data: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle")
    parts = tmp_path / "parts"
    for value in range(99):
        write_image(parts / f"{value}.png", 50 + value)
    assert calibrate.main(["--bundle", str(bundle.path), "--images", str(parts)]) == 0
    threshold = read_bundle(bundle.path).calibration.threshold
    write_bundle_report(bundle.path, data, tmp_path / "r.html")
    text = words((tmp_path / "r.html").read_text())
    assert f"with the threshold {number(threshold)}, which was set from 99 good images" in text
    assert "False alarms 0 of 4" in text
    assert f"/ threshold {number(threshold)}" in text
    assert "100 in use" not in text
    assert f"{number(threshold)} in use" in text
    assert "the uncertainty of the threshold" not in text
    assert not re.search(r"threshold 100\b", text)


def test_no_threshold_is_offered_from_images_of_the_training(tmp_path: Path, data: Path) -> None:
    write_good_test_images(data, range(41, 81, 2))
    trained = content_hash(data / "test" / "good" / "045.png")
    page = report(tmp_path, data, trained_images=(trained,))
    assert "from the good test images: the detector was trained on some of them." in words(page)
    assert str(tmp_path) not in page
    assert "--images" not in page


def test_a_threshold_from_the_test_images_is_not_confirmed_by_them(
    tmp_path: Path, data: Path
) -> None:
    write_good_test_images(data, range(41, 81, 2))
    bundle = write_tiny_bundle(tmp_path / "bundle")
    note = "was set from the good test images"
    for flags, circular in (([], False), (["--images", str(data / "test" / "good")], True)):
        if flags:
            flags += ["--bundle", str(bundle.path), "--false-alarm-rate", "0.1"]
            assert calibrate.main(flags) == 0
        write_bundle_report(bundle.path, data, tmp_path / "r.html")
        text = words((tmp_path / "r.html").read_text())
        assert (note in text) == circular
        assert ("consistent with the stated rate" in text) != circular
        assert ("follows from the stated rate, because" in text) == circular


# ---------------------------------------------------------------- speed, size, accessibility


def test_speed_and_size_are_stated_with_the_engine(tmp_path: Path, data: Path) -> None:
    text = words(report(tmp_path, data))
    size = (tmp_path / "bundle" / "model.onnx").stat().st_size
    assert f"Size {size / 1e6:.1f} MB fp32 graph; bundle" in text
    assert re.search(r"Speed [\d.]+ ms per image, onnxruntime [\d.]+ CPU fp32, on", text)
    assert "95 % of 13 images at most" in text
    assert "Measured on the machine below while this report was made" in text


@pytest.mark.parametrize(("load", "busy"), [(1.0, False), (50.0, True)])
def test_a_busy_machine_is_marked(
    load: float, busy: bool, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (load, load, load))
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    text = words(report(tmp_path, data))
    assert ("The machine was busy, with a load of 50.0 on 8 cores" in text) == busy
    assert ("on a busy machine" in text) == busy


def test_images_have_a_description_and_headers_a_scope(tmp_path: Path, data: Path) -> None:
    page = report(tmp_path, data)
    for tag in re.findall("<img[^>]*>", page):
        assert re.search('alt="[^"]{10,}"', tag)
    for tag in re.findall("<svg[^>]*>", page):
        assert re.search("role='img' aria-label='[^']{40,}'", tag)
    headers = re.findall("<th[ >][^>]*", page)
    assert len(headers) > 20
    for tag in headers:
        assert 'scope="' in tag


def test_the_page_stays_small(tmp_path: Path, data: Path) -> None:
    """Noise is the worst case for JPEG: 18 cards of two thumbnails."""
    rng = np.random.default_rng(0)
    for folder in ("good", "dent", "hole"):
        for i in range(6):
            noise = rng.integers(0, 256, (400, 400, 3), dtype=np.uint8)
            cv2.imwrite(str(data / "test" / folder / f"noise{i}.png"), noise)
    assert len(report(tmp_path, data)) < 6e6
