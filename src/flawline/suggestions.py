"""The known name that a mistyped one probably stands for."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return " (did you mean NAME?)" for the closest known name, or "" if none is close."""
    by_lower_case = {candidate.casefold(): candidate for candidate in known}
    matches = get_close_matches(name.casefold(), by_lower_case, n=1)
    if not matches:
        return ""
    return f" (did you mean {by_lower_case[matches[0]]}?)"
