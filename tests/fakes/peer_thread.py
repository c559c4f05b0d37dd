"""A peer of a stream, in a thread whose failure the test reports."""

from __future__ import annotations

import threading
from collections.abc import Callable


def run(
    work: Callable[[], None], on_failure: Callable[[], None]
) -> tuple[threading.Thread, list[BaseException]]:
    """Return a thread that does `work`, and the list that its exception is put into.

    `on_failure` is then called, so that the stream ends.
    """
    errors: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)
            on_failure()

    return threading.Thread(target=guarded, daemon=True), errors
