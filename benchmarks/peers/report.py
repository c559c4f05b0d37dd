"""The page of a comparison with another library."""

from __future__ import annotations

from typing import Any

from flawline.benchmarks.tables import markdown_table

HEADER = ("side", "model", "runs in", "FPS p50", "ms p50", "ms p95", "image AUROC")


def page(row: dict[str, Any]) -> str:
    """Return the page in Markdown."""
    ours = row["ours"]
    theirs = row["theirs"]
    lines = [
        _line(ours, "Flawline", f"{ours['method']} {ours['backbone']}".strip(), ours["engine"]),
        _line(theirs, theirs["library"], theirs.get("model"), _their_engine(theirs)),
    ]
    return "\n\n".join(
        [
            markdown_table(HEADER, lines),
            f"The other side takes {row['ratio']:.2f} times as long (ratio of the medians). "
            f"{row['images']} test images of {row['data']}, "
            f"{row['defective_images']} of them defective, judged {row['repeats']} times by each "
            f"side in alternating turns, on {row['device']}. A time is that of a decoded "
            f"image: it is resized to {ours['input']}, then judged. The AUROCs are those of the "
            f"raw scores of these images. The two models were trained apart, each by its own "
            f"library, so that their accuracies differ.",
        ]
    )


def _line(side: dict[str, Any], name: str, model: str | None, engine: str) -> list[object]:
    auroc = side["image_auroc"]
    return [
        name,
        model,
        engine,
        side["fps"],
        f"{side['p50_ms']:.1f}",
        f"{side['p95_ms']:.1f}",
        None if auroc is None else f"{auroc:.4f}",
    ]


def _their_engine(theirs: dict[str, Any]) -> str:
    return f"{theirs['inferencer']}, {theirs['precision']}"
