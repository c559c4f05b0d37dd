"""The graphs of further precisions that a build adds to its bundle."""

from __future__ import annotations

from pathlib import Path

from flawline.cameras.bit_depth import bit_depth_remedy
from flawline.export import ExportError
from flawline.export.graphs import WRITERS
from flawline.runtime.bundle import Bundle
from flawline.runtime.console import log
from flawline.runtime.precisions import PRECISIONS


def lacks_graph(bundle: Bundle, precision: str) -> bool:
    """Whether engines need a graph of this precision that the bundle does not have."""
    return precision in WRITERS and precision not in bundle.precisions


def add_missing_graph(bundle: Bundle, precision: str, data: Path | None) -> Bundle:
    """Add the graph of a precision, unless the bundle has it or engines need none.

    Raises ExportError if it has to be written and there are no images, or if it loses parity.
    """
    if not lacks_graph(bundle, precision):
        return bundle
    if data is None:
        raise ExportError(
            f"adding the {precision} graph needs images; pass --data with the data set that the "
            f"bundle was built on"
        )
    # Imported here because it needs onnx, which a machine that only inspects lacks.
    from flawline.export.add_precision import add_graph
    from flawline.train.data.images import TRAIN_WITH_BITS

    with bit_depth_remedy(TRAIN_WITH_BITS):
        return add_graph(bundle, precision, data)


def add_default_graphs(bundle: Bundle, data: Path) -> Bundle:
    """Add the graphs that every new bundle gets, for machines that compile their engine.

    One without parity is left out, which is logged.
    """
    for precision in PRECISIONS.values():
        if not precision.by_default:
            continue
        try:
            bundle = add_missing_graph(bundle, precision.name, data)
        except ExportError as error:
            log(
                f"note: the bundle gets no {precision.name} graph ({error}); "
                f"on a GPU build its plan with --precision fp32"
            )
    return bundle
