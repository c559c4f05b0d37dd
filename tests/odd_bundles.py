"""Bundles with damage of every kind to every file. Everything follows from a seed.

A damage is either left to the hashes, or the hashes are written again after it, as by a program
that writes a wrong bundle. Then only the meaning of the files can show it.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
from conftest import tiny_model, write_tiny_bundle
from odd_graphs import odd_graphs
from odd_json import (
    CALIBRATION_VALUES,
    MANIFEST_VALUES,
    OddJson,
    damage_json,
    rewrite_json,
    set_value,
)
from odd_npz import ODD_ARCHIVES
from odd_protobuf import damage_protobuf

from flawline.runtime.bundle import (
    Bundle,
    add_model,
    read_bundle,
    write_bundle,
    write_calibration,
)
from flawline.runtime.engines.choice import Choice, Conditions, Figure, write_choice
from flawline.runtime.golden import Golden
from flawline.runtime.signing.__main__ import sign_bundle
from flawline.runtime.signing.keys import read_trusted, write_new_key
from flawline.runtime.source_images import SourceSizes
from flawline.runtime.strict_json import checksum
from flawline.runtime.training_length import TrainingLength

SCHEMA_1 = Path(__file__).parent / "golden" / "bundle-schema1"
GRAPHS = ("model.onnx", "model.int8.onnx")
FILES = ("manifest.json", "calibration.json", "golden.npz", *GRAPHS)
# Files that no reader needs, whose damage must not matter.
BESIDE = ("audit.jsonl", "calibration.previous.json", "engines/choice.json")
SIGNATURE = "signature.json"
# A further damage reads the file that it changes, which may be one of 8 GB by then.
LARGEST_DAMAGED = 1 << 20  # bytes


class Kind(Enum):
    """Who would have made a damage."""

    ACCIDENT = "accident"  # as of a disk or a copy: hashes and checksums show it
    PROGRAM = "program"  # the file is wrong, and the manifest holds its hash
    EDITOR = "editor"  # a value of a JSON file is another one, and its checksum fits


@dataclass(frozen=True)
class Damage:
    """What was done to a file of a bundle."""

    file: str
    name: str
    kind: Kind


@dataclass(frozen=True)
class OddBundle:
    """A damaged bundle, what was done to it, and the bundle that it was.

    With `trusted`, it was signed by one of these keys before.
    """

    seed: int
    path: Path
    damages: tuple[Damage, ...]
    original: Bundle
    trusted: Any = None

    def __str__(self) -> str:
        damages = ", ".join(f"{it.file}: {it.name} ({it.kind.value})" for it in self.damages)
        return f"seed {self.seed}, {self.original.path.name}: {damages}"

    @property
    def rehashed(self) -> bool:
        """Whether the manifest holds the hash of a wrong file, or another value."""
        return any(damage.kind is not Kind.ACCIDENT for damage in self.damages)

    @property
    def changed(self) -> list[str]:
        """The files named by the manifest that are not what they were."""
        names = []
        for name in self.original.sha256:
            path = self.path / name
            if not path.is_file() or path.read_bytes() != (self.original.path / name).read_bytes():
                names.append(name)
        return names


@dataclass(frozen=True)
class Originals:
    """Whole bundles to damage, and one whose files take the place of theirs."""

    bundles: tuple[Bundle, ...]
    donor: Bundle
    graphs: dict[str, bytes]
    # Of the first bundle, which alone is signed.
    trusted: Any


def write_originals(folder: Path) -> Originals:
    """Write bundles of both schemas, with and without a map, and with an INT8 graph."""
    sizes = SourceSizes.of([(64, 64), (64, 72)])
    length = TrainingLength(17, 100)
    full = write_tiny_bundle(folder / "full", source_sizes=sizes, training=length, bit_depth=12)
    full = add_model(full, "int8", tiny_model())
    write_calibration(full, replace(full.calibration, threshold=90.0))
    write_calibration(full, replace(full.calibration, threshold=100.0))
    figures = (Figure("onnxruntime", "fp32", 2.0), Figure("openvino", "int8", 3.0))
    engines = {"onnxruntime": "1.0", "openvino": "2.0"}
    (full.path / "engines").mkdir()
    conditions = Conditions("cpu", 1, 1, engines, {"model.onnx": full.short_id})
    write_choice(full.path / "engines" / "choice.json", Choice(figures, conditions))
    signed = Path(shutil.copytree(full.path, folder / "signed"))
    public = write_new_key(folder / "key")
    sign_bundle(signed, folder / "key", with_thresholds=False)
    score = write_tiny_bundle(folder / "score", outputs=("score",))
    old = read_bundle(Path(shutil.copytree(SCHEMA_1, folder / "old")))
    golden = full.golden()
    # The donor's golden scores are wrong for every other bundle.
    other = Golden(golden.images[::-1].copy(), golden.scores + 3, golden.maps)
    stricter = replace(full.calibration, threshold=60.0)
    donor_models = {"fp32": tiny_model() + b"\x32\x05donor"}
    donor = write_bundle(folder / "donor", full.manifest, stricter, donor_models, other)
    bundles = (read_bundle(signed), full, full, score, old)
    trusted = read_trusted([public])
    return Originals(bundles, donor, odd_graphs(folder / "outside.bin"), trusted)


def make_bundle(seed: int, folder: Path, originals: Originals) -> OddBundle:
    """Write the damaged bundle of a seed to `folder`, which is replaced."""
    rng = random.Random(seed)
    original = rng.choice(originals.bundles)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(original.path, folder)
    damages = []
    for number in range(rng.choice([1, 1, 1, 1, 2, 3])):
        names = [*FILES, *FILES, *FILES, *BESIDE, SIGNATURE]
        name = rng.choice([name for name in names if _is_small_file(folder / name)])
        # Only a whole file can be damaged in every way.
        damage = _damage_content(rng, folder, name, originals) if number == 0 else None
        damages.append(damage or _damage_file(rng, folder, name, originals))
    trusted = originals.trusted if (original.path / SIGNATURE).exists() else None
    return OddBundle(seed, folder, tuple(damages), original, trusted)


def _is_small_file(path: Path) -> bool:
    return path.is_file() and path.stat().st_size <= LARGEST_DAMAGED


def _damage_content(
    rng: random.Random, folder: Path, name: str, originals: Originals
) -> Damage | None:
    """Damage what a file means; None leaves the damage to the files themselves."""
    if name not in FILES or rng.random() < 0.25:
        return None
    if name.endswith(".json"):
        return Damage(name, *_damage_json_file(rng, folder, name))
    return Damage(name, *_damage_binary(rng, folder, name, originals))


def _damage_file(rng: random.Random, folder: Path, name: str, originals: Originals) -> Damage:
    damage = rng.choice([*FILE_DAMAGES, *BYTE_DAMAGES])
    path = folder / name
    if damage in FILE_DAMAGES:
        FILE_DAMAGES[damage](rng, folder, name, originals)
    else:
        path.write_bytes(BYTE_DAMAGES[damage](rng, path.read_bytes() or b"0"))
    return Damage(name, damage, Kind.ACCIDENT)


def _damage_json_file(rng: random.Random, folder: Path, name: str) -> tuple[str, Kind]:
    path = folder / name
    has_checksum = "checksum" in json.loads(path.read_bytes())
    values = CALIBRATION_VALUES if name == "calibration.json" else MANIFEST_VALUES
    choice = rng.random()
    if choice < 0.4:
        key, value = rng.choice(values)
        set_value(path, key, value)
        return f"impossible {key}", Kind.PROGRAM if has_checksum else Kind.ACCIDENT
    if choice < 0.6:
        return f"odd {rewrite_json(rng, path)}", Kind.EDITOR
    # Nothing shows a flipped digit in a manifest without a checksum. A calibration may be edited.
    any_damage = has_checksum or name == "calibration.json"
    allowed = [damage for damage in OddJson if any_damage or not damage.is_random]
    damage = rng.choice(allowed)
    path.write_bytes(damage_json(rng, path.read_bytes(), damage))
    return damage.value, Kind.ACCIDENT


def _damage_binary(
    rng: random.Random, folder: Path, name: str, originals: Originals
) -> tuple[str, Kind]:
    """Damage a file, and perhaps write its hash again."""
    path = folder / name
    choice = rng.random()
    if choice < 0.45:
        damage = rng.choice(list(BYTE_DAMAGES))
        path.write_bytes(BYTE_DAMAGES[damage](rng, path.read_bytes()))
    elif name == "golden.npz":
        damage = rng.choice(list(ODD_ARCHIVES))
        path.write_bytes(ODD_ARCHIVES[damage](path.read_bytes()))
    elif choice < 0.7:
        damage = "fields"
        path.write_bytes(damage_protobuf(rng, path.read_bytes(), rng.choice([1, 1, 2, 5])))
    else:
        damage = rng.choice(list(originals.graphs))
        path.write_bytes(originals.graphs[damage])
        np.ones(1, np.float32).tofile(folder / "weights.bin")
    # Only the FP32 graph is run here.
    if name == "model.int8.onnx" or rng.random() < 0.3:
        return damage, Kind.ACCIDENT
    rehash(folder, name)
    return damage, Kind.PROGRAM


def rehash(folder: Path, name: str) -> None:
    """Write the hash of a file into the manifest, and the checksum of the manifest."""
    path = folder / "manifest.json"
    content = json.loads(path.read_bytes())
    content["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    if content.pop("checksum", None) is not None:
        content["checksum"] = checksum(content)
    path.write_text(json.dumps(content, indent=2, sort_keys=True))


def cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def hole(rng: random.Random, data: bytes) -> bytes:
    size = rng.choice([1, 8, 64, 512])
    start = rng.randrange(len(data))
    return data[:start] + bytes(min(size, len(data) - start)) + data[start + size :]


def flip(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def replace_byte(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    changed[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(changed)


def remove(rng: random.Random, data: bytes) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + data[start + rng.choice([1, 2, 16, 300]) :]


def insert(rng: random.Random, data: bytes) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + rng.randbytes(rng.choice([1, 2, 16])) + data[start:]


BYTE_DAMAGES: dict[str, Callable[[random.Random, bytes], bytes]] = {
    "cut": cut,
    "hole": hole,
    "flipped bit": flip,
    "other byte": replace_byte,
    "removed": remove,
    "inserted": insert,
    "appended": lambda rng, data: data + rng.randbytes(rng.choice([1, 16, 300])),
    "twice": lambda rng, data: data + data,
    "emptied": lambda rng, data: b"",
    "noise": lambda rng, data: rng.randbytes(len(data)),
}


def _take_away(rng: random.Random, folder: Path, name: str, originals: Originals) -> None:
    (folder / name).unlink()


def _folder(rng: random.Random, folder: Path, name: str, originals: Originals) -> None:
    (folder / name).unlink()
    (folder / name).mkdir()


def _pipe(rng: random.Random, folder: Path, name: str, originals: Originals) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)


def _link(target: str) -> Callable[[random.Random, Path, str, Originals], None]:
    def make(rng: random.Random, folder: Path, name: str, originals: Originals) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(target.replace("NAME", name))

    return make


def _donate(rng: random.Random, folder: Path, name: str, originals: Originals) -> None:
    source = originals.donor.path / name
    if name == "calibration.json" or not source.exists():
        # The calibration of another bundle is a valid one.
        source = originals.donor.path / "golden.npz"
        if name == "golden.npz":
            source = originals.donor.path / "model.onnx"
    shutil.copyfile(source, folder / name)


def _swap(rng: random.Random, folder: Path, name: str, originals: Originals) -> None:
    content = (folder / name).read_bytes()
    others = []
    for other in FILES:
        if _is_small_file(folder / other) and (folder / other).read_bytes() != content:
            others.append(other)
    other = rng.choice(others)
    (folder / name).write_bytes((folder / other).read_bytes())
    (folder / other).write_bytes(content)


def _sparse(rng: random.Random, folder: Path, name: str, originals: Originals) -> None:
    # Of 8 GB, which the file system does not store.
    with (folder / name).open("r+b") as file:
        file.truncate(1 << 33)


def _rename(change: Callable[[str], str]) -> Callable[[random.Random, Path, str, Originals], None]:
    def make(rng: random.Random, folder: Path, name: str, originals: Originals) -> None:
        path = folder / name
        path.rename(path.with_name(change(path.name)))

    return make


def _link_elsewhere(rng: random.Random, folder: Path, name: str, originals: Originals) -> None:
    # The content is what it was.
    path = folder / name
    moved = path.rename(path.with_name(f"{path.name}.moved"))
    path.symlink_to(moved.name)


FILE_DAMAGES: dict[str, Callable[[random.Random, Path, str, Originals], None]] = {
    "missing": _take_away,
    "a folder": _folder,
    "a pipe": _pipe,
    "link to nowhere": _link("/nowhere/at/all"),
    "link to itself": _link("NAME"),
    "link to a device": _link("/dev/zero"),
    "of another bundle": _donate,
    "swapped": _swap,
    "8 GB": _sparse,
    "in capitals": _rename(str.upper),
    "as a copy is called": _rename(lambda name: f"Copy of {name}"),
    "a link": _link_elsewhere,
}
