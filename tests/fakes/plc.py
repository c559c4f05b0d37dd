"""A PLC that triggers parts over Modbus TCP and reads their results."""

from __future__ import annotations

import struct
import time
from dataclasses import dataclass

from pymodbus.client import ModbusTcpClient

WAIT_S = 30.0
READY, TAKEN, REFUSED, BUSY, RESULT = 1, 2, 4, 8, 16


@dataclass(frozen=True)
class Status:
    """What the registers from 100 hold."""

    bits: int
    verdict: int
    number: int
    part: int
    score: float
    threshold: float
    milliseconds: float
    lost: int


class Plc:
    """A client of the server on a port of 127.0.0.1."""

    def __init__(self, port: int) -> None:
        self.client = ModbusTcpClient("127.0.0.1", port=port)
        assert self.client.connect()

    def status(self) -> Status:
        answer = self.client.read_holding_registers(100, count=14)
        assert not answer.isError(), answer
        data = struct.pack(">14H", *answer.registers)
        return Status(*struct.unpack(">HHIIfffI", data))

    def control(self, *registers: int) -> None:
        """Write the control bits, and with three registers the number of the part as well."""
        assert not self.client.write_registers(0, list(registers)).isError()

    def wait_for(self, bits: int, absent: int = 0) -> Status:
        """Wait until all these bits are set, and none of the others."""
        end = time.monotonic() + WAIT_S
        while True:
            status = self.status()
            if status.bits & bits == bits and not status.bits & absent:
                return status
            assert time.monotonic() < end, status

    def trigger(self, part: int) -> None:
        """Trigger a part, and wait until that was taken."""
        self.wait_for(READY)
        self.control(1, part >> 16, part & 0xFFFF)
        self.wait_for(TAKEN)
        self.control(0)

    def take(self) -> Status:
        """Wait for the next result, and acknowledge it."""
        status = self.wait_for(RESULT)
        self.control(2)
        self.wait_for(0, absent=RESULT)
        self.control(0)
        return status

    def close(self) -> None:
        self.client.close()
