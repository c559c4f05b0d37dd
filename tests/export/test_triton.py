"""The model repository for Triton, read by Triton's own schema."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SIZE, SOURCE, write_source_bundle, write_tiny_bundle

from flawline.export import ExportError, triton
from flawline.runtime.bundle import Bundle, write_bundle
from flawline.runtime.engines.tensorrt.plan_cache import BuildOptions, Identity, store_plan

ROOT = Path(__file__).resolve().parents[2]


def schema() -> Any:
    """Triton's ModelConfig. The file alone is loaded, because its package needs gRPC."""
    pytest.importorskip("google.protobuf", reason="needs protobuf")
    try:
        modules = [
            f
            for f in files("tritonclient") or []
            if f.parts[-2:] == ("grpc", "model_config_pb2.py")
        ]
    except PackageNotFoundError:
        pytest.skip("needs tritonclient, which carries Triton's schema")
    if "model_config_pb2" not in sys.modules:  # protobuf accepts a file once
        spec = importlib.util.spec_from_file_location("model_config_pb2", str(modules[0].locate()))
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules["model_config_pb2"] = module
    return sys.modules["model_config_pb2"]


def parsed(folder: Path) -> Any:
    from google.protobuf import text_format

    return text_format.Parse((folder / "config.pbtxt").read_text(), schema().ModelConfig())


def test_triton_reads_the_configuration(bundle: Bundle, tmp_path: Path) -> None:
    types = schema()
    folder = triton.write_repository(bundle, tmp_path / "repository", "part", max_batch=4)
    assert folder == tmp_path / "repository" / "part"
    config = parsed(folder)
    assert (config.name, config.backend, config.platform) == ("part", "onnxruntime", "")
    assert (
        folder / "1" / config.default_model_filename
    ).read_bytes() == bundle.model().read_bytes()
    assert config.max_batch_size == 4
    assert config.dynamic_batching.max_queue_delay_microseconds == 500
    assert [(g.count, g.kind) for g in config.instance_group] == [
        (1, types.ModelInstanceGroup.KIND_AUTO)
    ]
    assert [(i.name, i.data_type, list(i.dims)) for i in config.input] == [
        ("image", types.TYPE_UINT8, [SIZE, SIZE, 3])
    ]
    assert [(o.name, o.data_type, list(o.dims)) for o in config.output] == [
        ("score", types.TYPE_FP32, [1]),
        ("map", types.TYPE_FP32, [SIZE, SIZE]),
    ]
    assert config.output[0].HasField("reshape")
    assert not config.output[0].reshape.shape
    assert not config.output[1].HasField("reshape")


def test_the_warm_up_is_a_golden_image_of_the_right_size(bundle: Bundle, tmp_path: Path) -> None:
    types = schema()
    folder = triton.write_repository(bundle, tmp_path, "part")
    (sample,) = parsed(folder).model_warmup
    entry = sample.inputs["image"]
    assert (sample.batch_size, entry.data_type, list(entry.dims)) == (
        1,
        types.TYPE_UINT8,
        [SIZE, SIZE, 3],
    )
    data = np.frombuffer((folder / "warmup" / entry.input_data_file).read_bytes(), np.uint8)
    np.testing.assert_array_equal(data.reshape(entry.dims), bundle.golden().images[0])


def test_a_client_finds_threshold_and_geometry(bundle: Bundle, tmp_path: Path) -> None:
    values = {
        k: v.string_value
        for k, v in parsed(triton.write_repository(bundle, tmp_path, "p")).parameters.items()
    }
    assert float(values["threshold"]) == bundle.calibration.threshold
    assert json.loads(values["geometry"]) == {"kind": "stretch", "height": SIZE, "width": SIZE}
    assert values["onnx_sha256"] == bundle.model_sha256()


def test_without_batching_the_batch_is_in_the_shapes(bundle: Bundle, tmp_path: Path) -> None:
    config = parsed(triton.write_repository(bundle, tmp_path, "part", max_batch=0))
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    assert list(config.input[0].dims) == [1, SIZE, SIZE, 3]
    assert [list(o.dims) for o in config.output] == [[1], [1, SIZE, SIZE]]
    assert not config.output[0].HasField("reshape")
    assert config.model_warmup[0].batch_size == 1


def test_a_bundle_for_frames_states_them_and_the_shape_of_its_map(tmp_path: Path) -> None:
    bundle = write_source_bundle(tmp_path / "framed")
    folder = triton.write_repository(bundle, tmp_path, "part")
    config = parsed(folder)
    height, width = SOURCE.shape
    assert list(config.input[0].dims) == [height, width]
    assert [list(o.dims) for o in config.output] == [[1], [SIZE, SIZE]]
    assert config.parameters["source"].string_value == str(SOURCE)
    assert list(config.model_warmup[0].inputs["image"].dims) == [height, width]
    assert (folder / "warmup" / "image").stat().st_size == height * width


def test_a_graph_of_one_image_is_not_batched(bundle: Bundle, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="needs the train extra")
    model = onnx.load(str(bundle.model()))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    bundle = write_bundle(
        tmp_path / "one",
        bundle.manifest,
        bundle.calibration,
        {"fp32": model.SerializeToString()},
        bundle.golden(),
    )
    assert parsed(triton.write_repository(bundle, tmp_path / "r", "part")).max_batch_size == 0
    with pytest.raises(ExportError, match="takes one image a call; pass --max-batch 0"):
        triton.write_repository(bundle, tmp_path / "r", "part", max_batch=4)


def test_names_are_escaped(tmp_path: Path) -> None:
    odd = 'a "quoted"\\ résumé\n'
    bundle = write_tiny_bundle(tmp_path / "b", backbone=odd)
    assert (
        parsed(triton.write_repository(bundle, tmp_path, "p")).parameters["backbone"].string_value
        == odd
    )


def test_a_bundle_for_the_score_alone_has_no_map(bundle: Bundle) -> None:
    from dataclasses import replace

    from google.protobuf import text_format

    alone = replace(bundle, manifest=replace(bundle.manifest, outputs=("score",)))
    text = triton.config_text(alone, "p", "onnxruntime", "fp32", 8)
    assert [o.name for o in text_format.Parse(text, schema().ModelConfig()).output] == ["score"]


def test_a_tensorrt_plan_takes_the_place_of_the_graph(bundle: Bundle, tmp_path: Path) -> None:
    plan = write_plan(tmp_path / "built", bundle)
    folder = triton.write_repository(bundle, tmp_path / "r", "part", "tensorrt", plan=plan)
    config = parsed(folder)
    assert (config.platform, config.backend) == ("tensorrt_plan", "")
    assert config.instance_group[0].kind == schema().ModelInstanceGroup.KIND_GPU
    assert (folder / "1" / config.default_model_filename).read_bytes() == b"a plan"
    assert not (folder / "1" / "model.onnx").exists()
    assert config.max_batch_size == 4
    # TensorRT 8 builds FP16 plans from the FP32 graph.
    assert config.parameters["precision"].string_value == "fp16"
    assert config.parameters["onnx_sha256"].string_value == bundle.model_sha256()


def write_plan(
    folder: Path, bundle: Bundle, engine: str = "tensorrt", source: str | None = None
) -> Path:
    """Write an FP16 plan with the record of its build, as TensorRT 8 builds it."""
    if source is None:
        source = " ".join((bundle.model_sha256(), *bundle.manifest.fp32_islands))
    identity = Identity(engine, "8.6", "fp16", source, "Orin", (87,))
    folder.mkdir()
    return store_plan(folder, identity, BuildOptions(max_batch=4), b"a plan").path


RECORD_CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "schema": lambda record: record.update(schema=2),
    "batch": lambda record: record["options"].update(max_batch=0),
    "dla": lambda record: record["options"].update(dla=0, max_batch=1),
    "islands": lambda record: record["identity"].update(
        source=f"{record['identity']['source']} /other"
    ),
    "precision": lambda record: record["identity"].update(precision="fp8"),
}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("rtx", "was built by tensorrt-rtx, and Triton needs tensorrt; build it on the server's"),
        ("other", "was not built from a graph of"),
        ("alone", "pass the plan in the folder that flawline build wrote"),
        ("torn", "is not the plan that its engine.json describes"),
        ("text", "its engine.json is not valid JSON .line 1, column 2"),
        ("list", "its engine.json is not a JSON object"),
        ("fields", "its engine.json cannot be read"),
        ("schema", "its engine.json has schema 2, this version reads 1"),
        ("batch", "its engine.json cannot be read"),
        ("dla", "was built for a DLA, which this configuration does not select"),
        ("islands", "was not built from a graph of"),
        ("precision", "was not built from a graph of"),
        ("pipe", "its engine.json cannot be read .not a regular file"),
        ("absent", "there is no such file"),
        ("folder", "there is no such file"),
    ],
)
def test_a_plan_that_triton_would_not_load_is_refused(
    damage: str, message: str, bundle: Bundle, tmp_path: Path
) -> None:
    folder = tmp_path / "built"
    if damage == "rtx":
        plan = write_plan(folder, bundle, "tensorrt-rtx")
    elif damage == "other":
        plan = write_plan(folder, bundle, source="0" * 64)
    else:
        plan = write_plan(folder, bundle)
    record = folder / "engine.json"
    if damage == "alone":
        record.unlink()
    contents = {"text": "{", "list": "[]", "fields": '{"identity": {"engine": "tensorrt"}}'}
    if damage in contents:
        record.write_text(contents[damage])
    if damage in RECORD_CHANGES:
        content = json.loads(record.read_text())
        RECORD_CHANGES[damage](content)
        record.write_text(json.dumps(content))
    if damage == "pipe":
        record.unlink()
        os.mkfifo(record)
    if damage == "torn":
        plan.write_bytes(b"a pla")
    if damage == "absent":
        plan = folder / "other.plan"
    if damage == "folder":
        plan = folder
    with pytest.raises(ExportError, match=message) as caught:
        triton.write_repository(bundle, tmp_path / "r", "part", "tensorrt", plan=plan)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "r").exists()


def test_a_plan_decides_precision_and_largest_batch(bundle: Bundle, tmp_path: Path) -> None:
    plan = write_plan(tmp_path / "built", bundle)
    with pytest.raises(ExportError, match="computes in fp16, not fp32; leave --precision out"):
        triton.write_repository(bundle, tmp_path, "part", "tensorrt", "fp32", plan)
    with pytest.raises(ExportError, match="--max-batch 8 is above 4, the largest batch of the"):
        triton.write_repository(bundle, tmp_path, "part", "tensorrt", plan=plan, max_batch=8)


def test_only_a_folder_that_the_command_wrote_is_replaced(bundle: Bundle, tmp_path: Path) -> None:
    folder = triton.write_repository(bundle, tmp_path / "r", "part")
    (folder / "1" / "stale").write_bytes(b"")
    triton.write_repository(bundle, tmp_path / "r", "part", max_batch=2)
    assert not (folder / "1" / "stale").exists()
    assert "max_batch_size: 2" in (folder / "config.pbtxt").read_text()
    assert [p.name for p in (tmp_path / "r").iterdir()] == ["part"]
    (folder / "config.pbtxt").write_text("name: 'by hand'")
    with pytest.raises(
        ExportError, match="was not written by this command; choose another --out or --name"
    ):
        triton.write_repository(bundle, tmp_path / "r", "part")
    assert (folder / "config.pbtxt").read_text() == "name: 'by hand'"


def test_a_write_that_fails_leaves_the_old_folder(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = triton.write_repository(bundle, tmp_path / "r", "part")
    before = (folder / "config.pbtxt").read_text()
    replace = os.replace

    def fail_for_the_new_folder(source: Path, target: Path) -> None:
        if Path(source).name == "new":
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail_for_the_new_folder)
    with pytest.raises(
        ExportError, match=r"cannot be written \(No space left on device\); free disk space"
    ):
        triton.write_repository(bundle, tmp_path / "r", "part", max_batch=2)
    assert (folder / "config.pbtxt").read_text() == before
    assert [p.name for p in (tmp_path / "r").iterdir()] == ["part"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bundle", "/nowhere"], "there is no such folder"),
        (["--name", "a/b"], "pass --name with letters"),
        (["--engine", "tensorrt"], "--engine tensorrt needs --plan FILE"),
        (
            ["--engine", "tensorrt", "--plan", "/nowhere.plan"],
            "plan /nowhere.plan: there is no such file",
        ),
        (["--plan", "/nowhere.plan"], "--plan is for --engine tensorrt"),
        (["--precision", "int8"], "holds no int8 graph"),
        (["--max-batch", "-1"], "--max-batch -1 is below 0; give 0 for no batching"),
        (["--out", "/proc/x"], "choose another --out"),
    ],
)
def test_a_users_error_is_one_line(
    bundle: Bundle,
    tmp_path: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert (
        triton.main(["--bundle", str(bundle.path), "--out", str(tmp_path / "r"), *arguments]) == 2
    )
    message_line = capsys.readouterr().err
    assert message in message_line
    assert len(message_line.splitlines()) == 1
    assert not (tmp_path / "r").exists() or not list((tmp_path / "r").iterdir())


@pytest.mark.parametrize("flag", ["--bundle", "--out", "--plan"])
def test_an_empty_flag_is_refused(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused(["--bundle", "b", flag, ""])
    (line,) = capsys.readouterr().err.splitlines()
    assert f"argument {flag}: is empty; check that its shell variable is set" in line


def assert_refused(words: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        triton.main(words)
    assert stopped.value.code == 2


def test_an_unknown_precision_is_refused_with_the_known_ones(
    bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    # bf16 is not a graph of its own: it would be served in fp32.
    for precision in ("fp8", "bf16"):
        with pytest.raises(SystemExit) as stopped:
            triton.main(["--bundle", str(bundle.path), "--precision", precision])
        assert stopped.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"invalid choice: '{precision}'" in line
        assert "int8" in line


def test_the_command_needs_no_torch(bundle: Bundle, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'onnx', 'flawline.train')));"
        "from flawline.export.triton import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [
        sys.executable,
        "-c",
        code,
        "--bundle",
        str(bundle.path),
        "--out",
        str(tmp_path / "r"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert "tritonserver --model-repository" in done.stderr
    assert (tmp_path / "r" / "bundle" / "config.pbtxt").is_file()


def test_the_template_is_complete(bundle: Bundle, tmp_path: Path) -> None:
    folder = triton.write_repository(bundle, tmp_path, "part")
    text = (folder / "config.pbtxt").read_text()
    assert text.startswith(f"{triton.MARK}\n")
    assert "$" not in text
