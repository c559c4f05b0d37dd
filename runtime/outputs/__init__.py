"""Outputs: where the judgements of a stream go.

A new output is one file with a subclass of `Output`, and one line in `OUTPUTS`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from flawline import FlawlineError
from flawline.cameras import Camera, Frame
from flawline.cameras.events import CameraEvent
from flawline.options import OptionError, parse_options
from flawline.registry import resolve
from flawline.runtime.bundle import Bundle
from flawline.runtime.console import log
from flawline.runtime.regions import Regions
from flawline.runtime.verdict import Verdict
from flawline.uris import split_options, without_secrets

# Name -> "module:Class", resolved when it is used.
OUTPUTS = {
    "jsonl": "flawline.runtime.outputs.jsonl:JsonLines",
    "csv": "flawline.runtime.outputs.csv_table:CsvTable",
    "webhook": "flawline.runtime.outputs.webhook:Webhook",
    "mqtt": "flawline.runtime.outputs.mqtt:Mqtt",
    "modbus": "flawline.runtime.outputs.modbus:Modbus",
    "opcua": "flawline.runtime.outputs.opcua:OpcUa",
    "gpio": "flawline.runtime.outputs.gpio:Gpio",
    "overlays": "flawline.runtime.outputs.overlays:Overlays",
    "web": "flawline.runtime.outputs.web.output:LivePage",
}
DEFAULT_OUTPUT = "jsonl"


class OutputError(FlawlineError):
    """A judgement cannot be delivered."""


@dataclass(frozen=True)
class ViewVerdict:
    """The verdict on one of several exposures of a part: its score, and its name as of `Verdict`.

    `view` counts the exposures of the part from 0, `index` is that of the frame. `reason` says why
    the view could not be judged. `camera` names the camera if several cameras see the part.
    """

    view: int
    index: int
    score: float
    name: str
    reason: str | None = None
    camera: str | None = None


@dataclass(frozen=True)
class Judgement:
    """A frame, the verdict on it, and the frames per second at that moment.

    `live` is true if the camera of the frame is live. `age` is the time in seconds from the capture
    of the frame to its verdict, None for a file, and `dropped` the number of frames that the camera
    has dropped so far. For a part with several exposures, frame and verdict are those of the worst
    one, and `views` holds all. `camera` is the name of the camera of the frame; None for a single
    camera that has none. `can_wait` is false if any camera of the stream is live: an output must
    then not delay it. `regions` are those of the frame above the pixel threshold; None if it was
    not judged, if the bundle gives none, or if no output uses them. `recipe` is the name of the
    recipe that the part was judged with; None for a stream without recipes.
    """

    frame: Frame
    verdict: Verdict
    fps: float
    live: bool = False
    age: float | None = None
    dropped: int = 0
    views: tuple[ViewVerdict, ...] = ()
    camera: str | None = None
    can_wait: bool = True
    regions: Regions | None = None
    recipe: str | None = None


@dataclass(frozen=True)
class OutputState:
    """How an output does: what it has counted so far, and what is wrong now; None if nothing is."""

    counts: Mapping[str, int] = field(default_factory=dict)
    fault: str | None = None


@dataclass(frozen=True)
class StreamState:
    """What a stream judges with, and how its outputs do.

    `engine` describes the engine, and `cameras` are the names of those with thresholds of their
    own. `own_thresholds` is true if the thresholds are not those of the bundle. `outputs` has each
    output, as it was described, with its state. `engine_name` is that of ENGINES, and `precision`
    that of PRECISIONS. `takes_bundles` is true if the stream takes another bundle that comes to the
    path of its own.
    """

    engine: str
    recipe: str | None
    own_thresholds: bool
    cameras: tuple[str, ...]
    outputs: tuple[tuple[str, OutputState], ...]
    engine_name: str = ""
    precision: str = ""
    takes_bundles: bool = False


@dataclass(frozen=True)
class OutputOptions:
    """Base of the options of an output. See `flawline.options`."""


class Output(ABC):
    """Receives every judgement of a stream.

    A subclass is constructed as `Class(target, options, bundle)`, where `target` is a path, an
    address or empty, and `options` is an instance of the class attribute `Options`. It raises
    OutputError if it cannot deliver. One that keeps anything of the bundle overrides
    `change_bundle`, too.
    """

    description: str = ""
    """How it was described when it was opened, without secrets."""
    required: ClassVar[bool] = True
    """True if the stream ends when a judgement cannot be delivered; False if that is logged."""
    uses_regions: bool = False
    """True if it delivers the regions of a judgement, which are otherwise not computed."""
    untested: ClassVar[str | None] = None
    """The part that no test covers, for example "on a broker"; None if there is none."""
    usage: ClassVar[str] = ""
    """How the output is written on the command line, for help texts."""
    Options: ClassVar[type[OutputOptions]] = OutputOptions

    @classmethod
    def missing(cls) -> str | None:
        """Say what must be installed before this output can be used; None if it can be used."""
        return None

    @classmethod
    def example(cls, folder: Path) -> str | None:
        """Return a target that works without hardware or network, or None if there is none.

        Files may be written into `folder`, which is empty. The contract tests use it, so that
        listing an output in OUTPUTS tests it.
        """
        return str(folder / "output")

    @classmethod
    def image_folder(cls, target: str) -> Path | None:
        """Return the folder that images are written to, or None if there is none.

        A stream refuses a folder within that of its own camera, which would show them as parts.
        """
        return None

    @abstractmethod
    def write(self, judgement: Judgement) -> None:
        """Deliver a judgement, or take it over to deliver it later. Raises OutputError.

        The detector overwrites the map of the verdict after that. An error that occurs later is
        raised by the next call of `write`, `finish` or `close`.
        """

    # The methods below are optional, so they are not abstract.

    def follow(self, stream: Callable[[], StreamState]) -> None:  # noqa: B027
        """Take note of what gives the state of the stream; called once, before `attach`.

        Any thread may call it; it does not wait.
        """

    def state(self) -> OutputState:
        """Return how the output does. Any thread may call it; it does not wait."""
        return OutputState()

    def attach(self, camera: Camera) -> None:  # noqa: B027
        """Take note of a camera, before its first frame; called once for each of several.

        An output that also receives, as from a PLC, sends the pulses of a triggered camera or names
        its parts; see `flawline.cameras.triggered`.
        """

    def note_event(self, camera: Camera, event: CameraEvent) -> None:  # noqa: B027
        """Take note of what happened to a camera that was attached. Any thread; must not wait."""

    def change_bundle(self, bundle: Bundle) -> None:  # noqa: B027
        """Take note that the judgements from now on, and the summary, are of another bundle.

        Judgements that were taken over before, and not delivered yet, are of the one before. Either
        both bundles give maps or none does.
        """

    def stop_waiting(self) -> None:  # noqa: B027
        """Delay the stream no longer for a slow peer, since the stream is to end.

        Any thread may call it, also during `write`, and a signal handler, and more than once.
        """

    def totals(self) -> Mapping[str, int]:
        """Deliver what was taken over, and return counts that are added to the summary.

        Called after the last judgement and before `finish`. Does not raise OutputError.
        """
        return {}

    def finish(self, summary: Mapping[str, Any]) -> None:  # noqa: B027
        """Deliver the summary of the run after its last judgement. Raises OutputError."""

    def close(self) -> None:  # noqa: B027
        """Release what the output holds. May be called again."""

    def __enter__(self) -> Output:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.close()
        except OutputError as error:
            # The error that ends the stream must reach the user.
            if self.required and kind is None:
                raise
            log(str(error))


def output_class(name: str) -> type[Output]:
    """Import the class of an output of OUTPUTS. Raises OutputError for an unknown name."""
    target: type[Output] = resolve(OUTPUTS, name, "output", OutputError)
    return target


def missing(name: str) -> str | None:
    """Say what must be installed to use an output of OUTPUTS; None if nothing is missing."""
    try:
        return output_class(name).missing()
    except ImportError as error:
        return str(error)


def usages() -> str:
    """List how each output of OUTPUTS is described, for help texts."""
    examples = []
    for name in OUTPUTS:
        try:
            usage = output_class(name).usage
        except ImportError:
            # `--list` says what is missing.
            usage = ""
        examples.append(usage or name)
    return ", ".join(examples)


def open_output(text: str, bundle: Bundle, *camera_folders: Path) -> Output:
    """Open an output of OUTPUTS that is described as `NAME`, `NAME:TARGET` or with `?OPTIONS`.

    An example is `jsonl:lines.jsonl`. `flawline.uris` says how options are split from the target,
    and how a target with a question mark is written. `camera_folders` are those that the judged
    images are read from: an output that writes images into one of them is refused. Raises
    OutputError for an unknown name or option, and for an output that cannot be used.
    """
    try:
        path, values = split_options(text)
        name, _, target = path.partition(":")
        reason = missing(name)
        if reason is not None:
            raise OutputError(f"output {without_secrets(text)}: {reason}")
        output = output_class(name)
        for folder in camera_folders:
            _require_other_folder(text, output.image_folder(target), folder)
        options = parse_options(output.Options, values)
    except OptionError as error:
        raise OutputError(f"output {without_secrets(text)}: {error}") from error
    create: Callable[[str, OutputOptions, Bundle], Output] = output
    opened = create(target, options, bundle)
    opened.description = without_secrets(text)
    return opened


def _require_other_folder(text: str, images: Path | None, camera_folder: Path) -> None:
    """Refuse to write images into the folder that images are read from, or below it."""
    if images is None:
        return
    if images.resolve().is_relative_to(camera_folder.resolve()):
        raise OutputError(
            f"output {text}: is inside the camera's folder {camera_folder}, where its images would "
            f"be judged as parts; choose a folder outside of it"
        )
