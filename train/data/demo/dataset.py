"""The data set on disk, in the layout of MVTec AD: which pictures it holds, and writing them once."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from flawline.train.data.demo.products import PRODUCTS, VERSION, render

_MARKER = "demo.json"


def _write(path: Path, image: np.ndarray) -> None:
    done, data = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    if not done:
        raise OSError(f"cannot encode {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        data.tobytes()
    )  # and not cv2.imwrite, which only returns False when the disk is full


def _plan(
    product: str, train_good: int, test_good: int, per_defect: int
) -> list[tuple[str, str | None, str]]:
    """(folder, defect, stem) of each picture of a product; the place in the list makes its seed."""
    groups = [
        ("train/good", None, train_good),
        ("test/good", None, test_good),
        *((f"test/{kind}", kind, per_defect) for kind in PRODUCTS[product]),
    ]
    return [(folder, kind, f"{k:03d}") for folder, kind, count in groups for k in range(count)]


def _already(root: Path, wanted: dict[str, object], files: set[Path]) -> bool:
    """Whether `root` holds the wanted set complete; ValueError if it holds another one."""
    try:
        found = json.loads((root / _MARKER).read_text(encoding="utf-8"))
    except FileNotFoundError:
        found = wanted  # an interrupted run: to be written anew unless other pictures lie there
    except ValueError:
        found = None
    there = {path for product in PRODUCTS for path in (root / product).rglob("*.png")}
    if found != wanted or there - files:
        raise ValueError(f"{root} holds another demo set: delete that folder or choose another")
    return (root / _MARKER).exists() and there == files


def write_demo(
    root: Path,
    products: Sequence[str] = tuple(PRODUCTS),
    train_good: int = 100,
    test_good: int = 30,
    per_defect: int = 10,
    size: int = 320,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the data set below `root` and return `root`; an equal complete set is left as it is.

    `progress` is called with the pictures done and their total. Raises ValueError for bad numbers, an unknown
    product or a folder that holds another demo set, OSError where a file cannot be written.
    """
    unknown = [name for name in products if name not in PRODUCTS]
    if unknown or not products:
        raise ValueError(
            f"unknown product {', '.join(unknown) or '(none)'}; known are {', '.join(PRODUCTS)}"
        )
    if min(train_good, test_good, per_defect, seed) < 0 or size < 64:
        raise ValueError("the counts and the seed must be 0 or more and the size 64 pixels or more")
    wanted = {
        "version": VERSION,
        "products": [name for name in PRODUCTS if name in products],
        "seed": seed,
        "train_good": train_good,
        "test_good": test_good,
        "per_defect": per_defect,
        "size": size,
    }
    jobs = [
        (
            root / name / folder / f"{stem}.png",
            root / name / f"ground_truth/{kind}/{stem}_mask.png",
            name,
            kind,
            number,
        )
        for name in PRODUCTS
        if name in products
        for number, (folder, kind, stem) in enumerate(
            _plan(name, train_good, test_good, per_defect)
        )
    ]
    if _already(
        root, wanted, {job[0] for job in jobs} | {job[1] for job in jobs if job[3] is not None}
    ):
        return root
    for done, (path, mask_path, name, kind, number) in enumerate(jobs, 1):
        image, mask = render(name, kind, (seed << 24) + number, size)
        _write(path, image)
        if kind is not None:
            _write(mask_path, mask)
        if progress is not None:
            progress(done, len(jobs))
    root.mkdir(parents=True, exist_ok=True)
    (root / _MARKER).write_text(json.dumps(wanted, indent=1) + "\n", encoding="utf-8")
    return root
