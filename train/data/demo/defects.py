"""Defects that lie on a surface: each alters a finished scene at a random place of its room and marks where."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from flawline.train.data.demo.scene import Scene, about, lay, mark, spot
from flawline.train.data.demo.shapes import Rng, cloud, curve, grid, ramp, turned


def _wander(rng: Rng, start: np.ndarray, length: float, bend: float) -> np.ndarray:
    """[40,2] points of a curve of `length` pixels about `start` whose heading drifts by about `bend`."""
    drift = np.cumsum(rng.standard_normal(40)) * bend / 6
    angle = rng.uniform(0, 2 * np.pi) + drift + rng.normal(0, bend) * np.linspace(-0.5, 0.5, 40)
    path = np.cumsum(np.stack([np.cos(angle), np.sin(angle)], 1), 0) * (length / 40)
    return np.asarray(path - path[20] + start)


def _scratch(scene: Scene, rng: Rng, severity: float) -> None:
    n, s = scene.height.shape[0], scene.unit
    path = _wander(rng, spot(scene, rng, 12 * s), (55 + 70 * severity) * s, 0.35)
    line = cv2.GaussianBlur(curve(n, path, (1.2 + 1.1 * severity) * s), (0, 0), 0.5 * s)
    line = line * np.clip(0.75 + 0.4 * cloud(rng, n, 24), 0.15, 1) * (scene.room > 0)
    bright = rng.random() < 0.6 or float(np.median(scene.albedo)) < 0.2  # dark coats scratch white
    change = (0.35 + 0.5 * severity) * (1.0 if bright else -0.9)
    scene.albedo = scene.albedo * (1 + change * line[..., None])
    if bright:  # the coat is gone and bare metal shows
        lay(scene, line * (0.15 + 0.25 * severity), (0.45, 0.47, 0.47))
    scene.height -= line * (0.4 + 0.8 * severity) * s
    mark(scene, line, 1.5)


def _blot(scene: Scene, rng: Rng, radius: float, rough: float) -> np.ndarray:
    """Signed distance-like field, in pixels, positive inside an irregular patch of about `radius` pixels."""
    n = scene.height.shape[0]
    x, y = turned(*about(scene, rng, radius), rng.uniform(0, np.pi))
    ragged = np.clip(cloud(rng, n, 14) + 0.6 * cloud(rng, n, 40), -1.5, 1.5) * (rough * radius)
    distance = np.hypot(x, y * rng.uniform(1.0, 1.6))
    return np.asarray(radius - distance + ragged)


def _stain(scene: Scene, rng: Rng, severity: float) -> None:
    s = scene.unit
    edge = _blot(scene, rng, rng.uniform(11, 20) * s, 0.25)
    body = ramp(edge, 1.2 * s)
    rim = body * np.exp(-np.abs(edge - 1.5 * s) / (1.8 * s))  # what dries leaves most at its edge
    depth = (0.16 + 0.34 * severity) * (-1 if rng.random() < 0.6 else 0.8)
    tint = np.array([1.6, 1.0, 0.6], np.float32) * (0.45 * body + 0.75 * rim)[..., None]
    scene.albedo *= np.clip(1 + depth * tint, 0.1, 3)
    scene.gloss *= 1 - 0.5 * body
    scene.height *= 1 - 0.6 * body  # what has soaked in mats the surface
    mark(scene, body, 2)


def _dent(scene: Scene, rng: Rng, severity: float) -> None:
    s = scene.unit
    radius = rng.uniform(6, 11) * s
    x, y = turned(*about(scene, rng, 2 * radius), rng.uniform(0, np.pi))
    d2 = (x * x + (y * rng.uniform(1.0, 1.8)) ** 2) / radius**2
    bowl = np.exp(-1.5 * d2) - 0.35 * np.exp(-3 * (np.sqrt(d2) - 1.35) ** 2)
    scene.height -= bowl * radius * (0.12 + 0.3 * severity) * (1 if rng.random() < 0.75 else -1)
    mark(scene, (d2 < 1.9**2).astype(np.float32), 1)


def _hole(scene: Scene, rng: Rng, severity: float) -> None:
    s, n = scene.unit, scene.height.shape[0]
    radius = (3.5 + 4.5 * severity) * s
    field_ = _blot(scene, rng, radius, 0.34) + 1.8 * s * np.tanh(scene.height / s)
    gap = ramp(field_, 0.8 * max(s, 1))
    ys, xs = np.nonzero(gap > 0.5)
    centre = np.array([xs.mean(), ys.mean()]) if len(xs) else np.array([n / 2, n / 2])
    thread = np.median(scene.albedo[::8, ::8].reshape(-1, 3), 0)
    lay(scene, gap, thread * rng.uniform(0.05, 0.2))
    scene.height -= gap * 2.5 * s
    mark(scene, gap, 2.5)
    for _ in range(7):  # broken fibres stand into the gap
        start = centre + rng.normal(0, 0.8, 2) * radius
        fibre = curve(n, _wander(rng, start, radius * rng.uniform(1.0, 1.8), 0.35), 0.7 * s)
        lay(scene, fibre, thread * rng.uniform(0.9, 1.4))
        mark(scene, fibre, 1)


def _contamination(scene: Scene, rng: Rng, severity: float) -> None:
    (_fibre, _particle, _droplet)[int(rng.integers(3))](scene, rng, severity)


def _foreign(scene: Scene, rng: Rng, cover: np.ndarray) -> np.ndarray:
    """BGR of a foreign body: dark or light at random, but unlike what it lies on."""
    dark, light = rng.uniform(0.03, 0.08), rng.uniform(0.55, 0.8)
    under = float(np.median(scene.albedo[cover > 0.5])) if (cover > 0.5).any() else 0.2
    either = dark if rng.random() < 0.5 else light
    return (light if under < 0.12 else dark if under > 0.4 else either) * rng.uniform(0.8, 1.2, 3)


def _fibre(scene: Scene, rng: Rng, severity: float) -> None:
    n, s = scene.height.shape[0], scene.unit
    path = _wander(rng, spot(scene, rng), (40 + 40 * severity) * s, 1.6)
    width = (1.0 + 1.0 * severity) * s
    line = cv2.GaussianBlur(curve(n, path, width), (0, 0), 0.45 * s)
    shadow = cv2.GaussianBlur(curve(n, path + 1.8 * s, width), (0, 0), 1.1 * s)
    scene.albedo *= 1 - 0.35 * shadow[..., None]
    lay(scene, line * (0.6 + 0.35 * severity), _foreign(scene, rng, line))
    mark(scene, np.maximum(line, shadow), 1)


def _particle(scene: Scene, rng: Rng, severity: float) -> None:
    s = scene.unit
    field_ = _blot(scene, rng, (3.5 + 4 * severity) * s, 0.3)
    body = ramp(field_, 0.8 * max(s, 1))
    shift = np.array([[1, 0, 1.5 * s], [0, 1, 2.0 * s]])
    shadow = cv2.GaussianBlur(cv2.warpAffine(body, shift, body.shape[::-1]), (0, 0), 1.2 * s)
    scene.albedo *= 1 - 0.4 * shadow[..., None]
    lay(scene, body * 0.92, _foreign(scene, rng, body))
    scene.height += body * np.clip(field_, 0, 4 * s) * 0.6
    mark(scene, np.maximum(body, shadow), 1)


def _droplet(scene: Scene, rng: Rng, severity: float) -> None:
    s = scene.unit
    radius = (5 + 5 * severity) * s
    field_ = _blot(scene, rng, radius, 0.08)
    body = ramp(field_, 0.8 * max(s, 1))
    rim = body * np.exp(-np.abs(field_) / (1.3 * s))
    scene.albedo *= 1 + (0.12 * body - (0.35 + 0.2 * severity) * rim)[..., None]
    dome = np.sqrt(np.clip(field_, 0, radius) * radius)
    scene.height += body * (0.35 * dome - 0.5 * np.clip(scene.height, -1, 1))
    scene.gloss += body * 0.9
    mark(scene, body, 2)


def _thread_pull(scene: Scene, rng: Rng, severity: float) -> None:
    """Neighbouring threads give way along a pulled one, which floats above the weave."""
    n, s = scene.height.shape[0], scene.unit
    x, y = about(scene, rng, 0)
    sideways = rng.random() < 0.5  # the pulled thread runs down the picture
    if sideways:
        x, y = y, x
    reach, spread = (34 + 40 * severity) * s, 7 * s
    window = (
        np.clip(1 - (x / reach) ** 2, 0, 1) ** 2 * np.clip(1 - (y / (4 * spread)) ** 2, 0, 1) ** 2
    )
    push = (2.6 + 3.6 * severity) * s * window * np.tanh(y / (0.4 * spread))
    cols, rows = (each + np.float32((n - 1) / 2) for each in grid(n))
    cols, rows = (cols + push, rows) if sideways else (cols, rows + push)
    thread = np.median(scene.albedo[::8, ::8].reshape(-1, 3), 0)
    scene.albedo, scene.height = (
        cv2.remap(each, cols, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        for each in (scene.albedo, scene.height)
    )
    run = ramp((1.9 + 0.8 * severity) * s - np.abs(y), s) * np.clip(2 * window, 0, 1)
    gap = np.exp(-(((np.abs(y) - 5.5 * s) / (2.2 * s)) ** 2)) * window
    scene.albedo *= 1 - (0.35 + 0.3 * severity) * gap[..., None]
    twist = 1 + 0.15 * np.sin((x + 1.2 * y) * (2.2 / s))
    yarn = thread * rng.uniform(0.95, 1.35) * twist[..., None].astype(np.float32)
    lay(scene, (0.55 + 0.4 * severity) * run, yarn)
    scene.height += run * (1.0 + 1.5 * severity) * s - gap * s
    mark(scene, (np.abs(push) > 0.7 * s).astype(np.float32), 1)


ON_SURFACE: dict[str, Callable[[Scene, Rng, float], None]] = {
    "contamination": _contamination,
    "dent": _dent,
    "hole": _hole,
    "scratch": _scratch,
    "stain": _stain,
    "thread_pull": _thread_pull,
}
