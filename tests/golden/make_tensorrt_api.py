"""Write tensorrt_api.json: the public members of the classes of each TensorRT version.

Run from the repository, with as many versions as there are:

    cd tests/golden
    python make_tensorrt_api.py 8.5=api_8.5.json 8.6=api_8.6.json > tensorrt_api.json

Each argument names a version and a JSON file with the public classes of the module and their public
members, taken with dir() from the Python wheel of that version. Plug-ins, calibrators and the
layers of hand-written networks are left out.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

LEFT_OUT = ("Plugin", "Calibrat", "Algorithm", "Refitter", "Dims", "Weights", "UffParser", "Caffe")


def by_versions(members: Mapping[str, Iterable[str]]) -> dict[str, list[str]]:
    """Turn version -> members into pattern -> members.

    A pattern has a 1 or a 0 for each version that has or lacks a member.
    """
    has = {version: set(found) for version, found in members.items()}
    patterns: dict[str, list[str]] = {}
    for member in sorted(set().union(*has.values())):
        patterns.setdefault("".join("01"[member in has[v]] for v in has), []).append(member)
    return patterns


def main(arguments: list[str]) -> None:
    files = dict(argument.split("=", 1) for argument in arguments)
    dumps = {version: json.loads(Path(path).read_text()) for version, path in files.items()}
    modules = {v: {c for c in d if not c.startswith("_")} for v, d in dumps.items()}
    lines = [f'"": {json.dumps(by_versions(modules))}']
    for name in sorted(set().union(*modules.values())):
        layer = name.endswith("Layer") and name != "ILayer"
        if not layer and not any(word in name for word in LEFT_OUT):
            patterns = by_versions({v: d.get(name, ()) for v, d in dumps.items()})
            lines.append(f"{json.dumps(name)}: {json.dumps(patterns)}")
    print(f'{{"versions": {json.dumps(list(dumps))}, "classes": {{\n' + ",\n".join(lines) + "\n}}")


if __name__ == "__main__":
    main(sys.argv[1:])
