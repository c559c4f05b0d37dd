"""The numbers of H.264 frames, which tell whether frames were lost between two that came.

A frame that is lost as a whole leaves no damage for the decoder to find. FFmpeg shows the frames
after it with what the ones before it left in their unchanged parts. See sections 7.3.2.1 (sequence
parameter set), 7.3.3 (slice header) and 7.4.3 (frame_num) of ITU-T H.264.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

START_CODE = b"\0\0\1"
# Bytes of a unit that are read: no header is longer, also with scaling lists.
HEADER = 512
SLICE, KEY_SLICE, SEQUENCE, PICTURE = 1, 5, 7, 8
# Profiles whose sequence parameter sets describe the colours.
HIGH_PROFILES = (100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135)


@dataclass(frozen=True)
class _Sequence:
    """What a sequence parameter set says: numbers are below 2 to the power of `bits`."""

    bits: int
    has_colour_planes: bool
    may_have_gaps: bool


class FrameNumbers:
    """Follows the numbers of one stream; `header` are its parameter sets, if they are known.

    Packets and header hold units after start codes (Annex B).
    """

    def __init__(self, header: bytes = b"") -> None:
        self._sequences: dict[int, _Sequence] = {}
        # The sequence of each picture parameter set.
        self._pictures: dict[int, int] = {}
        # That of the last frame that others may depend on.
        self._last: int | None = None
        self.lost_before(header)

    def lost_before(self, packet: bytes) -> bool:
        """Take the next packet; tell whether a frame that it may depend on is missing before it."""
        is_lost = False
        for unit in _units(packet):
            kind = unit[0] & 31
            bits = _Bits(unit[1:])
            try:
                if kind == SEQUENCE:
                    self._note_sequence(bits)
                elif kind == PICTURE:
                    number = bits.exp_golomb()
                    self._pictures[number] = bits.exp_golomb()
                elif kind in (SLICE, KEY_SLICE):
                    is_reference = unit[0] >> 5 & 3 != 0
                    is_lost |= self._note_slice(bits, kind == KEY_SLICE, is_reference)
            except IndexError:
                # The unit is cut off, which the decoder reports.
                continue
        return is_lost

    def _note_slice(self, bits: _Bits, is_key: bool, is_reference: bool) -> bool:
        """Take the header of a slice; tell whether a frame is missing before its frame."""
        bits.exp_golomb()  # first macroblock
        bits.exp_golomb()  # type
        sequence = self._sequences.get(self._pictures.get(bits.exp_golomb(), -1))
        if sequence is None:
            return False
        if sequence.has_colour_planes:
            bits.read(2)
        number = bits.read(sequence.bits)
        if is_key:
            self._last = number
            return False
        before = (number - 1) % 2**sequence.bits
        # Slices of one frame have the same number, and so have two fields.
        is_lost = self._last not in (None, number, before) and not sequence.may_have_gaps
        # What no other frame depends on has the number of the next frame.
        self._last = number if is_reference else before
        return is_lost

    def _note_sequence(self, bits: _Bits) -> None:
        profile = bits.read(8)
        bits.read(16)  # constraints and level
        identifier = bits.exp_golomb()
        has_colour_planes = False
        if profile in HIGH_PROFILES:
            has_colour_planes = _skip_colours(bits)
        number_bits = 4 + bits.exp_golomb()
        _skip_display_order(bits)
        bits.exp_golomb()  # number of reference frames
        self._sequences[identifier] = _Sequence(number_bits, has_colour_planes, bits.read(1) == 1)


class _Bits:
    """Reads the bits of a unit. Raises IndexError at its end."""

    def __init__(self, data: bytes) -> None:
        # Bytes that keep start codes out of a unit.
        self._data = data[:HEADER].replace(b"\x00\x00\x03", b"\x00\x00")
        self._position = 0

    def read(self, count: int) -> int:
        """Return an unsigned number of so many bits."""
        value = 0
        for _ in range(count):
            byte = self._data[self._position // 8]
            value = value << 1 | byte >> (7 - self._position % 8) & 1
            self._position += 1
        return value

    def exp_golomb(self) -> int:
        """Return an unsigned number in the code of section 9.1."""
        zeros = 0
        while self.read(1) == 0:
            zeros += 1
        return (1 << zeros) - 1 + self.read(zeros)

    def signed_exp_golomb(self) -> int:
        """Return a signed number in the code of section 9.1.1."""
        code = self.exp_golomb()
        return (code + 1) // 2 if code % 2 else -code // 2


def _units(packet: bytes) -> Iterator[bytes]:
    """Yield the units of a packet, without their start codes, each up to HEADER bytes."""
    # The first part is what comes before the first start code.
    for unit in packet.split(START_CODE)[1:]:
        if unit:
            yield unit[:HEADER]


def _skip_colours(bits: _Bits) -> bool:
    """Skip colours and scaling lists; tell whether slices name their colour plane."""
    colours = bits.exp_golomb()
    has_colour_planes = False
    if colours == 3:
        has_colour_planes = bits.read(1) == 1
    bits.exp_golomb()  # bits of luma
    bits.exp_golomb()  # bits of chroma
    bits.read(1)
    if bits.read(1):
        for place in range(12 if colours == 3 else 8):
            if bits.read(1):
                _skip_scaling_list(bits, 16 if place < 6 else 64)
    return has_colour_planes


def _skip_scaling_list(bits: _Bits, size: int) -> None:
    last = following = 8
    for _ in range(size):
        if following:
            following = (last + bits.signed_exp_golomb()) % 256
        last = following or last


def _skip_display_order(bits: _Bits) -> None:
    kind = bits.exp_golomb()
    if kind == 0:
        bits.exp_golomb()
    elif kind == 1:
        bits.read(1)
        bits.signed_exp_golomb()
        bits.signed_exp_golomb()
        for _ in range(bits.exp_golomb()):
            bits.signed_exp_golomb()
