"""Messages to a supervisor, as sd_notify(3) says, and when a stream gives signs of life."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from flawline import FlawlineError
from flawline.runtime.service_manager import ALIVE, READY, STOPPING, ServiceManager, status
from flawline.runtime.station.life_signs import LifeSigns, open_life_signs
from flawline.runtime.station.tally import Tally


@pytest.fixture(params=["path", "abstract"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A socket that takes messages, and its address as NOTIFY_SOCKET has it."""
    address = f"{tmp_path}/notify"
    if request.param == "abstract":
        address = f"@flawline-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(address.replace("@", "\0", 1))
        server.settimeout(5)
        yield server, address


def received(server: socket.socket) -> list[str]:
    """Return the lines of the messages that wait."""
    lines = []
    server.setblocking(False)
    while True:
        try:
            lines += server.recv(4096).decode().splitlines()
        except BlockingIOError:
            return lines


def manager_at(address: str, **variables: str) -> ServiceManager | None:
    return ServiceManager.of_environment({"NOTIFY_SOCKET": address, **variables})


def test_messages_arrive_at_both_kinds_of_sockets(server: tuple[socket.socket, str]) -> None:
    manager = manager_at(server[1])
    assert manager is not None
    assert manager.send(READY, status("judges\nwith two\rlines"))
    assert received(server[0]) == ["READY=1", "STATUS=judges\\nwith two\\rlines"]


def test_the_variables_are_removed_so_that_children_send_nothing() -> None:
    environment = {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "2000000", "PATH": "/bin"}
    manager = ServiceManager.of_environment(environment)
    assert environment == {"PATH": "/bin"}
    assert manager is not None
    assert manager.watchdog_s == 2
    assert ServiceManager.of_environment(environment) is None


@pytest.mark.parametrize(
    ("variables", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "1500000"}, 1.5),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": str(os.getpid())}, 1.5),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": "1"}, None),
    ],
)
def test_the_time_of_the_watchdog_is_for_this_process(
    variables: dict[str, str], seconds: float | None
) -> None:
    manager = manager_at("@x", **variables)
    assert manager is not None
    assert manager.watchdog_s == seconds


@pytest.mark.parametrize("value", ["0", "soon", "-5", ""])
def test_a_time_that_is_none_is_a_warning(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    manager = manager_at("@x", WATCHDOG_USEC=value)
    assert manager is not None
    assert manager.watchdog_s is None
    assert "is no time" in capsys.readouterr().err


@pytest.mark.parametrize("address", ["vsock:2:1234", "relative", "@", "/"])
def test_an_address_that_is_no_unix_socket_is_a_warning(
    address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert manager_at(address) is None
    assert "is no Unix socket" in capsys.readouterr().err


def test_a_supervisor_that_is_gone_or_full_delays_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manager = ServiceManager(f"{tmp_path}/gone")
    assert not manager.send(READY)
    assert not manager.send(READY)
    assert capsys.readouterr().err.count("takes no messages") == 1
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(f"{tmp_path}/gone")
        # Nothing takes them, until the queue is full.
        while manager.send(ALIVE):
            pass
    assert "takes no messages" in capsys.readouterr().err
    assert not manager.send("X" * (1 << 20))


def test_a_long_status_is_cut() -> None:
    assert len(status("x" * 5000)) < 400


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Recorder(ServiceManager):
    """Remembers the messages."""

    def __init__(self, watchdog_s: float | None) -> None:
        super().__init__("@nothing", watchdog_s)
        self.lines: list[str] = []

    def send(self, *lines: str) -> bool:
        self.lines += lines
        return True


class Part:
    """A camera or the outputs: what waits in it."""

    mark: object | None = None

    def __call__(self) -> object | None:
        return self.mark


@pytest.fixture
def clock() -> Clock:
    return Clock()


def begun(life: LifeSigns) -> tuple[Part, Part]:
    camera = Part()
    outputs = Part()
    life.begin({"left": camera}, outputs, Tally())
    return camera, outputs


def test_without_a_supervisor_and_a_file_nothing_is_done() -> None:
    life = LifeSigns()
    begun(life)
    life.beat()
    life.stopping()
    assert life.period is None
    assert life.due(None) is None
    assert life.due(3.0) == 3.0
    life.close()


def test_the_first_sign_follows_ready_and_the_others_their_period(clock: Clock) -> None:
    manager = Recorder(20.0)
    life = LifeSigns(manager, clock=clock)
    life.status("opens the engine")
    begun(life)
    assert manager.lines[0] == "STATUS=opens the engine"
    assert manager.lines[1] == READY
    assert manager.lines.count(ALIVE) == 1
    assert life.period == 5.0
    clock.now += 4.9
    life.beat()
    assert manager.lines.count(ALIVE) == 1
    assert life.due(None) == 105.0
    assert life.due(104.0) == 104.0
    clock.now += 0.1
    life.beat()
    assert manager.lines.count(ALIVE) == 2
    life.stopping()
    assert STOPPING in manager.lines


def test_several_signs_fit_into_the_time_of_a_short_watchdog(clock: Clock) -> None:
    assert LifeSigns(Recorder(2.0), clock=clock).period == 0.5
    assert LifeSigns(Recorder(3600.0), clock=clock).period == 5.0


@pytest.mark.parametrize("part", ["camera left", "the outputs"])
def test_a_part_that_hangs_stops_the_signs_until_it_works_again(
    part: str, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    manager = Recorder(8.0)
    life = LifeSigns(manager, clock=clock)
    camera, outputs = begun(life)
    hanging = camera if part == "camera left" else outputs
    hanging.mark = (7, 0)

    def beats(count: int) -> int:
        """Let so many periods pass; return how many signs were given."""
        before = manager.lines.count(ALIVE)
        for _ in range(count):
            clock.now += 2.0
            life.beat()
        return manager.lines.count(ALIVE) - before

    # For less than the limit, it may only be slow.
    assert beats(4) == 4
    assert beats(5) == 0
    assert f"STATUS={part} hangs" in manager.lines
    assert capsys.readouterr().err.count(f"warning: {part} has made no progress for 8 s") == 1
    hanging.mark = (8, 0)
    assert beats(4) == 4
    hanging.mark = None
    assert beats(8) == 8


def test_a_part_in_which_always_something_else_waits_does_not_hang(clock: Clock) -> None:
    manager = Recorder(4.0)
    life = LifeSigns(manager, clock=clock)
    camera, outputs = begun(life)
    for number in range(20):
        camera.mark = (number, 0)
        outputs.mark = number
        clock.now += 1.0
        life.beat()
    assert manager.lines.count(ALIVE) == 21


def test_the_file_is_new_at_each_sign_and_gone_at_the_end(clock: Clock, tmp_path: Path) -> None:
    path = tmp_path / "alive"
    path.write_text("of an earlier run")
    life = open_life_signs(path)
    assert not path.exists()
    life = LifeSigns(None, path, clock)
    camera, _ = begun(life)
    assert path.exists()
    os.utime(path, (0, 0))
    clock.now += 5.0
    life.beat()
    assert path.stat().st_mtime > 0
    camera.mark = "stuck"
    for _ in range(20):
        clock.now += 5.0
        os.utime(path, (0, 0))
        life.beat()
    assert path.stat().st_mtime == 0
    life.close()
    life.close()
    assert not path.exists()


def test_a_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FlawlineError, match=r"absent/alive cannot be written .*; check the path"):
        open_life_signs(tmp_path / "absent" / "alive")
