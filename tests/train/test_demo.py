"""The demo data: reproducible, in MVTec AD's layout, and not separable by simple statistics."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from flawline.train.data import DataError, open_data
from flawline.train.data.demo import PRODUCTS, render, write_demo
from flawline.train.data.demo.__main__ import main
from flawline.train.metrics import auroc

pytestmark = pytest.mark.torch

PAIRS = [(name, defect) for name, product in PRODUCTS.items() for defect in product.defects]
GOOD_PAIRS = [(name, None) for name in PRODUCTS]
# Numbers of images that write_demo makes by default. The seeds count on through training, good test
# and defective images.
TRAIN = 100
GOOD = 30
PER_DEFECT = 10
STATISTICS = ("mean", "std", "power", "slope", "edges")


def statistics(image: np.ndarray) -> list[float]:
    """Return the simple statistics of an image that STATISTICS names."""
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY).astype(np.float32)
    gx = cv2.Sobel(grey, cv2.CV_32F, 1, 0)
    gy = cv2.Sobel(grey, cv2.CV_32F, 0, 1)
    power = gx * gx + gy * gy
    edges = abs(gx) + abs(gy)
    values = (grey.mean(), grey.std(), power.mean(), np.sqrt(power).mean(), edges.mean())
    return [float(value) for value in values]


def thumbnail(image: np.ndarray) -> np.ndarray:
    """Return an image reduced to 8x8 grey values, [64]."""
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY).astype(np.float32)
    small = cv2.resize(grey, (8, 8), interpolation=cv2.INTER_AREA)
    return small.ravel().astype(np.float64)


def strangeness(train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Return the squared Mahalanobis distance of each row of `test` from the rows of `train`.

    The covariance is shrunk a little.
    """
    covariance = np.cov(train.T)
    size = len(covariance)
    covariance += np.eye(size) * (1e-3 * np.trace(covariance) / size)
    difference = test - train.mean(0)
    return np.asarray((difference * np.linalg.solve(covariance, difference.T).T).sum(1))


# ---------------------------------------------------------------- rendering


@pytest.mark.parametrize(("product", "defect"), [*PAIRS, *GOOD_PAIRS])
def test_render_repeats_its_bytes_in_any_order(product: str, defect: str | None) -> None:
    image, mask = render(product, defect, 5, 96)
    for other in PRODUCTS:
        render(other, None, 6, 96)
    np.random.default_rng(0).random(10)
    again, mask_again = render(product, defect, 5, 96)
    assert np.array_equal(image, again)
    assert np.array_equal(mask, mask_again)
    assert not np.array_equal(image, render(product, defect, 6, 96)[0])


def test_render_does_not_depend_on_the_hash_seed() -> None:
    code = (
        "import zlib; from flawline.train.data.demo import PRODUCTS, render; "
        "print([zlib.crc32(render(p, d, 3, 64)[0].tobytes())"
        " for p in PRODUCTS for d in PRODUCTS[p].defects])"
    )
    outputs = set()
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={
                **os.environ,
                "PYTHONHASHSEED": hash_seed,
                "PYTHONPATH": os.pathsep.join(sys.path),
            },
            capture_output=True,
            text=True,
            check=True,
        )
        outputs.add(done.stdout)
    assert len(outputs) == 1


@pytest.mark.parametrize("product", PRODUCTS)
def test_a_good_image_has_an_empty_mask(product: str) -> None:
    image, mask = render(product, None, 4)
    assert image.shape == (320, 320, 3)
    assert mask.shape == (320, 320)
    assert image.dtype == mask.dtype == np.uint8
    assert not mask.any()


def test_a_monochrome_camera_sees_no_colour() -> None:
    for name, product in PRODUCTS.items():
        image, _ = render(name, None, 4, 64)
        is_grey = (image == image[..., :1]).all()
        assert is_grey == product.monochrome, name


@pytest.mark.parametrize(("product", "defect"), PAIRS)
@pytest.mark.parametrize("size", [64, 320])
def test_a_defective_image_has_a_mask(product: str, defect: str, size: int) -> None:
    for seed in range(4):
        image, mask = render(product, defect, seed, size)
        assert image.shape == (*mask.shape, 3) == (size, size, 3)
        assert set(np.unique(mask)) == {0, 255}, seed
        assert (mask > 0).mean() < 0.2 * (320 / size), seed


@pytest.mark.parametrize(("product", "defect"), PAIRS)
def test_a_defect_changes_the_piece_inside_its_mask_only(product: str, defect: str) -> None:
    # Blur and shadow extend beyond the defect's geometry.
    grown = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (13, 13))
    for seed in range(200, 203):
        good = render(product, None, seed)[0].astype(np.float32)
        image, mask = render(product, defect, seed)
        change = np.abs(image - good).max(2)
        inside = mask > 0
        outside = cv2.dilate(mask, grown) == 0
        assert change[outside].mean() < 0.25, seed
        assert change[inside].mean() > 10 * change[outside].mean(), seed
        assert change[inside].max() >= 10, seed


Measured = dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]


@pytest.fixture(scope="module", params=[96, pytest.param(320, marks=pytest.mark.slow)])
def default_set(request: pytest.FixtureRequest) -> Measured:
    """Statistics, thumbnails and labels of as many images of each product as write_demo makes.

    The labels are 0 for training, 1 for good and 2 for defective test images.
    """
    measured = {}
    for name, product in PRODUCTS.items():
        kinds: list[str | None] = [None] * (TRAIN + GOOD)
        for defect in product.defects:
            kinds += [defect] * PER_DEFECT
        values = []
        small = []
        for seed, kind in enumerate(kinds):
            image, _ = render(name, kind, seed, request.param)
            values.append(statistics(image))
            small.append(thumbnail(image))
        defective = len(kinds) - TRAIN - GOOD
        labels = np.array([0] * TRAIN + [1] * GOOD + [2] * defective)
        measured[name] = (np.array(values), np.array(small), labels)
    return measured


@pytest.mark.parametrize("product", PRODUCTS)
def test_no_simple_statistic_separates_good_from_defective(
    product: str, default_set: Measured
) -> None:
    values, small, labels = default_set[product]
    test = labels > 0
    defective = labels[test] == 2
    scores = dict(zip(STATISTICS, values[test].T, strict=True))
    scores["thumbnail"] = strangeness(small[labels == 0], small[test])
    for name, score in scores.items():
        area = auroc(defective, score)
        assert 0.3 <= area <= 0.7, name


@pytest.mark.parametrize("product", PRODUCTS)
def test_training_and_good_test_images_are_similar(product: str, default_set: Measured) -> None:
    values, _, labels = default_set[product]
    good = labels < 2
    is_test = labels[good] == 1
    for name, score in zip(STATISTICS, values[good].T, strict=True):
        assert 0.3 <= auroc(is_test, score) <= 0.7, name


# ---------------------------------------------------------------- writing the set


def small_set(root: Path, seed: int = 0, per_defect: int = 1, size: int = 64) -> Path:
    return write_demo(root, ("weave", "board"), 2, 1, per_defect, size, seed)


def test_the_layout_is_that_of_mvtec(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        steps.append((done, total))

    root = write_demo(tmp_path, ["metal"], 2, 1, 1, 64, 0, progress)
    assert root == tmp_path
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    expected = {
        "demo.json",
        "metal/train/good/000.png",
        "metal/train/good/001.png",
        "metal/test/good/000.png",
    }
    defects = PRODUCTS["metal"].defects
    for defect in defects:
        expected.add(f"metal/test/{defect}/000.png")
        expected.add(f"metal/ground_truth/{defect}/000_mask.png")
    assert names == expected
    assert steps == [(done, 7) for done in range(1, 8)]
    assert [sample.defect for sample in open_data(tmp_path / "metal").test] == [
        "contamination",
        "dent",
        None,
        "scratch",
        "stain",
    ]
    # The fourth image is the first defective one; its seed is its place in the plan.
    image, mask = render("metal", defects[0], 3, 64)
    for file, rendered in (
        (f"test/{defects[0]}/000.png", image),
        (f"ground_truth/{defects[0]}/000_mask.png", mask),
    ):
        stored = cv2.imread(str(tmp_path / "metal" / file), cv2.IMREAD_UNCHANGED)
        assert stored is not None
        assert np.array_equal(stored, rendered)


def test_an_equal_set_is_left_as_it_is(tmp_path: Path) -> None:
    small_set(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    small_set(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_an_incomplete_set_is_completed(tmp_path: Path) -> None:
    small_set(tmp_path)
    lost = tmp_path / "weave/train/good/001.png"
    data = lost.read_bytes()
    lost.unlink()
    small_set(tmp_path)
    assert lost.read_bytes() == data


@pytest.mark.parametrize("changes", [{"seed": 1}, {"per_defect": 2}, {"size": 80}])
def test_another_set_is_refused(tmp_path: Path, changes: dict[str, int]) -> None:
    small_set(tmp_path)
    with pytest.raises(DataError, match="another demo set"):
        small_set(tmp_path, **changes)


def test_a_damaged_marker_is_another_set(tmp_path: Path) -> None:
    small_set(tmp_path)
    (tmp_path / "demo.json").write_text("{")
    with pytest.raises(DataError, match="another demo set"):
        small_set(tmp_path)


def test_other_images_are_refused_and_not_changed(tmp_path: Path) -> None:
    other = tmp_path / "weave/train/good/holiday.png"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"x")
    with pytest.raises(DataError, match="another demo set"):
        small_set(tmp_path)
    assert other.read_bytes() == b"x"


def test_another_seed_is_another_set(tmp_path: Path) -> None:
    a, b = small_set(tmp_path / "a"), small_set(tmp_path / "b", seed=1)
    name = "weave/train/good/000.png"
    assert (a / name).read_bytes() != (b / name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("velvet", None, 0), "unknown product"),
        (("metal", "thread_pull", 0), "has no defect"),
        (("metal", None, -1), "seed"),
        (("metal", None, 0, 16), "size"),
    ],
)
def test_render_refuses_what_it_does_not_know(arguments: tuple[object, ...], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        render(*arguments)  # type: ignore[arg-type]


def test_the_command_writes_a_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--train-good", "1", "--test-good", "1", "--per-defect", "1", "--size", "64"]
    assert main(["--out", str(tmp_path), "--products", "weave", *few]) == 0
    assert "demo images: 100%" in capsys.readouterr().err
    assert (tmp_path / "weave/test/hole/000.png").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--products", "velvet"], "velvet"),
        (["--products", "velvet"], ", ".join(PRODUCTS)),
        (["--train-good", "-1"], "0 or more"),
        (["--seed", "many"], "invalid int"),
        (["--colour"], "--colour"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status: object = main(["--out", str(tmp_path / "set"), *flags])
    except SystemExit as left:  # raised by argparse
        status = left.code
    error = capsys.readouterr().err
    assert status == 2
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "set").exists()


def test_a_file_in_the_way_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "set").write_text("a file")
    assert main(["--out", str(tmp_path / "set"), "--products", "metal", "--size", "64"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
