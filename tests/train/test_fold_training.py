"""Trainings with folds: who sees which image, and what survives an interruption."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from torch import Tensor, nn

from flawline.runtime.good_images.folds import blocks, random_fifth
from flawline.runtime.image import Geometry
from flawline.runtime.training_length import TrainingLength
from flawline.train import METHODS, TrainError, fold_training
from flawline.train.checkpoint import Checkpoint, load_checkpoint
from flawline.train.data import DataError
from flawline.train.data.split import content_hashes
from flawline.train.fit import main
from flawline.train.loop import Steps
from flawline.train.method import Fit, Method, MethodSettings
from flawline.train.recipe import Recipe
from flawline.train.training import train

pytestmark = pytest.mark.torch
SIZE = 32
COUNT = 12
SEEN: list[list[int]] = []


class Novelty(Method):
    """The score of an image is 0 if it was trained on, and its grey level otherwise."""

    name: ClassVar[str] = "novelty"
    Settings = MethodSettings
    known: Tensor  # bool [256], by grey level

    def __init__(self, settings: MethodSettings) -> None:
        super().__init__(settings)
        self.register_buffer("known", torch.zeros(256, dtype=torch.bool))

    @classmethod
    def settings_for(cls, backbone: str) -> MethodSettings:
        return MethodSettings("", Geometry("stretch", SIZE, SIZE))

    def fit(self, fit: Fit) -> int:
        levels = [int(image[0, 0, 0]) for image in fit.images]
        SEEN.append(levels)
        self.known[levels] = True
        return fit.steps

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        grey = image[..., 0]
        anomaly_map = torch.where(self.known[grey.long()], 0.0, grey.float())
        return anomaly_map.amax((1, 2)), anomaly_map

    def fused(self) -> nn.Module:
        return self


class Counter(Novelty):
    """The same with 3 optimiser steps."""

    name: ClassVar[str] = "counter"

    def __init__(self, settings: MethodSettings) -> None:
        super().__init__(settings)
        self.weight = nn.Parameter(torch.zeros(1))

    @classmethod
    def steps(cls, settings: Any, images: int, epochs: int | None) -> int:
        return 3

    def fit(self, fit: Fit) -> int:
        super().fit(fit)
        phase = fit.phase("training")
        optimiser = torch.optim.SGD(self.parameters(), lr=0.1)
        steps = Steps(fit, phase, [optimiser], fit.steps)
        return steps.run(iter(range(steps.start, 9)), lambda step, batch: (self.weight - 1) ** 2)


@pytest.fixture(autouse=True)
def methods(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "novelty", f"{__name__}:Novelty")
    monkeypatch.setitem(METHODS, "counter", f"{__name__}:Counter")
    SEEN.clear()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Images of grey level 100, 101 and so on, whose names sort in another way as text."""
    folder = tmp_path / "data"
    folder.mkdir()
    for index in range(COUNT):
        image = np.full((SIZE, SIZE, 3), 100 + index, np.uint8)
        (folder / f"part{index}.png").write_bytes(cv2.imencode(".png", image)[1].tobytes())
    return folder


def recipe(data: Path, method: str = "novelty", **fields: Any) -> Recipe:
    settings = Novelty.settings_for("")
    return Recipe(method, data, settings, device="cpu", **fields)


def trained(data: Path, out: Path, method: str = "novelty", **fields: Any) -> Checkpoint:
    return load_checkpoint(train(recipe(data, method, **fields), out))


def test_each_image_is_scored_once_by_a_detector_that_did_not_see_it(
    data: Path, tmp_path: Path
) -> None:
    checkpoint = trained(data, tmp_path / "c.pt")
    record = checkpoint.out_of_fold
    assert record is not None
    assert record.complete
    paths = sorted(data.iterdir())
    levels = [100 + int(path.stem.removeprefix("part")) for path in paths]
    # An image that was trained on would have score 0.
    assert record.scores().tolist() == levels
    assert record.peaks().tolist() == levels
    assert list(record.images) == content_hashes(paths)
    assert list(checkpoint.trained_on) == content_hashes(paths)
    divisions = [*blocks(paths, 5), random_fifth(paths)]
    assert sorted(SEEN[0]) == sorted(levels)
    for seen, left_out in zip(SEEN[1:], divisions, strict=True):
        assert sorted(seen) == sorted(set(levels) - {levels[index] for index in left_out})
    parts = [*record.folds, record.random]
    for part, left_out in zip(parts, divisions, strict=True):
        assert part is not None
        assert list(part.images) == left_out
        assert part.seen_scores == (0.0,) * len(part.seen)
    # Neighbours by number are left out together.
    assert [sorted(set(range(100, 112)) - set(seen)) for seen in SEEN[1:3]] == [
        [100, 101, 102],
        [103, 104, 105],
    ]


def test_a_hold_out_has_no_record(data: Path, tmp_path: Path) -> None:
    checkpoint = trained(data, tmp_path / "c.pt", folds=0)
    assert checkpoint.out_of_fold is None
    assert len(SEEN) == 1
    assert len(SEEN[0]) == 10
    assert checkpoint.length == TrainingLength(1, 1)


def test_lines_say_how_many_trainings_there_are(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--method", "novelty", "--data", str(data), "--out", str(tmp_path / "c.pt")]
    assert main([*flags, "--folds", "3"]) == 0
    text = capsys.readouterr().err
    assert "5 trainings: on all good images, without each of 3 blocks of them" in text
    assert "fold 2 of 3: training on 8 good images, to score the other 4" in text
    assert load_checkpoint(tmp_path / "c.pt").provenance["folds"] == "3"


@pytest.mark.parametrize("folds", [1, -5])
def test_a_number_of_folds_that_divides_nothing_is_refused(folds: int, data: Path) -> None:
    with pytest.raises(TrainError, match=f"--folds {folds} is neither 0"):
        recipe(data, folds=folds)


def test_copies_of_one_image_are_refused(data: Path, tmp_path: Path) -> None:
    same = tmp_path / "same"
    same.mkdir()
    for index in range(6):
        shutil.copy(data / "part0.png", same / f"{index}.png")
    for folds in (None, 0):
        with pytest.raises(DataError, match="good images are copies of one image"):
            train(recipe(same, folds=folds), tmp_path / "c.pt")


# ---------------------------------------------------------------- interruptions


def test_a_finished_fold_is_not_trained_again(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = trained(data, tmp_path / "whole.pt").out_of_fold
    SEEN.clear()
    fit = Novelty.fit

    def interrupted(self: Novelty, given: Fit) -> int:
        if len(SEEN) == 3:
            raise KeyboardInterrupt
        return fit(self, given)

    out = tmp_path / "c.pt"
    with monkeypatch.context() as patch:
        patch.setattr(Novelty, "fit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(recipe(data), out)
    assert not out.exists()
    assert len(SEEN) == 3  # all images, and two folds
    with pytest.raises(TrainError, match="is from a run with other flags"):
        train(recipe(data, folds=4), out)
    with pytest.raises(TrainError, match="is from a run with other flags"):
        train(recipe(data, folds=0), out)
    assert trained(data, out).out_of_fold == expected
    assert len(SEEN) == 7
    assert not list(tmp_path.glob("*.unfinished*"))


@pytest.mark.parametrize("trainings", [1, 3])
def test_an_unfinished_training_is_not_continued_with_other_images(
    trainings: int, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    SEEN.clear()
    fit = Novelty.fit

    def interrupted(self: Novelty, given: Fit) -> int:
        if len(SEEN) == trainings:
            raise KeyboardInterrupt
        return fit(self, given)

    out = tmp_path / "c.pt"
    with monkeypatch.context() as patch:
        patch.setattr(Novelty, "fit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(recipe(data), out)
    image = sorted(data.rglob("*.png"))[0]
    content = cv2.imencode(".png", np.full((SIZE, SIZE, 3), 90, np.uint8))[1].tobytes()
    assert len(content) == image.stat().st_size
    image.write_bytes(content)
    with pytest.raises(TrainError, match="was trained on other images"):
        train(recipe(data), out)
    image.unlink()
    with pytest.raises(TrainError, match="was trained on other images"):
        train(recipe(data), out)


def test_a_deadline_cuts_a_training_with_steps_at_any_of_them(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = trained(data, tmp_path / "whole.pt", "counter", folds=2)
    out = tmp_path / "c.pt"
    lengths = []
    for _ in range(20):
        checkpoint = trained(data, out, "counter", folds=2, max_minutes=1e-9)
        assert checkpoint.length is not None
        lengths.append(checkpoint.length.steps_done)
        if checkpoint.finished:
            break
        assert checkpoint.missing_phases
        assert checkpoint.provenance["steps"] == f"{lengths[-1]} of 12 steps, cut short"
    # At least one step is done in every run, and none is lost.
    assert lengths == sorted(set(lengths))
    assert lengths[-1] == 12
    assert len(lengths) > 4
    assert checkpoint.out_of_fold == expected.out_of_fold
    assert checkpoint.provenance == expected.provenance
    assert checkpoint.source_sizes == expected.source_sizes
    assert not list(tmp_path.glob("*.unfinished*"))
    assert "continuing " in capsys.readouterr().err


def test_a_deadline_ends_a_closed_form_between_two_trainings(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "c.pt"
    for done in range(2, 8):
        checkpoint = trained(data, out, max_minutes=1e-9)
        assert checkpoint.length == TrainingLength(done, 7)
        assert len(checkpoint.missing_phases) == 7 - done
    assert checkpoint.finished
    assert len(SEEN) == 7


def test_the_unfinished_fold_of_another_training_is_not_continued(
    data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "c.pt"
    for _ in range(4):
        trained(data, out, "counter", folds=2, max_minutes=1e-9)
    fold = tmp_path / "c.unfinished-fold.pt"
    assert fold.exists()
    (tmp_path / "c.unfinished.pt").unlink()
    expected = trained(data, tmp_path / "whole.pt", "counter", folds=2, seed=1)
    assert trained(data, out, "counter", folds=2, seed=1).out_of_fold == expected.out_of_fold
    assert not fold.exists()


def test_chosen_images_are_a_view() -> None:
    images = [np.full((2, 2, 3), index, np.uint8) for index in range(10)]
    chosen = fold_training.ChosenImages(images, [7, 2, 5])
    assert [int(image[0, 0, 0]) for image in chosen] == [7, 2, 5]
    assert chosen[0] is images[7]
    assert [int(image[0, 0, 0]) for image in chosen[1:]] == [2, 5]
