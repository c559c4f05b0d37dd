"""Synthetic anomalies: defects made of good pictures, for methods that want to see what they shall refuse."""

from flawline.train.anomalies.blend import (
    Blend,
    Blended,
    choose_product,
    guess_product,
    known_products,
    settings,
)

__all__ = ["Blend", "Blended", "choose_product", "guess_product", "known_products", "settings"]
