"""A Gaussian of few rows in many dimensions, with the covariance of Ledoit and Wolf.

Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance matrices" (2004):
the sample covariance is mixed with a multiple of the identity, by a share that follows from the
rows.
"""

from __future__ import annotations

import torch
from torch import Tensor


def shrunk_covariance(rows: Tensor) -> tuple[Tensor, float]:
    """Return the covariance [d, d] of centred rows [n, d], float64, and the share of the identity.

    Constant rows have the covariance 0.
    """
    n, d = rows.shape
    sample = rows.T @ rows / n
    variance = float(sample.diagonal().mean())
    identity = torch.eye(d, dtype=rows.dtype)
    distance = float((sample - variance * identity).square().sum()) / d
    fourth = float((rows.square().T @ rows.square()).sum()) / n
    error = (fourth - float(sample.square().sum())) / (d * n)
    share = 0.0
    if distance > 0:
        share = min(max(error, 0.0), distance) / distance
    return (1 - share) * sample + share * variance * identity, share


def shrunk_gaussian(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean [d] of rows [n, d], float64, and a matrix [d, d] that whitens them.

    The length of an offset from the mean times the matrix is its Mahalanobis distance. A little of
    the mean variance is added to every direction, so that constant rows have finite distances, too.
    """
    mean = rows.mean(0)
    covariance, _ = shrunk_covariance(rows - mean)
    floor = 1e-6 * float(covariance.diagonal().mean()) + 1e-12
    covariance.diagonal().add_(floor)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(covariance))
    return mean, torch.linalg.cholesky(inverse)
