"""Energy of a GPU: NVML's counter, and the power that tegrastats prints."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from flawline.benchmarks.measure.energy import energy_meter, module_powers

# Lines of tegrastats on an Orin NX, and on a Jetson Nano.
ORIN = (
    "11-26-2026 10:00:00 RAM 3170/15523MB (lfb 5x4MB) CPU [5%@729,0%@729] GR3D_FREQ 0% "
    "cpu@47.6C VDD_IN 4861mW/4900mW VDD_CPU_GPU_CV 483mW/483mW VDD_SOC 1449mW/1449mW"
)
NANO = (
    "RAM 1903/3964MB (lfb 69x4MB) IRAM 0/252kB CPU [2%@102] EMC_FREQ 0% GR3D_FREQ 0% "
    "PLL@20C POM_5V_IN 1532/1600 POM_5V_GPU 0/0 POM_5V_CPU 204/204"
)


class FakeNvml(ModuleType):
    """The functions of pynvml that are called, for a GPU that uses 5 W."""

    NVML_CLOCK_SM = 1
    NVML_CLOCK_MEM = 2

    class NVMLError(Exception):
        pass

    def __init__(self, gpus: int = 1, counts_energy: bool = True) -> None:
        super().__init__("pynvml")
        self.gpus = gpus
        self.counts_energy = counts_energy
        self.millijoules = 1000

    def nvmlInit(self) -> None:
        if not self.gpus:
            raise self.NVMLError("Driver Not Loaded")

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        return f"GPU {index}"

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        if not self.counts_energy:
            raise self.NVMLError("Not Supported")
        return self.millijoules

    def nvmlDeviceGetClockInfo(self, handle: str, kind: int) -> int:
        return {self.NVML_CLOCK_SM: 1980, self.NVML_CLOCK_MEM: 2619}[kind]

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        return 5000

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: str) -> int:
        raise self.NVMLError("Not Supported")


@pytest.fixture(autouse=True)
def _no_meter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setenv("PATH", str(tmp_path))


def test_nvml_counts_the_energy_of_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    meter = energy_meter()
    assert meter is not None

    def work() -> None:
        nvml.millijoules += 2500

    assert meter.measure(work) == 2.5
    assert meter.state() == {
        "sm_clock_mhz": 1980,
        "memory_clock_mhz": 2619,
        "power_w": 5.0,
        "power_limit_w": None,
    }


def test_a_gpu_that_counts_no_energy_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(counts_energy=False))
    meter = energy_meter()
    assert meter is not None
    done: list[int] = []
    assert meter.measure(lambda: done.append(1)) is None
    assert done == [1]


def test_without_gpu_and_package_there_is_no_meter(monkeypatch: pytest.MonkeyPatch) -> None:
    assert energy_meter() is None
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(gpus=0))
    assert energy_meter() is None


@pytest.mark.parametrize(("line", "watts"), [(ORIN, 4.861), (NANO, 1.532)])
def test_the_power_of_a_jetson_module(line: str, watts: float) -> None:
    assert module_powers(f"{line}\nno power here\n{line}\n") == [watts, watts]


def test_tegrastats_runs_while_the_work_does(tmp_path: Path) -> None:
    program = tmp_path / "tegrastats"
    started = tmp_path / "started"
    program.write_text(f"#!/bin/sh\necho '{ORIN}'\n: > {started}\nexec /bin/sleep 60\n")
    program.chmod(0o755)
    meter = energy_meter()
    assert meter is not None
    start = time.monotonic()

    def work() -> None:
        while not started.exists() and time.monotonic() < start + 60:
            time.sleep(0.01)

    joules = meter.measure(work)
    assert joules is not None
    assert 0 < joules <= 4.861 * (time.monotonic() - start)
