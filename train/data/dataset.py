"""The images of a product as every layout gives them, and the line that describes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flawline.cameras.listing import count_of
from flawline.runtime.good_images import DataError as DataError
from flawline.runtime.good_images import GoodImages as GoodImages


def data_name(folder: Path) -> str:
    """Return the name of a data set, that of its folder, which may be given as `.`."""
    return folder.resolve().name


@dataclass(frozen=True)
class Sample:
    """A test image.

    `defect` names the kind of defect and is None for a good part. `mask` is an image file in which
    defective pixels are above 0, or None where the data set has no mask.
    """

    path: Path
    defect: str | None
    mask: Path | None = None


@dataclass(frozen=True)
class DataSet:
    """The images of one product: good ones to train on, and labelled ones to test with.

    `left_out` has one phrase for each kind of file that was not taken. `notes` are sentences about
    what is probably a mistake in the data, for example masks that belong to no image. `excluded`
    are good images that a list leaves out; they are in neither of the others.
    """

    root: Path
    train_good: GoodImages
    test: tuple[Sample, ...]
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    excluded: tuple[Path, ...] = ()

    def describe(self) -> list[str]:
        """Return log lines: what was taken and what was left out, in one line, then the notes."""
        taken = f"{count_of(len(self.train_good), 'good image')} to train and set the threshold"
        left_out = ", ".join(self.left_out) or "nothing"
        lines = [f"data {self.root}: {taken}; {_describe_test(self.test)}; left out: {left_out}"]
        for note in self.notes:
            lines.append(f"note: {note}")
        return lines


def _describe_test(test: Sequence[Sample]) -> str:
    if not test:
        return "no test images"
    kinds: Counter[str] = Counter()
    masks = 0
    for sample in test:
        if sample.defect is not None:
            kinds[sample.defect] += 1
        if sample.mask is not None:
            masks += 1
    good = len(test) - kinds.total()
    text = f"{good} good and {kinds.total()} defective ones for the test"
    if kinds:
        parts = []
        for name, count in kinds.items():
            parts.append(f"{name} {count}")
        text += f" ({', '.join(parts)}; {count_of(masks, 'mask')})"
    return text
