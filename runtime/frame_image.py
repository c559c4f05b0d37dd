"""The image of a camera's frame, as a detector takes it."""

from __future__ import annotations

from flawline.cameras import Frame
from flawline.cameras.pixels import to_8_bit
from flawline.runtime.image import Image
from flawline.runtime.manifest import Manifest


def image_of(frame: Frame, manifest: Manifest) -> Image:
    """Return the image of a frame at 8 bits: uint8 [h, w, 3] BGR or [h, w] mono.

    A 16-bit image is scaled by the bit depth that the frame declares, or else by that of the
    manifest. Raises ValueError, saying why, for a frame with a fault, and for a 16-bit image whose
    bit depth is unknown or contradicts the manifest: a wrong bit depth would make the image darker
    or brighter than those that the detector was trained on.
    """
    if frame.image is None:
        raise ValueError(frame.fault)
    trained = manifest.bit_depth
    declared = frame.bit_depth
    # A detector that was trained on 8-bit images says nothing about the scale of deeper ones.
    if declared is None and trained == 8:
        raise ValueError(
            "the image has 16 bits per pixel and its bit depth is unknown; "
            "declare it in the camera's URI, such as ?bits=12"
        )
    if declared is None:
        declared = trained
    # An 8-bit image is fully scaled, so it fits every detector.
    if declared > 8 and trained > 8 and declared != trained:
        raise ValueError(
            f"the image has a bit depth of {declared}, the detector was trained with {trained}; "
            f"set the camera to {trained} bits"
        )
    return to_8_bit(frame.image, declared)
