"""The handshake with a PLC over Modbus TCP, with a real client."""

from __future__ import annotations

import math
import socket
import threading
from collections.abc import Iterator

import pytest

pytest.importorskip("pymodbus.simulator", reason="needs the extra modbus")

from fakes.judgements import judgement
from fakes.peer_thread import run
from fakes.plc import BUSY, READY, REFUSED, RESULT, TAKEN, Plc, Status

from flawline.cameras import open_camera
from flawline.cameras.triggered import TriggeredCamera
from flawline.runtime.bundle import Bundle
from flawline.runtime.detector import Detector
from flawline.runtime.outputs import Output, OutputError, open_output
from flawline.runtime.station.pipeline import run_stream
from flawline.runtime.station.tally import Tally

pytestmark = pytest.mark.usefixtures("patient_pulses")
CAMERA = "synthetic://?width=64&height=48&queue=1000&answer_s=20&trigger="


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        number: int = free.getsockname()[1]
    return number


def server(bundle: Bundle, port: int, options: str = "") -> Output:
    return open_output(f"modbus:127.0.0.1:{port}?end_s=20{options}", bundle)


@pytest.fixture
def output(bundle: Bundle, port: int) -> Iterator[Output]:
    with server(bundle, port) as output:
        yield output


@pytest.fixture
def plc(output: Output, port: int) -> Iterator[Plc]:
    plc = Plc(port)
    yield plc
    plc.close()


def stream(bundle: Bundle, output: Output, camera_uri: str, work: object) -> Tally:
    """Judge what the PLC triggers in `work`, which gets the camera and is done in a thread."""
    tally = Tally()
    with open_camera(camera_uri) as camera, Detector(bundle, "onnxruntime") as detector:
        assert isinstance(camera, TriggeredCamera)
        thread, errors = run(lambda: work(camera), camera.stop)  # type: ignore[operator]
        thread.start()
        run_stream(camera, detector, [output], None, threading.Event(), tally)
        thread.join(60)
        assert not errors, errors[0]
    return tally


@pytest.mark.parametrize("parts", [40, pytest.param(1000, marks=pytest.mark.slow)])
def test_every_triggered_part_is_answered_once_in_order(
    bundle: Bundle, output: Output, plc: Plc, parts: int
) -> None:
    ids = [70_000 + 3 * number for number in range(parts)]
    results: list[Status] = []

    def work(camera: TriggeredCamera) -> None:
        for part in ids:
            plc.trigger(part)
            results.append(plc.take())
        assert not plc.status().bits & RESULT
        camera.end_of_pulses()

    tally = stream(bundle, output, f"{CAMERA}software", work)
    assert [result.part for result in results] == ids
    assert [result.number for result in results] == list(range(1, parts + 1))
    assert {result.verdict for result in results} == {2}
    assert all(result.score > result.threshold == 100 for result in results)
    assert tally.frames == parts
    assert output.totals() == {"delivered": parts, "not_delivered": 0}


def test_parts_may_be_triggered_before_earlier_results_are_acknowledged(
    bundle: Bundle, output: Output, plc: Plc
) -> None:
    results: list[Status] = []

    def work(camera: TriggeredCamera) -> None:
        for part in range(1, 21):
            plc.trigger(part)
        results.extend(plc.take() for _ in range(20))
        plc.wait_for(READY, absent=BUSY)
        camera.end_of_pulses()

    stream(bundle, output, f"{CAMERA}software", work)
    assert [result.part for result in results] == list(range(1, 21))


def test_a_part_without_an_image_is_answered_as_unjudged(
    bundle: Bundle, output: Output, plc: Plc
) -> None:
    results: list[Status] = []

    def work(camera: TriggeredCamera) -> None:
        for part in (11, 12, 13):
            plc.trigger(part)
            results.append(plc.take())
        camera.end_of_pulses()

    stream(bundle, output, f"{CAMERA}software&faults=1:damaged", work)
    assert [(result.part, result.verdict) for result in results] == [(11, 2), (12, 3), (13, 2)]
    assert math.isnan(results[1].score)


def test_a_trigger_without_a_number_takes_the_next_one(
    bundle: Bundle, output: Output, plc: Plc
) -> None:
    results: list[Status] = []

    def work(camera: TriggeredCamera) -> None:
        for _ in range(3):
            plc.trigger(0)
            results.append(plc.take())
        camera.end_of_pulses()

    stream(bundle, output, f"{CAMERA}software", work)
    assert [result.part for result in results] == [1, 2, 3]


def test_a_trigger_that_is_held_is_one_part(bundle: Bundle, output: Output, plc: Plc) -> None:
    def work(camera: TriggeredCamera) -> None:
        plc.wait_for(READY)
        for _ in range(5):
            plc.control(1, 0, 9)
        plc.wait_for(TAKEN | RESULT, absent=BUSY)
        plc.control(0)
        plc.wait_for(0, absent=TAKEN)
        plc.take()
        camera.end_of_pulses()

    assert stream(bundle, output, f"{CAMERA}software", work).frames == 1


def test_each_acknowledgement_takes_one_result(output: Output, plc: Plc) -> None:
    for index in range(3):
        output.write(judgement(index, str(index + 1)))
    assert plc.status().part == 1
    plc.control(2)
    # Held: the next result is not shown, and none is lost.
    for _ in range(3):
        assert not plc.status().bits & RESULT
        plc.control(2)
    plc.control(0)
    assert plc.wait_for(RESULT).part == 2
    assert plc.take().part == 2
    assert plc.take().part == 3
    assert not plc.status().bits & RESULT
    # Nothing is there to be acknowledged.
    plc.control(2)
    plc.control(0)
    assert output.totals() == {"delivered": 3, "not_delivered": 0}


def test_a_trigger_without_a_camera_is_refused(output: Output, plc: Plc) -> None:
    assert not plc.status().bits & READY
    plc.control(1, 0, 5)
    assert plc.wait_for(REFUSED, absent=TAKEN | BUSY)
    plc.control(0)
    assert plc.wait_for(0, absent=REFUSED)


def test_the_plc_names_the_parts_of_a_line(bundle: Bundle, output: Output, plc: Plc) -> None:
    with open_camera(f"{CAMERA}line1&fps=1000&frames=3") as camera:
        output.attach(camera)
        for part in (501, 502):
            plc.trigger(part)
        assert [frame.part for frame in camera] == ["501", "502", "3"]


def test_results_that_do_not_fit_are_counted(
    bundle: Bundle, port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with server(bundle, port, "&queue=3") as output:
        for index in range(10):
            output.write(judgement(index, str(index), can_wait=True))
        plc = Plc(port)
        assert plc.status().lost == 7
        assert [plc.take().part for _ in range(3)] == [0, 1, 2]
        assert output.totals() == {"delivered": 3, "not_delivered": 7}
        output.finish({})
        plc.close()
    assert "7 of 10 results were not delivered" in capsys.readouterr().err


def test_without_a_handshake_the_newest_result_is_shown(bundle: Bundle, port: int) -> None:
    with server(bundle, port, "&acknowledge=0&queue=1") as output:
        plc = Plc(port)
        for index in range(5):
            output.write(judgement(index, f"{index}"))
        status = plc.status()
        assert (status.part, status.number, status.lost) == (4, 5, 0)
        plc.control(2)
        assert plc.status() == status
        plc.close()


@pytest.mark.parametrize("part", ["SN 7", "", "4294967296", "-1", "٣"])
def test_a_name_that_is_no_number_is_zero(output: Output, plc: Plc, part: str) -> None:
    output.write(judgement(0, part))
    status = plc.status()
    assert (status.part, status.number) == (0, 1)


def test_a_plc_that_reconnects_finds_the_same_result(output: Output, port: int) -> None:
    output.write(judgement(0, "7"))
    for _ in range(2):
        plc = Plc(port)
        assert plc.wait_for(RESULT).part == 7
        plc.close()


def test_registers_that_are_not_for_the_plc_cannot_be_written(output: Output, plc: Plc) -> None:
    assert plc.client.write_register(100, 1).isError()
    assert plc.client.write_registers(2, [1, 1]).isError()
    assert plc.client.write_coil(0, True).isError()
    assert plc.client.read_holding_registers(50, count=1).isError()
    assert not plc.status().bits
    # The same registers as input registers.
    assert plc.client.read_input_registers(100, count=14).registers == [0] * 14


def test_no_trigger_is_taken_after_the_last_judgement(
    bundle: Bundle, output: Output, plc: Plc
) -> None:
    with open_camera(f"{CAMERA}line1") as camera:
        output.attach(camera)
        plc.wait_for(READY)
        output.totals()
        plc.control(1, 0, 5)
        plc.wait_for(REFUSED, absent=READY | BUSY)


def test_the_stream_ends_while_results_wait(bundle: Bundle, port: int) -> None:
    with open_output(f"modbus:127.0.0.1:{port}?end_s=0.1", bundle) as output:
        output.write(judgement(0))
        assert output.totals() == {"delivered": 0, "not_delivered": 1}


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("", "needs the address of this machine"),
        ("127.0.0.1:70000", "needs the address of this machine"),
        ("192.0.2.1:5020", "cannot listen"),
        ("127.0.0.1:0?queue=0", "queue must be from 1"),
    ],
)
def test_a_wrong_address_is_one_line(bundle: Bundle, target: str, message: str) -> None:
    with pytest.raises(OutputError, match=message) as caught:
        open_output(f"modbus:{target}", bundle)
    assert "\n" not in str(caught.value)


def test_a_port_that_is_taken_is_one_line(bundle: Bundle, output: Output, port: int) -> None:
    with pytest.raises(OutputError, match=r"cannot listen \(Address already in use\)"):
        server(bundle, port)
