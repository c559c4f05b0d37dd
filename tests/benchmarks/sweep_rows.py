"""The folder of a sweep as `flawline sweep` leaves it, without a measurement."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]

VERSIONS = {"flawline": "0.1.0", "python": "3.11.7", "numpy": "2.4.6"}
DEVICE = "Intel(R) Xeon(R) Processor, 2 threads"
# Engine, precision, how much faster than the first, how much the accuracy differs.
VARIANTS = (
    ("onnxruntime 1.32.0 CPU fp32", "fp32", 1.0, 0.0),
    ("openvino 2026.4.1 CPU bf16", "bf16", 4.5, -0.0004),
    ("openvino 2026.4.1 CPU int8", "int8", 5.2, -0.004),
)
# Method -> FPS of the first engine, image AUROC on bottle, elpv_mono and tile.
METHODS = {
    "simplenet": (41.0, 0.9996, 0.948, 0.861),
    "supersimplenet": (22.0, 0.999, 0.940, 0.855),
    "glass": (41.5, 0.998, 0.937, 0.871),
    "patchcore": (33.0, 1.0, 0.962, 0.928),
    "padim": (38.0, 0.996, 0.934, 0.882),
    "fastflow": (18.0, 0.998, 0.927, 0.903),
    "stfpm": (26.9, 0.993, 0.887, 0.717),
    "rd4ad": (20.1, 0.998, 0.923, 0.813),
    "cflow": (34.4, 0.997, 0.897, 0.731),
    "csflow": (26.3, 1.0, 0.937, 0.937),
    "differnet": (10.0, 0.999, 0.929, 0.938),
    "ae_ssim": (60.0, 0.998, 0.937, 0.701),
    "draem": (6.0, 0.95, 0.721, 0.74),
    "riad": (1.6, 0.987, 0.802, 0.77),
    "intra": (0.8, 0.95, 0.81, 0.76),
    "ssnf": (3.1, 0.998, 0.935, 0.840),
    "cutpaste": (32.5, 1.0, 0.954, 0.92),
    "cutswap": (32.0, 1.0, 0.951, 0.921),
}
DATA = ("mvtec_bottle", "elpv_mono", "magnetic_tile")
TUNED = {"elpv_mono"}
NO_MAP = {"differnet"}


def measured_row(**changes: Any) -> Row:
    """One row of `measured/`; a change replaces its value."""
    row: Row = {
        "cell": "simplenet-resnet18-mvtec_bottle-0",
        "seed": 0,
        "minutes_to_bundle": 3.4,
        "bundle": "simplenet-resnet18-mvtec_bottle-0",
        "method": "simplenet",
        "backbone": "resnet18",
        "weights": "resnet18_imagenet1k_v1.pth sha256:65b601225ac0cfe5",
        "unfinished": None,
        "data": "mvtec_bottle",
        "input": "256x256 stretch",
        "batch": 1,
        "engine": "onnxruntime 1.32.0 CPU fp32",
        "precision": "fp32",
        "threads": 1,
        "device": DEVICE,
        "images": 460,
        "has_map": True,
        "image_auroc": 0.95,
        "image_ap": 0.97,
        "threshold": 0.98,
        "good_images": 147,
        "false_alarms": 3,
        "defective_images": 313,
        "missed": 129,
        "pixel_auroc": 0.975,
        "pixel_ap": 0.5,
        "aupro": 0.92,
        "p50_ms": 12.5,
        "p95_ms": 13.0,
        "p99_ms": 14.0,
        "fps": 80.0,
        "fps_slowest": 78.0,
        "fps_fastest": 81.0,
        "other_processes": 0.02,
        "model_sha256": "85602ebf1ad1b72b",
        "versions": VERSIONS,
        "speedup": 1.0,
        "flips": 0,
        "clear_flips": 0,
        "asked_rate": 0.01,
        "false_alarm_rate": 3 / 147,
        "false_alarm_interval": [0.0042, 0.0585],
        "recall": 184 / 313,
        "recall_interval": [0.531, 0.643],
        "pg2": 0.41,
        "pb2": 0.62,
        "seg_f1": 0.48,
        "pixel_threshold": 0.7,
        "recall_by_area": [
            {"from_px": 0, "to_px": 64, "defects": 20, "found": 9},
            {"from_px": 64, "to_px": 512, "defects": 30, "found": 27},
        ],
        "tuning_set": False,
    }
    return row | changes


def many_measured(seeds: Iterable[int] = (0,), device: str = DEVICE) -> list[Row]:
    """Rows of all methods, data sets, engines and precisions of this file."""
    rows = []
    for seed in seeds:
        for place, data in enumerate(DATA):
            for method, (fps, *accuracies) in METHODS.items():
                for engine, precision, faster, less in VARIANTS:
                    rows.append(
                        _row_of(method, data, seed, fps, accuracies[place], device)
                        | {
                            "engine": engine,
                            "precision": precision,
                            "image_auroc": accuracies[place] + less - 0.002 * seed,
                            "fps": round(fps * faster, 1),
                            "fps_slowest": round(0.93 * fps * faster, 1),
                            "fps_fastest": round(1.04 * fps * faster, 1),
                            "flips": 6 if precision == "int8" else 0,
                            "speedup": faster,
                        }
                    )
    return rows


def _row_of(method: str, data: str, seed: int, fps: float, accuracy: float, device: str) -> Row:
    backbone = "none" if method in ("draem", "riad", "intra", "ae_ssim") else "resnet18"
    cell = f"{method}-{backbone}-{data}-{seed}"
    row = measured_row(
        cell=cell, bundle=cell, seed=seed, method=method, backbone=backbone, data=data,
        device=device, tuning_set=data in TUNED and method not in ("riad", "draem"),
    )  # fmt: skip
    if data == "elpv_mono" or method in NO_MAP:
        row |= {"pixel_auroc": None, "pixel_ap": None, "aupro": None, "seg_f1": None}
        row |= {"recall_by_area": None, "pixel_threshold": None}
    if method in NO_MAP:
        row["has_map"] = False
    return row


def speed_row(**changes: Any) -> Row:
    """One row of `speed/`; a change replaces its value."""
    row: Row = {
        "cell": "simplenet-resnet18-mvtec_bottle-0",
        "status": "measured",
        "data": "mvtec_bottle",
        "engine": "onnxruntime 1.32.0 CPU fp32",
        "engine_name": "onnxruntime",
        "precision": "fp32",
        "device": DEVICE,
        "versions": VERSIONS,
        "other_processes": 0.02,
        "engine_p50_ms": 10.0,
        "engine_p95_ms": 11.0,
        "engine_p99_ms": 12.0,
        "engine_fps": 100.0,
        "engine_fps_slowest": 97.0,
        "engine_fps_fastest": 102.0,
        "end_to_end_p50_ms": 15.6,
        "decode_p50_ms": 4.0,
        "prepare_p50_ms": 1.5,
        "best_batch": 8,
        "best_batch_fps": 140.0,
        "energy_per_frame_mj": None,
    }
    return row | changes


def robustness_rows() -> list[Row]:
    """Rows of `robustness/`: the images as they are, and with less light."""
    rows = []
    for name, strength, auroc, alarms in (("none", 0, 0.95, 0.02), ("gain", 0.7, 0.91, 0.12)):
        rows.append(
            {
                "cell": "simplenet-resnet18-mvtec_bottle-0",
                "engine": "onnxruntime 1.32.0 CPU fp32",
                "precision": "fp32",
                "perturbation": name,
                "strength": strength,
                "image_auroc": auroc,
                "false_alarm_rate": alarms,
                "false_alarm_interval": [alarms / 2, alarms * 2],
                "recall": 0.6,
            }
        )
    return rows


def write_sweep(folder: Path, measured: Iterable[Row], **others: Iterable[Row]) -> Path:
    """Write a sweep's folder: the rows of each step in the file of their cell."""
    for step, rows in {"measured": measured, **others}.items():
        files: dict[str, list[Row]] = {}
        for row in rows:
            files.setdefault(row["data"] if step == "speed" else row["cell"], []).append(row)
        for name, content in files.items():
            path = folder / step / f"{name}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content[0] if step == "trained" else content))
    return folder
