"""What a training holds while it runs: the job, which never changes, and how far it came."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from flawline.runtime.good_images.out_of_fold import OutOfFold
from flawline.runtime.graph_input import GraphInput
from flawline.runtime.source_images import SourceSizes
from flawline.runtime.training_length import TrainingLength
from flawline.train.data import PreparedImages
from flawline.train.fold_training import Part
from flawline.train.method import Method
from flawline.train.recipe import Recipe


@dataclass
class Run:
    """A model on its way from the recipe to the checkpoint.

    state: continues the unfinished training on all images, None if there is none.
    fitted: whether the model has been trained on all images.
    sizes: those of the image files, if an earlier run has read them.
    out_of_fold: the scores of the folds that are done; None with a hold-out.
    notes: what is logged again at the end.
    """

    model: Method
    provenance: dict[str, str]
    state: dict[str, Any] | None = None
    fitted: bool = False
    sizes: SourceSizes | None = None
    out_of_fold: OutOfFold | None = None
    notes: list[str] = field(default_factory=list)


class FitResult(NamedTuple):
    """How far a training came; `missing_phases` are the phases and folds that it did not finish."""

    length: TrainingLength
    missing_phases: tuple[str, ...]


@dataclass
class Job:
    """A training: the images of the data set, what is trained on them, and where it is saved.

    images: all that are trained on. trained_on: their content hashes. steps: of the training on
    them, 1 for a closed form. parts: the further trainings, without each fold. graph_input: how
    images become inputs of the network. listed: all good images of the data set, to list the
    doubtful ones; None to list none.
    """

    recipe: Recipe
    out: Path
    images: PreparedImages
    trained_on: list[str]
    steps: int
    parts: list[Part]
    provenance: dict[str, str]
    graph_input: GraphInput
    listed: PreparedImages | None = None

    @property
    def reads_features_again(self) -> bool:
        """Whether the features of an image are worth storing after they are computed.

        Folds read them in each training. A method that is fitted in one pass reads them once, and
        would take twice as long with the comparison that lists doubtful images.
        """
        one_pass = self.recipe.length(1) is None
        return bool(self.parts) or (one_pass and self.listed is not None)

    @property
    def inputs(self) -> int:
        """How many inputs of the network the images become."""
        return self.graph_input.inputs_per_frame * len(self.images)

    @property
    def called(self) -> str:
        """How messages call the inputs of the network."""
        if self.inputs == len(self.images):
            return "good images"
        return f"tiles of {len(self.images)} good images"

    @property
    def unfinished(self) -> Path:
        """Where the unfinished training is saved."""
        return self.out.with_name(f"{self.out.stem}.unfinished.pt")

    @property
    def unfinished_fold(self) -> Path:
        """Where the unfinished training of a fold is saved."""
        return self.out.with_name(f"{self.out.stem}.unfinished-fold.pt")

    def new_record(self) -> OutOfFold | None:
        """Return a record without scores; None with a hold-out."""
        if not self.parts:
            return None
        # The last part is the comparison.
        return OutOfFold(tuple(self.trained_on), len(self.parts) - 1)
