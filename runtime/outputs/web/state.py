"""The state of a stream as the page gets it, and why a stream is not healthy."""

from __future__ import annotations

import time
from collections.abc import Sequence

from flawline import __version__
from flawline.runtime.console import printable
from flawline.runtime.outputs.web.board import RUNNING, STARTING, Board, CameraWatch
from flawline.runtime.outputs.web.facts import part_state
from flawline.runtime.outputs.web.kept import KeptPart
from flawline.runtime.outputs.web.lane import Lane
from flawline.runtime.outputs.web.shapes import (
    CameraState,
    HealthState,
    KeptState,
    LaneState,
    OutputCounts,
    State,
    WarningState,
)

SHOWN_WARNINGS = 30
# A free-running camera is said to be silent after so many seconds without a frame.
SILENT_S = 10.0
# So many frames in a row that could not be judged are a fault.
UNJUDGED_RUN = 10


def state_of(board: Board) -> State:
    """Return the state of the page now."""
    stream = board.stream()
    bundle = board.bundle
    lanes = tuple(board.lanes.values())
    own: list[str] = []
    outputs = []
    if stream is not None:
        own = list(board.lanes) if stream.own_thresholds else list(stream.cameras)
        for name, output in stream.outputs:
            outputs.append(OutputCounts(name, dict(output.counts), output.fault))
    warnings = [WarningState(at, text) for at, text in board.warnings()[:SHOWN_WARNINGS]]
    return State(
        time=round(time.time(), 3),
        started=board.started,
        phase=board.phase,
        title=board.title,
        version=__version__,
        bundle=bundle.short_id,
        bundle_path=printable(str(bundle.path)),
        method=bundle.manifest.method,
        engine=None if stream is None else stream.engine,
        recipe=None if stream is None else stream.recipe,
        own_thresholds=tuple(own),
        faults=tuple(faults_of(board)),
        lanes=tuple(_lane_state(board, lane) for lane in lanes),
        cameras=tuple(_camera_state(board, watch) for watch in board.cameras),
        outputs=tuple(outputs),
        warnings=tuple(warnings),
        kept=board.kept.count,
        teaching=board.teaching,
    )


def kept_states(parts: Sequence[KeptPart]) -> tuple[KeptState, ...]:
    """Return parts as the page gets them."""
    states = []
    for part in parts:
        facts = part.facts
        states.append(KeptState(part.number, part.has_picture, facts.has_image, part_state(facts)))
    return tuple(states)


def faults_of(board: Board) -> list[str]:
    """Say why the stream is not healthy; nothing is said of one that is."""
    if board.phase == STARTING:
        return ["the stream has not begun: its engine or its cameras are being opened"]
    if board.phase != RUNNING:
        return ["the stream has ended"]
    faults = []
    for watch in board.cameras:
        if watch.fault is not None:
            faults.append(f"camera {watch.name}: {printable(watch.fault)}")
    for lane in board.lanes.values():
        view = lane.view()
        if view.unjudged_run >= UNJUDGED_RUN and view.newest is not None:
            reason = printable(view.newest.reason or "")
            # Without numbers that grow, so that it is said once.
            faults.append(f"camera {lane.name}: no frame can be judged any more: {reason}")
        if _is_continuous(board, lane) and (view.silent_s or 0) > SILENT_S:
            faults.append(f"camera {lane.name}: no frame for more than {SILENT_S:g} s")
    return faults


def health_of(board: Board) -> HealthState:
    """Return whether the stream is healthy."""
    faults = tuple(faults_of(board))
    return HealthState("fault" if faults else "ok", faults)


def _is_continuous(board: Board, lane: Lane) -> bool:
    """Whether frames come without a break, so that none for a while means that something is wrong.

    A triggered camera waits for parts, and a watched folder for files.
    """
    for watch in board.cameras:
        if watch.name == lane.name:
            return watch.camera.live and not watch.camera.knows_parts
    return False


def _lane_state(board: Board, lane: Lane) -> LaneState:
    view = lane.view()
    shown = view.shown
    newest = view.newest
    _good, reviewed, rejected, unjudged = view.counts
    latency = None
    if newest is not None and newest.judged:
        latency = round(sum(newest.milliseconds.values()), 3)
    shown_age = None
    age = None
    if shown is not None:
        shown_age = round(lane.age_of(shown), 3)
        age = shown.judgement.age
    return LaneState(
        name=lane.name,
        continuous=_is_continuous(board, lane),
        frames=view.frames,
        judged=view.frames - unjudged,
        rejected=rejected,
        reviewed=reviewed,
        unjudged=unjudged,
        dropped=board.dropped(lane.name),
        fps=round(view.fps, 2),
        latency_ms=latency,
        silent_s=None if view.silent_s is None else round(view.silent_s, 3),
        threshold=None if newest is None else newest.threshold,
        review_threshold=None if newest is None else newest.review_threshold,
        windowed=newest is not None and newest.recent_bad is not None,
        shown=None if shown is None else part_state(shown),
        shown_age_s=shown_age,
        age_ms=None if age is None else round(1e3 * age, 1),
    )


def _camera_state(board: Board, watch: CameraWatch) -> CameraState:
    camera = watch.camera
    fault = watch.fault
    lane = board.lanes.get(watch.name)
    return CameraState(
        name=watch.name,
        source=printable(camera.source),
        live=camera.live,
        waiting=lane is not None and lane.view().frames == 0,
        fault=None if fault is None else printable(fault),
        since=watch.since or None,
        counts=dict(camera.counts()),
    )
