"""What the doctor's checks find on machines of all kinds, and what they say to do."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from fakes.machines import ATOM, CORTEX, NVPMODEL, ORIN, XEON, machine_of

from flawline.cameras import v4l2
from flawline.runtime.doctor import gpu
from flawline.runtime.doctor.cameras import check_device_files, check_network
from flawline.runtime.doctor.clock import SYNCHRONISED, judge_clock
from flawline.runtime.doctor.cpu import check_cpu
from flawline.runtime.doctor.finding import LEVELS, NOTE, OK, PROBLEM, Finding, split_remedy
from flawline.runtime.doctor.folders import check_folders, file_system, judge_space
from flawline.runtime.doctor.gpu import QUERY, check_gpu, driver_version, has_gpu
from flawline.runtime.doctor.jetpack import check_jetpack
from flawline.runtime.doctor.machine import Machine, Subject, run_program
from flawline.runtime.doctor.memory import check_memory
from flawline.runtime.doctor.packages import compare_opencv
from flawline.runtime.doctor.power import check_power
from flawline.runtime.doctor.system import check_system
from flawline.runtime.doctor.temperature import check_temperature
from flawline.runtime.engines import cuda
from flawline.runtime.engines.tensorrt import doctor as tensorrt

NOTHING = Subject()


def the(level: str, findings: Iterable[Finding]) -> Finding:
    """Return the only finding of a level."""
    (found,) = [finding for finding in findings if finding.level == level]
    assert (found.remedy is not None) or level != PROBLEM
    return found


def levels(findings: Iterable[Finding]) -> set[str]:
    return {finding.level for finding in findings}


# The processor.


def test_the_instructions_of_a_server_are_named(tmp_path: Path) -> None:
    machine = machine_of(tmp_path, {"proc/cpuinfo": XEON, "proc/self/status": "Cpus_allowed:\t3"})
    processor, instructions = check_cpu(machine, NOTHING)
    assert processor.text == "Intel(R) Xeon(R) Platinum 8480+, 2 threads"
    assert instructions.text == (
        "instructions: AVX2, AVX-512, VNNI (INT8), AVX-512 BF16, AMX BF16, AMX INT8"
    )


def test_those_of_an_arm_processor_are_others(tmp_path: Path) -> None:
    machine = machine_of(tmp_path, {"proc/cpuinfo": CORTEX})
    assert any(
        finding.text == "instructions: ASIMD, FP16, dot product (INT8); not I8MM (INT8), BF16, SVE"
        for finding in check_cpu(machine, NOTHING)
    )


def test_a_processor_without_avx2_is_a_note(tmp_path: Path) -> None:
    machine = machine_of(tmp_path, {"proc/cpuinfo": ATOM})
    assert "slow without AVX2" in the(NOTE, check_cpu(machine, NOTHING)).text


@pytest.mark.parametrize(("quota", "level"), [("50000", NOTE), ("150000", OK), ("max", None)])
def test_the_limit_of_a_control_group_is_named(
    quota: str, level: str | None, tmp_path: Path
) -> None:
    files = {
        "proc/cpuinfo": XEON,
        "proc/self/cgroup": "0::/box",
        "sys/fs/cgroup/box/cpu.max": f"{quota} 100000",
    }
    findings = check_cpu(machine_of(tmp_path, files), NOTHING)
    limits = [finding for finding in findings if "control group" in finding.text]
    assert [finding.level for finding in limits] == ([] if level is None else [level])


def test_an_affinity_is_named(tmp_path: Path) -> None:
    files = {"proc/cpuinfo": XEON, "proc/self/status": "Cpus_allowed:\t00000000,00000002\n"}
    texts = [finding.text for finding in check_cpu(machine_of(tmp_path, files), NOTHING)]
    assert "this process may use 1 of 2 cores (affinity)" in texts


# Memory, power, temperature and clock.


@pytest.mark.parametrize(("kib", "level"), [(200_000, PROBLEM), (800_000, NOTE), (8_000_000, OK)])
def test_too_little_memory_is_a_problem(kib: int, level: str, tmp_path: Path) -> None:
    (tmp_path / "dev" / "shm").mkdir(parents=True)
    files = {"proc/meminfo": f"MemTotal: 16000000 kB\nMemAvailable: {kib} kB\n"}
    first, *_ = check_memory(machine_of(tmp_path, files), NOTHING)
    assert first.level == level


def test_the_limit_of_a_container_counts_and_shared_memory_may_be_missing(tmp_path: Path) -> None:
    files = {
        "sys/fs/cgroup/memory.max": str(600 << 20),
        "sys/fs/cgroup/memory.current": str(300 << 20),
    }
    group, shared = check_memory(machine_of(tmp_path, files), NOTHING)
    assert group.level == PROBLEM
    assert "leaves 0.3 of 0.6 GiB" in group.text
    assert shared.level == NOTE
    assert "no shared memory" in shared.text


def test_a_jetson_as_it_is_delivered_can_become_faster(tmp_path: Path) -> None:
    answers = {NVPMODEL: "NV Power Mode: 15W\n0\n"}
    mode, clocks = check_power(machine_of(tmp_path, ORIN, answers), NOTHING)
    assert mode.text == "power mode 15W limits the clocks"
    assert mode.remedy == "sudo nvpmodel -m 2, if power supply and cooling are made for it"
    assert clocks.text == "the clock of the GPU varies from 306 to 918 MHz with the load"
    assert "sudo jetson_clocks" in str(clocks.remedy)


def test_a_jetson_at_full_speed_needs_nothing(tmp_path: Path) -> None:
    files = {**ORIN, "sys/class/devfreq/17000000.gpu/min_freq": "918000000"}
    answers = {NVPMODEL: "NV Power Mode: MAXN_SUPER\n2\n"}
    assert levels(check_power(machine_of(tmp_path, files, answers), NOTHING)) == {OK}


@pytest.mark.parametrize(
    ("governors", "level"), [(["performance"] * 2, OK), (["performance", "powersave"], NOTE)]
)
def test_the_frequency_governor_is_named(governors: list[str], level: str, tmp_path: Path) -> None:
    files = {}
    for number, governor in enumerate(governors):
        files[f"sys/devices/system/cpu/cpu{number}/cpufreq/scaling_governor"] = f"{governor}\n"
    (finding,) = check_power(machine_of(tmp_path, files), NOTHING)
    assert finding.level == level


@pytest.mark.parametrize(
    ("name", "content", "level", "text"),
    [
        ("thermal_zone0/temp", "52312", OK, "hottest: cpu-thermal 52 °C"),
        ("thermal_zone0/temp", "96000", NOTE, "at 96 °C, and its limit is 99 °C"),
        ("thermal_zone0/temp", "99500", PROBLEM, "and its limit is 99 °C"),
        ("cooling_device1/cur_state", "1", PROBLEM, "slowed down now: cpu-throttle-alert"),
        ("thermal_zone0/temp", "-274000", OK, "no temperature can be read here"),
    ],
)
def test_a_hot_jetson_is_a_problem(
    name: str, content: str, level: str, text: str, tmp_path: Path
) -> None:
    files = {**ORIN, f"sys/class/thermal/{name}": content}
    findings = check_temperature(machine_of(tmp_path, files), NOTHING)
    assert any(finding.level == level and text in finding.text for finding in findings)


def test_a_pc_that_was_slowed_down_is_a_note(tmp_path: Path) -> None:
    name = "sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count"
    machine = machine_of(tmp_path, {name: "17"})
    assert "slowed down 17 times" in the(NOTE, check_temperature(machine, NOTHING)).text


@pytest.mark.parametrize(
    ("now", "answer", "level"),
    [
        (0.0, "yes", PROBLEM),
        (1_800_000_000.0, "yes\n", OK),
        (1_800_000_000.0, "no\n", NOTE),
        (1_800_000_000.0, None, OK),
    ],
)
def test_the_clock_must_be_set(now: float, answer: str | None, level: str, tmp_path: Path) -> None:
    answers = {} if answer is None else {SYNCHRONISED: answer}
    (finding,) = judge_clock(machine_of(tmp_path, answers=answers), now)
    assert finding.level == level


# The system and its packages.


def test_the_system_is_named(tmp_path: Path) -> None:
    files = {
        "etc/os-release": 'NAME="Ubuntu"\nPRETTY_NAME="Ubuntu 22.04.5 LTS"\n',
        ".dockerenv": "",
    }
    (finding,) = check_system(machine_of(tmp_path, files, architecture="aarch64"), NOTHING)
    assert finding.level == OK
    assert finding.text.endswith("Ubuntu 22.04.5 LTS, aarch64, in a container")


@pytest.mark.parametrize(
    ("found", "version", "level"),
    [
        ("/venv/lib/cv2/__init__.py", "4.12.0", OK),
        ("/usr/lib/python3.10/dist-packages/cv2/__init__.py", "4.8.0", PROBLEM),
        ("/venv/lib/cv2/__init__.py", "4.5.4", PROBLEM),
    ],
)
def test_an_opencv_that_hides_the_wheel_is_a_problem(found: str, version: str, level: str) -> None:
    wheels = [("opencv-python-headless", Path("/venv/lib"))]
    (finding,) = compare_opencv(Path(found), version, wheels)
    assert finding.level == level
    if "dist-packages" in found:
        assert "hides the package opencv-python-headless" in finding.text


def test_the_opencv_of_jetpack_may_be_used_alone() -> None:
    path = Path("/usr/lib/python3.10/dist-packages/cv2/__init__.py")
    assert the(OK, compare_opencv(path, "4.8.0", [])).text.startswith("OpenCV 4.8.0 of /usr/lib")


# Jetsons and GPUs.


@pytest.mark.parametrize(
    ("release", "text", "level"),
    [
        ("R36 (release), REVISION: 4.3", "L4T 36.4.3: JetPack 6.1 or 6.2, with TensorRT 10.3", OK),
        ("R36 (release), REVISION: 3.0", "JetPack 6.0, with TensorRT 8.6", OK),
        ("R38 (release), REVISION: 2.1", "JetPack 7.0 or 7.1, with TensorRT 10.13", OK),
        ("R39 (release), REVISION: 2.0", "JetPack 7.2, with TensorRT 10.16", OK),
        ("R35 (release), REVISION: 4.1", "older than JetPack 6", PROBLEM),
        ("no release", "whose JetPack is not known", NOTE),
    ],
)
def test_jetpack_is_named_by_its_release(
    release: str, text: str, level: str, tmp_path: Path
) -> None:
    files = {**ORIN, "etc/nv_tegra_release": f"# {release}, GCID: 1, BOARD: generic"}
    (finding,) = check_jetpack(machine_of(tmp_path, files), NOTHING)
    assert finding.level == level
    assert text in finding.text


def test_other_machines_have_no_jetpack(tmp_path: Path) -> None:
    assert not list(check_jetpack(machine_of(tmp_path), NOTHING))


DLA = "usr/lib/aarch64-linux-gnu/nvidia/libnvdla_compiler.so"


@pytest.mark.parametrize("content", [None, ""])
def test_the_file_without_which_tensorrt_is_not_loaded_is_named(
    content: str | None, tmp_path: Path
) -> None:
    files = {**ORIN, DLA: "" if content is None else content}
    machine = machine_of(tmp_path, files)
    if content is None:
        (tmp_path / DLA).unlink()
    found = the(PROBLEM, tensorrt._dla_file(machine))
    assert "libnvdla_compiler.so is missing" in found.text
    assert "sudo apt install nvidia-l4t-dla-compiler" in str(found.remedy)


def test_it_is_not_missed_where_it_is_there_or_not_needed(tmp_path: Path) -> None:
    assert not list(tensorrt._dla_file(machine_of(tmp_path / "6", ORIN)))
    newer = {**ORIN, "etc/nv_tegra_release": "# R39 (release), REVISION: 2.0", DLA: ""}
    assert not list(tensorrt._dla_file(machine_of(tmp_path / "7", newer)))
    assert not list(tensorrt._dla_file(machine_of(tmp_path / "pc")))


def test_a_package_of_pip_is_a_problem_on_a_jetson_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = {"tensorrt-cu12": 12, "tensorrt-cu12-libs": 12, "tensorrt-rtx-cu13": 13}
    monkeypatch.setattr(tensorrt, "packages", lambda: installed)
    found = the(PROBLEM, tensorrt._foreign_package(machine_of(tmp_path / "orin", ORIN)))
    assert found.text.startswith("tensorrt-cu12, tensorrt-cu12-libs of pip is not made for")
    assert "--system-site-packages" in str(found.remedy)
    assert not list(tensorrt._foreign_package(machine_of(tmp_path / "pc")))
    newer = {**ORIN, "etc/nv_tegra_release": "# R39 (release), REVISION: 2.2"}
    assert not list(tensorrt._foreign_package(machine_of(tmp_path / "7", newer)))


def test_a_driver_that_is_too_old_for_the_package_is_a_problem() -> None:
    installed = {"tensorrt-cu12": 12, "tensorrt-rtx-cu13": 13}
    found = the(PROBLEM, tensorrt.compare_cuda(installed, 12040))
    assert found.text == "tensorrt-rtx-cu13 needs CUDA 13, and the driver supports CUDA 12.4"
    assert found.remedy == "install driver 580 or newer, or the package for CUDA 12"
    assert not list(tensorrt.compare_cuda(installed, 13000))


GPU = {
    "sys/bus/pci/devices/0000:01:00.0/vendor": "0x10de",
    "sys/bus/pci/devices/0000:01:00.0/class": "0x030000",
    "sys/bus/pci/devices/0000:00:02.0/vendor": "0x8086",
}


@pytest.mark.parametrize(
    ("line", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar", "550.54.15"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Rel", "580.65.06"),
        ("", None),
    ],
)
def test_the_version_of_the_driver_is_read(line: str, version: str | None, tmp_path: Path) -> None:
    files = {"proc/driver/nvidia/version": f"{line}\nGCC version: 12.3.0"}
    assert driver_version(machine_of(tmp_path, files)) == version


def test_a_gpu_is_found_on_the_bus(tmp_path: Path) -> None:
    assert has_gpu(machine_of(tmp_path / "gpu", GPU))
    audio = {**GPU, "sys/bus/pci/devices/0000:01:00.0/class": "0x040300"}
    assert not has_gpu(machine_of(tmp_path / "audio", audio))


@pytest.mark.parametrize(
    ("files", "remedy"),
    [
        (GPU, "ubuntu-drivers install"),
        ({**GPU, ".dockerenv": ""}, "--gpus all"),
        (ORIN | {".dockerenv": ""}, "--runtime nvidia"),
    ],
)
def test_a_gpu_without_a_driver_is_a_problem(
    files: dict[str, str], remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "driver_missing", lambda: "there is no NVIDIA driver; install it")
    found = the(PROBLEM, check_gpu(machine_of(tmp_path, files), NOTHING))
    assert "cannot be used: there is no NVIDIA driver" in found.text
    assert remedy in str(found.remedy)


def test_a_gpu_with_its_driver_is_named_and_may_be_slowed_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "driver_missing", lambda: None)
    monkeypatch.setattr(cuda, "gpu_name", lambda: "NVIDIA L4")
    monkeypatch.setattr(gpu, "supported_cuda", lambda: 12080)
    files = {**GPU, "proc/driver/nvidia/version": "NVIDIA UNIX x86_64 Kernel Module  570.86.10  F"}
    answers = {QUERY: "NVIDIA L4, 91, Active, Not Active\n[N/A]\n"}
    findings = list(check_gpu(machine_of(tmp_path, files, answers), NOTHING))
    assert findings[0].text == "NVIDIA L4, driver 570.86.10, CUDA up to 12.8"
    assert the(PROBLEM, findings).text == "NVIDIA L4 is slowed down now, at 91 °C"


def test_a_machine_without_a_gpu_needs_none(tmp_path: Path) -> None:
    assert levels(check_gpu(machine_of(tmp_path), NOTHING)) == {OK}


# Cameras.


def test_a_camera_file_that_this_user_may_not_open_is_a_problem_and_a_free_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (0, 1, 2, 10):
        path = tmp_path / "dev" / f"video{number}"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    answers: dict[str, str | None] = {
        "video0": None,
        "video1": f"{v4l2.NO_IMAGES}; give another one",
        "video2": "this user may not open it; add the user to its group",
        "video10": "another program uses this camera; end that program",
    }
    monkeypatch.setattr(v4l2, "problem_of", lambda path: answers[Path(path).name])
    free, forbidden, used = check_device_files(machine_of(tmp_path), NOTHING)
    assert free.text.endswith("video0 can be opened")
    assert forbidden.level == PROBLEM
    assert forbidden.remedy == "add the user to its group"
    assert used.text.endswith("video10 is in use")


@pytest.mark.parametrize(
    ("files", "remedy"),
    [({}, "sudo modprobe uvcvideo"), ({".dockerenv": ""}, "--device /dev/video0")],
)
def test_a_usb_camera_without_a_device_file_is_a_problem(
    files: dict[str, str], remedy: str, tmp_path: Path
) -> None:
    usb = {"sys/bus/usb/devices/1-2:1.0/bInterfaceClass": "0e", **files}
    found = the(PROBLEM, check_device_files(machine_of(tmp_path, usb), NOTHING))
    assert remedy in str(found.remedy)


def test_no_camera_file_is_no_problem(tmp_path: Path) -> None:
    assert levels(check_device_files(machine_of(tmp_path), NOTHING)) == {OK}


def test_a_small_receive_buffer_is_a_note(tmp_path: Path) -> None:
    pytest.importorskip("pypylon")
    name = "proc/sys/net/core/rmem_max"
    found = the(NOTE, check_network(machine_of(tmp_path / "small", {name: "212992"}), NOTHING))
    assert "212992 bytes" in found.text
    assert levels(check_network(machine_of(tmp_path / "large", {name: "4000000"}), NOTHING)) == {OK}


def test_a_camera_is_found_by_a_path_that_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(v4l2, "problem_of", lambda path: "no" if path.endswith("1") else None)
    for number in range(4):
        (tmp_path / f"video{number}").touch()
    links = tmp_path / "v4l" / "by-id"
    links.mkdir(parents=True)
    (links / "usb-Camera-index0").symlink_to("../../video0")
    (links / "usb-Camera-index1").symlink_to("../../video1")
    names = tmp_path / "names"
    (names / "video3").mkdir(parents=True)
    (names / "video3" / "name").write_text("vi-output, imx219 9-0010\n")
    assert v4l2.connected_cameras(tmp_path, names) == [
        f"{links}/usb-Camera-index0",
        f"{tmp_path}/video2",
    ]
    assert v4l2.sensors(names) == ["video3"]


# Folders.


def test_a_folder_that_cannot_be_written_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    subject = Subject(folders=(tmp_path / "file" / "results",))
    found = the(PROBLEM, check_folders(machine_of(tmp_path), subject))
    assert "results cannot be written to" in found.text


def test_a_folder_that_is_not_there_yet_is_judged_by_the_one_that_it_is_made_in(
    tmp_path: Path,
) -> None:
    subject = Subject(folders=(tmp_path / "new" / "results",), cache=tmp_path)
    assert PROBLEM not in levels(check_folders(machine_of(tmp_path), subject))
    assert not (tmp_path / "new").exists()


def test_a_bundle_that_is_not_there_is_a_problem(tmp_path: Path) -> None:
    subject = Subject(bundle=tmp_path / "absent", cache=tmp_path)
    assert "absent cannot be read" in the(PROBLEM, check_folders(Machine(), subject)).text


def space(**values: int) -> os.statvfs_result:
    defaults = {"f_frsize": 4096, "f_bavail": 10**7, "f_files": 10**6, "f_favail": 10**5}
    facts = {**defaults, **values}
    return type("Status", (), facts)  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, {OK}),
        ({"f_bavail": 10**6}, {NOTE}),
        ({"f_bavail": 10**4}, {PROBLEM}),
        ({"f_favail": 10}, {PROBLEM, OK}),
        ({"f_files": 0, "f_favail": 0}, {OK}),
    ],
)
def test_free_space_and_files_are_judged(values: dict[str, int], expected: set[str]) -> None:
    assert levels(judge_space(Path("/results"), "results", space(**values))) == expected


def test_the_file_system_of_a_folder_is_that_of_the_innermost_mount() -> None:
    mounts = (
        "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
        "23 22 0:20 / /run rw - tmpfs tmpfs rw\n"
        "24 22 8:2 / /mnt/with\\040space rw shared:1 - xfs /dev/sdb1 rw\nrubbish\n"
    )
    assert file_system(mounts, Path("/data")) == "ext4"
    assert file_system(mounts, Path("/run/flawline")) == "tmpfs"
    assert file_system(mounts, Path("/mnt/with space/results")) == "xfs"
    assert file_system("", Path("/")) is None


def test_a_folder_in_memory_is_a_note(tmp_path: Path) -> None:
    mounts = f"22 1 0:20 / {tmp_path} rw - tmpfs tmpfs rw\n"
    machine = machine_of(tmp_path, {"proc/self/mountinfo": mounts})
    findings = check_folders(machine, Subject(folders=(tmp_path,)))
    assert any("content is lost at the next start" in finding.text for finding in findings)


# What all checks are made of.


def test_a_program_that_is_missing_fails_or_hangs_gives_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("flawline.runtime.doctor.machine.COMMAND_S", 0.2)
    assert run_program(["no-such-program"]) is None
    assert run_program(["false"]) is None
    assert run_program(["sleep", "60"]) is None
    assert run_program(["echo", "x"]) == "x\n"


@pytest.mark.parametrize(
    ("message", "parts"),
    [
        ("it is broken; repair it", ("it is broken", "repair it")),
        ("no (a; b); do c; or d", ("no (a; b)", "do c; or d")),
        ("it is broken", ("it is broken", None)),
    ],
)
def test_the_remedy_of_a_message_is_after_its_reason(
    message: str, parts: tuple[str, str | None]
) -> None:
    assert split_remedy(message) == parts


ALL_CHECKS: list[Callable[[Machine, Subject], Iterable[Finding]]] = [
    check_cpu,
    check_device_files,
    check_folders,
    check_gpu,
    check_jetpack,
    check_memory,
    check_network,
    check_power,
    check_system,
    check_temperature,
]


@pytest.mark.parametrize("check", ALL_CHECKS, ids=lambda check: check.__name__)
def test_no_check_needs_any_file_or_takes_rubbish_for_a_fact(
    check: Callable[[Machine, Subject], Iterable[Finding]], tmp_path: Path
) -> None:
    for finding in check(machine_of(tmp_path / "empty"), NOTHING):
        assert finding.level in LEVELS
    rubbish = dict.fromkeys((*ORIN, *GPU, "proc/meminfo", "proc/cpuinfo"), "\x00\n: = <>\n12 34 x")
    rubbish["proc/self/mountinfo"] = " - "
    rubbish["proc/self/cgroup"] = "::::"
    for finding in check(machine_of(tmp_path / "rubbish", rubbish), NOTHING):
        assert finding.level in LEVELS
