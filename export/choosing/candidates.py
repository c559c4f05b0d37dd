"""The methods and backbones that are compared, each with the recipe of its default settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flawline.train import METHODS, TrainError
from flawline.train.backbones import BACKBONES
from flawline.train.method import resolve_method
from flawline.train.recipe import Recipe, plan

ALL = "all"
# In the name of a candidate without a backbone.
NO_BACKBONE = "none"


@dataclass(frozen=True)
class Request:
    """What is asked for, apart from the budget.

    Attributes:
        data: the folder of the data set; its test images are not used.
        methods: names in METHODS.
        backbones: names in BACKBONES; empty for the default of each method.
        weights: pretrained weights, as for `flawline train`; None for the default.
        seed: of all random choices.
        bit_depth: significant bits of 16-bit images; None for 8-bit images.
        excluded: content hashes of good images that are left out.
    """

    data: Path
    methods: tuple[str, ...]
    backbones: tuple[str, ...] = ()
    weights: str | None = None
    seed: int = 0
    bit_depth: int | None = None
    excluded: tuple[str, ...] = ()


@dataclass(frozen=True)
class Candidate:
    """A method with a backbone.

    `name` identifies it among the candidates. It is trained as `recipe` says.
    """

    name: str
    recipe: Recipe


def names_of(words: Sequence[str] | None, known: Sequence[str], flag: str) -> tuple[str, ...]:
    """Return the names that a flag lists, all known ones for `all` or None.

    Raises TrainError for an unknown name, and where one is given twice.
    """
    if words is None or list(words) == [ALL]:
        return tuple(known)
    for word in words:
        if word not in known:
            raise TrainError(f"{flag} {word} is unknown; known: {ALL}, {', '.join(known)}")
    if len(set(words)) < len(words):
        raise TrainError(f"{flag} lists a name twice; give each once")
    return tuple(words)


def method_names(words: Sequence[str] | None) -> tuple[str, ...]:
    """Return the methods that --methods lists. Raises TrainError."""
    return names_of(words, tuple(METHODS), "--methods")


def backbone_names(words: Sequence[str] | None) -> tuple[str, ...]:
    """Return the backbones that --backbones lists; none for the methods' own. Raises TrainError."""
    if words is None:
        return ()
    return names_of(words, tuple(BACKBONES), "--backbones")


def candidates_of(request: Request) -> tuple[list[Candidate], dict[str, str]]:
    """Return the candidates, and the reasons of those that cannot be trained, by their names."""
    candidates: dict[str, Candidate] = {}
    left_out: dict[str, str] = {}
    for method in request.methods:
        for backbone in request.backbones or (resolve_method(method).default_backbone,):
            name = f"{method}-{backbone}"
            try:
                candidate = _candidate(request, method, backbone)
            except TrainError as error:
                left_out[name] = str(error)
                continue
            # A method that has no choice of backbones is one candidate.
            candidates.setdefault(candidate.name, candidate)
    return list(candidates.values()), left_out


def _candidate(request: Request, method: str, backbone: str) -> Candidate:
    """Plan a training with a backbone, or with the method's own where it has no choice."""
    own = resolve_method(method).settings_for(backbone).backbone
    weights = request.weights
    if not own:
        weights = None
    recipe = plan(
        method,
        request.data,
        backbone=backbone if own == backbone else None,
        weights=weights,
        seed=request.seed,
        bit_depth=request.bit_depth,
        # The good images that are held out rank the detectors and set their thresholds.
        folds=0,
        excluded=request.excluded,
    )
    return Candidate(f"{method}-{recipe.settings.backbone or NO_BACKBONE}", recipe)
