"""Carries out a recipe: from good images to a checkpoint, resumable at any time."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flawline.commands import shell_line
from flawline.os_errors import reason_of, remedy_of
from flawline.runtime.console import log, log_notes
from flawline.runtime.files import make_writable
from flawline.runtime.good_images.folds import choose_folds
from flawline.runtime.good_images.hold_out import require_different_images
from flawline.runtime.good_images.neighbours import describe_neighbours
from flawline.runtime.good_images.out_of_fold import OutOfFold
from flawline.runtime.image import Image
from flawline.runtime.source_images import SourceSizes
from flawline.runtime.training_length import TrainingLength
from flawline.train import TrainError
from flawline.train.checkpoint import save_checkpoint
from flawline.train.data import describe_images, hold_out, open_data
from flawline.train.data.exclusion import FLAG
from flawline.train.data.images import frames_of
from flawline.train.data.split import content_hashes, list_hash
from flawline.train.data.tiles import network_inputs
from flawline.train.doubtful.files import DoubtfulFiles
from flawline.train.doubtful.listing import list_doubtful
from flawline.train.fold_training import FoldTraining, SharedFeatures, plan_parts
from flawline.train.frames import frame_provenance, graph_input_of, images_to_fit
from flawline.train.job import FitResult, Job, Run
from flawline.train.loop import choose_device
from flawline.train.method import Fit, Method
from flawline.train.progress import Bars
from flawline.train.recipe import Recipe
from flawline.train.resuming import EXCLUDED, FOLDS, WEIGHTS, begin, is_trained

# Instead of a number of steps, in the log and the provenance of a method with a closed form.
ONE_PASS = "in one pass"


def train(recipe: Recipe, out: Path, again: bool = False, doubtful: bool = False) -> Path:
    """Train as the recipe says, write the checkpoint `out` and return its path.

    With folds, the detector on all good images comes first, then those without each fold. An
    unfinished run of the same recipe is continued from NAME.unfinished.pt next to `out`, and an
    unfinished fold from NAME.unfinished-fold.pt; both are removed at the end. If `out` is that of
    the same recipe and images already, nothing is trained, unless `again` is true. With `doubtful`,
    good images that the others do not support are listed next to `out` before the first step.
    Raises TrainError and DataError.
    """
    model = recipe.method_class(recipe.settings)
    job = _prepare(recipe, model, out, doubtful)
    if not again and is_trained(job):
        log(f"checkpoint {out} is of this training already; --again trains it once more")
        return out
    run = begin(job, model)
    device = choose_device(recipe.device)
    run.model.to(device)
    _announce(job, run)
    try:
        fit = _fit(job, run)
    except KeyboardInterrupt:
        # Nothing is saved before the first step, nor by a method that is fitted in one pass.
        if job.unfinished.exists():
            log(f"the same command continues from {job.unfinished}")
        else:
            log("no step was saved; the same command begins again")
        raise
    if not fit.length.finished:
        run.provenance["steps"] = f"{fit.length.describe()}, cut short"
    _save(out, job, run, fit)
    if fit.length.finished:
        job.unfinished.unlink(missing_ok=True)
        log_notes([*describe_neighbours(run.out_of_fold), *run.notes])
    else:
        log(f"stopped by --max-minutes after {fit.length.describe()}; run the same command again")
    log(f"checkpoint {out}")
    return out


def _announce(job: Job, run: Run) -> None:
    """Log what is trained: on all images, and how many further trainings follow."""
    recipe = job.recipe
    length = f"for {job.steps} steps"
    if recipe.length(1) is None:
        length = ONE_PASS
    if job.parts:
        log(
            f"{len(job.parts) + 1} trainings: on all good images, without each of "
            f"{len(job.parts) - 1} blocks of them to set the threshold, and one for comparison; "
            f"--folds 0 trains once"
        )
    if not run.fitted:
        used = run.model.images_used(recipe.settings, job.inputs)
        log(
            f"training {recipe.method} on {used} {job.called} {length} on {run.model.device} "
            f"(weights {run.provenance[WEIGHTS]})"
        )


def _prepare(recipe: Recipe, model: Method, out: Path, doubtful: bool) -> Job:
    """Open the data set, divide its good images, and check what can be checked before training."""
    data_set = open_data(recipe.data, recipe.excluded)
    for line in data_set.describe():
        log(line)
    folds = choose_folds(recipe.folds, len(data_set.train_good))
    good = list(data_set.train_good)
    held_out: list[Path] = []
    if folds == 0:
        good, held_out = hold_out(data_set.train_good)
    graph_input = graph_input_of(recipe, data_set.train_good)
    # Also the held-out images, which the export in the same command does not describe again.
    for line in describe_images(data_set.train_good, graph_input.frame_geometry, recipe.bit_depth):
        log(f"note: {line}")
    each = graph_input.inputs_per_frame
    used = model.images_used(recipe.settings, each * len(good))
    steps = recipe.length(used)
    counts = f"{used}{' tiles' if each > 1 else ''} trained on, {len(held_out)} held out"
    provenance = _provenance(recipe, good, counts, steps)
    provenance.update(frame_provenance(graph_input))
    if folds:
        provenance[FOLDS] = str(folds)
    if data_set.excluded:
        provenance[EXCLUDED] = str(len(data_set.excluded))
    _require_writable(out)
    trained_on = content_hashes(good)
    require_different_images(trained_on)
    images = frames_of(good, graph_input, recipe.bit_depth)
    parts = plan_parts(recipe, data_set.train_good, folds, each)
    listed = None
    if doubtful:
        listed = frames_of(data_set.train_good, graph_input, recipe.bit_depth)
    return Job(recipe, out, images, trained_on, steps or 1, parts, provenance, graph_input, listed)


def _provenance(
    recipe: Recipe, good: Sequence[Path], counts: str, steps: int | None
) -> dict[str, str]:
    return {
        "data": str(recipe.data.resolve()),
        "good_images": counts,
        "seed": str(recipe.seed),
        "steps": ONE_PASS if steps is None else str(steps),
        "bits": str(recipe.bit_depth or 8),
        "data_sha256": list_hash(good),
    }


def _save(path: Path, job: Job, run: Run, fit: FitResult) -> None:
    save_checkpoint(
        path,
        run.model.cpu(),
        run.provenance,
        trained_on=job.trained_on,
        length=fit.length,
        missing_phases=fit.missing_phases,
        source_sizes=run.sizes,
        tiles=job.recipe.tiles,
        inspected_area=job.graph_input.area,
        fixture=job.graph_input.fixture,
        out_of_fold=run.out_of_fold,
        excluded=job.recipe.excluded,
    )


def _fit(job: Job, run: Run) -> FitResult:
    """Train on all images, then without each fold, until the deadline."""
    deadline = math.inf
    if job.recipe.max_minutes is not None:
        deadline = time.monotonic() + 60 * job.recipe.max_minutes
    device = run.model.device
    with Bars() as bars:
        pixels = images_to_fit(run.model, job, bars)
        features = SharedFeatures()
        if job.reads_features_again:
            features.attach(run.model)
        done = job.steps
        missing: tuple[str, ...] = ()
        if not run.fitted:
            _list_doubtful(job, run, bars)
            done, missing = _fit_all(job, run, pixels, deadline, bars)
            run.sizes = SourceSizes.of(job.images.sizes.values())
        if done < job.steps or not job.parts:
            return _result(job, run, done, missing)
        if not run.fitted:
            run.fitted = True
            _save(job.unfinished, job, run, _result(job, run, done))
        folds = FoldTraining(
            recipe=job.recipe,
            model=run.model,
            device=device,
            images=pixels,
            graph_input=job.graph_input,
            features=features,
            unfinished=job.unfinished_fold,
            provenance=run.provenance,
            deadline=deadline,
            progress=bars,
            remark=bars.remark,
        )
        return _fit_folds(job, run, folds)


def _list_doubtful(job: Job, run: Run, bars: Bars) -> None:
    """List doubtful images, unless the training had begun in an earlier run."""
    if job.listed is None or run.state is not None:
        return
    files = DoubtfulFiles(job.out)
    _require_unedited(files)
    log_notes(list_doubtful(files, job.recipe.data, job.listed, job.graph_input, run.model, bars))
    if files.list.exists():
        # The note itself is far above, where a training takes hours.
        run.notes.append(f"note: doubtful good images are in {files.list} and {files.picture}")


def _require_unedited(files: DoubtfulFiles) -> None:
    """Refuse to replace a list that a person has changed. Raises TrainError."""
    try:
        edited = files.is_edited()
    except OSError as error:
        raise TrainError(
            f"{files.list} cannot be read ({reason_of(error)}); {remedy_of(error)}, or move it away"
        ) from error
    if edited:
        raise TrainError(
            f"{files.list} was changed since a training wrote it, and would be replaced; train "
            f"with {shell_line([FLAG, files.list])}, move it away, or leave the search out with "
            f"--no-doubtful"
        )


def _fit_all(
    job: Job, run: Run, pixels: Sequence[Image], deadline: float, bars: Bars
) -> tuple[int, tuple[str, ...]]:
    """Train on all images; return the steps done, and the phases that were not begun."""

    def save(state: dict[str, Any]) -> None:
        save_checkpoint(job.unfinished, run.model, run.provenance, state, trained_on=job.trained_on)

    seed = job.recipe.seed
    inputs = network_inputs(pixels, job.graph_input.grid)
    fit = Fit(inputs, job.steps, seed, deadline, bars, save, run.state, bars.remark)
    done = run.model.fit(fit)
    run.provenance.update(fit.facts)
    for note in fit.notes:
        log(note)
    return done, fit.missing(run.model.phases)


def _fit_folds(job: Job, run: Run, folds: FoldTraining) -> FitResult:
    """Train the folds that the run lacks, and save the run after each."""
    assert run.out_of_fold is not None

    def save(record: OutOfFold) -> None:
        run.out_of_fold = record
        _save(job.unfinished, job, run, _result(job, run, job.steps))

    steps_of_part = folds.run(job.parts, run.out_of_fold, save)
    return _result(job, run, job.steps + steps_of_part)


def _result(job: Job, run: Run, done: int, missing: tuple[str, ...] = ()) -> FitResult:
    """Count the steps of all trainings, and name the folds that are missing.

    done: the steps of the training on all images, and those of a fold that was begun.
    """
    planned = job.steps
    finished = 0
    if run.out_of_fold is not None:
        finished = run.out_of_fold.parts_done
    for number, part in enumerate(job.parts):
        planned += part.steps
        if number < finished:
            done += part.steps
        else:
            missing = (*missing, part.name)
    return FitResult(TrainingLength(done, planned), missing)


def _require_writable(out: Path) -> None:
    """Create the folder of a checkpoint: before hours of training rather than after."""
    if out.is_dir():
        raise TrainError(
            f"--out {out}: is a folder; give the name of a file in it, such as {out / 'part.pt'}"
        )
    try:
        make_writable(out.parent)
    except OSError as error:
        remedy = remedy_of(error, "--out")
        reason = reason_of(error)
        raise TrainError(f"{out} cannot be written ({reason}); {remedy}") from error
