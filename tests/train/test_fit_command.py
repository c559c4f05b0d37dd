"""The command that trains: flags of each method, recipes, and runs that are continued."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from builders import write_squares

from flawline.options import option
from flawline.runtime.image import Geometry
from flawline.runtime.source_images import SourceSizes
from flawline.runtime.training_length import TrainingLength
from flawline.train import METHODS, TrainError, fit
from flawline.train.checkpoint import load_checkpoint
from flawline.train.data import CachedImages, PreparedImages, hold_out, open_data
from flawline.train.data.split import content_hashes
from flawline.train.fit import main
from flawline.train.method import Fit, Method, MethodSettings
from flawline.train.methods.padim import PaDiM
from flawline.train.recipe import plan

pytestmark = pytest.mark.torch
# One training; those of the folds have tests of their own.
LIGHT = ("--weights", "random", "--size", "64", "--folds", "0")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_squares(tmp_path_factory.mktemp("data") / "squares")


def train(data: Path, out: Path, *flags: str) -> int:
    return main(["--data", str(data), "--out", str(out), *LIGHT, *flags])


# ---------------------------------------------------------------- flags of methods


@dataclass(frozen=True)
class RadiusSettings(MethodSettings):
    reach: float = option(0.5, "radius in millimetres", flag=True)
    hidden: int = option(3, "no flag")


@dataclass(frozen=True)
class StepsSettings(MethodSettings):
    reach: int = option(7, "number of neighbours", flag=True)


class _Constant(Method):
    """Does nothing and has no steps; only its settings matter."""

    @classmethod
    def settings_for(cls, backbone: str) -> Any:
        return cls.Settings("", Geometry("stretch", 64, 64))

    def fit(self, fit: Fit) -> int:
        return fit.steps

    def forward(self, image: Any) -> Any:
        return image, image

    def fused(self) -> Any:
        return self


class Radius(_Constant):
    name: ClassVar[str] = "radius"
    smallest_size: ClassVar[int] = 48
    Settings = RadiusSettings


class Neighbours(_Constant):
    name: ClassVar[str] = "neighbours"
    Settings = StepsSettings


@pytest.fixture
def two_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "radius", f"{__name__}:Radius")
    monkeypatch.setitem(METHODS, "neighbours", f"{__name__}:Neighbours")


def parsed(*argv: str) -> Any:
    return fit.parse_arguments(fit._parser(), ["--data", "x", *argv])


@pytest.mark.usefixtures("two_methods")
def test_two_methods_may_have_a_flag_of_one_name(capsys: pytest.CaptureFixture[str]) -> None:
    """Each has its own type and help."""
    assert parsed("--method", "radius", "--reach", "0.25").reach == 0.25
    assert parsed("--method", "neighbours", "--reach", "9").reach == 9
    with pytest.raises(SystemExit):
        parsed("--method", "neighbours", "--reach", "0.25")
    assert "argument --reach: '0.25' is not a whole number" in capsys.readouterr().err
    for name, text in (("radius", "radius in millimetres"), ("neighbours", "number of neighbours")):
        with pytest.raises(SystemExit, match="0"):
            parsed("--method", name, "--help")
        assert text in capsys.readouterr().out


@pytest.mark.usefixtures("two_methods")
def test_a_flag_of_another_method_is_refused_with_its_owners() -> None:
    message = r"--reach is no option of padim; it belongs to --method radius or neighbours"
    with pytest.raises(TrainError, match=message):
        parsed("--method", "padim", "--reach=3")


@pytest.mark.usefixtures("two_methods")
def test_only_marked_settings_are_flags() -> None:
    args = parsed("--method", "radius", "--reach", "2")
    recipe = fit.recipe_from_arguments(args, "radius", Path("x"))
    assert recipe.settings == RadiusSettings("", Geometry("stretch", 64, 64), reach=2.0)
    with pytest.raises(SystemExit):
        parsed("--method", "radius", "--hidden", "2")


@pytest.mark.usefixtures("two_methods")
def test_a_method_without_a_backbone_refuses_one() -> None:
    args = parsed("--method", "radius", "--backbone", "resnet18")
    with pytest.raises(TrainError, match="--backbone resnet18: radius has no choice of it"):
        fit.recipe_from_arguments(args, "radius", Path("x"))


@pytest.mark.usefixtures("two_methods")
def test_a_method_without_a_backbone_refuses_weights() -> None:
    args = parsed("--method", "radius", "--weights", "texture")
    with pytest.raises(TrainError, match="--weights texture: radius has no backbone; leave it out"):
        fit.recipe_from_arguments(args, "radius", Path("x"))


def test_an_input_below_the_smallest_of_the_method_is_refused() -> None:
    with pytest.raises(TrainError, match="--size 32 is below 48; use a larger one"):
        Radius(RadiusSettings("", Geometry("stretch", 32, 64)))


def test_help_lists_methods_without_torch() -> None:
    code = (
        "import sys; sys.modules.update(torch=None, tqdm=None);"
        "from flawline.train.fit import main; main(['--help'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in METHODS)
    assert "The options of the methods are listed where torch is installed." in done.stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--method", "nothing"), "method 'nothing' is unknown; known: "),
        (("--backbone", "nothing"), "backbone 'nothing' is unknown; known: resnet18"),
        (("--steps", "0"), "--steps 0 is not above 0"),
        (("--max-minutes", "-1"), "--max-minutes -1 is not above 0"),
        (("--max-minutes", "nan"), "--max-minutes nan is not a finite number; give one above 0"),
        (("--max-minutes", "inf"), "--max-minutes inf is not a finite number; give one above 0"),
        (("--method",), "argument --method: expected one argument"),
        (("--steps", "1", "--epochs", "2"), "--steps and --epochs both set the length"),
        (("--seed", "-1"), "--seed -1 is not from 0 to 2147483647"),
        (("--bits", "8"), "--bits 8 is not from 9 to 16; 8-bit images need none"),
        (("--geometry", "letterbox", "--size", "16"), "input size 16x16 is below 32 pixels"),
        (("--device", "cuda:99"), "--device cuda:99: "),
        (("--coreset", "0.1"), "--coreset is no option of simplenet; it belongs to --method patch"),
        (("--method", "patchcore", "--coreset", "-1"), "--coreset -1 is not above 0"),
        (("--method", "patchcore", "--coreset", "inf"), "--coreset inf is not a finite number"),
        (("--method", "patchcore", "--budget-mb", "nan"), "--budget-mb nan is not a finite number"),
        (("--method", "padim", "--steps", "500"), "--steps: padim is fitted in one pass, without"),
        (("--method", "patchcore", "--epochs", "2"), "--epochs: patchcore is fitted in one pass"),
        (("--method", "patchcore", "--target-dim", "0"), "--target-dim 0 is not above 0"),
        (
            ("--method", "padim", "--channels", "9999"),
            "--channels 9999 is not from 1 to 448, which resnet18 has",
        ),
        (("--rubbish",), "unrecognized arguments: --rubbish"),
    ],
)
def test_a_wrong_command_line_is_one_line(
    flags: tuple[str, ...],
    message: str,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    try:
        status = train(data, tmp_path / "c.pt", *flags)
    except SystemExit as error:
        status = int(str(error))
    assert status == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith(f"flawline train: {message}")
    assert "usage:" not in lines[0]
    assert not (tmp_path / "c.pt").exists()


# ---------------------------------------------------------------- recipes


def test_a_plan_has_the_defaults_of_method_and_backbone() -> None:
    recipe = plan("simplenet", Path("x"))
    assert recipe.settings == recipe.method_class.settings_for("resnet18")
    assert recipe.weights == "imagenet"
    crop = plan("simplenet", Path("x"), backbone="wide_resnet50_2", size=144)
    assert crop.settings.geometry == Geometry("shorter-crop", 144, 144, 164)
    stretched = plan("simplenet", Path("x"), geometry="stretch", size=128)
    assert stretched.settings.geometry == Geometry("stretch", 128, 128)


@pytest.mark.parametrize("method", ["ae_ssim", "draem", "riad", "intra"])
def test_the_published_setting_has_the_image_size_of_the_paper(method: str) -> None:
    assert plan(method, Path("x")).settings.size == (128, 128)
    published = {"setting": "published"}
    assert plan(method, Path("x"), options=published).settings.size == (256, 256)
    assert plan(method, Path("x"), options=published, size=128).settings.size == (128, 128)
    boxed = plan(method, Path("x"), options=published, geometry="letterbox")
    assert boxed.settings.geometry == Geometry("letterbox", 256, 256)


@pytest.mark.parametrize("method", ["draem", "glass"])
def test_a_folder_of_textures_is_checked_before_any_image_is_read(
    method: str, tmp_path: Path
) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(TrainError, match=r"--textures .*: there "):
            plan(method, Path("x"), options={"textures": str(folder)})


@pytest.mark.parametrize(
    ("method", "backbone", "shorter"),
    [
        ("simplenet", "wide_resnet50_2", 2559),  # its own 329 / 288
        ("padim", "wide_resnet50_2", 2560),  # its own 256 / 224
        ("padim", "resnet18", 2559),  # it stretches images, so the ratio is the general default
    ],
)
def test_a_crop_has_the_ratio_of_the_method(method: str, backbone: str, shorter: int) -> None:
    recipe = plan(method, Path("x"), backbone=backbone, size=2240, geometry="shorter-crop")
    assert recipe.settings.geometry == Geometry("shorter-crop", 2240, 2240, shorter)


# ---------------------------------------------------------------- runs


def test_an_interrupted_run_is_continued_and_equals_an_uninterrupted_one(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = ("--steps", "3")
    assert train(data, tmp_path / "whole.pt", *steps) == 0
    out = tmp_path / "part.pt"
    unfinished = tmp_path / "part.unfinished.pt"
    assert train(data, out, *steps, "--max-minutes", "1e-9") == 0
    assert "stopped by --max-minutes after 1 of 3 steps" in capsys.readouterr().err
    cut = load_checkpoint(out)
    assert cut.provenance["steps"] == "1 of 3 steps, cut short"
    assert cut.length == TrainingLength(1, 3)
    assert not cut.finished
    assert unfinished.exists()
    assert train(data, out, *steps, "--seed", "1") == 2
    assert "is from a run with other flags" in capsys.readouterr().err
    assert train(data, out, *steps) == 0
    assert f"continuing {unfinished} at step 1" in capsys.readouterr().err
    assert not unfinished.exists()
    whole = load_checkpoint(tmp_path / "whole.pt")
    part = load_checkpoint(out)
    assert part.provenance == whole.provenance
    assert part.length == whole.length == TrainingLength(3, 3)
    assert part.finished
    assert part.source_sizes == whole.source_sizes == SourceSizes.of([(80, 90)])
    for name, value in whole.method.state_dict().items():
        assert torch.equal(value, part.method.state_dict()[name]), name


def test_a_checkpoint_stores_what_it_was_trained_on(data: Path, tmp_path: Path) -> None:
    assert train(data, tmp_path / "c.pt", "--steps", "1") == 0
    training, held_out = hold_out(open_data(data).train_good)
    trained_on = load_checkpoint(tmp_path / "c.pt").trained_on
    assert list(trained_on) == content_hashes(training)
    assert not set(trained_on) & set(content_hashes(held_out))


def test_a_method_with_a_closed_form_reports_one_pass(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "c.pt"
    assert train(data, out, "--method", "padim", "--channels", "8") == 0
    assert "training padim on 16 good images in one pass on " in capsys.readouterr().err
    assert load_checkpoint(out).provenance["steps"] == "in one pass"


class PixelSettings(MethodSettings):
    pass


class Pixels(_Constant):
    """Reads pixels in every step, and records the images that it gets."""

    name: ClassVar[str] = "pixels"
    Settings = PixelSettings
    trains_on_pixels: ClassVar[bool] = True
    used: ClassVar[int | None] = None
    images: ClassVar[Any] = None

    @classmethod
    def images_used(cls, settings: Any, available: int) -> int:
        return cls.used or available

    def fit(self, fit: Fit) -> int:
        type(self).images = fit.images
        fit.facts["kind"] = "sharp"
        return fit.steps


@pytest.mark.parametrize("used", [None, 3])
def test_a_method_that_trains_on_pixels_gets_cached_images(
    used: int | None, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless it uses only some of them: then decoding all would take longer than it saves."""
    monkeypatch.setitem(METHODS, "pixels", f"{__name__}:Pixels")
    monkeypatch.setattr(Pixels, "used", used)
    words = ["--method", "pixels", "--data", str(data), "--out", str(tmp_path / "c.pt")]
    assert main([*words, "--folds", "0"]) == 0
    expected = CachedImages if used is None else PreparedImages
    assert isinstance(Pixels.images, expected)
    good, _ = hold_out(open_data(data).train_good)
    prepared = PreparedImages(good, Geometry("stretch", 64, 64))
    assert len(Pixels.images) == len(prepared)
    for image, same in zip(Pixels.images, prepared, strict=True):
        assert np.array_equal(image, same)


def test_facts_of_a_training_are_in_the_provenance(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "pixels", f"{__name__}:Pixels")
    out = tmp_path / "c.pt"
    words = ["--method", "pixels", "--data", str(data), "--out", str(out), "--folds", "0"]
    assert main(words) == 0
    assert load_checkpoint(out).provenance["kind"] == "sharp"


def test_a_path_that_cannot_be_written_is_found_before_training(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(data, tmp_path) == 2
    message = f"flawline train: --out {tmp_path}: is a folder; give the name of a file in it, "
    assert capsys.readouterr().err.splitlines()[-1] == f"{message}such as {tmp_path / 'part.pt'}"


def test_a_finished_training_is_not_repeated_unless_asked_for(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "c.pt"
    words = ["--data", str(data), "--out", str(out), "--folds", "0", *LIGHT, "--steps", "2"]
    assert fit.main(words) == 0
    written = out.stat().st_mtime_ns
    capsys.readouterr()
    assert fit.main(words) == 0
    assert "is of this training already; --again trains it once more" in capsys.readouterr().err
    assert out.stat().st_mtime_ns == written
    for more in (["--again"], ["--seed", "1"]):
        assert fit.main([*words, *more]) == 0
        assert "training simplenet" in capsys.readouterr().err
    out.write_bytes(b"of another program")
    assert fit.main(words) == 0
    assert load_checkpoint(out).finished


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)],
)
def test_a_signal_finishes_the_step_and_saves(
    number: int, status: int, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "c.pt"
    command = [sys.executable, "-m", "flawline.train.fit", "--method", "simplenet"]
    command += ["--data", str(data), "--out", str(out), *LIGHT, "--steps", "100000"]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        printed = b""
        # The bar of the steps is drawn when the first one is done, and its line ends much later.
        while b"training:" not in printed:
            more = os.read(process.stderr.fileno(), 4096)
            assert more, printed
            printed += more
        process.send_signal(number)
        _, rest = process.communicate(timeout=60)
        assert process.returncode == status
    lines = rest.decode().splitlines()
    unfinished = tmp_path / "c.unfinished.pt"
    assert lines[-2:] == [f"the same command continues from {unfinished}", "interrupted"]
    assert not out.exists()
    saved = load_checkpoint(tmp_path / "c.unfinished.pt")
    assert saved.training is not None
    assert saved.training["state"]["step"] > 0


def test_an_interrupted_training_without_a_saved_step_says_so(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(self: PaDiM, fit: Fit) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(PaDiM, "fit", interrupted)
    assert train(data, tmp_path / "c.pt", "--method", "padim") == 130
    lines = capsys.readouterr().err.splitlines()
    assert lines[-2:] == ["no step was saved; the same command begins again", "interrupted"]
