"""The page of the study of the pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flawline.benchmarks.tables import markdown_table
from flawline.runtime.load import is_busy

CAMERA = (
    "bundle", "engine", "input", "camera FPS", "engine alone FPS", "stream FPS", "overhead",
    "lowest", "highest",
)  # fmt: skip
FILES = (
    "bundle", "engine", "input", "sequential FPS", "stream FPS", "factor", "lowest", "highest",
)  # fmt: skip


def pipeline_report(result: Mapping[str, Any]) -> str:
    """Return the page in Markdown: the overhead with a camera, then the gain with files."""
    cameras = []
    files = []
    for row in result["rows"]:
        name = [row["bundle"], row["engine"], row["input"]]
        for key in ("camera", "saturated"):
            found = row[key]
            fps = found.get("camera_fps", 100)
            cells = [*name, fps, f"{found['engine_fps']:.1f}", f"{found['stream_fps']:.1f}"]
            # The largest ratio is the lowest overhead.
            for ratio in (found["ratio"], found["highest_ratio"], found["lowest_ratio"]):
                cells.append(f"{1 - ratio:.1%}")
            cameras.append(cells)
        found = row["files"]
        cells = [*name, f"{found['sequential_fps']:.1f}", f"{found['stream_fps']:.1f}"]
        for key in ("ratio", "lowest_ratio", "highest_ratio"):
            cells.append(f"{found[key]:.2f}")
        files.append(cells)
    about = [result["machine"]["cpu"], f"{result['cores']} cores"]
    if is_busy(result["other_processes"]):
        about.append(f"other processes used {result['other_processes']:.0%} of the CPU")
    noun = "turn" if result["rounds"] == 1 else "turns"
    turns = f"{result['rounds']} {noun} of {result['frames']} frames"
    return f"""\
{"; ".join(about)}; measured by `python -m benchmarks.studies.pipeline`

Medians of {turns}, which alternate with those of what they are compared with. The last two
columns are the turns with the lowest and the highest value.

A synthetic camera of 640x480 pixels. The overhead is what the stream judges less than the camera
gives and the engine alone can judge.

{markdown_table(CAMERA, cameras)}

JPEG files of 1920x1080 pixels, from the file to the verdict, with the regions and JSON lines in a
file. The sequential loop does one thing after the other.

{markdown_table(FILES, files)}"""
