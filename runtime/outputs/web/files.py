"""The files of the page, as they are installed: HTML, styles, scripts and the mark."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).with_name("static")
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True)
class PageFile:
    """A file with its media type. `tag` changes with its content."""

    content: bytes
    kind: str
    tag: str


def page_files() -> dict[str, PageFile]:
    """Return all files of the page by name."""
    files = {}
    for path in sorted(FOLDER.iterdir()):
        if path.suffix in KINDS:
            content = path.read_bytes()
            tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
            files[path.name] = PageFile(content, KINDS[path.suffix], tag)
    return files
