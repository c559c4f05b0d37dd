"""Whether the bundle of a stream can be taught from the page, and what is missing for that."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

from flawline.extras import install_command
from flawline.registry import resolve
from flawline.runtime.bundle import Bundle, BundleError
from flawline.runtime.bundle_files import SIGNATURE
from flawline.runtime.calibration import Calibration
from flawline.runtime.console import printable
from flawline.runtime.engines import REFERENCE_ENGINE, engine_class, missing
from flawline.runtime.good_images import DataError
from flawline.runtime.good_images.folds import choose_folds
from flawline.runtime.good_images.hold_out import held_out_count, require_enough
from flawline.runtime.outputs import StreamState
from flawline.runtime.outputs.web.board import RUNNING, Board
from flawline.runtime.outputs.web.collection import FALSE_REJECT, Picture
from flawline.runtime.outputs.web.desk import manifest_hash
from flawline.runtime.precisions import FP32
from flawline.runtime.teaching import TEACHERS, TeachError
from flawline.runtime.teaching.appendable import fewest_false_rejects, read_exempting
from flawline.runtime.teaching.record import TEACHING
from flawline.runtime.threshold import (
    CalibrationError,
    Rates,
    check_false_alarm_rate,
    check_rates,
)

# The marked parts are added to what the bundle has learned; or it forgets that, and learns from all
# pictures.
APPEND = "append"
NEW = "new"
# More good parts than any rates take that are of use.
ENOUGH = 2000
# Package that writes a graph.
GRAPH_PACKAGE = "onnx"


def modes_of(bundle: Bundle) -> tuple[str, ...]:
    """Return in which ways the method of a bundle can be taught."""
    method = bundle.manifest.method
    if method not in TEACHERS:
        return (APPEND,) if bundle.manifest.backbone else ()
    appends = resolve(TEACHERS, method, "teacher", TeachError).appends
    return (APPEND, NEW) if appends else (NEW,)


class Teachable:
    """Says why the bundle that judges cannot be taught. Any thread may call."""

    def __init__(self, board: Board) -> None:
        self._board = board
        # The bundle whose graph was looked at last, and what is in the way there.
        self._graph: tuple[str, str | None] = ("", None)

    def fault(self) -> str | None:
        """Say why the bundle cannot be taught here; None if it can."""
        stream = self._board.stream()
        if stream is None or self._board.phase != RUNNING:
            return "no stream is running"
        bundle = self._board.bundle
        return _of_stream(stream, bundle) or self._of_place(bundle) or self._of_graph(bundle)

    def fault_of_undo(self) -> str | None:
        """Say why no other bundle can take the place of the one there; None if one can."""
        path = self._board.bundle.path
        place = path.resolve()
        for folder in (place, place.parent):
            if not os.access(folder, os.W_OK):
                return (
                    f"the user of the stream cannot write {printable(str(folder))}, where the "
                    f"other bundle takes the place of this one"
                )
        return None

    def _of_place(self, bundle: Bundle) -> str | None:
        if manifest_hash(bundle.path) != bundle.manifest_sha256:
            return (
                "another bundle is in its folder, which the station has not taken over; the "
                "warnings say why if it was refused"
            )
        if (bundle.path / SIGNATURE).exists() or bundle.signed_by is not None:
            return (
                "the bundle is signed, and a taught one must be signed again: use flawline teach "
                "and flawline sign"
            )
        return self.fault_of_undo()

    def _of_graph(self, bundle: Bundle) -> str | None:
        if importlib.util.find_spec(GRAPH_PACKAGE) is None:
            return f"the station needs {GRAPH_PACKAGE} for that; run: {install_command('teach')}"
        reason = missing(REFERENCE_ENGINE)
        if reason is not None:
            return f"engine {REFERENCE_ENGINE}: {reason}"
        known, fault = self._graph
        if known != bundle.sha256[FP32.file or ""]:
            fault = _in_graph(bundle)
            self._graph = (bundle.sha256[FP32.file or ""], fault)
        return fault


def _in_graph(bundle: Bundle) -> str | None:
    """Say what the graph of a bundle lacks."""
    try:
        if bundle.manifest.method not in TEACHERS:
            read_exempting(bundle)
        # As text in it, which is faster than to read the graph.
        elif TEACHING.encode() not in bundle.read_model():
            return (
                "its graph does not say where its features are, because an older version wrote "
                "it; build the bundle again from its checkpoint"
            )
    except (BundleError, TeachError) as error:
        return str(error)
    return None


def _of_stream(stream: StreamState, bundle: Bundle) -> str | None:
    if not modes_of(bundle):
        return (
            f"{bundle.manifest.method} is trained in steps, which takes PyTorch, and has no "
            f"backbone; its threshold can be moved here, or set from good parts with flawline "
            f"calibrate"
        )
    if not stream.takes_bundles:
        return (
            "this stream keeps its bundle, and would not take the taught one; start it without "
            "--keep-bundle"
        )
    if stream.own_thresholds or stream.cameras:
        return (
            "the recipe in the station file has thresholds of its own, which a taught bundle would "
            "not change; remove them there first"
        )
    if engine_class(stream.engine_name).needs_server:
        return "its engine computes on a server, whose model would stay as it is"
    if stream.precision != FP32.name:
        return (
            f"the stream judges in {stream.precision}, and a taught bundle has the FP32 graph; "
            f"start the stream with --precision {FP32.name}, or use flawline teach"
        )
    return None


@dataclass(frozen=True)
class Asked:
    """The rates of a teaching run: the share of good parts that its threshold may reject.

    `flag` is the value of --false-alarm-rate; None leaves it out. `review` is as of `Rates`.
    """

    false_alarm: float
    flag: float | None
    review: float | None


def rates_for(bundle: Bundle, mode: str, pictures: Sequence[Picture]) -> Asked:
    """Return the rates of the thresholds that these pictures are to set.

    They are those of the bundle, or the smallest false-alarm rate that so many pictures support.
    Raises CalibrationError, which says which pictures are missing.
    """
    images = _images(bundle, mode, pictures)
    calibration = bundle.calibration
    review = None if calibration.review is None else calibration.review.rate
    flag = _own_rate(calibration)
    asked = _supported(flag, review, images)
    if asked is None:
        enough = next((n for n in range(images, ENOUGH) if _supported(flag, review, n)), ENOUGH)
        raise CalibrationError(
            f"collect good parts: {images} are too few for the review rate of the bundle, "
            f"{100 * (review or 0):g} %, which takes {enough}"
        )
    return asked


def _supported(flag: float | None, review: float | None, images: int) -> Asked | None:
    """Return the rates that so many pictures support; None if they are too few for the review."""
    try:
        rate = check_false_alarm_rate(flag, images)
    except CalibrationError:
        flag = None
        rate = check_false_alarm_rate(None, images)
    try:
        check_rates(Rates(rate, review), images)
    except CalibrationError:
        return None
    return Asked(rate, flag, review)


def _images(bundle: Bundle, mode: str, pictures: Sequence[Picture]) -> int:
    """Return how many pictures set the thresholds. Raises CalibrationError."""
    rejects = sum(picture.record.kind == FALSE_REJECT for picture in pictures)
    images = len(pictures) - rejects if mode == APPEND else len(pictures)
    if mode == APPEND and rejects == 0:
        raise CalibrationError("mark a rejected part that is good")
    fewest = fewest_false_rejects(bundle)
    if mode == APPEND and rejects < fewest:
        raise CalibrationError(f"mark {fewest - rejects} more: at least {fewest} are needed")
    try:
        require_enough(images)
    except DataError as error:
        raise CalibrationError(f"collect good parts: {error}") from error
    if len({picture.record.bits for picture in pictures} - {None}) > 1:
        raise CalibrationError("the pictures are of different bit depths; remove those of one")
    if mode == NEW and choose_folds(None, images) == 0:
        return held_out_count(images)
    return images


def _own_rate(calibration: Calibration) -> float | None:
    """Return the false-alarm rate of a bundle; None if it is what its images supported."""
    rate = calibration.false_alarm_rate
    default = check_false_alarm_rate(None, calibration.good_images)
    return None if math.isclose(rate, default, rel_tol=1e-3) else rate
