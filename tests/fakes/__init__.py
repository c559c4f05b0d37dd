"""Fakes of a GPU: a CUDA driver that computes on the host, and a TensorRT whose plans run on it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flawline.runtime.bundle import Bundle
from flawline.runtime.engines import EngineOptions, open_engine
from flawline.runtime.engines.tensorrt.engine import TensorRt, TensorRtRtx
from flawline.runtime.engines.tensorrt.plan_cache import RECORD, BuildOptions

HERE = Path(__file__).parent
FP16 = EngineOptions(precision="fp16")
Install = Callable[..., Any]


def compile_cuda(folder: Path, name: str = "libfakecuda.so") -> Path:
    """Compile fakecuda.c; skips the test if there is no compiler.

    Under a name other than libcuda.so.1 it does not hide a real driver from the rest of the
    process.
    """
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    library = folder / name
    command = ["gcc", "-O1", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(library)]
    command += [str(HERE / "fakecuda.c"), "-ldl"]
    subprocess.run(command, check=True)
    return library


def engine_name(version: str) -> str:
    return "tensorrt-rtx" if version.startswith("rtx") else "tensorrt"


def build_plan(
    bundle: Bundle,
    name: str = "tensorrt",
    precision: str = "fp16",
    options: BuildOptions | None = None,
) -> Path:
    """Build the plan of an engine, as `python -m export.build` does."""
    engine = {"tensorrt": TensorRt, "tensorrt-rtx": TensorRtRtx}[name]
    return engine.build(bundle, precision, options, None)


def expected_result(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the one network of the fake TensorRT gives: score [N] and anomaly map [N, H, W]."""
    anomaly_map = images.astype(np.float32).mean(-1)
    return anomaly_map.max((1, 2)), anomaly_map


def random_images(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 64, 64, 3), dtype=np.uint8)


def assert_result(engine: Any, n: int, seed: int) -> None:
    """Run a batch of random images and check its score and map."""
    images = random_images(n, seed)
    score, anomaly_map = engine(images)
    np.testing.assert_allclose(score, expected_result(images)[0], rtol=1e-6)
    np.testing.assert_allclose(anomaly_map, expected_result(images)[1], rtol=1e-6)


def plan_folder(folder: Path) -> Path:
    """The folder of the only plan below `folder`."""
    (record,) = folder.glob(f"*/{RECORD}")
    return record.parent


def open_and_run(bundle: Bundle, version: str, options: EngineOptions = FP16) -> None:
    """Open the engine of a TensorRT version, check one image and close it."""
    engine = open_engine(bundle, engine_name(version), options)
    assert_result(engine, 1, 0)
    engine.close()
