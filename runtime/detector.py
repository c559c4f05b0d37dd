"""A detector prepares an image, runs the engine and compares the score with the threshold."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from flawline.cameras import Frame
from flawline.cameras.bit_depth import bit_depth_remedy
from flawline.cameras.decode import read_image
from flawline.runtime import painting
from flawline.runtime.ahead import Prepared
from flawline.runtime.bundle import Bundle, read_bundle
from flawline.runtime.console import warn
from flawline.runtime.engines import Engine, EngineOptions, EngineUnavailable, open_engine
from flawline.runtime.engines.auto import other_scores
from flawline.runtime.fixture import PartNotFoundError
from flawline.runtime.frame_image import image_of
from flawline.runtime.graph_input import GraphInput, Laid
from flawline.runtime.image import Image, Map, check_image
from flawline.runtime.regions import Regions, RegionSettings, find_regions, regions_missing
from flawline.runtime.tile_runner import TileRunner
from flawline.runtime.verdict import Verdict, fault_of


class Detector:
    """A bundle with an engine that was opened for it and passed its self-test.

        with Detector("bundles/part") as detector:
            image = detector.read_image("part.png")
            verdict = detector(image)
            print(verdict.name, verdict.score)
            cv2.imwrite("map.png", detector.paint(image, verdict.anomaly_map))

    `bundle` is its folder, or what `read_bundle` returns. `engine` is "auto" or one of ENGINES.
    `threshold` None takes the threshold of the bundle, and also its review level if
    `review_threshold` is None; with a threshold of your own, no part is reviewed unless you give
    that level, too. `accept_size` judges frames of any size; see `judge`. `region_settings` says
    which regions `regions` gives. Use the detector as a context manager, or close it. It is not for
    use from several threads at once, but for `prepare` and `regions`. Raises EngineError and
    BundleError, and ValueError for a threshold that is NaN, or a review threshold above it.
    """

    def __init__(
        self,
        bundle: Bundle | str | Path,
        engine: str = "auto",
        options: EngineOptions | None = None,
        threshold: float | None = None,
        accept_size: bool = False,
        review_threshold: float | None = None,
        region_settings: RegionSettings | None = None,
    ) -> None:
        if not isinstance(bundle, Bundle):
            bundle = read_bundle(bundle)
        self.bundle = bundle
        own_threshold = threshold is None
        if threshold is None:
            threshold = bundle.calibration.threshold
            if review_threshold is None:
                review_threshold = bundle.calibration.review_threshold
        # No score is above NaN, so that every part would be good.
        if math.isnan(threshold):
            raise ValueError("the threshold is not a number")
        # Also false for NaN.
        if review_threshold is not None and not review_threshold <= threshold:
            raise ValueError("the review threshold is not at or below the threshold")
        self.threshold = threshold
        self.review_threshold = review_threshold
        self.region_settings = region_settings or RegionSettings()
        self.accept_size = accept_size
        self.engine = open_engine(bundle, engine, options)
        self._tiles: TileRunner | None = None
        if self.graph_input.grid is not None:
            self._tiles = TileRunner(self.engine, self.graph_input.grid)
        note = other_scores(bundle, self.engine, options or EngineOptions())
        if own_threshold and note is not None:
            warn(f"warning: {note}")

    @property
    def graph_input(self) -> GraphInput:
        """How a frame becomes the inputs of the graph."""
        return self.bundle.manifest.graph_input

    @property
    def runner(self) -> Engine | TileRunner:
        """What takes prepared frames: the engine, or what cuts them into tiles for it."""
        return self._tiles or self.engine

    def read_image(self, path: str | Path, bit_depth: int | None = None) -> Image:
        """Decode an image file as the detector needs it: uint8 [h, w, 3] BGR or [h, w] mono.

        It is decoded as the files of a camera are, and the EXIF orientation is applied. A 16-bit
        file is scaled by its number of significant bits, `bit_depth`; None takes that of the
        training. Raises CameraError, whose message says why, for a file that is absent, damaged,
        truncated or of a format that is not read, and for a 16-bit file without a bit depth if the
        detector was trained on 8-bit images.
        """
        if bit_depth is None:
            bit_depth = self.bundle.manifest.file_bit_depth
        with bit_depth_remedy("declare how many of them are significant, such as bit_depth=12"):
            return read_image(Path(path), bit_depth)

    def __call__(self, image: npt.NDArray[Any]) -> Verdict:
        """Judge an image: uint8 [h, w, 3] BGR or [h, w] mono, of any size.

        A bundle that was built for a camera's frames takes these alone. A score or a map that is
        not finite rejects the part, and so does an engine that is unavailable, and a part that the
        bundle's fixture does not find. The size is not compared with those of the training; see
        `judge`.
        Raises ValueError for another dtype or shape.
        """
        prepared = Prepared.of(image, self.prepare_image)
        (verdict,) = self.judge_prepared([prepared])
        return verdict

    def judge(self, frame: Frame) -> Verdict:
        """Judge a frame of a camera, at any bit depth.

        A frame that cannot be judged rejects the part; see `image_of` for which these are. So does
        one whose size is far outside those seen in training (see `SourceSizes.fault`), unless the
        detector accepts any size or its bundle does not state them, and one without a result
        because the engine is unavailable. Raises EngineError if the engine itself fails, as it
        would for every following frame.
        """
        (verdict,) = self.judge_batch([frame])
        return verdict

    def judge_batch(self, frames: Sequence[Frame]) -> list[Verdict]:
        """Judge several frames in one call of the engine; return their verdicts in this order.

        They are judged as by `judge`. More frames than the engine takes at once are judged in
        several calls. The times of a verdict are those of its whole batch, since it is known when
        all are. The maps are valid until the next call.
        """
        return self.judge_prepared([Prepared.of(frame, self.prepare) for frame in frames])

    def judge_prepared(self, items: Sequence[Prepared[Any]]) -> list[Verdict]:
        """Judge what `prepare` returned for several frames, as `judge_batch` does."""
        images = [made.input for made in items if not isinstance(made.input, Verdict)]
        verdicts = self._infer(images, sum(made.milliseconds for made in items))
        for place, made in enumerate(items):
            if isinstance(made.input, Verdict):
                verdicts.insert(place, made.input)
            else:
                verdicts[place] = made.complete(verdicts[place])
        return verdicts

    def warm_up(self, largest: int) -> None:
        """Run the engine once with each batch size up to `largest`.

        Some engines compile the graph for each size, which would delay the first frames.
        """
        shape = self.graph_input.frame_shape
        for size in range(1, self.batch_size(largest) + 1):
            self.runner(np.zeros((size, *shape), np.uint8))

    def batch_size(self, wanted: int) -> int:
        """Return how many of the `wanted` images the engine takes in one call."""
        if self.runner.largest_batch is None:
            return wanted
        return min(wanted, self.runner.largest_batch)

    def prepare(self, frame: Frame) -> Image | Laid | Verdict:
        """Return what `runner` takes, or the verdict on a frame that cannot be judged.

        With a fixture, the pose of the part is beside it.
        """
        try:
            image = image_of(frame, self.bundle.manifest)
            self._check_size(image)
            return self.graph_input.of_camera(image)
        except (ValueError, cv2.error) as error:
            # A valid image may still be too long and thin to be resized.
            return self.unjudged(str(error))

    def prepare_image(self, image: npt.NDArray[Any]) -> Image | Laid | Verdict:
        """Return what `prepare` does, or the verdict on an image without its part; see `__call__`.

        Raises ValueError for another dtype or shape.
        """
        try:
            return self.graph_input.of_camera(image)
        except PartNotFoundError as error:
            return self.unjudged(str(error))

    def unjudged(self, reason: str) -> Verdict:
        """Return the verdict on a frame that has no score, which rejects its part."""
        review = self.review_threshold
        return Verdict(math.nan, self.threshold, True, None, {}, reason, review)

    def _check_size(self, image: Image) -> None:
        """Raise ValueError for an image that is unlike those of the training in size."""
        manifest = self.bundle.manifest
        sizes = manifest.source_sizes
        # Where frames have one size, it is compared when they are prepared.
        if sizes is None or self.accept_size or self.graph_input.frame_size is not None:
            return
        fault = sizes.fault(*image.shape[:2])
        if fault is not None:
            raise ValueError(fault)

    def _infer(self, images: Sequence[Image], prepare_ms: float) -> list[Verdict]:
        """Run the engine on prepared images, in batches that it takes."""
        ready = time.perf_counter()
        results: list[tuple[float, Map] | Verdict] = []
        most = self.batch_size(len(images))
        for first in range(0, len(images), max(1, most)):
            # A single image is not copied.
            batch = images[first][None]
            if most > 1:
                batch = np.stack(images[first : first + most])
            try:
                scores, maps = self.runner(batch)
            except EngineUnavailable as error:
                results += [self.unjudged(str(error))] * len(batch)
                continue
            if most < len(images):
                # The next call overwrites them.
                maps = maps.copy()
            for score, anomaly_map in zip(scores.tolist(), maps, strict=True):
                results.append((score, anomaly_map))
        done = time.perf_counter()
        milliseconds = {"prepare": prepare_ms, "infer": 1e3 * (done - ready)}
        verdicts = []
        for result in results:
            if not isinstance(result, Verdict):
                result = self.verdict(*result, milliseconds)
            verdicts.append(result)
        return verdicts

    def verdict(self, score: float, anomaly_map: Map, milliseconds: Mapping[str, float]) -> Verdict:
        """Compare a score with the thresholds; the map is that of the frame."""
        anomaly_map = self.graph_input.suppressed(anomaly_map)
        reason = fault_of(score, anomaly_map)
        return Verdict(
            score=math.nan if reason is not None else score,
            threshold=self.threshold,
            anomalous=score > self.threshold or reason is not None,
            anomaly_map=anomaly_map,
            milliseconds=milliseconds,
            reason=reason,
            review_threshold=self.review_threshold,
        )

    def paint(self, image: npt.NDArray[Any], anomaly_map: Map | None) -> Image:
        """Paint the anomaly map of a verdict over its image: uint8 [h, w, 3] BGR.

        `image` is uint8 [h, w, 3] BGR or [h, w] mono, the image that was judged, and `anomaly_map`
        float32 [H, W] on the model's input grid; see `painting.paint`. Raises ValueError for
        another dtype or shape, and where there is no map: the image could not be judged, or the
        bundle was built for the score alone.
        """
        check_image(image)
        pixels = self.bundle.calibration.pixel_threshold
        anomaly_map = self._require_map(anomaly_map)
        return painting.paint(image, anomaly_map, self.bundle.manifest, pixels)

    def regions(self, image: npt.NDArray[Any], anomaly_map: Map | None) -> Regions:
        """Return where the anomaly map of a verdict is above the pixel threshold of the bundle.

        `image` is uint8 [h, w, 3] BGR or [h, w] mono, the one that was judged; only its size is
        read, unless the bundle has a fixture, which finds the part in it again. `anomaly_map` is
        float32 [H, W] on the model's input grid; see `find_regions`. Raises ValueError for another
        dtype or shape, where there is no map, and where the bundle has no pixel threshold, with the
        remedy.
        """
        check_image(image)
        anomaly_map = self._require_map(anomaly_map)
        threshold = self.bundle.calibration.pixel_threshold
        if threshold is None:
            raise ValueError(f"there are no regions: {regions_missing(self.bundle)}")
        height, width = image.shape[:2]
        graph_input = self.graph_input
        geometry = graph_input.frame_geometry
        cells = graph_input.inspected_cells
        settings = self.region_settings
        # Most maps have no value above it, and then the part need not be found again.
        if graph_input.fixture is not None and (anomaly_map > threshold).any():
            anomaly_map = graph_input.map_of_frame(anomaly_map, image)
            cells = None
        return find_regions(anomaly_map, threshold, geometry, height, width, settings, cells)

    def _require_map(self, anomaly_map: Map | None) -> Map:
        """Return the map. Raises ValueError for one that is not from this detector."""
        if not self.bundle.has_map:
            raise ValueError("there is no anomaly map: the bundle was built for the score alone")
        if anomaly_map is None:
            raise ValueError("there is no anomaly map: the image could not be judged")
        expected = self.graph_input.map_size
        if np.shape(anomaly_map) != expected:
            found = list(np.shape(anomaly_map))
            raise ValueError(f"expected an anomaly map {list(expected)}, got {found}")
        return anomaly_map

    def close(self) -> None:
        """Release the engine. May be called again."""
        self.engine.close()

    def __enter__(self) -> Detector:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
