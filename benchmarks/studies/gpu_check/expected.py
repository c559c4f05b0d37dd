"""What a GPU should reach at batch 1, from its published figures and the size of a graph.

At batch 1, a GPU waits for the start of each kernel and computes at a small part of its peak. The
estimate adds both. It knows nothing of activations that leave the caches, and takes operators that
work value by value for free.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

# From one kernel of a CUDA graph to the next, in microseconds.
KERNEL_US = (2.0, 5.0)
# Share of the FP16 peak that convolutions reach at batch 1.
SHARE_OF_PEAK = (0.25, 0.10)


class Hardware(NamedTuple):
    """A GPU: peak of dense FP16 products in TFLOPS, and bandwidth of its memory in GB/s.

    It is the GPU whose description has all words of `name`.
    """

    name: str
    tflops: float
    bandwidth: float


class Aim(NamedTuple):
    """FPS that a backbone is to reach at a size, with the image on the GPU and a CUDA graph."""

    gpus: tuple[str, ...]
    backbone: str
    size: int
    fps: int


GPUS = (
    Hardware("Orin Nano", 10, 68),
    Hardware("Orin Nano Super", 17, 102),
    Hardware("Orin NX", 15, 102),
    Hardware("AGX Orin", 42, 205),
    Hardware("T4", 65, 320),
    Hardware("L4", 121, 300),
    Hardware("A100", 312, 1935),
    Hardware("RTX 4090", 165, 1008),
    Hardware("H100", 989, 3350),
    Hardware("H200", 989, 3350),
)
AIMS = (
    Aim(("H100", "H200"), "resnet18", 256, 5000),
    Aim(("H100", "H200"), "wide_resnet50_2", 288, 2000),
)


def find_hardware(text: str) -> Hardware | None:
    """Return the GPU that a text describes; None for one without figures here."""
    words = set(re.findall(r"[a-z0-9]+", text.lower()))
    found = [gpu for gpu in GPUS if set(gpu.name.lower().split()) <= words]
    # The longer name says more.
    return max(found, key=lambda gpu: len(gpu.name), default=None)


def expected_fps(hardware: Hardware, macs: int, kernels: int, weight_bytes: int) -> list[int]:
    """Return the lowest and the highest FPS to expect of an FP16 graph at batch 1.

    `macs` are its multiply-accumulates, `kernels` its operators that take a kernel of their own.
    """
    memory_us = weight_bytes / (hardware.bandwidth * 1e3)
    results = []
    for start_us, share in zip(KERNEL_US, SHARE_OF_PEAK, strict=True):
        compute_us = 2 * macs / (share * hardware.tflops * 1e6)
        results.append(round(1e6 / (kernels * start_us + max(compute_us, memory_us))))
    return sorted(results)


def find_aim(hardware: Hardware | None, network: Mapping[str, Any]) -> int | None:
    """Return the FPS that a network is to reach; None where no aim was set."""
    if hardware is None:
        return None
    asked = (network["backbone"], network["size"])
    for aim in AIMS:
        if hardware.name in aim.gpus and asked == (aim.backbone, [aim.size, aim.size]):
            return aim.fps
    return None
