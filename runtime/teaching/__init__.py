"""Teaching on the box: what a detector learns in closed form, computed without torch.

The features come from the graph of a bundle, whose constants are then replaced. A new teachable
method is one file with a subclass of `Teacher`, and one line in `TEACHERS`.
"""

from __future__ import annotations

from flawline import FlawlineError

# Name of a method -> "module:Class", resolved when it is used.
TEACHERS = {
    "patchcore": "flawline.runtime.teaching.patchcore:PatchCoreTeacher",
    "padim": "flawline.runtime.teaching.padim:PaDiMTeacher",
}


class TeachError(FlawlineError):
    """A bundle cannot be taught; the message is one line that ends with the remedy."""
