"""Verdicts as pulses on the pins of a small computer, such as a Raspberry Pi."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from flawline.extras import missing_package
from flawline.options import option
from flawline.runtime.background import BackgroundWorker
from flawline.runtime.bundle import Bundle
from flawline.runtime.console import first_line
from flawline.runtime.outputs import Judgement, OutputError
from flawline.runtime.outputs.delivery import Delivery, DeliveryOptions
from flawline.runtime.verdict import ANOMALOUS, GOOD, REVIEW, UNJUDGED

REJECTED = "rejected"
PINS = (REJECTED, GOOD, REVIEW, ANOMALOUS, UNJUDGED)
LONGEST_PULSE_MS = 10_000
CLOSE_S = 1.0  # for the pulse that has begun


@dataclass(frozen=True)
class GpioOptions(DeliveryOptions):
    """Raises ValueError for times that are out of range."""

    rejected: str | None = option(None, "pin of each part that is rejected, such as 17 or GPIO17")
    good: str | None = option(None, "pin of each good part")
    review: str | None = option(None, "pin of each part for review")
    anomalous: str | None = option(None, "pin of each anomalous part")
    unjudged: str | None = option(None, "pin of each part that could not be judged")
    pulse_ms: float = option(50.0, "milliseconds that a pin is active")
    pause_ms: float = option(10.0, "milliseconds between two pulses")
    active: Literal["high", "low"] = option("high", "level of a pulse")
    queue: int = option(10, "parts whose pulses may wait; further ones are dropped")

    def __post_init__(self) -> None:
        super().__post_init__()
        # Not `value < 0`, which is false for NaN.
        if not 0 < self.pulse_ms <= LONGEST_PULSE_MS:
            raise ValueError(f"pulse_ms must be above 0 and at most {LONGEST_PULSE_MS}")
        if not 0 <= self.pause_ms <= LONGEST_PULSE_MS:
            raise ValueError(f"pause_ms must be from 0 to {LONGEST_PULSE_MS}")


class Gpio(Delivery):
    """Pulses the pin of each verdict, and that of rejected parts, for a relay or a PLC.

    A thread gives one pulse after the other, in the order of the parts, so that each can be
    counted. A part whose pulse does not fit into the queue is dropped and counted. All pins are
    inactive before the first pulse and after `close`. Pins are those of gpiozero: numbers of the
    Broadcom chip, or names such as BOARD11.
    """

    usage: ClassVar[str] = "gpio:?rejected=PIN"
    untested: ClassVar[str | None] = "on real pins"
    uses_regions = False
    Options: ClassVar[type[GpioOptions]] = GpioOptions

    def __init__(self, target: str, options: GpioOptions, bundle: Bundle) -> None:
        super().__init__("output gpio", options, bundle)
        if target:
            raise OutputError(
                f"output gpio: pins are options, so that {target!r} is none; write {self.usage}"
            )
        self._pulse_s = 1e-3 * options.pulse_ms
        self._pause_s = 1e-3 * options.pause_ms
        self._pins = self._open_pins(options)
        self._worker = BackgroundWorker(options.queue)
        self._stopped = threading.Event()

    @classmethod
    def missing(cls) -> str | None:
        if importlib.util.find_spec("gpiozero") is None:
            return missing_package("gpiozero")
        return None

    @classmethod
    def example(cls, folder: Path) -> str:
        """Return two pins; tests set gpiozero's factory of pins that are not real."""
        return "?rejected=17&good=27&pulse_ms=1&pause_ms=0"

    def _open_pins(self, options: GpioOptions) -> dict[str, Any]:
        """Return the devices of the pins that are given. Raises OutputError."""
        from gpiozero import GPIOZeroError, OutputDevice

        pins: dict[str, Any] = {}
        try:
            for name in PINS:
                pin = getattr(options, name)
                if pin is not None:
                    pins[name] = OutputDevice(_pin(pin), active_high=options.active == "high")
        except (GPIOZeroError, OSError, ValueError) as error:
            # What is below the library raises errors of the system.
            _close(pins)
            raise OutputError(
                f"output gpio: the pin of {name} cannot be used ({first_line(error)}); check its "
                f"number, and that the user is in the group gpio"
            ) from error
        if not pins:
            raise OutputError(f"output gpio: no pin is given; write {self.usage}")
        return pins

    def _message(self, judgement: Judgement) -> list[Any]:
        """Return the pins of a part."""
        verdict = judgement.verdict
        names = [verdict.name]
        if verdict.anomalous:
            names.append(REJECTED)
        return [self._pins[name] for name in names if name in self._pins]

    def _summary(self, summary: Mapping[str, Any]) -> None:
        """Send none: there is no pin for it."""

    def _take(self, message: list[Any], *, is_summary: bool = False) -> bool:
        if not message:
            self._note_delivered()
            return True
        return self._worker.submit(lambda: self._pulse(message), 1, wait=False)

    def _pulse(self, pins: list[Any]) -> None:
        """Give one pulse. Of the thread."""
        from gpiozero import GPIOZeroError

        if self._stopped.is_set():
            return
        try:
            for pin in pins:
                pin.on()
            self._stopped.wait(self._pulse_s)
            for pin in pins:
                pin.off()
        except (GPIOZeroError, OSError) as error:
            self._note_refused(first_line(error))
            return
        self._note_delivered()
        self._stopped.wait(self._pause_s)

    def _discard(self) -> None:
        self._stopped.set()
        self._worker.discard()
        self._worker.close(timeout=CLOSE_S)
        _close(self._pins)


def _pin(text: str) -> int | str:
    """Return a pin as gpiozero takes it: a number of the Broadcom chip, or a name."""
    return int(text) if text.isdecimal() else text


def _close(pins: Mapping[str, Any]) -> None:
    """Make the pins inactive, and release them. May be called again."""
    for pin in pins.values():
        if not pin.closed:
            pin.off()
            pin.close()
