"""One micrograph as it lies on the disk: its pixels, its pixel size, and the header that goes on to the output.

MRC (https://www.ccpem.ac.uk/mrc-format/mrc2014/), also compressed, and TIFF.  Sizes are compared with the file
before any memory is given to them.
"""

import bz2
import gzip
import os
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from cryon2n import frames
from cryon2n.errors import InputError
from cryon2n.micrograph_tables import TABLES, read_table
from cryon2n.movie_header import CHUNK, MOVIE_ENDINGS, MRC_HEADER, MrcHeader, WrongFile, movie_ending, parse_mrc_header

ENDINGS = tuple(ending for ending in MOVIE_ENDINGS if ending != ".eer")
EXTENDED_LIMIT = 1 << 24  # bytes; an extended header has some hundreds for each section
DMIN = 76  # offset in an MRC header, as those in `frames`
SIGNED = 1  # IMOD's flag: the bytes of mode 0 are signed
SAMPLES = 1 << 16  # pixels that show that an image is not constant


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
        Some pixels may be NaN or infinite.
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


def read(path: str | Path) -> MicrographImage:
    """Read a micrograph.

    Parameters
    ----------
    path : path
        ``.mrc`` ``.mrcs`` (also with ``.gz`` or ``.bz2``; modes 0, 1, 2, 6, 12 and 101) or ``.tif`` ``.tiff``.  A
        stack of one section is a micrograph.  Rows of a TIFF, which counts them from the top, are turned over as
        RELION and IMOD do, so that the image lies as in an MRC file.

    Raises
    ------
    InputError
        The file is missing, damaged, of another format, holds several images, or an image without contrast.
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
        found = _read_tiff(path) if form in ("tif", "tiff") else _read_mrc(path, {"mrcs": "mrc"}.get(form, form))
    except WrongFile as error:  # its advice is for downloads
        raise InputError(f"{str(error).rpartition(';')[0]}; copy or make it again, or leave it out") from None
    except MemoryError:
        raise InputError(f"{path}: there is not enough memory for it; free some") from None
    _check_contrast(path, found.image)
    return found


def _read_tiff(path: Path) -> MicrographImage:
    with frames.open_format(path, "tiff") as movie:
        _check_single(path, len(movie))
        return MicrographImage(_float32(movie[0])[::-1].copy(), movie.pixel_size, None)


def _read_mrc(path: Path, form: str) -> MicrographImage:
    with frames.as_damage(path, f"not a complete {form.upper()} file"), open(path, "rb", buffering=0) as file:
        if form == "mrc":
            return _from_mrc(path, file)
        opened = bz2.BZ2File(file) if form == "bz2" else gzip.GzipFile(fileobj=file)
        with opened as content, _in_memory() as whole:
            head = content.read(MRC_HEADER)
            left = _checked_header(path, head).size - len(head)
            whole.write(head)
            # A piece too many is enough to know: what goes on and on is not unpacked to its end.
            while left >= 0 and (piece := content.read(CHUNK)):
                whole.write(piece)
                left -= len(piece)
            return _from_mrc(path, whole)


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


def _from_mrc(path: Path, file: BinaryIO) -> MicrographImage:
    """Read an MRC file that is not compressed."""
    size = os.fstat(file.fileno()).st_size
    head = frames.pread(file, min(MRC_HEADER, size), 0)
    header = _checked_header(path, head)
    source = frames.MrcSource(path, file)  # checks the size
    fields = MrcFields(head, frames.pread(file, header.extended, MRC_HEADER), header.order)
    pixels = source.view(0)
    if pixels is not None and pixels.dtype == np.float32:
        image = _read_floats(file, header)
    else:
        if pixels is None:
            pixels = np.empty(source.shape[1:], source.dtype)
            source.read(0, pixels)
        elif header.mode == 0 and _is_signed(fields):
            pixels = pixels.view(np.int8)
        image = _float32(pixels)
    return MicrographImage(image, source.pixel_size, fields)


def _read_floats(file: BinaryIO, header: MrcHeader) -> np.ndarray:
    """Read native float32 pixels straight into memory of one's own: faster than through a map."""
    image = np.empty((header.h, header.w), np.float32)
    buffer, at = memoryview(image.reshape(-1).view(np.uint8)), 0
    file.seek(header.data_start)
    while at < len(buffer):
        if not (n := file.readinto(buffer[at:])):
            raise ValueError(f"the file ends {len(buffer) - at} bytes too early")
        at += n
    return image


def _is_signed(fields: MrcFields) -> bool:
    """Tell whether the bytes of mode 0 are signed: by IMOD's mark, or else by the header's minimum.

    The format's letter says signed, but counts were stored as unsigned bytes for decades.
    """
    stamp, flags = struct.unpack_from(f"{fields.order}2i", fields.head, frames.IMOD_STAMP)
    if stamp == frames.IMOD_MAGIC:
        return bool(flags & SIGNED)
    return struct.unpack_from(f"{fields.order}f", fields.head, DMIN)[0] < 0


def _float32(image: np.ndarray) -> np.ndarray:
    """Return an image as float32; a float64 that has no place there becomes infinite."""
    with np.errstate(over="ignore"):
        return image.astype(np.float32)


def _check_single(path: Path, n: int) -> None:
    if n != 1:
        raise InputError(f"{path}: holds {n} images; wanted one micrograph: sum a movie first, or split the stack")


def _check_contrast(path: Path, image: np.ndarray) -> None:
    """Refuse an image that is constant or has no number in it."""
    flat = image.reshape(-1)
    # A few pixels tell for almost every image, and only the others are looked at whole.
    for values in (flat[:: max(1, flat.size // SAMPLES)], flat):
        finite = values[np.isfinite(values)]
        if finite.size and finite.min() != finite.max():
            return
    found = "is constant" if finite.size else "holds only NaN or infinity"
    raise InputError(f"{path}: the image {found}; wanted a micrograph: leave it out")
