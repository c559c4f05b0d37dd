"""Parity of engines in a lossy precision, on the images of a data set."""

from __future__ import annotations

from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

from flawline.export.frame_scores import with_deciding_tiles
from flawline.export.parity import ScoresAndMaps, compare, require_parity, score_with
from flawline.export.selection import ImageSelection, select_images
from flawline.runtime.bundle import Bundle
from flawline.runtime.console import log
from flawline.runtime.engines import Engine, open_reference
from flawline.runtime.tolerances import Tolerances
from flawline.train.progress import Bars, Progress, no_progress


class LossyParity:
    """Compares engines with the reference, which judges the images of a data set once."""

    def __init__(self, bundle: Bundle, data: Path) -> None:
        self._bundle = bundle
        self._data = data
        self._selection: ImageSelection | None = None
        self._reference: ScoresAndMaps | None = None

    def require(self, engine: Engine) -> None:
        """Raise ExportError for a clear flip, or for an error above the tolerance of a precision.

        Also raises DataError if the data set cannot be used.
        """
        manifest = self._bundle.manifest
        # The bars are in an extra, which a machine that inspects need not have.
        bars = Bars() if find_spec("tqdm") else None
        progress: Progress = no_progress if bars is None else bars
        selection, reference = self._judged_by_reference(progress)
        results = score_with(engine, selection.inputs, progress)
        tolerances = Tolerances.of(manifest, engine.precision)
        parity = compare(
            selection.paths,
            reference,
            results,
            self._bundle.calibration.threshold,
            tolerances,
            manifest.score.std,
        )
        for line in parity.describe():
            log(f"{engine.name} {engine.precision}: {line}")
        require_parity(parity, tolerances, "use another precision", "the engine")

    def _judged_by_reference(self, progress: Progress) -> tuple[ImageSelection, ScoresAndMaps]:
        if self._selection is None or self._reference is None:
            manifest = self._bundle.manifest
            selection = select_images(
                self._data,
                manifest.graph_input,
                manifest.file_bit_depth,
                manifest.folds,
                excluded=manifest.excluded_images,
            )
            model = self._bundle.model().read_bytes()
            self._selection, _ = with_deciding_tiles(
                selection, model, self._bundle.map_size, progress
            )
            with closing(open_reference(model, self._bundle.map_size)) as reference:
                self._reference = score_with(reference, self._selection.inputs, progress)
        return self._selection, self._reference
