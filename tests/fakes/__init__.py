"""Stand-ins for a GPU: a CUDA driver that computes on the host, and a TensorRT whose plans run on it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def compile_cuda(folder: Path, name: str = "libfakecuda.so") -> Path:
    """Compile fakecuda.c; skips the test where there is no compiler.

    Named other than libcuda.so.1 it does not hide a real driver from the rest of the process.
    """
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    library = folder / name
    command = ["gcc", "-O1", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(library), str(HERE / "fakecuda.c")]
    subprocess.run([*command, "-ldl"], check=True)
    return library
