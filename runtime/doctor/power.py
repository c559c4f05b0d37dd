"""Power mode and clocks, which decide how fast and how even a stream is."""

from __future__ import annotations

import re
from collections.abc import Iterator

from flawline.runtime.doctor.finding import Finding, note, ok
from flawline.runtime.doctor.machine import Machine, Subject

GOVERNORS = "sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
STEADY = "performance"
# The drivers that Jetsons of several generations have for their GPU.
GPU_CLOCKS = ("sys/class/devfreq/*.gpu", "sys/class/devfreq/*.ga10b", "sys/class/devfreq/gpu-gpc-*")
# A line of /etc/nvpmodel.conf, and one that nvpmodel prints.
MODE_IN_FILE = re.compile(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>")
MODE_PRINTED = re.compile(r"NV Power Mode:\s*(\S+)")
UNLIMITED = "MAXN"
QUERY = ("nvpmodel", "-q")


def check_power(machine: Machine, subject: Subject) -> Iterator[Finding]:
    """Say which power mode is set, and whether clocks vary with the load."""
    if machine.jetson is not None:
        yield _power_mode(machine)
        yield _jetson_clocks(machine)
        return
    governors = {machine.read(name) for name in machine.glob(GOVERNORS)}
    names = sorted(name for name in governors if name)
    if not names:
        yield ok("the clocks of the processor are not visible, as in a virtual machine")
    elif names == [STEADY]:
        yield ok(f"frequency governor {STEADY}")
    else:
        yield note(
            f"frequency governor {', '.join(names)}: the first frames after a pause are slower",
            f"sudo cpupower frequency-set -g {STEADY}",
        )


def _power_mode(machine: Machine) -> Finding:
    """Compare the power mode of a Jetson with the fastest one that it has."""
    match = MODE_PRINTED.search(machine.run(QUERY) or "")
    if match is None:
        return note("the power mode is not known", "sudo nvpmodel -q")
    mode = match[1]
    if mode.startswith(UNLIMITED):
        return ok(f"power mode {mode}")
    modes = MODE_IN_FILE.findall(machine.read("etc/nvpmodel.conf") or "")
    fastest = [number for number, name in modes if name.startswith(UNLIMITED)]
    remedy = "list the modes in /etc/nvpmodel.conf, and choose one with sudo nvpmodel -m NUMBER"
    if fastest:
        remedy = f"sudo nvpmodel -m {fastest[-1]}, if power supply and cooling are made for it"
    return note(f"power mode {mode} limits the clocks", remedy)


def _jetson_clocks(machine: Machine) -> Finding:
    """Tell whether jetson_clocks has set the lowest clock of the GPU to the highest."""
    for pattern in GPU_CLOCKS:
        for folder in machine.glob(pattern):
            lowest = machine.read_number(f"{folder}/min_freq")
            highest = machine.read_number(f"{folder}/max_freq")
            if lowest is None or highest is None:
                continue
            if lowest == highest:
                return ok(f"the clock of the GPU is fixed at {highest / 1e6:.0f} MHz")
            return note(
                f"the clock of the GPU varies from {lowest / 1e6:.0f} to {highest / 1e6:.0f} MHz "
                f"with the load",
                "sudo jetson_clocks fixes it until the next start",
            )
    return ok("the clock of the GPU is not visible")
