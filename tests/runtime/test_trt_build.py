"""What every version's builder is asked for, and NVIDIA's own builder of TensorRT-RTX."""

from __future__ import annotations

import argparse
import io
import json
import signal
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import tiny_model, with_graph, write_tiny_bundle
from fakes import FP16, Install, build_plan
from fakes.tensorrt_api import CLASSIC

from flawline.runtime.bundle import Bundle, BundleError, add_model
from flawline.runtime.engines import EngineError, open_engine
from flawline.runtime.engines.tensorrt.build import parse
from flawline.runtime.engines.tensorrt.engine import TensorRt
from flawline.runtime.engines.tensorrt.plan_cache import RECORD, BuildOptions

pytest_plugins = ["fakes.fixtures"]


@pytest.mark.parametrize("version", CLASSIC)
def test_types_come_from_the_graph_if_networks_are_typed_and_from_flags_before(
    version: str, fp16_bundle: Bundle, install: Install
) -> None:
    control = install(version)
    build_plan(fp16_bundle, "tensorrt")
    (built,) = control.builds
    if version.startswith("8"):
        assert built["onnx"] == "model.onnx"
        assert built["typing"] == ["EXPLICIT_BATCH"]
        assert sorted(built["flags"]) == ["FP16", "OBEY_PRECISION_CONSTRAINTS"]
        assert built["restricted"] == {"/head/Pow": "FLOAT"}
    else:
        assert built["onnx"] == "model.fp16.onnx"
        assert "STRONGLY_TYPED" in built["typing"]
        assert (built["flags"], built["restricted"]) == ([], {})


def test_fp32_is_fp32_and_int8_may_use_fp16(fp16_bundle: Bundle, install: Install) -> None:
    control = install("8.6")
    build_plan(fp16_bundle, "tensorrt", "fp32")
    build_plan(add_model(fp16_bundle, "int8", tiny_model()), "tensorrt", "int8")
    fp32, int8 = control.builds
    assert (fp32["onnx"], fp32["flags"], fp32["restricted"]) == ("model.onnx", [], {})
    assert int8["onnx"] == "model.int8.onnx"
    assert sorted(int8["flags"]) == ["FP16", "INT8", "OBEY_PRECISION_CONSTRAINTS"]
    assert int8["restricted"] == {"/head/Pow": "FLOAT"}


def test_an_island_that_names_no_layer_is_refused(tmp_path: Path, install: Install) -> None:
    bundle = write_tiny_bundle(tmp_path / "b", fp32_islands=("/head/Pow", "/he", "/body"))
    control = install("8.6")
    with pytest.raises(EngineError, match="FP32 islands /he name no layer"):
        build_plan(bundle, "tensorrt")
    control.layers.append(("/he", "FLOAT"))
    build_plan(bundle, "tensorrt")
    assert control.builds[0]["restricted"] == {
        "/body/Conv": "FLOAT",
        "/head/Pow": "FLOAT",
        "/he": "FLOAT",
    }


def test_a_bundle_without_the_precision_says_how_to_add_it(
    bundle: Bundle, install: Install
) -> None:
    install("10.3")
    with pytest.raises(BundleError, match="holds no fp16 graph; add it"):
        open_engine(bundle, "tensorrt")


def test_what_the_builder_is_asked_for(fp16_bundle: Bundle, install: Install, driver: Any) -> None:
    control = install("10.3")
    build_plan(fp16_bundle, "tensorrt", options=BuildOptions(opt_batch=2, max_batch=4))
    assert driver.fake_live() == 0
    (built,) = control.builds
    assert built["batches"] == [1, 2, 4]


@pytest.mark.parametrize(
    ("requested", "message"),
    [
        ({"opt_batch": 9}, "--opt-batch 9 is not between 1 and --max-batch 8"),
        ({"dla": 0}, "add --max-batch 1"),
    ],
)
def test_options_that_make_no_sense_are_refused(requested: dict[str, int], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        BuildOptions(**requested)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("flags", "options"),
    [
        ("", BuildOptions()),
        ("--opt-batch 2 --max-batch 4", BuildOptions(opt_batch=2, max_batch=4)),
        ("--max-batch 1 --dla 0", BuildOptions(max_batch=1, dla=0)),
        ("--sm 86 --sm 120", BuildOptions(capabilities=(86, 120))),
    ],
)
def test_the_build_flags_become_options(flags: str, options: BuildOptions) -> None:
    parser = argparse.ArgumentParser()
    TensorRt.add_build_arguments(parser)
    assert TensorRt.build_options(parser.parse_args(flags.split())) == options


@pytest.mark.parametrize("version", ["10.3", "11.4"])
def test_a_dla_is_used_if_there_is_one(version: str, fp16_bundle: Bundle, install: Install) -> None:
    requested = BuildOptions(dla=1, max_batch=1)
    control = install(version, dla_cores=1)
    with pytest.raises(EngineError, match="finds 1 DLA cores on this machine; leave --dla out"):
        build_plan(fp16_bundle, "tensorrt", options=requested)
    control.dla_cores = 2
    build_plan(fp16_bundle, "tensorrt", options=requested)
    (built,) = control.builds
    assert (built["default_device_type"], built["DLA_core"], built["batches"]) == (
        "DLA",
        1,
        [1, 1, 1],
    )
    assert "GPU_FALLBACK" in built["flags"]
    assert ("FP16" in built["flags"]) == (version == "10.3")
    engine = TensorRt.open(fp16_bundle, FP16)
    assert control.contexts[-1]._engine._dla == 1
    assert len(control.builds) == 1
    engine.close()


def test_a_graph_or_a_plan_that_the_builder_refuses_is_one_line(
    fp16_bundle: Bundle, install: Install
) -> None:
    install("10.3", refuse_build=True)
    with pytest.raises(
        EngineError,
        match=r"cannot build .*model.fp16.onnx \(no tactic for /body/Conv\); free GPU mem",
    ):
        build_plan(fp16_bundle, "tensorrt")
    assert not list(fp16_bundle.path.glob("engines/*/*"))
    rubbish = with_graph(fp16_bundle, "fp16", b"rubbish")
    with pytest.raises(
        EngineError, match=r"does not accept .* \(no importer for Rubbish\); build the bundle again"
    ):
        build_plan(rubbish, "tensorrt")
    fp16_bundle.model("fp16").write_bytes(b"of another bundle")
    with pytest.raises(BundleError, match=r"model.fp16.onnx was replaced while the bundle was"):
        build_plan(fp16_bundle, "tensorrt")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.alone
def test_progress_is_shown_on_a_terminal_and_ctrl_c_ends_the_build(
    fp16_bundle: Bundle, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    control = install("10.3")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    build_plan(fp16_bundle, "tensorrt")
    shown = terminal.getvalue()
    assert "tensorrt: Building 50 %" in shown
    assert "100 %\r\033[Ktensorrt: " in shown, "the line is cleared before the next is printed"

    def interrupt(text: str) -> int:
        if "50 %" in text:
            signal.raise_signal(signal.SIGINT)
        return 0

    handler = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(terminal, "write", interrupt)
    with pytest.raises(KeyboardInterrupt):
        build_plan(fp16_bundle, "tensorrt", options=BuildOptions(max_batch=2))
    assert signal.getsignal(signal.SIGINT) is handler
    assert control.builds[-1]["batches"] == [1, 1, 8], "it stopped before the plan"


def test_progress_goes_nowhere_without_a_terminal_and_survives_one_that_is_closed(
    fp16_bundle: Bundle,
    install: Install,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    install("10.3")
    build_plan(fp16_bundle, "tensorrt")
    assert "%" not in capsys.readouterr().err
    terminal = Terminal()

    def hung_up(text: str) -> int:
        if "%" in text:
            raise OSError(5, "Input/output error")
        return 0

    monkeypatch.setattr(terminal, "write", hung_up)
    monkeypatch.setattr(sys, "stderr", terminal)
    assert build_plan(fp16_bundle, "tensorrt", options=BuildOptions(max_batch=2)).is_file()


def test_ctrl_c_ends_the_process_if_the_builder_cannot_be_stopped(
    fp16_bundle: Bundle, install: Install
) -> None:
    seen, handler = [], signal.getsignal(signal.SIGINT)
    control = install("8.6")
    control.builds = types.SimpleNamespace(
        append=lambda _: seen.append(signal.getsignal(signal.SIGINT))
    )
    build_plan(fp16_bundle, "tensorrt")
    assert seen == [signal.SIG_DFL]
    assert signal.getsignal(signal.SIGINT) is handler


def typed_model() -> bytes:
    """An exported graph with an FP32 island: convolution in FP16, squares and their sum in FP32."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    weights = np.random.default_rng(0).standard_normal((8, 3, 3, 3)).astype(np.float16)
    nodes = [
        helper.make_node("Cast", ["image"], ["half"], name="/input/Cast", to=TensorProto.FLOAT16),
        helper.make_node(
            "Transpose", ["half"], ["planes"], name="/input/Transpose", perm=[0, 3, 1, 2]
        ),
        helper.make_node(
            "Conv", ["planes", "weights"], ["features"], name="/body/Conv", pads=[1] * 4
        ),
        helper.make_node("Cast", ["features"], ["wide"], name="/head/Cast", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["wide", "wide"], ["squares"], name="/head/Mul"),
        helper.make_node(
            "ReduceSum", ["squares", "channels"], ["map"], name="/head/ReduceSum", keepdims=0
        ),
        helper.make_node(
            "ReduceMax", ["map"], ["score"], name="/head/ReduceMax", axes=[1, 2], keepdims=0
        ),
    ]
    graph = helper.make_graph(
        nodes,
        "typed",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 64, 64, 3])],
        [
            helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N"]),
            helper.make_tensor_value_info("map", TensorProto.FLOAT, ["N", 64, 64]),
        ],
        [
            numpy_helper.from_array(weights, "weights"),
            numpy_helper.from_array(np.array([1], np.int64), "channels"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    serialized: bytes = model.SerializeToString()
    return serialized


@pytest.mark.alone
def test_nvidias_builder_takes_the_graph_with_its_types(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trt = pytest.importorskip(
        "tensorrt_rtx", reason="needs tensorrt-rtx-cu13 (pip install 'flawline[rtx]')"
    )
    bundle = add_model(write_tiny_bundle(tmp_path / "b"), "fp16", typed_model())
    builder, network, parser = parse(
        trt, bundle.read_model("fp16"), bundle.model("fp16"), typed=True
    )
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    types = {layer.name: layer.get_output(0).dtype.name for layer in layers}
    assert types["/body/Conv"] == "HALF"
    assert {types[f"/head/{n}"] for n in ("Mul", "ReduceSum", "ReduceMax")} == {"FLOAT"}
    del layers, network, parser, builder

    options = BuildOptions(capabilities=(86, 89, 120), max_batch=4)
    plan = build_plan(bundle, "tensorrt-rtx", "fp16", options)
    record = json.loads((plan.parent / RECORD).read_bytes())
    assert record["identity"]["version"] == trt.__version__
    assert record["identity"]["capabilities"] == [86, 89, 120]
    assert plan.stat().st_size > 10_000
    built = plan.read_bytes()
    plan.unlink()
    assert build_plan(bundle, "tensorrt-rtx", "fp16", options).read_bytes() == built
    messages = capsys.readouterr().err.splitlines()
    assert len(messages) == 4
    for line in messages:
        assert "building the fp16 plan" in line or "was built in" in line
    bundle = with_graph(add_model(bundle, "int8", tiny_model()), "int8", b"rubbish")
    with pytest.raises(
        EngineError,
        match=r"TensorRT 1\..* does not accept .*model\.int8\.onnx \(.*\); build the bundle",
    ):
        build_plan(bundle, "tensorrt-rtx", "int8")
