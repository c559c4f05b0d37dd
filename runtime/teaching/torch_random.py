"""The random numbers that torch draws on a CPU from a seed, without torch.

Teaching on the box draws what the training with the same seed draws. Both generators are MT19937;
what torch makes of its words is in ATen: `randperm_cpu` and `normal_fill`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

# Words of the state of MT19937, and the multiplier of its initialisation.
WORDS = 624
MULTIPLIER = 1812433253
# Values that Box and Muller's transform makes at a time: half of the first 8 words and half of the
# next 8.
HALF = 8
# Bits of a word that become a uniform value in [0, 1).
UNIFORM_BITS = 24
# From so many items on, torch draws a permutation from 64-bit words.
MOST_ITEMS = (2**32 - 1) // 20


class TorchRandom:
    """A generator with the words of `torch.Generator().manual_seed(seed)`; seed below 2^32."""

    def __init__(self, seed: int) -> None:
        key = np.empty(WORDS, np.uint32)
        value = seed
        for index in range(WORDS):
            if index:
                value = (MULTIPLIER * (value ^ (value >> 30)) + index) & 0xFFFFFFFF
            key[index] = value
        self._bits = np.random.MT19937()
        self._bits.state = {"bit_generator": "MT19937", "state": {"key": key, "pos": WORDS}}

    def first_of_permutation(self, items: int, count: int) -> list[int]:
        """Return the first `count` indices of `torch.randperm(items)`, for up to MOST_ITEMS."""
        if items > MOST_ITEMS:
            raise ValueError(f"{items} items are more than {MOST_ITEMS}")
        count = min(count, items)
        words = self._words(max(count, 1)).tolist()
        # The items that are no longer at their own place.
        moved: dict[int, int] = {}
        chosen = []
        for place in range(count):
            # The last item has no other to change places with.
            other = place + words[place] % (items - place)
            chosen.append(moved.get(other, other))
            moved[other] = moved.get(place, place)
        return chosen

    def normal(self, count: int) -> npt.NDArray[np.float32]:
        """Return `torch.randn(count)`, for at least 16 values, up to rounding: float32 [count]."""
        block = 2 * HALF
        if count < block:
            raise ValueError(f"{count} values are fewer than {block}")
        values = self._uniform(count)
        whole = count - count % block
        values[:whole] = _box_muller(values[:whole])
        if whole < count:
            # The last 16 values are drawn again.
            values[-block:] = _box_muller(self._uniform(block))
        return values

    def _uniform(self, count: int) -> npt.NDArray[np.float32]:
        mask = np.uint64((1 << UNIFORM_BITS) - 1)
        words = self._words(count) & mask
        uniform: npt.NDArray[np.float32] = words.astype(np.float32)
        uniform *= np.float32(2.0**-UNIFORM_BITS)
        return uniform

    def _words(self, count: int) -> npt.NDArray[np.uint64]:
        words: npt.NDArray[np.uint64] = self._bits.random_raw(count)
        return words


def _box_muller(uniform: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Make normal values of uniform ones [n], n a multiple of 16: each 8 with the next 8."""
    pairs = uniform.reshape(-1, 2, HALF)
    radius = np.sqrt(-2 * np.log(1 - pairs[:, 0]))
    angle = np.float32(2 * np.pi) * pairs[:, 1]
    pair = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)
    normal: npt.NDArray[np.float32] = pair.reshape(-1)
    return normal
