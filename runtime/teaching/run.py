"""The two ways to teach a bundle: new pictures alone, or false rejects in addition."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from flawline.cameras import Camera, open_camera
from flawline.commands import command_line
from flawline.registry import resolve
from flawline.runtime.bundle import Bundle
from flawline.runtime.console import log, log_notes
from flawline.runtime.engines import EngineOptions, require_options, require_server
from flawline.runtime.good_images.folds import choose_folds
from flawline.runtime.good_images.hold_out import held_out_count
from flawline.runtime.good_parts import require_good_folders
from flawline.runtime.precisions import FP32, PRECISIONS
from flawline.runtime.provenance import how_taught, with_command
from flawline.runtime.station.notices import FrameNotices
from flawline.runtime.teaching import TEACHERS, TeachError
from flawline.runtime.teaching.appendable import read_exempting, require_onnx
from flawline.runtime.teaching.base import Teacher
from flawline.runtime.teaching.features import Features, compute_features
from flawline.runtime.teaching.learning import Setup, teach_more, teach_new
from flawline.runtime.teaching.new_bundle import (
    NewBundle,
    log_precisions,
    make_bundle,
    write_tested,
)
from flawline.runtime.teaching.pictures import Pictures, most_frames, take_pictures
from flawline.runtime.teaching.recalibrate import recalibrated
from flawline.runtime.threshold import Rates, check_rates
from flawline.runtime.trained_images import require_new_images
from flawline.uris import without_secrets

# Provenance of the old bundle that holds for the new one: its backbone is the same.
KEPT = ("train_weights", "train_weights_flag", "train_seed", "train_bits")
GOOD = "good images"

Check = Callable[[Camera, int], None]


@dataclass(frozen=True)
class TeachOptions:
    """The options of a new bundle.

    Attributes:
        out: its folder.
        rates: shares of good parts that may be rejected, and reviewed.
        engine: the name of the engine whose self-test it must pass, with `engine_options`.
        images: how many pictures are taken at most; None takes all of a folder.
        folds: how many blocks of the pictures are left out in turn, 0 to hold out a fifth; None
            decides by their number, as the training does.
        bank_limit: the largest size of what is learned; None is a default of the method.
        accept_size: whether pictures of any size set the thresholds of a bundle that is not taught.
        words: the arguments of the command, for the provenance.
    """

    out: Path
    rates: Rates
    engine: str
    engine_options: EngineOptions
    images: int | None = None
    folds: int | None = None
    bank_limit: int | None = None
    accept_size: bool = False
    words: Sequence[str] = ()


def teach(bundle: Bundle, source: str, options: TeachOptions) -> Bundle:
    """Teach a bundle from pictures of good parts alone, and write the new one.

    Where its method cannot be taught, they only set its thresholds. Raises CameraError, DataError,
    CalibrationError, EngineError, BundleError and TeachError.
    """
    if bundle.manifest.method not in TEACHERS:
        return _recalibrate(bundle, source, options)
    _require_engine(options)
    setup = _open(bundle, options)

    def check(camera: Camera, most: int) -> None:
        require_good_folders(camera.files()[:most])
        folds = choose_folds(options.folds, most)
        check_rates(options.rates, most if folds else held_out_count(most), GOOD)

    with tempfile.TemporaryDirectory(prefix="flawline-") as folder:
        pictures, features = _take(setup, source, options.images, Path(folder), check)
        folds = choose_folds(options.folds, len(pictures))
        taught = teach_new(setup, pictures, features, folds)
        new = make_bundle(setup, taught, pictures, features, options.rates)
    counts = f"{len(taught.trained)} taught, {len(pictures) - len(taught.trained)} held out"
    trained = {pictures.files[place] for place in taught.trained}
    manifest = replace(
        new.manifest,
        provenance=_provenance(bundle, counts, options),
        source_sizes=pictures.sizes,
        trained_images=_hashes(trained),
        # What was left out of the old one's training says nothing about these pictures.
        excluded_images=(),
    )
    return _write(bundle, replace(new, manifest=manifest), options)


def append(bundle: Bundle, false_rejects: str, good: str, options: TeachOptions) -> Bundle:
    """Add false rejects to what a bundle has learned, and set its thresholds from good parts.

    `good` are pictures of other good parts, which were neither trained on nor are among the false
    rejects. Raises the errors of `teach`, and TrainedImagesError.
    """
    _require_engine(options)
    teachable = bundle.manifest.method in TEACHERS
    setup = _open(bundle, options) if teachable else _open_exempting(bundle, options)
    old = bundle.manifest

    def check(camera: Camera, most: int) -> None:
        check_rates(options.rates, most, GOOD)
        require_good_folders(camera.files()[:most])
        require_new_images(camera.files()[:most], old.trained_images)

    with tempfile.TemporaryDirectory(prefix="flawline-") as name:
        folder = Path(name)
        rejected, wrong = _take(setup, false_rejects, None, folder)
        pictures, features = _take(setup, good, options.images, folder, check)
        _refuse_common(rejected, pictures)
        _refuse_other_size(rejected, pictures)
        _log_rejected(setup, rejected, wrong)
        taught = teach_more(setup, wrong, pictures, features, options.bank_limit)
        appended = (rejected, wrong)
        new = make_bundle(setup, taught, pictures, features, options.rates, appended)
    sizes = rejected.sizes.extended(pictures.sizes)
    trained = {*old.trained_images, *_hashes(rejected.files)}
    provenance = _provenance(bundle, f"{len(rejected)} false rejects appended", options)
    manifest = replace(
        new.manifest,
        fp32_islands=tuple(dict.fromkeys([*old.fp32_islands, *setup.graph.islands])),
        provenance={**provenance, **taught.learned.facts},
        source_sizes=sizes if old.source_sizes is None else old.source_sizes.extended(sizes),
        trained_images=_hashes(trained),
    )
    return _write(bundle, replace(new, manifest=manifest), options)


def _require_engine(options: TeachOptions) -> None:
    """Refuse an engine that cannot test the new bundle, before pictures are taken.

    Raises EngineError and TeachError.
    """
    chosen = options.engine_options
    if options.engine == "auto":
        require_server("auto", chosen)
    else:
        require_options(options.engine, chosen)
    if chosen.precision != "auto" and PRECISIONS[chosen.precision].file not in (None, FP32.file):
        raise TeachError(
            f"--precision {chosen.precision}: a taught bundle has the {FP32.name} graph alone; "
            f"leave the flag out"
        )


def _recalibrate(bundle: Bundle, source: str, options: TeachOptions) -> Bundle:
    if options.folds is not None:
        raise TeachError(
            f"bundle {bundle.path}: {bundle.manifest.method} cannot be taught here, so that no "
            f"pictures are left out in turn; leave --folds out"
        )
    engine = (options.engine, options.engine_options)
    new = recalibrated(
        bundle, source, options.rates, options.images, *engine, accept_size=options.accept_size
    )
    count = new.calibration.good_images
    note = f"bundle {bundle.short_id}, with thresholds from {count} good pictures"
    return _write(bundle, new, options, note)


def _open_exempting(bundle: Bundle, options: TeachOptions) -> Setup:
    """Read the graph of a bundle, and let it exempt positions. Raises TeachError."""
    graph = read_exempting(bundle)
    from flawline.runtime.teaching.exempting import ExemptingTeacher

    threads = options.engine_options.threads
    return Setup(bundle, graph, ExemptingTeacher(graph, bundle, threads), threads)


def _open(bundle: Bundle, options: TeachOptions) -> Setup:
    """Read the graph of a bundle. Raises TeachError without onnx, and for another graph."""
    require_onnx()
    from flawline.runtime.teaching.graph import TaughtGraph

    graph = TaughtGraph(bundle.read_model())
    kind: type[Teacher] = resolve(TEACHERS, bundle.manifest.method, "teacher", TeachError)
    # Bundles of the first versions do not state it.
    seed = int(bundle.manifest.provenance.get("train_seed", "0"))
    teacher = kind(graph, dict(graph.record.settings), seed)
    return Setup(bundle, graph, teacher, options.engine_options.threads)


def _take(
    setup: Setup,
    uri: str,
    limit: int | None,
    folder: Path,
    check: Check | None = None,
) -> tuple[Pictures, Features]:
    """Take pictures, and compute their raw features.

    `check` gets the camera and the largest number of pictures before the first one is taken.
    """
    with open_camera(uri) as camera:
        most = most_frames(camera, without_secrets(uri), limit)
        if check is not None:
            check(camera, most)
        log_notes(camera.notes())
        camera.on_event = FrameNotices().event
        pictures = take_pictures(camera, uri, most, setup.bundle.manifest, folder)
    if not pictures.sizes.one_size:
        log(
            f"note: the pictures differ in size ({pictures.sizes.describe()}), and a stream will "
            f"judge frames of all these sizes; if one is there by mistake, remove it, and teach "
            f"again"
        )
    backbone = setup.graph.backbone(setup.teacher.raw())
    features = compute_features(backbone, pictures.frames, setup.graph_input, folder, setup.threads)
    return pictures, features


def _refuse_common(rejected: Pictures, good: Pictures) -> None:
    """Refuse false rejects among the good parts. Raises TeachError."""
    known = set(rejected.contents)
    common = [
        path for path, content in zip(good.paths, good.contents, strict=True) if content in known
    ]
    if common:
        raise TeachError(
            f"{len(common)} of {len(good)} good images are among the false rejects, such as "
            f"{common[0]}; a threshold from them would be too low; remove them from --good"
        )


def _refuse_other_size(rejected: Pictures, good: Pictures) -> None:
    """Refuse false rejects that the camera of the good parts did not give. Raises TeachError."""
    if good.sizes.one_size and rejected.sizes != good.sizes:
        raise TeachError(
            f"the false rejects are {rejected.sizes.describe()}, and the good pictures are "
            f"{good.sizes.describe()}; give the frames as the camera gave them, which "
            f'--output "overlays:DIR?frames=rejected&paint=0" of {command_line("stream")} saves'
        )


def _log_rejected(setup: Setup, rejected: Pictures, features: Features) -> None:
    """Log how the bundle judges the false rejects; a defective part among them would be learnt."""
    calibration = setup.bundle.calibration
    found = setup.scores(setup.teacher.known(), features, range(len(rejected)))
    count = int((found.scores > calibration.threshold).sum())
    suspect = int(found.scores.argmax())
    log(
        f"the bundle rejects {count} of the {len(rejected)} false rejects; highest-scoring of "
        f"them: {found.scores[suspect]:.6g} {rejected.paths[suspect]}; the defects of a defective "
        f"part among them would not be found any more"
    )


def _hashes(files: Iterable[str | None]) -> tuple[str, ...]:
    return tuple(sorted({file for file in files if file is not None}))


def _provenance(bundle: Bundle, counts: str, options: TeachOptions) -> dict[str, str]:
    old = bundle.manifest.provenance
    kept = {key: old[key] for key in KEPT if key in old}
    kept["train_good_images"] = counts
    kept["taught_from"] = bundle.short_id
    return with_command(kept, "runtime.teach", options.words)


def _write(
    bundle: Bundle, new: NewBundle, options: TeachOptions, note: str | None = None
) -> Bundle:
    """Write a bundle; the audit log says from what it was taught, unless there is another note."""
    note = note or how_taught(new.manifest.provenance)
    written = write_tested(new, options.out, options.engine, options.engine_options, note)
    log(f"wrote bundle {written.path}")
    log_precisions(bundle, written)
    return written
