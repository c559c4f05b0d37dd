"""Where a training begins: at a finished checkpoint, an unfinished run, or fresh weights."""

from __future__ import annotations

from flawline.runtime.console import log
from flawline.train import TrainError
from flawline.train.backbones.facts import RANDOM
from flawline.train.checkpoint import Checkpoint, load_checkpoint
from flawline.train.data.tiles import network_inputs
from flawline.train.frames import FRAME_KEYS
from flawline.train.job import Job, Run
from flawline.train.method import Method

# Provenance that a run fills in itself; the rest must be equal to continue an unfinished run.
WEIGHTS_FLAG = "weights_flag"
WEIGHTS = "weights"
FOLDS = "folds"  # left out with a hold-out
EXCLUDED = "excluded_images"  # left out without any
IMAGES = {"data", "good_images", "data_sha256", EXCLUDED}  # in the provenance


def begin(job: Job, model: Method) -> Run:
    """Load weights into a fresh model, or continue the unfinished run of the same recipe."""
    recipe = job.recipe
    provenance = dict(job.provenance)
    if job.unfinished.exists():
        return _continue(job)
    provenance[WEIGHTS_FLAG] = recipe.weights
    inputs = network_inputs(job.images, job.graph_input.grid)
    provenance[WEIGHTS] = model.load_weights(recipe.weights, recipe.seed, inputs)
    if recipe.weights == RANDOM and model.backbones():
        log("note: --weights random: random features, expect results near chance")
    return Run(model, provenance, out_of_fold=job.new_record())


def is_trained(job: Job) -> bool:
    """Whether the checkpoint of the job exists, is finished, and is of the same images."""
    if not job.out.is_file():
        return False
    try:
        saved = load_checkpoint(job.out)
    except TrainError:
        # A file of another kind is replaced.
        return False
    return saved.finished and _is_of(job, saved) and _has_same_images(job, saved)


def _is_of(job: Job, saved: Checkpoint) -> bool:
    """Whether a checkpoint was trained, maybe in part, with the recipe of the job."""
    expected = {**job.provenance, WEIGHTS_FLAG: job.recipe.weights}
    same = saved.method.settings == job.recipe.settings
    for name in {*expected, FOLDS, *FRAME_KEYS} - IMAGES:
        same = same and saved.provenance.get(name) == expected.get(name)
    return same


def _continue(job: Job) -> Run:
    unfinished = job.unfinished
    saved = load_checkpoint(unfinished)
    if not _is_of(job, saved):
        raise TrainError(
            f"{unfinished} is from a run with other flags; repeat those or delete it to start again"
        )
    if not _has_same_images(job, saved):
        raise TrainError(
            f"{unfinished} was trained on other images; give those, or delete it to start again"
        )
    if saved.training is None and saved.out_of_fold is not None:
        done = saved.out_of_fold.parts_done
        log(f"continuing {unfinished} after 1 + {done} of {len(job.parts) + 1} trainings")
        return Run(
            saved.method,
            saved.provenance,
            fitted=True,
            sizes=saved.source_sizes,
            out_of_fold=saved.out_of_fold,
        )
    state = saved.training or {}
    step = (state.get("state") or {}).get("step", 0)
    log(f"continuing {unfinished} at step {step}")
    return Run(saved.method, saved.provenance, saved.training, out_of_fold=job.new_record())


def _has_same_images(job: Job, saved: Checkpoint) -> bool:
    """Whether a checkpoint has the images of the job: their folder, names, order and content."""
    same = all(saved.provenance.get(name) == job.provenance.get(name) for name in IMAGES)
    # An unfinished checkpoint of an older version has no content hashes.
    return same and list(saved.trained_on) in ([], job.trained_on)
