"""The page of the study of the live page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flawline.benchmarks.studies.running_stream import conditions
from flawline.benchmarks.tables import markdown_table

WITHOUT, CLOSED, OPEN = VARIANTS = ("without", "closed", "open")
COLUMNS = (
    "frames", "camera FPS", "page", "FPS", "ratio", "lowest", "highest", "p95 ms",
    "CPU ms per frame", "cores", "memory MB",
)  # fmt: skip


def live_page_report(result: Mapping[str, Any]) -> str:
    """Return the page in Markdown."""
    rows = []
    for row in result["rows"]:
        for name in VARIANTS:
            found = row[name]
            ratios = [f"{found[key]:.3f}" for key in ("ratio", "lowest", "highest")]
            if name == WITHOUT:
                ratios = ["", "", ""]
            cells = [row["size"], row["camera_fps"], name, f"{found['fps']:.1f}", *ratios]
            cells += [f"{found['p95_ms']:.2f}", f"{found['cpu_ms']:.2f}", f"{found['cores']:.2f}"]
            rows.append([*cells, f"{found['megabytes']:.0f}"])
    return f"""\
{conditions(result, result["engine"])}; measured by `python -m benchmarks.studies.live_page`

Medians of {result["rounds"]} turns of {result["seconds"]:g} s, which alternate: without the page,
with the page and no browser (closed), and with a program that asks for what a browser asks for
(open). The ratio is that of the frames per second to those without the page in the same turn. p95
is of the time that preparation and engine take; CPU time, cores and memory are those of the process
of the stream.

{markdown_table(COLUMNS, rows)}"""
