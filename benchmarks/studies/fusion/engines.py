"""The other engines of this machine, opened through a bundle as users open them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from flawline.benchmarks.measure.sessions import InferenceCall, inference_call
from flawline.benchmarks.studies.network import bundle_of_network, value_range
from flawline.runtime.console import log
from flawline.runtime.engines import (
    ENGINES,
    REFERENCE_ENGINE,
    EngineError,
    EngineOptions,
    engine_class,
    unusable_here,
)
from flawline.runtime.golden import Golden
from flawline.runtime.image import Image
from flawline.runtime.precisions import FP32
from flawline.train.method import Method

# FP16 and INT8 need graphs of their own, which the export makes and this study does not.
PRECISIONS = (FP32.name, "bf16")


def other_engines(
    method: Method,
    model: bytes,
    images: Image,
    folder: Path,
    threads: int | None,
    stack: ExitStack,
) -> Iterator[tuple[str, InferenceCall]]:
    """Yield name and call of every engine but the reference, in PRECISIONS where it has them.

    `folder` is where the bundle is written; `stack` closes the engines. An engine that cannot be
    opened in FP32 raises EngineError, one in another precision is left out with a note.
    """
    names = []
    for name in ENGINES:
        if name != REFERENCE_ENGINE and unusable_here(name) is None:
            names.append(name)
    if not names:
        return
    score, *maps = inference_call(model, threads)(images)
    golden = Golden(images, score, maps[0] if maps else np.zeros((len(images), 0, 0), np.float32))
    # Differences are reported by the study, so no engine is refused for them.
    tolerance = max(value_range(golden.scores, golden.maps), 1.0)
    bundle = bundle_of_network(method, {FP32.name: model}, golden, folder, tolerance)
    for name in names:
        kind = engine_class(name)
        for precision in PRECISIONS:
            if precision not in kind.precisions:
                continue
            try:
                engine = kind.open(bundle, EngineOptions(threads, precision))
            except EngineError as error:
                if precision == FP32.name:
                    raise
                log(f"{name} {precision} is left out: {error}")
                continue
            stack.callback(engine.close)
            yield f"{name} {precision}", engine
