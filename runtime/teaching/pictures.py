"""Pictures of good parts from a camera or a folder, prepared and with what identifies them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from flawline.cameras import Camera, CameraError, Frame
from flawline.runtime.console import log
from flawline.runtime.frame_image import image_of
from flawline.runtime.good_images import GoodImages
from flawline.runtime.good_parts import PROGRESS_EVERY, content_of, frame_names
from flawline.runtime.graph_input import Laid
from flawline.runtime.image import Image
from flawline.runtime.large_array import allocate
from flawline.runtime.manifest import Manifest
from flawline.runtime.source_images import SourceSizes
from flawline.runtime.teaching import TeachError
from flawline.runtime.trained_images import content_hash
from flawline.uris import folder_of


@dataclass(frozen=True)
class Pictures:
    """n frames of good parts.

    Attributes:
        paths: their files, or what stands for these where frames have none; by them the pictures
            are divided.
        contents: a hash of the pixels of each.
        files: content hashes of the image files among them, as the manifest states them.
        sizes: the range of their sizes before they were prepared.
        frames: the prepared frames, uint8 [n, *frame_shape].
    """

    paths: GoodImages
    contents: list[str]
    files: set[str]
    sizes: SourceSizes
    frames: Image

    def __len__(self) -> int:
        return len(self.frames)


def most_frames(camera: Camera, uri: str, limit: int | None) -> int:
    """Return how many frames a camera gives at most. Raises CameraError where that is not known."""
    count = camera.frame_count()
    if limit is not None:
        return limit if count is None else min(limit, count)
    if count is None:
        raise CameraError(
            f"camera {uri}: the number of its frames is not known beforehand; give the number of "
            f"pictures, such as --images 200"
        )
    return count


def take_pictures(
    camera: Camera, uri: str, most: int, manifest: Manifest, folder: Path
) -> Pictures:
    """Take up to `most` frames of a camera, which is opened by `uri`, and prepare them.

    A large number of frames is stored in `folder`. A frame that cannot be prepared is an error,
    because a good part that is left out may be of a kind of its own. Raises CameraError, and
    TeachError if there is no frame or no space.
    """
    graph_input = manifest.graph_input
    frames = _allocate((most, *graph_input.frame_shape), folder)
    sources: list[tuple[str, int]] = []
    files: list[Path | None] = []
    contents: list[str] = []
    sizes: set[tuple[int, int]] = set()
    for place, frame in zip(range(most), camera, strict=False):
        frames[place], size = _prepared(frame, manifest)
        sizes.add(size)
        sources.append((frame.source, frame.index))
        files.append(frame.file)
        contents.append(content_of(frame).hex())
        if len(sources) % PROGRESS_EVERY == 0:
            log(f"{len(sources)} pictures taken")
    found = SourceSizes.of(sizes)
    if found is None:
        raise TeachError(f"camera {uri}: gave no picture; check the camera, or its options")
    root = folder_of(uri)
    paths = GoodImages(_paths(sources, files), [] if root is None else [root])
    hashes = {content_hash(file) for file in files if file is not None}
    return Pictures(paths, contents, hashes, found, frames[: len(sources)])


def _paths(sources: Sequence[tuple[str, int]], files: Sequence[Path | None]) -> list[Path]:
    """Return a different path for each frame: its file, if no other frame has the same."""
    counts = Counter(files)
    paths = []
    for name, file in zip(frame_names(sources), files, strict=True):
        several = counts[file] > 1
        paths.append(Path(name) if file is None or several else file)
    return paths


def _prepared(frame: Frame, manifest: Manifest) -> tuple[Image, tuple[int, int]]:
    """Return a prepared frame, and its size before that."""
    try:
        image = image_of(frame, manifest)
        made = manifest.graph_input.of_camera(image)
    except (ValueError, cv2.error) as error:
        # Faults of image files begin with their path already.
        reason = str(error)
        if frame.source not in reason:
            reason = f"{frame.source}: {reason}"
        raise CameraError(reason) from error
    height, width = image.shape[:2]
    return (made.image if isinstance(made, Laid) else made), (height, width)


def _allocate(shape: tuple[int, ...], folder: Path) -> Image:
    try:
        frames: Image = allocate(shape, folder, np.uint8)
    except OSError as error:
        raise no_space(shape, error) from error
    return frames


def no_space(shape: tuple[int, ...], error: OSError) -> TeachError:
    """Return the error about an array that has no space on the disk."""
    size = int(np.prod(shape, dtype=object))
    return TeachError(
        f"there is no space for {size / 2**20:.0f} million values ({error.strerror}); set TMPDIR "
        f"to a folder with more space, or take fewer pictures with --images"
    )
