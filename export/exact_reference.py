"""Float64 results of the trained method, for the images on which float32 gives two answers.

Both sides of the comparison with the exported graph compute in float32. A flow maps a defect far
outside of what it has learnt, and there the rounding errors of float32 grow beyond the tolerance,
in torch as well as in the graph. Which of the two is wrong is then decided in float64.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from flawline.export.parity import ScoresAndMaps, scaled_errors
from flawline.runtime.console import log
from flawline.runtime.image import Image
from flawline.runtime.manifest import Manifest
from flawline.runtime.tolerances import Tolerances
from flawline.train.judging import evaluate
from flawline.train.method import Method
from flawline.train.progress import Bars

# A graph that is wrong on more images is refused without this.
MOST_IMAGES = 32


def with_exact_results(
    method: Method,
    images: Sequence[Image],
    reference: ScoresAndMaps,
    results: ScoresAndMaps,
    threshold: float,
    manifest: Manifest,
) -> ScoresAndMaps:
    """Return the reference with float64 results for images on which the graph is out of tolerance.

    Args:
        method: the trained method, in eval mode; it stays as it is.
        images: prepared images, uint8 [H, W, 3].
        reference: what the method computes for them in float32.
        results: what the graph computes for them.
        threshold: scores above it are anomalous.
        manifest: gives the tolerances.

    If there are no such images, or too many for rounding errors, the reference is returned as it
    is.
    """
    tolerances = Tolerances.of(manifest)
    scores, maps = scaled_errors(reference, results, threshold, tolerances)
    # The comparisons are written so that NaN is out of tolerance.
    within = (scores <= tolerances.score) & (maps <= tolerances.map)
    differing = np.flatnonzero(~within)
    if not 0 < len(differing) <= MOST_IMAGES:
        return reference
    log(
        f"{len(differing)} of {len(images)} images differ by more than the tolerance between "
        f"torch and the exported graph, both in float32; they are compared with float64"
    )
    exact = copy.deepcopy(method).double()
    with Bars() as bars:
        chosen = [images[index] for index in differing.tolist()]
        exact_scores, exact_maps = evaluate(exact, chosen, bars, "torch float64")
    reference = replace(reference, scores=reference.scores.copy(), maps=reference.maps.copy())
    reference.scores[differing] = exact_scores
    if reference.maps.size:
        reference.maps[differing] = exact_maps
    return reference
