"""The report of the fusion study: absolute figures, then the ratios that are claimed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flawline.benchmarks.studies.fusion.forms import BACKBONE, FUSED, LITERAL, PUBLISHED
from flawline.benchmarks.studies.fusion.rows import (
    EAGER,
    ONNX_RUNTIME,
    FusionResult,
    KindTotal,
    Row,
)
from flawline.benchmarks.tables import markdown_table

# Heading, field of a row, unit and format of the columns that are numbers.
COLUMNS = (
    ("GMAC", "macs", 1e9, ".2f"),
    ("head GMAC", "head_macs", 1e9, ".3f"),
    ("head MiB", "head_bytes_written", 2**20, ".1f"),
    ("M parameters", "parameters", 1e6, ".2f"),
    ("ONNX nodes", "onnx_nodes", 1, ".0f"),
    ("ms", "ms", 1, ".2f"),
    ("error", "error", 1, ".1e"),
)
EXPLANATION = (
    "GMAC are those of convolutions and matrix products. Head MiB: activations written, in torch",
    "every new tensor, in ONNX Runtime what each node writes after its own fusions. The error is",
    "the largest difference of any score or map value from (b) in torch, relative to the range of",
    "the map, or of the scores of a method without map.",
)
# Number of the slowest nodes that are listed.
LISTED_NODES = 10


def fusion_report(about: Mapping[str, Any], notes: Sequence[str], result: FusionResult) -> str:
    """Return the page in Markdown. `notes` are lines that explain the forms of this method."""
    lines = [
        _heading(about),
        "",
        _table(result.rows),
        "",
        *notes,
        *EXPLANATION,
    ]
    for name in about["against"]:
        lines.append(f"External model: {name}, on random input of its own.")
    lines.append("")
    for line in ratios(result.rows):
        lines.append(f"- {line}")
    lines += ["", "Heads in ONNX Runtime by kind of node:", ""]
    for form, totals in result.kinds.items():
        lines.append(f"- {form}: {_describe_kinds(totals)}")
    lines += ["", "Left in the fused head in ONNX Runtime, slowest first:", ""]
    for node in result.fused_head[:LISTED_NODES]:
        lines.append(f"- {node.milliseconds:.3f} ms, {node.kind}, {node.name}")
    return "\n".join(lines)


def ratios(rows: Sequence[Row]) -> list[str]:
    """Return the ratios that are claimed, each from two rows of the same run.

    A ratio that needs a row which is missing, or whose divisor is 0, is left out.
    """
    by_key = {(row.form, row.engine): row for row in rows}
    published = by_key.get((PUBLISHED, EAGER))
    literal = by_key.get((LITERAL, EAGER))
    fused = by_key[FUSED, EAGER]
    literal_onnx = by_key.get((LITERAL, ONNX_RUNTIME))
    fused_onnx = by_key[FUSED, ONNX_RUNTIME]
    candidates = [
        _ratio("(a) in torch takes {} times the time of (c) in ONNX Runtime",
               "ms", published, fused_onnx),
        _ratio("(b) takes {} times the time of (c), both in ONNX Runtime",
               "ms", literal_onnx, fused_onnx),
        _ratio("the head of (b) computes {} times the MACs of the head of (c)",
               "head_macs", literal, fused),
        _ratio("the head of (a) writes {} times the bytes of the head of (c), both in torch",
               "head_bytes_written", published, fused),
        _ratio("the head of (b) writes {} times the bytes of the head of (c), both in ONNX Runtime",
               "head_bytes_written", literal_onnx, fused_onnx),
        _added_time(by_key[BACKBONE, ONNX_RUNTIME], fused_onnx),
    ]  # fmt: skip
    lines = [line for line in candidates if line is not None]
    # Every other form and engine is compared with (c) in the same engine.
    for row in rows:
        claimed = row.form in (PUBLISHED, FUSED, BACKBONE) or row is literal_onnx
        if not claimed:
            sentence = f"{row.form} takes {{}} times the time of (c) in {row.engine}"
            line = _ratio(sentence, "ms", row, by_key.get((FUSED, row.engine)))
            if line is not None:
                lines.append(line)
    return lines


def _ratio(sentence: str, field: str, more: Row | None, less: Row | None) -> str | None:
    """Fill the ratio of one field of two rows into the sentence."""
    if more is None or less is None:
        return None
    divisor = getattr(less, field)
    if divisor == 0:
        return None  # a head without products
    ratio = getattr(more, field) / divisor
    return sentence.format(f"{ratio:.2f}")


def _added_time(backbone: Row, fused: Row) -> str | None:
    if backbone.ms is None or fused.ms is None:
        return None
    added = 100 * (fused.ms - backbone.ms) / backbone.ms
    return f"the head of (c) adds {added:.0f} % to the backbone's time in ONNX Runtime"


def _heading(about: Mapping[str, Any]) -> str:
    network = filter(None, (about["method"], about["backbone"], about["input"]))
    parts = [", ".join(network)]
    parts += about["settings"]
    parts += [
        str(about["device"]),
        f"threads {about['threads']}",
        "medians of alternating turns, batch 1",
    ]
    return "; ".join(parts)


def _table(rows: Sequence[Row]) -> str:
    header = ["form", "engine"]
    for heading, _, _, _ in COLUMNS:
        header.append(heading)
    lines = []
    for row in rows:
        cells = [row.form, row.engine]
        for _, field, unit, digits in COLUMNS:
            value = getattr(row, field)
            cells.append("" if value is None else format(value / unit, digits))
        lines.append(cells)
    return markdown_table(header, lines)


def _describe_kinds(totals: Sequence[KindTotal]) -> str:
    nodes = 0
    milliseconds = 0.0
    parts = []
    for total in totals:
        nodes += total.nodes
        milliseconds += total.ms
        parts.append(f"{total.nodes} {total.kind} {total.ms:.2f} ms")
    return f"{nodes} nodes, {milliseconds:.2f} ms: {', '.join(parts)}"
