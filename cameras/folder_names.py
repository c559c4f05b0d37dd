"""Names of folders, as data sets from many sources spell them: good, bad or masks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from flawline.cameras.listing import subfolders

FolderKind = Literal["good", "bad", "mask"]


def _texts(text: str) -> frozenset[str]:
    return frozenset(text.split())


# A folder is compared as a whole name, without digits, case and punctuation: 0_Normal is normal.
GOOD_NAMES = _texts(
    "good goods goodparts ok okay normal nominal pass passed io nondefective nodefect nodefects "
    "defectfree anomalyfree noanomaly faultless flawless gut gutteile 良品 正常 合格"
)
BAD_NAMES = _texts(
    "ko ng nio nok nogood notgood notok fail fails failed nonok schlecht schlechtteile "
    "不良 不良品 異常 异常 缺陷 不合格"
)
MASK_NAMES = _texts(
    "mask masks groundtruth groundtruths gt label labels annotation annotations "
    "segmentation segmentations"
)
# A folder with one of these words in its name is good or bad as well, for example bad_parts.
GOOD_WORDS = _texts("good ok normal")
BAD_WORDS = _texts(
    "bad ng abnormal anomaly anomalies anomalous defect defects defective faulty reject rejects "
    "rejected scrap broken damaged crack cracks scratch scratches dent dents contamination"
)
NEGATIONS = _texts("no not non un")


def folder_kind(name: str) -> FolderKind | None:
    """Return what the images in a folder of this name are; None if the name does not say."""
    words = re.findall(r"[^\W\d_]+", name.casefold())
    joined = "".join(words)
    if joined in MASK_NAMES:
        return "mask"
    if joined in BAD_NAMES:
        return "bad"
    if joined in GOOD_NAMES:
        return "good"
    if BAD_WORDS.intersection(words):
        return "bad"
    if not GOOD_WORDS.intersection(words):
        return None
    # Not the good ones, whatever the rest of the name is: treating them as bad is safe.
    if NEGATIONS.intersection(words):
        return "bad"
    return "good"


def subfolders_of_kind(folder: Path, kind: FolderKind | None) -> list[Path]:
    """List the folders directly in a folder whose names are of a kind."""
    folders = []
    for path in subfolders(folder):
        if folder_kind(path.name) == kind:
            folders.append(path)
    return folders


def named_subfolders(folder: Path, name: str) -> list[Path]:
    """List the folders directly in a folder that have a name in any case, the exact one first."""
    folders = []
    for path in subfolders(folder):
        if path.name.casefold() == name.casefold():
            folders.append(path)
    return sorted(folders, key=lambda path: path.name != name)
