"""Ranges of frames of an uncompressed MRC movie: which bytes they are, and the header that belongs to them.

Numbers count from 0 and both ends belong to the range, as in ``0-19``.
"""

import re
import struct
from dataclasses import dataclass

from cryon2n.errors import InputError
from cryon2n.movie_header import MrcHeader

# Offsets in an MRC header (MRC2014): words 3, 10, 13, 20 to 22 and 55.
NZ, MZ, CELL_Z, DENSITIES, RMS = 8, 36, 48, 76, 216


@dataclass(frozen=True)
class Span:
    """A run of bytes of the remote file that is wanted; spans follow one another in the part.

    Attributes
    ----------
    start, length : int
        Bytes.
    """

    start: int
    length: int


@dataclass(frozen=True)
class FrameRange:
    """Frames `first` to `last`, both included, counted from 0."""

    first: int
    last: int

    @property
    def n(self) -> int:
        """Number of frames."""
        return self.last - self.first + 1

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"


def parse_frame_range(text: str) -> FrameRange:
    """Return the range that a text such as ``0-19`` names; at least two frames, or `InputError`."""
    match = re.fullmatch(r"\s*(\d{1,6})\s*-\s*(\d{1,6})\s*", text)
    if not match or int(match[2]) <= int(match[1]):
        raise InputError(
            f"frames {text!r}: wanted FIRST-LAST, counted from 0, at least two frames: 0-19 are the first 20"
        )
    return FrameRange(int(match[1]), int(match[2]))


def spans_of(header: MrcHeader, wanted: FrameRange, where: str) -> list[Span]:
    """Return the bytes of a movie that hold its header and the wanted frames."""
    if wanted.last >= header.frames:
        raise InputError(
            f"{where}: holds frames 0-{header.frames - 1}, wanted {wanted}; correct source: frames (--keep-frames)"
        )
    first = Span(header.data_start + wanted.first * header.frame_bytes, wanted.n * header.frame_bytes)
    return [Span(0, header.data_start), first]


def cut_header(head: bytes, header: MrcHeader, n: int) -> bytes:
    """Return an MRC header (and what follows it) changed to tell of `n` frames only.

    Density statistics are marked as not known (MRC2014: maximum below minimum, mean below both, negative
    rms), since those of the whole movie are not those of its part.
    """
    cut, order = bytearray(head), header.order
    (mz,) = struct.unpack_from(f"{order}i", head, MZ)
    (cell_z,) = struct.unpack_from(f"{order}f", head, CELL_Z)
    struct.pack_into(f"{order}i", cut, NZ, n)
    if mz == header.frames:
        struct.pack_into(f"{order}i", cut, MZ, n)
        struct.pack_into(f"{order}f", cut, CELL_Z, cell_z * n / mz)
    struct.pack_into(f"{order}3f", cut, DENSITIES, 0.0, -1.0, -2.0)
    struct.pack_into(f"{order}f", cut, RMS, -1.0)
    return bytes(cut)
