"""The statistics of the good images of a training, for the check of drift."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from flawline.runtime.drift.fineness import excess_of_left_out, fit_fineness
from flawline.runtime.drift.gauge import PlaceFinder, TextureDistance, plain_values
from flawline.runtime.drift.meter import Floats, FrameMeter, Measured, Vector, picture_difference
from flawline.runtime.drift.numbers import shortened
from flawline.runtime.drift.quantities import (
    ACROSS,
    DOWN,
    FINENESS,
    HALF_FINENESS,
    LIKENESS,
    QUANTITIES,
    SCORE,
    TEXTURE,
)
from flawline.runtime.drift.reference import (
    FEWEST,
    DriftReference,
    Range,
    Texture,
    range_of,
)
from flawline.runtime.graph_input import GraphInput
from flawline.runtime.image import Image

# More images take longer, and move the limits hardly any more.
MOST_IMAGES = 500
# With a lower correlation of each with the mean of the others, the images do not show the same at
# the same place.
LEAST_LIKENESS = 0.4
# Of a part that stands still, small pictures differ by noise and flicker: by less than half of what
# nearly all neighbouring good images differ by, and by less than this, in grey levels.
STEP_SHARE = 0.05
LARGEST_STEP = 1.0
# Images that are changed to learn what light and blur do to a texture.
CHANGED_IMAGES = 20
GAINS = (0.5, 0.7, 0.85, 1.15, 1.3, 1.6)
BLURS = (0.4, 0.7, 1.0, 1.5, 2.5)  # standard deviations in pixels of the input
UNEVEN = 0.3  # share of the light that is lost in the corners, or at one edge
# Added to the variance of each number of a texture, which may be rounding alone.
LEAST_VARIANCE = 4e-4

Progress = Callable[[int, int], None]


def learn_reference(
    images: Sequence[Image],
    scores: npt.NDArray[Any],
    graph_input: GraphInput,
    progress: Progress = lambda done, total: None,
) -> DriftReference | None:
    """Return the statistics of good images, or None where there are too few.

    `images` are as `graph_input.of_frame` returns them, in the order in which they were taken if
    that is known. `scores` [n] are those of good images that the detector was not trained on.
    `progress` is called with the number of images that were measured, and of all.
    """
    try:
        meter = FrameMeter(graph_input)
    except ValueError:
        return None
    if len(images) < FEWEST:
        return None
    measured = []
    for done, image in enumerate(images, 1):
        measured.append(meter.measure(image))
        progress(done, len(images))
    quantities: dict[str, list[float]] = {}
    for one in measured:
        for name, value in plain_values(one).items():
            quantities.setdefault(name, []).append(value)
    picture, places = _places(measured, meter)
    texture = None
    if picture is None:
        texture = _texture(measured, images, meter)
        quantities[TEXTURE] = _left_out_distances(measured)
    quantities.update(places)
    fineness = np.stack([one.fineness for one in measured])
    structures = np.stack([one.structure for one in measured])
    excess = excess_of_left_out(fineness, structures)
    for name, values in zip((FINENESS, HALF_FINENESS), excess.T, strict=True):
        quantities[name] = values.tolist()
    ranges = {name: Range.of(np.array(values)) for name, values in quantities.items()}
    of_scores = range_of(scores)
    if of_scores is not None:
        ranges[SCORE] = of_scores
    ranges = {name: ranges[name] for name in QUANTITIES if name in ranges}
    expected = fit_fineness(fineness, structures)
    return DriftReference(ranges, _step(measured), picture, texture, expected)


def _places(
    measured: Sequence[Measured], meter: FrameMeter
) -> tuple[bytes | None, dict[str, list[float]]]:
    """Return the mean picture, and where each picture lies in the mean of the others.

    None and nothing, if the pictures do not show the same at the same places.
    """
    pictures = np.stack([one.picture for one in measured]).astype(np.float32)
    total = pictures.sum(0)
    places: dict[str, list[float]] = {ACROSS: [], DOWN: [], LIKENESS: []}
    for picture in pictures:
        # An image must not be compared with itself.
        mean = (total - picture) / (len(pictures) - 1)
        finder = PlaceFinder(mean, meter.cells)
        if not finder.usable:
            return None, {}
        found = finder.find(picture.astype(np.uint8))
        for name, value in zip(places, found, strict=True):
            places[name].append(value)
    if Range.of(np.array(places[LIKENESS])).low < LEAST_LIKENESS:
        return None, {}
    mean = np.rint(total / len(pictures)).astype(np.uint8)
    return mean.tobytes(), places


def _texture(measured: Sequence[Measured], images: Sequence[Image], meter: FrameMeter) -> Texture:
    textures = np.stack([one.texture for one in measured])
    chosen = np.linspace(0, len(images) - 1, min(len(images), CHANGED_IMAGES)).astype(int)
    sums: list[Vector] = []
    for index in sorted(set(chosen.tolist())):
        plain = measured[index].texture
        for number, changed in enumerate(_changed(images[index])):
            difference = meter.measure(changed).texture - plain
            if number == len(sums):
                sums.append(difference)
            else:
                sums[number] = sums[number] + difference
    changes = [shortened(total / len(set(chosen.tolist()))) for total in sums]
    mean, whitening = _fit(textures)
    return Texture(shortened(mean), shortened(whitening.ravel()), tuple(changes))


def _changed(image: Image) -> Iterator[Image]:
    """Yield an image in other light, in uneven light, and out of focus."""
    for gain in GAINS:
        yield np.asarray(cv2.convertScaleAbs(image, alpha=gain), np.uint8)
    for light in _uneven_lights(*image.shape[:2]):
        factors = light if image.ndim == 2 else light[..., None]
        yield np.asarray(image * factors, np.uint8)
    for blur in BLURS:
        yield np.asarray(cv2.GaussianBlur(image, (0, 0), blur), np.uint8)


def _uneven_lights(height: int, width: int) -> Iterator[Floats]:
    """Yield factors [height, width] of light that falls off to the corners or to one edge."""
    down = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    across = np.linspace(-1, 1, width, dtype=np.float32)[None]
    yield np.asarray(1 - UNEVEN * (down**2 + across**2) / 2, np.float32)
    for slope in (down, -down, across, -across):
        yield np.broadcast_to(1 - UNEVEN * (slope + 1) / 2, (height, width))


def _fit(textures: Vector) -> tuple[Vector, Vector]:
    """Return the mean of textures [n, 8], and the matrix [8, 8] that makes their spread 1."""
    covariance = np.cov(textures.T) + LEAST_VARIANCE * np.eye(textures.shape[1])
    whitening = np.linalg.inv(np.linalg.cholesky(covariance))
    return textures.mean(0), whitening


def _left_out_distances(measured: Sequence[Measured]) -> list[float]:
    """Return the distance of each texture from those of the others."""
    textures = np.stack([one.texture for one in measured])
    distances = []
    for index in range(len(textures)):
        mean, whitening = _fit(np.delete(textures, index, 0))
        model = Texture(tuple(mean), tuple(whitening.ravel()), ())
        distances.append(TextureDistance(model).of(textures[index]))
    return distances


def _step(measured: Sequence[Measured]) -> float:
    """Return the difference of small pictures below which two frames show the same part."""
    differences = []
    for one, following in pairwise(measured):
        differences.append(picture_difference(one.picture, following.picture))
    step = min(0.5 * np.quantile(differences, STEP_SHARE), LARGEST_STEP)
    return shortened([step])[0]
