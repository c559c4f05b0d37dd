"""The processor: the instructions that decide how fast an engine is, and the allowed cores."""

from __future__ import annotations

from collections.abc import Iterator

from flawline.runtime.cores import cpu_quota
from flawline.runtime.doctor.finding import Finding, note, ok
from flawline.runtime.doctor.machine import Machine, Subject

# Instructions as /proc/cpuinfo names them, and what they are for. One of the names is enough.
Table = tuple[tuple[tuple[str, ...], str], ...]
X86: Table = (
    (("avx2",), "AVX2"),
    (("avx512f",), "AVX-512"),
    (("avx512_vnni", "avx_vnni"), "VNNI (INT8)"),
    (("avx512_bf16",), "AVX-512 BF16"),
    (("amx_bf16",), "AMX BF16"),
    (("amx_int8",), "AMX INT8"),
)
ARM: Table = (
    (("asimd", "neon"), "ASIMD"),
    (("asimdhp", "fphp"), "FP16"),
    (("asimddp",), "dot product (INT8)"),
    (("i8mm",), "I8MM (INT8)"),
    (("bf16",), "BF16"),
    (("sve",), "SVE"),
)
# The first of each table, without which every engine is slow.
NAMES = {"flags": X86, "Features": ARM}
FEW_CORES = 1.0


def check_cpu(machine: Machine, subject: Subject) -> Iterator[Finding]:
    """Name the processor, its instructions and the cores that this process may use."""
    content = machine.read("proc/cpuinfo") or ""
    cores = 0
    model = "unknown processor"
    features: set[str] = set()
    table = X86
    for line in content.splitlines():
        key, _, value = line.partition(":")
        key = key.strip()
        cores += key == "processor"
        if key == "model name":
            model = value.strip()
        if key in NAMES:
            table = NAMES[key]
            features = set(value.split())
    yield ok(f"{model}, {cores} threads")
    if features:
        yield from _instructions(table, features)
    yield from _limits(machine, cores)


def _instructions(table: Table, features: set[str]) -> Iterator[Finding]:
    present: list[str] = []
    absent: list[str] = []
    for names, title in table:
        (present if features & set(names) else absent).append(title)
    text = f"instructions: {', '.join(present) or 'none'}"
    if absent:
        text += f"; not {', '.join(absent)}"
    basic = table[0][1]
    if basic in absent:
        yield note(
            f"{text}; engines are slow without {basic}",
            "use a processor that has it; in a virtual machine, let it pass the host's processor",
        )
    else:
        yield ok(text)


def _limits(machine: Machine, cores: int) -> Iterator[Finding]:
    """Say how many cores this process may use, if these are not all."""
    quota = cpu_quota(machine.path("sys/fs/cgroup"), machine.path("proc/self/cgroup"))
    if quota is not None and quota < cores:
        text = f"the control group allows {quota:g} of {cores} cores"
        remedy = "raise the limit: docker run --cpus, or CPUQuota= of the service"
        if quota < FEW_CORES:
            yield note(f"{text}, so that frames stutter", remedy)
        else:
            yield ok(text)
    allowed = _allowed(machine)
    if allowed is not None and allowed < cores:
        yield ok(f"this process may use {allowed} of {cores} cores (affinity)")


def _allowed(machine: Machine) -> int | None:
    """Return how many cores the affinity of this process allows; None if that is not known."""
    for line in (machine.read("proc/self/status") or "").splitlines():
        key, _, value = line.partition(":")
        if key == "Cpus_allowed":
            digits = value.replace(",", "").strip()
            return bin(int(digits, 16)).count("1")
    return None
