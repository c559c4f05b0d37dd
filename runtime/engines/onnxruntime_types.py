"""What ONNX Runtime computes in: the types that its profile of one call states for each kernel."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

# The names of types in a profile, and the precisions that they are of.
TYPES = {"float": "fp32", "float16": "fp16", "bfloat16": "bf16"}
# The beginnings of the names of kernels that compute in INT8, and of those that only move data.
INT8_KERNELS = ("QLinear", "QGemm", "ConvInteger", "MatMulInteger", "DynamicQuantizeMatMul")
MOVING = ("Cast", "Transpose", "Reshape", "Reorder", "Squeeze", "Unsqueeze", "Concat", "Memcpy")
KERNEL = "_kernel_time"


def profiled_types(open_profiled: Any, inputs: Mapping[str, Any]) -> Mapping[str, int]:
    """Run a graph once, and count its kernels by the precision that they compute in.

    `open_profiled` opens a session with the options that it is given.
    """
    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.enable_profiling = True
        options.profile_file_prefix = f"{folder}/profile"
        session = open_profiled(options)
        session.run(None, dict(inputs))
        events = json.loads(Path(session.end_profiling()).read_bytes())
    return count_types(events)


def count_types(events: Iterable[Mapping[str, Any]]) -> Mapping[str, int]:
    """Count the kernels among the events of a profile."""
    counts: Counter[str] = Counter()
    for event in events:
        if not str(event.get("name", "")).endswith(KERNEL):
            continue
        facts = event.get("args", {})
        kernel = str(facts.get("op_name", ""))
        if kernel.startswith(MOVING):
            continue
        if kernel.startswith(INT8_KERNELS):
            counts["int8"] += 1
            continue
        for output in facts.get("output_type_shape", []):
            precision = next((TYPES[kind] for kind in output if kind in TYPES), None)
            if precision is not None:
                counts[precision] += 1
                break
    return counts
