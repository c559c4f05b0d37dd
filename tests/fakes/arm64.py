"""A Debian for 64-bit Arm in a folder, whose programs QEMU runs on this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
EMULATOR = Path("/proc/sys/fs/binfmt_misc/qemu-aarch64")
# numpy, OpenCV and ONNX Runtime are linked with libstdc++. The tests run programs, and ask for
# users and groups. What these need comes with them.
DEBIAN = ("python3", "libstdc++6", "bash", "dash", "coreutils", "base-passwd")
RELEASE = "bookworm"
PYTHON = "3.11"
# The names under which wheels for glibc 2.28 and older are published.
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64")
# Inside of the Debian. Python finds packages there in any environment.
CODE = "/opt/flawline"
PACKAGES = "/usr/lib/python3/dist-packages"
SHARED = "/opt/shared"
# What ONNX Runtime reads of /sys, without which it prints errors.
CPUS = ("sys/devices/system/cpu/possible", "sys/devices/system/cpu/present")


def missing() -> str | None:
    """Say what this machine lacks to make the Debian and to run it; None if it lacks nothing."""
    if os.geteuid() != 0:
        return "needs root, to change the root folder of a process"
    for program in ("mmdebstrap", "unshare"):
        if shutil.which(program) is None:
            return f"needs {program}; make test-arm64 installs it"
    if not EMULATOR.exists():
        return "needs QEMU for the programs of 64-bit Arm; make test-arm64 sets it up"
    return None


def only_wheels(python: str) -> list[str]:
    """Return the flags with which pip takes wheels for 64-bit Arm and builds nothing."""
    flags = ["--only-binary=:all:", "--python-version", python, "--implementation", "cp"]
    for platform in PLATFORMS:
        flags += ["--platform", platform]
    return flags


def pip(*words: str) -> str:
    """Run pip of this machine, and return what it prints."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


class Machine:
    """Runs Python with this repository in the Debian. `shared` is a folder that both can see."""

    def __init__(self, root: Path, shared: Path) -> None:
        self.root = root
        self.shared = shared

    @classmethod
    def make(cls, root: Path, shared: Path, requirements: Sequence[str]) -> Machine:
        """Download the Debian and the wheels of the requirements; takes a few minutes."""
        packages = f"--include={','.join(DEBIAN)}"
        # Extracted and not configured, which would run programs of Arm for minutes.
        command = ["mmdebstrap", "--variant=extract", "--arch=arm64", packages, RELEASE, str(root)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        target = root / PACKAGES.lstrip("/")
        pip("install", "--quiet", "--target", str(target), *only_wheels(PYTHON), *requirements)
        (target / "flawline.pth").write_text(f"{CODE}/src\n")
        for folder in ("proc", "dev", "tmp", CODE, SHARED):
            (root / folder.lstrip("/")).mkdir(parents=True, exist_ok=True)
        # What configuring the packages would have made.
        for name in ("passwd", "group"):
            shutil.copy(root / f"usr/share/base-passwd/{name}.master", root / "etc" / name)
        for name in CPUS:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(f"0-{(os.cpu_count() or 1) - 1}\n")
        return cls(root, shared)

    def inside(self, path: Path) -> str:
        """Return the name that a path of the shared folder has in the Debian."""
        return f"{SHARED}/{path.relative_to(self.shared)}"

    def python(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run Python with these arguments, and wait for its end."""
        # Not all of /sys: ONNX Runtime takes what it says about this processor for that of an Arm,
        # and crashes.
        mounts = [("/proc", "/proc"), ("/dev", "/dev")]
        mounts += [(str(REPOSITORY), CODE), (str(self.shared), SHARED)]
        script = ""
        for number, (_source, target) in enumerate(mounts):
            script += f'mount --rbind "${{{number + 2}}}" "$1{target}"\n'
        script += f'root=$1; shift {len(mounts) + 1}\nexec chroot "$root" "$@"\n'
        # The mounts are those of this process alone, and end with it.
        command = ["unshare", "--mount", "sh", "-e", "-c", script, "sh", str(self.root)]
        command += [source for source, _target in mounts]
        command += ["/usr/bin/python3", *words]
        environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/tmp",
            # The repository stays as it is.
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
        }
        return subprocess.run(command, capture_output=True, text=True, env=environment)
