"""Pulses on pins, with gpiozero's pins that are not real."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from flawline.cameras import Frame
from flawline.runtime.bundle import Bundle
from flawline.runtime.outputs import Judgement, Output, OutputError, open_output
from flawline.runtime.verdict import Verdict

pytest.importorskip("gpiozero", reason="needs the extra gpio")
IMAGE = np.zeros((4, 4, 3), np.uint8)
WAIT_S = 20.0


def judgement(index: int, name: str, can_wait: bool = False) -> Judgement:
    score, reason = {"good": 10.0, "review": 90.0, "anomalous": 120.0}.get(name, float("nan")), None
    if name == "unjudged":
        reason = "torn"
    rejected = name in ("anomalous", "unjudged")
    verdict = Verdict(score, 100.0, rejected, None, {}, reason, 80.0)
    assert verdict.name == name
    return Judgement(Frame("line", index, IMAGE), verdict, 1.0, live=True, can_wait=can_wait)


@pytest.fixture
def factory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    from gpiozero import Device
    from gpiozero.pins.mock import MockFactory

    factory = MockFactory()
    monkeypatch.setattr(Device, "pin_factory", factory)
    yield factory
    factory.reset()


def history(factory: Any, number: int) -> list[int]:
    """The levels that a pin has had, from the beginning."""
    return [int(entry.state) for entry in factory.pin(number).states]


def opened(options: str, bundle: Bundle) -> Output:
    return open_output(f"gpio:?{options}&end_s=20", bundle)


@pytest.mark.parametrize("active", ["high", "low"])
def test_each_verdict_has_its_pulse(active: str, factory: Any, bundle: Bundle) -> None:
    pins = "rejected=17&good=27&review=22&anomalous=23&unjudged=24"
    output = opened(f"{pins}&active={active}&pulse_ms=1&pause_ms=1", bundle)
    rest = int(active == "low")
    names = ["good", "anomalous", "unjudged", "good", "review"]
    for number in (17, 22, 23, 24, 27):
        assert int(factory.pin(number).state) == rest
        factory.pin(number).clear_states()
    for index, name in enumerate(names):
        output.write(judgement(index, name))
    assert output.totals() == {"delivered": 5, "not_delivered": 0}
    output.close()
    for number, pulses in {17: 2, 27: 2, 22: 1, 23: 1, 24: 1}.items():
        levels = history(factory, number)
        assert levels.count(1 - rest) == pulses, number
        assert int(factory.pin(number).state) == rest


def test_a_live_camera_never_waits_for_a_pulse(factory: Any, bundle: Bundle) -> None:
    output = open_output("gpio:?rejected=17&pulse_ms=10000&queue=2&end_s=0", bundle)
    for index in range(6):
        output.write(judgement(index, "anomalous"))
    totals = output.totals()
    output.close()
    # One pulse may have begun, and two wait.
    assert totals["delivered"] == 0
    assert totals["not_delivered"] == 6
    assert int(factory.pin(17).state) == 0


def test_a_part_without_a_pin_takes_no_time(factory: Any, bundle: Bundle) -> None:
    output = open_output("gpio:?rejected=17&pulse_ms=10000&queue=1&end_s=0", bundle)
    for index in range(5):
        output.write(judgement(index, "good"))
    assert output.totals() == {"delivered": 5, "not_delivered": 0}
    output.close()


def test_a_pulse_that_has_begun_ends_with_the_stream(factory: Any, bundle: Bundle) -> None:
    output = open_output("gpio:?rejected=17&pulse_ms=10000&end_s=0", bundle)
    output.write(judgement(0, "anomalous"))
    deadline = time.monotonic() + WAIT_S
    while not factory.pin(17).state:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    output.close()
    assert int(factory.pin(17).state) == 0


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ("gpio", "no pin is given; write gpio:"),
        ("gpio:17", "pins are options, so that '17' is none"),
        ("gpio:?good=999", "the pin of good cannot be used .*; check its number"),
        ("gpio:?good=17&rejected=17", "the pin of good cannot be used .*in use"),
        ("gpio:?good=17&pulse_ms=0", "pulse_ms must be above 0"),
        ("gpio:?good=17&pause_ms=-1", "pause_ms must be from 0"),
        ("gpio:?good=17&active=up", "not one of high, low"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(
    description: str, message: str, factory: Any, bundle: Bundle
) -> None:
    with pytest.raises(OutputError, match=message) as raised:
        open_output(description, bundle)
    assert "\n" not in str(raised.value)
    open_output("gpio:?good=17&end_s=0", bundle).close()


def test_a_pin_that_fails_is_counted(
    factory: Any,
    bundle: Bundle,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = opened("rejected=17&pulse_ms=1", bundle)

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(type(output._pins["rejected"]), "on", fail)  # type: ignore[attr-defined]
    output.write(judgement(0, "anomalous"))
    assert output.totals() == {"delivered": 0, "not_delivered": 1}
    assert "output gpio: a message was refused: [Errno 5]" in capsys.readouterr().err
    output.close()
