"""PatchCore in the fusion study. Its authors' code is not included."""

from __future__ import annotations

from flawline.benchmarks.published.form import PublishedCode
from flawline.train.methods.patchcore import PatchCore

PUBLISHED_CODE = PublishedCode[PatchCore](
    # Its adaptive pooling is not by whole factors, which is all that the exporter knows.
    literal_exports=False,
    notes=(
        "Head: everything after the feature maps, with a small bank. (b) has no ONNX form, and",
        "torch counts no MACs for its distances.",
    ),
)
