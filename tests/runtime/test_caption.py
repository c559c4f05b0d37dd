"""Captions: what they say, and that they are readable on images of every size."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
import pytest

from flawline.runtime.caption import BACKGROUND_BGR, SMALLEST_SIDE, magnified, with_caption
from flawline.runtime.verdict import Verdict

SIZES = [(64, 64), (40, 50), (1, 1), (16, 900), (900, 16), (480, 640), (1500, 2000)]


def verdict(score: float, threshold: float) -> Verdict:
    return Verdict(score, threshold, score > threshold, np.zeros((64, 64), np.float32))


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[int, int], float]]:
    """Every text that is drawn, with its place and scale."""
    texts = []
    put_text = cv2.putText

    def record(
        image: np.ndarray, text: str, place: tuple[int, int], font: int, scale: float, *rest: object
    ) -> None:
        texts.append((text, place, scale))
        put_text(image, text, place, font, scale, *rest)

    monkeypatch.setattr(cv2, "putText", record)
    return texts


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_a_caption_is_readable_and_hides_nothing(
    height: int, width: int, written: list[tuple[str, tuple[int, int], float]]
) -> None:
    image = magnified(np.full((height, width, 3), 99, np.uint8))
    before = image.copy()
    result = with_caption(image, verdict(23.594, 0.5391))
    assert (result[: image.shape[0], : image.shape[1]] == before).all()
    assert [text for text, _, _ in written] == ["anomalous", "score 23.6", "threshold 0.539"]
    boxes = []
    for text, (left, bottom), scale in written:
        (text_width, text_height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
        # Nine pixels are enough for a capital; seen as a whole, 1 % of the longer side is.
        assert text_height >= max(9, 0.01 * max(image.shape[:2]))
        assert left + text_width <= result.shape[1]
        assert image.shape[0] <= bottom - text_height < bottom <= result.shape[0]
        boxes.append((left, bottom, left + text_width))
    for first, second in pairwise(boxes):
        assert second[1] > first[1] or second[0] > first[2]
    # The strip takes little of a large image.
    if min(height, width) > 400:
        assert result.shape[0] < 1.08 * height
    assert (result != BACKGROUND_BGR).any(axis=-1)[image.shape[0] :].any()


def test_a_small_image_is_repeated_by_a_whole_factor() -> None:
    image = np.arange(64 * 48 * 3, dtype=np.uint8).reshape(64, 48, 3)
    large = magnified(image)
    assert large.shape == (320, 240, 3)
    assert (large[::5, ::5] == image).all()
    enough = np.zeros((10, SMALLEST_SIDE), np.uint8)
    assert magnified(enough) is enough
    assert magnified(image[..., 0]).shape == (320, 240)


@pytest.mark.parametrize(
    ("score", "threshold", "texts"),
    [
        (0.43, 0.82, ["good", "score 0.43", "threshold 0.82"]),
        (0.82, 0.82, ["good", "score 0.82", "threshold 0.82"]),
        # Enough digits to show which of the two is larger.
        (0.820013, 0.82001, ["anomalous", "score 0.820013", "threshold 0.82001"]),
        (1.5e9, -2e-7, ["anomalous", "score 1.5e+09", "threshold -2e-07"]),
    ],
)
def test_the_texts_explain_the_verdict(
    score: float,
    threshold: float,
    texts: list[str],
    written: list[tuple[str, tuple[int, int], float]],
) -> None:
    with_caption(np.zeros((400, 400, 3), np.uint8), verdict(score, threshold))
    assert [text for text, _, _ in written] == texts
