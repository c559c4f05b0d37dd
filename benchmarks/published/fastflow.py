"""FastFlow as FrEIA's code computes it, and the other forms of its couplings."""

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
from flawline.train.methods.fastflow import FastFlow


def fused_padded(method: FastFlow) -> nn.Module:
    """Return the fused form whose couplings compute all channels."""
    return method.fused("padded")


def fused_gathered(method: FastFlow) -> nn.Module:
    """Return the fused form whose couplings gather their halves."""
    return method.fused("gathered")


PUBLISHED_CODE = PublishedCode[FastFlow](
    as_published=PublishedFlows,
    as_literal=ExportableFlows,
    alternatives={
        "(d) fused, padded": fused_padded,
        "(d) fused, gathered": fused_gathered,
        "(e) literal, by index": literal_by_index,
    },
    perturb=perturb,
    notes=(
        *NOTES,
        "(c) is what ships: a product on layer1, gathered on the others; (d) are other forms.",
    ),
)
