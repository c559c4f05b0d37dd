"""Good parts that set a threshold: what is checked before they are judged, and their scores."""

from __future__ import annotations

import hashlib
import math
import os
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from flawline.cameras import Camera, CameraError, Frame
from flawline.cameras.folder_names import folder_kind
from flawline.runtime.console import log
from flawline.runtime.detector import Detector
from flawline.runtime.engines import EngineError
from flawline.runtime.image import Map
from flawline.runtime.threshold import CalibrationError, Rates, check_rates
from flawline.runtime.trained_images import require_new_images

PROGRESS_EVERY = 50  # frames
GOOD = "good images"


@dataclass(frozen=True)
class GoodParts:
    """The names of n frames, their scores, and the largest values of their maps, float64 [n].

    The largest values are 0 if the bundle gives no maps.
    """

    sources: Sequence[str]
    scores: npt.NDArray[np.float64]
    peaks: npt.NDArray[np.float64]


def check_beforehand(
    camera: Camera, max_frames: int | None, rates: Rates, trained_images: Collection[str]
) -> None:
    """Check what is known about the frames before one is judged.

    `max_frames` limits their number, and `trained_images` are content hashes of the images that the
    detector was trained on. Raises CalibrationError if the frames are too few for the rates or in
    folders of defective parts, and TrainedImagesError if they are of the training.
    """
    require_good_folders(camera.files()[:max_frames])
    if max_frames is not None:
        check_rates(rates, max_frames, GOOD)
    # Each file gives at least one frame.
    require_new_images(camera.files()[:max_frames], trained_images)
    count = camera.frame_count()
    if count is not None:
        check_rates(rates, count, GOOD)


def require_good_folders(files: Sequence[Path]) -> None:
    """Raise CalibrationError if one of several folders is named as one of defective parts or masks.

    They would raise the threshold. The folder that all files are in may have any name.
    """
    folders = sorted({file.parent for file in files})
    if not folders:
        return
    root = Path(os.path.commonpath(folders))
    for folder in folders:
        kinds = {folder_kind(name) for name in folder.relative_to(root).parts}
        if not kinds.isdisjoint(("bad", "mask")):
            raise CalibrationError(
                f"{root}: {folder.relative_to(root)} shows that not every image here is a good "
                f"part; give a folder of good parts alone"
            )


def score_frames(
    detector: Detector,
    camera: Camera,
    max_frames: int | None = None,
    trained_images: Collection[str] = (),
) -> GoodParts:
    """Score the frames of a camera.

    A frame without an image or without a finite score is an error, because a threshold from a part
    of the images would not have the false-alarm rate that it states. An image with the pixels of
    an earlier one says nothing about a further part, and is left out. `trained_images` are content
    hashes of the images that the detector was trained on. Raises CameraError, EngineError,
    TrainedImagesError for one of these, and CalibrationError if all images are equal.
    """
    frames: list[tuple[str, int]] = []
    scores: list[float] = []
    peaks: list[float] = []
    seen: set[bytes] = set()
    copies = 0
    checked = set(camera.files())
    for frame in islice(camera, max_frames):
        # The files of a watched folder are known only now.
        if frame.file is not None and frame.file not in checked:
            checked.add(frame.file)
            require_new_images([frame.file], trained_images)
        score, peak = _score(detector, frame)
        content = content_of(frame)
        if content in seen:
            copies += 1
            continue
        seen.add(content)
        scores.append(score)
        peaks.append(peak)
        frames.append((frame.source, frame.index))
        if len(scores) % PROGRESS_EVERY == 0:
            log(f"{len(scores)} frames scored")
    if copies and len(scores) == 1:
        raise CalibrationError(
            f"the {copies + 1} {GOOD} are all equal, one image many times; give images of "
            f"different parts"
        )
    if copies:
        log(f"note: {copies} of {copies + len(scores)} images are copies of others; not counted")
    return GoodParts(frame_names(frames), np.array(scores), np.array(peaks))


def content_of(frame: Frame) -> bytes:
    """Return a hash of the pixels and the size of a frame that was judged."""
    assert frame.image is not None
    digest = hashlib.sha256(str(frame.image.shape).encode())
    digest.update(frame.image.tobytes())
    return digest.digest()


def _score(detector: Detector, frame: Frame) -> tuple[float, float]:
    """Return the score of a frame and the largest value of its map. Raises the errors of both."""
    verdict = detector.judge(frame)
    if verdict.anomaly_map is None:
        # Faults of image files begin with their path already.
        reason = str(verdict.reason)
        if frame.source not in reason:
            reason = f"{frame.source}: {reason}"
        raise CameraError(reason)
    if not math.isfinite(verdict.score):
        raise EngineError(f"{frame.source}: the score is {verdict.score}; build the bundle again")
    return verdict.score, map_peak(verdict.anomaly_map)


def map_peak(anomaly_map: Map) -> float:
    """Return the largest value of a map; 0 for that of a bundle without maps, which is empty.

    NaN anywhere in the map gives NaN.
    """
    if anomaly_map.size == 0:
        return 0.0
    return float(anomaly_map.max())


def frame_names(frames: Sequence[tuple[str, int]]) -> list[str]:
    """Name frames by source and index, or by their source alone if it has one frame."""
    counts = Counter(source for source, _index in frames)
    names = []
    for source, index in frames:
        if counts[source] > 1:
            names.append(f"{source} frame {index}")
        else:
            names.append(source)
    return names
