"""The study of anomalib's models: what of it runs without anomalib."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the train extra")

from flawline.benchmarks.studies.anomalib_models import __main__ as study
from flawline.train import METHODS, metrics

pytestmark = pytest.mark.torch


def test_the_accuracy_is_that_of_the_projects_own_metric() -> None:
    random = np.random.default_rng(0)
    labels = random.random(60) > 0.4
    # With ties, and far outside [0, 1].
    scores = np.round(5 * random.random(60) + labels, 1) * 100
    expected = metrics.auroc(labels, scores)
    assert study.auroc(labels.tolist(), scores.tolist()) == pytest.approx(expected, abs=1e-12)


def test_every_model_is_compared_with_a_method() -> None:
    assert set(study.MODELS) <= set(METHODS)


def test_it_runs_in_an_environment_without_this_project() -> None:
    """It imports nothing but the standard library before its arguments are read."""
    tree = ast.parse(Path(study.__file__).read_text())
    imported = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            imported |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module or "")
    assert imported == {"__future__", "argparse", "collections.abc", "json", "pathlib", "sys"} | {
        "time",
        "typing",
    }
    assert "flawline" not in {name.partition(".")[0] for name in imported}
