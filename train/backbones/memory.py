"""The features of images that several trainings read, computed once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor

Levels = tuple[Tensor, ...]
LARGEST_BYTES = 1 << 30


class FeatureMemory:
    """Levels of a frozen backbone for single images, by the pixels of the image.

    Several models whose backbones have the same weights can share one. It holds up to
    LARGEST_BYTES in main memory; the levels of further images are computed at every access.
    """

    def __init__(self) -> None:
        self._levels: dict[bytes, Levels] = {}
        self._bytes = 0

    def get(self, image: Tensor, compute: Callable[[], Levels]) -> Levels:
        """Return the levels [1, C, h, w] of an image, uint8 [1, H, W, 3], computed if need be.

        The caller owns the result.
        """
        pixels = image.cpu().contiguous().numpy().tobytes()
        key = hashlib.blake2b(pixels, digest_size=16).digest()
        known = self._levels.get(key)
        if known is not None:
            # Cloned: a tensor that was made in inference mode cannot be used with autograd.
            return tuple(level.to(image.device, copy=True) for level in known)
        levels = compute()
        size = sum(level.numel() * level.element_size() for level in levels)
        if self._bytes + size <= LARGEST_BYTES:
            self._bytes += size
            with torch.no_grad():
                self._levels[key] = tuple(level.to("cpu", copy=True) for level in levels)
        return levels
