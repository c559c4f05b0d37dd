"""The methods of OPC 40100-1 (OPC UA for Machine Vision), which clients call."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from flawline.runtime.outputs.vision_results import VisionResult, structure
from flawline.runtime.outputs.vision_states import CONTINUOUS, SINGLE, VisionStates
from flawline.runtime.outputs.vision_tables import RESULT

# Values of the output argument Error: those below 0 are the application's own.
OK = 0
WRONG_STATE = -1
REFUSED = -2
UNKNOWN = -3
NOT_SUPPORTED = -4


@dataclass(frozen=True)
class Job:
    """What a start method began. `measurement` is the MeasId that the client gave."""

    name: str
    measurement: str


class VisionMethods:
    """Answers the calls of clients, and knows the jobs.

    `trigger` takes a part, or refuses it with False; `results` returns those that are not released,
    the oldest first, and `release` removes one. The methods are called by the thread of the server;
    `has_job` and `take_job` by that of the stream, which also sets `bundle_id`, the only recipe and
    configuration, and `changed_at`, when it was written in seconds since 1970.
    """

    def __init__(
        self,
        states: VisionStates,
        bundle_id: str,
        trigger: Callable[[str | None], bool],
        results: Callable[[], list[VisionResult]],
        release: Callable[[VisionResult], bool],
    ) -> None:
        self._states = states
        self.bundle_id = bundle_id
        self.changed_at = 0.0
        self._trigger = trigger
        self._results = results
        self._release_result = release
        self._by_software = False
        self._count = 0
        self._lock = threading.Lock()
        # Single jobs that have no result yet, and the job of ContinuousExecution.
        self._jobs: deque[Job] = deque()
        self._continuous = Job("", "")
        self._functions: dict[str, Callable[..., list[Any]]] = {
            "StartSingleJob": self._start_single_job,
            "StartContinuous": self._start_continuous,
            "SimulationMode": lambda *_: [_error(NOT_SUPPORTED)],
            "GetResultById": self._get_result,
            "GetResultComponentsById": self._get_components,
            "GetResultListFiltered": self._get_results,
            "ReleaseResultHandle": self._release,
            "GetRecipeListFiltered": self._get_recipes,
            "GetConfigurationList": self._get_configurations,
            "GetConfigurationById": self._get_configuration,
            "ActivateConfiguration": self._activate,
            "PrepareRecipe": self._prepare,
            "UnprepareRecipe": self._unprepare,
        }

    def start_up(self, by_software: bool) -> None:
        """Leave Preoperational after the start; `by_software`: parts come from clients only."""
        self._by_software = by_software
        if self._states.state == CONTINUOUS:
            self._continuous = self._new_job("")

    @property
    def has_job(self) -> bool:
        """Whether the next result belongs to a job."""
        return bool(self._jobs) or self._states.state in (SINGLE, CONTINUOUS)

    def take_job(self) -> Job:
        """Return the job of the next result."""
        with self._lock:
            return self._jobs.popleft() if self._jobs else self._continuous

    def call(self, name: str, arguments: list[Any]) -> list[Any]:
        """Return the output arguments of a method."""
        function = self._functions.get(name)
        if function is not None:
            return function(*arguments)
        return [_error(OK if self._states.call(name) else WRONG_STATE)]

    def _new_job(self, measurement: str) -> Job:
        self._count += 1
        return Job(f"job-{self._count}", measurement)

    def _check_start(self, method: str, recipe: Any, product: Any) -> int:
        """Return the error of a start method, or OK."""
        if not self._states.allows(method):
            return WRONG_STATE
        if _id_of(product) or _id_of(recipe) not in ("", self.bundle_id):
            return UNKNOWN
        return OK

    def _start_single_job(
        self, measurement: Any, part: Any, recipe: Any, product: Any, _parameters: Any
    ) -> list[Any]:
        error = self._check_start("StartSingleJob", recipe, product)
        if error != OK:
            return [_job(""), _error(error)]
        job = self._new_job(_id_of(measurement))
        with self._lock:
            self._jobs.append(job)
        # Before the trigger, since its result may come at once.
        self._states.call("StartSingleJob")
        if self._trigger(_id_of(part) or None):
            return [_job(job.name), _error(OK)]
        with self._lock:
            self._jobs.remove(job)
        self._states.call("Abort")
        return [_job(""), _error(REFUSED)]

    def _start_continuous(
        self, measurement: Any, _part: Any, recipe: Any, product: Any, _parameters: Any
    ) -> list[Any]:
        error = self._check_start("StartContinuous", recipe, product)
        if error == OK and self._by_software:
            error = NOT_SUPPORTED
        if error != OK:
            return [_job(""), _error(error)]
        self._continuous = self._new_job(_id_of(measurement))
        self._states.call("StartContinuous")
        return [_job(self._continuous.name), _error(OK)]

    def _find(self, identifier: Any) -> VisionResult | None:
        for result in self._results():
            if str(result.number) == _id_of(identifier):
                return result
        return None

    def _get_result(self, identifier: Any, _timeout: int) -> list[Any]:
        result = self._find(identifier)
        return [
            _handle(result.number if result else 0),
            _object(structure(result)),
            _error(OK if result else UNKNOWN),
        ]

    def _get_components(self, identifier: Any, _timeout: int) -> list[Any]:
        from asyncua import ua

        result = self._find(identifier)
        content = structure(result)
        answer = [_variant(False, "Boolean"), _handle(result.number if result else 0)]
        for text in RESULT:
            name, kind = text.split()
            value = getattr(content, name)
            if name == "IsSimulated":
                answer.append(_variant(False, "Boolean"))
            elif kind.startswith("BaseDataType"):
                answer.append(ua.Variant(value or [], ua.VariantType.Variant, is_array=True))
            elif kind.startswith(("Boolean", "UtcTime", "ResultState")):
                built_in = {"ResultStateDataType": "Int32", "UtcTime": "DateTime"}
                plain = kind.removesuffix("?")
                answer.append(_variant(value, built_in.get(plain, plain)))
            else:
                answer.append(_object(value))
        return [*answer, _error(OK if result else UNKNOWN)]

    def _get_results(self, state: int, *filters: Any) -> list[Any]:
        """Return the results that are not released and match every filter that is not empty."""
        from asyncua import ua

        identifiers, (most, start, _timeout) = filters[:-3], filters[-3:]
        wanted = [_id_of(identifier) for identifier in identifiers]
        matching = []
        for result in self._results():
            own = (
                result.measurement,
                result.part,
                "",
                result.bundle,
                "",
                result.bundle,
                "",
                result.job,
            )
            matches = all(not name or name == mine for name, mine in zip(wanted, own, strict=True))
            if matches and state in (0, result.state):
                matching.append(structure(result))
        chosen = matching[start : start + most] if most else matching[start:]
        return [
            _variant(start + len(chosen) >= len(matching), "Boolean"),
            _variant(len(chosen), "UInt32"),
            _handle(0),
            ua.Variant(chosen, ua.VariantType.ExtensionObject, is_array=True),
            _error(OK),
        ]

    def _release(self, handle: int) -> list[Any]:
        for result in self._results():
            if result.number == handle and self._release_result(result):
                return [_error(OK)]
        return [_error(UNKNOWN)]

    def configuration(self) -> Any:
        """Return the only configuration, the bundle, as ConfigurationDataType."""
        from asyncua import ua

        return ua.ConfigurationDataType(
            InternalId=ua.ConfigurationIdDataType(Id=self.bundle_id),
            LastModified=datetime.fromtimestamp(self.changed_at, timezone.utc),
        )

    def _get_configurations(self, _most: int, start: int, _timeout: int) -> list[Any]:
        from asyncua import ua

        found = [self.configuration()][start:]
        return [
            _variant(True, "Boolean"),
            _variant(len(found), "UInt32"),
            _handle(0),
            ua.Variant(found, ua.VariantType.ExtensionObject, is_array=True),
            _error(OK),
        ]

    def _get_configuration(self, identifier: Any, _timeout: int) -> list[Any]:
        error = OK if _id_of(identifier) == self.bundle_id else UNKNOWN
        return [_handle(0), _object(self.configuration()), _error(error)]

    def _activate(self, identifier: Any) -> list[Any]:
        return [_error(OK if _id_of(identifier) == self.bundle_id else UNKNOWN)]

    def _get_recipes(
        self, external: Any, product: Any, is_prepared: int, most: int, start: int, _timeout: int
    ) -> list[Any]:
        """Return the only recipe, which is the bundle, if it matches."""
        from asyncua import ua

        prepared = int(self._states.is_prepared)
        matches = _id_of(external) in ("", self.bundle_id) and not _id_of(product)
        recipes = []
        if matches and is_prepared in (prepared, 2) and start == 0:
            recipes.append(self._recipe())
        return [
            _variant(True, "Boolean"),
            _variant(len(recipes), "UInt32"),
            _handle(0),
            ua.Variant(recipes, ua.VariantType.ExtensionObject, is_array=True),
            _error(OK),
        ]

    def _prepare(self, external: Any, internal: Any) -> list[Any]:
        error = self._check_recipe("PrepareRecipe", external, internal)
        return [_object(self._recipe()), _variant(error == OK, "Boolean"), _error(error)]

    def _unprepare(self, external: Any, internal: Any) -> list[Any]:
        error = self._check_recipe("UnprepareRecipe", external, internal)
        return [_object(self._recipe()), _error(error)]

    def _check_recipe(self, method: str, external: Any, internal: Any) -> int:
        """Make the transition of a method if its recipe is the bundle; return the error."""
        if (_id_of(internal) or _id_of(external)) != self.bundle_id:
            return UNKNOWN
        return OK if self._states.call(method) else WRONG_STATE

    def _recipe(self) -> Any:
        from asyncua import ua

        return ua.RecipeIdInternalDataType(Id=self.bundle_id)


def _id_of(structure: Any) -> str:
    """Return the Id of an identifying structure, which may be empty or left out."""
    return str(getattr(structure, "Id", None) or "").strip()


def _variant(value: Any, kind: str) -> Any:
    from asyncua import ua

    return ua.Variant(value, ua.VariantType[kind])


def _object(value: Any) -> Any:
    return _variant(value, "ExtensionObject")


def _error(number: int) -> Any:
    return _variant(number, "Int32")


def _handle(number: int) -> Any:
    return _variant(number, "UInt32")


def _job(name: str) -> Any:
    from asyncua import ua

    return _object(ua.JobIdDataType(Id=name))
