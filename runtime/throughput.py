"""Judging images with several batches in flight: more of them per second, each of them later."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Generic, TypeVar

import numpy as np

from flawline.runtime.ahead import Prepared
from flawline.runtime.detector import Detector
from flawline.runtime.engines import EngineError, EngineUnavailable
from flawline.runtime.image import Image
from flawline.runtime.verdict import Verdict

Item = TypeVar("Item")


def require_batch(detector: Detector, batch: int) -> None:
    """Raise EngineError if the engine does not take so many images in one call."""
    most = detector.runner.largest_batch
    if most is not None and batch > most:
        raise EngineError(
            f"--batch {batch}: {detector.engine.description} takes at most {most} in one call; "
            f"give --batch {most}"
        )


def judge_in_flight(
    detector: Detector,
    items: Iterable[Prepared[Item]],
    batch: int = 1,
) -> Iterator[tuple[Item, Verdict]]:
    """Judge all items in batches of `batch` images; yield each with its verdict, in their order.

    A verdict comes after later items were fetched, so that this is for files, not for cameras. A
    batch is smaller at the end, and where items without an image take most of its places.

    The anomaly map of a verdict is valid until the next verdict is asked for. The times of a
    verdict are those of its batch, with the waiting for the batches before it. If fetching an item
    fails, those before it are judged first. Raises EngineError, also for a batch that the engine
    does not take (see `require_batch`), and what `items` raises.
    """
    submitted: deque[_Batch[Item]] = deque()
    collected: _Batch[Item] = _Batch()
    failure: list[Exception] = []
    try:
        for item in _until_failure(items, failure):
            collected.add(item)
            if not collected.is_full(batch):
                continue
            if len(submitted) == detector.runner.in_flight:
                yield from submitted.popleft().verdicts(detector)
            submitted.append(collected.submit(detector))
            collected = _Batch()
        if len(submitted) == detector.runner.in_flight:
            yield from submitted.popleft().verdicts(detector)
        submitted.append(collected.submit(detector))
        while submitted:
            yield from submitted.popleft().verdicts(detector)
    finally:
        # After an error, or if no more verdicts are asked for.
        for dropped in submitted:
            dropped.drop(detector)
    if failure:
        raise failure[0]


def _until_failure(
    items: Iterable[Prepared[Item]], failure: list[Exception]
) -> Iterator[Prepared[Item]]:
    """Yield the items; append the exception that ends them early to `failure`."""
    iterator = iter(items)
    while True:
        try:
            item = next(iterator)
        except StopIteration:
            return
        except Exception as error:
            failure.append(error)
            return
        yield item


class _Batch(Generic[Item]):
    """Items in their order, some of which have a verdict already; the others are images."""

    def __init__(self) -> None:
        self._items: list[Prepared[Item]] = []
        self._images: list[Image] = []
        # How long they took to be prepared, and when they were submitted, in seconds.
        self._prepare_ms = 0.0
        self._ready = 0.0
        # Why the engine did not take them.
        self._refused: EngineUnavailable | None = None

    def add(self, prepared: Prepared[Item]) -> None:
        """Add an item."""
        self._prepare_ms += prepared.milliseconds
        self._items.append(prepared)
        if not isinstance(prepared.input, Verdict):
            self._images.append(prepared.input)

    def is_full(self, size: int) -> bool:
        """Tell whether the batch has `size` images, or so many items that it must not grow."""
        return len(self._images) == size or len(self._items) >= 2 * size

    def submit(self, detector: Detector) -> _Batch[Item]:
        """Give the images to the engine, if there are any; return this batch."""
        self._ready = time.perf_counter()
        try:
            if len(self._images) == 1:
                # A single image is not copied.
                detector.runner.submit(self._images[0][None])
            elif self._images:
                detector.runner.submit(np.stack(self._images))
        except EngineUnavailable as error:
            self._refused = error
        return self

    def verdicts(self, detector: Detector) -> Iterator[tuple[Item, Verdict]]:
        """Wait for the engine, and yield each item with its verdict."""
        results: Iterator[Verdict] = iter(())
        if self._images:
            results = iter(self._results(detector))
        for made in self._items:
            if isinstance(made.input, Verdict):
                yield made.item, made.input
            else:
                yield made.item, made.complete(next(results))

    def _results(self, detector: Detector) -> list[Verdict]:
        """Wait for the engine, and return the verdicts on the images."""
        try:
            if self._refused is not None:
                raise self._refused
            scores, maps = detector.runner.result()
        except EngineUnavailable as error:
            return [detector.unjudged(str(error))] * len(self._images)
        infer = time.perf_counter() - self._ready
        times = {"prepare": self._prepare_ms, "infer": 1e3 * infer}
        found = []
        for score, anomaly_map in zip(scores.tolist(), maps, strict=True):
            found.append(detector.verdict(score, anomaly_map, times))
        return found

    def drop(self, detector: Detector) -> None:
        """Take the result of the engine, which no one needs any more."""
        if self._images and self._refused is None:
            with suppress(EngineError):
                detector.runner.result()
