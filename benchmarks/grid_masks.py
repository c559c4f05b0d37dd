"""The masks of test images on the grid of a bundle's maps."""

from __future__ import annotations

from collections.abc import Sequence

from flawline.cameras.listing import count_of
from flawline.runtime.bundle import Bundle
from flawline.runtime.console import log
from flawline.runtime.graph_input import GraphInput
from flawline.train.data import Sample
from flawline.train.data.masks import Mask, read_mask


def read_masks(samples: Sequence[Sample], bundle: Bundle) -> list[Mask | None]:
    """Return the masks of the images, bool [H, W] each; none without maps or without any mask.

    A defective image without a mask has None: which of its pixels are defective is not known.
    """
    if not bundle.has_map or not any(sample.mask for sample in samples):
        return []
    masks: list[Mask | None] = []
    empty = []
    graph_input = bundle.manifest.graph_input
    outside = 0
    for sample in samples:
        mask = None
        if sample.defect is None or sample.mask is not None:
            mask = read_mask(sample, graph_input.frame_geometry)
            if sample.mask is not None and not mask.any():
                empty.append(sample.mask)
            outside += _is_outside(mask, graph_input)
        masks.append(mask)
    if empty:
        log(
            f"note: {count_of(len(empty), 'mask')} of defective images without any defective "
            f"pixel, such as {empty[0]}"
        )
    if outside:
        log(
            f"note: {count_of(outside, 'defect')} outside of the inspected area of the bundle, "
            f"which cannot be found; they count as missed"
        )
    return masks


def _is_outside(mask: Mask, graph_input: GraphInput) -> bool:
    """Tell whether all defective pixels are where nothing is inspected.

    With a fixture it depends on the pose, and False is returned.
    """
    cells = graph_input.inspected_cells
    if cells is None or graph_input.fixture is not None or not mask.any():
        return False
    return not (mask & cells).any()
