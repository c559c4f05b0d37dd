"""The report of the study of teaching."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flawline.benchmarks.tables import markdown_table

# The shape of a row, for the rows of earlier runs.
ROW = {"method": str, "data": str, "other": str, "command": str}


def teach_page(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the page in Markdown."""
    parts = []
    for part, write in (("compared", _compared), ("time", _times)):
        measured = [row for row in rows if row[part]]
        if measured:
            parts.append(write(measured))
    parts += [_appended(row) for row in rows if row["append"]]
    commands = dict.fromkeys(row["command"] for row in rows)
    parts += [f"`{command}`" for command in commands]
    return "\n\n".join(parts)


def _compared(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for row in rows:
        compared = row["compared"]
        trained, taught = compared["trained"], compared["taught"]
        lines.append(
            [
                row["method"],
                taught["images"],
                f"{trained['auroc']:.4f}",
                f"{taught['auroc']:.4f}",
                f"{compared['difference']:.1e}",
                f"{compared['score_std']:.3f}",
                f"{trained['threshold']:.4f} / {taught['threshold']:.4f}",
                f"{trained['false_alarms']} / {taught['false_alarms']} of {taught['good']}",
                f"{trained['detected']} / {taught['detected']} of {taught['defective']}",
            ]
        )
    header = [
        "method",
        "good images",
        "I-AUROC trained",
        "I-AUROC taught",
        "largest difference of a score",
        "standard deviation of good scores",
        "thresholds",
        "false alarms",
        "detected",
    ]
    row = rows[0]
    return (
        f"{markdown_table(header, lines)}\n\n"
        f"Trained in torch, and taught without it from the same good images of {row['data']}, "
        f"starting from a bundle of {row['other']}; a fifth of the images is held out. "
        f"Pairs are trained / taught. Weights {row['compared']['weights']}."
    )


def _times(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for row in rows:
        time = row["time"]
        others = "unknown" if time["others"] is None else f"{time['others']:.0%}"
        lines.append(
            [
                row["method"],
                time["images"],
                time["folds"],
                time["seconds"],
                time["cpu_seconds"],
                others,
            ]
        )
    header = ["method", "pictures", "folds", "seconds", "CPU seconds", "used by other processes"]
    cores = rows[0]["cores"]
    return (
        f"{markdown_table(header, lines)}\n\n"
        f"`flawline teach` from start to end, with its self-test, on {cores} cores of "
        f"{rows[0]['cpu']}."
    )


def _appended(row: Mapping[str, Any]) -> str:
    lines = []
    for step in row["append"]:
        lines.append(
            [
                step["step"],
                f"{step['auroc']:.4f}",
                f"{step['threshold']:.4f}",
                f"{step['false_alarms']} of {step['good']}",
                f"{step['detected']} of {step['defective']}",
            ]
        )
    first = row["append"][0]
    header = ["detector", "I-AUROC", "threshold", "false alarms", "detected"]
    begun = "trained on" if first.get("trained") else "taught from"
    text = (
        f"{row['method']} that was {begun} the first {first['pictures']} good images of "
        f"{row['data']}. It rejects {first['rejected']} of {first['judged']} later ones"
    )
    if first["rejects"]:
        text += (
            f", of which {first['rejects']} are added; {first['kept']} others set the thresholds. "
            f"None of these is among the test images"
        )
        text += _growth(row["append"][-1])
    else:
        text += ", so that there is nothing to add"
    return f"{markdown_table(header, lines)}\n\n{text}."


def _growth(step: Mapping[str, Any]) -> str:
    """Return by what the bundle has grown; nothing for rows of earlier runs."""
    if "time_ratio" not in step:
        return ""
    what = f"{step['exempted']} patches are exempted; the" if step["exempted"] else "The"
    return (
        f". {what} FP32 graph has {step['megabytes']:.1f} MB more, and takes "
        f"{step['time_ratio']:.2f} times as long in one thread of ONNX Runtime"
    )
