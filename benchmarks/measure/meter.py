"""What a computation costs, counted as it is executed: multiply-accumulates, bytes of activations, time per node."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Eager:
    """Of one torch eager call: multiply-accumulates of convolutions and matrix products, bytes of new tensors."""

    macs: int
    bytes_written: int


class _Bytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sums what operators write into new storage, and the copy that pooling makes of a strided input first.

    A view writes nothing; what is written in place is not counted.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        owned = {
            t.untyped_storage().data_ptr()
            for t in tree_leaves((args, kwargs))
            if isinstance(t, torch.Tensor)
        }
        for tensor in tree_leaves(result):
            if (
                isinstance(tensor, torch.Tensor)
                and tensor.untyped_storage().data_ptr() not in owned
            ):
                self.total += tensor.numel() * tensor.element_size()
        if "adaptive_avg_pool" in str(func) and not args[0].is_contiguous():
            self.total += args[0].numel() * args[0].element_size()
        return result


@torch.inference_mode()
def meter(call: Callable[[], Any]) -> Eager:
    with FlopCounterMode(display=False) as flops:
        call()
    with _Bytes() as written:
        call()
    return Eager(flops.get_total_flops() // 2, written.total)


@dataclass(frozen=True)
class Node:
    """A node as ONNX Runtime ran it, which is after its own fusions: median time and bytes of its output."""

    name: str
    kind: str
    milliseconds: float
    bytes_written: int


def profile(model: bytes, image: Any, threads: int | None, runs: int = 20) -> list[Node]:
    """What ONNX Runtime's own profiler says of each node, in order of execution."""
    import onnxruntime as ort

    with tempfile.TemporaryDirectory(prefix="flawline-") as folder:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        options.intra_op_num_threads = threads or 0
        session = ort.InferenceSession(model, options, ["CPUExecutionProvider"])
        for _ in range(runs):
            session.run(None, {"image": np.asarray(image)})
        events = json.loads(Path(session.end_profiling()).read_text())
    found: dict[str, list[Any]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            found[event["name"].removesuffix("_kernel_time")].append(event)
    return [
        Node(
            name,
            each[0]["args"]["op_name"],
            statistics.median(e["dur"] for e in each[runs // 4 :]) / 1e3,
            int(each[-1]["args"].get("output_size", 0)),
        )
        for name, each in found.items()
    ]
