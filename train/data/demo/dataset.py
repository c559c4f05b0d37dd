"""The demo data on disk, in the layout of MVTec AD: which images it has, and writing them once."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np

from flawline.train.data.demo.products import PRODUCTS, SMALLEST_SIZE, VERSION, render
from flawline.train.data.layouts import DataError

# Written last, so that it marks a complete set; it says which set the folder holds.
MARKER = "demo.json"


@dataclass(frozen=True)
class DemoSet:
    """The contents of a demo data set: numbers of images per product, and per defect of each."""

    version: int
    products: list[str]
    seed: int
    train_good: int
    test_good: int
    per_defect: int
    size: int


@dataclass(frozen=True)
class _Job:
    """One image to render, and the files that it goes to."""

    product: str
    defect: str | None
    seed: int
    image: Path
    mask: Path | None


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
    """Write the demo data set below `root` and return `root`.

    An equal and complete set is left as it is; an interrupted one is completed. `progress` is
    called with the number of images written and their total. Raises DataError for an unknown
    product, bad numbers, a folder that holds another demo set, and a file that cannot be written.
    """
    _check(products, (train_good, test_good, per_defect, seed), size)
    ordered = [name for name in PRODUCTS if name in products]
    demo_set = DemoSet(VERSION, ordered, seed, train_good, test_good, per_defect, size)
    jobs = _plan(root, demo_set)
    if _is_complete(root, demo_set, jobs):
        return root

    for done, job in enumerate(jobs, 1):
        image, mask = render(job.product, job.defect, job.seed, size)
        _write(job.image, _encode_png(image))
        if job.mask is not None:
            _write(job.mask, _encode_png(mask))
        if progress is not None:
            progress(done, len(jobs))
    text = json.dumps(asdict(demo_set), indent=1)
    _write(root / MARKER, f"{text}\n".encode())
    return root


def _check(products: Sequence[str], numbers: Sequence[int], size: int) -> None:
    known = ", ".join(PRODUCTS)
    if not products:
        raise DataError(f"no product is named; known are {known}")
    for name in products:
        if name not in PRODUCTS:
            raise DataError(f"unknown product {name}; known are {known}")
    if min(numbers) < 0 or size < SMALLEST_SIZE:
        raise DataError(
            "the numbers of images and the seed must be 0 or more "
            f"and the size {SMALLEST_SIZE} pixels or more"
        )


def _plan(root: Path, demo_set: DemoSet) -> list[_Job]:
    """List the images of all products; an image's place in its product's list makes its seed."""
    jobs = []
    for product in demo_set.products:
        folder = root / product
        seed = demo_set.seed << 24  # far from the seeds of any other demo set
        for group, defect, count in _groups(product, demo_set):
            for index in range(count):
                image = folder / group / f"{index:03d}.png"
                mask = None
                if defect is not None:
                    mask = folder / "ground_truth" / defect / f"{index:03d}_mask.png"
                jobs.append(_Job(product, defect, seed, image, mask))
                seed += 1
    return jobs


def _groups(product: str, demo_set: DemoSet) -> list[tuple[str, str | None, int]]:
    """Return the subfolder, the defect and the number of images of each group of a product."""
    groups: list[tuple[str, str | None, int]] = [
        ("train/good", None, demo_set.train_good),
        ("test/good", None, demo_set.test_good),
    ]
    for defect in PRODUCTS[product].defects:
        groups.append((f"test/{defect}", defect, demo_set.per_defect))
    return groups


def _is_complete(root: Path, demo_set: DemoSet, jobs: Sequence[_Job]) -> bool:
    """Say whether `root` holds all files of the set; raise DataError if it holds another set."""
    expected = {job.image for job in jobs}
    expected.update(job.mask for job in jobs if job.mask is not None)
    # Search the folders of all products: a set of other products is another set, too.
    present: set[Path] = set()
    for product in PRODUCTS:
        present.update((root / product).rglob("*.png"))

    marker = root / MARKER
    is_marked = marker.exists()
    is_other = is_marked and _read_marker(marker) != asdict(demo_set)
    # Without the marker, files of this set are from an interrupted run, and it will be completed.
    if is_other or present - expected:
        raise DataError(f"{root} holds another demo set; delete that folder or choose another")
    return is_marked and present == expected


def _read_marker(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None


def _encode_png(image: np.ndarray) -> bytes:
    _, data = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    return data.tobytes()


def _write(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror}); "
            "choose another folder or free disk space"
        ) from error
