"""CPU engines use the cores that this process may use, and no absurd number of threads."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flawline.runtime import cores
from flawline.runtime.engines import EngineError, EngineOptions
from flawline.runtime.engines.onnxruntime_cpu import open_session

TINY = Path(__file__).resolve().parents[1] / "golden" / "tiny.onnx"


def limit(monkeypatch: pytest.MonkeyPatch, affinity: int, machine: int = 8) -> None:
    """Let the machine have 8 cores, of which this process may use some."""
    monkeypatch.setattr(os, "cpu_count", lambda: machine)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(affinity)))
    monkeypatch.setattr(cores, "cpu_quota", lambda: None)


def test_the_affinity_limits_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, 3)
    assert cores.allowed_cores() == 3
    assert cores.default_threads() == 3
    limit(monkeypatch, 8)
    assert cores.default_threads() is None


@pytest.mark.parametrize(("quota", "allowed"), [(0.5, 1), (1.5, 2), (2.0, 2), (20.0, 4)])
def test_a_quota_limits_the_cores(
    quota: float, allowed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(monkeypatch, 4)
    monkeypatch.setattr(cores, "cpu_quota", lambda: quota)
    assert cores.allowed_cores() == allowed


@pytest.mark.parametrize(
    ("own", "files", "quota"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/a/b\n", {"a/cpu.max": "200000 100000", "a/b/cpu.max": "max 100000"}, 2.0),
        ("0::/a/b\n", {"a/cpu.max": "200000 100000", "a/b/cpu.max": "50000 100000"}, 0.5),
        (
            "5:cpu,cpuacct:/job\n3:memory:/job\n",
            {
                "cpu,cpuacct/job/cpu.cfs_quota_us": "300000",
                "cpu,cpuacct/job/cpu.cfs_period_us": "100000",
            },
            3.0,
        ),
        ("5:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("0::/\n", {"cpu.max": "what\n"}, None),
        ("0::/\n", {"cpu.max": "0 0\n"}, None),
        ("", {}, None),
        ("odd\n0::/../x\n", {"cpu.max": "100000 100000\n"}, 1.0),
    ],
)
def test_the_quota_is_read_from_the_cgroups(
    own: str, files: dict[str, str], quota: float | None, tmp_path: Path
) -> None:
    membership = tmp_path / "own"
    membership.write_text(own)
    for name, text in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert cores.cpu_quota(tmp_path / "cgroup", membership) == quota


def test_a_machine_without_cgroups_has_no_quota(tmp_path: Path) -> None:
    assert cores.cpu_quota(tmp_path, tmp_path / "absent") is None


def test_onnxruntime_gets_the_allowed_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, 1)
    assert open_session(TINY).get_session_options().intra_op_num_threads == 1
    assert open_session(TINY, threads=2).get_session_options().intra_op_num_threads == 2
    limit(monkeypatch, 8)
    assert open_session(TINY).get_session_options().intra_op_num_threads == 0


def test_an_absurd_number_of_threads_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, 2)
    assert EngineOptions(threads=8).threads == 8
    with pytest.raises(EngineError, match=r"--threads 500 is more than 4 .* give at most 8"):
        EngineOptions(threads=500)
