"""How the images of a training become inputs of the network: fixture, inspected area and tiles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flawline.cameras.decode import read_image
from flawline.runtime.console import log
from flawline.runtime.fixture import FIXTURE
from flawline.runtime.graph_input import GraphInput
from flawline.runtime.image import Image
from flawline.runtime.inspected_area import INSPECTED_AREA
from flawline.runtime.tiles import TILES
from flawline.train.data import CachedImages
from flawline.train.data.fixture import learn_fixture
from flawline.train.job import Job
from flawline.train.method import Method
from flawline.train.progress import Bars, Progress
from flawline.train.recipe import Recipe

# What `frame_provenance` may record.
FRAME_KEYS = (TILES, INSPECTED_AREA, FIXTURE)


def graph_input_of(recipe: Recipe, good: Sequence[Path]) -> GraphInput:
    """Return how images become inputs of the network; `good` are the files of all good images.

    Raises AreaError for an area that was not drawn for images of the size of the first one, and
    FixtureError for a part that is not found.
    """
    area = None
    if recipe.area is not None:
        height, width = read_image(good[0], recipe.bit_depth).shape[:2]
        area = recipe.area.area(height, width)
        log(f"inspected: {area}")
    fixture = None
    if recipe.fixture is not None:
        # Also on those that are held out: what is found decides about no score.
        with Bars() as bars:
            fixture = learn_fixture(recipe.fixture, good, recipe.bit_depth, bars)
    graph_input = GraphInput(recipe.settings.geometry, None, recipe.tiles, area, fixture)
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
    """Return what is recorded about tiles, area and fixture; nothing without them."""
    provenance = {}
    if graph_input.tiles is not None:
        provenance[TILES] = str(graph_input.tiles)
    if graph_input.area is not None:
        provenance[INSPECTED_AREA] = f"{graph_input.area}, mask {graph_input.area.digest}"
    if graph_input.fixture is not None:
        provenance[FIXTURE] = f"{graph_input.fixture}, picture {graph_input.fixture.digest}"
    return provenance


def images_to_fit(model: Method, job: Job, progress: Progress) -> Sequence[Image]:
    """Return the images from a temporary cache if the method reads all of them in every step."""
    used = model.images_used(job.recipe.settings, job.inputs)
    if model.trains_on_pixels and used == job.inputs:
        return CachedImages(job.images, progress=progress)
    return job.images
