"""The steps of `flawline choose`: cost, training, time and scores, ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from flawline.export import ExportError
from flawline.export.choosing.candidates import Candidate, Request, candidates_of
from flawline.export.choosing.cost import Costs, measure_costs
from flawline.export.choosing.engines import EnginePlan, Place
from flawline.export.choosing.scoring import make_trial_set, split_good
from flawline.export.choosing.store import Store
from flawline.export.choosing.table import OVER, Row, dropped_rows, ranked_rows
from flawline.export.choosing.trained import (
    FAILURES,
    Clock,
    Judge,
    OutOfTimeError,
    train_candidate,
)
from flawline.runtime.bundle import Bundle
from flawline.runtime.console import log
from flawline.train.data import open_data
from flawline.train.progress import Bars

# With fewer held-out images, a rank says little.
FEW_HELD_OUT = 20


@dataclass
class Comparison:
    """The outcome: rows as of `table`, the candidates, and reasons for what is missing."""

    candidates: Mapping[str, Candidate]
    rows: list[Row]
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def best(self) -> Row | None:
        """The row with rank 1, or None where nothing was ranked."""
        for row in self.rows:
            if row.rank == 1:
                return row
        return None


def compare(
    request: Request, budget_ms: float, plan: EnginePlan, store: Store, minutes: float | None
) -> Comparison:
    """Compare the candidates of a request; see the steps in `flawline.export.choose`.

    Raises DataError for unsuitable data, and ExportError where no candidate fits the budget or none
    could be timed.
    """
    data_set = open_data(request.data, request.excluded)
    for line in data_set.describe():
        log(line)
    learnt, held_out = split_good(data_set)
    if len(held_out) < FEW_HELD_OUT:
        log(f"note: only {len(held_out)} good images are held out, so that the ranks are uncertain")
    candidates, left_out = candidates_of(request)
    costs = measure_costs(candidates, learnt, plan, budget_ms, store)
    places = _affordable(costs, budget_ms)
    _note_failures(costs, left_out)
    dropped = dropped_rows(costs, budget_ms)
    _require_any(places, dropped, left_out, budget_ms)
    log(f"{len(places)} of {len(candidates)} candidates fit {budget_ms:g} ms per frame")
    bundles = _train(candidates, places, store, Clock(minutes), left_out)
    with Bars() as bars:
        trial = make_trial_set(held_out, request.bit_depth, request.seed, bars)
    judge = Judge(plan, trial, held_out[0], budget_ms, store)
    results = judge.results(bundles)
    left_out |= judge.left_out
    rows = ranked_rows(results, candidates, budget_ms) + dropped
    return Comparison({one.name: one for one in candidates}, rows, left_out)


def _affordable(costs: Mapping[str, Costs], budget_ms: float) -> dict[str, list[Place]]:
    """Return the places within the budget of every candidate that has any."""
    affordable = {}
    for name, known in costs.items():
        places = []
        for cost in known.costs:
            if cost.measured and cost.milliseconds <= budget_ms:
                places.append(cost.place)
        if places:
            affordable[name] = places
    return affordable


def _note_failures(costs: Mapping[str, Costs], left_out: dict[str, str]) -> None:
    """Add the reasons why a candidate could not be timed at all, or in some place."""
    for name, known in costs.items():
        for place, reason in known.left_out.items():
            left_out[f"{name} {place}".strip()] = reason


def _require_any(
    places: Mapping[str, Sequence[Place]],
    dropped: Sequence[Row],
    left_out: Mapping[str, str],
    budget_ms: float,
) -> None:
    """Raise ExportError where no candidate is left to train."""
    if places:
        return
    measured = [row for row in dropped if row.note == OVER]
    if measured:
        fastest = measured[0]
        raise ExportError(
            f"no candidate fits {budget_ms:g} ms per frame; the fastest is {fastest.name} with "
            f"{fastest.place} and {fastest.milliseconds:.1f} ms; raise --budget-ms, or compare "
            f"other --methods, --backbones and engines"
        )
    name, reason = next(iter(left_out.items()))
    raise ExportError(f"no candidate could be timed; the first is {name}: {reason}")


def _train(
    candidates: Sequence[Candidate],
    places: Mapping[str, Sequence[Place]],
    store: Store,
    clock: Clock,
    left_out: dict[str, str],
) -> dict[str, tuple[Bundle, Sequence[Place]]]:
    """Train the candidates that fit; add the reasons for those that could not be to `left_out`."""
    bundles: dict[str, tuple[Bundle, Sequence[Place]]] = {}
    chosen = [candidate for candidate in candidates if candidate.name in places]
    for number, candidate in enumerate(chosen, 1):
        name = candidate.name
        log(f"candidate {number} of {len(chosen)}: {name}")
        try:
            bundle = train_candidate(candidate, places[name], store, clock)
        except OutOfTimeError as error:
            left_out[name] = str(error)
            continue
        except FAILURES as error:
            log(f"note: {name} is left out: {error}")
            left_out[name] = str(error)
            continue
        usable = [place for place in places[name] if bundle.has_graph(place.precision)]
        bundles[name] = (bundle, usable)
    return bundles
