"""Data sets: folder layouts, hold-out, prepared images and their cache, the built-in demo data.

Nothing here imports torch.
"""

from flawline.runtime.good_images.hold_out import hold_out
from flawline.train.data.cache import CachedImages
from flawline.train.data.dataset import DataError, DataSet, GoodImages, Sample, data_name
from flawline.train.data.images import PreparedImages, describe_images
from flawline.train.data.layouts import open_data
from flawline.train.data.masks import read_mask

__all__ = [
    "CachedImages",
    "DataError",
    "DataSet",
    "GoodImages",
    "PreparedImages",
    "Sample",
    "data_name",
    "describe_images",
    "hold_out",
    "open_data",
    "read_mask",
]
