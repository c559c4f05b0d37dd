"""Stored plans: which are used again, which are built again and why, and those of other GPUs."""

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
from fakes import Install, build_plan, engine_name, open_and_run, plan_folder

from flawline.runtime.bundle import Bundle, add_model
from flawline.runtime.engines import EngineError, EngineOptions, cuda, open_engine
from flawline.runtime.engines.cuda import libcuda
from flawline.runtime.engines.tensorrt.engine import TensorRtRtx
from flawline.runtime.engines.tensorrt.loaded_plan import KERNELS
from flawline.runtime.engines.tensorrt.plan_cache import PLAN, RECORD, BuildOptions

pytest_plugins = ["fakes.fixtures"]


@pytest.mark.parametrize("version", ["8.6", "10.3", "rtx1.7"])
def test_a_plan_is_built_once(
    version: str, fp16_bundle: Bundle, install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    control = install(version)
    open_and_run(fp16_bundle, version)
    message = capsys.readouterr().err
    assert "building the fp16 plan because there is none yet" in message
    open_and_run(fp16_bundle, version)
    assert len(control.builds) == 1
    assert capsys.readouterr().err == ""
    assert list(fp16_bundle.path.rglob("*.tmp")) == []


def change_record(folder: Path, **changes: Any) -> None:
    record = json.loads((folder / RECORD).read_bytes())
    (folder / RECORD).write_text(json.dumps({**record, **changes}))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (
            lambda folder: (folder / PLAN).write_bytes(b"PLA"),
            r"is damaged: its sha256 is not that of engine\.json",
        ),
        (lambda folder: (folder / PLAN).unlink(), "cannot be read"),
        (lambda folder: (folder / RECORD).write_text("{"), "is not valid JSON"),
        (lambda folder: (folder / RECORD).write_text("[]"), "is not a JSON object"),
        (lambda folder: change_record(folder, schema=2), "has schema 2, this version reads 1"),
        (lambda folder: change_record(folder, options={"max_batch": 0}), "cannot be read"),
    ],
)
def test_a_damaged_plan_is_built_again(
    damage: Callable[[Path], Any],
    reason: str,
    fp16_bundle: Bundle,
    install: Install,
    capsys: pytest.CaptureFixture[str],
) -> None:
    control = install("10.3")
    open_and_run(fp16_bundle, "10.3")
    folder = plan_folder(fp16_bundle.path / "engines")
    damage(folder)
    capsys.readouterr()
    open_and_run(fp16_bundle, "10.3")
    assert f"because the plan in {folder} {reason}".replace("\\", "") in capsys.readouterr().err
    assert len(control.builds) == 2
    open_and_run(fp16_bundle, "10.3")
    assert len(control.builds) == 2


def test_another_version_or_model_builds_again_with_the_same_options(
    fp16_bundle: Bundle, install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install("10.3")
    build_plan(fp16_bundle, "tensorrt", options=BuildOptions(max_batch=16))
    control = install("10.13")
    open_and_run(fp16_bundle, "10.13")
    assert (
        "was built by version 10.3.0, the installed version is 10.13.0" in capsys.readouterr().err
    )
    assert control.builds[-1]["batches"] == [1, 1, 16]
    open_and_run(add_model(fp16_bundle, "fp16", tiny_model() + b"\x32\x01x"), "10.13")
    assert "belongs to another model: the bundle was built again" in capsys.readouterr().err
    assert len(control.builds) == 2


def test_other_islands_are_another_model_where_they_decide_the_types(
    tmp_path: Path, install: Install
) -> None:
    control = install("8.6")
    open_and_run(write_tiny_bundle(tmp_path / "b", fp32_islands=("/head",)), "8.6")
    changed = write_tiny_bundle(tmp_path / "other", fp32_islands=("/body",))
    shutil.copytree(tmp_path / "b" / "engines", changed.path / "engines")
    open_and_run(changed, "8.6")
    assert [b["restricted"] for b in control.builds] == [
        {"/head/Pow": "FLOAT"},
        {"/body/Conv": "FLOAT"},
    ]


def test_a_plan_of_another_gpu_is_left_alone(
    fp16_bundle: Bundle, install: Install, driver: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    control = install("10.3")
    open_and_run(fp16_bundle, "10.3")
    driver.fake_device(b"Other GPU (rev. 2)", 8, 9)
    capsys.readouterr()
    open_and_run(fp16_bundle, "10.3")
    assert "is for Fake GPU 8.6, this machine is Other GPU (rev. 2) 8.9" in capsys.readouterr().err
    assert sorted(p.name for p in (fp16_bundle.path / "engines").iterdir()) == [
        "tensorrt-fp16-fake-gpu-sm86",
        "tensorrt-fp16-other-gpu-rev-2-sm89",
    ]
    driver.fake_device(b"Fake GPU", 8, 6)
    open_and_run(fp16_bundle, "10.3")
    assert len(control.builds) == 2


def test_other_options_build_again_and_opening_accepts_any_options(
    fp16_bundle: Bundle, install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    control = install("10.3")
    requested = BuildOptions(max_batch=2)
    first = build_plan(fp16_bundle, "tensorrt", options=requested)
    assert build_plan(fp16_bundle, "tensorrt", options=requested) == first
    assert len(control.builds) == 1
    capsys.readouterr()
    build_plan(fp16_bundle, "tensorrt", options=replace(requested, max_batch=4))
    message = "was built with other options (max_batch 2, requested 4)"
    assert message in capsys.readouterr().err
    open_and_run(fp16_bundle, "10.3")
    assert len(control.builds) == 2


def test_a_record_with_options_of_an_earlier_version_is_read(
    fp16_bundle: Bundle, install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    control = install("10.3")
    options = BuildOptions(max_batch=2)
    folder = build_plan(fp16_bundle, "tensorrt", options=options).parent
    recorded = json.loads((folder / RECORD).read_bytes())["options"]
    change_record(folder, options={**recorded, "level": None, "workspace_mib": None})
    build_plan(fp16_bundle, "tensorrt", options=options)
    assert len(control.builds) == 1, "it was built with the same options"
    change_record(folder, options={**recorded, "level": 5, "workspace_mib": None})
    open_and_run(fp16_bundle, "10.3")
    assert len(control.builds) == 1, "it runs here"
    capsys.readouterr()
    build_plan(fp16_bundle, "tensorrt", options=options)
    assert "was built with other options (level 5, requested None)" in capsys.readouterr().err
    assert len(control.builds) == 2


def test_a_plan_that_does_not_load_is_built_again_once(
    fp16_bundle: Bundle, install: Install, driver: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    for version, reason in (
        ("10.3", "Version tag does not match"),
        ("rtx1.7", "MALFORMED_ENGINE, VERSION_MISMATCH"),
    ):
        control = install(version)
        plan = build_plan(fp16_bundle, engine_name(version))
        plan.write_bytes(b"NOPE")
        change_record(plan.parent, plan=hashlib.sha256(b"NOPE").hexdigest())
        capsys.readouterr()
        open_and_run(fp16_bundle, version)
        message = f"because the plan in {plan.parent} does not load ({reason})"
        assert message in capsys.readouterr().err
        assert len(control.builds) == 2
        control.refuse_plans = True
        with pytest.raises(
            EngineError, match=r"does not load .*model\.plan .*; choose another engine"
        ):
            open_engine(fp16_bundle, engine_name(version))
        assert len(control.builds) == 3
    assert driver.fake_live() == 0


def test_the_reason_is_of_this_failure_not_of_an_earlier_one(
    fp16_bundle: Bundle, install: Install
) -> None:
    control = install("10.3", refuse_build=True)
    with pytest.raises(EngineError, match="no tactic"):
        build_plan(fp16_bundle, "tensorrt")
    control.refuse_build, control.refuse_plans = False, True
    with pytest.raises(EngineError, match=r"does not load .* \(Version tag does not match\)"):
        open_engine(fp16_bundle, "tensorrt")
    control.refuse_build = True
    with pytest.raises(EngineError, match="no tactic"):
        build_plan(fp16_bundle, "tensorrt", options=BuildOptions(max_batch=3))


def test_a_bundle_that_cannot_be_written_needs_an_engine_cache(
    fp16_bundle: Bundle, tmp_path: Path, install: Install
) -> None:
    control = install("10.3")
    (fp16_bundle.path / "engines").write_text("in the way")
    with pytest.raises(
        EngineError,
        match=r"plans cannot be written to .*; check the path, or choose another --engine-cache",
    ):
        open_and_run(fp16_bundle, "10.3")
    assert control.builds == [], "minutes of building would be lost"
    cached = EngineOptions(precision="fp16", cache=tmp_path / "cache")
    other = add_model(
        write_tiny_bundle(tmp_path / "b" / "parts", fp32_islands=()), "fp16", tiny_model()
    )
    for bundle in (fp16_bundle, other, fp16_bundle, other):
        open_and_run(bundle, "10.3", cached)
    assert len(control.builds) == 2
    assert len(list((tmp_path / "cache").glob(f"parts-*/*/{PLAN}"))) == 2


def test_a_full_disk_is_one_line(
    fp16_bundle: Bundle, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    install("10.3")
    monkeypatch.setattr("flawline.runtime.engines.tensorrt.plan_cache.write_atomically", full)
    with pytest.raises(EngineError, match=r"No space left on device\); .*free disk space"):
        build_plan(fp16_bundle, "tensorrt")


def test_timings_are_saved_and_those_of_another_gpu_are_measured_again(
    fp16_bundle: Bundle,
    install: Install,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    control = install("10.3")
    build_plan(fp16_bundle, "tensorrt", options=BuildOptions(max_batch=1))
    (timings,) = fp16_bundle.path.glob("engines/*/timings-10.3.0.bin")
    build_plan(fp16_bundle, "tensorrt", options=BuildOptions(max_batch=2))
    timings.write_bytes(b"of another GPU")
    build_plan(fp16_bundle, "tensorrt", options=BuildOptions(max_batch=3))
    assert [b["timings"] for b in control.builds] == [b"", b"TIMINGS", b""]

    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("flawline.runtime.engines.tensorrt.build.write_atomically", full)
    build_plan(fp16_bundle, "tensorrt", options=BuildOptions(max_batch=4))
    assert "timings cannot be saved" in capsys.readouterr().err


# ---------------------------------------------------------------- TensorRT-RTX


def test_rtx_captures_a_graph_itself_and_saves_its_kernels(
    fp16_bundle: Bundle,
    install: Install,
    driver: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    control = install("rtx1.7")
    open_and_run(fp16_bundle, "rtx1.7")
    assert control.contexts[-1]._config.cuda_graph_strategy.name == "WHOLE_GRAPH_CAPTURE"
    assert driver.fake_calls(b"cuStreamBeginCapture_v2") == 0
    kernels = plan_folder(fp16_bundle.path / "engines") / KERNELS
    assert kernels.read_bytes() == b"KERNELS"
    open_and_run(fp16_bundle, "rtx1.7")
    assert control.contexts[-1]._config._kernels._loaded == b"KERNELS"
    kernels.write_bytes(b"of another driver")

    def full(path: Path, data: bytes) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("flawline.runtime.engines.tensorrt.loaded_plan.write_atomically", full)
    open_and_run(fp16_bundle, "rtx1.7")
    assert "kernels cannot be saved" in capsys.readouterr().err


def test_rtx_builds_anywhere_for_the_requested_machines(
    fp16_bundle: Bundle,
    install: Install,
    driver: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    control = install("rtx1.7")
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(libcuda, "LIBRARY", "/nowhere/libcuda.so.1")
        plan = build_plan(
            fp16_bundle, "tensorrt-rtx", options=BuildOptions(capabilities=(120, 86, 89))
        )
        assert TensorRtRtx.missing() == cuda.driver_missing() is not None
    assert plan.parent.name == "tensorrt-rtx-fp16-sm86-89-120"
    assert control.builds[0]["capabilities"] == ["SM86", "SM89", "SM120"]
    driver.fake_device(b"NVIDIA RTX 4000", 8, 9)
    open_and_run(fp16_bundle, "rtx1.7")
    assert len(control.builds) == 1
    driver.fake_device(b"NVIDIA A100", 8, 0)
    capsys.readouterr()
    open_and_run(fp16_bundle, "rtx1.7")
    assert (
        "is for compute capability 8.6, 8.9, 12.0, this machine is compute capability 8.0"
        in capsys.readouterr().err
    )
    assert control.builds[1]["capabilities"] == ["SM80", "SM86", "SM89", "SM120", "SM121"]


def test_rtx_builds_for_turing_alone_and_refuses_an_unsupported_gpu(
    fp16_bundle: Bundle, install: Install, driver: Any
) -> None:
    control = install("rtx1.7")
    driver.fake_device(b"NVIDIA T4", 7, 5)
    open_and_run(fp16_bundle, "rtx1.7")
    assert control.builds[0]["capabilities"] == ["SM75"]
    driver.fake_device(b"NVIDIA H100", 9, 0)
    with pytest.raises(
        EngineError, match=r"compute capability 90, only 75, 80, .*; choose another engine"
    ):
        open_engine(fp16_bundle, "tensorrt-rtx")
    with pytest.raises(EngineError, match="does not support compute capability 87"):
        build_plan(fp16_bundle, "tensorrt-rtx", options=BuildOptions(capabilities=(86, 87)))
    install("10.3")
    with pytest.raises(EngineError, match="builds for this machine's GPU only; leave --sm out"):
        build_plan(fp16_bundle, "tensorrt", options=BuildOptions(capabilities=(86,)))
