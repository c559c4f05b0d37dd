"""Stands for `flawline teach`, as FAKE_TEACHER says: copies a bundle, fails, or takes for ever."""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path


def main() -> int:
    what, _, path = os.environ["FAKE_TEACHER"].partition(":")
    print("pictures:", *sorted(path.name for path in Path().iterdir()), file=sys.stderr, flush=True)
    if what == "wait":
        time.sleep(600)
    if what == "fail":
        print("flawline teach: the camera is not there", file=sys.stderr)
        return 2
    words = sys.argv[1:]
    print(*words, f"priority {os.nice(0)}", file=sys.stderr)
    shutil.copytree(path, words[words.index("--out") + 1])
    return 0


if __name__ == "__main__":
    sys.exit(main())
