"""Preparing ahead: a thread makes the next input while the engine computes the one before."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from flawline.cameras.clock import Clock, SystemClock
from flawline.runtime.graph_input import Laid
from flawline.runtime.image import Image
from flawline.runtime.signals import SIGNAL_S
from flawline.runtime.verdict import Verdict

Item = TypeVar("Item")
Prepare = Callable[[Item], Image | Laid | Verdict]
# Takes the name of a stage and the seconds that one item spent in it.
NoteStage = Callable[[str, float], None]

JOIN_S = 2.0  # seconds that `close` waits for the thread, since a driver may hang for ever


@dataclass(frozen=True)
class Prepared(Generic[Item]):
    """An item, such as a frame, and what was made of it in so many milliseconds.

    `input` is that of the engine, uint8 [H, W, 3], or the verdict on an item that cannot be judged.
    `by` is the function that made it. `known` is what else is known of the item, if anything is.
    """

    item: Item
    input: Image | Verdict
    milliseconds: float = 0.0
    by: Prepare[Item] | None = None
    known: Laid | None = None

    @classmethod
    def of(cls, item: Item, prepare: Prepare[Item]) -> Prepared[Item]:
        """Prepare an item, and measure it."""
        start = time.perf_counter()
        made = prepare(item)
        milliseconds = 1e3 * (time.perf_counter() - start)
        if isinstance(made, Laid):
            return cls(item, made.image, milliseconds, prepare, made)
        return cls(item, made, milliseconds, prepare)

    def complete(self, verdict: Verdict) -> Verdict:
        """Return a verdict on the item, with what else is known of it."""
        if self.known is None:
            return verdict
        return replace(verdict, pose=self.known.pose, reading=self.known.reading)

    def made_by(self, prepare: Prepare[Item]) -> Prepared[Item]:
        """Return what a function makes of the item; this one if it has made it already."""
        return self if self.by == prepare else Prepared.of(self.item, prepare)


class Ahead(Generic[Item]):
    """Iterates over items in their order; a thread fetches and prepares them beforehand.

    At most `depth` prepared items wait, and one more is being fetched or prepared. An exception of
    `items` or `prepare` is raised in its place, after the items before it.

    With `newest`, the items are the newest frames of a camera. A frame that was prepared too early
    would become old while the engine computes. It is fetched so late that it is expected to be
    ready just when the consumer asks for it, to judge from the last item and the last preparation,
    and at once if the consumer asks before that.

    Use it as a context manager. If the consumer leaves before the end, `stop` is called, which must
    let `items` end from another thread; the item that was prepared last is then not handed out.
    `note` gets the times of the stages "capture", "prepare" and "idle", the wait of the consumer.
    While the consumer waits, it calls `waiting` at least every SIGNAL_S seconds.
    """

    def __init__(
        self,
        items: Iterator[Item],
        prepare: Prepare[Item],
        stop: Callable[[], None],
        depth: int = 1,
        newest: bool = False,
        note: NoteStage = lambda stage, seconds: None,
        clock: Clock | None = None,
        waiting: Callable[[], None] = lambda: None,
    ) -> None:
        self._items = items
        self._prepare = prepare
        self._stop = stop
        self._depth = depth
        self._newest = newest
        self._note = note
        self._clock = clock or SystemClock()
        self._waiting = waiting
        self._changed = threading.Condition()
        self._ready: deque[Prepared[Item]] = deque()
        self._failure: BaseException | None = None
        self._ended = False
        self._closed = False
        # Whether the consumer waits, when it took the last item, and how long it needed for the one
        # before; how long the last one took to be fetched and prepared. In seconds.
        self._wanted = False
        self._taken_at: float | None = None
        self._consumed_in = 0.0
        self._made_in = 0.0
        # A daemon, so that a driver that hangs cannot keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="prepare", daemon=True)

    def change_prepare(self, prepare: Prepare[Item]) -> None:
        """Prepare by another function from now on. What waits was made by the one before."""
        self._prepare = prepare

    def __enter__(self) -> Ahead[Item]:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the thread, and the items if they have not ended. May be called again."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            ended = self._ended
        if not ended:
            self._stop()
        self._thread.join(JOIN_S)

    def __iter__(self) -> Iterator[Prepared[Item]]:
        return self

    def __next__(self) -> Prepared[Item]:
        start = self._clock.monotonic()
        with self._changed:
            if self._taken_at is not None:
                self._consumed_in = start - self._taken_at
            self._wanted = True
            self._changed.notify_all()
            while not self._changed.wait_for(lambda: self._ready or self._ended, SIGNAL_S):
                self._waiting()
            self._wanted = False
            if not self._ready:
                if self._failure is not None:
                    raise self._failure
                raise StopIteration
            prepared = self._ready.popleft()
            self._taken_at = self._clock.monotonic()
            self._changed.notify_all()
        self._note("idle", self._taken_at - start)
        return prepared

    # What the thread calls.

    def _run(self) -> None:
        try:
            while self._wait_until_due():
                start = self._clock.monotonic()
                item = next(self._items)
                fetched = self._clock.monotonic()
                prepared = Prepared.of(item, self._prepare)
                self._put(prepared, self._clock.monotonic() - start)
                self._note("capture", fetched - start)
                self._note("prepare", 1e-3 * prepared.milliseconds)
                # The image is released when its consumer has done with it.
                del item, prepared
        except StopIteration:
            pass
        except BaseException as error:
            # Every exception must reach the consumer, not end with the thread.
            self._failure = error
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _wait_until_due(self) -> bool:
        """Wait until the next item is to be fetched; return False if the consumer has left."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._ready) < self._depth)
            if self._newest and self._taken_at is not None:
                due = self._taken_at + self._consumed_in - self._made_in
                self._clock.wait_for(
                    self._changed,
                    lambda: self._closed or self._wanted,
                    max(0.0, due - self._clock.monotonic()),
                )
            return not self._closed

    def _put(self, prepared: Prepared[Item], seconds: float) -> None:
        with self._changed:
            self._made_in = seconds
            self._ready.append(prepared)
            self._changed.notify_all()
