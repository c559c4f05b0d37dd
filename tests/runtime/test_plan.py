"""Plans that are kept: what is used again, what is built again and why, and what serves other machines."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_model, write_tiny_bundle
from fakes import Install, name_of, opened, plan_folder

from flawline.runtime.bundle import Bundle, add_model
from flawline.runtime.engines import EngineError, EngineOptions, open_engine
from flawline.runtime.engines.cuda import driver as cuda
from flawline.runtime.engines.cuda import libcuda
from flawline.runtime.engines.tensorrt.build import build
from flawline.runtime.engines.tensorrt.engine import KERNELS, TensorRtRtx
from flawline.runtime.engines.tensorrt.plan import PLAN, RECORD, BuildOptions

pytest_plugins = ["fakes.fixtures"]


@pytest.mark.parametrize("version", ["8.6", "10.3", "rtx1.7"])
def test_a_plan_is_built_once(
    version: str, parts: Bundle, install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    behaviour = install(version)
    opened(parts, version)
    told = capsys.readouterr().err
    assert "building the fp16 plan, as there is none yet" in told
    opened(parts, version)
    assert len(behaviour.builds) == 1
    assert capsys.readouterr().err == ""
    assert list(parts.path.rglob("*.tmp")) == []


def change_record(folder: Path, **changes: Any) -> None:
    record = json.loads((folder / RECORD).read_bytes())
    (folder / RECORD).write_text(json.dumps({**record, **changes}))


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (
            lambda folder: (folder / PLAN).write_bytes(b"PLA"),
            r"is damaged: its sha256 is not that of engine\.json",
        ),
        (lambda folder: (folder / PLAN).unlink(), "cannot be read"),
        (lambda folder: (folder / RECORD).write_text("{"), "cannot be read"),
        (lambda folder: (folder / RECORD).write_text("[]"), "cannot be read"),
        (lambda folder: change_record(folder, schema=2), "has schema 2, this version reads 1"),
        (lambda folder: change_record(folder, options={"max_batch": 0}), "cannot be read"),
    ],
)
def test_a_plan_that_is_not_whole_is_built_again(
    spoil: Callable[[Path], Any],
    why: str,
    parts: Bundle,
    install: Install,
    capsys: pytest.CaptureFixture[str],
) -> None:
    behaviour = install("10.3")
    opened(parts, "10.3")
    folder = plan_folder(parts.path / "engines")
    spoil(folder)
    capsys.readouterr()
    opened(parts, "10.3")
    assert f"as that in {folder} {why}".replace("\\", "") in capsys.readouterr().err
    assert len(behaviour.builds) == 2
    opened(parts, "10.3")
    assert len(behaviour.builds) == 2


def test_another_version_or_model_builds_again_with_what_was_asked_for(
    parts: Bundle, install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install("10.3")
    build(parts, "tensorrt", options=BuildOptions(max_batch=16))
    behaviour = install("10.13")
    opened(parts, "10.13")
    assert "was built by version 10.3.0, here is 10.13.0" in capsys.readouterr().err
    assert behaviour.builds[-1]["batches"] == [1, 1, 16]
    opened(add_model(parts, "fp16", tiny_model() + b"\0"), "10.13")
    assert "belongs to another model: the bundle was built again" in capsys.readouterr().err
    assert len(behaviour.builds) == 2


def test_other_islands_are_another_model_where_they_decide_the_types(
    tmp_path: Path, install: Install
) -> None:
    behaviour = install("8.6")
    opened(write_tiny_bundle(tmp_path / "b", fp32_islands=("/head",)), "8.6")
    changed = write_tiny_bundle(tmp_path / "other", fp32_islands=("/body",))
    shutil.copytree(tmp_path / "b" / "engines", changed.path / "engines")
    opened(changed, "8.6")
    assert [b["held"] for b in behaviour.builds] == [
        {"/head/Pow": "FLOAT"},
        {"/body/Conv": "FLOAT"},
    ]


def test_a_plan_of_another_gpu_is_left_alone(
    parts: Bundle, install: Install, driver: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    behaviour = install("10.3")
    opened(parts, "10.3")
    driver.fake_device(b"Other GPU (rev. 2)", 8, 9)
    capsys.readouterr()
    opened(parts, "10.3")
    assert "is for Fake GPU 8.6, here is Other GPU (rev. 2) 8.9" in capsys.readouterr().err
    assert sorted(p.name for p in (parts.path / "engines").iterdir()) == [
        "tensorrt-fp16-fake-gpu-sm86",
        "tensorrt-fp16-other-gpu-rev-2-sm89",
    ]
    driver.fake_device(b"Fake GPU", 8, 6)
    opened(parts, "10.3")
    assert len(behaviour.builds) == 2


def test_other_options_build_again_and_opening_takes_what_is_there(
    parts: Bundle, install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    behaviour = install("10.3")
    asked = BuildOptions(max_batch=2)
    assert build(parts, "tensorrt", options=asked) == build(parts, "tensorrt", options=asked)
    assert len(behaviour.builds) == 1
    capsys.readouterr()
    build(parts, "tensorrt", options=replace(asked, level=4))
    assert "was built with other options (level None, asked for 4)" in capsys.readouterr().err
    opened(parts, "10.3")
    assert len(behaviour.builds) == 2


def test_a_plan_that_does_not_load_is_built_again_once(
    parts: Bundle, install: Install, driver: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    for version, why in (
        ("10.3", "Version tag does not match"),
        ("rtx1.7", "MALFORMED_ENGINE, VERSION_MISMATCH"),
    ):
        behaviour = install(version)
        plan = build(parts, name_of(version))
        plan.write_bytes(b"NOPE")
        change_record(plan.parent, plan=hashlib.sha256(b"NOPE").hexdigest())
        capsys.readouterr()
        opened(parts, version)
        assert f"as that in {plan.parent} does not load ({why})" in capsys.readouterr().err
        assert len(behaviour.builds) == 2
        behaviour.refuse_plans = True
        with pytest.raises(
            EngineError, match=r"does not load .*model\.plan .*; choose another --engine"
        ):
            open_engine(parts, name_of(version))
        assert len(behaviour.builds) == 3
    assert driver.fake_live() == 0


def test_the_reason_is_of_this_failure_not_of_an_earlier_one(
    parts: Bundle, install: Install
) -> None:
    behaviour = install("10.3", refuse_build=True)
    with pytest.raises(EngineError, match="no tactic"):
        build(parts, "tensorrt")
    behaviour.refuse_build, behaviour.refuse_plans = False, True
    with pytest.raises(EngineError, match=r"does not load .* \(Version tag does not match\)"):
        open_engine(parts, "tensorrt")
    behaviour.refuse_build = True
    with pytest.raises(EngineError, match="no tactic"):
        build(parts, "tensorrt", options=BuildOptions(max_batch=3))


def test_a_bundle_that_cannot_be_written_wants_an_engine_cache(
    parts: Bundle, tmp_path: Path, install: Install
) -> None:
    behaviour = install("10.3")
    (parts.path / "engines").write_text("in the way")
    with pytest.raises(
        EngineError,
        match=r"plans cannot be kept in .*; choose --engine-cache DIR, or free the disk",
    ):
        opened(parts, "10.3")
    assert behaviour.builds == [], "minutes of building would be lost"
    cached = EngineOptions(precision="fp16", cache=tmp_path / "cache")
    other = add_model(
        write_tiny_bundle(tmp_path / "b" / "parts", fp32_islands=()), "fp16", tiny_model()
    )
    for bundle in (parts, other, parts, other):
        opened(bundle, "10.3", cached)
    assert len(behaviour.builds) == 2
    assert len(list((tmp_path / "cache").glob(f"parts-*/*/{PLAN}"))) == 2


def test_a_full_disk_is_told(
    parts: Bundle, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    install("10.3")
    monkeypatch.setattr("flawline.runtime.engines.tensorrt.plan.write_atomically", full)
    with pytest.raises(EngineError, match=r"No space left on device\); .*free the disk"):
        build(parts, "tensorrt")


def test_timings_are_kept_and_a_foreign_one_is_begun_anew(
    parts: Bundle,
    install: Install,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    behaviour = install("10.3")
    build(parts, "tensorrt", options=BuildOptions(max_batch=1))
    (timings,) = parts.path.glob("engines/*/timings-10.3.0.bin")
    build(parts, "tensorrt", options=BuildOptions(max_batch=2))
    timings.write_bytes(b"of another GPU")
    build(parts, "tensorrt", options=BuildOptions(max_batch=3))
    assert [b["timings"] for b in behaviour.builds] == [b"", b"TIMINGS", b""]

    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("flawline.runtime.engines.tensorrt.build.write_atomically", full)
    build(parts, "tensorrt", options=BuildOptions(max_batch=4))
    assert "timings are not kept" in capsys.readouterr().err


# ---------------------------------------------------------------- TensorRT-RTX


def test_rtx_records_by_itself_and_keeps_its_kernels(
    parts: Bundle,
    install: Install,
    driver: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    behaviour = install("rtx1.7")
    opened(parts, "rtx1.7")
    assert behaviour.contexts[-1]._config.cuda_graph_strategy.name == "WHOLE_GRAPH_CAPTURE"
    assert driver.fake_calls(b"cuStreamBeginCapture_v2") == 0
    kernels = plan_folder(parts.path / "engines") / KERNELS
    assert kernels.read_bytes() == b"KERNELS"
    opened(parts, "rtx1.7")
    assert behaviour.contexts[-1]._config._kernels._loaded == b"KERNELS"
    kernels.write_bytes(b"of another driver")

    def full(path: Path, data: bytes) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("flawline.runtime.engines.tensorrt.engine.write_atomically", full)
    opened(parts, "rtx1.7")
    assert "kernels are not kept" in capsys.readouterr().err


def test_rtx_builds_anywhere_for_the_machines_that_are_named(
    parts: Bundle,
    install: Install,
    driver: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    behaviour = install("rtx1.7")
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(libcuda, "LIBRARY", "/nowhere/libcuda.so.1")
        plan = build(parts, "tensorrt-rtx", options=BuildOptions(capabilities=(120, 86, 89)))
        assert TensorRtRtx.missing() == cuda.driver_missing() is not None
    assert plan.parent.name == "tensorrt-rtx-fp16-sm86-89-120"
    assert behaviour.builds[0]["capabilities"] == ["SM86", "SM89", "SM120"]
    driver.fake_device(b"NVIDIA RTX 4000", 8, 9)
    opened(parts, "rtx1.7")
    assert len(behaviour.builds) == 1
    driver.fake_device(b"NVIDIA A100", 8, 0)
    capsys.readouterr()
    opened(parts, "rtx1.7")
    assert (
        "is for compute capability 8.6, 8.9, 12.0, here is compute capability 8.0"
        in capsys.readouterr().err
    )
    assert behaviour.builds[1]["capabilities"] == ["SM80", "SM86", "SM89", "SM120", "SM121"]


def test_rtx_builds_for_turing_alone_and_refuses_what_it_does_not_know(
    parts: Bundle, install: Install, driver: Any
) -> None:
    behaviour = install("rtx1.7")
    driver.fake_device(b"NVIDIA T4", 7, 5)
    opened(parts, "rtx1.7")
    assert behaviour.builds[0]["capabilities"] == ["SM75"]
    driver.fake_device(b"NVIDIA H100", 9, 0)
    with pytest.raises(
        EngineError, match=r"compute capability 90, only 75, 80, .*; choose another --engine"
    ):
        open_engine(parts, "tensorrt-rtx")
    with pytest.raises(EngineError, match="does not know compute capability 87"):
        build(parts, "tensorrt-rtx", options=BuildOptions(capabilities=(86, 87)))
    install("10.3")
    with pytest.raises(EngineError, match="builds for this machine's GPU only; leave --sm out"):
        build(parts, "tensorrt", options=BuildOptions(capabilities=(86,)))
