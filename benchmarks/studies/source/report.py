"""The page of the study of graphs that take the camera's frame."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flawline.benchmarks.tables import markdown_table
from flawline.runtime.load import is_busy

SCORES = (
    "bundle", "data", "frames", "images", "nodes", "million MACs at most", "largest difference",
    "tolerance", "equal scores", "clear flips", "flips within tolerance",
)  # fmt: skip
TIMES = (
    "bundle", "engine", "prepare() ms", "prepare() and graph ms", "graph of the frame ms", "factor",
    "difference", "tolerance",
)  # fmt: skip


def source_report(result: Mapping[str, Any]) -> str:
    """Return the page in Markdown: the scores, then the times."""
    scores = []
    for row in result["scores"]:
        sources = row["sources"]
        frames = sources[0] if len(sources) == 1 else f"{len(sources)} sizes"
        nodes = str(row["most_nodes"])
        if row["fewest_nodes"] != row["most_nodes"]:
            nodes = f"{row['fewest_nodes']} to {nodes}"
        cells = [row["bundle"], row["data"], frames, row["images"], nodes]
        cells += [f"{row['most_macs'] / 1e6:.1f}", f"{row['largest_difference']:.1e}"]
        cells += [f"{row['tolerance']:.1e}", row["equal"], row["clear_flips"], row["near_flips"]]
        scores.append(cells)
    times = []
    for row in result["times"]:
        cells = [row["bundle"], row["engine"], f"{row['prepare_ms']:.2f}"]
        cells += [f"{row['prepared_ms']:.2f}", f"{row['source_ms']:.2f}"]
        cells += [f"{row['source_ms'] / row['prepared_ms']:.2f}"]
        cells += [f"{row['difference']:.1e}", f"{row['tolerance']:.1e}"]
        times.append(cells)
    about = [result["machine"]["cpu"], f"threads {result['threads']}"]
    if is_busy(result["other_processes"]):
        about.append(f"other processes used {result['other_processes']:.0%} of the CPU")
    macs = result["frame_macs"] / 1e6
    return f"""\
{"; ".join(about)}; measured by `python -m benchmarks.studies.source`

Scores of the FP32 graph in ONNX Runtime, on prepared images and on the frames themselves, each of
which has a graph of its own size. Nodes and MACs are those that prepare a frame.

{markdown_table(SCORES, scores)}

One frame of {result["frame"]}, from the array to the verdict, medians of alternating turns. It is
prepared by {result["frame_nodes"]} nodes with {macs:.1f} million MACs. The difference is that of
the two scores.

{markdown_table(TIMES, times)}"""
