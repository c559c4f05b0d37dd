"""The OpenVINO engine; what holds for every engine is in tests/contract/test_engines.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import with_graph

from flawline.extras import install_command
from flawline.runtime.bundle import Bundle, add_model
from flawline.runtime.engines import EngineError, EngineOptions, open_engine

openvino = pytest.importorskip("openvino", reason="needs the openvino extra")

from flawline.runtime.engines.openvino_cpu import DEVICE, OpenVino

CAPABILITIES = openvino.Core().get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")
native_bf16 = pytest.mark.skipif(
    "BF16" not in CAPABILITIES, reason="needs a CPU with BF16 instructions"
)


def opened(bundle: Bundle, precision: str, threads: int | None = 1) -> OpenVino:
    return OpenVino.open(bundle, EngineOptions(threads=threads, precision=precision))


def settings(
    monkeypatch: pytest.MonkeyPatch, capabilities: tuple[str, ...]
) -> list[dict[str, Any]]:
    """Pretend a CPU with these capabilities; return the settings of each compilation."""
    asked: list[dict[str, Any]] = []
    compile_model = openvino.Core.compile_model
    get_property = openvino.Core.get_property

    def recorded(self: Any, model: Any, device: str, config: dict[str, Any]) -> Any:
        asked.append(config)
        return compile_model(self, model, device, {**config, "INFERENCE_PRECISION_HINT": "f32"})

    def pretended(self: Any, device: str, name: str) -> Any:
        if name == "OPTIMIZATION_CAPABILITIES":
            return list(capabilities)
        return get_property(self, device, name)

    monkeypatch.setattr(openvino.Core, "compile_model", recorded)
    monkeypatch.setattr(openvino.Core, "get_property", pretended)
    return asked


@pytest.mark.parametrize(
    ("precision", "capabilities", "hint"),
    [
        ("fp32", ("FP32", "BF16"), "f32"),  # OpenVINO would choose bf16
        ("bf16", ("FP32", "BF16"), "bf16"),
        ("int8", ("FP32", "BF16", "INT8"), "bf16"),
        ("int8", ("FP32", "INT8"), "f32"),
    ],
)
def test_the_precision_is_always_set(
    bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    capabilities: tuple[str, ...],
    hint: str,
) -> None:
    bundle = add_model(bundle, "int8", bundle.model().read_bytes())
    asked = settings(monkeypatch, capabilities)
    engine = opened(bundle, precision, threads=3)
    engine(bundle.golden().images)
    assert asked == [
        {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": hint,
            "INFERENCE_NUM_THREADS": 3,
        },
    ]
    assert engine.precision == precision
    assert engine.description.endswith(f"(rest {hint})" if precision == "int8" else precision)
    opened(bundle, precision, threads=None)(bundle.golden().images)
    assert "INFERENCE_NUM_THREADS" not in asked[1]


def test_int8_runs_the_graph_of_its_own(bundle: Bundle) -> None:
    bundle = add_model(bundle, "int8", bundle.model().read_bytes())
    bundle = with_graph(bundle, "fp32", b"rubbish")
    assert opened(bundle, "int8")(bundle.golden().images)[0].shape == (2,)
    with pytest.raises(
        EngineError, match=r"cannot load .*model\.onnx .*pip install --upgrade openvino"
    ):
        opened(bundle, "fp32")


def test_bf16_without_the_instructions_is_refused(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings(monkeypatch, ("FP32", "INT8"))
    with pytest.raises(
        EngineError, match=r"^this CPU has no native BF16.*choose --precision fp32$"
    ):
        open_engine(bundle, "openvino", EngineOptions(precision="bf16"))


@native_bf16
def test_bf16_rounds_and_fp32_does_not(bundle: Bundle) -> None:
    image = bundle.golden().images
    exact = image.astype(np.float32).mean(-1)
    worst = {p: np.abs(opened(bundle, p)(image)[1] - exact).max() for p in ("fp32", "bf16")}
    assert worst["fp32"] < 1e-3
    assert worst["bf16"] <= 255 * 2.0**-7


def test_every_batch_size_has_its_own_buffers(bundle: Bundle) -> None:
    engine = opened(bundle, "fp32")
    one = bundle.golden().images[:1]
    two = bundle.golden().images
    first = engine(one)
    copy = first[1].copy()
    assert engine(two)[1].shape == two.shape[:3]
    np.testing.assert_array_equal(first[1], copy)
    again = engine(np.full_like(one, 7))
    assert again[0] is first[0]
    assert again[1] is first[1]
    assert first[1] == pytest.approx(7)
    assert again[0].dtype == again[1].dtype == np.float32


def test_a_failure_of_openvino_is_one_line(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = opened(bundle, "fp32")

    def fail(image: np.ndarray) -> None:
        raise RuntimeError("where it happened\nwhat happened")

    monkeypatch.setattr(engine, "_compile", fail)
    message = (
        r"cannot run this graph on \[1, 64, 64, 3\] \(what happened\); build the bundle again$"
    )
    with pytest.raises(EngineError, match=message):
        engine(bundle.golden().images[:1])


def test_without_the_extra_it_says_what_to_install(bundle: Bundle) -> None:
    code = (
        "import sys, importlib.metadata as m; real = m.version\n"
        "def version(name):\n"
        "    if name == 'openvino': raise m.PackageNotFoundError(name)\n"
        "    return real(name)\n"
        "m.version = version; sys.modules['openvino'] = None\n"
        "from flawline.runtime.engines import missing, open_engine\n"
        "from flawline.runtime.bundle import read_bundle\n"
        "print(missing('openvino'))\n"
        "print(open_engine(read_bundle(sys.argv[1])).description)"
    )
    command = [sys.executable, "-c", code, str(bundle.path)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False
    )
    assert done.returncode == 0, done.stderr
    printed = done.stdout.splitlines()
    assert printed[0] == install_command("openvino")
    assert printed[1].startswith("onnxruntime")
