"""Doctor: checks of a machine, each with what it found and what to do about it.

A new check is one function and one line in CHECKS. The function takes a `Machine`, a `Subject` and,
if the check has members, one of them; it yields findings. It may load any library: all checks run
in a process of their own, so that one that crashes or hangs does not end the others.
"""

from __future__ import annotations

from dataclasses import dataclass

HERE = "flawline.runtime.doctor"


@dataclass(frozen=True)
class Check:
    """A check: "module:function", and how many seconds it may take.

    `members`, another "module:function", returns the names for each of which the check is made.
    """

    target: str
    limit_s: float = 10.0
    members: str | None = None


# In the order of the report.
CHECKS = {
    "system": Check(f"{HERE}.system:check_system"),
    "packages": Check(f"{HERE}.packages:check_packages", 30.0),
    "cpu": Check(f"{HERE}.cpu:check_cpu"),
    "memory": Check(f"{HERE}.memory:check_memory"),
    "power": Check(f"{HERE}.power:check_power"),
    "temperature": Check(f"{HERE}.temperature:check_temperature"),
    "clock": Check(f"{HERE}.clock:check_clock"),
    "jetpack": Check(f"{HERE}.jetpack:check_jetpack"),
    "gpu": Check(f"{HERE}.gpu:check_gpu", 30.0),
    "gpu library": Check("flawline.runtime.engines.tensorrt.doctor:check_library", 60.0),
    "engines": Check(f"{HERE}.engines:check_engine", 60.0, f"{HERE}.engines:engine_names"),
    "gpu use": Check(f"{HERE}.engines:check_gpu_use", 60.0),
    "camera files": Check(f"{HERE}.cameras:check_device_files"),
    "cameras": Check(f"{HERE}.cameras:check_camera", 30.0, f"{HERE}.cameras:camera_names"),
    "network": Check(f"{HERE}.cameras:check_network", 30.0),
    "station": Check(f"{HERE}.subject:check_station"),
    "folders": Check(f"{HERE}.folders:check_folders"),
    "bundle": Check(f"{HERE}.bundle:check_bundle", 60.0),
    "self-test": Check(f"{HERE}.bundle:check_self_test", 180.0, f"{HERE}.engines:engine_names"),
}
