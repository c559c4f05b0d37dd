"""What the files of a sweep hold, as shapes of `runtime.json_shapes`.

They may have been edited by hand.
"""

from __future__ import annotations

from flawline.runtime.json_shapes import Shape

TEXT = (str, None)
NUMBER = (float, None)

CELL: Shape = {
    "method": str,
    "backbone": str,
    "weights": str,
    "data": str,
    "seed": int,
    "flags?": str,
}
PLAN: Shape = {
    "data?": [str],
    "methods?": [str],
    "backbones?": [str],
    "weights?": str,
    "seeds?": [int],
    "flags?": ({str: str}, None),
    "engines?": [str],
    "threads?": (int, None),
    "cells?": {str: CELL},
}

# Of a cell, however far its training came.
FACTS: Shape = {"status": str, "reason?": TEXT}
# Of a cell that is trained.
TRAINED_FACTS: Shape = {
    "status": str,
    "bundle_id": str,
    "weights_found": (str, int, None),
    "steps": (str, int, None),
    "minutes": NUMBER,
    "device": str,
    "refused": {str: str},
}

# What the report computes with.
NUMBERS = (
    "asked_rate",
    "aupro",
    "best_batch",
    "best_batch_fps",
    "clear_flips",
    "decode_p50_ms",
    "drift",
    "end_to_end_p50_ms",
    "energy_per_frame_mj",
    "false_alarm_rate",
    "flips",
    "image_auroc",
    "images",
    "minutes_to_bundle",
    "other_processes",
    "pb2",
    "pg2",
    "pixel_auroc",
    "prepare_p50_ms",
    "recall",
    "seg_f1",
    "speedup",
    "strength",
)
# Of the engine alone, and of all else that a detector does.
TIMES = ("fps", "fps_slowest", "fps_fastest", "p50_ms", "p95_ms", "p99_ms")
AREA: Shape = {"from_px": float, "to_px": NUMBER, "defects": int, "found": int}
ROW: Shape = {
    "cell?": str,
    "status?": TEXT,
    "reason?": TEXT,
    "method?": str,
    "backbone?": TEXT,
    "data?": str,
    "engine?": str,
    "engine_name?": str,
    "precision?": str,
    "perturbation?": str,
    "device?": str,
    "versions?": {str: str},
    "machine?": {"cpu?": str, "gpus?": [{str: str}]},
    "recall_by_area?": ([AREA], None),
    "reasons?": ({str: TEXT}, None),
    **{f"{key}?": NUMBER for key in (*NUMBERS, *TIMES)},
    **{f"engine_{key}?": NUMBER for key in TIMES},
    **{f"{key}_interval?": ([float], None) for key in ("false_alarm", "recall")},
}
# What a row with a result states in any case, by the folder of its file.
MEASURED_ROW: Shape = {"method": str, "data": str, "engine": str, "precision": str, "device": str}
TIMED_ROW: Shape = {"engine": str, "precision": str}
CHANGED_ROW: Shape = {**TIMED_ROW, "perturbation": str, "strength": float}
RESULT_ROWS = {"measured": MEASURED_ROW, "speed": TIMED_ROW, "robustness": CHANGED_ROW}
