"""Opening what a station file asks for: the judge of a recipe, with its line in the audit log."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from flawline.runtime.audit.log import open_log
from flawline.runtime.bundle import Bundle, read_bundle
from flawline.runtime.detector import Detector
from flawline.runtime.engines import EngineOptions
from flawline.runtime.masters.check import Masters
from flawline.runtime.masters.rule import MastersRule
from flawline.runtime.regions import RegionSettings, regions_missing
from flawline.runtime.signing.keys import read_trusted
from flawline.runtime.station.judge import Judge, Levels, Window
from flawline.runtime.station.settings.schema import Recipe, RejectAfter
from flawline.runtime.station.settings.station_file import Station
from flawline.runtime.station.setup import Check, checked
from flawline.runtime.threshold import threshold_fault

# What the audit log of a station calls what a stream judges with, what it will judge with from the
# next part on, and what it could not use.
IN_USE = "in use"
READY = "ready"
REFUSED = "refused"


def open_judge(station: Station, check: Check, bundle: Bundle, running: bool = False) -> Judge:
    """Open the recipe that a station file names, and let `check` look at the detector.

    `bundle` is that of the recipe. The audit log of the station gets a line if this is another
    state than the last one in use; while another one is `running`, it gets a line that this one is
    ready, and that other line when this one begins to judge. Raises StationError, BundleError,
    EngineError, AuditError and what `check` raises.
    """
    recipe = station.recipe
    detector = open_detector(station, recipe, bundle)
    window = _window(station.content.reject_after)
    masters = rule_of(station, recipe)
    takes_bundles = not station.content.keep_bundle
    judge = Judge(detector, recipe.name, _levels(recipe), window, masters, takes_bundles)
    checked(judge, check)
    try:
        if running:
            _log_ready(station, judge)
            judge.on_begin = partial(_log_in_use, station)
        else:
            _log_in_use(station, judge)
    except BaseException:
        detector.close()
        raise
    return judge


def open_detector(station: Station, recipe: Recipe, bundle: Bundle) -> Detector:
    """Open the detector of a recipe with its bundle. Raises StationError and EngineError."""
    content = station.content
    check_recipe(station, recipe, bundle)
    engine = content.engine
    cache = None if engine.cache is None else station.folder / engine.cache
    server = recipe.server or engine.server
    options = EngineOptions(engine.threads, engine.precision, cache, engine.streams, server)
    return Detector(
        bundle,
        engine.name,
        options,
        recipe.threshold,
        content.accept_size,
        recipe.review_threshold,
        _region_settings(recipe),
    )


def masters_of(recipe: Recipe) -> Masters | None:
    """Return the master parts of a recipe; None if it has none."""
    masters = recipe.masters
    if masters is None:
        return None
    return Masters(masters.good, masters.bad, masters.max_frames)


def rule_of(station: Station, recipe: Recipe) -> MastersRule | None:
    """Return what a recipe demands of its master parts; None if it has none."""
    masters = recipe.masters
    if masters is None:
        return None
    longest = None if masters.max_age_h is None else 3600 * masters.max_age_h
    return MastersRule(masters_of(recipe), longest, station.path)


def bundle_reader(station: Station, keys: Sequence[Path] = ()) -> Callable[[Path], Bundle]:
    """Return what reads the bundles of a station, and files of trusted keys whenever it is called.

    `keys` are such files, in place of those that the station file names. The function raises
    BundleError and SigningError.
    """

    def read(path: Path) -> Bundle:
        return read_bundle(path, read_trusted(keys or station.trusted_keys))

    return read


def check_recipe(station: Station, recipe: Recipe, bundle: Bundle) -> None:
    """Raise StationError for a recipe that does not fit its bundle."""
    place = ("recipes", station.content.recipes.index(recipe))
    calibrated = bundle.calibration
    threshold = recipe.threshold
    if threshold is not None:
        _check_threshold(station, threshold, bundle, *place, "threshold")
    elif recipe.review_threshold is not None:
        threshold = calibrated.threshold
        if recipe.review_threshold > threshold:
            station.refuse(
                f"the review threshold {recipe.review_threshold:g} is above that of the bundle "
                f"which rejects, {threshold:g}; lower it",
                *place,
                "review_threshold",
            )
    for index, level in enumerate(recipe.thresholds):
        inner = (*place, "thresholds", index, "threshold")
        _check_threshold(station, level.threshold, bundle, *inner)
    reason = regions_missing(bundle)
    for key in ("min_region_area", "mm_per_pixel"):
        if reason is not None and getattr(recipe, key) is not None:
            station.refuse(f"{key} is about anomalous regions: {reason}", *place, key)


def _check_threshold(station: Station, threshold: float, bundle: Bundle, *place: str | int) -> None:
    fault = threshold_fault(threshold, bundle.manifest)
    if fault is not None:
        station.refuse(f"{fault}; correct it, or leave it out for that of the bundle", *place)


def _region_settings(recipe: Recipe) -> RegionSettings:
    return RegionSettings(min_area=recipe.min_region_area or 0.0, mm_per_pixel=recipe.mm_per_pixel)


def _levels(recipe: Recipe) -> dict[str, Levels]:
    levels = {}
    for level in recipe.thresholds:
        levels[level.camera] = Levels(level.threshold, level.review_threshold)
    return levels


def _window(after: RejectAfter | None) -> Window | None:
    return None if after is None else Window(after.frames, after.of)


def _log_ready(station: Station, judge: Judge) -> None:
    """Add what will judge to the audit log. Without this line it must not take over."""
    with open_log(station.audit_log) as log:
        last = log.last(IN_USE)
        log.append(READY, None if last is None else last.new, state_of(judge))


def _log_in_use(station: Station, judge: Judge) -> None:
    """Add what is in use to the audit log, unless the last entry about a stream says the same."""
    with open_log(station.audit_log) as log:
        last = log.last(IN_USE)
        old = None if last is None else last.new
        new = state_of(judge)
        if new != old or log.last(IN_USE, READY, REFUSED) != last:
            log.append(IN_USE, old, new)


def state_of(judge: Judge) -> dict[str, Any]:
    """Return what the audit log says about a judge."""
    detector = judge.detector
    cameras = {}
    for name, levels in judge.levels.items():
        cameras[name] = {
            "threshold": levels.threshold,
            "review_threshold": levels.review_threshold,
        }
    settings = detector.region_settings
    window = judge.window
    return {
        "recipe": judge.recipe,
        "bundle": detector.bundle.short_id,
        "manifest": detector.bundle.manifest_sha256,
        "signed_by": detector.bundle.signed_by,
        # The same for each spelling, and that of a link shows what it leads to.
        "path": str(detector.bundle.path.resolve()),
        "engine": detector.engine.description,
        "threshold": detector.threshold,
        "review_threshold": detector.review_threshold,
        "cameras": cameras,
        "pixel_threshold": detector.bundle.calibration.pixel_threshold,
        "min_region_area": settings.min_area,
        "mm_per_pixel": settings.mm_per_pixel,
        "accept_size": detector.accept_size,
        "reject_after": None if window is None else [window.frames, window.of],
    }
