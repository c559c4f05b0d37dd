"""From images to verdicts through the commands, and what users get wrong on the way."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

import onnx
import onnx.numpy_helper
from builders import write_squares

from flawline.export import build
from flawline.runtime import calibrate, infer_stream
from flawline.runtime.bundle import Bundle, read_bundle, write_bundle
from flawline.runtime.detector import Detector
from flawline.runtime.engines import (
    EngineError,
    EngineOptions,
    engine_class,
    open_engine,
    self_test,
)
from flawline.runtime.precisions import PRECISIONS
from flawline.runtime.source_frame import SourceFrame
from flawline.runtime.source_images import SourceSizes
from flawline.runtime.training_length import TrainingLength
from flawline.train import fit
from flawline.train.checkpoint import load_checkpoint
from flawline.train.data import hold_out, open_data

pytestmark = pytest.mark.torch
LIGHT = ["--weights", "random", "--size", "64", "--steps", "3", "--folds", "0"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good parts are grey noise; the bad ones carry a bright square."""
    counts = {"train/good": 24, "test/good": 5, "test/square": 5}
    return write_squares(tmp_path_factory.mktemp("data") / "squares", counts)


@pytest.fixture(scope="module")
def built(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built")
    assert fit.main(["--data", str(data), "--out", str(out / "c.pt"), *LIGHT]) == 0
    words = ["--checkpoint", str(out / "c.pt"), "--data", str(data), "--out", str(out / "bundle")]
    assert build.main(words) == 0
    return out


def test_images_to_bundle_to_verdicts(
    built: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = read_bundle(built / "bundle")
    assert bundle.manifest.training == TrainingLength(3, 3)
    assert bundle.manifest.source_sizes == SourceSizes.of([(80, 90)])
    assert bundle.manifest.method == "simplenet"
    assert bundle.manifest.provenance["train_weights"] == "random, seed 0"
    assert bundle.manifest.provenance["train_seed"] == "0"
    assert bundle.manifest.score.max < bundle.calibration.threshold < bundle.manifest.score.max + 1
    golden = bundle.golden()
    assert abs(golden.scores - bundle.calibration.threshold).min() > bundle.manifest.score_tolerance
    capsys.readouterr()
    assert infer_stream.main(["--bundle", str(bundle.path), "--camera", str(data / "test")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 11


def nudged(bundle: Bundle, out: Path, change: Any) -> Bundle:
    """The bundle with other weights, except the sizes of a Resize, and with the hashes of these."""
    model = onnx.load(str(bundle.model()))
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.ndim > 1:
            tensor.CopyFrom(onnx.numpy_helper.from_array(change(tensor.name, values), tensor.name))
    return write_bundle(
        out,
        bundle.manifest,
        bundle.calibration,
        {"fp32": model.SerializeToString()},
        bundle.golden(),
    )


def test_nudged_weights_are_refused_with_the_flip_and_rounding_passes(
    built: Path, tmp_path: Path
) -> None:
    bundle = read_bundle(built / "bundle")
    harmless = nudged(
        bundle, tmp_path / "rounded", lambda _, v: (v * np.float32(1 + 2e-7)).astype(np.float32)
    )
    assert harmless.model_sha256() != bundle.model_sha256()
    open_engine(harmless, "onnxruntime").close()

    def push(name: str, values: Any) -> Any:
        return -4 * values if name.endswith("tail.weight") else values

    with pytest.raises(
        EngineError, match=r"golden image \d scores .* so its verdict flips\): off by"
    ):
        open_engine(nudged(bundle, tmp_path / "pushed", push), "onnxruntime")


def test_a_build_without_a_checkpoint_trains_one(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert build.main(["--data", str(data), *LIGHT]) == 0
    text = capsys.readouterr().err
    assert "no --checkpoint: training simplenet" in text
    assert "0 flipped decisions" in text
    assert read_bundle(tmp_path / "bundles" / "simplenet-squares").manifest.backbone == "resnet18"


def test_an_interrupted_run_goes_on_and_refuses_other_flags(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "c.pt"
    flags = [
        "--data",
        str(data),
        "--out",
        str(out),
        "--weights",
        "random",
        "--size",
        "64",
        "--steps",
        "6",
        "--folds",
        "0",
    ]
    assert fit.main([*flags, "--max-minutes", "1e-9"]) == 0
    assert "stopped by --max-minutes after 1 of 6 steps" in capsys.readouterr().err
    assert load_checkpoint(out).provenance["steps"] == "1 of 6 steps, cut short"
    unfinished = tmp_path / "c.unfinished.pt"
    assert (
        build.main(
            ["--checkpoint", str(unfinished), "--data", str(data), "--out", str(tmp_path / "b")]
        )
        == 2
    )
    assert "unfinished training; continue it" in capsys.readouterr().err
    words = ["--checkpoint", str(out), "--data", str(data), "--engine", "none"]
    assert build.main([*words, "--out", str(tmp_path / "b")]) == 2
    message = capsys.readouterr().err
    assert "cut short after 1 of 6 steps; repeat the training command" in message
    assert "--allow-unfinished" in message
    assert not (tmp_path / "b").exists()
    assert build.main([*words, "--out", str(tmp_path / "b"), "--allow-unfinished"]) == 0
    assert read_bundle(tmp_path / "b").manifest.cut_short == "1 of 6 steps"
    assert fit.main([*flags, "--seed", "1"]) == 2
    assert "other flags" in capsys.readouterr().err
    assert fit.main(flags) == 0
    assert "at step 1" in capsys.readouterr().err
    assert load_checkpoint(out).provenance["steps"] == "6"
    assert not unfinished.exists()


def bad_folder(tmp_path: Path, kind: str) -> Path:
    folder = tmp_path / kind
    folder.mkdir()
    grey = np.full((40, 40), 90, np.uint8)
    for i in range(6):
        (folder / f"{i}.png").write_bytes(cv2.imencode(".png", grey)[1].tobytes())
    damaged = folder / "3.png"
    if kind == "empty":
        for path in folder.iterdir():
            path.unlink()
    elif kind == "few":
        for i in range(3):
            (folder / f"{i}.png").unlink()
    elif kind == "unreadable":
        damaged.write_bytes(b"rubbish")
    elif kind == "truncated":
        damaged.rename(folder / "3.jpg").write_bytes(cv2.imencode(".jpg", grey)[1].tobytes()[:-300])
    elif kind == "sixteen":
        damaged.write_bytes(cv2.imencode(".png", grey.astype(np.uint16) * 100)[1].tobytes())
    elif kind == "alpha":
        damaged.write_bytes(cv2.imencode(".png", np.full((40, 40, 4), 90, np.uint8))[1].tobytes())
    elif kind == "no_good":
        (folder / "train" / "good").mkdir(parents=True)
    return folder


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("absent", "there is no such folder"),
        ("empty", "no good images"),
        ("no_good", "no good images; put images"),
        ("few", "only 3 good images; at least 5"),
        ("unreadable", "3.png: is not an image"),
        ("truncated", "3.jpg: the JPEG is truncated"),
        (
            "sixteen",
            "3.png: has 16 bits per pixel (largest value 9000); declare how many of them are signi",
        ),
        ("alpha", "3.png: has transparent pixels"),
    ],
)
def test_bad_images_are_one_clear_line(
    tmp_path: Path, kind: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "nowhere" if kind == "absent" else bad_folder(tmp_path, kind)
    assert fit.main(["--data", str(folder), "--out", str(tmp_path / "c.pt"), *LIGHT]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("flawline train: ")
    assert message in last
    assert not (tmp_path / "c.pt").exists()


def test_mixed_sizes_are_noted_and_accepted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = bad_folder(tmp_path, "mixed")
    (folder / "3.png").write_bytes(
        cv2.imencode(".png", np.full((50, 70), 90, np.uint8))[1].tobytes()
    )
    assert fit.main(["--data", str(folder), "--out", str(tmp_path / "c.pt"), *LIGHT]) == 0
    assert "images differ in size (40x40 to 70x50)" in capsys.readouterr().err
    words = ["--data", str(folder), "--method", "simplenet", *LIGHT[:-2], "--engine", "none"]
    words += ["--save-checkpoint", str(tmp_path / "c.pt"), "--out", str(tmp_path / "bundle")]
    # The training and the export are one command, which describes the images once.
    assert build.main(words) == 0
    log = capsys.readouterr().err
    assert log.count("data ") == log.count(f"data {folder}: ") == 1
    assert log.count("images differ in size") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--method", "complexnet"],
            "method 'complexnet' is unknown (did you mean simplenet?); known: simplenet",
        ),
        (["--backbone", "vgg"], "backbone 'vgg' is unknown; known: resnet18"),
        (["--size", "8"], "input size 8x8 is below 32"),
        (["--steps", "3", "--epochs", "3"], "give one of them"),
        (["--steps", "0"], "--steps 0 is not above 0"),
        (["--device", "abacus"], "use --device cpu"),
        (["--seed", "-1"], "--seed -1 is not from 0"),
        (["--bits", "8"], "--bits 8 is not from 9 to 16"),
        (["--save-checkpoint", "/proc/nowhere/c.pt"], "c.pt cannot be written"),
        (["--weights", "/nowhere.pth"], "weights /nowhere.pth: cannot be read"),
        (
            ["--weights", "textur"],
            "(did you mean texture?); check the path, or choose one of imagenet",
        ),
        (["--checkpoint", "/nowhere.pt"], "checkpoint /nowhere.pt: there is no such file"),
        (["--false-alarm-rate", "0.001"], "needs 999 held-out good images"),
    ],
)
def test_wrong_flags_are_one_clear_line(
    data: Path,
    tmp_path: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--data", str(data), "--out", str(tmp_path / "bundle")]
    if "--checkpoint" not in arguments:
        words += ["--weights", "random", "--size", "64", "--folds", "0"]
        words += [] if "--epochs" in arguments else ["--steps", "1"]
    words += arguments
    assert build.main(words) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("flawline build: ")
    assert message in last
    assert not (tmp_path / "bundle").exists()


def test_the_export_of_a_checkpoint_names_no_flag_that_it_lacks(
    built: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has no --bits; the images of the data set became deeper after the training."""
    copy = Path(shutil.copytree(data, tmp_path / "copy"))
    deep = np.full((40, 40), 4000, np.uint16)
    _, held_out = hold_out(open_data(copy).train_good)
    held_out[0].write_bytes(cv2.imencode(".png", deep)[1].tobytes())
    words = ["--checkpoint", str(built / "c.pt"), "--data", str(copy), "--engine", "none"]
    assert build.main([*words, "--out", str(tmp_path / "b")]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "has 16 bits per pixel (largest value 4000); the detector was trained on 8-bit" in last


@pytest.mark.parametrize("flags", [[], ["--method", "simplenet"]])
def test_the_method_is_that_of_the_checkpoint(
    built: Path, data: Path, tmp_path: Path, flags: list[str]
) -> None:
    words = ["--checkpoint", str(built / "c.pt"), "--data", str(data), "--engine", "none"]
    assert build.main([*words, *flags, "--out", str(tmp_path / "b")]) == 0
    assert read_bundle(tmp_path / "b").manifest.method == "simplenet"


@pytest.mark.parametrize("method", ["patchcore", "complexnet"])
def test_another_method_than_that_of_the_checkpoint_is_refused(
    built: Path, tmp_path: Path, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--checkpoint", str(built / "c.pt"), "--method", method, "--out", str(tmp_path / "b")]
    assert build.main(words) == 2
    assert "holds simplenet; leave --method out" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_a_graph_is_added_to_a_bundle_from_the_data_set(
    built: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A network of random weights that was hardly trained is no match for INT8.
    loose = replace(PRECISIONS["int8"], score_factor=1e6, map_factor=1e6)
    monkeypatch.setitem(PRECISIONS, "int8", loose)
    bundle = tmp_path / "b"
    shutil.copytree(built / "bundle", bundle)
    words = ["--bundle", str(bundle), "--precision", "int8", "--engine", "none"]
    assert build.main(words) == 2
    assert "pass --data with the data set" in capsys.readouterr().err
    assert build.main([*words, "--data", str(data)]) == 0
    text = capsys.readouterr().err
    assert "convolutions in INT8" in text
    assert "int8 against fp32: parity on" in text
    assert "int8" in read_bundle(bundle).precisions


def test_a_score_only_bundle_gets_its_fp16_graph_and_no_overlays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from flawline.train.data.demo import write_demo

    # Random features score all parts about the same, to within FP16.
    loose = replace(PRECISIONS["fp16"], score_factor=100.0, map_factor=100.0)
    monkeypatch.setitem(PRECISIONS, "fp16", loose)
    write_demo(tmp_path, products=["weave"], train_good=12, test_good=3, per_defect=1)
    data, out = tmp_path / "weave", tmp_path / "bundle"
    flags = ["--weights", "random", "--size", "64", "--steps", "20", "--folds", "0"]
    flags += ["--outputs", "score", "--static-batch", "--save-checkpoint", str(tmp_path / "c.pt")]
    flags += ["--data", str(data), "--out", str(out), "--precision", "fp16"]
    # Before anything is trained.
    assert build.main([*flags, "--engine", "onnxruntime"]) == 2
    assert "onnxruntime does not run fp16" in capsys.readouterr().err
    assert not out.exists()
    assert build.main([*flags, "--engine", "none"]) == 0
    assert "fp16 against fp32: parity on" in capsys.readouterr().err
    bundle = read_bundle(out)
    assert bundle.precisions == ("fp32", "fp16")
    assert bundle.manifest.fp32_islands == ("/tail",)
    assert bundle.golden().maps.shape[1:] == bundle.map_size == (0, 0)
    stream = ["--bundle", str(out), "--camera", str(data / "test")]
    assert infer_stream.main(stream) == 0
    assert infer_stream.main([*stream, "--save", str(tmp_path / "judged")]) == 2
    assert "gives no maps to paint" in capsys.readouterr().err.splitlines()[-1]


def test_the_whole_line_without_torch_on_the_edge(built: Path, data: Path) -> None:
    """The bundle that was built runs where torch cannot be imported."""
    blocked = ("torch", "onnx", "flawline.train", "flawline.export")
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({blocked!r}));"
        "from runtime.infer_stream import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [
        sys.executable,
        "-c",
        code,
        "--bundle",
        str(built / "bundle"),
        "--camera",
        str(data / "test"),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False
    )
    assert done.returncode == 0, done.stderr
    assert '"summary"' in done.stdout


# ---------------------------------------------------------------- names and folders


def test_names_that_are_not_utf8_pass_through_the_whole_line(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """GBK, for example from an archive that was made in China."""
    root = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xc1\xbc\xc6\xb7"))
    for path in sorted(data.glob("*/*/*.png")):
        folder = root / path.parent.relative_to(data)
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / os.fsdecode(b"\xc6\xb7" + os.fsencode(path.name)))
    checkpoint = str(root / "c.pt")
    bundle = str(root / "bundle")
    assert fit.main(["--data", str(root), "--out", checkpoint, *LIGHT]) == 0
    assert build.main(["--checkpoint", checkpoint, "--out", bundle]) == 0
    for engine in ("onnxruntime", "openvino"):
        if engine_class(engine).missing() is not None:
            continue
        capsys.readouterr()
        words = ["--bundle", bundle, "--engine", engine, "--camera", str(root / "test")]
        assert infer_stream.main(words) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 10 + 1
        for line in lines[:-1]:
            source = json.loads(line)["source"]
            # Other programs refuse the lone surrogates with which Python represents such bytes.
            assert source.encode()
            assert "\\xc1" in source
    words = ["--bundle", bundle, "--camera", str(root / "test" / "good")]
    assert calibrate.main([*words, "--false-alarm-rate", "0.2"]) == 0


def test_a_loop_of_links_promises_nothing(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "loop"
    shutil.copytree(data / "train" / "good", root)
    (root / "latest").symlink_to(".")
    assert fit.main(["--data", str(root), "--out", str(tmp_path / "c.pt"), *LIGHT]) == 0
    words = ["--checkpoint", str(tmp_path / "c.pt"), "--out", str(tmp_path / "bundle")]
    assert build.main(words) == 0
    text = capsys.readouterr().err
    assert "on 19 good images" in text
    assert "from 5 held-out good images" in text
    assert "left out: 1 link to what is counted already" in text


def test_a_data_set_in_which_other_images_are_held_out_is_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    shutil.copytree(data, root)
    assert fit.main(["--data", str(root), "--out", str(tmp_path / "c.pt"), *LIGHT]) == 0
    good = sorted((root / "train" / "good").iterdir())
    (root / "train" / "good" / "mon").mkdir()
    for path in good:
        path.rename(path.parent / "mon" / path.name)
    capsys.readouterr()
    words = ["--checkpoint", str(tmp_path / "c.pt"), "--out", str(tmp_path / "bundle")]
    assert build.main(words) == 2
    assert "held-out images were trained on, such as " in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "bundle").exists()


def test_the_current_folder_names_the_checkpoint_and_the_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_squares(tmp_path / "squares", {"train/good": 12, "test/good": 2})
    monkeypatch.chdir(data)
    words = ["--method", "padim", "--weights", "random", "--size", "64", "--engine", "none"]
    assert build.main(["--data", ".", *words]) == 0
    assert (data / "runs" / "padim-squares.pt").is_file()
    assert read_bundle(data / "bundles" / "padim-squares").manifest.method == "padim"


# ---------------------------------------------------------------- a camera's own frames


def test_a_bundle_for_frames_is_proven_on_images_that_are_resized_to_them(
    built: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = read_bundle(built / "bundle")
    out = tmp_path / "framed"
    words = ["--checkpoint", str(built / "c.pt"), "--data", str(data), "--out", str(out)]
    words += ["--source", "180x160:bayer-gbrg"]
    assert build.main([*words, "--engine", "none"]) == 0
    text = capsys.readouterr().err
    assert "the graph takes frames of 180x160:bayer-gbrg: " in text
    assert "15 of 15 images have another size than the frames of 180x160" in text
    assert (
        "note: the thresholds are from good images that were resized to 180x160:bayer-gbrg" in text
    )
    assert f"calibrate --bundle {out} --images GOOD_PARTS" in text
    assert "parity on 15 images" in text
    assert "fp16 against fp32: parity on 15 images" in text
    bundle = read_bundle(out)
    assert bundle.manifest.source == SourceFrame(160, 180, "bayer-gbrg")
    assert bundle.manifest.fp32_islands == (*plain.manifest.fp32_islands, "/source")
    assert bundle.golden().images.shape[1:] == (160, 180)
    engine = open_engine(bundle, "onnxruntime", EngineOptions(threads=1))
    assert self_test(engine, bundle) < 0.1 * bundle.manifest.score_tolerance
    engine.close()


def test_frames_of_the_size_of_the_images_have_the_scores_of_prepare(
    built: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = read_bundle(built / "bundle")
    out = tmp_path / "framed"
    words = ["--checkpoint", str(built / "c.pt"), "--data", str(data), "--out", str(out)]
    assert build.main([*words, "--engine", "none", "--source", "90x80"]) == 0
    assert "good images that were resized" not in capsys.readouterr().err
    framed = read_bundle(out)
    assert framed.calibration.threshold == pytest.approx(plain.calibration.threshold, rel=1e-5)
    with Detector(plain, "onnxruntime") as prepares, Detector(framed, "onnxruntime") as takes:
        for sample in open_data(data).test:
            image = takes.read_image(sample.path)
            assert takes(image).score == pytest.approx(prepares(image).score, rel=1e-5)
    good = sorted((data / "train" / "good").iterdir())[-6:]
    parts = tmp_path / "parts"
    parts.mkdir()
    for path in good:
        image = cv2.imread(str(path))
        cv2.imwrite(str(parts / path.name), 255 - image)
    words = ["--bundle", str(out), "--images", str(parts), "--false-alarm-rate", "0.2"]
    assert calibrate.main(words) == 0
    assert read_bundle(out).calibration.good_images == 6


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("90", "argument --source: '90' is not WIDTHxHEIGHT or WIDTHxHEIGHT:LAYOUT, such as"),
        ("90x80:yuv", "argument --source: layout 'yuv' is unknown; known: bgr, mono, bayer-rggb"),
    ],
)
def test_a_source_that_is_no_frame_is_refused(
    source: str, message: str, built: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_status:
        build.main(["--checkpoint", str(built / "c.pt"), "--source", source])
    assert exit_status.value.code == 2
    assert message in capsys.readouterr().err


def test_frames_unlike_the_images_of_the_training_are_refused(
    built: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--checkpoint", str(built / "c.pt"), "--data", str(data), "--out", str(tmp_path / "b")]
    assert build.main([*words, "--source", "1920x1080"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--source 1920x1080:bgr is far from the sizes that the detector was trained on" in line
    assert "(90x80); give the size of the camera's frames" in line
    assert build.main([*words, "--source", "90x80:mono"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert re.search(r"\.png: the image has colours, .* frames of 90x80:mono", line)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("1920x1080", "--source 1920x1080:bgr is far from the sizes"),
        ("90x80:mono", ".png: the image has colours, and the bundle was built for frames of 90x80"),
    ],
)
def test_they_are_refused_before_the_training(
    source: str, message: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = tmp_path / "c.pt"
    words = ["--data", str(data), "--save-checkpoint", str(checkpoint), "--weights", "random"]
    assert build.main([*words, "--source", source, "--out", str(tmp_path / "b")]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not checkpoint.exists()
