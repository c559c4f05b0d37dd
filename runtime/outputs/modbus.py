"""Results and triggers in the registers of a Modbus TCP server, which a PLC reads and writes."""

from __future__ import annotations

import importlib.util
import logging
import re
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from flawline.extras import missing_package
from flawline.runtime.bundle import Bundle
from flawline.runtime.outputs import OutputError
from flawline.runtime.outputs.handshake import (
    HandshakeOptions,
    HandshakeServer,
    Result,
    ServerThread,
    require_free,
)

if TYPE_CHECKING:
    from pymodbus.constants import ExcCodes
    from pymodbus.server import ModbusTcpServer

PORT = 502
ANSWER_S = 5.0
TARGET = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^\s/:@\[\]]+)(:(?P<port>\d{1,5}))?")
# Coils and discrete inputs, which this server has none of.
BIT_FUNCTIONS = (1, 2, 5, 15)
# Registers that the PLC writes: control bits, and the part for the next trigger as uint32.
CONTROL = 0
CONTROLS = 3
TRIGGER = 1 << 0
ACKNOWLEDGE = 1 << 1
# Registers that the PLC reads: status bits, and then the result in LAYOUT.
STATUS = 100
READY = 1 << 0
TRIGGER_TAKEN = 1 << 1
TRIGGER_REFUSED = 1 << 2
BUSY = 1 << 3
RESULT_READY = 1 << 4
# Verdict (uint16), number and part (uint32), score, threshold and milliseconds (float32), and the
# number of dropped results (uint32). Modbus sends the high byte and the high register first.
LAYOUT = ">HIIfffI"
LARGEST = 0xFFFF_FFFF
VERDICTS = {"good": 1, "anomalous": 2, "unjudged": 3}
SIZE = 1 + struct.calcsize(LAYOUT) // 2


class Modbus(HandshakeServer):
    """A Modbus TCP server whose registers hold the handshake with a PLC.

    `target` is the address to listen on. The PLC is the client, as it is with cameras and sensors
    that speak Modbus: it decides when a part is in place, and how often it reads. A rising
    trigger bit takes the part number that was written, sends the pulse to a camera with
    `trigger=software`, or names the next part of another trigger. The result is shown until the
    acknowledge bit rises, and the next one after it has fallen. docs/outputs.md lists the
    registers.
    """

    usage: ClassVar[str] = "modbus:ADDRESS[:PORT]"

    def __init__(self, target: str, options: HandshakeOptions, bundle: Bundle) -> None:
        match = TARGET.fullmatch(target)
        if match is None or int(match["port"] or PORT) > 65535:
            raise OutputError(
                "output modbus: needs the address of this machine that the PLC connects to; "
                f"write {self.usage}, and 0.0.0.0 for all addresses"
            )
        self._address = (match["host"].strip("[]"), int(match["port"] or PORT))
        super().__init__(f"output modbus: {target}", options, bundle)
        # The control bits that were written last, and what became of the last trigger.
        self._control = 0
        self._answer = 0
        self._server: Any = None
        self._start()

    @classmethod
    def missing(cls) -> str | None:
        if importlib.util.find_spec("pymodbus") is None:
            return missing_package("pymodbus")
        return None

    @classmethod
    def example(cls, folder: Path) -> str:
        """Return the address of this machine, with any free port."""
        return "127.0.0.1:0?end_s=0"

    def _start(self) -> None:
        require_free(self._name, *self._address)
        # A PLC that disconnects is no error.
        logging.getLogger("pymodbus").setLevel(logging.CRITICAL)
        self._thread = ServerThread("modbus")
        try:
            self._server = self._thread.call(self._listen(), ANSWER_S)
        except (RuntimeError, OSError) as error:
            self._thread.close()
            raise OutputError(
                f"{self._name}: cannot listen ({error}); choose a free port"
            ) from error

    async def _listen(self) -> ModbusTcpServer:
        from pymodbus.server import ModbusTcpServer
        from pymodbus.simulator import DataType, SimData, SimDevice

        controls = SimData(CONTROL, count=CONTROLS, datatype=DataType.REGISTERS)
        status = SimData(STATUS, count=SIZE, datatype=DataType.REGISTERS, readonly=True)
        # The identifier 0 answers to every unit identifier.
        device = SimDevice(0, [controls, status], action=self._access)
        server = ModbusTcpServer(device, address=self._address)
        await server.serve_forever(background=True)
        return server

    def _stop(self) -> None:
        if self._server is not None:
            self._thread.call(self._server.shutdown(), ANSWER_S)
            self._server = None
        self._thread.close()

    # What the thread of the server calls.

    async def _access(
        self,
        function: int,
        first: int,
        address: int,
        count: int,
        registers: list[int],
        values: Any,
    ) -> ExcCodes | None:
        """Take what the PLC writes, and update what it reads. One request at a time."""
        from pymodbus.constants import ExcCodes

        if function in BIT_FUNCTIONS:
            return ExcCodes.ILLEGAL_FUNCTION
        if values is not None:
            controls = registers[CONTROL - first : CONTROL - first + CONTROLS]
            for offset, value in enumerate(values):
                controls[address - CONTROL + offset] = int(value)
            self._take_controls(controls)
        start = STATUS - first
        registers[start : start + SIZE] = self._show()
        return None

    def _take_controls(self, controls: list[int]) -> None:
        control = controls[0]
        rising = control & ~self._control
        self._control = control
        if rising & ACKNOWLEDGE:
            self._acknowledge()
        if rising & TRIGGER:
            part = controls[1] << 16 | controls[2]
            taken = self._trigger(str(part) if part else None)
            self._answer = TRIGGER_TAKEN if taken else TRIGGER_REFUSED
        if not control & TRIGGER:
            self._answer = 0

    def _show(self) -> list[int]:
        """Return the registers that the PLC reads."""
        status = self._answer
        if self._can_trigger:
            status |= READY
        if self._is_busy:
            status |= BUSY
        result = self._shown
        # The acknowledge bit must fall before the next result is shown.
        if result is not None and not (self._acknowledges and self._control & ACKNOWLEDGE):
            status |= RESULT_READY
            return [status, *_registers(result, self._lost)]
        return [status, *([0] * (SIZE - 3)), *_words(struct.pack(">I", self._lost))]


def _registers(result: Result, lost: int) -> list[int]:
    return _words(
        struct.pack(
            LAYOUT,
            VERDICTS[result.verdict],
            result.number & LARGEST,
            _number_of(result.part),
            result.score,
            result.threshold,
            1e3 * result.judging,
            lost & LARGEST,
        )
    )


def _number_of(part: str) -> int:
    """Return the number that a part is named by; 0 if its name is none, or too large."""
    if part.isdecimal() and part.isascii() and int(part) <= LARGEST:
        return int(part)
    return 0


def _words(data: bytes) -> list[int]:
    return list(struct.unpack(f">{len(data) // 2}H", data))
