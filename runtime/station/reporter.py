"""What a stream tells about its verdicts: the outputs, the summary and messages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from flawline.cameras import Camera, Frame
from flawline.runtime.console import log, warn
from flawline.runtime.detector import Detector
from flawline.runtime.outputs import Judgement, Output, OutputError
from flawline.runtime.regions import Regions, regions_missing
from flawline.runtime.station.notices import FrameNotices
from flawline.runtime.station.tally import Tally
from flawline.runtime.station.views import PartVerdict


class Reporter:
    """Counts the verdicts on parts and delivers them to every output.

    `cameras` are all those of the stream.
    """

    def __init__(
        self,
        detector: Detector,
        outputs: Sequence[Output],
        tally: Tally,
        cameras: Sequence[Camera],
    ) -> None:
        self._detector = detector
        self._outputs = outputs
        self._tally = tally
        self._cameras = cameras
        self._can_wait = not any(camera.live for camera in cameras)
        self._with_regions = any(output.uses_regions for output in outputs)
        self._shapes: set[tuple[int, ...]] = set()

    def attach(self) -> None:
        """Tell every output about the cameras, before their first frames."""
        bundle = self._detector.bundle
        reason = regions_missing(bundle)
        # A bundle that was built for the score alone has no maps by intention.
        if reason is not None and bundle.has_map and self._with_regions:
            log(f"note: no anomalous regions are given: {reason}")
        self._with_regions &= reason is None
        for camera in self._cameras:
            for output in self._outputs:
                output.attach(camera)

    def note_size(self, frame: Frame) -> None:
        """Log once for each shape of an image what is not as it could be.

        A crop may leave a part of the image uninspected, and a frame be of another layout than the
        graph takes.
        """
        if frame.image is None:
            return
        shape = frame.image.shape
        if shape in self._shapes:
            return
        self._shapes.add(shape)
        height, width = shape[:2]
        manifest = self._detector.bundle.manifest
        lost = manifest.graph_input.frame_geometry.uninspected(height, width)
        if lost is not None:
            log(f"note: {lost}")
        source = manifest.source
        if source is not None and source.converts(shape):
            log(
                f"note: the frames are {frame.pixel_format}, and each is converted to {source}, "
                f"which takes time; let the camera send {source.layout}"
            )

    def report(self, part: PartVerdict, camera: Camera, notices: FrameNotices) -> None:
        """Count the verdict on a part and deliver it to every output. Raises OutputError.

        `camera` is the one of the part's frame, and `notices` prints its messages.
        """
        frame = part.frame
        age = frame.age(camera.clock.monotonic())
        fps = self._tally.add(part.verdict, age)
        notices.unjudged(frame, part.verdict, part.views)
        judgement = Judgement(
            frame,
            part.verdict,
            fps,
            live=camera.live,
            age=age,
            dropped=camera.dropped,
            views=part.views,
            camera=part.camera or camera.name,
            can_wait=self._can_wait,
            regions=self._regions(part),
        )
        for number, output in enumerate(self._outputs):
            try:
                output.write(judgement)
            except OutputError as error:
                if output.required:
                    raise
                # A disk that is full would give a message for every frame.
                notices.warn(f"output {number}", f"{error}; inspection continues")

    def _regions(self, part: PartVerdict) -> Regions | None:
        """Return the regions of the part's frame if they are known and an output uses them."""
        image = part.frame.image
        verdict = part.verdict
        if not self._with_regions or image is None or not verdict.judged:
            return None
        if verdict.anomaly_map is None:
            return None
        return self._detector.regions(image, verdict.anomaly_map)

    @contextmanager
    def summarised(self, summarise: Callable[[], dict[str, Any]]) -> Iterator[None]:
        """Deliver the summary to every output when the block ends, also because of an error.

        Raises the error of the block, or else the first failure of a required output.
        """
        try:
            yield
        except BaseException:
            # A station that ends with an error still reports what it judged until then.
            failure = self._finish(summarise())
            if failure is not None:
                warn(str(failure))
            raise
        failure = self._finish(summarise())
        if failure is not None:
            raise failure

    def _finish(self, summary: dict[str, Any]) -> Exception | None:
        """Deliver the summary, with the counts of the outputs; return the first failure."""
        for output in self._outputs:
            for name, count in output.totals().items():
                summary[name] = summary.get(name, 0) + count
        first: Exception | None = None
        for output in self._outputs:
            try:
                output.finish(summary)
            except Exception as error:
                # Only an output that raises what it may raise is excused.
                optional = not output.required and isinstance(error, OutputError)
                if optional:
                    warn(str(error))
                elif first is None:
                    first = error
        return first
