"""What the study of teaching measures."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flawline.benchmarks.train_bundle import train_bundle
from flawline.registry import resolve
from flawline.runtime import calibrate, teach
from flawline.runtime.bundle import read_bundle
from flawline.runtime.cores import allowed_cores
from flawline.runtime.detector import Detector
from flawline.runtime.engines import REFERENCE_ENGINE, open_reference
from flawline.runtime.environment import cpu_name
from flawline.runtime.good_images.folds import sequence_order
from flawline.runtime.load import read_cpu, share_of_others
from flawline.runtime.teaching import TEACHERS, TeachError
from flawline.train import TrainError
from flawline.train.data import DataSet, data_name
from flawline.train.metrics import auroc

# Calls of each of two graphs whose times are compared.
TURNS = 60

Scores = npt.NDArray[np.float64]


class Study:
    """Measures on the images of one data set, in a folder for bundles and links.

    `other` is the data set of the bundles that are taught, and `flags` go to `flawline build`.
    """

    def __init__(self, data: DataSet, other: Path, flags: Sequence[str], folder: Path) -> None:
        self._data = data
        self._other = other
        self._flags = list(flags)
        self._folder = folder
        self._started: dict[str, Path] = {}

    def facts(self) -> dict[str, Any]:
        """Return what all parts of a row have in common."""
        return {
            "data": data_name(self._data.root),
            "other": data_name(self._other),
            "cpu": cpu_name(),
            "cores": allowed_cores(),
        }

    def compare(self, method: str, images: int | None) -> dict[str, Any]:
        """Train in torch and teach without it, from the same good images.

        Both hold out a fifth of them.
        """
        chosen = _spread(self._data.train_good, images)
        root = self._folder / f"{method}-data" / data_name(self._data.root)
        good = _link(chosen, root / "train" / "good")
        trained = self._train(method, root, "trained")
        taught = self._folder / f"{method}-taught"
        self._teach(method, "--source", good, "--folds", "0", "--out", taught)
        results = {}
        scores = {}
        for name, path in (("trained", trained), ("taught", taught)):
            scores[name] = self._test_scores(path)
            bundle = read_bundle(path)
            results[name] = {
                **self._accuracy(scores[name], bundle.calibration.threshold),
                "images": len(bundle.manifest.trained_images),
            }
        return {
            "weights": read_bundle(trained).manifest.provenance.get("train_weights", "unknown"),
            "score_std": round(read_bundle(trained).manifest.score.std, 5),
            "difference": float(np.abs(scores["taught"] - scores["trained"]).max()),
            **results,
        }

    def time(self, method: str, images: int) -> dict[str, Any]:
        """Return the seconds of `flawline teach` for so many pictures, with the default folds."""
        good = _link(_spread(self._data.train_good, images), self._folder / f"{method}-timed")
        out = self._folder / f"{method}-timed-bundle"
        words = [str(self._start(method)), "--source", str(good), "--out", str(out)]
        command = [sys.executable, "-m", "flawline.runtime.teach", *words]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        load = read_cpu()
        start = time.monotonic()
        # Limits on threads that a user gave the trainings are not those of a box.
        limits = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        environment = {name: value for name, value in os.environ.items() if name not in limits}
        done = subprocess.run(command, env=environment, check=False)
        seconds = time.monotonic() - start
        others = share_of_others(load, read_cpu())
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode != 0:
            raise TrainError(f"{method}: was not taught; see the message above")
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return {
            "images": images,
            "folds": read_bundle(out).calibration.folds,
            "seconds": round(seconds, 1),
            "cpu_seconds": round(cpu, 1),
            "others": None if others is None else round(others, 3),
        }

    def append(
        self, method: str, few: int, rejects: int, rate: float
    ) -> list[dict[str, Any]] | None:
        """Add false rejects to a detector that was taught from few pictures; return the steps.

        One that cannot be taught is trained on them, without the fifth that sets its threshold.
        The pictures are the first ones in the order of the names, as at the beginning of a
        production, so that later parts may differ from them. The other good images of the training
        are divided in two: among every second one are the false rejects, and the rest, of which
        none is added, sets the thresholds. There is only the first step if none is rejected.
        Returns None for a method to which nothing can be added.
        """
        if method in TEACHERS and not resolve(TEACHERS, method, "teacher", TeachError).appends:
            return None
        good = [self._data.train_good[place] for place in sequence_order(self._data.train_good)]
        judged, kept = good[few::2], good[few + 1 :: 2]
        rates = ("--false-alarm-rate", str(rate))
        base = self._begin(method, good[:few], rates)
        level = read_bundle(base).calibration.threshold
        scored = zip(judged, _scores(base, judged), strict=True)
        wrong = [path for path, score in scored if score > level]
        counts: dict[str, Any] = {"pictures": few, "judged": len(judged), "rejected": len(wrong)}
        wrong = wrong[:rejects]
        counts |= {"kept": len(kept), "trained": method not in TEACHERS, "rejects": len(wrong)}
        scores = self._test_scores(base)
        steps = [("before", scores, level)]
        if wrong:
            more = self._append(base, wrong, kept, rates)
            again = _threshold(self._calibrate(base, kept, rates))
            added = self._test_scores(more)
            counts.update(self._growth(base, more))
            steps += [
                ("before, thresholds set again", scores, again),
                ("after, threshold kept", added, level),
                ("after", added, _threshold(more)),
            ]
        return [
            {"step": name, **counts, **self._accuracy(judged_by, threshold)}
            for name, judged_by, threshold in steps
        ]

    def _begin(self, method: str, good: Sequence[Path], rates: Sequence[str]) -> Path:
        """Return a bundle that was taught from good images, or trained on them."""
        root = self._folder / f"{method}-few-data" / data_name(self._data.root)
        folder = _link(good, root / "train" / "good")
        if method not in TEACHERS:
            return self._train(method, root, "few", *rates)
        base = self._folder / f"{method}-few"
        self._teach(method, "--source", folder, "--out", base, *rates)
        return base

    def _append(
        self, base: Path, wrong: Sequence[Path], good: Sequence[Path], rates: Sequence[str]
    ) -> Path:
        """Return a bundle to which false rejects were added; good parts set its thresholds."""
        folder = base.with_name(f"{base.name}-added")
        more = base.with_name(f"{base.name}-more")
        words = [
            "--append",
            _link(wrong, folder / "rejected"),
            "--good",
            _link(good, folder / "good"),
        ]
        _require(teach.main([str(word) for word in (base, *words, "--out", more, *rates)]))
        return more

    def _growth(self, base: Path, more: Path) -> dict[str, Any]:
        """Return by what a bundle with more to compare with is larger and slower, in one thread."""
        image = read_bundle(base).golden().images[0]
        seconds: dict[Path, list[float]] = {base: [], more: []}
        with ExitStack() as stack:
            engines = {}
            for path in seconds:
                bundle = read_bundle(path)
                engine = open_reference(bundle.read_model(), bundle.map_size, threads=1)
                engines[path] = stack.enter_context(closing(engine))
            for _ in range(TURNS):
                for path, engine in engines.items():
                    start = time.perf_counter()
                    engine(image[None])
                    seconds[path].append(time.perf_counter() - start)
        old, new = (np.median(seconds[path]) for path in (base, more))
        sizes = [read_bundle(path).model().stat().st_size for path in (base, more)]
        return {
            "time_ratio": round(float(new / old), 3),
            "megabytes": round((sizes[1] - sizes[0]) / 1e6, 2),
            "exempted": read_bundle(more).manifest.provenance.get("exempted_patches"),
        }

    def _calibrate(self, base: Path, good: Sequence[Path], rates: Sequence[str]) -> Path:
        """Return a copy of a bundle whose thresholds good parts have set."""
        again = base.with_name(f"{base.name}-again")
        shutil.rmtree(again, ignore_errors=True)
        shutil.copytree(base, again)
        camera = _link(good, base.with_name(f"{base.name}-good-again"))
        words = ["--bundle", str(again), "--camera", str(camera), *rates]
        _require(calibrate.main(words))
        return again

    def _start(self, method: str) -> Path:
        """Return a bundle of the other data set, which is trained once."""
        if method not in self._started:
            self._started[method] = self._train(method, self._other, "start")
        return self._started[method]

    def _train(self, method: str, data: Path, name: str, *more: str) -> Path:
        bundle = self._folder / f"{method}-{name}"
        checkpoint = self._folder / f"{method}-{name}.pt"
        flags = ["--method", method, "--engine", "none", *self._flags, *more]
        if train_bundle(data, 0, flags, bundle, checkpoint) is None:
            raise TrainError(f"{method}: no bundle was built; see the message above")
        return bundle

    def _teach(self, method: str, *words: object) -> None:
        _require(teach.main([str(self._start(method)), *(str(word) for word in words)]))

    def _test_scores(self, bundle: Path) -> Scores:
        return _scores(bundle, [sample.path for sample in self._data.test])

    def _accuracy(self, scores: Scores, threshold: float) -> dict[str, Any]:
        """Return the image AUROC, and how many test images are rejected."""
        defective = np.array([sample.defect is not None for sample in self._data.test])
        return {
            "auroc": round(auroc(defective, scores), 5),
            "threshold": round(threshold, 5),
            "good": int((~defective).sum()),
            "defective": int(defective.sum()),
            "false_alarms": int((scores[~defective] > threshold).sum()),
            "detected": int((scores[defective] > threshold).sum()),
        }


def _scores(bundle: Path, paths: Sequence[Path]) -> Scores:
    with Detector(bundle, REFERENCE_ENGINE) as detector:
        return np.array([detector(detector.read_image(path)).score for path in paths])


def _threshold(bundle: Path) -> float:
    return read_bundle(bundle).calibration.threshold


def _spread(paths: Sequence[Path], count: int | None) -> list[Path]:
    """Return so many paths, spread evenly over all; None for all."""
    count = min(len(paths), count or len(paths))
    places = np.linspace(0, len(paths) - 1, count).astype(int)
    return [paths[place] for place in places]


def _link(paths: Sequence[Path], folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path in paths:
        (folder / path.name).symlink_to(path.resolve())
    return folder


def _require(status: int) -> None:
    if status != 0:
        raise TrainError("a bundle could not be taught; see the message above")
