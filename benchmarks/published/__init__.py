"""The published code of the methods, for the comparison that users make.

Each file holds the code of one method's authors as a module around the method of this project. It
shares the method's weights and is tested to give the same result. A file is found by the name of
its method; a method without one is compared with its own literal pipeline only.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

from flawline.benchmarks.published.form import PublishedCode
from flawline.train.method import Method


def find_published(method: str) -> PublishedCode[Method]:
    """Return `PUBLISHED_CODE` of the file named after the method, or the default without a file."""
    module = f"{__name__}.{method.replace('-', '_')}"
    if find_spec(module) is None:
        return PublishedCode()
    published: PublishedCode[Method] = import_module(module).PUBLISHED_CODE
    return published
