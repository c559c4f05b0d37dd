"""Which bundles false rejects can be added to, and by what."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from flawline.extras import install_command
from flawline.registry import resolve
from flawline.runtime.bundle import Bundle
from flawline.runtime.teaching import TEACHERS, TeachError

if TYPE_CHECKING:
    # They need onnx.
    from flawline.runtime.teaching.base import Teacher
    from flawline.runtime.teaching.exempting_graph import ExemptingGraph

REMEDY = (
    "let good pictures set its thresholds with --source, or train it again with the false rejects "
    "among the good images"
)


# Exempting measures how much the same harmless thing differs from part to part.
FEWEST_EXEMPTED = 2


def fewest_false_rejects(bundle: Bundle) -> int:
    """Return how many false rejects it takes to add them to what a bundle has learned."""
    return 1 if bundle.manifest.method in TEACHERS else FEWEST_EXEMPTED


def require_appendable(bundle: Bundle) -> None:
    """Raise TeachError for a bundle whose manifest says that nothing can be added to it."""
    method = bundle.manifest.method
    if method not in TEACHERS:
        if not bundle.manifest.backbone:
            raise TeachError(
                f"bundle {bundle.path}: {method} has no backbone by whose features false rejects "
                f"could be exempted; {REMEDY}"
            )
        return
    kind: type[Teacher] = resolve(TEACHERS, method, "teacher", TeachError)
    if not kind.appends:
        raise TeachError(
            f"bundle {bundle.path}: {method} learns statistics of all pictures, to which nothing "
            f"can be added later; put the false rejects into the folder of good pictures, and "
            f"teach that with --source"
        )


def require_onnx() -> None:
    """Raise TeachError without onnx."""
    try:
        import_module("onnx")
    except ModuleNotFoundError as error:
        if error.name != "onnx":
            raise
        raise TeachError(f"writing a graph needs onnx; run: {install_command('teach')}") from error


def read_exempting(bundle: Bundle) -> ExemptingGraph:
    """Read the graph of a bundle, with nodes that exempt positions. Raises TeachError."""
    require_onnx()
    from flawline.runtime.teaching.exempting_graph import exempting_graph

    manifest = bundle.manifest
    graph = exempting_graph(bundle.read_model(), manifest.geometry.height)
    if graph is None:
        raise TeachError(
            f"bundle {bundle.path}: the score of {manifest.method} does not come from values of "
            f"positions that could be exempted; {REMEDY}"
        )
    return graph
