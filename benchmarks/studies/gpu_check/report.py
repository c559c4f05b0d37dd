"""The report of the GPU study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flawline.benchmarks.studies.gpu_check.calls import PUBLISHED
from flawline.benchmarks.tables import markdown_table

HEADER = ("", "batch", "p50 ms", "p95 ms", "p99 ms", "images/s", "times published", "drift")
EXPLANATION = """\
Times are from host to host. Drift: the largest difference of a score from torch's, relative to
the standard deviation of the scores."""


def gpu_report(about: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the page in Markdown, with every row's speed relative to the published pipeline.

    Speeds are compared at the same batch.
    """
    published = {}
    for row in rows:
        if row["call"] == PUBLISHED:
            published[row["batch"]] = row["p50_ms"]
    lines = []
    for row in rows:
        # Left empty where the published pipeline did not run at this batch.
        ratio = ""
        if row["batch"] in published:
            ratio = f"{published[row['batch']] / row['p50_ms']:.2f}"
        lines.append(
            (
                row["call"],
                row["batch"],
                row["p50_ms"],
                row["p95_ms"],
                row["p99_ms"],
                row["images_per_s"],
                ratio,
                f"{row['drift']:.1e}",
            )
        )
    heading = (
        f"{about['method']}, {about['backbone']}, {about['input']}, weights {about['weights']}; "
        f"{about['device']}"
    )
    return "\n".join([heading, "", markdown_table(HEADER, lines), "", EXPLANATION])
