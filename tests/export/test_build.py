"""The build command: which flags go together, and what it does with a bundle without torch."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import write_levels

from flawline.export import build
from flawline.runtime.bundle import Bundle
from flawline.runtime.engines import ENGINES

ROOT = Path(__file__).resolve().parents[2]
# Runs the command where the packages of the train extra cannot be imported.
WITHOUT_TRAINING_LIBRARIES = """
import sys
absent = {"torch", "onnx", "tqdm", "matplotlib", "FrEIA", "timm"}
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
from flawline.export.build import main
sys.exit(main(sys.argv[1:]))
"""


def without_training_libraries(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT_TRAINING_LIBRARIES, *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


# ---------------------------------------------------------------- flags


def test_help_lists_every_flag_without_torch() -> None:
    done = without_training_libraries("--help")
    assert done.returncode == 0, done.stderr
    for flag in ("--method", "--checkpoint", "--bundle", "--outputs", "--steps", "--weights"):
        assert flag in done.stdout
    for flag in ("--engine", "--precision", "--threads", "--sm", "--max-batch"):
        assert flag in done.stdout


def test_help_of_a_bundle_lists_what_goes_with_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_status:
        build.main(["--bundle", "B", "--help"])
    assert exit_status.value.code == 0
    text = capsys.readouterr().out
    assert "--sm" in text
    assert "--data" in text
    assert "--checkpoint" not in text
    assert "--steps" not in text


def test_a_bundle_needs_no_torch(bundle: Bundle) -> None:
    done = without_training_libraries("--bundle", str(bundle.path), "--engine", "none")
    assert done.returncode == 0, done.stderr
    assert f"bundle {bundle.path}" in done.stderr


def test_a_folder_called_like_the_flag_is_no_bundle() -> None:
    done = without_training_libraries("--out", "x --bundle y", "--data", ".")
    assert done.returncode == 2
    assert done.stderr.startswith("flawline build: needs torch")


def test_what_is_done_without_torch_is_said_where_it_is_missing() -> None:
    for words in (["--engine", "auto"], ["--data", ".", "--reweight", "3"], ["--checkpoint", "c"]):
        done = without_training_libraries(*words)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert " (--bundle BUNDLE prepares an engine without it); run: " in line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--bundle", "{bundle}", "--steps", "3"], "--bundle builds and trains nothing"),
        (["--bundle", "{bundle}", "--checkpoint", "c.pt"], "--bundle builds and trains nothing"),
        (["--checkpoint", "c.pt", "--steps", "3"], "--checkpoint trains nothing"),
        (["--checkpoint", "c.pt", "--save-checkpoint", "d.pt"], "--checkpoint trains nothing"),
        (["--bundle", "{bundle}", "--queue", "3"], "unrecognized arguments: --queue 3"),
        (["--bundle"], "expected one argument"),
    ],
)
def test_flags_that_have_no_meaning_together_are_refused(
    bundle: Bundle, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    filled = [word.format(bundle=bundle.path) for word in words]
    with pytest.raises(SystemExit) as exit_status:
        build.main(filled)
    assert exit_status.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.parametrize(
    "words",
    [
        ["--tiles", "2x2"],
        ["--overlap=0.2"],
        ["--include", "a.png"],
        ["--exclude", "a.png"],
        ["--fixture", "a.png?region=0,0,64,64"],
    ],
)
@pytest.mark.parametrize("holder", ["checkpoint", "bundle"])
def test_flags_of_frames_belong_to_the_training(
    words: list[str], holder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        build.main([f"--{holder}", "x", *words])
    (line,) = capsys.readouterr().err.splitlines()
    assert f"belong to the training, and the {holder} states them" in line
    assert "did you mean" not in line


@pytest.mark.parametrize(
    ("words", "consequence"),
    [
        (["--bundle", "{bundle}"], "the bundle is unchanged"),
        (["--bundle", "{bundle}", "--precision", "fp32"], "a graph is added whole or not at all"),
        (["--data", "{data}"], "a bundle is written whole or not at all"),
    ],
)
def test_ctrl_c_says_what_became_of_the_bundle(
    words: list[str],
    consequence: str,
    bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt(*_words: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(build, "prepare_local_engine", interrupt)
    monkeypatch.setattr(build, "_build", interrupt)
    filled = [word.format(bundle=bundle.path, data=tmp_path) for word in words]
    if "--data" in words:
        pytest.importorskip("torch", reason="needs the train extra")
        filled += ["--out", str(tmp_path / "out")]
    assert build.main(filled) == 130
    assert capsys.readouterr().err == f"interrupted; {consequence}\n"


# ---------------------------------------------------------------- engines of a bundle


def test_the_engine_of_a_bundle_is_tested_and_timed(
    bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--bundle", str(bundle.path), "--engine", "onnxruntime", "--threads", "1"]
    assert build.main(words) == 0
    text = capsys.readouterr().err
    assert "CPU fp32: self-test passed" in text
    assert "ms per image" in text
    assert f"--bundle {bundle.path} --camera CAMERA" in text.splitlines()[-1]


def test_the_automatic_engine_needs_no_training_library(bundle: Bundle) -> None:
    done = without_training_libraries("--bundle", str(bundle.path), "--engine", "auto")
    assert done.returncode == 0, done.stderr
    # For another machine, so without the folders of this one.
    assert f"flawline build --bundle {bundle.path.name} --engine tensorrt" in done.stderr


def test_no_engine_leaves_the_bundle_alone(
    bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build.main(["--bundle", str(bundle.path), "--engine", "none"]) == 0
    assert "self-test" not in capsys.readouterr().err


@pytest.fixture
def one_usable_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    from flawline.runtime import engines

    monkeypatch.setattr(
        engines, "missing", lambda name: None if name == "onnxruntime" else "install it"
    )


def test_a_precision_that_no_engine_runs_changes_nothing_and_is_reported(
    one_usable_engine: None, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build.main(["--bundle", str(bundle.path), "--precision", "bf16"]) == 0
    text = capsys.readouterr().err
    assert "note: no engine of this machine passes with bf16" in text
    assert re.search("  onnxruntime fp32 .* ms per image  chosen", text)


def test_the_automatic_engine_reports_a_build_flag_that_it_does_not_have(
    one_usable_engine: None, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build.main(["--bundle", str(bundle.path), "--max-batch", "16"]) == 2
    assert "--engine auto does not use --max-batch on this machine" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--sm", "86", "--engine", "onnxruntime"], "does not use --sm on this machine"),
        (["--max-batch", "16", "--engine", "onnxruntime"], "does not use --max-batch"),
        (["--opt-batch", "2", "--engine", "openvino"], "does not use --opt-batch"),
        (["--dla", "0", "--engine", "onnxruntime"], "choose --engine tensorrt or tensorrt-rtx"),
        (["--max-batch", "16", "--engine", "none"], "--engine none does not use --max-batch"),
        (["--engine", "onnxruntime", "--precision", "bf16"], "onnxruntime does not run bf16"),
        (["--engine", "onnxruntime", "--threads", "0"], "--threads 0 is not at least 1"),
        (["--engine", "tensorrt", "--max-batch", "0"], "--max-batch 0"),
        (["--precision", "int8"], "adding the int8 graph needs images; pass --data"),
    ],
)
def test_a_users_mistake_is_one_line(
    bundle: Bundle, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build.main(["--bundle", str(bundle.path), *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("flawline build: ")
    assert message in line


def test_a_folder_that_cannot_be_written_is_found_before_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    # There is no such data either, which is found later.
    words = ["--data", str(tmp_path / "none"), "--out", str(tmp_path / "file" / "bundle")]
    assert build.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "bundle cannot be written (" in line
    assert line.endswith("or choose another --out")


def test_a_folder_that_is_no_bundle_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build.main(["--bundle", str(tmp_path), "--engine", "none"]) == 2
    assert "manifest.json is missing" in capsys.readouterr().err


def test_an_unknown_engine_is_refused_with_all_names(
    bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build.main(["--bundle", str(bundle.path), "--engine", "abacus"]) == 2
    text = capsys.readouterr().err
    for name in ENGINES:
        assert name in text


def test_the_printed_command_survives_a_space_in_a_path(
    tmp_path: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    spaced = tmp_path / "my bundle"
    shutil.copytree(bundle.path, spaced)
    assert build.main(["--bundle", str(spaced), "--engine", "onnxruntime"]) == 0
    line = capsys.readouterr().err.splitlines()[-1]
    words = shlex.split(line.split("run it: ")[1])
    assert words[words.index("flawline") + 1] == "stream"
    assert words[words.index("--bundle") + 1] == str(spaced)


@pytest.mark.torch
@pytest.mark.parametrize("folds", ["0", "5"])
def test_rates_that_the_good_images_cannot_support_are_refused_before_the_training(
    folds: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch", reason="needs the train extra")
    from flawline.train import training

    def train(*_: object) -> None:
        raise AssertionError("the training began")

    monkeypatch.setattr(training, "train", train)
    data = write_levels(tmp_path / "data", {"train/good": range(100, 140)}, 32)
    # A copy, which sets no threshold.
    (data / "train" / "good" / "copy.png").write_bytes((data / "train/good/100.png").read_bytes())
    words = ["--method", "padim", "--data", str(data), "--folds", folds, "--weights", "random"]
    words += ["--out", str(tmp_path / "bundle")]
    images = "39 good images" if folds == "5" else "8 held-out good images"
    rejected = "0.25"
    for flags, message in {
        ("--false-alarm-rate", "0.001"): "a false-alarm rate of 0.001 needs 999 ",
        ("--false-alarm-rate", rejected, "--review-rate", "0.251"): (
            f"a review rate of 0.251 is not above the false-alarm rate of {rejected} by at least "
            f"one of {images}; give --review-rate 0."
        ),
    }.items():
        assert build.main([*words, *flags]) == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith(f"flawline build: {message}"), last
    with pytest.raises(AssertionError, match="the training began"):
        build.main([*words, "--false-alarm-rate", rejected, "--review-rate", "0.5"])
    # What a list leaves out does not count.
    excluded = tmp_path / "list.txt"
    excluded.write_text("\n".join(f"train/good/{level}.png" for level in range(110, 130)))
    lowest, needed = {"5": ("0.03", 33), "0": ("0.12", 8)}[folds]
    with pytest.raises(AssertionError, match="the training began"):
        build.main([*words, "--false-alarm-rate", lowest])
    flags = ("--false-alarm-rate", lowest, "--exclude-images", str(excluded))
    assert build.main([*words, *flags]) == 2
    assert f"a false-alarm rate of {lowest} needs {needed} " in capsys.readouterr().err
