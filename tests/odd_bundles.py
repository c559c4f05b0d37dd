"""Bundles with damage of every kind to every file. Everything follows from a seed.

A damage is either left to the hashes, or the hashes are written again after it, as by a program
that writes a wrong bundle. Then only the meaning of the files can show it.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from conftest import tiny_model, write_tiny_bundle
from odd_graphs import odd_graphs
from odd_json import CALIBRATION_VALUES, MANIFEST_VALUES, OddJson, damage_json, set_value
from odd_npz import ODD_ARCHIVES

from flawline.runtime.bundle import Bundle, add_model, read_bundle, write_bundle
from flawline.runtime.golden import Golden
from flawline.runtime.source_images import SourceSizes
from flawline.runtime.strict_json import checksum
from flawline.runtime.training_length import TrainingLength

SCHEMA_1 = Path(__file__).parent / "golden" / "bundle-schema1"
GRAPHS = ("model.onnx", "model.int8.onnx")
FILES = ("manifest.json", "calibration.json", "golden.npz", *GRAPHS)


@dataclass(frozen=True)
class OddBundle:
    """A damaged bundle, the file that was damaged, how, and the bundle that it was.

    With `rehashed` its manifest holds the hash of the damaged file.
    """

    path: Path
    file: str
    damage: str
    original: Bundle
    rehashed: bool


@dataclass(frozen=True)
class Originals:
    """Whole bundles to damage, and one whose files take the place of theirs."""

    bundles: tuple[Bundle, ...]
    donor: Bundle
    graphs: dict[str, bytes]


def write_originals(folder: Path) -> Originals:
    """Write bundles of both schemas, with and without a map, and with an INT8 graph."""
    sizes = SourceSizes.of([(64, 64), (64, 72)])
    length = TrainingLength(17, 100)
    full = write_tiny_bundle(folder / "full", source_sizes=sizes, training=length, bit_depth=12)
    full = add_model(full, "int8", tiny_model())
    score = write_tiny_bundle(folder / "score", outputs=("score",))
    old = read_bundle(Path(shutil.copytree(SCHEMA_1, folder / "old")))
    golden = full.golden()
    # The donor's golden scores are wrong for every other bundle.
    other = Golden(golden.images[::-1].copy(), golden.scores + 3, golden.maps)
    stricter = replace(full.calibration, threshold=60.0)
    donor_models = {"fp32": tiny_model() + b"\x32\x05donor"}
    donor = write_bundle(folder / "donor", full.manifest, stricter, donor_models, other)
    return Originals((full, full, score, old), donor, odd_graphs(folder / "outside.bin"))


def make_bundle(seed: int, folder: Path, originals: Originals) -> OddBundle:
    """Write the damaged bundle of a seed to `folder`, which is replaced."""
    rng = random.Random(seed)
    original = rng.choice(originals.bundles)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(original.path, folder)
    present = [name for name in FILES if (folder / name).exists()]
    name = rng.choice(present)
    if name.endswith(".json"):
        damage, rehashed = _damage_json_file(rng, folder, name)
    else:
        damage, rehashed = _damage_binary(rng, folder, name, originals)
    if damage is None:
        damage = rng.choice(list(FILE_DAMAGES))
        FILE_DAMAGES[damage](rng, folder, name, originals)
        rehashed = False
    return OddBundle(folder, name, damage, original, rehashed)


def _damage_json_file(rng: random.Random, folder: Path, name: str) -> tuple[str | None, bool]:
    """Damage the content of a JSON file; no damage is left to the files themselves."""
    if rng.random() < 0.25:
        return None, False
    path = folder / name
    has_checksum = "checksum" in json.loads(path.read_bytes())
    values = CALIBRATION_VALUES if name == "calibration.json" else MANIFEST_VALUES
    if rng.random() < 0.5:
        key, value = rng.choice(values)
        rehashed = set_value(path, key, value)
        return f"impossible {key}", rehashed
    # Nothing shows a flipped digit in a manifest without a checksum. A calibration may be edited.
    any_damage = has_checksum or name == "calibration.json"
    allowed = [damage for damage in OddJson if any_damage or not damage.is_random]
    damage = rng.choice(allowed)
    path.write_bytes(damage_json(rng, path.read_bytes(), damage))
    return damage.value, False


def _damage_binary(
    rng: random.Random, folder: Path, name: str, originals: Originals
) -> tuple[str | None, bool]:
    """Damage a file and perhaps write its hash again; no damage is left to the files."""
    path = folder / name
    choice = rng.random()
    if choice < 0.3:
        return None, False
    if choice < 0.6:
        damage = rng.choice(list(BYTE_DAMAGES))
        path.write_bytes(BYTE_DAMAGES[damage](rng, path.read_bytes()))
    elif name == "golden.npz":
        damage = rng.choice(list(ODD_ARCHIVES))
        path.write_bytes(ODD_ARCHIVES[damage](path.read_bytes()))
    else:
        damage = rng.choice(list(originals.graphs))
        path.write_bytes(originals.graphs[damage])
        np.ones(1, np.float32).tofile(folder / "weights.bin")
    # Only the FP32 graph is run here.
    rehashed = name != "model.int8.onnx" and rng.random() < 0.7
    if rehashed:
        rehash(folder, name)
    return damage, rehashed


def rehash(folder: Path, name: str) -> None:
    """Write the hash of a file into the manifest, and the checksum of the manifest."""
    import hashlib

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
        if (folder / other).exists() and (folder / other).read_bytes() != content:
            others.append(other)
    other = rng.choice(others)
    (folder / name).write_bytes((folder / other).read_bytes())
    (folder / other).write_bytes(content)


FILE_DAMAGES: dict[str, Callable[[random.Random, Path, str, Originals], None]] = {
    "missing": _take_away,
    "a folder": _folder,
    "a pipe": _pipe,
    "link to nowhere": _link("/nowhere/at/all"),
    "link to itself": _link("NAME"),
    "link to a device": _link("/dev/zero"),
    "of another bundle": _donate,
    "swapped": _swap,
}
