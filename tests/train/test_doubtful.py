"""Doubtful images: which ones the others do not support, and what a person is shown."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from builders import write_squares

from flawline.export import build
from flawline.runtime.bundle import read_bundle
from flawline.runtime.image import Geometry
from flawline.runtime.tiles import TileGrid, Tiling
from flawline.train import METHODS, fit
from flawline.train.backbones import create_backbone
from flawline.train.checkpoint import load_checkpoint
from flawline.train.data import hold_out, open_data
from flawline.train.data.split import content_hashes
from flawline.train.doubtful import support as support_module
from flawline.train.doubtful.descriptors import VALUES, Describer, Report
from flawline.train.doubtful.files import DoubtfulFiles, with_checksum
from flawline.train.doubtful.support import lies_still, measure_support
from flawline.train.progress import no_progress

pytestmark = pytest.mark.torch
GRID = (4, 5)
IMAGES = 30


def descriptors(images: int = IMAGES, places: int = 20, seed: int = 0) -> np.ndarray:
    """Descriptors of parts that lie still: each place has its own, with a little noise."""
    rng = np.random.default_rng(seed)
    of_places = rng.normal(0, 1, (places, 1, 16))
    noise = rng.normal(0, 0.1, (places, images, 16))
    return (of_places + noise).astype(np.float16)


class Given:
    """Gives descriptors that are known, and notes which images are described together."""

    grid = GRID

    def __init__(self, values: np.ndarray) -> None:
        self.values = values
        self.places = len(values)
        self.asked: list[list[int]] = []

    def describe(self, chosen: list[int], report: Report) -> np.ndarray:
        self.asked.append(list(chosen))
        for done in range(len(chosen)):
            report(done + 1)
        return self.values[:, chosen]


def measured(values: np.ndarray, contents: list[str] | None = None) -> support_module.Support:
    images = [str(number) for number in range(values.shape[1])]
    return measure_support(Given(values), contents or images, no_progress)


# ---------------------------------------------------------------- support


def test_the_distance_is_that_to_the_second_nearest_image_around_the_place() -> None:
    values = descriptors()
    found = measured(values)
    assert found.lies_still
    x = values.astype(np.float64)
    for image, place in ((0, 0), (7, 9), (29, 19)):
        row, column = divmod(place, GRID[1])
        nearest = []
        for other in range(IMAGES):
            if other == image:
                continue
            distances = []
            for near_row in range(max(0, row - 1), min(GRID[0], row + 2)):
                for near_column in range(max(0, column - 1), min(GRID[1], column + 2)):
                    near = x[near_row * GRID[1] + near_column, other]
                    distances.append(np.linalg.norm(x[place, image] - near))
            nearest.append(min(distances))
        assert found.distances[image, place] == pytest.approx(sorted(nearest)[1], rel=1e-3)


def test_what_the_others_do_not_have_is_doubtful_and_comes_first() -> None:
    values = descriptors()
    values[3, 11] += 2
    values[8:10, 5] += 1
    found = measured(values)
    assert found.doubtful[:2] == [11, 5]
    assert found.deviations[11] > found.deviations[5] > support_module.LIMIT
    # The limit follows the others, not the outliers.
    assert found.limit < 1.1 * np.sort(found.distances[0])[-8:].mean()


def test_a_fault_that_two_images_share_does_not_hide_itself() -> None:
    values = descriptors()
    values[3, [11, 12]] += 2
    assert set(measured(values).doubtful[:2]) == {11, 12}


def test_copies_of_an_image_do_not_support_each_other() -> None:
    """They have the same content, whatever their names are."""
    values = descriptors()
    values[3, 10:14] = values[3, 10] + 2
    contents = [str(number) for number in range(IMAGES)]
    hidden = measured(values)
    assert not {10, 11, 12, 13} & set(hidden.doubtful[:4])
    contents[10:14] = ["same"] * 4
    assert set(measured(values, contents).doubtful[:4]) == {10, 11, 12, 13}


def test_parts_that_do_not_lie_still_are_compared_at_all_places() -> None:
    rng = np.random.default_rng(1)
    values = descriptors()
    for image in range(IMAGES):
        values[:, image] = values[rng.permutation(len(values)), image]
    assert not lies_still(values, GRID, range(IMAGES))
    values[3, 11] += 2
    found = measured(values)
    assert not found.lies_still
    assert found.doubtful[0] == 11
    x = values.astype(np.float64)
    distances = np.linalg.norm(x - x[7, 4], axis=-1).min(0)
    expected = sorted(np.delete(distances, 4))[1]
    assert found.distances[4, 7] == pytest.approx(expected, rel=1e-3)


def test_everywhere_some_places_of_some_images_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support_module, "MOST_REFERENCES_EVERYWHERE", 6)
    monkeypatch.setattr(support_module, "MOST_ROWS_EVERYWHERE", 60)
    values = descriptors()
    contents = list(range(IMAGES))
    comparison = support_module.Comparison(values, GRID, contents, None)
    assert comparison.known.shape == (10, 6, 16)
    found = comparison.distances(values[:, :3], contents[:3])
    every = support_module.Comparison(values, GRID, contents, 4).distances(values[:, :3], [0, 1, 2])
    assert (found >= every - 1e-3).all()
    # The first image is one of the six, and does not support itself.
    assert found.min() > 0.1


def test_many_images_are_compared_with_some(monkeypatch: pytest.MonkeyPatch) -> None:
    values = descriptors()
    values[3, 11] += 2
    every = measured(values).distances
    monkeypatch.setattr(support_module, "CHUNK", 7)
    assert np.allclose(measured(values).distances, every, rtol=1e-3)
    monkeypatch.setattr(support_module, "MOST_REFERENCES", 10)
    images = Given(values)
    steps = []
    contents = list(range(IMAGES))
    some = measure_support(images, contents, lambda *step: steps.append(step))
    assert (some.distances >= every - 1e-4).all()
    assert some.doubtful[0] == 11
    # Only the references are described together; each image is described once.
    assert [len(chosen) for chosen in images.asked] == [10, 7, 7, 6]
    assert sorted(itertools.chain(*images.asked)) == contents
    compared = [done for label, done, total in steps if label == support_module.COMPARING]
    assert compared == [7, *range(10, IMAGES + 1)]


def test_images_with_many_places_are_compared_with_fewer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(support_module, "MOST_ROWS", 160)
    images = Given(descriptors())
    measure_support(images, list(range(IMAGES)), no_progress)
    assert len(images.asked[0]) == 8
    monkeypatch.setattr(support_module, "MOST_ROWS", 1)
    images = Given(descriptors())
    measure_support(images, list(range(IMAGES)), no_progress)
    assert len(images.asked[0]) == support_module.SUPPORTERS + 1


def test_equal_images_are_not_doubtful() -> None:
    values = np.repeat(descriptors()[:, :1], IMAGES, axis=1)
    found = measured(values)
    assert found.doubtful == []
    assert np.isfinite(found.deviations).all()
    assert measured(values, ["one"] * IMAGES).doubtful == []


# ---------------------------------------------------------------- descriptors


def test_descriptors_are_of_places_of_the_input() -> None:
    """The tiles of an image have its places one after the other."""
    backbone = create_backbone("resnet18", (2, 3))
    backbone.load("texture")
    backbone.eval()
    frames = [
        np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8) for number in range(3)
    ]
    whole = described(Describer(frames, backbone))
    assert whole.shape == (16, 3, VALUES)
    assert np.abs(whole.astype(np.float32).mean((0, 1))).max() < 0.01
    tiles = TileGrid(Tiling(2, 1, 0.5), Geometry("stretch", 64, 64))
    wide = [np.concatenate([frame, frame[:, :32]], 1) for frame in frames]
    describer = Describer(wide, backbone, tiles)
    tiled = described(describer)
    assert tiled.shape == (describer.places, 3, VALUES) == (32, 3, VALUES)
    assert describer.grid == (4, 4)
    changed = wide[1].copy()
    changed[:, 70:] = 0
    # Only the second tile sees the change.
    describer.frames = [wide[0], changed, wide[2]]
    change = np.abs(described(describer).astype(np.float32) - tiled)[:, 1].max(1)
    assert change[:16].max() == 0 < change[16:].max()


def described(describer: Describer) -> np.ndarray:
    done: list[int] = []
    found = describer.describe(range(len(describer.frames)), done.append)
    assert done == [1, 2, 3]
    return found


# ---------------------------------------------------------------- commands


@pytest.fixture(scope="module")
def contaminated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty good images, and two defective ones among them."""
    root = write_squares(tmp_path_factory.mktemp("data") / "squares")
    for number in range(2):
        shutil.copy(root / f"test/square/{number:03d}.png", root / f"train/good/bad{number}.png")
        (root / f"test/square/{number:03d}.png").unlink()
    return root


def train(data: Path, out: Path, *flags: str) -> int:
    words = ["--method", "padim", "--weights", "texture", "--size", "64", "--folds", "0"]
    return fit.main(["--data", str(data), "--out", str(out), *words, *flags])


def test_a_training_lists_doubtful_images_and_another_leaves_out_those_of_a_list(
    contaminated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "part.pt"
    files = DoubtfulFiles(out)
    assert train(contaminated, out) == 0
    messages = capsys.readouterr().err
    assert messages.count(f"remove what is good from {files.list}") == 1
    # Its bars may hide that.
    assert f"note: doubtful good images are in {files.list}" in messages
    lines = files.list.read_text().splitlines()
    listed = [line for line in lines if not line.startswith("#")]
    assert {"train/good/bad0.png", "train/good/bad1.png"} == set(listed[:2])
    picture = cv2.imread(str(files.picture))
    assert picture.shape[1] > 4 * 256

    chosen = tmp_path / "chosen.txt"
    chosen.write_text("\n".join(listed[:2]))
    assert train(contaminated, out, "--exclude-images", str(chosen)) == 0
    messages = capsys.readouterr().err
    assert "20 good images to train and set the threshold" in messages
    assert "remove what is good" not in messages
    checkpoint = load_checkpoint(out)
    bad = content_hashes([contaminated / name for name in listed[:2]])
    assert checkpoint.excluded == tuple(sorted(bad))
    assert checkpoint.provenance["excluded_images"] == "2"
    assert not set(bad) & set(checkpoint.trained_on)

    bundle = tmp_path / "bundle"
    words = ["--checkpoint", str(out), "--out", str(bundle), "--precision", "fp32"]
    assert build.main([*words, "--engine", "none"]) == 0
    manifest = read_bundle(bundle).manifest
    assert manifest.excluded_images == tuple(sorted(bad))
    assert manifest.provenance["train_excluded_images"] == "2"
    rest = [path for path in open_data(contaminated).train_good if "bad" not in path.name]
    assert read_bundle(bundle).calibration.good_images == len(hold_out(rest)[1])


def test_a_training_without_doubtful_images_removes_the_files_of_an_earlier_one(
    contaminated: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "part.pt"
    files = DoubtfulFiles(out)
    files.list.write_bytes(with_checksum(b"x\n"))
    files.picture.write_text("x")
    monkeypatch.setattr(support_module, "LIMIT", 1000.0)
    assert train(contaminated, out) == 0
    assert "no good image is doubtful" in capsys.readouterr().err
    assert not files.list.exists()
    assert not files.picture.exists()


def test_a_list_that_a_person_changed_is_not_replaced(
    contaminated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "part.pt"
    files = DoubtfulFiles(out)
    assert train(contaminated, out) == 0
    # As it was written, it is.
    assert train(contaminated, out, "--again") == 0
    text = files.list.read_text().replace("train/good/bad0.png\n", "")
    files.list.write_text(text)
    capsys.readouterr()
    assert train(contaminated, out, "--again") == 2
    message = capsys.readouterr().err
    assert f"{files.list} was changed since a training wrote it" in message
    assert f"train with --exclude-images {files.list}, move it away, or" in message
    assert files.list.read_text() == text
    assert train(contaminated, out, "--again", "--no-doubtful") == 0
    assert files.list.read_text() == text


def test_a_method_without_a_backbone_borrows_one(
    contaminated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "toy", "toys.method:MeanImage")
    out = tmp_path / "part.pt"
    words = ["--method", "toy", "--size", "64", "--folds", "0", "--tiles", "2x1"]
    assert fit.main(["--data", str(contaminated), "--out", str(out), *words]) == 0
    assert "train/good/bad0.png" in DoubtfulFiles(out).list.read_text()


def test_the_search_can_be_left_out_or_asked_for(
    contaminated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "part.pt"
    files = DoubtfulFiles(out)
    assert train(contaminated, out, "--no-doubtful") == 0
    assert not files.list.exists()
    files.list.write_text("train/good/bad0.png")
    capsys.readouterr()
    flags = ("--exclude-images", str(files.list), "--doubtful")
    assert train(contaminated, out, *flags) == 2
    assert "would be replaced" in capsys.readouterr().err
    assert files.list.read_text() == "train/good/bad0.png"
