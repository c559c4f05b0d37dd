"""SSNF as its authors' code and FrEIA compute it, and the other form of its couplings."""

from __future__ import annotations

from torch import nn

from flawline.benchmarks.published.flow_forms import (
    NOTES,
    ExportableFlows,
    PublishedFlows,
    literal_by_index,
    perturb,
)
from flawline.benchmarks.published.form import PublishedCode
from flawline.train.methods.ssnf import SSNF


def fused_gathered(method: SSNF) -> nn.Module:
    """Return the fused form whose couplings gather their halves."""
    return method.fused("gathered")


PUBLISHED_CODE = PublishedCode[SSNF](
    as_published=PublishedFlows,
    as_literal=ExportableFlows,
    alternatives={
        "(d) fused, gathered": fused_gathered,
        "(e) literal, by index": literal_by_index,
    },
    perturb=perturb,
    notes=(*NOTES, "(c) is what ships: padded; (d) is another form."),
)
