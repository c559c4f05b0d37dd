"""Defects of a surface: each alters a finished scene at a random place of its room and marks it.

`severity` runs from 0, the faintest defect of its kind, to 1, the clearest.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from flawline.train.data.demo.contamination import contaminate
from flawline.train.data.demo.scene import Scene, about, lay, mark, spot
from flawline.train.data.demo.shapes import Rng, cloud, curve, grid, ramp, turned
from flawline.train.data.demo.strokes import blot, wander


def _scratch(scene: Scene, rng: Rng, severity: float) -> None:
    unit = scene.unit
    path = wander(rng, spot(scene, rng, 12 * unit), (55 + 70 * severity) * unit, 0.35)
    stroke = curve(scene.size, path, (1.2 + 1.1 * severity) * unit)
    line = cv2.GaussianBlur(stroke, (0, 0), 0.5 * unit)
    uneven = np.clip(0.75 + 0.4 * cloud(rng, scene.size, 24), 0.15, 1)
    line = line * uneven * (scene.room > 0)

    bright = rng.random() < 0.6
    if float(np.median(scene.albedo)) < 0.2:
        bright = True  # a scratch in a dark coat is always lighter than the coat
    change = 0.35 + 0.5 * severity
    if not bright:
        change = change * -0.9
    scene.albedo = scene.albedo * (1 + change * line[..., None])
    if bright:  # the coat is gone and bare metal shows
        lay(scene, line * (0.15 + 0.25 * severity), (0.45, 0.47, 0.47))
    scene.height -= line * (0.4 + 0.8 * severity) * unit
    mark(scene, line, 1.5)


def _stain(scene: Scene, rng: Rng, severity: float) -> None:
    unit = scene.unit
    edge = blot(scene, rng, rng.uniform(11, 20) * unit, 0.25)
    body = ramp(edge, 1.2 * unit)
    # A liquid that dries leaves most at its edge.
    rim = body * np.exp(-np.abs(edge - 1.5 * unit) / (1.8 * unit))
    depth = 0.16 + 0.34 * severity
    darker = rng.random() < 0.6
    depth *= -1 if darker else 0.8
    amount = 0.45 * body + 0.75 * rim
    tint = np.array([1.6, 1.0, 0.6], np.float32) * amount[..., None]
    scene.albedo *= np.clip(1 + depth * tint, 0.1, 3)
    # A liquid that soaks in makes the surface matt and smooth.
    scene.gloss *= 1 - 0.5 * body
    scene.height *= 1 - 0.6 * body
    mark(scene, body, 2)


def _dent(scene: Scene, rng: Rng, severity: float) -> None:
    radius = rng.uniform(6, 11) * scene.unit
    x, y = turned(*about(scene, rng, 2 * radius), rng.uniform(0, np.pi))
    squared = (x * x + (y * rng.uniform(1.0, 1.8)) ** 2) / radius**2
    raised_rim = 0.35 * np.exp(-3 * (np.sqrt(squared) - 1.35) ** 2)
    bowl = np.exp(-1.5 * squared) - raised_rim
    change = bowl * radius * (0.12 + 0.3 * severity)
    if rng.random() < 0.75:
        scene.height -= change
    else:
        scene.height += change  # a bump
    mark(scene, (squared < 1.9**2).astype(np.float32), 1)


def _hole(scene: Scene, rng: Rng, severity: float) -> None:
    unit = scene.unit
    radius = (3.5 + 4.5 * severity) * unit
    distance = blot(scene, rng, radius, 0.34) + 1.8 * unit * np.tanh(scene.height / unit)
    gap = ramp(distance, 0.8 * max(unit, 1))
    thread = _thread_colour(scene)
    lay(scene, gap, thread * rng.uniform(0.05, 0.2))
    scene.height -= gap * 2.5 * unit
    mark(scene, gap, 2.5)

    centre = _centre_of(gap > 0.5)
    for _ in range(7):  # broken fibres extend into the gap
        start = centre + rng.normal(0, 0.8, 2) * radius
        path = wander(rng, start, radius * rng.uniform(1.0, 1.8), 0.35)
        fibre = curve(scene.size, path, 0.7 * unit)
        lay(scene, fibre, thread * rng.uniform(0.9, 1.4))
        mark(scene, fibre, 1)


def _thread_colour(scene: Scene) -> np.ndarray:
    return np.asarray(np.median(scene.albedo[::8, ::8].reshape(-1, 3), 0))


def _centre_of(region: np.ndarray) -> np.ndarray:
    """Return the centre (x, y) of a region, bool [n, n]; the image's centre if it is empty."""
    rows, columns = np.nonzero(region)
    if len(columns) == 0:
        half = region.shape[0] / 2
        return np.array([half, half])
    return np.array([columns.mean(), rows.mean()])


def _thread_pull(scene: Scene, rng: Rng, severity: float) -> None:
    """Neighbouring threads give way along a pulled one, which floats above the weave."""
    unit = scene.unit
    x, y = about(scene, rng, 0)
    vertical = rng.random() < 0.5  # the pulled thread runs down the image
    if vertical:
        x, y = y, x
    reach = (34 + 40 * severity) * unit
    spread = 7 * unit
    along = np.clip(1 - (x / reach) ** 2, 0, 1) ** 2
    across = np.clip(1 - (y / (4 * spread)) ** 2, 0, 1) ** 2
    window = along * across

    thread = _thread_colour(scene)
    push = (2.6 + 3.6 * severity) * unit * window * np.tanh(y / (0.4 * spread))
    _push_aside(scene, push, vertical)

    run = ramp((1.9 + 0.8 * severity) * unit - np.abs(y), unit) * np.clip(2 * window, 0, 1)
    gap = np.exp(-(((np.abs(y) - 5.5 * unit) / (2.2 * unit)) ** 2)) * window
    scene.albedo *= 1 - (0.35 + 0.3 * severity) * gap[..., None]
    twist = 1 + 0.15 * np.sin((x + 1.2 * y) * (2.2 / unit))
    yarn = thread * rng.uniform(0.95, 1.35) * twist[..., None].astype(np.float32)
    lay(scene, (0.55 + 0.4 * severity) * run, yarn)
    scene.height += run * (1.0 + 1.5 * severity) * unit - gap * unit
    mark(scene, (np.abs(push) > 0.7 * unit).astype(np.float32), 1)


def _push_aside(scene: Scene, push: np.ndarray, vertical: bool) -> None:
    """Move the surface by `push` [n, n] pixels across a thread that runs vertically or not."""
    x, y = grid(scene.size)
    half = np.float32((scene.size - 1) / 2)
    columns = x + half
    rows = y + half
    if vertical:
        columns = columns + push
    else:
        rows = rows + push
    scene.albedo = _resample(scene.albedo, columns, rows)
    scene.height = _resample(scene.height, columns, rows)


def _resample(values: np.ndarray, columns: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return cv2.remap(values, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)


SURFACE_DEFECTS: dict[str, Callable[[Scene, Rng, float], None]] = {
    "contamination": contaminate,
    "dent": _dent,
    "hole": _hole,
    "scratch": _scratch,
    "stain": _stain,
    "thread_pull": _thread_pull,
}
