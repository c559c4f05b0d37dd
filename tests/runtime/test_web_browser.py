"""The live page in a real browser."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra web")
sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")

from conftest import write_tiny_bundle
from fakes.page import Belt, judged, running_stream

from flawline.cameras import events
from flawline.cameras.events import CameraEvent
from flawline.runtime.bundle import Bundle, read_bundle, write_calibration
from flawline.runtime.calibration import Level
from flawline.runtime.outputs import StreamState, open_output
from flawline.runtime.outputs.web import feed, lane, pictures
from flawline.runtime.outputs.web.output import LivePage

WAIT_MS = 20_000
TOKEN = "0123456789abcdef-secret"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
VIEWS = ("live", "threshold", "teach", "health")
TEACHING_MS = 120_000  # of a process with a low priority, beside other tests


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    found = [path for name in CHROMIUM if (path := shutil.which(name)) is not None]
    if not found:
        pytest.skip("needs Chromium: apt-get install chromium")
    arguments = ["--disable-gpu"]
    if os.getuid() == 0:
        arguments.append("--no-sandbox")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found[0], args=arguments)
        yield browser
        browser.close()


@pytest.fixture(autouse=True)
def _pictures_need_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane, "PICTURE_S", 0.0)
    monkeypatch.setattr(pictures, "REST", 0.0)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    bundle = write_tiny_bundle(tmp_path / "bundle")
    level = Level(60.0, 0.05, (0.03, 0.09))
    write_calibration(bundle, dataclasses.replace(bundle.calibration, review=level))
    return read_bundle(bundle.path)


class Line:
    """A station whose parts are written by the test, and a browser that looks at it."""

    def __init__(self, browser: Any, bundle: Bundle, target: str = "127.0.0.1:0") -> None:
        self.bundle = bundle
        self.page = self.start(target)
        self.address = f"http://127.0.0.1:{self.page.port}"
        self.context = browser.new_context(viewport={"width": 1280, "height": 900})
        self.tab = self.context.new_page()
        self.tab.set_default_timeout(WAIT_MS)
        self.faults: list[str] = []
        self.tab.on("pageerror", lambda error: self.faults.append(str(error)))
        self.tab.on("console", self._note)

    def _note(self, message: Any) -> None:
        # A server that is gone is one, too.
        if message.type == "error" and "ERR_" not in message.text and "401" not in message.text:
            self.faults.append(message.text)

    def start(self, target: str) -> LivePage:
        page = open_output(f"web:{target}", self.bundle)
        assert isinstance(page, LivePage)
        self.camera = Belt(knows_parts=True)
        page.follow(lambda: StreamState("test engine", "cap", False, (), ()))
        page.attach(self.camera)
        return page

    def open(self, view: str = "live") -> None:
        self.tab.goto(f"{self.address}/#{view}", wait_until="domcontentloaded")

    def text(self, selector: str) -> Any:
        return self.tab.locator(selector).first

    def until(self, condition: Callable[[], bool]) -> None:
        for _ in range(WAIT_MS // 50):
            if condition():
                return
            self.tab.wait_for_timeout(50)
        raise AssertionError("it did not come")

    def close(self) -> None:
        self.context.close()
        self.page.close()


@pytest.fixture
def line(browser: Any, bundle: Bundle) -> Iterator[Line]:
    line = Line(browser, bundle)
    yield line
    line.close()
    assert line.faults == []


def see(locator: Any, text: str, wait_ms: int = WAIT_MS) -> None:
    sync_api.expect(locator).to_contain_text(text, timeout=wait_ms)


def has_count(locator: Any, count: int) -> None:
    sync_api.expect(locator).to_have_count(count, timeout=WAIT_MS)


def test_frames_verdicts_and_parts_appear(line: Line) -> None:
    line.page.write(judged(20.0))
    line.open()
    see(line.text(".verdict-word"), "Accept")
    line.text(".picture-frame img[src]").wait_for()
    assert line.tab.locator(".picture-frame img").evaluate("image => image.naturalWidth") == 64
    line.page.write(judged(200.0, threshold=100.0))
    see(line.text(".verdict-word"), "Reject")
    see(line.text(".n-score"), "200.0")
    see(line.text("#kept"), "Reject")
    assert line.tab.locator(".boxes rect").count() == 2
    line.text(".kept-part").click()
    see(line.text("#zoom-facts"), "200.0")
    line.tab.keyboard.press("Escape")
    assert not line.text("#zoom").is_visible()
    line.page.note_event(line.camera, CameraEvent(events.FAILED, "the cable is out"))
    see(line.text("#faults"), "the cable is out")
    line.open("health")
    see(line.text("#health"), "1 fault")
    # The verdict stays in sight.
    see(line.text("#mini"), "Reject")


def test_a_threshold_is_dragged_compared_and_saved(line: Line, bundle: Bundle) -> None:
    for score in (20.0, 30.0, 80.0, 95.0, 120.0, 200.0):
        line.page.write(judged(score))
    line.open("threshold")
    see(line.text(".effect-line"), "Of the last 6 frames, 2 would be rejected")
    grip = line.text(".handle.reject .grip").bounding_box()
    assert grip is not None
    x, y = grip["x"] + grip["width"] / 2, grip["y"] + grip["height"] / 2
    line.tab.mouse.move(x, y)
    line.tab.mouse.down()
    line.tab.mouse.move(x - 60, y, steps=4)
    line.tab.mouse.up()
    see(line.text(".effect-line"), "3 would be rejected (50 %), 1 more than now")
    # With the keys as well, and never below the other threshold.
    slider = line.text(".handle.reject")
    slider.press("Home")
    assert float(slider.get_attribute("aria-valuenow")) == 60.0
    see(line.text(".effect-line"), "4 would be rejected")
    see(line.text(".caution"), "Held-out good images scored higher")
    save = line.text("button.primary")
    assert save.is_disabled()
    line.tab.fill("#desk-threshold", "110")
    assert save.is_disabled()
    line.tab.fill("#desk-person", "Anna Berg")
    save.click()
    see(line.text(".desk-result"), "Saved in the name of Anna Berg")
    calibration = read_bundle(bundle.path).calibration
    assert (calibration.threshold, calibration.review_threshold) == (110.0, 60.0)
    entry = json.loads((bundle.path / "audit.jsonl").read_text().splitlines()[-1])
    assert entry["note"] == "moved by hand by Anna Berg"
    line.page.write(judged(20.0, threshold=110.0))
    see(line.text(".desk-result"), "The station judges with it since")
    # A person is asked for each time.
    line.tab.get_by_text("Bring back 100.0").click()
    see(line.text(".desk-result"), "Your name is needed")
    line.tab.fill("#desk-person", "Bo")
    line.tab.get_by_text("Bring back 100.0").click()
    see(line.text(".desk-result"), "Brought back in the name of Bo")
    assert read_bundle(bundle.path).calibration.threshold == 100.0


def test_a_station_that_is_gone_does_not_look_alive(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    line.page.write(judged(150.0))
    line.open()
    see(line.text("#link-word"), "Live")
    line.text(".kept-part img[src]").wait_for()
    shown = line.text(".kept-part img").get_attribute("src")
    deadman = line.text("#deadman")
    opacity = "element => getComputedStyle(element).opacity"
    assert deadman.evaluate(opacity) == "0"
    # A connection that stands, and through which nothing comes.
    monkeypatch.setattr(feed, "PULSE_S", 1e9)
    see(line.text("#link-word"), "No connection")
    see(line.text("#gone"), "What is shown is old")
    line.until(lambda: deadman.evaluate(opacity) == "1")
    assert "stale" in line.text("body").get_attribute("class")
    monkeypatch.setattr(feed, "PULSE_S", 1.0)
    see(line.text("#link-word"), "Live")
    port = line.page.port
    line.page.close()
    see(line.text("#link-word"), "Stopped")
    assert "stale" in line.text("body").get_attribute("class")
    # It connects again by itself.
    line.page = line.start(f"127.0.0.1:{port}")
    line.page.write(judged(200.0))
    see(line.text("#link-word"), "Live")
    see(line.text(".verdict-word"), "Reject")
    assert deadman.evaluate(opacity) == "0"
    # Its parts are counted from 1 again, and the pictures of those before are not shown for them.
    image = line.text(".kept-part img[src]")
    sync_api.expect(image).not_to_have_attribute("src", str(shown), timeout=WAIT_MS)


def test_a_page_whose_scripts_hang_does_not_look_alive(line: Line) -> None:
    """Its animation is not driven by scripts."""
    line.page.write(judged(20.0))
    line.open()
    see(line.text("#link-word"), "Live")
    # No timer runs any more, and no message is taken.
    line.tab.evaluate(
        "() => { for (let id = 0; id < 10000; id += 1) { clearInterval(id); clearTimeout(id); }"
        "EventSource.prototype.dispatchEvent = () => {}; window.stop(); }"
    )
    line.page._board.phase = "starting"
    line.context.set_offline(True)
    deadman = line.text("#deadman")
    line.until(lambda: deadman.evaluate("element => getComputedStyle(element).opacity") == "1")


def test_the_token_is_asked_for(browser: Any, bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "token.txt"
    path.write_text(TOKEN)
    path.chmod(0o600)
    line = Line(browser, bundle, f"0.0.0.0:0?token_file={path}")
    try:
        line.open()
        assert line.tab.url.partition("#")[0].endswith("/login")
        line.tab.fill("#token", "wrong")
        line.text("button").click()
        see(line.text(".refused"), "not the token")
        line.tab.fill("#token", TOKEN)
        line.text("button").click()
        see(line.text("#link-word"), "Live")
        assert line.tab.evaluate("document.cookie") == ""
        # When the token is changed, it is asked for again.
        path.write_text(f"{TOKEN}-2")
        port = line.page.port
        line.page.close()
        line.page = line.start(f"0.0.0.0:{port}?token_file={path}")
        line.tab.wait_for_url("**/login")
    finally:
        line.close()
    assert line.faults == []


def test_why_a_bundle_cannot_be_taught_is_said(line: Line) -> None:
    line.page.write(judged(200.0))
    line.open("teach")
    see(line.text("#teach .desk-note"), "this stream keeps its bundle")
    mark = line.tab.get_by_role("button", name="Not a defect")
    has_count(mark, 1)
    assert mark.is_disabled()
    assert line.tab.get_by_role("button", name="Collect").is_disabled()
    line.tab.fill("#teach-person", "Anna Berg")
    assert line.tab.get_by_role("button", name="Teach", exact=True).is_disabled()


@pytest.mark.torch
def test_a_false_reject_is_taught_and_the_stream_takes_the_new_bundle(
    browser: Any, tmp_path: Path
) -> None:
    pytest.importorskip("torch", reason="needs the train extra")
    from test_teach import bundle_of, noise, patchcore, write

    bundle = bundle_of(patchcore(noise(6, 1)), noise(6, 2), tmp_path / "part")
    camera = write(tmp_path / "camera", noise(1, 3, 180))

    def show(name: str, images: list[Any]) -> None:
        write(tmp_path / name, images)
        for path in sorted((tmp_path / name).iterdir()):
            path.rename(camera / f"{name}-{path.name}")

    words = ["--bundle", str(bundle.path), "--camera", f"{camera}?watch=1&settle=0"]
    words += ["--engine", "onnxruntime", "--threads", "1", "--web", "127.0.0.1:0"]
    words += ["--output", f"jsonl:{tmp_path / 'lines'}"]
    with running_stream(*words) as (stream, port):
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        tab = context.new_page()
        tab.set_default_timeout(WAIT_MS)
        tab.goto(f"http://127.0.0.1:{port}/#teach", wait_until="domcontentloaded")
        mark = tab.get_by_role("button", name="Not a defect")
        has_count(mark, 1)
        # The page keeps at most ten rejected parts per second.
        show("second", noise(1, 8, 180))
        has_count(mark, 2)
        mark.first.click()
        see(tab.locator("#teach .desk-result"), "Your name is needed")
        tab.fill("#teach-person", "Anna Berg")
        mark.first.click()
        has_count(mark, 1)
        mark.first.click()
        has_count(tab.get_by_role("button", name="Good: Anna Berg"), 2)
        see(tab.locator(".missing"), "at least 5 are needed")
        tab.fill("#teach-count", "10")
        tab.get_by_role("button", name="Collect").click()
        see(tab.locator(".tile-line"), "10 more to come")
        show("good", [*noise(6, 4), *noise(4, 5, 180)])
        see(tab.locator(".tile-line"), "10 collected, of which")
        see(tab.locator(".missing"), "The threshold may reject 9.1")
        tab.get_by_role("button", name="Teach", exact=True).click()
        see(tab.locator(".steps"), "Taught, tested and put in place", TEACHING_MS)
        # It is taken between two parts, when it is open.
        for number in range(TEACHING_MS // 500):
            show(f"next{number:03d}", noise(1, 100 + number))
            tab.wait_for_timeout(500)
            if "The station judges with it" in tab.locator(".steps").inner_text():
                break
        see(tab.locator(".steps"), "The station judges with it")
        show("last", noise(1, 7, 180))
        tab.fill("#teach-person", "Bo")
        tab.get_by_text(f"Bring back {bundle.short_id}").click()
        see(tab.locator("#teach .desk-result"), f"Bundle {bundle.short_id} was brought back")
        context.close()
        stream.terminate()
        assert stream.wait(WAIT_MS / 1000) == 0
    lines = [json.loads(text) for text in (tmp_path / "lines").read_text().splitlines()[:-1]]
    assert [line["verdict"] for line in (lines[0], lines[-1])] == ["anomalous", "good"]
    assert len({line["bundle"] for line in lines}) == 2
    log = (bundle.path / "audit.jsonl").read_text().splitlines()
    notes = [json.loads(text).get("note") for text in log]
    assert "2 false rejects marked by Anna Berg" in notes[-2]
    assert notes[-1] == "on the live page by Bo"


@pytest.mark.parametrize("width", [820, 1280])
def test_views_fit_their_width_in_both_schemes(line: Line, width: int) -> None:
    for score in (20.0, 80.0, 200.0):
        line.page.write(judged(score))
    line.tab.set_viewport_size({"width": width, "height": 1000})
    for scheme in ("light", "dark"):
        line.tab.emulate_media(color_scheme=scheme)
        for view in VIEWS:
            line.open(view)
            line.text(f"[data-panel={view}]").wait_for()
            see(line.text("#link-word"), "Live")
            assert line.tab.evaluate("document.documentElement.scrollWidth") <= width, view
