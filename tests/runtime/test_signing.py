"""flawline sign, and --trusted-key: only bundles that a trusted key has signed are accepted."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import tiny_model, write_tiny_bundle
from test_bundle_watch import Watch, put

cryptography = pytest.importorskip("cryptography", reason="needs the sign extra")
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from flawline.runtime import calibrate, infer_stream
from flawline.runtime.audit.check import check_log
from flawline.runtime.bundle import (
    Bundle,
    BundleError,
    add_model,
    read_bundle,
    write_calibration,
)
from flawline.runtime.signing import keys
from flawline.runtime.signing.__main__ import main as sign
from flawline.runtime.signing.keys import TrustedKeys, read_trusted, write_new_key
from flawline.runtime.station.bundle_watch import DAMAGED_S
from flawline.runtime.undo import undo_calibration

PEM = serialization.Encoding.PEM
PKCS8 = serialization.PrivateFormat.PKCS8


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the keys ours and theirs, and their public keys."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("ours", "theirs"):
        write_new_key(folder / name)
    return folder


@pytest.fixture
def ours(pairs: Path) -> TrustedKeys:
    trusted = read_trusted([pairs / "ours.pub"])
    assert trusted is not None
    return trusted


@pytest.fixture
def signed(bundle: Bundle, pairs: Path) -> Bundle:
    assert sign([str(bundle.path), "--key", str(pairs / "ours")]) == 0
    return bundle


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert not captured.out
    (line,) = captured.err.splitlines()
    return line


def test_a_new_key_is_for_its_owner_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "line 4.key"
    former = os.umask(0)
    try:
        assert sign(["--new-key", "--key", str(path)]) == 0
    finally:
        os.umask(former)
    public = path.with_name("line 4.key.pub")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(public.stat().st_mode) == 0o644
    assert "wrote the private key" in capsys.readouterr().out
    before = path.read_bytes()
    assert sign(["--new-key", "--key", str(path)]) == 2
    assert "a key is never overwritten" in one_line(capsys)
    public.unlink()
    assert sign(["--new-key", "--key", str(path)]) == 2
    assert "a key is never overwritten" in one_line(capsys)
    assert path.read_bytes() == before
    assert not public.exists()


def test_a_bundle_is_accepted_with_the_key_that_signed_it(
    signed: Bundle, ours: TrustedKeys, pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (fingerprint,) = ours.keys
    assert read_bundle(signed.path, ours).signed_by == fingerprint
    assert read_bundle(signed.path).signed_by is None
    theirs = read_trusted([pairs / "theirs.pub"])
    with pytest.raises(BundleError, match="no signature is valid for a trusted key"):
        read_bundle(signed.path, theirs)
    both = read_trusted([pairs / "theirs.pub", pairs / "ours.pub"])
    assert read_bundle(signed.path, both).signed_by == fingerprint
    capsys.readouterr()
    words = [str(signed.path), "--check", "--trusted-key", str(pairs / "ours.pub")]
    assert sign(words) == 0
    assert f"ok, signed with the key {fingerprint[:16]}" in capsys.readouterr().out
    entry = check_log(signed.path / "audit.jsonl").entries[-1]
    assert (entry.what, entry.note) == ("sign", f"key {fingerprint[:16]} signed the manifest")


def test_a_second_signature_leaves_the_first(
    signed: Bundle, ours: TrustedKeys, pairs: Path
) -> None:
    assert sign([str(signed.path), "--key", str(pairs / "theirs")]) == 0
    assert sign([str(signed.path), "--key", str(pairs / "theirs")]) == 0
    assert len(json.loads((signed.path / "signature.json").read_text())["signatures"]) == 2
    read_bundle(signed.path, ours)
    read_bundle(signed.path, read_trusted([pairs / "theirs.pub"]))


def test_an_unsigned_bundle_is_refused(bundle: Bundle, ours: TrustedKeys) -> None:
    with pytest.raises(BundleError, match=r"it is not signed, .*; sign it where its key is: flaw"):
        read_bundle(bundle.path, ours)


def test_any_change_but_a_threshold_is_refused(signed: Bundle, ours: TrustedKeys) -> None:
    write_calibration(signed, replace(signed.calibration, threshold=70.0))
    assert read_bundle(signed.path, ours).calibration.threshold == 70
    # A wrong file is refused for its hash, and with the hash of another for the signature.
    add_model(signed, "int8", tiny_model())
    with pytest.raises(BundleError, match=r"manifest\.json was changed after it was signed"):
        read_bundle(signed.path, ours)


def test_another_bundle_with_the_signature_of_this_one_is_refused(
    signed: Bundle, ours: TrustedKeys, tmp_path: Path
) -> None:
    other = write_tiny_bundle(tmp_path / "other", tiny_model() + b"\x32\x01x")
    shutil.copyfile(signed.path / "signature.json", other.path / "signature.json")
    with pytest.raises(BundleError, match=r"manifest\.json was changed after it was signed"):
        read_bundle(other.path, ours)


def test_signed_thresholds_cannot_be_changed(
    bundle: Bundle, ours: TrustedKeys, pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(bundle.path), "--key", str(pairs / "ours"), "--thresholds"]
    assert sign(words) == 0
    assert "and its thresholds" in capsys.readouterr().out
    read_bundle(bundle.path, ours)
    write_calibration(bundle, replace(bundle.calibration, threshold=70.0))
    with pytest.raises(BundleError, match=r"calibration\.json is not the one that was signed"):
        read_bundle(bundle.path, ours)
    undo_calibration(bundle.path)
    read_bundle(bundle.path, ours)
    undo_calibration(bundle.path)
    assert sign(words) == 0
    assert read_bundle(bundle.path, ours).calibration.threshold == 70
    # Signed again without them, they are open.
    assert sign(words[:-1]) == 0
    undo_calibration(bundle.path)
    read_bundle(bundle.path, ours)


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    def apply(data: bytes) -> bytes:
        content = json.loads(data)
        change(content)
        return json.dumps(content).encode()

    return apply


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "emptied": lambda data: b"",
    "not JSON": lambda data: data[:-5],
    "a list": lambda data: b"[]",
    "other schema": edited(lambda content: content.update(schema=2)),
    "no signatures": edited(lambda content: content.update(signatures=[])),
    "too many": edited(lambda content: content.update(signatures=content["signatures"] * 101)),
    "not objects": edited(lambda content: content.update(signatures=[3])),
    "unknown key": edited(lambda content: content["signatures"][0].update(more=1)),
    "no key": edited(lambda content: content["signatures"][0].pop("key")),
    "odd hash": edited(lambda content: content["signatures"][0].update(manifest="A" * 64)),
    "odd base64": edited(lambda content: content["signatures"][0].update(signature="§")),
    "short": edited(lambda content: content["signatures"][0].update(signature="AAAA")),
    "no signature": edited(lambda content: content["signatures"][0].update(signature=None)),
    "other manifest": edited(lambda content: content["signatures"][0].update(manifest="0" * 64)),
    "other calibration": edited(
        lambda content: content["signatures"][0].update(calibration="0" * 64)
    ),
    "other key": edited(lambda content: content["signatures"][0].update(key="0" * 64)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_signature_is_one_line(
    damage: str, signed: Bundle, ours: TrustedKeys, pairs: Path
) -> None:
    path = signed.path / "signature.json"
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with pytest.raises(BundleError) as caught:
        read_bundle(signed.path, ours)
    assert len(str(caught.value).splitlines()) == 1
    assert "; " in str(caught.value)
    # Without keys it is not read, and a new one takes its place.
    read_bundle(signed.path)
    assert sign([str(signed.path), "--key", str(pairs / "ours")]) == 0
    read_bundle(signed.path, ours)


def test_each_bit_of_a_signature_counts(signed: Bundle, ours: TrustedKeys) -> None:
    from flawline.runtime.signing.signature import read_signatures

    (good,) = read_signatures(signed.path)
    assert ours.verify(good.key, good.signature, good.message)
    for place in range(0, 8 * len(good.signature), 7):
        wrong = bytearray(good.signature)
        wrong[place // 8] ^= 1 << place % 8
        assert not ours.verify(good.key, bytes(wrong), good.message)
    assert not ours.verify(good.key, good.signature, good.message + b"\n")


def write_key(path: Path, key: Any, password: bytes | None = None) -> Path:
    encryption: Any = serialization.NoEncryption()
    if password is not None:
        encryption = serialization.BestAvailableEncryption(password)
    path.write_bytes(key.private_bytes(PEM, PKCS8, encryption))
    path.chmod(0o600)
    return path


def bad_private_keys(folder: Path, pairs: Path) -> dict[str, Path]:
    key = ed25519.Ed25519PrivateKey.generate()
    open_key = write_key(folder / "open", key)
    open_key.chmod(0o640)
    (folder / "rubbish").write_bytes(b"-----BEGIN PRIVATE KEY-----\nrubbish\n")
    (folder / "rubbish").chmod(0o600)
    public = Path(shutil.copyfile(pairs / "ours.pub", folder / "public"))
    public.chmod(0o600)
    both = folder / "both"
    both.write_bytes(2 * (pairs / "ours").read_bytes())
    both.chmod(0o600)
    return {
        "cannot be read (No such file or directory); check the path": folder / "absent",
        "cannot be read (Is a directory)": folder,
        "other users may read or write it; chmod 600 ": open_key,
        "is encrypted with a password; write it without one: openssl": write_key(
            folder / "encrypted", key, b"secret"
        ),
        "is not an Ed25519 key": write_key(folder / "ec", ec.generate_private_key(ec.SECP256R1())),
        "is not a private key in PEM": folder / "rubbish",
        "is a public key; give the private key": public,
        "holds several keys": both,
    }


def test_a_private_key_that_cannot_be_used_is_one_line(
    bundle: Bundle, tmp_path: Path, pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "keys").mkdir()
    for message, path in bad_private_keys(tmp_path / "keys", pairs).items():
        assert sign([str(bundle.path), "--key", str(path)]) == 2
        assert message in one_line(capsys)
    assert not (bundle.path / "signature.json").exists()


def test_a_public_key_that_cannot_be_used_is_one_line(
    bundle: Bundle, tmp_path: Path, pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rubbish = tmp_path / "rubbish"
    rubbish.write_bytes(b"\xff\xfe")
    curve = tmp_path / "curve"
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    curve.write_bytes(key.public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
    for message, path in {
        "cannot be read (No such file or directory); check the path": tmp_path / "absent",
        "is a private key; give its public key, which ": pairs / "ours",
        "is not a public key in PEM": rubbish,
        "is not an Ed25519 key": curve,
    }.items():
        words = ["--bundle", str(bundle.path), "--camera", "synthetic://?frames=1"]
        assert infer_stream.main([*words, "--trusted-key", str(path)]) == 2
        assert message in one_line(capsys)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--key is needed (or --check)"),
        (["--key", "k"], "the bundle is needed (or --new-key)"),
        (["b", "--check"], "--check needs the bundle and --trusted-key"),
        (["b", "--check", "--key", "k"], "--check takes only the bundle and --trusted-key"),
        (["b", "--key", "k", "--trusted-key", "p"], "--trusted-key is for --check"),
    ],
)
def test_flags_that_do_not_fit(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        sign(words)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_a_damaged_bundle_is_not_signed(
    bundle: Bundle, pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle.model().write_bytes(b"")
    assert sign([str(bundle.path), "--key", str(pairs / "ours")]) == 2
    assert "model.onnx is not the file that was built" in one_line(capsys)


def test_without_the_library_the_extra_is_named(
    bundle: Bundle,
    pairs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cryptography.exceptions", None)
    words = ["--bundle", str(bundle.path), "--camera", "synthetic://?frames=1"]
    assert infer_stream.main([*words, "--trusted-key", str(pairs / "ours.pub")]) == 2
    line = one_line(capsys)
    assert "needs cryptography" in line
    assert "[sign]" in line


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for grey in range(30, 60):
        data = cv2.imencode(".png", np.full((64, 64, 3), grey, np.uint8))[1].tobytes()
        (folder / f"{grey}.png").write_bytes(data)
    return folder


def test_commands_refuse_what_no_trusted_key_signed(
    bundle: Bundle, images: Path, pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trusted = ["--trusted-key", str(pairs / "ours.pub"), "--engine", "onnxruntime"]
    words = ["--bundle", str(bundle.path), *trusted]
    for command in (infer_stream.main, calibrate.main):
        assert command([*words, "--camera", str(images)]) == 2
        assert "it is not signed" in one_line(capsys)
    assert sign([str(bundle.path), "--key", str(pairs / "ours"), "--thresholds"]) == 0
    assert infer_stream.main([*words, "--camera", str(images)]) == 0
    capsys.readouterr()
    rate = ["--false-alarm-rate", "0.05", "--accept-size"]
    assert calibrate.main([*words, "--camera", str(images), *rate]) == 0
    assert "the thresholds before were signed; sign the new ones" in capsys.readouterr().out
    assert infer_stream.main([*words, "--camera", str(images)]) == 2
    assert "calibration.json is not the one that was signed" in one_line(capsys)


def test_a_station_names_its_keys(
    bundle: Bundle, images: Path, pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = images.parent / "station.json"
    shutil.copyfile(pairs / "ours.pub", images.parent / "ours.pub")
    content = {
        "recipe": "part",
        "recipes": [{"name": "part", "bundle": bundle.path.name}],
        "cameras": [{"uri": "images"}],
        "engine": {"name": "onnxruntime"},
        "outputs": ["jsonl:lines.jsonl"],
    }
    path.write_text(json.dumps({**content, "trusted_keys": ["ours.pub"]}))
    assert infer_stream.main(["--station", str(path)]) == 2
    assert "it is not signed" in one_line(capsys)
    assert sign([str(bundle.path), "--key", str(pairs / "ours")]) == 0
    assert infer_stream.main(["--station", str(path)]) == 0
    entry = check_log(path.with_name("audit.jsonl")).entries[-1]
    assert entry.new is not None
    assert len(entry.new["signed_by"]) == 64
    # Those of the flag count, and not those of the file, which others may write.
    path.write_text(json.dumps(content))
    capsys.readouterr()
    words = ["--station", str(path), "--trusted-key"]
    assert infer_stream.main([*words, str(pairs / "theirs.pub")]) == 2
    assert "no signature is valid for a trusted key" in one_line(capsys)
    assert infer_stream.main([*words, str(pairs / "ours.pub")]) == 0


def test_a_running_stream_takes_signed_bundles_only(
    signed: Bundle, ours: TrustedKeys, pairs: Path, tmp_path: Path
) -> None:
    other = write_tiny_bundle(tmp_path / "other", tiny_model() + b"\x32\x01x")
    watch = Watch(signed.path, partial(read_bundle, trusted=ours))
    put(other, signed.path)
    assert "it is not signed" in str(watch.found(DAMAGED_S))
    assert sign([str(other.path), "--key", str(pairs / "ours")]) == 0
    shutil.copyfile(other.path / "signature.json", signed.path / "signature.json")
    found = watch.found()
    assert isinstance(found, Bundle)
    assert found.is_same(other)


def test_a_key_is_not_left_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(keys.os, "fsync", full)
    assert sign(["--new-key", "--key", str(tmp_path / "key")]) == 2
    assert "No space left on device); free disk space" in one_line(capsys)
    assert not list(tmp_path.iterdir())
