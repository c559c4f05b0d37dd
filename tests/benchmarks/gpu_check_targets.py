"""What test_gpu_check_methods.py calls in the process of a method."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from flawline.benchmarks.studies.gpu_check import one_method, stages
from flawline.benchmarks.studies.gpu_check.one_method import Record, Task

NETWORK = {"backbone": "resnet18", "size": [256, 256], "macs": 1, "kernels": 1, "weight_bytes": 1}
# Enough for a process to start on a busy machine.
PATIENCE_S = 120.0


def write_row(values: dict[str, Any]) -> None:
    """Write a record of one row; the process of two methods does not return."""
    task = Task(**values)
    row = {"engine": "e", "stage": "host", "drift": 0.0, "finite": True, "p50_ms": 1.0}
    row |= {"fps": 1000.0, "seconds": task.seconds}
    Record(NETWORK, [row]).write(Path(task.record), "the plan")
    if task.method == "spd":
        time.sleep(PATIENCE_S)
    if task.method == "padim":
        os._exit(3)


def measure_shortly(values: dict[str, Any]) -> None:
    """Measure a method as the command does, without the seconds of a stage, in one engine."""
    stages.SECONDS = 0.0
    stages.SETTLE_S = 0.0
    one_method.ENGINES = {"onnxruntime": ""}
    one_method.measure_method(values)


def no_device(device: str) -> dict[str, str]:
    return {"missing": "no driver"}
