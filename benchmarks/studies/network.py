"""One network of a chosen method with weights and state as if trained, and a bundle around it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flawline.benchmarks.published import find_published
from flawline.benchmarks.studies.options import NetworkOptions
from flawline.options import field_parser
from flawline.runtime.bundle import Bundle, write_bundle
from flawline.runtime.calibration import Calibration
from flawline.runtime.golden import Golden
from flawline.runtime.image import Geometry, Image, prepare
from flawline.runtime.manifest import Manifest, Spread
from flawline.runtime.source_frame import SourceFrame
from flawline.train import TrainError
from flawline.train.data import PreparedImages, open_data
from flawline.train.data.demo import render
from flawline.train.method import Fit, Method, MethodSettings, resolve_method
from flawline.train.recipe import plan

# Enough for statistics of the features; the training has one step only.
TRAINING_IMAGES = 8
# The product of the demo data whose images are used without --data.
DEMO_IMAGES = "board"


def build_network(
    options: NetworkOptions, count: int, available: int | None = None
) -> tuple[Method, Image]:
    """Return the network in eval mode, and `count` prepared images, uint8 [count, H, W, 3].

    The images are those of the options' data set, or come from the demo's generator. The backbone
    gets its weights, and the method a training of one step on other images, so that its statistics
    are those of real features. `available` makes the graph as large as a training on so many images
    would; None, as one on the few images of the study. Raises TrainError and DataError.
    """
    method_class = resolve_method(options.method)
    # The flags of a study always name a backbone, also for a method without one.
    without_backbone = not method_class.settings_for(options.backbone).backbone
    recipe = plan(
        options.method,
        options.data or Path(DEMO_IMAGES),
        backbone=None if without_backbone else options.backbone,
        size=options.size,
        geometry=None if options.size is None else "stretch",
        options=_parsed_settings(options, method_class.Settings),
    )
    settings = recipe.settings
    if available is not None:
        settings = method_class.settings_to_time(settings, TRAINING_IMAGES, available)
    # Layers that the one step does not reach keep torch's own initialisation.
    torch.manual_seed(options.seed)
    method = method_class(settings)
    images = _prepared_images(options.data, method.geometry, count + TRAINING_IMAGES)
    # A data set may be too small for images of both kinds.
    training_images = images[count:] or images
    method.load_weights(options.weights, options.seed, training_images)
    give_state(method, training_images, options.seed)
    return method.eval(), np.stack(images[:count])


def _parsed_settings(options: NetworkOptions, record: type[MethodSettings]) -> dict[str, Any]:
    """Return the values of NAME=VALUE by name, in the types of the method's settings."""
    known = [field.name for field in fields(record) if "help" in field.metadata]
    values = {}
    for text in options.settings:
        name, _, value = text.partition("=")
        try:
            if name not in known:
                raise ValueError(f"{options.method} has {', '.join(known)}")
            values[name] = field_parser(record, name)(value)
        except ValueError as error:
            raise TrainError(f"--set {text}: {error}; give NAME=VALUE of a setting") from error
    return values


def give_state(method: Method, images: Sequence[Image], seed: int) -> None:
    """Give a method what training would give it: statistics, and constants that are not trivial."""
    method.fit(Fit(images, steps=1, seed=seed))
    perturb = find_published(method.name).perturb
    if perturb is not None:
        perturb(method, torch.Generator().manual_seed(seed))


def _prepared_images(data: Path | None, geometry: Geometry, count: int) -> list[Image]:
    images = []
    if data is None:
        for seed in range(count):
            image, _ = render(DEMO_IMAGES, None, seed)
            images.append(prepare(image, geometry))
    else:
        paths = open_data(data).train_good[:count]
        images += PreparedImages(paths, geometry)
    return images


def value_range(scores: NDArray[Any], maps: NDArray[Any]) -> float:
    """Return the range of all values of maps, or of the scores of a method without maps.

    scores: [n]; maps: [n, H, W] or [n, 0, 0].
    """
    return float(np.ptp(maps if maps.size else scores))


def bundle_of_network(
    method: Method,
    models: Mapping[str, bytes],
    golden: Golden,
    folder: Path,
    tolerance: float,
    fp32_islands: tuple[str, ...] = (),
    source: SourceFrame | None = None,
) -> Bundle:
    """Write a bundle around a network that is only measured.

    `models` are the graphs by precision. `tolerance` is that of scores and maps. `source` are the
    camera's frames that the graphs take. The threshold is above all golden scores.
    """
    spread = Spread.of(golden.scores)
    manifest = Manifest(
        method=method.name,
        backbone=method.settings.backbone,
        geometry=method.geometry,
        score=spread,
        map_peak=spread,
        score_tolerance=tolerance,
        map_tolerance=tolerance,
        fp32_islands=fp32_islands,
        outputs=method.outputs,
        source=source,
        provenance={},
    )
    calibration = Calibration(
        threshold=float(golden.scores.max()) + tolerance,
        false_alarm_rate=0.5,
        interval=(0.0, 1.0),
        confidence=0.95,
        good_images=1,
    )
    return write_bundle(folder, manifest, calibration, dict(models), golden)


@contextmanager
def torch_threads(threads: int | None) -> Iterator[None]:
    """Let torch use so many CPU threads within the block; None leaves its own choice."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
