"""What a stream judges with and how its outputs do, for an output that shows it."""

from __future__ import annotations

from collections.abc import Sequence

from flawline.runtime.outputs import Output, StreamState
from flawline.runtime.station.judge import Judge


def state_of(judge: Judge, outputs: Sequence[Output]) -> StreamState:
    """Return the state of a stream. Any thread may call it; it does not wait."""
    detector = judge.detector
    calibration = detector.bundle.calibration
    thresholds = (detector.threshold, detector.review_threshold)
    return StreamState(
        engine=detector.engine.description,
        recipe=judge.recipe,
        own_thresholds=thresholds != (calibration.threshold, calibration.review_threshold),
        cameras=tuple(judge.levels),
        outputs=tuple((output.description, output.state()) for output in outputs),
        engine_name=detector.engine.name,
        precision=detector.engine.precision,
        takes_bundles=judge.takes_bundles,
    )
