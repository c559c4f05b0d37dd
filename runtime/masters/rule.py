"""What a stream demands of its master parts: that they pass now, or passed not long ago."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flawline.commands import command_line
from flawline.runtime.console import log
from flawline.runtime.detector import Detector
from flawline.runtime.masters.check import Masters, MastersError
from flawline.runtime.masters.durations import describe_duration
from flawline.runtime.masters.record import age_of, check_and_log, last_check

# A clock that is set by the network may go back a little.
CLOCK_SLACK_S = 60.0
LOOK_AT = "look at lamp, lens and camera, and at the master parts; then calibrate or train again"


@dataclass(frozen=True)
class MastersRule:
    """What a stream demands before its first frame, and while it runs.

    With `masters`, these are checked before the first frame. With `longest_s`, the last check in
    the audit log of the bundle must not be older than so many seconds, from the start on until the
    end. `station` is the file of the station that the rule is of, if any.
    """

    masters: Masters | None
    longest_s: float | None
    station: Path | None = None

    def require(self, detector: Detector) -> None:
        """Check the masters, or look for a check that is young enough.

        Raises MastersError if a part is judged wrong or the last check does not suffice, and what
        `check_and_log` raises.
        """
        if self.masters is None:
            fault = self.fault(detector)
            if fault is not None:
                raise MastersError(fault)
            return
        result = check_and_log(detector, self.masters)
        if not result.passed:
            raise MastersError(f"{result.describe()}; {LOOK_AT}")
        log(result.describe())

    def fault(self, detector: Detector) -> str | None:
        """Say why the last check of master parts does not suffice, with the remedy, or return None.

        Raises AuditError.
        """
        if self.longest_s is None:
            return None
        path = detector.bundle.path
        again = f"check again: {self._command(detector)}"
        entry = last_check(detector)
        if entry is None:
            return (
                f"bundle {path}: no master parts were checked with {detector.engine.name} in "
                f"{detector.engine.precision} and the threshold {detector.threshold:.6g}; {again}"
            )
        if not (entry.new or {}).get("passed"):
            return f"bundle {path}: the last check of master parts failed: {entry.note}; {LOOK_AT}"
        age = age_of(entry)
        if age < -CLOCK_SLACK_S:
            return (
                f"bundle {path}: the last check of master parts is of {entry.time}, in the future; "
                f"set the clock, and {again}"
            )
        if age > self.longest_s:
            return (
                f"bundle {path}: the last check of master parts is older than "
                f"{describe_duration(self.longest_s)} ({entry.time}); {again}"
            )
        return None

    def _command(self, detector: Detector) -> str:
        if self.station is not None:
            return command_line("masters", "--station", self.station)
        engine = ("--engine", detector.engine.name, "--precision", detector.engine.precision)
        words = (detector.bundle.path, "--good", "DIR", "--bad", "DIR", *engine)
        return command_line("masters", *words)
