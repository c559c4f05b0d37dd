"""From a trained method to a bundle: a threshold from good images, parity on real images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from flawline.export import ExportError
from flawline.export.exact_reference import with_exact_results
from flawline.export.exported import (
    ExportedGraph,
    export_graph,
    for_source,
    note_resized_good,
    require_source,
)
from flawline.export.good_scores import out_of_fold_scores, require_rate, scores_of_mosaics
from flawline.export.good_statistics import good_statistics
from flawline.export.judged import judge
from flawline.export.parity import ScoresAndMaps, compare, require_parity
from flawline.export.provenance import bundle_provenance, trained_bit_depth
from flawline.export.selection import PARITY_IMAGES, ImageSelection, select_images
from flawline.runtime.bundle import Bundle, write_bundle
from flawline.runtime.calibration import Calibration
from flawline.runtime.console import log, warn
from flawline.runtime.golden import Golden
from flawline.runtime.golden_images import choose_golden
from flawline.runtime.good_images.scores import GoodScores
from flawline.runtime.graph_input import GraphInput
from flawline.runtime.manifest import GRAPH_OUTPUTS, Manifest, Spread
from flawline.runtime.precisions import FP32
from flawline.runtime.source_frame import SourceFrame
from flawline.runtime.source_images import SourceSizes
from flawline.runtime.threshold import Rates
from flawline.runtime.tolerances import Tolerances, tolerance_of
from flawline.train.checkpoint import Checkpoint
from flawline.train.data import DataError, describe_images
from flawline.train.data.split import content_hashes, list_hash, require_not_trained_on
from flawline.train.method import Method

SOURCE_WITH_PARTS = (
    "--source: the graph prepares whole frames as they lie, without tiles, an inspected area or a "
    "fixture; leave --source out, or train without --tiles, --include, --exclude and --fixture"
)
TRAINING_IMAGES = "data_sha256"  # in the provenance of a checkpoint


@dataclass(frozen=True)
class ExportOptions:
    """The options of a new bundle.

    Attributes:
        false_alarm_rate: share of good parts that may be rejected; None for the default.
        review_rate: share of good parts that may be reviewed or rejected; None for no review.
        parity_images: number of test images to compare on, next to good ones.
        outputs: GRAPH_OUTPUTS, ("score",) for a graph without the map, or None for the method's.
        static_batch: the only batch size that the graph accepts; None for any.
        allow_unfinished: export a training that was cut short; the bundle is marked.
        source: the camera's frames that the graph takes; None for prepared images.
        describe: log what the data set consists of, unless the training has done so.
    """

    false_alarm_rate: float | None = None
    review_rate: float | None = None
    parity_images: int = PARITY_IMAGES
    outputs: tuple[str, ...] | None = None
    static_batch: int | None = None
    allow_unfinished: bool = False
    source: SourceFrame | None = None
    describe: bool = True

    @property
    def rates(self) -> Rates:
        """Both rates."""
        return Rates(self.false_alarm_rate, self.review_rate)


def build_bundle(
    checkpoint: Checkpoint,
    data: Path,
    out: Path,
    options: ExportOptions,
    command: Sequence[str] = (),
) -> Bundle:
    """Export a trained method, set its threshold, prove the graph against torch, write the bundle.

    Args:
        checkpoint: a fitted method in eval mode, and how it was trained.
        data: the data set that it was trained on. Its held-out images set the threshold, unless
            the checkpoint has out-of-fold scores of its good images.
        out: the folder to write; an existing bundle there is replaced.
        options: the options of the bundle.
        command: the arguments of the command, for the provenance.

    Raises:
        ExportError: the graph does not decide as the method does, the training was cut short, or
            the options do not fit the method or its training.
        CalibrationError: too few good images for the rates, or they are all equal.
        DataError: the data set cannot be used, its held-out images were trained on, or its good
            images are not those of the out-of-fold scores.
        BundleError: the bundle cannot be written.
    """
    _require_finished(checkpoint, options)
    method = checkpoint.method
    selection, good = _select_images(checkpoint, data, options)
    exported = _export(method, options)
    judged = judge(method, exported, selection)
    good = good or judged.good_scores(method)
    selection, reference, results = judged.selection, judged.reference, judged.results
    manifest = manifest_of(method, exported, good)
    calibration = good.calibrate(options.rates, manifest)
    if exported.outputs != GRAPH_OUTPUTS:  # there are no maps to compare or to store
        reference = replace(reference, maps=results.maps)
    manifest = replace(
        _trained_as(checkpoint, manifest),
        provenance=bundle_provenance(checkpoint.provenance, data, command),
        source_sizes=_source_sizes(checkpoint, selection),
        drift=good_statistics(selection, good),
    )
    golden = _prove(method, selection, reference, results, calibration, manifest)
    note_resized_good(selection, manifest, out)
    return write_bundle(out, manifest, calibration, {FP32.name: exported.model}, golden)


def _golden(
    selection: ImageSelection,
    reference: ScoresAndMaps,
    calibration: Calibration,
    manifest: Manifest,
) -> Golden:
    threshold = calibration.threshold
    tolerance = manifest.score_tolerance
    return choose_golden(selection.inputs, reference.scores, reference.maps, threshold, tolerance)


def _select_images(
    checkpoint: Checkpoint, data: Path, options: ExportOptions
) -> tuple[ImageSelection, GoodScores | None]:
    """Select the images, and check what can be checked about them before the work begins.

    Also returns the out-of-fold scores of the good images, or None if images are held out.
    """
    bit_depth = trained_bit_depth(checkpoint.provenance)
    # A method that was trained on 8-bit images says nothing about the scale of deeper ones.
    file_bit_depth = bit_depth if bit_depth > 8 else None
    record = checkpoint.out_of_fold
    folds = 0 if record is None else record.count
    graph_input = _graph_input(checkpoint, options)
    selection = select_images(
        data, graph_input, file_bit_depth, folds, options.parity_images, checkpoint.excluded
    )
    if options.describe:
        for line in selection.data_set.describe():
            log(line)
    good = None
    if record is None:
        _require_unseen(selection, checkpoint)
    else:
        good = out_of_fold_scores(record, selection.train.paths)
    require_rate(options.rates, selection.good, good)
    _note_trained_tests(selection, checkpoint)
    if options.describe:
        geometry = graph_input.frame_geometry
        for line in describe_images(selection.good, geometry, selection.bit_depth):
            log(f"note: {line}")
    if good is not None:
        good = scores_of_mosaics(good, checkpoint.method, selection)
    return selection, good


def _graph_input(checkpoint: Checkpoint, options: ExportOptions) -> GraphInput:
    """Return what the graph will take. Raises ExportError for options that exclude each other."""
    source = options.source
    if source is not None:
        require_source(source, checkpoint.source_sizes)
    parts = (checkpoint.tiles, checkpoint.inspected_area, checkpoint.fixture)
    if source is not None and any(part is not None for part in parts):
        raise ExportError(SOURCE_WITH_PARTS)
    return GraphInput(checkpoint.method.geometry, source, *parts)


def _note_trained_tests(selection: ImageSelection, checkpoint: Checkpoint) -> None:
    """Log how many of the selected test images were trained on, under another name."""
    tests = selection.paths[len(selection.good) :]
    trained = []
    for path, content in zip(tests, content_hashes(tests), strict=True):
        if content in checkpoint.trained_on:
            trained.append(path)
    if trained:
        warn(
            f"warning: {len(trained)} of {len(tests)} test images are copies of images that the "
            f"detector was trained on, such as {trained[0]}; results on them are too good"
        )


def _require_finished(checkpoint: Checkpoint, options: ExportOptions) -> None:
    """Refuse a training that was cut short, unless the user allows it. Raises ExportError."""
    length = checkpoint.length
    if length is None or length.finished:
        return
    remedy = "repeat the training command, which continues it"
    if checkpoint.out_of_fold is not None:
        # Without the scores of all folds there is nothing to set a threshold from.
        raise ExportError(
            f"the training was cut short after {length.describe()}, before its part "
            f"{checkpoint.missing_phases[0]}; {remedy}, or train with --folds 0 and a hold-out"
        )
    if checkpoint.missing_phases:
        raise ExportError(
            f"the training was cut short after {length.describe()}, before its phase "
            f"{checkpoint.missing_phases[0]}; {remedy}"
        )
    if not options.allow_unfinished:
        raise ExportError(
            f"the training was cut short after {length.describe()}; {remedy}, or export it as it "
            f"is with --allow-unfinished"
        )
    warn(f"warning: the training was cut short after {length.describe()}; the bundle is marked")


def _source_sizes(checkpoint: Checkpoint, selection: ImageSelection) -> SourceSizes | None:
    """Return the sizes of the good images: those of the training, extended by the selected ones."""
    if checkpoint.source_sizes is None:
        return None
    sizes = selection.frames.sizes
    good = SourceSizes.of([sizes[path] for path in selection.good])
    return checkpoint.source_sizes.extended(good)


def _require_unseen(selection: ImageSelection, checkpoint: Checkpoint) -> None:
    """Check that the method was not trained on the images that set its threshold."""
    if selection.copies:
        log(
            f"note: {selection.copies} held-out images are copies of others and set no threshold; "
            f"{len(selection.good)} remain"
        )
    if checkpoint.trained_on:
        require_not_trained_on(selection.good, checkpoint.trained_on)
        return
    training = selection.train.paths
    # Checkpoints of older versions know the names and sizes of their training images only.
    if checkpoint.provenance.get(TRAINING_IMAGES, "") not in ("", list_hash(training)):
        raise DataError(
            f"data {selection.data_set.root}: the training images are not those of the checkpoint, "
            f"which may have been trained on held-out images; train again on this data set"
        )


def _export(method: Method, options: ExportOptions) -> ExportedGraph:
    exported = export_graph(method, options.outputs, options.static_batch)
    if options.source is None:
        return exported
    return for_source(exported, options.source, method.geometry)


def manifest_of(method: Method, exported: ExportedGraph, good: GoodScores) -> Manifest:
    """Describe the exported method and its scores of good images."""
    score = Spread.of(good.scores)
    map_peak = Spread.of(good.peaks)
    return Manifest(
        method=method.name,
        backbone=method.settings.backbone,
        geometry=method.geometry,
        score=score,
        map_peak=map_peak,
        score_tolerance=tolerance_of(score),
        map_tolerance=method.map_tolerance * tolerance_of(map_peak),
        fp32_islands=exported.fp32_islands,
        outputs=exported.outputs,
        provenance={},
        folds=good.folds,
        source=exported.source,
    )


def _trained_as(checkpoint: Checkpoint, manifest: Manifest) -> Manifest:
    """Add to a manifest what the checkpoint says about the training."""
    return replace(
        manifest,
        bit_depth=trained_bit_depth(checkpoint.provenance),
        training=checkpoint.length,
        trained_images=tuple(sorted(set(checkpoint.trained_on))),
        tiles=checkpoint.tiles,
        inspected_area=checkpoint.inspected_area,
        fixture=checkpoint.fixture,
        excluded_images=checkpoint.excluded,
    )


def _prove(
    method: Method,
    selection: ImageSelection,
    reference: ScoresAndMaps,
    results: ScoresAndMaps,
    calibration: Calibration,
    manifest: Manifest,
) -> Golden:
    """Log the parity of the graph with torch, and raise ExportError if it is not good enough.

    Returns golden images, with results in float64 where float32 is not exact enough.
    """
    reference = with_exact_results(
        method, selection.images, reference, results, calibration.threshold, manifest
    )
    parity = compare(
        selection.paths,
        reference,
        results,
        calibration.threshold,
        Tolerances.of(manifest),
        manifest.score.std,
    )
    for line in parity.describe():
        log(line)
    require_parity(parity, Tolerances.of(manifest))
    return _golden(selection, reference, calibration, manifest)
