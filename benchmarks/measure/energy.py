"""Clocks, power and energy of a GPU while something runs: NVML on a GPU, tegrastats on a Jetson.

NVML counts the energy of the whole GPU, and tegrastats the power of the whole module, so that
nothing else may use the machine meanwhile. Where neither is there, nothing is known.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

# Milliseconds between two lines of tegrastats.
INTERVAL_MS = 100
# The rail of the whole module: VDD_IN on Orin, POM_5V_IN or VIN_SYS_5V0 on older ones. A line has
# the present power of a rail and its mean, such as "VDD_IN 4861mW/4861mW".
MODULE_RAIL = re.compile(r"\b(VDD_IN|POM_5V_IN|VIN_SYS_5V0) (\d+)(?:mW)?/")
WATT = 1000.0


class EnergyMeter(ABC):
    """Measures the energy of a device."""

    # What is measured, such as "GPU 0, NVML".
    source: str

    @abstractmethod
    def measure(self, work: Callable[[], object]) -> float | None:
        """Run `work` and return the joules that the device used meanwhile; None if not known."""

    def state(self) -> dict[str, Any]:
        """Return clocks in MHz, power in W and power limit in W of this moment, where known."""
        return {}


def energy_meter() -> EnergyMeter | None:
    """Return the meter of this machine, or None where there is none."""
    return _Nvml.open() or _Tegrastats.open()


class _Nvml(EnergyMeter):
    """The first GPU, through the package nvidia-ml-py."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self.source = "GPU 0, NVML"
        self._nvml = nvml
        self._handle = handle

    @classmethod
    def open(cls) -> _Nvml | None:
        try:
            import pynvml

            pynvml.nvmlInit()
            return cls(pynvml, pynvml.nvmlDeviceGetHandleByIndex(0))
        except ImportError:
            return None
        except pynvml.NVMLError:
            # There is no driver, or no GPU.
            return None

    def measure(self, work: Callable[[], object]) -> float | None:
        start = self._millijoules()
        work()
        end = self._millijoules()
        if start is None or end is None:
            return None
        return (end - start) / 1000

    def state(self) -> dict[str, Any]:
        nvml = self._nvml
        return {
            "sm_clock_mhz": self._value(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_SM),
            "memory_clock_mhz": self._value(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_MEM),
            "power_w": _watts(self._value(nvml.nvmlDeviceGetPowerUsage)),
            "power_limit_w": _watts(self._value(nvml.nvmlDeviceGetEnforcedPowerLimit)),
        }

    def _millijoules(self) -> int | None:
        # GPUs before Volta do not count their energy.
        return self._value(self._nvml.nvmlDeviceGetTotalEnergyConsumption)

    def _value(self, function: Callable[..., int], *arguments: Any) -> int | None:
        try:
            return function(self._handle, *arguments)
        except self._nvml.NVMLError:
            return None


class _Tegrastats(EnergyMeter):
    """The module of a Jetson: the mean of the power that tegrastats prints, times the seconds."""

    def __init__(self, program: str) -> None:
        self.source = "module, tegrastats"
        self._program = program

    @classmethod
    def open(cls) -> _Tegrastats | None:
        program = shutil.which("tegrastats")
        return None if program is None else cls(program)

    def measure(self, work: Callable[[], object]) -> float | None:
        command = [self._program, "--interval", str(INTERVAL_MS)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            start = time.monotonic()
            try:
                work()
            finally:
                seconds = time.monotonic() - start
                process.terminate()
            output = process.communicate()[0]
        powers = module_powers(output)
        if not powers:
            return None
        return sum(powers) / len(powers) * seconds


def module_powers(text: str) -> list[float]:
    """Return the power of the module in watts that each line of tegrastats states."""
    powers = []
    for line in text.splitlines():
        match = MODULE_RAIL.search(line)
        if match is not None:
            powers.append(int(match[2]) / WATT)
    return powers


def _watts(milliwatts: int | None) -> float | None:
    return None if milliwatts is None else milliwatts / WATT
