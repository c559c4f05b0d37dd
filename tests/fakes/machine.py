"""A virtual machine with a kernel that has the simulated camera vivid, for tests as root in it.

QEMU emulates it without help of the processor. It sees the files of this machine, read-only, and
runs the same Python. Its kernel is that of a Debian package, installed or unpacked:

    apt-get install --no-install-recommends qemu-system-x86 busybox-static
    apt-get download linux-image-6.1.0-56-amd64
    dpkg-deb -x linux-image-6.1.0-56-amd64*.deb KERNEL
    export FLAWLINE_TEST_KERNEL=KERNEL
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

KERNEL = "FLAWLINE_TEST_KERNEL"
QEMU = "qemu-system-x86_64"
MODULES = ("virtio_pci", "9pnet_virtio", "9p", "vivid")
# Two cameras, with one and with several memory areas per frame. Each is a webcam without sound.
VIVID = "n_devs=2 multiplanar=1,2 node_types=0x1,0x1 num_inputs=1,1 input_types=0,0"
INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /host
/bin/busybox mount -t proc none /proc
/bin/busybox mount -t sysfs none /sys
/bin/busybox mount -t devtmpfs none /dev
{insert}
/bin/busybox mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144,cache=loose,ro host /host
for folder in proc sys dev; do /bin/busybox mount -o bind /$folder /host/$folder; done
/bin/busybox mount -t tmpfs none /host/run
/bin/busybox mount -t tmpfs none /host/dev/shm 2>/dev/null
/bin/busybox chroot /host /bin/sh -c '{command}' </dev/null
echo "status of the machine: $?"
/bin/busybox poweroff -f
"""
STATUS = re.compile(r"status of the machine: (\d+)")


def require_machine() -> tuple[Path, Path]:
    """Return the kernel and the folder of its modules; skip the test where a part is missing."""
    for program in (QEMU, "busybox"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")
    root = Path(os.environ.get(KERNEL, "/"))
    for modules in sorted(root.glob("lib/modules/*")):
        kernel = root / "boot" / f"vmlinuz-{modules.name}"
        if kernel.is_file() and any(modules.rglob("vivid.ko")):
            return kernel, modules
    pytest.skip(f"needs a Debian kernel with the module vivid, unpacked in {KERNEL}")


def module_files(folder: Path) -> list[Path]:
    """Return the files of the modules and of those that they need, in the order of loading."""
    files = {}
    for path in folder.rglob("*.ko"):
        files[path.stem.replace("-", "_")] = path
    ordered: list[Path] = []

    def add(name: str) -> None:
        path = files.get(name.replace("-", "_"))
        # A part of the kernel itself has no file.
        if path is None or path in ordered:
            return
        needed = re.search(rb"\0depends=([^\0]*)\0", b"\0" + path.read_bytes())
        if needed is not None:
            for other in needed[1].decode().split(","):
                add(other)
        ordered.append(path)

    for name in MODULES:
        add(name)
    return ordered


def write_start(folder: Path, modules: list[Path], command: str) -> Path:
    """Write the archive of files that the machine starts with, and return its path."""
    root = folder / "root"
    (root / "bin").mkdir(parents=True)
    (root / "modules").mkdir()
    busybox = shutil.which("busybox")
    assert busybox is not None
    shutil.copy(busybox, root / "bin" / "busybox")
    insert = []
    for path in modules:
        shutil.copy(path, root / "modules")
        arguments = VIVID if path.stem == "vivid" else ""
        insert.append(f"/bin/busybox insmod /modules/{path.name} {arguments}")
    init = root / "init"
    init.write_text(INIT.format(insert="\n".join(insert), command=command))
    init.chmod(0o755)
    names = sorted(str(path.relative_to(root)) for path in root.rglob("*"))
    archive = folder / "start.cpio"
    with archive.open("wb") as file:
        listed = "\n".join(names).encode()
        command_line = [busybox, "cpio", "-o", "-H", "newc"]
        subprocess.run(command_line, cwd=root, input=listed, stdout=file, check=True)
    return archive


def run_in_machine(folder: Path, command: str, seconds: float) -> tuple[int, str]:
    """Run a shell command, which holds no quotes, in a new machine; return status and output."""
    kernel, modules = require_machine()
    archive = write_start(folder, module_files(modules), command)
    shared = "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap"
    machine = [QEMU, "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "1024"]
    machine += ["-nographic", "-no-reboot", "-net", "none", "-virtfs", shared]
    machine += ["-kernel", str(kernel), "-initrd", str(archive)]
    machine += ["-append", "console=ttyS0 quiet panic=-1"]
    result = subprocess.run(
        machine, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, check=True
    )
    output = result.stdout.decode(errors="replace")
    status = STATUS.search(output)
    assert status is not None, output
    return int(status[1]), output
