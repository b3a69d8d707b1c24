"""One micrograph as it lies on the disk: its pixels, its pixel size, and the header that goes on to the output.

MRC (https://www.ccpem.ac.uk/mrc-format/mrc2014/), also compressed, and TIFF.  Sizes are compared with the file
before any memory is given to them.
"""

import bz2
import gzip
import os
import struct
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from cryon2n import frames
from cryon2n.denoise_timing import lap
from cryon2n.errors import InputError
from cryon2n.micrograph_tables import TABLES, read_table
from cryon2n.movie_header import CHUNK, MOVIE_ENDINGS, MRC_HEADER, MrcHeader, WrongFile, movie_ending, parse_mrc_header

ENDINGS = tuple(ending for ending in MOVIE_ENDINGS if ending != ".eer")
EXTENDED_LIMIT = 1 << 24  # bytes; an extended header has some hundreds for each section
DMIN = 76  # offset in an MRC header, as those in `frames`
SIGNED = 1  # IMOD's flag: the bytes of mode 0 are signed
SAMPLES = 1 << 16  # pixels that show that an image is not constant

# Given the shape (h, w) of an image, yields memory (n,), float32, for its next n pixels until all have their place.
Room = Callable[[tuple[int, int]], Iterator[np.ndarray]]


@dataclass(frozen=True)
class MrcFields:
    """The header of an MRC file: its 1024 bytes, the extended header, and the byte order (``<`` or ``>``) of both."""

    head: bytes
    extended: bytes
    order: str


@dataclass(frozen=True)
class MicrographImage:
    """A micrograph that was read.

    Attributes
    ----------
    image : ndarray, shape (h, w), float32
        Some pixels may be NaN or infinite.  Of shape (0, 0) where the pixels were put elsewhere.
    pixel_size : float or None
        In Å; None where the file does not say.
    header : MrcFields or None
        None where the file was no MRC file.
    """

    image: np.ndarray
    pixel_size: float | None
    header: MrcFields | None


def is_micrograph_name(name: str) -> bool:
    """Tell whether a file's name ends as that of a micrograph that can be read."""
    return name.lower().endswith(ENDINGS)


def read(path: str | Path, room: Room | None = None) -> MicrographImage:
    """Read a micrograph.

    Parameters
    ----------
    path : path
        ``.mrc`` ``.mrcs`` (also with ``.gz`` or ``.bz2``; modes 0, 1, 2, 6, 12 and 101) or ``.tif`` ``.tiff``.  A
        stack of one section is a micrograph.  Rows of a TIFF, which counts them from the top, are turned over as
        RELION and IMOD do, so that the image lies as in an MRC file.
    room : callable or None
        `Room` for the pixels; None: memory of their own.

    Raises
    ------
    InputError
        The file is missing, damaged, of another format, holds several images, or an image without contrast.
    MemoryError
        Of `room`.
    """
    path = Path(path)
    if path.suffix.lower() in TABLES:  # a source that names nothing that can be read
        read_table(path)
        raise InputError(f"{path}: is a table of micrographs; wanted a micrograph's own file")
    if not os.path.isfile(path):
        found = "is a folder" if os.path.isdir(path) else "is no file" if os.path.exists(path) else "is not there"
        raise InputError(f"{path}: {found}; wanted a micrograph's file, or a folder that holds some")
    ending = movie_ending(path.name)
    if ending is None or ending == ".eer":
        raise InputError(f"{path}: is no micrograph by its name; wanted a file that ends in {', '.join(ENDINGS)}")
    form = ending.rpartition(".")[2]
    try:
        with lap("read"):
            if form in ("tif", "tiff"):
                return _read_tiff(path, room)
            return _read_mrc(path, {"mrcs": "mrc"}.get(form, form), room)
    except WrongFile as error:  # its advice is for downloads
        raise InputError(f"{str(error).rpartition(';')[0]}; copy or make it again, or leave it out") from None
    except MemoryError:
        if room is not None:
            raise
        raise InputError(f"{path}: there is not enough memory for it; free some") from None


def _read_tiff(path: Path, room: Room | None) -> MicrographImage:
    with frames.open_format(path, "tiff") as movie:
        _check_single(path, len(movie))
        pixels = np.ascontiguousarray(movie[0][::-1])
        return MicrographImage(_place(path, pixels.shape, room, _copier(pixels)), movie.pixel_size, None)


def _read_mrc(path: Path, form: str, room: Room | None) -> MicrographImage:
    with frames.as_damage(path, f"not a complete {form.upper()} file"), open(path, "rb", buffering=0) as file:
        if form == "mrc":
            return _from_mrc(path, file, room)
        opened = bz2.BZ2File(file) if form == "bz2" else gzip.GzipFile(fileobj=file)
        with opened as content, _in_memory() as whole:
            head = content.read(MRC_HEADER)
            left = _checked_header(path, head).size - len(head)
            whole.write(head)
            # A piece too many is enough to know: what goes on and on is not unpacked to its end.
            while left >= 0 and (piece := content.read(CHUNK)):
                whole.write(piece)
                left -= len(piece)
            return _from_mrc(path, whole, room)


def _in_memory() -> BinaryIO:
    """Return a file without a name that is no disk's, where the system has such."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("micrograph"), "w+b", buffering=0)
    return tempfile.TemporaryFile(buffering=0)


def _checked_header(path: Path, head: bytes) -> MrcHeader:
    """Read a header, and refuse what no micrograph has before anything else is read."""
    header = parse_mrc_header(head, str(path))
    _check_single(path, header.frames)
    frames.check_frame_size(path, header.h, header.w)
    if header.extended > EXTENDED_LIMIT:
        raise InputError(
            f"{path}: says that its extended header has {header.extended} bytes; wanted at most {EXTENDED_LIMIT}: "
            "copy or make it again"
        )
    return header


def _from_mrc(path: Path, file: BinaryIO, room: Room | None) -> MicrographImage:
    """Read an MRC file that is not compressed."""
    size = os.fstat(file.fileno()).st_size
    head = frames.pread(file, min(MRC_HEADER, size), 0)
    header = _checked_header(path, head)
    source = frames.MrcSource(path, file)  # checks the size
    fields = MrcFields(head, frames.pread(file, header.extended, MRC_HEADER), header.order)
    pixels = source.view(0)
    if pixels is not None and pixels.dtype == np.float32:
        file.seek(header.data_start)
        take = _reader(file)  # straight into the memory where they are wanted: faster than through a map
    else:
        if pixels is None:
            pixels = np.empty(source.shape[1:], source.dtype)
            source.read(0, pixels)
        elif header.mode == 0 and _is_signed(fields):
            pixels = pixels.view(np.int8)
        take = _copier(pixels)
    return MicrographImage(_place(path, source.shape[1:], room, take), source.pixel_size, fields)


def _place(path: Path, shape: tuple[int, int], room: Room | None, take: Callable[[np.ndarray], None]) -> np.ndarray:
    """Have the pixels put where they are wanted, and refuse an image without contrast; `take` fills the next piece."""
    if room is None:
        image = np.empty(shape, np.float32)
        take(image.reshape(-1))
        _check_contrast(path, image)
        return image
    every, low, high = max(1, shape[0] * shape[1] // SAMPLES), np.inf, -np.inf
    for piece in room(shape):
        take(piece)
        if (some := _finite(piece[::every])).size:
            low, high = min(low, some.min()), max(high, some.max())
    if not low < high:
        read(path)  # looks at all pixels
    return np.empty((0, 0), np.float32)


def _reader(file: BinaryIO) -> Callable[[np.ndarray], None]:
    """Return what reads native float32 pixels from where a file stands."""

    def take(piece: np.ndarray) -> None:
        buffer, at = memoryview(piece.view(np.uint8)), 0
        while at < len(buffer):
            if not (n := file.readinto(buffer[at:])):
                raise ValueError(f"the file ends {len(buffer) - at} bytes too early")
            at += n

    return take


def _copier(pixels: np.ndarray) -> Callable[[np.ndarray], None]:
    """Return what copies pixels (h, w) as float32; a float64 that has no place there becomes infinite."""
    flat, at = pixels.reshape(-1), 0

    def take(piece: np.ndarray) -> None:
        nonlocal at
        with np.errstate(over="ignore"):
            np.copyto(piece, flat[at : at + piece.size], casting="unsafe")
        at += piece.size

    return take


def _is_signed(fields: MrcFields) -> bool:
    """Tell whether the bytes of mode 0 are signed: by IMOD's mark, or else by the header's minimum.

    The format's letter says signed, but counts were stored as unsigned bytes for decades.
    """
    stamp, flags = struct.unpack_from(f"{fields.order}2i", fields.head, frames.IMOD_STAMP)
    if stamp == frames.IMOD_MAGIC:
        return bool(flags & SIGNED)
    return struct.unpack_from(f"{fields.order}f", fields.head, DMIN)[0] < 0


def _check_single(path: Path, n: int) -> None:
    if n != 1:
        raise InputError(f"{path}: holds {n} images; wanted one micrograph: sum a movie first, or split the stack")


def _check_contrast(path: Path, image: np.ndarray) -> None:
    """Refuse an image that is constant or has no number in it."""
    flat = image.reshape(-1)
    # A few pixels tell for almost every image, and only the others are looked at whole.
    for values in (flat[:: max(1, flat.size // SAMPLES)], flat):
        finite = _finite(values)
        if finite.size and finite.min() != finite.max():
            return
    found = "is constant" if finite.size else "holds only NaN or infinity"
    raise InputError(f"{path}: the image {found}; wanted a micrograph: leave it out")


def _finite(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]
