"""Machine-vision cameras of any maker, GigE Vision or USB3 Vision, through GenTL.

gige://SERIAL?cti=/opt/vendor/producer.cti   gige://?trigger=line1&exposure_us=500

The maker's software brings a GenTL producer, a file that ends in .cti; without the option `cti`,
those in the folders of the environment variable GENICAM_GENTL64_PATH are used. harvesters loads it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from flawline.cameras import CameraError
from flawline.cameras.clock import Clock
from flawline.cameras.devices import Device, choose_device
from flawline.cameras.genicam_pixels import PixelFormat
from flawline.cameras.genicam_settings import GenicamOptions, Settings, first_line
from flawline.cameras.gentl import (
    PATH_VARIABLE,
    create_acquirer,
    fact,
    find_producers,
    give_back,
    load_harvesters,
    simulated_producer,
    use_producer,
)
from flawline.cameras.parts import Block
from flawline.cameras.triggered import POLL_S, TriggeredCamera
from flawline.extras import missing_package
from flawline.options import option

HINT = "check cable, power and the address of the camera, and that the .cti file is for it"
# The number of the first block by transport layer, as the standards say.
FIRST_BLOCK = {"GEV": 1, "U3V": 0}
GIGE = "GEV"
# Access modes of GenICam in which a feature can be written.
WRITABLE = (2, 4)
BUFFERS = 8


@dataclass(frozen=True)
class GigeOptions(GenicamOptions):
    """Options of the `gige` scheme."""

    cti: str | None = option(
        None, f"the GenTL producer, a .cti file; without it, those in {PATH_VARIABLE}"
    )


@dataclass
class _Open:
    """An open camera, and the incomplete buffers that harvesters left out since the last block."""

    acquirer: Any
    transport: str
    pixel_format: PixelFormat
    producers: list[Path]
    incomplete: list[object]


class _Nodes:
    """Implements `genicam_settings.Features`."""

    def __init__(self, node_map: Any) -> None:
        self._nodes = node_map

    def has(self, name: str) -> bool:
        if not self._nodes.has_node(name):
            return False
        return self._nodes.get_node(name).get_access_mode() in WRITABLE

    def read(self, name: str) -> str:
        return str(self._nodes.get_node(name).to_string())

    def write(self, name: str, value: str) -> None:
        self._nodes.get_node(name).from_string(value)

    def execute(self, name: str) -> None:
        self._nodes.get_node(name).execute()


class Gige(TriggeredCamera):
    """A camera by its serial number, by the name that it was given, or by its position.

    Without one of them, the only camera is opened. A buffer that was not received as a whole is
    counted and never judged; for a triggered camera it is the fault of its part.
    """

    untested: ClassVar[str | None] = "on a real camera, and its trigger"
    Options: ClassVar[type[GigeOptions]] = GigeOptions
    usage: ClassVar[str] = "gige://SERIAL?cti=FILE"
    exclusive: ClassVar[bool] = True

    def __init__(
        self, path: str = "", options: GigeOptions | None = None, clock: Clock | None = None
    ) -> None:
        self._options = options or GigeOptions()
        super().__init__(f"gige://{path}", self._options, clock)
        self._wanted = path
        self._producers = find_producers(self._options.cti, self.source)

    @classmethod
    def missing(cls) -> str | None:
        try:
            load_harvesters()
        except ImportError:
            return missing_package("harvesters")
        return None

    @classmethod
    def example(cls, folder: Path) -> str | None:
        """Return the URI of a simulated camera; None where there is no simulated producer."""
        producer = simulated_producer()
        if producer is None:
            return None
        return f"gige://0?cti={producer}&pixel_format=Mono8"

    @classmethod
    def broken_example(cls, folder: Path) -> str:
        """Return the URI of a producer that is not there."""
        return f"gige://?cti={folder}/absent.cti"

    def _open(self) -> _Open:
        used: list[Path] = []
        try:
            devices: list[Device] = []
            for producer in self._producers:
                devices.extend(use_producer(producer, self.source))
                used.append(producer)
            device = choose_device(devices, self._wanted, "gige", HINT)
            acquirer, transport = self._create(device)
            try:
                return self._start_acquisition(acquirer, transport, used)
            except BaseException:
                acquirer.destroy()
                raise
        except BaseException:
            for producer in used:
                give_back(producer)
            raise

    def _create(self, device: Device) -> tuple[Any, str]:
        try:
            return create_acquirer(device)
        except Exception as error:
            remedy = HINT
            if type(error).__name__ == "ResourceInUseException":
                remedy = "it is open already; close the other program, or the other camera"
            elif type(error).__name__ == "AccessDeniedException":
                remedy = "another program uses it, or this user may not; check both"
            raise CameraError(
                f"camera {self.source}: cannot be opened ({first_line(error)}); {remedy}"
            ) from error

    def _start_acquisition(self, acquirer: Any, transport: str, used: list[Path]) -> _Open:
        core = load_harvesters()
        nodes = _Nodes(acquirer.remote_device.node_map)
        pixel_format = Settings(nodes, self._options, self.source).apply()
        incomplete: list[object] = []

        def note(_callback: object, context: object = None) -> None:
            incomplete.append(context)

        callback = type("Callback", (core.Callback,), {"emit": note})()
        acquirer.add_callback(core.ImageAcquirer.Events.INCOMPLETE_BUFFER, callback)
        acquirer.num_buffers = max(BUFFERS, acquirer.min_num_buffers)
        # Milliseconds; the default of one keeps a core busy.
        acquirer.timeout_period_on_update_event_data_call = 20
        acquirer.start()
        return _Open(acquirer, transport, pixel_format, used, incomplete)

    def _first_block(self, handle: _Open) -> int | None:
        return FIRST_BLOCK.get(handle.transport)

    def _take(self, handle: _Open) -> Block | None:
        handle.incomplete.clear()
        try:
            buffer = handle.acquirer.try_fetch(timeout=POLL_S, is_raw=True)
        except Exception as error:
            # The producers have many exceptions without a common base class.
            raise CameraError(
                f"camera {self.source}: stopped giving images ({first_line(error)}); check cable "
                f"and power"
            ) from error
        if handle.incomplete:
            return Block(None, None, "the camera's buffer was incomplete")
        if buffer is None:
            return None
        try:
            return self._block(handle, buffer)
        finally:
            # The producer fills it again.
            buffer.parent.queue_buffer(buffer)

    def _block(self, handle: _Open, buffer: Any) -> Block:
        number = fact(buffer, "frame_id", None)
        if number == 0 and handle.transport == GIGE:
            # GigE Vision has no block 0.
            number = None
        # The first part of a buffer with several, as of several regions, or the buffer itself.
        image = next(iter(fact(buffer, "parts", ())), buffer)
        offset = fact(image, "data_offset", 0)
        pixel_format = handle.pixel_format
        # harvesters would unpack packed pixels, and leaves the padding of rows in.
        data = np.frombuffer(buffer.raw_buffer, np.uint8, offset=offset)
        try:
            pixels = pixel_format.image(
                data, image.width, image.height, fact(image, "padding_x", 0)
            )
        except ValueError as error:
            return Block(None, number, str(error))
        return Block(pixels, number, bit_depth=pixel_format.bits)

    def _fire(self, handle: _Open) -> None:
        handle.acquirer.remote_device.node_map.get_node("TriggerSoftware").execute()

    def _release(self, handle: _Open) -> None:
        try:
            handle.acquirer.stop()
            handle.acquirer.destroy()
        finally:
            for producer in handle.producers:
                give_back(producer)
