"""The templates of reports."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from flawline.benchmarks.bundle_report.formatting import number, percent

FOLDER = Path(__file__).parent


def template(folder: Path, name: str) -> Template:
    """Return a template of a folder, which may use those of the bundle report."""
    environment = Environment(
        loader=FileSystemLoader([folder, FOLDER]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        # A misspelled name in the template raises instead of printing nothing.
        undefined=StrictUndefined,
    )
    environment.filters["number"] = number
    environment.filters["percent"] = percent
    return environment.get_template(name)
