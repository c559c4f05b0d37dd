"""The last parts that were rejected or are for review, with their pictures."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from flawline.runtime.outputs.web.lane import Shown

MOST_PARTS = 24
# Of the images that no browser has asked for yet: ten of 1920 x 1080 pixels, or 70 of 640 x 480.
RAW_BYTES = 64 * 2**20


@dataclass
class KeptPart:
    """A part that was not good. `facts` has no image any more when `is_gone` is true.

    `number` counts the parts that were kept, from 1.
    """

    number: int
    facts: Shown
    picture: bytes | None = None
    is_gone: bool = False

    @property
    def has_picture(self) -> bool:
        """Whether there is a picture, or an image that it can be made of."""
        return self.picture is not None or (self.facts.has_image and not self.is_gone)


class KeptParts:
    """Keeps the newest MOST_PARTS parts.

    Images wait until a browser asks for them, the newest RAW_BYTES of them; then only the encoded
    picture is kept, unless `keeps_images` is true, as where a detector may be taught from them. Any
    thread may call.
    """

    keeps_images = False

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._parts: deque[KeptPart] = deque(maxlen=MOST_PARTS)
        self._count = 0

    @property
    def count(self) -> int:
        """How many parts were kept so far; another value means that `parts` has changed."""
        return self._count

    def add(self, shown: Shown) -> None:
        """Keep a part. Called by the stream; it does not wait for a picture that is encoded."""
        with self._lock:
            self._count += 1
            self._parts.append(KeptPart(self._count, shown))
            held = 0
            for place, part in enumerate(reversed(self._parts)):
                if not part.is_gone:
                    held += part.facts.size
                    # The newest one is kept, however large it is.
                    if held > RAW_BYTES and place > 0:
                        _give_up(part)

    def parts(self) -> list[KeptPart]:
        """Return the parts, the newest first."""
        with self._lock:
            return list(reversed(self._parts))

    def needs_encoding(self, number: int) -> bool:
        """Tell whether the picture of a part would have to be encoded."""
        with self._lock:
            return any(
                part.number == number and part.picture is None and part.has_picture
                for part in self._parts
            )

    def picture(self, number: int, encode: Callable[[Shown], bytes]) -> bytes | None:
        """Return the picture of a part, encoded if it is not yet; None if there is none."""
        with self._lock:
            found = [part for part in self._parts if part.number == number]
        if not found or not found[0].has_picture:
            return None
        (part,) = found
        facts = part.facts
        if part.picture is None:
            picture = encode(facts)
            with self._lock:
                part.picture = picture
                if not self.keeps_images:
                    _give_up(part)
        return part.picture

    def with_image(self, number: int) -> Shown | None:
        """Return a part with its image; None if there is none, or no longer."""
        with self._lock:
            for part in self._parts:
                if part.number == number and part.facts.has_image:
                    return part.facts
        return None


def _give_up(part: KeptPart) -> None:
    """Release the image of a part. The caller holds the lock."""
    part.facts = part.facts.without_image()
    part.is_gone = True
