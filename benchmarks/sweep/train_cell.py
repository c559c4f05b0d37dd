"""One cell of a sweep is trained in a process of its own: `python -m ... --out SWEEP --cell CELL`.

A training that crashes, or that the system ends for its memory, is then one failed cell.
"""

from __future__ import annotations

from importlib import import_module

if __name__ == "__main__":
    # The imports below take a while.
    import_module("flawline.interrupts").end_quietly()

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import flawline
from flawline.benchmarks.measure.machine import machine_facts
from flawline.benchmarks.sweep.plan import Cell, precisions_of, read_cell, read_plan
from flawline.benchmarks.sweep.progress import is_over
from flawline.benchmarks.sweep.shapes import TRAINED_FACTS
from flawline.benchmarks.sweep.store import Store, read_record, write_json
from flawline.export import ExportError
from flawline.export.graphs_of_bundle import add_missing_graph, lacks_graph
from flawline.runtime.bundle import BundleError, read_bundle
from flawline.runtime.command_parser import Parser, path_argument
from flawline.runtime.console import USER_ERROR, last_line, log, run_command
from flawline.runtime.environment import cpu_name, versions
from flawline.runtime.json_shapes import misfit

MODULE = "flawline.benchmarks.sweep.train_cell"
BEGUN = "begun"
NOT_ENDED = "its training was begun and has not ended; the same command continues"
TRAINED = "trained"
FAILED = "failed"
LEFT = "left"
# One thread for each training: several run at the same time, and a result must not depend on how
# many cores a machine has.
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OPENCV_FOR_THREADS_NUM"), "1"
)
# Seconds that a training gets to save its state when the sweep is ended.
END_S = 10.0


@dataclass(frozen=True)
class Outcome:
    """How a cell ended: TRAINED after `minutes`, FAILED for a reason, or LEFT by the budget."""

    cell: str
    status: str
    reason: str | None = None
    minutes: float | None = None


@dataclass
class Trainings:
    """The processes that train at the moment, which are ended together.

    `pass_fds` are open files that they inherit.
    """

    pass_fds: tuple[int, ...] = ()
    ended: bool = False
    _running: set[subprocess.Popen[bytes]] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, command: Sequence[str], log_file: Path) -> int | None:
        """Run a command with its output in a file; return its exit code, or None if ended."""
        log_file.parent.mkdir(parents=True, exist_ok=True)
        with self._lock:
            if self.ended:
                # The log of an earlier run stays as it is.
                return None
            with log_file.open("wb") as output:
                process = subprocess.Popen(
                    command,
                    # It ends when this process ends: see `_end_with_parent`.
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **ONE_THREAD, "PYTHONPATH": _python_path()},
                    pass_fds=self.pass_fds,
                )
            self._running.add(process)
        code = process.wait()
        with self._lock:
            self._running.discard(process)
        assert process.stdin is not None
        process.stdin.close()
        return None if self.ended else code

    def end(self) -> None:
        """End all of them, and let none start any more."""
        with self._lock:
            self.ended = True
            running = list(self._running)
        for process in running:
            process.terminate()
        for process in running:
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _python_path() -> str:
    """Return the search path with which another process imports the same flawline."""
    own = str(Path(flawline.__file__).parents[1])
    others = os.environ.get("PYTHONPATH")
    return own if not others else os.pathsep.join((own, others))


def is_trained(store: Store, cell: Cell) -> bool:
    """Whether the folder has the bundle of a cell, whole and trained as the cell says.

    Raises DataError for an unsuitable data set.
    """
    facts = read_record(store.facts(cell.name))
    if facts is None or facts["status"] != TRAINED:
        return False
    reason = misfit(facts, TRAINED_FACTS)
    if reason is not None:
        log(f"{store.facts(cell.name)} is damaged ({reason}), so that {cell.name} does not count")
        return False
    for key, value in cell.identity().items():
        if facts.get(key) != value:
            log(f"{cell.name} was trained with another {key}, so that it does not count")
            return False
    try:
        return read_bundle(store.bundle(cell.name)).short_id == facts.get("bundle_id")
    except BundleError as error:
        log(f"the bundle of {cell.name} does not count: {error}")
        return False


def lacks_graphs(store: Store, cell: Cell, precisions: Sequence[str]) -> bool:
    """Whether graphs of these precisions were never tried for the bundle of a trained cell."""
    return bool(_untried(store, cell, precisions))


def complete_graphs(store: Store, cell: Cell, precisions: Sequence[str]) -> dict[str, str]:
    """Add the graphs that the bundle of a trained cell lacks; return why some were refused.

    A refused graph takes as long as a good one, and is not tried again.
    """
    facts = read_record(store.facts(cell.name)) or {}
    untried = _untried(store, cell, precisions)
    refused = {**facts["refused"], **_add_graphs(store.bundle(cell.name), untried, Path(cell.data))}
    if refused != facts["refused"]:
        write_json(store.facts(cell.name), {**facts, "refused": refused})
    return refused


def _untried(store: Store, cell: Cell, precisions: Sequence[str]) -> list[str]:
    refused = (read_record(store.facts(cell.name)) or {})["refused"]
    bundle = read_bundle(store.bundle(cell.name))
    untried = []
    for name in dict.fromkeys(precisions):
        if name not in refused and lacks_graph(bundle, name):
            untried.append(name)
    return untried


def train_in_process(
    root: Path, cell: Cell, deadline: float | None, trainings: Trainings | None = None
) -> Outcome:
    """Train a cell in a process of its own, unless the deadline, as in `time.time()`, is over.

    A cell that is trained already only gets the graphs that its bundle lacks. The folder `root`
    then has the bundle and its facts, or the reason of the failure.
    """
    if is_over(deadline):
        return Outcome(cell.name, LEFT)
    store = Store(root)
    was_trained = is_trained(store, cell)
    log_file = store.log("trained", cell.name)
    command = [sys.executable, "-m", MODULE, "--out", str(root), "--cell", cell.name]
    code = (trainings or Trainings()).run(command, log_file)
    if code is None:
        return Outcome(cell.name, LEFT)
    facts = read_record(store.facts(cell.name)) or {}
    if code == 0 and was_trained:
        return Outcome(cell.name, TRAINED)
    if code == 0 and facts.get("status") == TRAINED:
        return Outcome(cell.name, TRAINED, minutes=facts.get("minutes"))
    reason = _reason(code, log_file)
    if not was_trained:
        write_json(store.facts(cell.name), _record(FAILED, cell, reason=reason))
    return Outcome(cell.name, FAILED, reason)


def _reason(code: int, log_file: Path) -> str:
    if code < 0:
        return f"signal {-code} ({signal.strsignal(-code)}) has ended it; see {log_file}"
    text = log_file.read_text(encoding="utf-8", errors="replace")
    # A progress bar writes over its line.
    return last_line(text.replace("\r", "\n"))


def _record(status: str, cell: Cell, **facts: Any) -> dict[str, Any]:
    return {"cell": cell.name, "status": status, **cell.identity(), **facts}


# ---------------------------------------------------------------- in the process of the training


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog=MODULE, description="Train one cell of a sweep.")
    parser.add_argument("--out", type=path_argument, required=True, help="the folder of the sweep")
    parser.add_argument("--cell", required=True, help="the name of the cell")
    args = parser.parse_args(argv)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    return run_command(parser.prog, lambda: _train(Store(args.out), args.cell))


def _end_with_parent() -> None:
    """End this process as SIGTERM does when stdin ends, which it does when the sweep is killed."""
    # sys.stdin would be locked by this thread when the interpreter exits.
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _train(store: Store, name: str) -> int:
    from flawline.benchmarks.train_bundle import train_bundle

    cell = read_cell(store, name)
    precisions = precisions_of(read_plan(store))
    if is_trained(store, cell):
        complete_graphs(store, cell, precisions)
        return 0
    checkpoint = store.checkpoint(name)
    unfinished = checkpoint.with_name(f"{checkpoint.stem}.unfinished.pt")
    before = read_record(store.facts(name)) or {}
    if any(before.get(key) != value for key, value in cell.identity().items()):
        # They are of other flags or images.
        checkpoint.unlink(missing_ok=True)
        unfinished.unlink(missing_ok=True)
    resumed = checkpoint.exists() or unfinished.exists()
    write_json(store.facts(name), _record(BEGUN, cell, reason=NOT_ENDED))
    data = Path(cell.data)
    bundle = store.bundle(name)
    minutes = train_bundle(data, cell.seed, cell.build_flags(), bundle, checkpoint)
    if minutes is None:
        return USER_ERROR
    refused = _add_graphs(bundle, precisions, data)
    facts = _facts(bundle)
    # How long an earlier run has trained is not known.
    facts["minutes"] = None if resumed else round(minutes, 2)
    write_json(store.facts(name), _record(TRAINED, cell, **facts, refused=refused))
    return 0


def _add_graphs(path: Path, precisions: Sequence[str], data: Path) -> dict[str, str]:
    """Add the graphs that these precisions need to a bundle; return why some were refused."""
    refused = {}
    for precision in precisions:
        try:
            add_missing_graph(read_bundle(path), precision, data)
        except ExportError as error:
            log(f"{precision} is left out: {error}")
            refused[precision] = str(error)
    return refused


def _facts(path: Path) -> dict[str, Any]:
    bundle = read_bundle(path)
    return {
        "bundle_id": bundle.short_id,
        "weights_found": bundle.manifest.provenance.get("train_weights", "unknown"),
        "steps": bundle.manifest.provenance.get("train_steps", "unknown"),
        "device": cpu_name(),
        "machine": machine_facts(),
        "versions": versions(),
    }


if __name__ == "__main__":
    sys.exit(main())
