"""flawline station init: the files of a service, which are safe, complete and never overwritten."""

from __future__ import annotations

import grp
import json
import os
import shlex
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import write_tiny_bundle

from flawline import __main__ as program
from flawline.cameras.connected import connected, unique, usable
from flawline.runtime.bundle import read_bundle
from flawline.runtime.infer_stream import main as stream
from flawline.runtime.isolated import CallFailed
from flawline.runtime.station.service import __main__ as service
from flawline.runtime.station.service import content, unit
from flawline.runtime.station.service.content import recipe_name
from flawline.runtime.station.service.installing import closed_to_others, device_groups
from flawline.runtime.station.service.unit import Service
from flawline.runtime.station.settings.station_file import read_station
from flawline.uris import folder_of

CAMERA = "synthetic://?width=64&height=48&fps=50"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    path = tmp_path / "Rev. 3 Flasche"
    write_tiny_bundle(path)
    return path


@pytest.fixture
def made(
    bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[Path, str, str]:
    """The folder of a new station, with a page at any free port, and what was printed."""
    monkeypatch.setattr(content, "PAGE", content.PAGE.replace(":8080", ":0"))
    out = tmp_path / "station"
    words = ["init", "--bundle", str(bundle), "--camera", CAMERA, "--out", str(out)]
    assert service.main(words) == 0
    printed = capsys.readouterr()
    return out, printed.out, printed.err


def test_the_files_are_written_and_the_station_runs_as_it_is(
    made: tuple[Path, str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = made[0]
    station = read_station(out / "station.json")
    assert station.content.recipe == "Rev.-3-Flasche"
    assert [camera.uri for camera in station.content.cameras] == [CAMERA]
    copy = read_bundle(station.bundle_of(station.recipe))
    assert copy.path.resolve().is_relative_to(out)
    assert stream(["--station", str(out / "station.json"), "--max-frames", "2"]) == 0
    assert (out / "audit.jsonl").exists()
    capsys.readouterr()


def test_the_token_is_secret(made: tuple[Path, str, str]) -> None:
    token = made[0] / "web-token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert len(token.read_text().strip()) >= 32


@pytest.mark.parametrize("reason", [None, "needs fastapi"])
def test_there_is_a_page_where_it_can_be_served(
    reason: str | None, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content, "missing", lambda name: reason)
    outputs = json.loads(content.station_content(read_bundle(bundle), [CAMERA]))["outputs"]
    assert outputs[0].startswith("overlays:rejected?")
    assert outputs[1:] == ([] if reason else ["web:127.0.0.1:8080?token_file=web-token"])


def test_a_bundle_without_maps_has_lines_in_place_of_pictures(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "part", outputs=("score",))
    outputs = json.loads(content.station_content(bundle, [CAMERA]))["outputs"]
    assert outputs[0] == "jsonl:results.jsonl"


def test_the_unit_is_supervised_confined_and_runs_the_station(made: tuple[Path, str, str]) -> None:
    lines = (made[0] / "flawline.service").read_text().splitlines()
    for line in (
        "Type=notify",
        "WatchdogSec=30",
        "Restart=always",
        "StartLimitIntervalSec=0",
        "User=flawline",
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        "StateDirectory=flawline",
        "LimitNOFILE=65536",
        "# MemoryMax=4G",
    ):
        assert line in lines
    settings = dict(line.split("=", 1) for line in lines if "=" in line and line[0] != "#")
    start = shlex.split(settings["ExecStart"])
    assert start == [
        *(sys.executable, "-m", "flawline", "stream"),
        *("--station", "/var/lib/flawline/station.json"),
    ]
    # They would hide cameras and GPUs, or forbid engines to compile.
    for name in ("PrivateDevices", "ProtectClock", "MemoryDenyWriteExecute", "DevicePolicy"):
        assert name not in settings
    if device_groups():
        assert settings["SupplementaryGroups"] == " ".join(device_groups())


def test_systemd_accepts_the_unit(made: tuple[Path, str, str]) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    unit = made[0] / "flawline.service"
    done = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    # A line that it does not know is only a warning. Other units of the machine may have some.
    assert "flawline.service" not in done.stderr


def test_the_commands_that_are_printed_install_every_file(made: tuple[Path, str, str]) -> None:
    out, printed, _ = made
    lines = printed.splitlines()
    assert lines[-1] == "systemctl status flawline.service"
    (copied,) = [shlex.split(line) for line in lines if line.startswith("sudo cp ")]
    names = {Path(word).name for word in copied if word.startswith(str(out))}
    assert names | {"flawline.service"} == {path.name for path in out.iterdir()}
    for line in lines:
        assert subprocess.run(["sh", "-n", "-c", line], check=False).returncode == 0


def test_nothing_is_overwritten_without_force(
    made: tuple[Path, str, str], bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = made[0]
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    words = ["init", "--bundle", str(bundle), "--camera", "usb://7", "--out", str(out)]
    assert service.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "is there already; choose another --out, or replace it with --force" in line
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before
    assert service.main([*words, "--force", "--quiet"]) == 0
    assert read_station(out / "station.json").content.cameras[0].uri == "usb://7"
    assert (out / "web-token").read_bytes() != before["web-token"]
    assert stat.S_IMODE((out / "web-token").stat().st_mode) == 0o600


def test_a_camera_that_is_a_folder_is_found_from_the_folder_of_the_station(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = tmp_path / "what 50%"
    images.mkdir()
    monkeypatch.chdir(tmp_path)
    words = ["init", "--bundle", str(bundle)]
    for uri in ("folder://what%2050%25?watch=1", "what%2050%25?watch=1", "what 50%"):
        words += ["--camera", uri]
    assert service.main(words) == 0
    cameras = read_station(tmp_path / "station" / "station.json").content.cameras
    assert [folder_of(camera.uri) for camera in cameras] == 3 * [images]
    assert [camera.uri.endswith("?watch=1") for camera in cameras] == [True, True, False]


def test_a_station_that_would_be_replaced_is_warned_of(
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(unit, "STATE", tmp_path)
    words = ["init", "--bundle", str(bundle), "--camera", CAMERA]
    assert service.main([*words, "--out", str(tmp_path / "made")]) == 0
    first = capsys.readouterr().err
    assert "replace a station" not in first
    # Not by a name that sudo would have to find.
    assert f"sudo -u flawline {sys.executable} -m flawline recipe {tmp_path}/flawline/" in first
    (tmp_path / "flawline").mkdir()
    assert service.main([*words, "--out", str(tmp_path / "again")]) == 0
    assert "these commands replace a station in it" in capsys.readouterr().err


def test_the_bundle_of_the_station_may_be_taken_again(made: tuple[Path, str, str]) -> None:
    out = made[0]
    copy = out / "bundles" / "Rev.-3-Flasche"
    words = ["init", "--bundle", str(copy), "--camera", CAMERA, "--out", str(out), "--force"]
    assert service.main(words) == 0
    assert read_bundle(copy).path == copy


def test_the_cameras_that_are_found_are_taken_each_once(
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = {"usb": ["usb:///dev/video0"], "gst": None, "basler": ["basler://2401"], "aravis": []}

    def call(self: object, target: str, *arguments: str, limit_s: float) -> object:
        if target.endswith(":usable"):
            return list(found)
        if arguments == ("aravis",):
            raise CallFailed("was ended by SIGSEGV")
        return found[arguments[0]]

    monkeypatch.setattr(service.IsolatedProcess, "call", call)
    words = ["init", "--bundle", str(bundle), "--out", str(tmp_path / "station")]
    assert service.main(words) == 0
    station = read_station(tmp_path / "station" / "station.json")
    assert [camera.uri for camera in station.content.cameras] == found["usb"] + found["basler"]
    assert station.camera_names() == ["camera1", "camera2"]
    printed = capsys.readouterr().err
    assert "warning: aravis: the search for cameras was ended by SIGSEGV" in printed
    found.clear()
    assert service.main([*words, "--force"]) == 2
    assert "no camera was found; connect one" in capsys.readouterr().err


def test_a_camera_that_two_libraries_find_is_one_camera() -> None:
    assert unique(["basler://2401", "aravis://2401", "csi://0", "gige://0", "usb://0"]) == [
        "basler://2401",
        "csi://0",
        "gige://0",
        "usb://0",
    ]


def test_only_cameras_that_can_be_listed_are_listed() -> None:
    schemes = usable()
    assert "folder" in schemes
    assert connected("folder") is None
    for uri in connected("usb") or []:
        assert uri.startswith("usb://")


def test_the_emulated_cameras_of_a_maker_are_found() -> None:
    pytest.importorskip("pypylon")
    code = "from flawline.cameras.connected import connected; print(connected('basler'))"
    environment = {"PYLON_CAMEMU": "2", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "['basler://0815-0000', 'basler://0815-0001']"


@pytest.mark.parametrize(("flag", "value"), [("--name", "a b"), ("--user", "../x"), ("--name", "")])
def test_a_name_that_systemd_would_not_take_is_refused(
    flag: str, value: str, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        service.main(["init", "--bundle", str(bundle), "--camera", CAMERA, flag, value])
    assert ended.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_bundle_that_cannot_be_read_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "station"
    words = ["init", "--bundle", str(tmp_path), "--camera", CAMERA, "--out", str(out)]
    assert service.main(words) == 2
    assert not out.exists()
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_folder_that_cannot_be_written_is_one_line(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    words = ["init", "--bundle", str(bundle), "--camera", CAMERA]
    assert service.main([*words, "--out", str(tmp_path / "file" / "x")]) == 2
    assert "choose another --out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("reads", "home", "temporary"),
    [
        ("/opt/flawline/bin/python", "yes", "yes"),
        ("/home/ann/venv/bin/python", "read-only", "yes"),
        ("/tmp/venv/bin/python", "yes", "no"),
    ],
)
def test_what_the_service_reads_is_not_hidden_from_it(
    reads: str, home: str, temporary: str
) -> None:
    unit = Service("line4", "ann", ("flawline",), (Path(reads),)).unit()
    assert f"\nProtectHome={home}\n" in unit
    assert f"\nPrivateTmp={temporary}\n" in unit
    assert "\nStateDirectory=line4\n" in unit


def test_the_groups_are_those_of_the_devices(tmp_path: Path) -> None:
    (tmp_path / "video0").touch()
    os.chown(tmp_path / "video0", -1, os.getgid())
    (tmp_path / "gpiochip0").symlink_to(tmp_path / "gone")
    own = grp.getgrgid(os.getgid()).gr_name
    groups = device_groups(tmp_path)
    assert set(groups) <= {own, "video"}
    assert (own in groups) == (own != "root")


def test_words_that_systemd_would_change_are_quoted() -> None:
    words = ("/opt/my flawline/100%/python", "$HOME")
    unit = Service("x", "x", words, (), environment={"A": 'b "c"'}).unit()
    assert '\nExecStart="/opt/my flawline/100%%/python" "$$HOME" stream --station ' in unit
    assert '\nEnvironment="A=b \\"c\\""\n' in unit


def test_files_that_others_may_not_read_are_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    path = tmp_path / "closed"
    path.mkdir(mode=0o750)
    (path / "python").touch(mode=0o755)
    open_parents = closed_to_others([tmp_path])
    if not open_parents:
        assert closed_to_others([path / "python", path]) == [path]
    assert closed_to_others([Path("/bin/sh")]) == []
    assert closed_to_others([tmp_path / "absent"]) != []


@pytest.mark.parametrize(
    ("folder", "name"),
    [("bottle", "bottle"), ("工位", "part"), ("..x y", "x-y"), ("a" * 40, "a" * 24)],
)
def test_a_recipe_is_named_after_its_bundle(folder: str, name: str, tmp_path: Path) -> None:
    assert recipe_name(tmp_path / folder) == name


def test_both_programs_are_the_same_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["flawline-station", "--help"])
    with pytest.raises(SystemExit):
        program.run_station()
    assert capsys.readouterr().out.startswith("usage: flawline station ")
