"""What a movie file says of itself, and whether the file is whole: MRC, compressed MRC, TIFF and EER.

A download is judged twice: by its first bytes, so that an error page or another movie is refused in the
first second and not after gigabytes, and once complete, down to the place of every strip.  No pixel is
decoded.  The MRC format is MRC2014 (https://www.ccpem.ac.uk/mrc-format/mrc2014/); TIFF and EER are read
in ``tiff_header``.
"""

import bz2
import contextlib
import dataclasses
import errno
import gzip
import math
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from cryon2n import log, tiff_header
from cryon2n.errors import InputError

MOVIE_ENDINGS = (".mrcs.bz2", ".mrc.bz2", ".mrcs.gz", ".mrc.gz", ".tiff", ".mrcs", ".tif", ".eer", ".mrc")
MRC_HEADER = 1024  # bytes
# Mode: bits of a pixel, and what is in it.  Mode 0 is signed by the letter of the format, but movies hold counts.
MRC_MODES = {
    0: (8, "uint8"),
    1: (16, "int16"),
    2: (32, "float32"),
    3: (32, "complex_int16"),
    4: (64, "complex64"),
    6: (16, "uint16"),
    12: (16, "float16"),
    101: (4, "uint4"),
}
MRC_SIDE = 1 << 18  # pixels; no detector is wider, but what other formats begin with can read as a width
MAGIC = {  # what files of a kind begin with, and what such a file is called
    "tiff": (tiff_header.TIFF_MAGIC, "a TIFF file"),
    "eer": (tiff_header.TIFF_MAGIC, "an EER file"),
    "gz": ((b"\x1f\x8b\x08",), "a gzip file"),
    "bz2": ((b"BZh",), "a bzip2 file"),
    "html": ((b"<",), "an HTML or XML page"),
    "hdf5": ((b"\x89HDF",), "an HDF5 file"),
}
CHUNK = 1 << 20  # bytes


class WrongFile(InputError):
    """The bytes themselves are not what was wanted: another file, or a damaged one."""


@dataclass(frozen=True)
class Geometry:
    """What a movie holds; None where that is not known.

    The data type is NumPy's name, ``uint4`` or ``complex_int16``; MRC mode 0 and electron events are
    ``uint8``, because they are counts.
    """

    frames: int | None = None
    h: int | None = None  # pixels
    w: int | None = None
    data_type: str | None = None

    def __str__(self):
        """Give it as ``38 frames of 7676 x 7420 (h x w), uint8``, without what is not known."""
        count = "frames" if self.frames is None else f"{self.frames} frame{'s' * (self.frames != 1)}"
        if (self.h, self.w) != (None, None):
            h, w = ("?" if side is None else side for side in (self.h, self.w))
            count += f" of {h} x {w} (h x w)"
        return f"{count}, {self.data_type}" if self.data_type else count


@dataclass(frozen=True)
class MrcHeader:
    """The part of an MRC header that tells how long the file is."""

    order: str  # < or >, of the bytes of a number
    frames: int
    h: int  # pixels
    w: int
    mode: int  # one of MRC_MODES
    extended: int  # bytes between header and data

    @property
    def data_start(self) -> int:
        """Position of the first frame, in bytes."""
        return MRC_HEADER + self.extended

    @property
    def frame_bytes(self) -> int:
        """Bytes of a frame; rows of 4-bit pixels end at a whole byte."""
        return self.h * tiff_header.row_bytes(self.w, MRC_MODES[self.mode][0])

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return self.data_start + self.frames * self.frame_bytes

    @property
    def geometry(self) -> Geometry:
        """What the file holds."""
        return Geometry(self.frames, self.h, self.w, MRC_MODES[self.mode][1])


def movie_ending(name: str) -> str | None:
    """Return the one of `MOVIE_ENDINGS` that a file's name ends in, in any case; None if it is no movie."""
    return next((ending for ending in MOVIE_ENDINGS if name.lower().endswith(ending)), None)


def parse_mrc_header(head: bytes, where: str) -> MrcHeader:
    """Read an MRC header (MRC2014).

    Parameters
    ----------
    head : bytes
        At least the file's first 1024 bytes.
    where : str
        What the message calls the file.

    Raises
    ------
    WrongFile
        Too few bytes, an unknown mode, or sizes that cannot be.
    """
    if len(head) < MRC_HEADER:
        raise _other_format(head, "an MRC file", where, f"it has {len(head)} bytes, an MRC header {MRC_HEADER}")
    # The machine stamp; old programs leave it empty, and then only one order makes sense.
    orders = {0x44: "<", 0x11: ">"}.get(head[212], "<>")
    headers = [_mrc_header_in(head, order) for order in orders]
    for header in headers:
        sides_fit = 0 < min(header.w, header.h) and max(header.w, header.h) <= MRC_SIDE
        if header.mode in MRC_MODES and sides_fit and header.frames > 0 and header.extended >= 0:
            return header
    n, h, w, mode = dataclasses.astuple(headers[0])[1:5]
    raise _other_format(head, "an MRC file", where, f"its header says mode {mode}, {Geometry(n, h, w)}")


def read_head(head: bytes, name: str, where: str) -> Geometry | None:
    """Tell from a movie's first bytes what it holds, as far as they go.

    Parameters
    ----------
    head : bytes
        The first 64 KiB or so.
    name : str
        The file's name, which tells the format.
    where : str
        What the message calls the file.

    Returns
    -------
    geometry : Geometry or None
        None where the first bytes do not tell: the name is no movie's, a TIFF's directory or an EER's
        first frame comes later, or the head holds no complete block of a bzip2 file (up to 900 kB each).

    Raises
    ------
    WrongFile
        The bytes are plainly of another format, such as an error page.
    """
    kind = _kind(name)
    if kind == "mrc":
        return parse_mrc_header(head, where).geometry
    if kind in ("gz", "bz2"):
        return _read_compressed_head(head, kind, where)
    if kind in ("tiff", "eer"):
        return _read_tiff_head(head, kind, where)
    return None


def check_head(head: bytes, name: str, size: int, where: str, wanted: Geometry) -> None:
    """Check a movie's first bytes, as far as they go: the format, the size of the file, what it holds.

    Parameters
    ----------
    head : bytes
        The first 64 KiB or so.
    name : str
        The file's name, which tells the format; one that is no movie is not checked.
    size : int
        Bytes of the whole file, most of which need not be there yet.
    where : str
        What the message calls the file.
    wanted : Geometry
        Compared where both sides are known.

    Raises
    ------
    WrongFile
    """
    found = read_head(head, name, where)
    kind = _kind(name)
    if kind == "mrc":
        _check_size(parse_mrc_header(head, where), size, where)
    elif kind in ("tiff", "eer"):
        directory = tiff_header.first_directory(head)
        if not 0 < directory < size:
            raise WrongFile(
                f"{where}: has {size} bytes, but its TIFF directory is said to lie at byte {directory}; "
                "it is damaged or not the file that was meant: check the address or the sheet's row"
            )
    if found is not None:
        _check_geometry(found, wanted, where)


def check_movie(path: str | Path, name: str, where: str, wanted: Geometry) -> None:
    """Check a complete movie file: that nothing is missing, and that it holds what was wanted.

    An uncompressed MRC file must have the size of its header.  A compressed one is decompressed once,
    in constant memory (bzip2 gives 10 to 15 MB of movie per second).  In a TIFF or EER file every page is
    visited: the frames must be alike and each strip must lie inside the file.

    Parameters
    ----------
    path : path
    name : str
        The movie's own name, which tells the format (`path` may end in ``.part``); one that is no
        movie is not checked.
    where : str
        What the message calls the file.
    wanted : Geometry
        Compared where both sides are known.

    Raises
    ------
    WrongFile
        The file is damaged, truncated, of another format, or holds something else.
    InputError
        The file cannot be read.
    """
    kind = _kind(name)
    if kind is None:
        return
    try:
        if kind in ("tiff", "eer"):
            found = _check_tiff(path, kind, where)
        else:
            with open(path, "rb") as file:
                if kind == "mrc":
                    header = parse_mrc_header(file.read(MRC_HEADER), where)
                    _check_size(header, file.seek(0, os.SEEK_END), where)
                else:
                    header = _check_compressed(file, kind, where)
                found = header.geometry
    except OSError as error:
        raise InputError(f"{path}: cannot read the movie ({error.strerror or error}); check the disk") from None
    _check_geometry(found, wanted, where)


def _kind(name: str) -> str | None:
    """Return which reader a name calls for: mrc, gz, bz2, tiff, eer."""
    ending = movie_ending(name)
    return ending and {"mrcs": "mrc", "tif": "tiff"}.get(last := ending.rpartition(".")[2], last)


def _check_geometry(found: Geometry, wanted: Geometry, where: str) -> None:
    pairs = zip(dataclasses.astuple(found), dataclasses.astuple(wanted), strict=True)
    if any(f != w for f, w in pairs if f is not None and w is not None):
        raise WrongFile(f"{where}: holds {found}, wanted {wanted}; check the address or the sheet's row")


def _check_magic(head: bytes, kind: str, where: str) -> None:
    magic, wanted = MAGIC[kind]
    if not head.startswith(magic):
        raise _other_format(head, wanted, where, f"it begins with {head[:8]!r}")


def _other_format(head: bytes, wanted: str, where: str, why: str) -> WrongFile:
    """Return the error for bytes that are not of the format `wanted`; `why` if they are of no known one."""
    start = head[:512].lstrip()  # error pages like to begin with an empty line
    known = next((name for magic, name in MAGIC.values() if start.startswith(magic)), None)
    reason = f"it begins like {known}" if known else why
    return WrongFile(f"{where}: is not {wanted} ({reason}); check the address or the sheet's row")


# MRC


def _mrc_header_in(head: bytes, order: str) -> MrcHeader:
    w, h, n, mode = struct.unpack_from(f"{order}4i", head)
    (extended,) = struct.unpack_from(f"{order}i", head, 92)
    return MrcHeader(order, n, h, w, mode, extended)


def _check_size(header: MrcHeader, size: int, where: str, decompressed: str = "") -> None:
    if size != header.size:
        raise WrongFile(
            f"{where}: has {size} bytes{decompressed}, but its MRC header ({header.geometry}) needs {header.size}; "
            "it is damaged or not the file that was meant: check the address or the sheet's row"
        )


def _read_compressed_head(head: bytes, kind: str, where: str) -> Geometry | None:
    _check_magic(head, kind, where)
    decompressor = bz2.BZ2Decompressor() if kind == "bz2" else zlib.decompressobj(16 + zlib.MAX_WBITS)
    with _as_damage(kind, where):
        start = decompressor.decompress(head, MRC_HEADER)
    return parse_mrc_header(start, where).geometry if len(start) == MRC_HEADER else None


def _check_compressed(file: BinaryIO, kind: str, where: str) -> MrcHeader:
    """Decompress a whole file, piece by piece, and compare its size with the MRC header in it."""
    _check_magic(file.read(8), kind, where)
    file.seek(0)
    opened = bz2.BZ2File(file) if kind == "bz2" else gzip.GzipFile(fileobj=file)
    with _as_damage(kind, where), opened as content:
        header = parse_mrc_header(content.read(MRC_HEADER), where)
        size = MRC_HEADER
        progress = log.Progress(math.ceil(header.size / 1e6), "MB checked")
        # A piece too many is enough to know: what goes on and on is not unpacked to its end.
        while size <= header.size and (piece := content.read(CHUNK)):
            size += len(piece)
            progress.update(int(size / 1e6))
    more = size > header.size
    _check_size(header, size, where, " or more decompressed" if more else " decompressed")
    return header


# TIFF and EER


def _check_tiff(path: str | Path, kind: str, where: str) -> Geometry:
    with open(path, "rb") as file:
        _check_magic(file.read(8), kind, where)
    with _as_damage(kind, where):
        return Geometry(*tiff_header.read_frames(str(path), events=kind == "eer"))


def _read_tiff_head(head: bytes, kind: str, where: str) -> Geometry | None:
    _check_magic(head, kind, where)
    try:
        with _as_damage(kind, where):
            frame = tiff_header.first_frame(head, events=kind == "eer")
    except WrongFile:
        return None  # a directory that lies partly beyond the first bytes looks like a damaged one
    return frame and Geometry(None, *frame)


# Damage


@contextlib.contextmanager
def _as_damage(kind: str, where: str) -> Iterator[None]:
    """Turn what a decoder raises on damage, which can be anything, into `WrongFile`; a failing disk is no damage."""
    try:
        yield
    except (WrongFile, MemoryError):
        raise
    except OSError as error:
        # The decoders' own have no number; EINVAL comes from a place in the file that cannot be.
        if error.errno not in (None, errno.EINVAL):
            raise
        raise _damaged(kind, where, error) from None
    except Exception as error:
        raise _damaged(kind, where, error) from None


def _damaged(kind: str, where: str, error: Exception) -> WrongFile:
    reason = " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
    return WrongFile(
        f"{where}: is not a complete {kind} movie ({reason}); fetch it again, or check the address or the sheet's row"
    )
