"""Small networks as the studies build them, for the tests of their forms."""

from __future__ import annotations

import copy
from functools import cache

from flawline.benchmarks.studies.network import build_network
from flawline.benchmarks.studies.options import NetworkOptions
from flawline.train.method import Method

# Keeps every method small; SimpleNet's pooling must be by whole factors.
SETTINGS = {
    "simplenet": ("level_dim=64", "target_dim=64", "hidden=32"),
    "supersimplenet": ("hidden=32",),
    "glass": ("level_dim=64", "target_dim=64", "hidden=32"),
    "fastflow": ("blocks=2",),
    "ssnf": ("blocks=2",),
    "cflow": ("blocks=2",),
    "differnet": ("blocks=2", "hidden=32"),
}
FLOWS = ("fastflow", "ssnf")


def options(
    method: str, size: int = 64, seed: int = 0, settings: tuple[str, ...] = ()
) -> NetworkOptions:
    return NetworkOptions(
        method=method,
        backbone="resnet18",
        size=size,
        weights="random",
        data=None,
        seed=seed,
        settings=settings or SETTINGS.get(method, ()),
    )


@cache
def _built(network: NetworkOptions) -> Method:
    method, _ = build_network(network, count=1)
    return method


def small_network(method: str, size: int = 64, seed: int = 0) -> Method:
    """A network of ResNet18 with random weights; a copy, so that a test may change it."""
    return copy.deepcopy(_built(options(method, size, seed)))
