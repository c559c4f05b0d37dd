"""The precisions that a graph can be written in or computed in, and how far each may drift."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Precision:
    """One precision.

    A new one is one entry of PRECISIONS, and a writer in the export if it has a file. `file` is the
    ONNX file of a bundle that holds this precision's graph; None if engines compute in this
    precision from the FP32 graph. `score_factor` and `map_factor` multiply the manifest's
    tolerances; `far` is the allowed error of a score far from the threshold, relative to its
    distance from it. The graphs of precisions `by_default` are added to every new bundle. The
    scores of a `lossy` precision differ enough to need a threshold of their own; no engine has it
    as default.
    """

    name: str
    file: str | None
    score_factor: float
    map_factor: float
    far: float
    by_default: bool = False
    lossy: bool = False


FP32 = Precision("fp32", "model.onnx", 1.0, 1.0, 0.001, by_default=True)

# The manifest's tolerance is 1/20 of the standard deviation of the good images. The factors leave
# room above the largest drift that was measured, in units of that standard deviation:
#
#     precision   score   map
#     fp16        0.06    0.06
#     bf16        0.52    1.60
#     int8        0.64    2.15
#
# The scores of a lossy precision set a threshold of their own, so that a large score need only stay
# large. A golden verdict that flips is refused in every precision, unless the threshold was set
# with the scores of the engine that is tested.
PRECISIONS = {
    "fp32": FP32,
    "fp16": Precision("fp16", "model.fp16.onnx", 2.0, 2.0, 0.001, by_default=True),
    "bf16": Precision("bf16", None, 20.0, 40.0, 0.25, lossy=True),
    "int8": Precision("int8", "model.int8.onnx", 20.0, 60.0, 0.25, lossy=True),
}


def islands_of(name: str, islands: Iterable[str]) -> set[str]:
    """Return the FP32 islands of a manifest that a node or layer with this name is in.

    An island is the path of a module or the name of a node: /tail contains /tail and /tail/Conv,
    and not /tailor. A slash at its end changes nothing.
    """
    matches = set()
    for island in islands:
        path = island.rstrip("/")
        # Without this check, the island "/" would contain every node.
        if path and f"{name}/".startswith(f"{path}/"):
            matches.add(island)
    return matches
