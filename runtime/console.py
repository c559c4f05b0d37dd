"""What commands tell people: one line at a time on stderr, since stdout belongs to results."""

import sys


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
