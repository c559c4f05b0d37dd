"""Rows as `benchmarks.evaluate` returns them, without a measurement."""

from __future__ import annotations

from typing import Any

from flawline.benchmarks.evaluate import Row

ENGINES = {
    "onnxruntime 1.32.0 CPU": ("fp32", "int8"),
    "openvino 2026.3.0 CPU": ("fp32", "bf16"),
    "tensorrt 10.13.2 NVIDIA GeForce RTX 4090": ("fp16",),
}
METHODS = {"simplenet": 0.995, "patchcore": 0.99, "padim": 0.96, "ssnf": 0.98}


def row(**changes: Any) -> Row:
    """One row; a change replaces its value."""
    values: Row = {
        "bundle": "part",
        "bundle_id": "0123456789ab",
        "method": "simplenet",
        "backbone": "resnet18",
        "input": "256x256 stretch",
        "unfinished": None,
        "data": "bottle",
        "batch": 1,
        "engine": "onnxruntime 1.32.0 CPU fp32",
        "precision": "fp32",
        "threads": "all",
        "device": "Intel(R) Xeon(R) Processor, 2 threads",
        "image_auroc": 0.95,
        "good_images": 147,
        "false_alarms": 3,
        "defective_images": 313,
        "missed": 129,
        "has_map": True,
        "pixel_auroc": None,
        "aupro": None,
        "p50_ms": 12.5,
        "p95_ms": 13.0,
        "p99_ms": 14.0,
        "fps": 80.0,
        "fps_slowest": None,
        "fps_fastest": None,
        "other_processes": 0.02,
        "speedup": None,
        "flips": None,
        "clear_flips": None,
    }
    return values | changes


def many_rows(number: int = 40) -> list[Row]:
    """Rows of four methods, three engines and four precisions: 20 of each data set."""
    rows = []
    data_sets = 0
    while len(rows) < number:
        name = f"product_{data_sets}_with_a_long_name"
        rows += _rows_of_data(name, harder=0.02 * data_sets)
        data_sets += 1
    return rows[:number]


def _rows_of_data(data: str, harder: float) -> list[Row]:
    rows = []
    for slower, (method, auroc) in enumerate(METHODS.items(), 1):
        for faster, (engine, precisions) in enumerate(ENGINES.items(), 1):
            for index, precision in enumerate(precisions):
                fps = 300.0 * faster**2 * (1 + index) / slower
                rows.append(
                    row(
                        bundle=f"{method}-{data}",
                        method=method,
                        data=data,
                        engine=f"{engine} {precision} (remark)",
                        precision=precision,
                        image_auroc=auroc - harder - 0.004 * index,
                        fps=fps,
                        fps_slowest=0.9 * fps,
                        fps_fastest=1.05 * fps,
                        other_processes=0.35 if method == "ssnf" else 0.02,
                    )
                )
    return rows
