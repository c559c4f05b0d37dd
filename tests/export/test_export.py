from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

import onnx
import onnx.numpy_helper
from test_simplenet import net, picture

from flawline.export import build
from flawline.export.graphs.to_onnx import IR_VERSION, OPSET, node_types, onnx_from_module
from flawline.export.parity import ExportError, compare, gate
from flawline.runtime import infer_stream
from flawline.runtime.bundle import Bundle, read_bundle, write_bundle
from flawline.runtime.engines import EngineError, open_engine
from flawline.runtime.engines.onnxruntime_cpu import OnnxRuntime
from flawline.train import fit
from flawline.train.checkpoint import load_checkpoint

pytestmark = pytest.mark.torch
LIGHT = ["--weights", "random", "--size", "64", "--steps", "3"]
# What SimpleNet's graph is made of. A new kind of node is a decision, not an accident.
SIMPLENET_NODES = {
    "Add", "Cast", "Conv", "Constant", "LeakyRelu", "MatMul", "MaxPool", "ReduceMax", "Relu", "Resize", "Squeeze",
    "Sub", "Transpose",
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good parts are grey noise; the bad ones carry a bright square."""
    root = tmp_path_factory.mktemp("data") / "squares"
    rng = np.random.default_rng(0)
    for folder, count in (("train/good", 24), ("test/good", 5), ("test/square", 5)):
        (root / folder).mkdir(parents=True)
        for i in range(count):
            image = rng.normal(120, 12, (80, 90, 3)).clip(0, 255).astype(np.uint8)
            if folder.endswith("square"):
                image[20:50, 30:60] = 255
            (root / folder / f"{i:03d}.png").write_bytes(cv2.imencode(".png", image)[1].tobytes())
    return root


@pytest.fixture(scope="module")
def built(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built")
    assert fit.main(["--data", str(data), "--out", str(out / "c.pt"), *LIGHT]) == 0
    assert build.main(["--checkpoint", str(out / "c.pt"), "--out", str(out / "bundle")]) == 0
    return out


# ---------------------------------------------------------------- the graph


def test_the_graph_has_the_one_signature_and_no_warning_is_printed() -> None:
    model = net()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = onnx_from_module(model.fused(), model.geometry)
    graph = onnx.load_model_from_string(data)
    assert graph.ir_version == IR_VERSION == 8
    assert [o.version for o in graph.opset_import if o.domain == ""] == [OPSET] == [17]

    def described(value: Any) -> tuple[str, int, list[Any]]:
        tensor = value.type.tensor_type
        return value.name, tensor.elem_type, [d.dim_param or d.dim_value for d in tensor.shape.dim]

    assert [described(v) for v in graph.graph.input] == [
        ("image", onnx.TensorProto.UINT8, ["N", 64, 64, 3])
    ]
    assert [described(v) for v in graph.graph.output] == [
        ("score", onnx.TensorProto.FLOAT, ["N"]),
        ("map", onnx.TensorProto.FLOAT, ["N", 64, 64]),
    ]
    assert not any(t.external_data for t in graph.graph.initializer)


def test_the_graph_is_lean() -> None:
    model = net(size=256, level=384, target=384)
    kinds = node_types(onnx_from_module(model.fused(), model.geometry))
    assert set(kinds) <= SIMPLENET_NODES, set(kinds) - SIMPLENET_NODES
    assert sum(kinds.values()) - kinds["Constant"] <= 75
    assert kinds["Transpose"] == 1
    assert kinds["Conv"] == 15 + 2 + 2 + 1


@pytest.mark.parametrize("size", [64, 72])
def test_onnx_runtime_agrees_with_torch_for_any_batch(size: int, tmp_path: Path) -> None:
    model = net(size=size)
    (tmp_path / "m.onnx").write_bytes(onnx_from_module(model.fused(), model.geometry))
    engine = OnnxRuntime(tmp_path / "m.onnx", (size, size), threads=1)
    image = picture(size, n=3)
    with torch.inference_mode():
        score, heat = model(image)
    for n in (1, 3):
        got_score, got_map = engine(image[:n].numpy())
        np.testing.assert_allclose(got_score, score[:n], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(got_map, heat[:n], rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------- parity


def test_maps_that_drift_are_refused() -> None:
    with pytest.raises(ExportError, match=r"maps are off by 0\.2, the tolerance is 0\.1"):
        gate(parity([0.5], [0.5]), 0.1, 0.2, 0.1)


def parity(reference: list[float], scores: list[float], tolerance: float = 0.1) -> Any:
    paths = [Path(f"{i}.png") for i in range(len(scores))]
    return compare(paths, np.array(reference), np.array(scores), 1.0, tolerance, 0.5)


def test_a_clear_flip_is_refused_by_name() -> None:
    found = parity([0.5, 1.5], [0.5, 0.9])
    assert found.clear_flips == ("1.png: 1.5 became 0.9, threshold 1",)
    with pytest.raises(ExportError, match=r"1\.png: 1\.5 became 0\.9"):
        gate(found, 0.1)


def test_a_flip_within_tolerance_is_listed_and_passes() -> None:
    found = parity([0.5, 1.05], [0.5, 0.99])
    assert (found.clear_flips, len(found.near_flips)) == ((), 1)
    gate(found, 0.1)
    assert found.worst == pytest.approx(0.06)
    assert found.worst_over_spread == pytest.approx(0.12)


@pytest.mark.parametrize("score", [0.7, float("nan")])
def test_drift_is_refused_even_without_a_flip(score: float) -> None:
    with pytest.raises(ExportError, match="off by"):
        gate(parity([0.5, 1.5], [score, 1.5]), 0.1)


# ---------------------------------------------------------------- the commands


def test_images_to_bundle_to_verdicts(
    built: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = read_bundle(built / "bundle")
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
    """The bundle with its ONNX weights changed, not the sizes of a Resize, and its hashes made right again."""
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
        return -values if name.endswith("tail.weight") else values

    with pytest.raises(
        EngineError, match=r"golden image \d scores .* so its verdict flips\): off by"
    ):
        open_engine(nudged(bundle, tmp_path / "pushed", push), "onnxruntime")


def test_a_build_without_a_checkpoint_trains_one(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert build.main(["--data", str(data), *LIGHT]) == 0
    told = capsys.readouterr().err
    assert "no --checkpoint: training simplenet" in told
    assert "0 flipped decisions" in told
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
    ]
    assert fit.main([*flags, "--max-minutes", "1e-9"]) == 0
    assert "stopped by --max-minutes after 1 of 6 steps" in capsys.readouterr().err
    assert load_checkpoint(out)[1]["steps"] == "1"
    unfinished = tmp_path / "c.unfinished.pt"
    assert (
        build.main(
            ["--checkpoint", str(unfinished), "--data", str(data), "--out", str(tmp_path / "b")]
        )
        == 2
    )
    assert "not finished; repeat train.fit" in capsys.readouterr().err
    assert fit.main([*flags, "--seed", "1"]) == 2
    assert "other flags" in capsys.readouterr().err
    assert fit.main(flags) == 0
    assert "at step 1" in capsys.readouterr().err
    assert load_checkpoint(out)[1]["steps"] == "6"
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
            "3.png: has 16 bits per pixel (largest value 9000); declare how many of them are significant",
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
    assert last.startswith("flawline-train: ")
    assert message in last
    assert not (tmp_path / "c.pt").exists()


def test_mixed_sizes_are_said_and_accepted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = bad_folder(tmp_path, "mixed")
    (folder / "3.png").write_bytes(
        cv2.imencode(".png", np.full((50, 70), 90, np.uint8))[1].tobytes()
    )
    assert fit.main(["--data", str(folder), "--out", str(tmp_path / "c.pt"), *LIGHT]) == 0
    assert "images differ in size (40x40 to 70x50)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "complexnet"], "method 'complexnet' is unknown; known: simplenet"),
        (["--backbone", "vgg"], "backbone 'vgg' is unknown; known: resnet18"),
        (["--size", "8"], "input size 8x8 is below 32"),
        (["--steps", "3", "--epochs", "3"], "give one of them"),
        (["--steps", "0"], "--steps 0 is not above 0"),
        (["--device", "abacus"], "use --device cpu"),
        (["--seed", "-1"], "--seed -1 is not from 0"),
        (["--bits", "8"], "--bits 8 is not from 9 to 16"),
        (["--save-checkpoint", "/proc/nowhere/c.pt"], "c.pt: cannot be written"),
        (["--weights", "/nowhere.pth"], "weights /nowhere.pth: cannot be read"),
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
    monkeypatch: Any,
) -> None:
    monkeypatch.chdir(tmp_path)
    light = ["--weights", "random", "--size", "64"] + (
        [] if "--epochs" in arguments else ["--steps", "1"]
    )
    assert (
        build.main(["--data", str(data), "--out", str(tmp_path / "bundle"), *light, *arguments])
        == 2
    )
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("flawline-build: ")
    assert message in last
    assert not (tmp_path / "bundle").exists()


def test_the_whole_line_without_torch_on_the_edge(built: Path, data: Path) -> None:
    """The bundle that was built runs where torch cannot be imported."""
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'train', 'export', 'onnx')));"
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
