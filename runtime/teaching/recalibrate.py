"""A bundle that cannot be taught: what it has learned stays, and good parts set its thresholds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from flawline.cameras import open_camera
from flawline.runtime.bundle import Bundle
from flawline.runtime.console import log, log_notes, warn
from flawline.runtime.detector import Detector
from flawline.runtime.drift.reference import range_of
from flawline.runtime.engines import EngineOptions
from flawline.runtime.good_images import GoodImages
from flawline.runtime.good_images.scores import GoodScores
from flawline.runtime.good_parts import GoodParts, check_beforehand, score_frames
from flawline.runtime.scored_by import scored_by
from flawline.runtime.station.notices import FrameNotices
from flawline.runtime.teaching.new_bundle import NewBundle
from flawline.runtime.teaching.pictures import most_frames
from flawline.runtime.threshold import Rates
from flawline.uris import folder_of, without_secrets

# Of parts that the bundle knows, it rejects a small share: it hardly knows these.
UNKNOWN_ABOVE = 1 / 2


def recalibrated(
    bundle: Bundle,
    source: str,
    rates: Rates,
    images: int | None,
    engine: str,
    options: EngineOptions,
    accept_size: bool = False,
) -> NewBundle:
    """Return the contents of a bundle with other thresholds, set by the pictures of a camera.

    `images` limits their number, and `engine` with `options` scores them; `accept_size` is as of
    `Detector`. Raises CameraError, CalibrationError, EngineError and TrainedImagesError.
    """
    method = bundle.manifest.method
    log(
        f"{method} is trained in steps, which takes torch: what it has learned stays, and these "
        f"pictures set its thresholds"
    )
    with open_camera(source) as camera:
        most = most_frames(camera, without_secrets(source), images)
        trained = bundle.manifest.trained_images
        check_beforehand(camera, most, rates, trained)
        # The threshold is given, although no verdict is used, because a warning about scores that
        # the old one was set with would mislead.
        old = bundle.calibration.threshold
        with Detector(bundle, engine, options, old, accept_size) as detector:
            log_notes(camera.notes())
            camera.on_event = FrameNotices().event
            parts = score_frames(detector, camera, most, trained)
            scorer = scored_by(detector.engine.name, detector.engine.precision)
    _report_old(bundle, parts)
    root = folder_of(source)
    paths = GoodImages(map(Path, parts.sources), [] if root is None else [root])
    calibration = GoodScores(paths, parts.scores, parts.peaks).calibrate(rates, bundle.manifest)
    calibration = replace(calibration, scored_by=scorer, scores=range_of(parts.scores))
    models = {name: bundle.read_model(name) for name in bundle.precisions}
    return NewBundle(bundle.manifest, calibration, models, bundle.golden())


def _report_old(bundle: Bundle, parts: GoodParts) -> None:
    """Log how many of the good parts the old threshold rejects."""
    old = bundle.calibration
    rejected = int(np.sum(parts.scores > old.threshold))
    count = len(parts.scores)
    log(f"the old threshold {old.threshold:.6g} rejects {rejected} of these {count} good pictures")
    if rejected > UNKNOWN_ABOVE * count:
        warn(
            f"warning: {bundle.path} hardly knows these pictures, and a threshold above their "
            f"scores may let defects pass; train it on them, or teach a bundle of another method"
        )
