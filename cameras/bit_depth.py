"""The error for 16-bit image files whose number of significant bits is not declared."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from flawline.cameras import CameraError

DECLARE_BITS = "declare how many of them are significant, such as --bits 12"


class UndeclaredBitDepthError(CameraError):
    """A 16-bit file was read without the number of its significant bits.

    `finding` names the file, and `remedy` says how the command lets the user declare the number.
    """

    def __init__(self, finding: str, remedy: str = DECLARE_BITS) -> None:
        super().__init__(f"{finding}; {remedy}")
        self.finding = finding


@contextmanager
def bit_depth_remedy(remedy: str) -> Iterator[None]:
    """Let an UndeclaredBitDepthError of the block end with another remedy.

    A command without a flag for the bit depth must not name one.
    """
    try:
        yield
    except UndeclaredBitDepthError as error:
        raise UndeclaredBitDepthError(error.finding, remedy) from error
