"""What is watched of the frames of a stream, and what a change of each means."""

from __future__ import annotations

from dataclasses import dataclass

PRODUCT = "product"
POSITION = "position"
LIGHT = "light"
FOCUS = "focus"
SCORES = "scores"

# What to do about each warning.
REMEDIES = {
    PRODUCT: "check that the bundle or the recipe is that of this product",
    POSITION: "check the camera and the fixture of the part, or train with images of this place",
    LIGHT: "check the lamp, its reflectors and the exposure, or train with images of this light",
    FOCUS: "clean and focus the lens, and look for vibration, or train with such images",
    SCORES: "look at the last parts and their material; if they are good, calibrate or train again",
}
# In the order in which a cause explains changes of those after it.
CAUSES = tuple(REMEDIES)

LOW = -1
HIGH = 1


@dataclass(frozen=True)
class Quantity:
    """A quantity of a frame, and which change of it matters.

    Attributes:
        cause: the warning that it gives, one of CAUSES.
        label: how messages call it.
        sides: the directions of a change that matters, LOW and HIGH.
        least: a smaller change from the middle of the good images never matters.
        least_share: the same, as a share of that middle.
        margin: how far the range of the good images is extended, in distances from its quarter to
            its end. It is that of few images, and what changes slowly stays beyond it for long.
        explained_by: another cause that changes the quantity, too.
        unit: what follows a number in a message.
        digits: the decimals of a number in a message.
    """

    cause: str
    label: str
    sides: tuple[int, ...] = (LOW, HIGH)
    least: float = 0.0
    least_share: float = 0.0
    margin: float = 1.0
    explained_by: str | None = None
    unit: str = ""
    digits: int = 2

    def least_change(self, middle: float) -> float:
        """Return the smallest change that matters, where the good images have this middle."""
        return max(self.least, self.least_share * abs(middle))

    def text(self, value: float) -> str:
        """Return a value as messages print it."""
        return f"{value:.{self.digits}f}{self.unit}"


SCORE = "score"
ACROSS = "across"
DOWN = "down"
LIKENESS = "likeness"
TEXTURE = "texture"
FINENESS = "fineness"
HALF_FINENESS = "half_fineness"

QUANTITIES = {
    "brightness": Quantity(LIGHT, "mean grey level", least=2.0, least_share=0.03, digits=1),
    "contrast": Quantity(
        LIGHT,
        "contrast in grey levels",
        least=1.0,
        least_share=0.05,
        # A blurred picture of fine structures has less contrast.
        explained_by=FOCUS,
        digits=1,
    ),
    "red": Quantity(LIGHT, "red to green", least=0.03),
    "blue": Quantity(LIGHT, "blue to green", least=0.03),
    # An octave is half of the detail's frequency.
    FINENESS: Quantity(
        FOCUS,
        "fineness of detail, beside what coarse detail suggests,",
        sides=(LOW,),
        least=0.15,
        unit=" octaves",
    ),
    HALF_FINENESS: Quantity(
        FOCUS,
        "fineness at half the size, beside what coarse detail suggests,",
        sides=(LOW,),
        least=0.15,
        unit=" octaves",
    ),
    ACROSS: Quantity(POSITION, "shift to the right", least=0.5, unit=" % of the width"),
    DOWN: Quantity(POSITION, "shift downwards", least=0.5, unit=" % of the height"),
    LIKENESS: Quantity(PRODUCT, "correlation with the mean good image", sides=(LOW,), least=0.1),
    TEXTURE: Quantity(
        PRODUCT, "distance from the texture of good images", sides=(HIGH,), least=1.0
    ),
    # Few scores beyond those of all good images already change what is rejected.
    SCORE: Quantity(SCORES, "score", margin=0.5, digits=4),
}
