"""Stand-ins for a GPU: a CUDA driver that computes on the host, and a TensorRT whose plans run on it."""

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
from flawline.runtime.engines.tensorrt.engine import TensorRt
from flawline.runtime.engines.tensorrt.plan import RECORD

HERE = Path(__file__).parent
FP16 = EngineOptions(precision="fp16")
Install = Callable[..., Any]


def compile_cuda(folder: Path, name: str = "libfakecuda.so") -> Path:
    """Compile fakecuda.c; skips the test where there is no compiler.

    Named other than libcuda.so.1 it does not hide a real driver from the rest of the process.
    """
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    library = folder / name
    command = [
        "gcc",
        "-O1",
        "-shared",
        "-fPIC",
        f"-Wl,-soname,{name}",
        "-o",
        str(library),
        str(HERE / "fakecuda.c"),
    ]
    subprocess.run([*command, "-ldl"], check=True)
    return library


def name_of(version: str) -> str:
    return "tensorrt-rtx" if version.startswith("rtx") else "tensorrt"


def expected(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    heat = images.astype(np.float32).mean(-1)
    return heat.max((1, 2)), heat


def pictures(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 64, 64, 3), dtype=np.uint8)


def assert_right(engine: TensorRt, n: int, seed: int) -> None:
    images = pictures(n, seed)
    score, heat = engine(images)
    np.testing.assert_allclose(score, expected(images)[0], rtol=1e-6)
    np.testing.assert_allclose(heat, expected(images)[1], rtol=1e-6)


def plan_folder(folder: Path) -> Path:
    (record,) = folder.glob(f"*/{RECORD}")
    return record.parent


def opened(bundle: Bundle, version: str, options: EngineOptions = FP16) -> None:
    engine = open_engine(bundle, name_of(version), options)
    assert_right(engine, 1, 0)  # type: ignore[arg-type]
    engine.close()
