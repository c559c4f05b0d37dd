"""Machines for the doctor: folders with the files that a kernel shows, and answers of programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from flawline.runtime.doctor.machine import Machine

XEON = """\
processor\t: 0
model name\t: Intel(R) Xeon(R) Platinum 8480+
flags\t\t: fpu sse4_2 avx avx2 avx512f avx512_vnni avx512_bf16 amx_bf16 amx_tile amx_int8

processor\t: 1
model name\t: Intel(R) Xeon(R) Platinum 8480+
flags\t\t: fpu sse4_2 avx avx2 avx512f avx512_vnni avx512_bf16 amx_bf16 amx_tile amx_int8
"""
ATOM = """\
processor\t: 0
model name\t: Intel(R) Atom(TM) CPU C2758
flags\t\t: fpu sse4_1 sse4_2 aes
"""
CORTEX = """\
processor\t: 0
BogoMIPS\t: 62.50
Features\t: fp asimd evtstrm aes crc32 atomics fphp asimdhp cpuid asimddp
"""
# A Jetson Orin Nano with JetPack 6.2, as it is delivered.
ORIN = {
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, "
    "EABI: aarch64, DATE: Wed Jan  8 01:49:37 UTC 2025",
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
    "proc/cpuinfo": CORTEX,
    "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=1 NAME=25W >\n"
    "< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n< PM_CONFIG DEFAULT=1 >",
    "sys/class/devfreq/17000000.gpu/min_freq": "306000000",
    "sys/class/devfreq/17000000.gpu/max_freq": "918000000",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
    "sys/class/thermal/thermal_zone0/temp": "52312",
    "sys/class/thermal/thermal_zone0/trip_point_0_type": "passive",
    "sys/class/thermal/thermal_zone0/trip_point_0_temp": "99000",
    "sys/class/thermal/cooling_device0/type": "pwm-fan",
    "sys/class/thermal/cooling_device0/cur_state": "2",
    "sys/class/thermal/cooling_device1/type": "cpu-throttle-alert",
    "sys/class/thermal/cooling_device1/cur_state": "0",
    "usr/lib/aarch64-linux-gnu/nvidia/libnvdla_compiler.so": "library",
}
NVPMODEL = ("nvpmodel", "-q")


def machine_of(
    root: Path,
    files: Mapping[str, str] | None = None,
    answers: Mapping[Sequence[str], str] | None = None,
    architecture: str = "x86_64",
) -> Machine:
    """Write files into a folder, and return the machine whose root it is.

    `answers` has what a program prints by its words; any other program is not there.
    """
    for name, text in (files or {}).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    printed = {tuple(words): text for words, text in (answers or {}).items()}
    return Machine(root, lambda words: printed.get(tuple(words)), {}, architecture)
