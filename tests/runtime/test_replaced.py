"""A bundle takes the place of another one, and the one before comes back."""

from __future__ import annotations

import os
import shutil
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import write_tiny_bundle

from flawline.runtime import files
from flawline.runtime.audit.check import check_log
from flawline.runtime.audit.log import AUDIT_LOG, AuditError, AuditLog
from flawline.runtime.bundle import (
    Bundle,
    BundleError,
    read_bundle,
    write_bundle,
    write_calibration,
)
from flawline.runtime.engines import EngineOptions
from flawline.runtime.replaced import install_bundle, previous_of
from flawline.runtime.teach import main
from flawline.runtime.teaching.new_bundle import NewBundle, write_tested


@pytest.fixture
def new(tmp_path: Path) -> Bundle:
    """Another bundle than the fixture `bundle`, in another folder."""
    return write_tiny_bundle(tmp_path / "new", backbone="other")


def backbone(path: Path) -> str:
    return read_bundle(path).manifest.backbone


@pytest.mark.parametrize("atomic", [True, False])
def test_a_bundle_is_put_in_place_and_undone(
    bundle: Bundle, new: Bundle, atomic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not atomic:
        # As on a file system that cannot exchange two names.
        monkeypatch.setattr(files, "_exchange", lambda *_: False)
    path = bundle.path
    (new.path / "engines").mkdir()
    (new.path / "engines" / "plan").touch()
    assert main([str(path), "--install", str(new.path)]) == 0
    assert (backbone(path), backbone(previous_of(path))) == ("other", "resnet18")
    assert (path / "engines" / "plan").exists()
    assert backbone(new.path) == "other"
    assert main([str(path), "--undo"]) == 0
    assert (backbone(path), backbone(previous_of(path))) == ("resnet18", "other")
    assert main([str(path), "--undo"]) == 0
    assert (backbone(path), backbone(previous_of(path))) == ("other", "resnet18")
    report = check_log(path / AUDIT_LOG)
    assert [entry.what for entry in report.entries] == ["build", "install", "undo", "undo"]
    assert report.entries[1].old == report.entries[0].new == report.entries[2].new
    assert sorted(entry.name for entry in path.parent.iterdir()) == [
        "bundle",
        "bundle.previous",
        "new",
    ]


def test_the_log_says_from_what_the_bundle_was_taught(bundle: Bundle, new: Bundle) -> None:
    facts = {"taught_from": "0" * 12, "train_good_images": "3 false rejects appended"}
    manifest = replace(new.manifest, provenance={**facts, "exempted_patches": "7"})
    models = {"fp32": new.read_model()}
    write_bundle(new.path, manifest, new.calibration, models, new.golden())
    install_bundle(bundle.path, new.path, "by Anna")
    taught = "taught from bundle 000000000000, 3 false rejects appended, exempted patches: 7"
    assert check_log(bundle.path / AUDIT_LOG).entries[-1].note == f"by Anna; {taught}"


def test_the_names_are_exchanged_in_one_step(
    bundle: Bundle, new: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A station that reads the path at any moment finds a whole bundle."""
    found = []
    for name in ("replace", "rename"):
        rename = getattr(files.os, name)

        def watched(source: Path, target: Path, rename: object = rename) -> None:
            rename(source, target)  # type: ignore[operator]
            found.append((bundle.path / "manifest.json").is_file())

        monkeypatch.setattr(files.os, name, watched)
    assert main([str(bundle.path), "--install", str(new.path)]) == 0
    assert found
    assert all(found)


def test_the_place_may_be_a_link(bundle: Bundle, new: Bundle, tmp_path: Path) -> None:
    link = tmp_path / "current"
    link.symlink_to(bundle.path)
    assert main([str(link), "--install", str(new.path)]) == 0
    assert link.is_symlink()
    assert backbone(link) == "other"
    assert previous_of(link) == bundle.path.with_name("bundle.previous")


def test_what_cannot_be_put_in_place_changes_nothing(
    bundle: Bundle, new: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(bundle.path)
    assert main([path, "--undo"]) == 2
    assert "no bundle.previous next to it" in capsys.readouterr().err
    assert main([path, "--install", path]) == 2
    assert "is the bundle in use" in capsys.readouterr().err
    (new.path / "model.onnx").write_bytes(b"damaged")
    assert main([path, "--install", str(new.path)]) == 2
    assert "model.onnx is not the file that was built" in capsys.readouterr().err
    assert backbone(bundle.path) == "resnet18"
    assert not previous_of(bundle.path).exists()


def test_a_full_disk_leaves_the_bundle_and_the_one_before(
    bundle: Bundle,
    new: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = bundle.path
    assert main([str(path), "--install", str(new.path)]) == 0
    log = (path / AUDIT_LOG).read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copy2", full)
    assert main([str(path), "--undo"]) == 2
    assert "cannot be replaced (No space left on device)" in capsys.readouterr().err
    assert (backbone(path), backbone(previous_of(path))) == ("other", "resnet18")
    assert (path / AUDIT_LOG).read_bytes() == log


def test_the_same_bundle_again_leaves_the_one_before(
    bundle: Bundle, new: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    path = bundle.path
    words = [str(path), "--install", str(new.path)]
    assert main(words) == 0
    log = (path / AUDIT_LOG).read_bytes()
    assert main(words) == 0
    assert "already; nothing is changed" in capsys.readouterr().err
    assert (path / AUDIT_LOG).read_bytes() == log
    # Unless something is missing: a graph that is damaged, or a signature.
    (path / "model.onnx").write_bytes(b"damaged")
    assert main(words) == 0
    (new.path / "signature.json").write_text("{}")
    assert main(words) == 0
    assert (path / "signature.json").exists()
    assert (backbone(path), backbone(previous_of(path))) == ("other", "resnet18")
    assert main([str(path), "--undo"]) == 0
    assert backbone(path) == "resnet18"


def test_a_folder_of_the_user_is_not_taken_for_the_bundle_before(
    bundle: Bundle, new: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    (previous_of(bundle.path) / "pictures").mkdir(parents=True)
    assert main([str(bundle.path), "--install", str(new.path)]) == 2
    assert "bundle.previous is no bundle" in capsys.readouterr().err
    assert (previous_of(bundle.path) / "pictures").is_dir()
    assert backbone(bundle.path) == "resnet18"


def test_the_permissions_of_the_place_stay(bundle: Bundle, new: Bundle) -> None:
    bundle.path.chmod(0o2750)
    (bundle.path / AUDIT_LOG).chmod(0o640)
    assert main([str(bundle.path), "--install", str(new.path)]) == 0
    assert stat.S_IMODE(bundle.path.stat().st_mode) == 0o2750
    assert stat.S_IMODE((bundle.path / AUDIT_LOG).stat().st_mode) == 0o640


def fail_for_lack_of_space(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_full_disk_is_reported_for_the_path_that_was_given(
    bundle: Bundle, new: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for the hidden folder that is written first."""
    out = tmp_path / "taught"
    models = {"fp32": bundle.read_model()}
    contents = NewBundle(bundle.manifest, bundle.calibration, models, bundle.golden())
    message = (
        f"{out} cannot be written (No space left on device); free disk space, or choose another "
        f"--out"
    )
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fail_for_lack_of_space)
        with pytest.raises(BundleError) as raised:
            write_tested(contents, out, "onnxruntime", EngineOptions())
    assert str(raised.value) == message
    monkeypatch.setattr(AuditLog, "_append", fail_for_lack_of_space)
    with pytest.raises(BundleError) as raised:
        write_tested(contents, out, "onnxruntime", EngineOptions())
    assert str(raised.value) == message
    assert not out.exists()
    with pytest.raises(BundleError, match=f"{bundle.path} cannot be replaced .*free disk space"):
        install_bundle(bundle.path, new.path)
    assert list(tmp_path.glob(".*")) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_what_root_puts_in_place_belongs_to_the_user_of_the_station(
    bundle: Bundle, new: Bundle
) -> None:
    path = bundle.path
    for owned in (path, *path.iterdir()):
        os.chown(owned, 4321, 4322)
    (new.path / "engines").mkdir()
    (new.path / "engines" / "plan").touch()
    assert main([str(path), "--install", str(new.path)]) == 0
    write_calibration(read_bundle(path), replace(bundle.calibration, threshold=101.0))
    assert main([str(path), "--undo"]) == 0
    for place in (path, previous_of(path)):
        for owned in (place, *place.rglob("*")):
            status = owned.stat()
            if owned.name != "calibration.previous.json":
                assert (status.st_uid, status.st_gid) == (4321, 4322), owned


def test_a_threshold_for_the_bundle_before_is_not_written_into_another(
    bundle: Bundle, new: Bundle
) -> None:
    """As where parts were scored for minutes, and another bundle was installed meanwhile."""
    assert main([str(bundle.path), "--install", str(new.path)]) == 0
    changed = replace(bundle.calibration, threshold=101.0)
    with pytest.raises(AuditError, match="another bundle or threshold came to its folder"):
        write_calibration(bundle, changed)
    assert read_bundle(bundle.path).calibration.threshold == 100.0
    write_calibration(read_bundle(bundle.path), changed)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give one of --source, --append, --install, --undo"),
        (["--undo", "--source", "x"], "give one of"),
        (["--source", "x"], "--source needs --out"),
        (["--undo", "--out", "y"], "--undo writes no other bundle"),
        (["--append", "x", "--out", "y"], "--append needs --good"),
        (["--source", "x", "--good", "z", "--out", "y"], "--append needs --good"),
        (["--source", "x", "--out", "y", "--bank-limit", "5"], "--bank-limit belongs to --append"),
        (["--source", "x", "--out", "y", "--folds", "1"], "neither 0 nor at least 2"),
        (["--source", "x", "--out", "y", "--images", "0"], "--images must be at least 1"),
        (["--undo", "--accept-size"], "--accept-size belongs to --source"),
    ],
)
def test_a_wrong_command_line_is_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["bundle", *words])
    assert message in capsys.readouterr().err
