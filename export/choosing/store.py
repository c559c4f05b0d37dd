"""The folder of `flawline choose`: what was measured and trained, to continue a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flawline.export import ExportError
from flawline.export.choosing.candidates import Request
from flawline.os_errors import reason_of, remedy_of
from flawline.runtime.console import first_line
from flawline.runtime.environment import cpu_name
from flawline.runtime.files import make_writable, write_file
from flawline.runtime.json_shapes import Shape, misfit
from flawline.train.data import open_data
from flawline.train.data.split import list_hash

PLAN = "plan.json"
# Key of the plan: a hash of the names and sizes of the good images.
IMAGES = "good_images"
# Of a request: what may change without making the records in the folder wrong. The good images say
# which ones are excluded.
FREE = ("methods", "backbones", "excluded")


class Store:
    """Records by kind and name of the candidate, as KIND/NAME.json below the folder `out`."""

    def __init__(self, out: Path, request: Request, threads: int | None) -> None:
        """Open or create a folder. Its plan is written with the first record.

        A request that fails before anything is measured must not be that of the next run. Raises
        ExportError if the folder is of another request or other good images, and DataError.
        """
        self.out = out
        self._unwritten: dict[str, Any] | None = None
        plan = _plan(request, threads)
        known = _read(out / PLAN)
        if known is None:
            self._unwritten = plan
            _require_writable(out)
            return
        if known.get(IMAGES) != plan[IMAGES]:
            # A detector may have learnt an image that would now be held out.
            raise ExportError(
                f"the good images of {request.data} are not those of the run in --out {out}; give "
                f"another --out"
            )
        for key, value in plan.items():
            if known.get(key) != value:
                raise ExportError(
                    f"--out {out} is of a run with {key} {known.get(key)}, now it is {value}; give "
                    f"another --out or the same values"
                )

    def read(self, kind: str, name: str, shape: Shape) -> dict[str, Any] | None:
        """Return a record of this shape, or None where there is none.

        Raises ExportError for a damaged record.
        """
        path = self._path(kind, name)
        record = _read(path)
        if record is not None:
            reason = misfit(record, shape)
            if reason is not None:
                raise _damaged(path, reason)
        return record

    def write(self, kind: str, name: str, record: Mapping[str, Any]) -> None:
        """Write a record. Raises ExportError."""
        if self._unwritten is not None:
            write_file(self.out / PLAN, _json(self._unwritten), ExportError, "--out")
            self._unwritten = None
        write_file(self._path(kind, name), _json(record), ExportError, "--out")

    def checkpoint(self, name: str) -> Path:
        """Return the file of the checkpoint of a candidate."""
        return self.out / "checkpoints" / f"{name}.pt"

    def bundle(self, name: str) -> Path:
        """Return the folder of the bundle of a candidate."""
        return self.out / "trained" / name

    def _path(self, kind: str, name: str) -> Path:
        return self.out / kind / f"{name}.json"


def _plan(request: Request, threads: int | None) -> dict[str, Any]:
    """Return what all records of a folder have in common."""
    plan = asdict(request)
    for key in FREE:
        del plan[key]
    plan["data"] = str(request.data.resolve())
    plan[IMAGES] = list_hash(open_data(request.data, request.excluded).train_good)
    plan["threads"] = threads
    plan["cpu"] = cpu_name()
    return plan


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1) + "\n").encode()


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ExportError(f"{path} cannot be read ({reason_of(error)}); see --out") from error
    except (ValueError, RecursionError) as error:
        raise _damaged(path, first_line(error)) from error
    if not isinstance(content, dict):
        raise _damaged(path, "it is not an object")
    return content


def _damaged(path: Path, reason: str) -> ExportError:
    return ExportError(f"{path} is damaged ({reason}); delete it and run the command again")


def _require_writable(out: Path) -> None:
    """Raise ExportError if a folder cannot be written, before minutes of measuring."""
    try:
        make_writable(out)
    except OSError as error:
        raise ExportError(
            f"{out} cannot be written ({reason_of(error)}); {remedy_of(error, '--out')}"
        ) from error
