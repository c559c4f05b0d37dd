"""The measured choice of an engine: how it is recorded next to the plans, and when it holds.

    engines/choice.json    the time of an image for every engine and precision, and the conditions

`flawline build --engine auto` writes it. It holds for one model on one machine with one set of
installed engines.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flawline.os_errors import reason_of, remedy_of
from flawline.runtime.bundle import Bundle
from flawline.runtime.cores import allowed_cores
from flawline.runtime.engines.base import Engine, EngineError, EngineOptions, cache_folder
from flawline.runtime.environment import cpu_identity
from flawline.runtime.files import make_writable, read_small, write_atomically
from flawline.runtime.manifest import GOLDEN
from flawline.runtime.precisions import PRECISIONS
from flawline.runtime.scored_by import ScoredBy
from flawline.runtime.strict_json import SchemaError, StrictReader, parse_json, to_json

RECORD = "choice.json"
SCHEMA = 1
LARGEST_RECORD = 1 << 20  # bytes
# Digits of a hash that tell apart the graphs of a bundle.
HASH_DIGITS = 16


@dataclass(frozen=True)
class Figure:
    """The median time of one image, for an engine of ENGINES in a precision of PRECISIONS."""

    engine: str
    precision: str
    milliseconds: float

    def __str__(self) -> str:
        return f"{self.engine} {self.precision}"


@dataclass(frozen=True)
class Conditions:
    """What a measured choice holds for.

    Attributes:
        cpu: the processor, with its number of threads and what it can compute.
        cores: how many of its cores this process may use.
        threads: the number of threads of a CPU engine; 0 for all these cores.
        engines: for each engine that can be used, the version of its library and its device.
        graphs: for each graph of the bundle, the beginning of its SHA-256.
    """

    cpu: str
    cores: int
    threads: int
    engines: Mapping[str, str]
    graphs: Mapping[str, str]

    def difference(self, now: Conditions) -> str | None:
        """Say why figures of these conditions do not hold now; None if they do."""
        if (self.cpu, self.cores) != (now.cpu, now.cores):
            return f"they were measured on another machine ({self.cpu}, {self.cores} cores)"
        if self.graphs != now.graphs:
            return "they were measured with other graphs: the bundle was changed or built again"
        for name in sorted({*self.engines, *now.engines}):
            then = self.engines.get(name, "absent")
            current = now.engines.get(name, "absent")
            if then != current:
                return f"{name} was {then} when they were measured, and is {current} now"
        if self.threads != now.threads:
            threads = self.threads or "all"
            return f"they were measured with {threads} threads"
        return None


@dataclass(frozen=True)
class Choice:
    """The content of choice.json: the figures of all engines that passed, and what they hold for.

    Which of them is chosen depends on the present threshold as well: see `fastest`.
    """

    figures: tuple[Figure, ...]
    conditions: Conditions


def is_owner(scored_by: ScoredBy | None, engine: str, precision: str) -> bool:
    """Tell whether a threshold was set with the scores of this engine in this lossy precision."""
    return scored_by == ScoredBy(engine, precision)


def may_choose(engine: str, precision: str, scored_by: ScoredBy | None, wanted: str) -> bool:
    """Tell whether `auto` may choose an engine in a precision.

    A threshold from the scores of a lossy precision is for that engine alone, and any other one for
    every precision that is not lossy. If another precision than "auto" is wanted, it is that one.
    """
    if scored_by is not None and wanted in ("auto", scored_by.precision):
        return is_owner(scored_by, engine, precision)
    if wanted == "auto":
        return not PRECISIONS[precision].lossy
    return precision == wanted


def fastest(
    figures: Sequence[Figure], scored_by: ScoredBy | None, wanted: str = "auto"
) -> Figure | None:
    """Return the fastest engine that `auto` may choose; None if there is none. See `may_choose`."""
    allowed = []
    for figure in figures:
        if may_choose(figure.engine, figure.precision, scored_by, wanted):
            allowed.append(figure)
    return min(allowed, key=lambda figure: figure.milliseconds, default=None)


def current_conditions(
    bundle: Bundle, threads: int | None, kinds: Mapping[str, type[Engine]]
) -> Conditions:
    """Return the conditions of this process; `kinds` are the engines that can be used.

    Raises EngineError for an engine whose library cannot be loaded.
    """
    graphs = {}
    for name, digest in bundle.sha256.items():
        if name != GOLDEN:
            graphs[name] = digest[:HASH_DIGITS]
    return Conditions(
        cpu=cpu_identity(),
        cores=allowed_cores(),
        threads=threads or 0,
        engines={name: kind.installed() for name, kind in kinds.items()},
        graphs=graphs,
    )


def record_path(bundle: Bundle, options: EngineOptions) -> Path:
    """Return the file of the measured choice."""
    return cache_folder(bundle, options.cache) / RECORD


def read_choice(path: Path) -> Choice | None:
    """Read a recorded choice; None if there is none.

    Raises SchemaError for a file that is damaged or cannot be read.
    """
    try:
        content = parse_json(read_small(path, LARGEST_RECORD))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SchemaError(f"cannot be read ({reason_of(error)})") from error
    reader = StrictReader(content)
    schema = reader.take("schema", int)
    if schema != SCHEMA:
        reader.refuse(f"has schema {schema}, this version reads {SCHEMA}")
    figures = []
    for entry in reader.take("figures", list):
        figures.append(_figure_from_json(entry))
    choice = Choice(
        figures=tuple(figures),
        conditions=_conditions_from_json(reader.take("conditions", dict)),
    )
    reader.finish()
    for figure in choice.figures:
        if figure.engine not in choice.conditions.engines:
            reader.refuse(f"engine {figure.engine!r} of the figures is not in the conditions")
    return choice


def require_writable(path: Path) -> None:
    """Check that the record can be written, before minutes of compiling. Raises EngineError.

    A folder that takes new files may still hold a record that cannot be replaced. A file is written
    and renamed as the record will be; a record that is there keeps its content.
    """
    try:
        make_writable(path.parent)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        try:
            write_atomically(path, read_small(path, LARGEST_RECORD))
        except FileNotFoundError:
            probe = path.with_name(f".{path.name}.{os.getpid()}.probe")
            write_atomically(probe, b"", durable=False)
            probe.unlink()
    except OSError as error:
        raise _unwritable(path, error) from error


def write_choice(path: Path, choice: Choice) -> None:
    """Write the record. Raises EngineError."""
    try:
        write_atomically(path, to_json({"schema": SCHEMA, **asdict(choice)}))
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> EngineError:
    return EngineError(
        f"the choice of an engine cannot be written to {path} ({reason_of(error)}); "
        f"{remedy_of(error, '--engine-cache')}"
    )


def _figure_from_json(content: Any) -> Figure:
    if not isinstance(content, dict):
        raise SchemaError("figures holds a value that is not an object")
    reader = StrictReader(content, "figures")
    figure = Figure(
        engine=reader.take("engine", str),
        precision=reader.take("precision", str),
        milliseconds=reader.take("milliseconds", float),
    )
    reader.finish()
    if figure.precision not in PRECISIONS:
        reader.refuse(f"precision {figure.precision!r} is unknown")
    if figure.milliseconds < 0:
        reader.refuse("milliseconds is below 0")
    return figure


def _conditions_from_json(content: Mapping[str, Any]) -> Conditions:
    reader = StrictReader(content, "conditions")
    conditions = Conditions(
        cpu=reader.take("cpu", str),
        cores=reader.take("cores", int),
        threads=reader.take_count("threads"),
        engines=_texts(reader, "engines"),
        graphs=_texts(reader, "graphs"),
    )
    reader.finish()
    return conditions


def _texts(reader: StrictReader, key: str) -> Mapping[str, str]:
    """Take an object whose values are texts."""
    values = reader.take(key, dict)
    for value in values.values():
        if not isinstance(value, str):
            reader.refuse(f"{key} holds a value that is not text")
    return values
