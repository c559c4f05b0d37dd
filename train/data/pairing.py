"""Masks by the names of their images, and a report of those that fit no image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flawline.cameras.decode import list_images
from flawline.cameras.folder_names import named_subfolders, subfolders_of_kind
from flawline.cameras.listing import count_of
from flawline.train.data.dataset import Sample

# Endings that a mask's name adds to its image's name, in the order in which they are tried.
MASK_ENDINGS = ("_mask", "_label", "_gt", "")
EXPECTED_NAMES = "NAME_mask, NAME_label, NAME_gt or NAME"


class MaskFolder:
    """A folder of masks that lie at the same places as their images in another folder."""

    def __init__(self, folder: Path) -> None:
        self.masks = list_images(folder)
        self._exact: dict[str, Path] = {}
        self._any_case: dict[str, Path] = {}
        for path in self.masks:
            name = path.relative_to(folder).with_suffix("").as_posix()
            self._exact[name] = path
            self._any_case[name.casefold()] = path

    def find(self, image: Path) -> Path | None:
        """Return the mask of an image, with any ending and file type, or None.

        `image` is relative to the folder of the images. A name in the same case comes first.
        """
        names = []
        for ending in MASK_ENDINGS:
            names.append(image.with_name(image.stem + ending).as_posix())
        for name in names:
            if name in self._exact:
                return self._exact[name]
        for name in names:
            if name.casefold() in self._any_case:
                return self._any_case[name.casefold()]
        return None


class Masks:
    """The masks of a product. `roots` are the folders that hold one folder of masks per defect."""

    def __init__(self, roots: Sequence[Path], defects: int) -> None:
        """With one kind of defect only, its masks may also lie directly in a root."""
        self._roots = roots
        self._flat = defects == 1
        self._defective = 0
        self._without = 0
        self._used: set[Path] = set()

    def samples(self, images: Sequence[Path], folder: Path) -> list[Sample]:
        """Pair the images of a kind of defect with their masks; the folder's name is the kind."""
        sources = []
        for root in self._roots:
            for source in named_subfolders(root, folder.name) or self._flat_root(root):
                sources.append(MaskFolder(source))
        for source in subfolders_of_kind(folder, "mask"):
            sources.append(MaskFolder(source))
        samples = []
        for image in images:
            mask = _find(sources, image.relative_to(folder))
            samples.append(Sample(image, folder.name, mask))
            self._defective += 1
            if mask is None:
                self._without += 1
            else:
                self._used.add(mask)
        return samples

    def _flat_root(self, root: Path) -> list[Path]:
        if self._flat:
            return [root]
        return []

    def notes(self, product: Path) -> list[str]:
        """Return a sentence about masks without image and images without mask, if there are any."""
        unused = 0
        names = []
        for root in self._roots:
            rest = set(list_images(root)) - self._used
            unused += len(rest)
            if rest:
                names.append(root.relative_to(product).as_posix())
        if not unused:
            if self._used and self._without:
                return [f"{self._without} of {self._defective} defective images have no mask"]
            return []
        where = f"{', '.join(names)} holds {count_of(unused, 'mask')} of no defective image"
        if not self._without:
            return [where]
        return [
            f"{self._without} of {self._defective} defective images have no mask although {where}; "
            f"a mask is named {EXPECTED_NAMES} and lies in {names[0]}/DEFECT"
        ]


def _find(sources: Sequence[MaskFolder], image: Path) -> Path | None:
    for source in sources:
        mask = source.find(image)
        if mask is None and len(image.parts) > 1:
            # MVTec 3D-AD: DEFECT/rgb/NAME.png has its mask in DEFECT/gt/NAME.png.
            mask = _find_next_to_colour(source, image)
        if mask is not None:
            return mask
    return None


def _find_next_to_colour(source: MaskFolder, image: Path) -> Path | None:
    first, *rest = image.parts
    if first.casefold() != "rgb":
        return None
    return source.find(Path(*rest))
