"""The demo data: reproducible, in the layout of MVTec AD, and not to be solved by one number of a picture."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import pytest

from flawline.train.data.demo import PRODUCTS, render, write_demo
from flawline.train.data.demo.__main__ import main
from flawline.train.metrics import auroc

pytestmark = pytest.mark.torch
ROOT = Path(__file__).resolve().parents[2]
KINDS = [(product, defect) for product, defects in PRODUCTS.items() for defect in defects]
# what write_demo makes by default: its seeds count on through training, good test and defective pictures
TRAIN, GOOD, EACH = 100, 30, 10


def numbers(image: np.ndarray) -> tuple[list[float], np.ndarray]:
    """The simple statistics of a picture and its 8x8 thumbnail."""
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY).astype(np.float32)
    gx, gy = cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1)
    power = gx * gx + gy * gy
    values = [
        grey.mean(),
        grey.std(),
        power.mean(),
        np.sqrt(power).mean(),
        (abs(gx) + abs(gy)).mean(),
    ]
    return [float(v) for v in values], cv2.resize(
        grey, (8, 8), interpolation=cv2.INTER_AREA
    ).ravel()


def rendered_numbers(
    product: str, defect: str | None, seed: int, size: int
) -> tuple[list[float], np.ndarray]:
    return numbers(render(product, defect, seed, size)[0])


def strangeness(train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Squared Mahalanobis distance of each row of `test` from the rows of `train`, with a little shrinkage."""
    cov = np.cov(train.T)
    cov += np.eye(len(cov)) * (1e-3 * np.trace(cov) / len(cov))
    off = test - train.mean(0)
    return np.asarray((off * np.linalg.solve(cov, off.T).T).sum(1))


@pytest.mark.parametrize(
    ("product", "defect"), [*KINDS, *((product, None) for product in PRODUCTS)]
)
def test_render_repeats_its_bytes_in_any_order(product: str, defect: str | None) -> None:
    first = render(product, defect, 5, 96)
    for other in PRODUCTS:
        render(other, None, 6, 96)
    np.random.default_rng(0).random(10)
    again = render(product, defect, 5, 96)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], render(product, defect, 6, 96)[0])


def test_render_does_not_depend_on_the_hash_seed() -> None:
    code = (
        "import zlib; from train.demo import PRODUCTS, render; "
        "print([zlib.crc32(render(p, d, 3, 96)[0].tobytes()) for p in PRODUCTS for d in PRODUCTS[p]])"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": h},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for h in ("1", "2")
    }
    assert len(seen) == 1


@pytest.mark.parametrize("product", PRODUCTS)
def test_a_good_picture_has_an_empty_mask(product: str) -> None:
    image, mask = render(product, None, 4)
    assert image.shape == (320, 320, 3)
    assert mask.shape == (320, 320)
    assert image.dtype == mask.dtype == np.uint8
    assert not mask.any()


@pytest.mark.parametrize(("product", "defect"), KINDS)
@pytest.mark.parametrize("size", [64, 320])
def test_a_defective_picture_has_a_mask(product: str, defect: str, size: int) -> None:
    for seed in range(4):
        image, mask = render(product, defect, seed, size)
        assert image.shape == (*mask.shape, 3) == (size, size, 3)
        assert set(np.unique(mask)) == {0, 255}, seed
        assert (mask > 0).mean() < 0.2 * (320 / size), seed


@pytest.mark.parametrize(("product", "defect"), KINDS)
def test_a_defect_changes_the_piece_inside_its_mask_only(product: str, defect: str) -> None:
    grown = cv2.getStructuringElement(
        cv2.MORPH_ELLIPSE, (13, 13)
    )  # blur and shadow reach past the geometry
    for seed in range(200, 203):
        good = render(product, None, seed)[0].astype(np.float32)
        image, mask = render(product, defect, seed)
        change = np.abs(image - good).max(2)
        inside, near = mask > 0, cv2.dilate(mask, grown) > 0
        assert change[~near].mean() < 0.25, seed
        assert change[inside].mean() > 10 * change[~near].mean(), seed
        assert change[inside].max() >= 10, seed


@pytest.fixture(scope="module", params=[160, pytest.param(320, marks=pytest.mark.slow)])
def default_set(
    request: pytest.FixtureRequest,
) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Per product the statistics, the thumbnails and the labels (0 train, 1 good, 2 defective) of as many pictures
    as write_demo makes: at half its size, and slowly at its size."""
    plan = {
        p: [None] * (TRAIN + GOOD) + [d for d in defects for _ in range(EACH)]
        for p, defects in PRODUCTS.items()
    }
    jobs = [
        (product, kind, seed, request.param)
        for product, kinds in plan.items()
        for seed, kind in enumerate(kinds)
    ]
    with ProcessPoolExecutor(2, get_context("spawn"), cv2.setNumThreads, (1,)) as pool:
        rows = dict(
            zip(
                jobs,
                pool.map(rendered_numbers, *zip(*jobs, strict=True), chunksize=20),
                strict=True,
            )
        )
    found = {}
    for product, kinds in plan.items():
        mine = [rows[product, kind, seed, request.param] for seed, kind in enumerate(kinds)]
        labels = np.array([0] * TRAIN + [1] * GOOD + [2] * (len(kinds) - TRAIN - GOOD))
        found[product] = (
            np.array([r[0] for r in mine]),
            np.array([r[1] for r in mine], np.float64),
            labels,
        )
    return found


@pytest.mark.parametrize("product", PRODUCTS)
def test_no_shortcut_tells_good_from_defective(
    product: str, default_set: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]
) -> None:
    values, small, labels = default_set[product]
    bad = labels[labels > 0] == 2
    scores = {
        name: values[labels > 0, k]
        for k, name in enumerate(("mean", "std", "power", "slope", "edges"))
    }
    scores["thumbnail"] = strangeness(small[labels == 0], small[labels > 0])
    worst = {name: max(auroc(bad, s), 1 - auroc(bad, s)) for name, s in scores.items()}
    assert max(worst.values()) <= 0.70, worst


@pytest.mark.parametrize("product", PRODUCTS)
def test_training_and_good_test_pictures_are_alike(
    product: str, default_set: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]
) -> None:
    values, _, labels = default_set[product]
    alike = [auroc(labels[labels < 2] == 1, column) for column in values[labels < 2].T]
    assert all(0.3 <= area <= 0.7 for area in alike), alike


def small_set(root: Path, seed: int = 0, per_defect: int = 1, size: int = 64) -> Path:
    return write_demo(root, ("weave", "board"), 2, 1, per_defect, size, seed)


def test_the_layout_is_that_of_mvtec(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    assert (
        write_demo(
            tmp_path, ["metal"], 2, 1, 1, 64, 0, lambda done, total: steps.append((done, total))
        )
        == tmp_path
    )
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    kinds = PRODUCTS["metal"]
    assert names == (
        {
            "demo.json",
            "metal/train/good/000.png",
            "metal/train/good/001.png",
            "metal/test/good/000.png",
        }
        | {f"metal/test/{kind}/000.png" for kind in kinds}
        | {f"metal/ground_truth/{kind}/000_mask.png" for kind in kinds}
    )
    assert steps == [(k + 1, 7) for k in range(7)]
    # the fourth picture is the first defective one: its seed is its place in the plan
    image, mask = render("metal", kinds[0], 3, 64)
    for folder, stored in (
        (f"test/{kinds[0]}/000.png", image),
        (f"ground_truth/{kinds[0]}/000_mask.png", mask),
    ):
        found = cv2.imread(str(tmp_path / "metal" / folder), cv2.IMREAD_UNCHANGED)
        assert found is not None
        assert np.array_equal(found, stored)


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
    with pytest.raises(ValueError, match="another demo set"):
        small_set(tmp_path, **changes)


def test_pictures_of_someone_else_are_refused_and_kept(tmp_path: Path) -> None:
    theirs = tmp_path / "weave/train/good/holiday.png"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"x")
    with pytest.raises(ValueError, match="another demo set"):
        small_set(tmp_path)
    assert theirs.read_bytes() == b"x"


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
    assert capsys.readouterr().err.endswith("6/6 pictures\n")
    assert (tmp_path / "weave/test/hole/000.png").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--products", "velvet"], "velvet"),
        (["--products", "velvet"], ", ".join(PRODUCTS)),
        (["--train-good", "-1"], "0 or more"),
        (["--seed", "many"], "invalid int"),
        (["--colour"], "--colour"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    try:
        code: object = main(["--out", str(tmp_path / "set"), *arguments])
    except SystemExit as left:  # argparse leaves by itself
        code = left.code
    told = capsys.readouterr().err
    assert code == 2
    assert said in told
    assert told.count("\n") == 1
    assert not (tmp_path / "set").exists()


def test_a_file_in_the_way_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "set").write_text("a file")
    assert main(["--out", str(tmp_path / "set"), "--products", "metal", "--size", "64"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
