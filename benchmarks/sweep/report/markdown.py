"""The report of a sweep as Markdown, with the figures as files beside it."""

from __future__ import annotations

from flawline.benchmarks.sweep.report.content import MachineSection, Report


def markdown_of(report: Report) -> str:
    """Return the whole report as Markdown; published figures and pictures are in the page alone."""
    parts = ["# Sweep", f"Made {report.made}. Published figures and pictures are in report.html."]
    if report.plan:
        parts.append("\n".join(f"- {name}: {value}" for name, value in report.plan))
    for section in report.machines:
        parts += _section(section)
    if report.failures is not None:
        parts += [f"## {report.failures.title}", report.failures.markdown()]
    return "\n\n".join(parts) + "\n"


def _section(section: MachineSection) -> list[str]:
    parts = [f"## {section.title}", "\n".join(f"- {fact}" for fact in section.facts)]
    parts += [f"![{drawing.label}]({drawing.name}.png)" for drawing in section.drawings]
    parts += section.legend
    for table in section.tables:
        parts += [f"### {table.title}", table.markdown()]
    return parts
