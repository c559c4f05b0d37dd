"""The table of `benchmarks.fusion`: absolute figures, then the ratios that are claimed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

COLUMNS = (
    "form",
    "engine",
    "GMAC",
    "head GMAC",
    "head MiB",
    "M parameters",
    "ONNX nodes",
    "ms",
    "error",
)


SIMPLENET = (
    "Head: all after the feature maps; of (a) without layer4, classifier and the unread upsampling.",
)
FLOWS = (
    "Head: all after the feature maps. (a) is FrEIA's forward: permutations as convolutions with dense matrices,",
    "log-determinants, and the loss of them. (b) is without the last two, which exporters drop; (e) permutes by an",
    "index. Fused couplings compute all channels (padded), gather their halves, or permute by a product: (c) is what",
    "ships (ssnf: padded; fastflow: a product on layer1, gathered on the others), (d) are other forms.",
)
NOTES = {
    "simplenet": SIMPLENET,
    "fastflow": FLOWS,
    "ssnf": FLOWS,
}  # what is said of a method's forms


def markdown(about: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    chosen = "".join(f"; {setting}" for setting in about["settings"])
    lines = [
        f"{about['method']}, {about['backbone']}, {about['input']}{chosen}; {about['device']}; "
        f"threads {about['threads']}; medians of alternating turns, batch 1",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + "---|" * len(COLUMNS),
        *("| " + " | ".join(_cells(row)) + " |" for row in found["rows"]),
        "",
        *NOTES[about["method"]],
        "GMAC are those of convolutions and matrix products. Head MiB: activations made, in torch every new tensor, in",
        "ONNX Runtime what each node writes after its own fusions. The error is the largest difference of any score or",
        "map value from (b) in torch, of the map's range.",
        *(f"Another's: {path}, on random input of its own." for path in about["against"]),
        "",
        *(f"- {line}" for line in ratios(found["rows"])),
        "",
        "Heads in ONNX Runtime by kind of node:",
        "",
        *(f"- {form}: {_kinds(kinds)}" for form, kinds in found["kinds"].items()),
        "",
        "Left in the fused head in ONNX Runtime, slowest first:",
        "",
        *(f"- {n['ms']:.3f} ms, {n['kind']}, {n['node']}" for n in found["left_in_the_head"][:10]),
    ]
    return "\n".join(lines)


def _kinds(kinds: Sequence[Mapping[str, Any]]) -> str:
    total = f"{sum(k['nodes'] for k in kinds)} nodes, {sum(k['ms'] for k in kinds):.2f} ms"
    return f"{total}: " + ", ".join(f"{k['nodes']} {k['kind']} {k['ms']:.2f} ms" for k in kinds)


def _cells(row: Mapping[str, Any]) -> list[str]:
    def told(key: str, unit: float, digits: str) -> str:
        return format(row[key] / unit, digits) if key in row else ""

    return [
        row["form"],
        row["engine"],
        told("macs", 1e9, ".2f"),
        told("head_macs", 1e9, ".3f"),
        told("head_bytes_written", 2**20, ".1f"),
        told("parameters", 1e6, ".2f"),
        told("onnx_nodes", 1, ".0f"),
        told("ms", 1, ".2f"),
        told("error", 1, ".1e"),
    ]


def ratios(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is claimed, each from two rows of the same run."""
    by = {(row["form"][:3], row["engine"]): row for row in rows}
    eager, ort = "torch eager", "onnxruntime fp32"

    def times(key: str, more: tuple[str, str], less: tuple[str, str]) -> str:
        return f"{by[more][key] / by[less][key]:.2f} times"

    alone, fused = by["bac", ort]["ms"], by["(c)", ort]["ms"]
    return [
        f"(c) in ONNX Runtime takes {times('ms', ('(a)', eager), ('(c)', ort))} less time than (a) in torch",
        f"(c) takes {times('ms', ('(b)', ort), ('(c)', ort))} less time than (b), both in ONNX Runtime",
        f"the head of (c) takes {times('head_macs', ('(b)', eager), ('(c)', eager))} fewer MACs than (b)'s",
        f"it makes {times('head_bytes_written', ('(a)', eager), ('(c)', eager))} fewer bytes of activations than (a)'s "
        f"in torch, {times('head_bytes_written', ('(b)', ort), ('(c)', ort))} fewer than (b)'s in ONNX Runtime",
        f"it costs {100 * (fused - alone) / alone:.0f} % of the backbone's time in ONNX Runtime",
        *(
            f"{row['form']} takes {row['ms'] / by['(c)', row['engine']]['ms']:.2f} times the time of (c) in "
            f"{row['engine']}"
            for row in rows
            if row["form"][:3] not in ("(a)", "(c)", "bac")
            and (row["form"][:3], row["engine"]) != ("(b)", ort)
        ),
    ]
