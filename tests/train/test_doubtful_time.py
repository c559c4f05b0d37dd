"""What the list of doubtful images adds to a training."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the train extra")

from builders import write_squares
from torch import Tensor

from flawline.train import fit
from flawline.train.backbones.base import Backbone
from flawline.train.data import open_data

pytestmark = pytest.mark.torch


def test_a_method_of_one_pass_computes_the_features_of_an_image_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_squares(tmp_path / "squares")
    computed: list[int] = []
    compute = Backbone._levels_of

    def counted(backbone: Backbone, image: Tensor) -> tuple[Tensor, ...]:
        computed.append(len(image))
        return compute(backbone, image)

    monkeypatch.setattr(Backbone, "_levels_of", counted)
    words = ["--method", "padim", "--weights", "texture", "--size", "64", "--folds", "0"]
    assert fit.main(["--data", str(data), "--out", str(tmp_path / "part.pt"), *words]) == 0
    messages = capsys.readouterr().err
    assert "comparing the images" in messages
    assert sum(computed) == len(open_data(data).train_good)
