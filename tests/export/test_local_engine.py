"""The engine of this machine: compiled by its class, tested, timed; with toy engines."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from conftest import write_tiny_bundle

from flawline.export import measured_choice
from flawline.export.local_engine import (
    add_build_arguments,
    prepare_local_engine,
    read_build_options,
)
from flawline.runtime.bundle import Bundle
from flawline.runtime.engines import ENGINES, Engine, EngineError, EngineOptions
from flawline.runtime.engines.onnxruntime_cpu import OnnxRuntime
from flawline.runtime.engines.tensorrt.plan_cache import BuildOptions
from flawline.runtime.tiles import Tiling

DEFAULTS = EngineOptions()


class Compiling(OnnxRuntime):
    """ONNX Runtime as an engine that compiles and can be used here."""

    precisions: ClassVar[tuple[str, ...]] = ("fp32", "int8")
    compiles = True

    @classmethod
    def add_build_arguments(cls, parser: Any) -> None:
        parser.add_argument("--level", type=int)

    @classmethod
    def build_options(cls, args: argparse.Namespace) -> Any:
        return args.level

    builds: ClassVar[list[tuple[Any, ...]]] = []

    @classmethod
    def build(
        cls, bundle: Bundle, precision: str, build_options: Any = None, cache: Path | None = None
    ) -> Path:
        cls.builds.append((precision, build_options, cache))
        return bundle.model()


class Elsewhere(Compiling):
    """Compiles for another machine, as tensorrt-rtx does without a GPU."""

    @classmethod
    def missing(cls) -> str | None:
        return "no GPU"

    @classmethod
    def open(cls, bundle: Bundle, options: EngineOptions) -> Engine:  # type: ignore[override]
        raise AssertionError("it cannot be opened here")


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    listed = dict(ENGINES)
    monkeypatch.setitem(ENGINES, "compiling", f"{__name__}:Compiling")
    monkeypatch.setitem(ENGINES, "elsewhere", f"{__name__}:Elsewhere")
    monkeypatch.setattr(Compiling, "builds", [])
    yield
    monkeypatch.undo()
    # An engine that was taken out comes back at the end, and the order decides which one is chosen.
    ENGINES.clear()
    ENGINES.update(listed)


def test_a_compiling_engine_is_built_then_tested_and_timed(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build_options = BuildOptions(max_batch=4, capabilities=(86,))
    prepare_local_engine(
        bundle, "compiling", EngineOptions(cache=tmp_path), {"compiling": build_options}
    )
    assert Compiling.builds == [("fp32", build_options, tmp_path)]
    plan, engine = capsys.readouterr().err.splitlines()
    assert plan.startswith(f"plan {bundle.model()} (0.0 MB)")
    assert "self-test passed" in engine
    assert engine.endswith("ms per image")


def test_the_time_of_a_tile_is_called_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measured_choice, "TURN_S", 0)
    for name in list(ENGINES):
        if name != "onnxruntime":
            monkeypatch.delitem(ENGINES, name)
    bundle = write_tiny_bundle(tmp_path / "tiled", tiles=Tiling(2, 2, 0.25))
    prepare_local_engine(bundle, "onnxruntime", DEFAULTS, {})
    assert capsys.readouterr().err.endswith("ms per tile\n")
    prepare_local_engine(bundle, "auto", DEFAULTS, {})
    text = capsys.readouterr().err
    assert "ms per tile  chosen" in text
    assert "ms per image" not in text


def test_an_engine_for_another_machine_is_only_built(
    bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare_local_engine(bundle, "elsewhere", EngineOptions(precision="int8"), {})
    assert [build[0] for build in Compiling.builds] == ["int8"]
    text = capsys.readouterr().err
    assert "the plan cannot run on this machine (no GPU)" in text
    assert "--engine elsewhere" in text


def read_flags(engine: str, *words: str) -> Any:
    parser = argparse.ArgumentParser()
    parser.add_argument("--engine")
    add_build_arguments(parser)
    return read_build_options(parser.parse_args(["--engine", engine, *words]))


def test_an_engine_reads_its_own_build_flags() -> None:
    assert read_flags("compiling", "--level", "3") == {"compiling": 3}
    assert read_flags("compiling") == {"compiling": None}
    assert read_flags("auto", "--level", "3")["compiling"] == 3
    assert read_flags("none") == {}
    options = read_flags("tensorrt", "--max-batch", "4", "--opt-batch", "2")
    assert options == {"tensorrt": BuildOptions(opt_batch=2, max_batch=4)}


@pytest.mark.parametrize(
    ("engine", "flags", "reason"),
    [
        ("compiling", ["--max-batch", "4"], "does not use --max-batch on this machine; leave it"),
        ("tensorrt", ["--level", "3"], "or choose --engine compiling or elsewhere"),
        ("onnxruntime", ["--sm", "86"], "--engine onnxruntime does not use --sm"),
        ("none", ["--dla", "0"], "--engine none does not use --dla"),
    ],
)
def test_a_build_flag_of_another_engine_is_refused(
    engine: str, flags: list[str], reason: str
) -> None:
    with pytest.raises(EngineError, match=reason):
        read_flags(engine, *flags)


def test_the_engines_that_compile_are_suggested_where_none_does(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("tensorrt", "tensorrt-rtx", "openvino"):
        monkeypatch.delitem(ENGINES, name)
    monkeypatch.setattr(measured_choice, "TURN_S", 0)
    monkeypatch.setattr(Compiling, "missing", classmethod(lambda cls: "no GPU"))
    prepare_local_engine(bundle, "auto", DEFAULTS, {})
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("on a machine for compiling or elsewhere, run: flawline build --bundle ")
    assert last.endswith("--engine compiling")


def test_an_engine_that_is_absent_says_what_is_missing(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OnnxRuntime, "missing", classmethod(lambda cls: "pip install it"))
    with pytest.raises(EngineError, match="engine onnxruntime: pip install it"):
        prepare_local_engine(bundle, "onnxruntime", DEFAULTS, {})


def test_a_compiling_engine_is_built_in_every_precision_that_is_measured(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in list(ENGINES):
        monkeypatch.delitem(ENGINES, name)
    monkeypatch.setitem(ENGINES, "elsewhere", f"{__name__}:Elsewhere")
    monkeypatch.setitem(ENGINES, "compiling", f"{__name__}:Compiling")
    monkeypatch.setattr(measured_choice, "TURN_S", 0)
    prepare_local_engine(bundle, "auto", DEFAULTS, {"compiling": 3})
    # The bundle has no other graph.
    assert [build[:2] for build in Compiling.builds] == [("fp32", 3)]
    text = capsys.readouterr().err
    assert "left out elsewhere: no GPU" in text
    assert "left out compiling int8: the bundle has no int8 graph" in text
