"""User names and passwords of cameras, and that messages do not hold them."""

from __future__ import annotations

from pathlib import Path

import pytest

from flawline.cameras import CameraError, open_camera
from flawline.cameras.credentials import permission_warning, read_credentials
from flawline.uris import mask_secrets, without_secrets


def test_a_file_gives_user_and_password_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "camera.txt"
    path.write_text("# the camera of line 1\n\nuser=Ad min\npassword= p@:/=%41ä \n")
    credentials = read_credentials(str(path))
    assert credentials.user == "Ad min"
    assert credentials.password == " p@:/=%41ä "
    assert "min" not in repr(credentials)
    assert "%41" not in str(credentials)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"user=a\n", "has not both lines; write the lines user=NAME and password=PASSWORD"),
        (b"topsecret\n", "line 1 is not valid"),
        (b"user=a\npasswort=topsecret\n", "line 2 is not valid"),
        (b"user=a\npassword=topsecret\nuser=b\n", "line 3 is not valid"),
        (b"user=a\npassword=\xfftopsecret\n", "is not UTF-8 text"),
        (None, r"cannot be read \(No such file or directory\); check the path"),
    ],
)
def test_a_wrong_file_is_an_error_that_quotes_nothing(
    content: bytes | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "camera.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CameraError, match=message) as caught:
        read_credentials(str(path))
    assert "topsecret" not in str(caught.value)


def test_a_file_that_others_may_read_is_warned_of(tmp_path: Path) -> None:
    path = tmp_path / "camera.txt"
    path.write_text("user=a\npassword=b\n")
    path.chmod(0o600)
    assert permission_warning(str(path)) is None
    path.chmod(0o640)
    assert f"{path}; run chmod 600" in (permission_warning(str(path)) or "")


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("rtsp://me:topsecret@host:554/a", "rtsp://host:554/a"),
        ("http://me:top/secret@host/a", "http://host/a"),
        ("rtsp://me:to@p?secret@host/a?x=1", "rtsp://host/a?x=1"),
        ("rtsp:/me:topsecret@host/a", "host/a"),
        ("me:topsecret@host/a", "host/a"),
        ("rtsp://host/a%3Fusr=me&pwd=topsecret&x=1", "rtsp://host/a%3Fusr=***&pwd=***&x=1"),
        (
            "rtsp://host/user=me_password=topsecret_channel=1",
            "rtsp://host/user=***_password=***_channel=1",
        ),
        ("rtsp://host/a", "rtsp://host/a"),
        ("/data/a:b@c/pass=1", "/data/a:b@c/pass=1"),
        ("folder:///data/a:b@c/image", "folder:///data/a:b@c/image"),
        ("usb://0?fps=25", "usb://0?fps=25"),
    ],
)
def test_secrets_are_left_out_of_a_uri(uri: str, shown: str) -> None:
    assert without_secrets(uri) == shown


def test_an_address_may_have_an_at_sign_in_its_path() -> None:
    assert mask_secrets("rtsp://host/live@2") == "rtsp://host/live@2"


@pytest.mark.parametrize(
    "uri",
    [
        "rtsp://me:top/secret@host/a",
        "rtsp://me:top?secret@host/a",
        "rtsp://me:top#secret@host/a",
        "rtsp://me:topsecret@host:x/a",
        "rtsp://me:topsecret@[::1/a",
        "rtsp://me:topsecret@host:0/a",
        "rtsp://me:topsecret@/a",
        "rtsp://me:topsecret@host/a?x=1",
        "rtsp://me:topsecret@host/a?stall=0",
        "rtsp://me:topsecret@host/a?stall=x",
        "rtsp://host/a?password=topsecret",
        "rtsp://host/a?user=me&password=topsecret&user=me",
        "http://me:topsecret@host/a",
        "rtps://me:topsecret@host/a",
        "rtsp:/me:topsecret@host/a",
        "me:topsecret@host/a",
    ],
)
def test_no_message_about_a_wrong_address_holds_the_password(uri: str) -> None:
    with pytest.raises(CameraError) as caught:
        open_camera(uri)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_credentials_in_the_address_and_in_a_file_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("av")
    path = tmp_path / "camera.txt"
    path.write_text("user=a\npassword=b\n")
    with pytest.raises(CameraError, match="leave one of them out"):
        open_camera(f"rtsp://me@host/a?credentials={path}")
