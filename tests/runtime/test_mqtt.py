"""Results over MQTT, with a real broker that is killed and started again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("paho.mqtt.client", reason="needs the extra mqtt")

from fakes.broker import Broker, Subscriber
from fakes.judgements import judgement

from flawline.cameras import open_camera
from flawline.runtime import infer_stream
from flawline.runtime.bundle import Bundle
from flawline.runtime.detector import Detector
from flawline.runtime.outputs import OutputError, mqtt, open_output
from flawline.runtime.station.pipeline import run_stream
from flawline.runtime.station.tally import Tally

RESULT = "plant/line4/result"
STATE = "plant/line4/state"


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt, "PAUSE_S", (0.05, 0.1))


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    broker = Broker(tmp_path / "broker")
    yield broker
    broker.kill()


@pytest.fixture
def subscriber(broker: Broker) -> Iterator[Subscriber]:
    subscriber = Subscriber(broker.port)
    broker.save("subscriber")
    yield subscriber
    subscriber.close()


def address(broker: Broker, options: str = "") -> str:
    return f"mqtt:127.0.0.1:{broker.port}/plant/line4?end_s=20{options}"


def test_a_stream_is_published_with_its_state_and_its_summary(
    bundle: Bundle, broker: Broker, subscriber: Subscriber, capsys: pytest.CaptureFixture[str]
) -> None:
    camera = "synthetic://?width=64&height=48&fps=500&frames=20&trigger=line1"
    flags = ["--bundle", str(bundle.path), "--camera", camera, "--output", "jsonl"]
    assert infer_stream.main([*flags, "--output", address(broker)]) == 0
    *lines, end = capsys.readouterr().out.splitlines()
    subscriber.wait_for(STATE, "offline")
    assert subscriber.of(RESULT) == lines
    assert subscriber.of("plant/line4/summary") == [end]
    assert subscriber.of(STATE) == ["online", "offline"]
    assert json.loads(end)["summary"]["delivered"] == 20
    late = Subscriber(broker.port, STATE, "late")
    late.wait_for(STATE, "offline")
    assert late.messages == [(STATE, "offline", True)]
    late.close()


def test_a_broker_that_is_killed_and_returns_gets_every_message(
    bundle: Bundle, broker: Broker, subscriber: Subscriber, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_output(address(broker), bundle) as output:
        for index in range(50):
            output.write(judgement(index))
        subscriber.wait_for(RESULT, count=50)
        broker.kill()
        for index in range(50, 300):
            output.write(judgement(index))
        broker.start()
        for index in range(300, 400):
            output.write(judgement(index))
        assert output.totals() == {"delivered": 400, "not_delivered": 0}
        subscriber.wait_for(RESULT, count=400)
    assert subscriber.indices(RESULT) == list(range(400))
    assert capsys.readouterr().err.count("the connection was lost") == 1


def test_what_does_not_fit_is_dropped_and_counted(
    bundle: Bundle, broker: Broker, subscriber: Subscriber, capsys: pytest.CaptureFixture[str]
) -> None:
    broker.kill()
    with open_output(address(broker, "&queue=10"), bundle) as output:
        for index in range(100):
            output.write(judgement(index))
        broker.start()
        assert output.totals() == {"delivered": 10, "not_delivered": 90}
        subscriber.wait_for(RESULT, count=10)
    assert subscriber.indices(RESULT) == list(range(10))
    assert capsys.readouterr().err.count("10 messages wait already") == 1


def test_messages_arrive_in_their_order_although_the_connection_is_lost(
    bundle: Bundle, broker: Broker, subscriber: Subscriber
) -> None:
    broker.kill()
    with open_output(address(broker, "&queue=5000"), bundle) as output:
        # Before the first connection.
        for index in range(300):
            output.write(judgement(index))
        written = 300
        for _ in range(3):
            broker.start()
            # At the moment at which the connection is made.
            reached = len(subscriber.of(RESULT))
            while len(subscriber.of(RESULT)) < reached + 100:
                output.write(judgement(written))
                written += 1
                time.sleep(0.0005)
            broker.kill()
            for index in range(written, written + 100):
                output.write(judgement(index))
            written += 100
        broker.start()
        assert output.totals() == {"delivered": written, "not_delivered": 0}
        output.finish({"frames": written})
        subscriber.wait_for("plant/line4/summary")
    # A broker that is killed may lose messages that it has confirmed.
    indices = subscriber.indices(RESULT)
    assert indices == sorted(indices)
    assert indices[-1] == written - 1


def test_files_wait_for_the_broker(bundle: Bundle, broker: Broker, subscriber: Subscriber) -> None:
    with open_output(address(broker, "&queue=2"), bundle) as output:
        for index in range(200):
            output.write(judgement(index, can_wait=True))
        assert output.totals() == {"delivered": 200, "not_delivered": 0}
        subscriber.wait_for(RESULT, count=200)


def test_a_broker_that_never_comes_ends_no_stream(
    bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_output("mqtt:127.0.0.1:9/plant?end_s=0.3", bundle) as output:
        for index in range(5):
            output.write(judgement(index))
        assert output.totals() == {"delivered": 0, "not_delivered": 5}
        output.finish({"frames": 5})
    err = capsys.readouterr().err
    assert "output mqtt: 127.0.0.1:9: cannot be reached (Connection refused)" in err
    assert "5 of 5 results were not delivered" in err


def test_a_user_is_taken_from_a_file_and_refused_in_one_line(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broker = Broker(tmp_path / "broker", "allow_anonymous false")
    file = tmp_path / "user.txt"
    file.write_text("user=line4\npassword=wrong-8\n")
    file.chmod(0o600)
    target = f"mqtt:127.0.0.1:{broker.port}/plant?end_s=5&credentials={file}"
    with open_output(target, bundle) as output:
        output.write(judgement(0))
        end = time.monotonic() + 20
        while "Not authorized" not in (err := capsys.readouterr().err):
            assert time.monotonic() < end
            time.sleep(0.05)
    broker.kill()
    assert "the broker refuses the connection" in err
    assert "wrong-8" not in err


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("", "is not HOST/TOPIC"),
        ("host", "is not HOST/TOPIC"),
        ("host/", "is not HOST/TOPIC"),
        ("host/plant/#", "is not HOST/TOPIC"),
        ("host:99999/plant", "host or port is not valid"),
        ("a..b/plant", "host or port is not valid"),
        ("admin:pw-7@host/plant", "is not HOST/TOPIC"),
        ("host/plant?ca=file.pem", "ca needs tls=1"),
        ("host/plant?tls=1&ca=/absent", "certificates /absent cannot be read"),
        ("host/plant?credentials=/absent", "credentials file /absent: cannot be read"),
        ("host/plant?queue=100000", "queue must be from 1 to 60000"),
        ("admin:pw-7@host/plant?qeue=1", "is unknown"),
    ],
)
def test_a_wrong_target_is_one_line_without_its_secrets(
    bundle: Bundle, target: str, message: str
) -> None:
    with pytest.raises(OutputError, match=message) as caught:
        open_output(f"mqtt:{target}", bundle)
    assert "\n" not in str(caught.value)
    assert "pw-7" not in str(caught.value)


@pytest.mark.alone
def test_a_process_that_dies_leaves_its_last_will(
    bundle: Bundle, broker: Broker, subscriber: Subscriber
) -> None:
    camera = "synthetic://?width=64&height=48&fps=50"
    command = [sys.executable, "-m", "flawline.runtime.infer_stream", "--bundle", str(bundle.path)]
    process = subprocess.Popen(
        [*command, "--camera", camera, "--output", address(broker)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    subscriber.wait_for(RESULT)
    process.kill()
    process.wait(20)
    subscriber.wait_for(STATE, "offline")


@pytest.mark.alone
def test_an_interrupt_ends_the_stream_while_the_broker_is_away(
    bundle: Bundle, broker: Broker, subscriber: Subscriber
) -> None:
    camera = "synthetic://?width=64&height=48&fps=50"
    command = [sys.executable, "-m", "flawline.runtime.infer_stream", "--bundle", str(bundle.path)]
    target = f"mqtt:127.0.0.1:{broker.port}/plant/line4?end_s=0.5"
    process = subprocess.Popen(
        [*command, "--camera", camera, "--output", "jsonl", "--output", target],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
    )
    subscriber.wait_for(RESULT)
    broker.kill()
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    summary = json.loads(out.splitlines()[-1])["summary"]
    assert summary["delivered"] + summary["not_delivered"] == summary["frames"]


@pytest.mark.slow
def test_a_broker_that_is_away_for_five_seconds_costs_no_frame(
    bundle: Bundle, broker: Broker, subscriber: Subscriber
) -> None:
    def interrupt() -> None:
        subscriber.wait_for(RESULT, count=100)
        broker.kill()
        time.sleep(5)
        broker.start()

    outage = threading.Thread(target=interrupt)
    outage.start()
    tally = Tally()
    uri = "synthetic://?width=64&height=48&fps=100&frames=1000&trigger=line1&queue=1000"
    with (
        open_camera(uri) as camera,
        open_output(address(broker), bundle) as output,
        Detector(bundle, "onnxruntime") as detector,
    ):
        run_stream(camera, detector, [output], None, threading.Event(), tally)
        outage.join()
        assert output.totals() == {"delivered": 1000, "not_delivered": 0}
        subscriber.wait_for(RESULT, count=1000)
    assert tally.frames == 1000
    assert tally.unjudged == 0
    assert camera.dropped == 0
    assert subscriber.indices(RESULT) == list(range(1000))
