"""What the layers of a plan compute in, as TensorRT's inspector states it.

A plan may be built in another precision than it was asked for, with nothing but a warning. The
inspector gives a text in JSON. Each layer has its inputs and outputs with their types, in words
that differ between the versions: "Channel major FP16 format where channel % 8 == 0", "Half".
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping

# The precisions by the words for their types; a layer computes in the first that it has.
WORDS = {
    # The image of the first layer is UINT8.
    "int8": re.compile(r"\bINT8\b", re.IGNORECASE),
    "bf16": re.compile(r"\b(BF16|BFLOAT16)\b", re.IGNORECASE),
    "fp16": re.compile(r"\b(FP16|HALF|FLOAT16)\b", re.IGNORECASE),
    "fp32": re.compile(r"\b(FP32|FLOAT|FLOAT32)\b", re.IGNORECASE),
}
# The end of the keys that hold a type: "Format/Datatype", and "Datatype" from version 11 on.
TYPE_KEY = "datatype"
# Layers that only move data.
MOVING = ("reformat", "noop", "constant", "shuffle", "signal", "wait", "shape")


def count_types(information: str) -> Mapping[str, int]:
    """Count the layers of each precision in the inspector's JSON text about a whole plan.

    Empty if the plan has no types in it, because it was built without them.
    """
    counts: Counter[str] = Counter()
    try:
        layers = json.loads(information)["Layers"]
    except (ValueError, KeyError, TypeError):
        return counts
    for layer in layers:
        # Without the details there is a name alone.
        if not isinstance(layer, dict):
            continue
        if str(layer.get("LayerType", "")).lower().startswith(MOVING):
            continue
        text = " ".join(_types(layer))
        for precision, word in WORDS.items():
            if word.search(text):
                counts[precision] += 1
                break
    return counts


def _types(layer: dict[str, list[dict[str, str]]]) -> Iterator[str]:
    """Yield the types of the inputs and outputs of a layer."""
    for tensor in layer.get("Inputs", []) + layer.get("Outputs", []):
        for key, value in tensor.items():
            if key.lower().endswith(TYPE_KEY):
                yield str(value)
