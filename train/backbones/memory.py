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
        """Return the levels [N, C, h, w] of images, uint8 [N, H, W, 3], computed if need be.

        Those of a single image are stored. Several images are computed together unless all of them
        are stored. The caller owns the result.
        """
        keys = [_key(one) for one in image]
        if all(key in self._levels for key in keys):
            known = [self._levels[key] for key in keys]
            # Copies: a tensor that was made in inference mode cannot be used with autograd.
            return tuple(torch.cat(level).to(image.device) for level in zip(*known, strict=True))
        levels = compute()
        size = sum(level.numel() * level.element_size() for level in levels)
        if len(keys) == 1 and self._bytes + size <= LARGEST_BYTES:
            self._bytes += size
            with torch.no_grad():
                self._levels[keys[0]] = tuple(level.to("cpu", copy=True) for level in levels)
        return levels


def _key(image: Tensor) -> bytes:
    pixels = image.cpu().contiguous().numpy().tobytes()
    return hashlib.blake2b(pixels, digest_size=16).digest()
