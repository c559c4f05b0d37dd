"""How the images of a training become inputs of the network: their tiles and inspected area."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flawline.cameras.decode import read_image
from flawline.runtime.console import log
from flawline.runtime.graph_input import GraphInput
from flawline.runtime.image import Image
from flawline.runtime.inspected_area import INSPECTED_AREA
from flawline.runtime.tiles import TILES
from flawline.train.data import CachedImages
from flawline.train.job import Job
from flawline.train.method import Method
from flawline.train.progress import Progress
from flawline.train.recipe import Recipe


def graph_input_of(recipe: Recipe, first: Path) -> GraphInput:
    """Return how images become inputs of the network; `first` is the file of one of them.

    Raises AreaError for an area that was not drawn for images of its size.
    """
    area = None
    if recipe.area is not None:
        height, width = read_image(first, recipe.bit_depth).shape[:2]
        area = recipe.area.area(height, width)
        log(f"inspected: {area}")
    graph_input = GraphInput(recipe.settings.geometry, None, recipe.tiles, area)
    # An area that is too small is found before the training.
    _ = graph_input.inspected_cells
    if recipe.tiles is not None:
        shape = graph_input.frame_geometry
        log(
            f"each image is resized to {shape.width}x{shape.height} pixels and cut into "
            f"{graph_input.inputs_per_frame} of {recipe.tiles}"
        )
    return graph_input


def frame_provenance(graph_input: GraphInput) -> dict[str, str]:
    """Return what is recorded about tiles and the inspected area; nothing without them."""
    provenance = {}
    if graph_input.tiles is not None:
        provenance[TILES] = str(graph_input.tiles)
    if graph_input.area is not None:
        provenance[INSPECTED_AREA] = f"{graph_input.area}, mask {graph_input.area.digest}"
    return provenance


def images_to_fit(model: Method, job: Job, progress: Progress) -> Sequence[Image]:
    """Return the images from a temporary cache if the method reads all of them in every step."""
    used = model.images_used(job.recipe.settings, job.inputs)
    if model.trains_on_pixels and used == job.inputs:
        return CachedImages(job.images, progress=progress)
    return job.images
