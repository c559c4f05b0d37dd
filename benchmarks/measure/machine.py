"""The machine that a measurement ran on: its CPU, its GPUs with their driver and clocks, its board.

A GPU that is limited in power, or whose clock is low, is slower than the same GPU elsewhere, so a
time says little without these values.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flawline.runtime.environment import cpu_name

# Fields of nvidia-smi, and their names in the results. `nvidia-smi --help-query-gpu` explains them.
GPU_FIELDS = {
    "name": "name",
    "driver_version": "driver",
    "memory.total": "memory",
    "clocks.sm": "clock",
    "clocks.max.sm": "highest clock",
    "power.limit": "power limit",
    "temperature.gpu": "temperature in °C",
}
# What nvidia-smi prints for a field that a GPU does not have begins with this.
NOT_AVAILABLE = "["
TIMEOUT_S = 20
# Files of a Jetson. Its tools nvpmodel and jetson_clocks set these values.
BOARD = "proc/device-tree/model"
RELEASE = "etc/nv_tegra_release"
CLOCKS = "sys/class/devfreq"
# Names of the GPU's folder in CLOCKS end in one of these.
JETSON_GPUS = ("gpu", "ga10b", "gv11b", "gp10b", "gm20b")


def machine_facts(root: Path = Path("/")) -> dict[str, Any]:
    """Return what is known about this machine: `cpu` and `gpus`, on a Jetson `board` and more.

    Clocks are those of this moment: call it when a measurement has just ended.
    """
    facts: dict[str, Any] = {"cpu": cpu_name(), "gpus": gpus()}
    board = _text(root / BOARD)
    if board is not None:
        facts["board"] = board
    release = _text(root / RELEASE)
    if release is not None:
        # Such as "# R36 (release), REVISION: 4.3, GCID: ..., BOARD: generic, ...".
        facts["release"] = ", ".join(release.lstrip("# ").split(", ")[:2])
    facts.update(_jetson_clocks(root / CLOCKS))
    return facts


def gpus() -> list[dict[str, str]]:
    """Return the facts of each NVIDIA GPU that nvidia-smi lists; none where there is no driver."""
    query = ["nvidia-smi", f"--query-gpu={','.join(GPU_FIELDS)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=True, timeout=TIMEOUT_S)
    except (OSError, subprocess.SubprocessError):
        return []
    found = []
    for line in done.stdout.splitlines():
        values = [value.strip() for value in line.split(",")]
        if len(values) != len(GPU_FIELDS):
            continue
        facts = {}
        for name, value in zip(GPU_FIELDS.values(), values, strict=True):
            if not value.startswith(NOT_AVAILABLE):
                facts[name] = value
        found.append(facts)
    return found


def describe_machine(facts: dict[str, Any]) -> str:
    """Return the facts as a list in Markdown, one line each, without a newline at its end."""
    return "\n".join(f"- {line}" for line in machine_lines(facts))


def machine_lines(facts: Mapping[str, Any]) -> list[str]:
    """Return the facts as lines of text."""
    lines = []
    for name, value in facts.items():
        if name == "gpus":
            for gpu in value:
                lines.append(f"GPU: {_joined(gpu)}")
        elif name == "cpu":
            lines.append(f"CPU: {value}")
        else:
            lines.append(f"{name}: {value}")
    return lines


def _joined(gpu: dict[str, str]) -> str:
    words = []
    for name, value in gpu.items():
        words.append(value if name == "name" else f"{name} {value}")
    return ", ".join(words)


def _jetson_clocks(folder: Path) -> dict[str, str]:
    """Return the present and the highest clock of the GPU of a Jetson; empty elsewhere."""
    try:
        names: Sequence[Path] = sorted(folder.iterdir())
    except OSError:
        return {}
    for device in names:
        if not device.name.endswith(JETSON_GPUS):
            continue
        current = _megahertz(device / "cur_freq")
        highest = _megahertz(device / "max_freq")
        if current is not None and highest is not None:
            return {"clock": current, "highest clock": highest}
    return {}


def _megahertz(path: Path) -> str | None:
    text = _text(path)
    if text is None or not text.isdecimal():
        return None
    return f"{int(text) // 1_000_000} MHz"


def _text(path: Path) -> str | None:
    """Return the first line of a file of the system; None where it cannot be read or is empty."""
    try:
        # Texts of the device tree end with a zero byte.
        lines = path.read_text(encoding="utf-8", errors="replace").replace("\0", "").splitlines()
    except OSError:
        return None
    return lines[0].strip() if lines else None
