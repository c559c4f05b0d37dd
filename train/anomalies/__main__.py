"""python -m train.augment: a contact sheet of the synthetic anomalies that a method trains with, to look at first."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import cv2
import numpy as np

from flawline.cameras import CameraError
from flawline.runtime.console import log
from flawline.runtime.files import write_atomically
from flawline.runtime.image import Geometry, Image
from flawline.train import TrainError
from flawline.train.anomalies.blend import Blended, Mask, choose_product, settings
from flawline.train.data.images import DataError, PreparedImages, open_data

METHODS = ("ssnf",)
GAP, HEAD, SIDE, FOOT = 6, 40, 92, 22  # pixels between pictures, above, left and below them
PAPER, INK, FAINT, OUTLINE = (250, 250, 250), (40, 40, 40), (120, 120, 120), (60, 60, 255)  # BGR
ROWS = ("normal", "synthetic", "blended")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")  # one line, without the usage


def outlined(image: Image, mask: Mask) -> Image:
    """The picture with a line around what the mask shows: uint8 [H, W, 3] BGR, a new array."""
    found, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return np.asarray(
        cv2.drawContours(image.copy(), found, -1, OUTLINE, max(1, len(image) // 128)), np.uint8
    )


def contact_sheet(
    columns: Sequence[tuple[Image, Image, Mask]], names: Sequence[str], title: str
) -> Image:
    """One column for each draw: the normal picture, the synthetic one, and it again with what was blended outlined.

    columns: as `Blended.sample` gives them; names: what to write below each. Returns uint8 [h, w, 3] BGR.
    """
    height, width = columns[0][0].shape[:2]
    sheet = np.empty(
        (HEAD + 3 * (height + GAP) + FOOT, SIDE + len(columns) * (width + GAP), 3), np.uint8
    )
    sheet[:] = PAPER
    _write(sheet, title, GAP, 26, 0.55, INK)
    for row, name in enumerate(ROWS):
        _write(sheet, name, GAP, HEAD + row * (height + GAP) + height // 2, 0.45, INK)
    for k, ((normal, synthetic, mask), name) in enumerate(zip(columns, names, strict=True)):
        x = SIDE + k * (width + GAP)
        for row, tile in enumerate((normal, synthetic, outlined(synthetic, mask))):
            y = HEAD + row * (height + GAP)
            sheet[y : y + height, x : x + width] = tile
        _write(
            sheet, name if mask.any() else f"{name}: no place", x, len(sheet) - 8, 0.4, FAINT, width
        )
    return sheet


def _write(
    sheet: Image,
    text: str,
    x: int,
    y: int,
    scale: float,
    colour: tuple[int, int, int],
    width: int | None = None,
) -> None:
    """Write one line of text, cut off at the width; what OpenCV's letters lack becomes a question mark."""
    width = sheet.shape[1] - x if width is None else width
    text, font = text.encode("ascii", "replace").decode(), cv2.FONT_HERSHEY_SIMPLEX
    while text and cv2.getTextSize(text, font, scale, 1)[0][0] > width:
        text = text[:-1]
    cv2.putText(sheet, text, (x, y), font, scale, colour, 1, cv2.LINE_AA)


def write_samples(args: argparse.Namespace) -> None:
    """Draw as the flags say and write the PNG. Raises TrainError, DataError, CameraError."""
    if not 1 <= args.count <= 100:
        raise TrainError(f"--count {args.count} is not from 1 to 100")
    if args.bits is not None and not 9 <= args.bits <= 16:
        raise TrainError(f"--bits {args.bits} is not from 9 to 16; 8-bit images need none")
    if not 32 <= args.size <= 2048:
        raise TrainError(f"--size {args.size} is not from 32 to 2048")
    if args.seed < 0:
        raise TrainError(f"--seed {args.seed} is below 0")
    paths = open_data(args.data).train_good
    product = choose_product(args.product, args.data)
    images = PreparedImages(paths, Geometry("stretch", args.size, args.size), args.bits)
    blended = Blended(images, settings(product), args.seed, sharpening=False)
    draws = range(args.count)
    columns = [blended.sample(draw) for draw in draws]
    names = [f"{paths[blended.index(n)].stem} + {paths[blended.index(n - 1)].stem}" for n in draws]
    title = f"{args.method}: settings of {product or 'a texture'}, seed {args.seed}. Below: picture + source of patches"
    _, png = cv2.imencode(".png", contact_sheet(columns, names, title))
    try:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(args.out, png.tobytes())
    except OSError as error:
        raise TrainError(
            f"--out {args.out}: cannot be written ({error.strerror}); choose another"
        ) from error
    empty = sum(not mask.any() for _, _, mask in columns)
    if empty:
        log(
            f"note: in {empty} of {args.count} pictures no patch found its place; is --product the right one?"
        )
    log(f"samples {args.out}")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns its exit code, 2 for a mistake of the user's."""
    parser = _Parser(
        prog="train.augment", description="Draw the synthetic anomalies that a method trains with."
    )
    parser.add_argument(
        "--method", choices=METHODS, default="ssnf", help="whose anomalies; default %(default)s"
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="MVTec-like folder, or a folder of good images"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("samples.png"),
        help="the PNG to write; default %(default)s",
    )
    parser.add_argument(
        "--product", help="whose settings; default is what the folder's name tells, or a texture's"
    )
    parser.add_argument(
        "--count", type=int, default=8, help="how many columns; default %(default)s"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--size", type=int, default=256, help="of each picture in pixels; default %(default)s"
    )
    parser.add_argument(
        "--bits", type=int, help="bits that carry the picture in 16-bit images, such as 12"
    )
    try:
        write_samples(parser.parse_args(argv))
    except (TrainError, DataError, CameraError) as error:
        log(f"{parser.prog}: {error}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
