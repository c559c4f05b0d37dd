"""The build command on a bundle that is there: graphs and engines, as on a box without torch."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from flawline.export import build
from flawline.runtime.bundle import Bundle
from flawline.runtime.engines import ENGINES
from flawline.runtime.precisions import PRECISIONS

ROOT = Path(__file__).resolve().parents[2]


def test_the_engine_of_a_bundle_is_proven_and_timed(
    bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        build.main(["--bundle", str(bundle.path), "--engine", "onnxruntime", "--threads", "1"]) == 0
    )
    told = capsys.readouterr().err
    assert "CPU fp32: self-test passed" in told
    assert "ms an image" in told
    assert f"--bundle {bundle.path}" in told.splitlines()[-1]


def test_without_torch_and_onnx_too(bundle: Bundle) -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'onnx', 'tqdm', 'matplotlib')));"
        "from export import build; sys.exit(build.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "--bundle", str(bundle.path), "--engine", "auto"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"python -m export.build --bundle {bundle.path} --engine tensorrt" in done.stderr


def test_no_engine_leaves_the_bundle_alone(
    bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build.main(["--bundle", str(bundle.path), "--engine", "none"]) == 0
    assert "self-test" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--sm", "86", "--engine", "onnxruntime"], "--sm goes with --engine tensorrt-rtx"),
        (["--engine", "onnxruntime", "--precision", "bf16"], "onnxruntime does not run bf16"),
        (["--engine", "onnxruntime", "--threads", "0"], "--threads 0 is not at least 1"),
        (["--engine", "tensorrt", "--max-batch", "0"], "--max-batch 0"),
    ],
)
def test_a_users_error_is_one_line(
    bundle: Bundle, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build.main(["--bundle", str(bundle.path), *flags]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert message in told[0]


def test_a_bundle_that_is_none_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build.main(["--bundle", str(tmp_path), "--engine", "none"]) == 2
    assert "manifest.json is missing" in capsys.readouterr().err


def test_every_engine_can_be_named(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build.main(["--bundle", str(bundle.path), "--engine", "abacus"])
    told = capsys.readouterr().err
    assert all(name in told for name in ENGINES)


@pytest.mark.torch
def test_a_score_only_bundle_gets_its_fp16_graph_and_no_overlays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch", reason="needs the train extra")
    from flawline.runtime import infer_stream
    from flawline.runtime.bundle import read_bundle
    from flawline.train.data.demo import write_demo

    monkeypatch.setitem(
        PRECISIONS,
        "fp16",
        replace(PRECISIONS["fp16"], score_factor=100.0, map_factor=100.0),
    )  # random features score all parts alike, to within FP16
    write_demo(tmp_path, products=["weave"], train_good=12, test_good=3, per_defect=1)
    data, out = tmp_path / "weave", tmp_path / "bundle"
    flags = [
        "--weights",
        "random",
        "--size",
        "64",
        "--steps",
        "20",
        "--outputs",
        "score",
        "--static-batch",
    ]
    keep = [
        "--save-checkpoint",
        str(tmp_path / "c.pt"),
        "--precision",
        "fp16",
        "--engine",
        "onnxruntime",
    ]
    built = build.main(["--data", str(data), "--out", str(out), *flags, *keep])
    told = capsys.readouterr().err
    assert built == 2  # ONNX Runtime is asked for FP16, which it does not run
    assert "fp16 against fp32: parity on" in told
    assert "onnxruntime does not run fp16" in told
    bundle = read_bundle(out)
    assert bundle.precisions == ("fp32", "fp16")
    assert bundle.manifest.fp32_islands == ("/tail",)
    assert bundle.golden().maps.shape[1:] == bundle.map_size == (0, 0)
    stream = ["--bundle", str(out), "--camera", str(data / "test")]
    assert infer_stream.main(stream) == 0
    assert infer_stream.main([*stream, "--save", str(tmp_path / "judged")]) == 2
    assert "gives no maps to paint" in capsys.readouterr().err
