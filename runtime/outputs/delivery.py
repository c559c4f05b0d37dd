"""What outputs that send messages over a network share: they never delay a live stream, and count.

A message waits in a bounded queue until the peer has confirmed it. While the peer is away, messages
are kept up to the limit of the queue, and the later ones are dropped and counted.
"""

from __future__ import annotations

import json
import threading
import time
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from flawline.options import option
from flawline.runtime.bundle import Bundle
from flawline.runtime.console import warn
from flawline.runtime.outputs import Judgement, Output, OutputOptions, OutputState
from flawline.runtime.outputs.jsonl import record
from flawline.runtime.station.notices import FrameNotices

MOST_QUEUED = 1_000_000
LONGEST_END_S = 600
PAUSE_S = 0.01  # seconds between two looks at a queue that is full


@dataclass(frozen=True)
class DeliveryOptions(OutputOptions):
    """Options of every output that sends. Raises ValueError for a limit that is out of range."""

    queue: int = option(1000, "messages that may wait for the peer; further ones are dropped")
    end_s: float = option(5.0, "seconds at the end for messages that are not delivered yet")

    def __post_init__(self) -> None:
        if not 1 <= self.queue <= MOST_QUEUED:
            raise ValueError(f"queue must be from 1 to {MOST_QUEUED}")
        # Not `end_s < 0`, which is false for NaN.
        if not 0 <= self.end_s <= LONGEST_END_S:
            raise ValueError(f"end_s must be from 0 to {LONGEST_END_S}")


class Delivery(Output):
    """Base class of outputs that send one message per judgement, and one with the summary.

    A subclass implements `_take` and `_discard`, and calls `_note_delivered`, `_note_refused`
    and `_note_failure` from any thread. A message is the JSON line as bytes, unless it overrides
    `_message` and `_summary`. A live camera never waits. Another one waits for room in the queue
    while the peer answers, and not while it does not, or once the stream is to end.

    At the end, the messages that wait are delivered within `end_s` seconds, and the rest is
    counted as not delivered.
    """

    required: ClassVar[bool] = False
    uses_regions = True
    Options: ClassVar[type[DeliveryOptions]] = DeliveryOptions

    def __init__(self, name: str, options: DeliveryOptions, bundle: Bundle) -> None:
        # What it is called in messages, without secrets.
        self._name = name
        self._limits = options
        self._bundle_id = bundle.short_id
        self._changed = threading.Condition()
        self._notices = FrameNotices()
        self._answers = True
        # Why the peer does not answer.
        self._reason = ""
        self._may_wait = True
        self._taken = 0
        self._delivered = 0
        self._refused = 0
        self._dropped = 0
        self._deadline: float | None = None
        # The counts before the summary was sent, which is no result.
        self._counted: Mapping[str, int] | None = None

    @abstractmethod
    def _take(self, message: Any, *, is_summary: bool = False) -> bool:
        """Take over a message without waiting; return False if there is no room for it.

        `is_summary` is true for the last message, which is the summary of the run.
        """

    @abstractmethod
    def _discard(self) -> None:
        """Give up the messages that are not delivered, and end what sends them. Does not wait."""

    def _message(self, judgement: Judgement) -> Any:
        """Return the message of a judgement. It may not refer to the map of the verdict."""
        return _encode({**record(judgement), "bundle": self._bundle_id})

    def _summary(self, summary: Mapping[str, Any]) -> Any | None:
        """Return the message of the summary, or None if it is not sent."""
        return _encode({"summary": {**summary, "bundle": self._bundle_id}})

    def change_bundle(self, bundle: Bundle) -> None:
        self._bundle_id = bundle.short_id

    def write(self, judgement: Judgement) -> None:
        message = self._message(judgement)
        while not self._offer(message):
            if judgement.can_wait and self._may_wait and self._answers:
                time.sleep(PAUSE_S)
                continue
            with self._changed:
                self._dropped += 1
                self._notices.warn(
                    "dropped",
                    f"{self._name}: {self._limits.queue} messages wait already, so that the result "
                    f"of frame {judgement.frame.index} was dropped; inspection continues",
                    "results",
                )
            return

    def stop_waiting(self) -> None:
        self._may_wait = False

    def totals(self) -> Mapping[str, int]:
        """Wait for the rest; count the results that the peer has confirmed, and the others."""
        if self._counted is not None:
            return self._counted
        self._settle()
        with self._changed:
            missing = self._dropped + self._taken - self._delivered
            return {"delivered": self._delivered, "not_delivered": missing}

    def state(self) -> OutputState:
        with self._changed:
            counts = {
                "delivered": self._delivered,
                "waiting": self._taken - self._delivered - self._refused,
                "not_delivered": self._dropped + self._refused,
            }
            return OutputState(counts, None if self._answers else self._reason or None)

    def finish(self, summary: Mapping[str, Any]) -> None:
        totals = self.totals()
        self._counted = totals
        if totals["not_delivered"]:
            count = totals["delivered"] + totals["not_delivered"]
            warn(f"{self._name}: {totals['not_delivered']} of {count} results were not delivered")
        # A peer that has not taken the results in time is not waited for again.
        message = self._summary(summary)
        if message is not None and self._is_settled():
            self._offer(message, is_summary=True)
            self._settle()

    def close(self) -> None:
        self._discard()

    def _offer(self, message: Any, *, is_summary: bool = False) -> bool:
        # Counted before, because a message may be delivered before `_take` returns.
        with self._changed:
            self._taken += 1
        taken = self._take(message, is_summary=is_summary)
        if not taken:
            with self._changed:
                self._taken -= 1
        return taken

    def _settle(self) -> None:
        """Wait for the messages that were taken, in all calls together at most `end_s` seconds."""
        now = time.monotonic()
        if self._deadline is None:
            self._deadline = now + self._limits.end_s
        with self._changed:
            self._changed.wait_for(self._is_settled, max(0.0, self._deadline - now))

    def _is_settled(self) -> bool:
        return self._delivered + self._refused >= self._taken

    # What the threads that send call.

    def _note_delivered(self) -> None:
        """Note that the peer has confirmed a message."""
        with self._changed:
            self._delivered += 1
            self._changed.notify_all()
        self._note_answer()

    def _note_answer(self) -> None:
        """Note that the peer answers."""
        with self._changed:
            if not self._answers:
                self._answers = True
                self._notices.warn("answers", f"{self._name}: answers again", "times")

    def _note_failure(self, reason: str) -> None:
        """Note that the peer does not answer, and why; the message is tried again."""
        with self._changed:
            self._answers = False
            self._reason = reason
            self._notices.warn(
                "failure",
                f"{self._name}: {reason}; it is tried again, and inspection continues",
                "failures",
            )

    def _note_refused(self, reason: str) -> None:
        """Note that the peer does not want a message, and why; it is not tried again."""
        with self._changed:
            self._refused += 1
            self._notices.warn(
                "refused", f"{self._name}: a message was refused: {reason}", "messages"
            )
            self._changed.notify_all()


def _encode(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, allow_nan=False).encode()
