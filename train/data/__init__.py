"""Data sets: folder layouts, hold-out, prepared images and their cache, the built-in demo data.

Nothing here imports torch.
"""

from flawline.train.data.cache import CachedImages
from flawline.train.data.images import PreparedImages, describe_sizes, hold_out, read_mask
from flawline.train.data.layouts import DataError, DataSet, Sample, open_data

__all__ = [
    "CachedImages",
    "DataError",
    "DataSet",
    "PreparedImages",
    "Sample",
    "describe_sizes",
    "hold_out",
    "open_data",
    "read_mask",
]
