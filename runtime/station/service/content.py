"""The station file of a new station, whose paths begin in the folder of the station."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from flawline.runtime.bundle import Bundle
from flawline.runtime.outputs import OUTPUTS, missing

BUNDLES = "bundles"
TOKEN_FILE = "web-token"
# Pictures of rejected parts with their records, limited so that the disk cannot fill up.
PICTURES = "overlays:rejected?frames=rejected&max_mb=2000&when_full=replace&record=1"
# Where no picture can be painted.
LINES = "jsonl:results.jsonl"
# The page shows the stream to the browsers of the machine itself.
PAGE = f"web:127.0.0.1:8080?token_file={TOKEN_FILE}"
LONGEST_NAME = 24
UNNAMED = "part"


def station_content(bundle: Bundle, cameras: Sequence[str]) -> str:
    """Return the text of a station file, for cameras with these URIs."""
    recipe = recipe_name(bundle.path)
    outputs = [PICTURES if bundle.has_map else LINES]
    if has_page():
        outputs.append(PAGE)
    content = {
        "recipe": recipe,
        "recipes": [{"name": recipe, "bundle": f"{BUNDLES}/{recipe}"}],
        "cameras": [
            {"name": f"camera{number}", "uri": uri} for number, uri in enumerate(cameras, 1)
        ],
        "outputs": outputs,
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def has_page() -> bool:
    """Whether there is an output that shows a stream to browsers, with nothing missing."""
    name = PAGE.partition(":")[0]
    return name in OUTPUTS and missing(name) is None


def recipe_name(bundle: Path) -> str:
    """Return a name for the recipe of a bundle, which has fewer letters than that of a folder."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", bundle.resolve().name).strip("-.")[:LONGEST_NAME]
    return name or UNNAMED
