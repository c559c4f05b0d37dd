"""The contact sheet of synthetic anomalies and its command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from flawline.train import METHODS
from flawline.train.anomalies.__main__ import main
from flawline.train.anomalies.blend import Blended
from flawline.train.anomalies.products import TEXTURE_SETTINGS
from flawline.train.anomalies.sheet import GAP, NAME_HEIGHT, RED, ROWS, TITLE_HEIGHT, contact_sheet
from flawline.train.data.demo import render, write_demo
from flawline.train.methods.ssnf import SSNF
from flawline.train.saliency.base import SaliencyNetwork

pytestmark = pytest.mark.torch


class Channels(SaliencyNetwork):
    """A network with two levels: the image in two sizes."""

    strides = (1, 2)
    title = "a test"

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, image: Any) -> Any:
        fine = image.permute(0, 3, 1, 2) * self.weight
        coarse = torch.nn.functional.avg_pool2d(fine, 2)
        return [fine, coarse], coarse.mean((2, 3))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("demo")
    return write_demo(root, ["weave"], train_good=4, test_good=1, per_defect=1, size=96) / "weave"


def test_the_sheet_shows_the_images_and_outlines_the_patches() -> None:
    images = [render("weave", None, seed, 96)[0] for seed in range(5)]
    blended = Blended(images, TEXTURE_SETTINGS, 0)
    samples = [blended.sample(draw) for draw in range(2)]
    sheet = contact_sheet(samples, ["a", "b"], "title")
    for normal, synthetic, mask in samples:
        for image in (normal, synthetic):
            difference = cv2.matchTemplate(sheet, image, cv2.TM_SQDIFF)
            assert difference.min() < 1e-6 * difference.max()
        assert mask.any()
    red = (sheet == RED).all(2)
    assert red.sum() > 50
    # Only the last row has outlines.
    assert np.nonzero(red)[0].min() > len(sheet) * (len(ROWS) - 1) / len(ROWS) * 0.9


def test_the_same_command_writes_the_same_sheet(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheets = []
    for seed, name in (("0", "a.png"), ("0", "b/b.png"), ("1", "c.png")):
        out = tmp_path / name
        flags = ["--method", "ssnf", "--count", "3", "--size", "64", "--seed", seed]
        assert main(["--data", str(data), *flags, "--out", str(out)]) == 0
        sheets.append(cv2.imread(str(out)))
    assert f"no product-specific blend settings for {data}" in capsys.readouterr().err
    assert sheets[0].shape[0] > 3 * 64
    assert sheets[0].shape[1] > 3 * 64
    assert np.array_equal(sheets[0], sheets[1])
    assert not np.array_equal(sheets[0], sheets[2])


def test_the_command_logs_the_settings_and_empty_anomalies(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--method", "ssnf", "--count", "2", "--size", "64", "--out", str(tmp_path / "a.png")]
    assert main(["--data", str(data), "--product", "bottle", *flags]) == 0
    assert "blend settings of bottle\n" in capsys.readouterr().err
    bottle = tmp_path / "bottle"
    (bottle / "train/good").mkdir(parents=True)
    for number in range(2):
        plain = np.full((64, 64, 3), 230, np.uint8)
        cv2.imwrite(str(bottle / f"train/good/{number}.png"), plain)
    assert main(["--data", str(bottle), *flags]) == 0
    log = capsys.readouterr().err
    assert "blend settings of bottle, the name of the data folder" in log
    assert "2 of 2 synthetic anomalies are empty" in log


def test_anomalies_with_stages_are_drawn_with_all_of_them(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flawline.train.methods.cutswap.open_network", lambda name: Channels())
    for method, rows in (("cutpaste", 6), ("cutswap", 10), ("spd", 7)):
        out = tmp_path / f"{method}.png"
        flags = ["--method", method, "--count", "2", "--size", "64", "--out", str(out)]
        if method == "cutswap":
            flags += ["--saliency", "lite0"]
        assert main(["--data", str(data), *flags]) == 0
        sheet = cv2.imread(str(out))
        assert sheet.shape[0] == TITLE_HEIGHT + rows * (64 + GAP) + NAME_HEIGHT


class AlsoBlends(SSNF):
    """A second method that trains with synthetic anomalies."""


def test_with_several_methods_that_have_anomalies_one_must_be_named(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "second", f"{__name__}:AlsoBlends")
    flags = ["--data", str(data), "--out", str(tmp_path / "a.png"), "--count", "1", "--size", "64"]
    assert main(flags) == 2
    names = "glass, cutpaste, cutswap, spd, ssnf, draem, second"
    expected = f"train.anomalies: --method is needed: one of {names}\n"
    assert capsys.readouterr().err == expected
    assert main([*flags, "--method", "second"]) == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data", "/nowhere/at/all"], "there is no such folder"),
        (
            ["--product", "gearbox"],
            "--product gearbox is unknown; leave it out or take one of carpet, grid",
        ),
        (["--method", "padim"], "padim trains without synthetic anomalies"),
        (["--method", "cutswap"], "draw samples, take --saliency vgg16 or lite0"),
        (["--method", "cutswap", "--cluster", "first"], "--cluster"),
        (["--method", "cutpaste", "--density", "gaussian"], "--density"),
        (["--method", "paint"], "method 'paint' is unknown"),
        (["--count", "0"], "--count 0"),
        (["--size", "16"], "--size 16"),
        (["--seed", "-1"], "--seed -1"),
        (["--bits", "8"], "--bits 8"),
        (["--out", "/proc/nowhere/a.png"], "cannot be written"),
        (["--colour"], "--colour"),
        (["--shots", "3"], "--shots"),  # a flag of ssnf that does not change its anomalies
    ],
)
def test_mistakes_are_one_line(
    flags: list[str], message: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.png"
    common = ["--data", str(data), "--out", str(out), "--size", "64", "--count", "1"]
    common += ["--method", "ssnf"]
    try:
        code: object = main([*common, *flags])
    except SystemExit as left:  # from argparse
        code = left.code
    assert code == 2
    lines = capsys.readouterr().err.splitlines()
    errors = []
    for line in lines:
        if "blend settings" not in line and not line.startswith("data "):
            errors.append(line)
    assert len(errors) == 1
    assert errors[0].startswith("train.anomalies: ")
    assert message in errors[0]
    assert not out.exists()


def test_a_broken_image_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "part.png").write_bytes(b"no image")
    flags = ["--method", "ssnf", "--data", str(tmp_path), "--out", str(tmp_path / "out.png")]
    assert main(flags) == 2
    assert "part.png" in capsys.readouterr().err.splitlines()[-1]
