"""Temperatures, and whether the machine is slowed down by them."""

from __future__ import annotations

from collections.abc import Iterator

from flawline.runtime.doctor.finding import Finding, note, ok, problem
from flawline.runtime.doctor.machine import Machine, Subject

ZONES = "sys/class/thermal/thermal_zone*"
# The kernel's devices that cool by computing less; fans are others.
SLOWING = ("processor", "cpufreq", "devfreq")
# Trip points from which on the kernel slows the machine down, or turns it off.
TRIPS = ("passive", "hot", "critical")
CLOSE_BY = 5.0  # degrees
REMEDY = "clean or add a fan, give it air, or choose a lower power mode"
# Counters since the start of the machine.
COUNTERS = "sys/devices/system/cpu/cpu*/thermal_throttle/package_throttle_count"


def check_temperature(machine: Machine, subject: Subject) -> Iterator[Finding]:
    """Compare each temperature with the one at which the machine is slowed down."""
    hottest: tuple[float, str] | None = None
    for zone in machine.glob(ZONES):
        found = _zone(machine, zone)
        if found is None:
            continue
        temperature, name = found
        if hottest is None or temperature > hottest[0]:
            hottest = (temperature, name)
        yield from _near_trip(machine, zone, temperature, name)
    if hottest is None:
        yield ok("no temperature can be read here")
    else:
        yield ok(f"hottest: {hottest[1]} {hottest[0]:.0f} °C")
    yield from _slowed_down(machine)
    counts = [machine.read_number(name) or 0 for name in machine.glob(COUNTERS)]
    if any(counts):
        yield note(f"the processor was slowed down {max(counts)} times since the start", REMEDY)


def _zone(machine: Machine, zone: str) -> tuple[float, str] | None:
    """Return the temperature of a zone in degrees Celsius, and its name."""
    # A zone of a part that is turned off cannot be read.
    thousandths = machine.read_number(f"{zone}/temp")
    if thousandths is None or not 0 < thousandths < 200_000:
        return None
    return thousandths / 1000, machine.read(f"{zone}/type") or zone.rpartition("/")[2]


def _near_trip(machine: Machine, zone: str, temperature: float, name: str) -> Iterator[Finding]:
    limits = []
    for kind_file in machine.glob(f"{zone}/trip_point_*_type"):
        limit = machine.read_number(kind_file.replace("_type", "_temp"))
        if machine.read(kind_file) in TRIPS and limit is not None and limit > 0:
            limits.append(limit / 1000)
    if not limits:
        return
    limit_here = min(limits)
    text = f"{name} is at {temperature:.0f} °C, and its limit is {limit_here:.0f} °C"
    if temperature >= limit_here:
        yield problem(text, REMEDY)
    elif temperature >= limit_here - CLOSE_BY:
        yield note(text, REMEDY)


def _slowed_down(machine: Machine) -> Iterator[Finding]:
    """Name the parts that compute less now to cool down."""
    slowed = set()
    for device in machine.glob("sys/class/thermal/cooling_device*"):
        kind = (machine.read(f"{device}/type") or "").lower()
        state = machine.read_number(f"{device}/cur_state") or 0
        if state > 0 and (kind.startswith(SLOWING) or "throttle" in kind):
            slowed.add(kind)
    if slowed:
        yield problem(f"slowed down now: {', '.join(sorted(slowed))}", REMEDY)
