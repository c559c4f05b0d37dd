"""The data sets that default settings were tuned on: results on them are no independent test.

A method names its sets in `Method.tuned_on`. Where the records of its trials do not say which of
the sets that were tried decided, all of them count.
"""

from __future__ import annotations

from pathlib import Path

from flawline.train.data.dataset import data_name
from flawline.train.data.demo import PRODUCTS
from flawline.train.method import Method

DEMO = "demo"
# Name of a tuning set -> names of folders that hold it, or a part of it. The bottle is a subset of
# MVTec AD's, whose folder is called bottle.
TUNING_SETS: dict[str, tuple[str, ...]] = {
    DEMO: (DEMO, *PRODUCTS),
    "elpv_mono": ("elpv_mono",),
    "mvtec_bottle": ("mvtec_bottle", "bottle"),
    "rotating_bearing": ("rotating_bearing",),
}


def was_tuned_on(method: type[Method], data: Path) -> bool:
    """Whether the default settings of a method were chosen by results on the set in this folder.

    A set is known by the name of its folder alone, so that a renamed one is not recognised.
    """
    name = data_name(data).casefold()
    return any(name in TUNING_SETS[tuning_set] for tuning_set in method.tuned_on)
