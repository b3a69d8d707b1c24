"""What is written of a denoised micrograph: an MRC file with its source's header, a STAR file, a quick look.

MRC2014: https://www.ccpem.ac.uk/mrc-format/mrc2014/.  Everything appears under its name only when it is whole.
"""

import contextlib
import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np
from mrcfile.dtypes import HEADER_DTYPE
from PIL import Image

from cryon2n import __version__, files
from cryon2n.denoise_timing import lap
from cryon2n.errors import InputError
from cryon2n.frames import IMOD_MAGIC, IMOD_STAMP, PACKED
from cryon2n.micrograph_image import SIGNED, MicrographImage
from cryon2n.micrograph_star import StarRow, write_star

__all__ = ["StarRow", "statistics", "write", "write_pieces", "write_quicklook", "write_star"]

MODES = {"float32": 2, "float16": 12}
STAMPS = {"<": (0x44, 0x44, 0, 0), ">": (0x11, 0x11, 0, 0)}
N_LABELS = 220  # offset in an MRC header
LABELS = slice(224, 1024)  # bytes of an MRC header: 10 of 80
LABEL, MOST_LABELS = 80, 10
EXTENDED_TYPES = (b"CCP4", b"MRCO", b"SERI", b"AGAR", b"FEI1", b"FEI2", b"HDF5")  # the standard's
HALF_LIMIT = 65504  # largest float16
HALF_ERROR = 0.05  # standard deviations of the image: what rounding to float16 may change, rms
CHUNK = 1 << 13  # pixels; so few that they stay in the processor's cache
QUICKLOOK = 1024  # pixels


def write(path: str | Path, image: np.ndarray, source: MicrographImage, *, dtype: str = "float32", label: str) -> None:
    """Write an image (h, w) as an MRC file; the rest as `write_pieces`."""
    flat = np.ascontiguousarray(image, np.float32).reshape(-1)
    write_pieces(path, image.shape, [flat], statistics(flat), source, dtype=dtype, label=label)


def write_pieces(
    path: str | Path,
    shape: tuple[int, int],
    pieces: Iterable[np.ndarray],
    numbers: tuple[float, float, float, float],
    source: MicrographImage,
    *,
    dtype: str = "float32",
    label: str,
) -> None:
    """Write an image as an MRC file, with all that the source's header says and still holds.

    Parameters
    ----------
    path : path
    shape : (h, w)
    pieces : iterable of ndarray, shape (n,), float32
        One after another all its pixels; one is done with when the next is asked for.
    numbers : tuple of float
        Its `statistics`.
    source : MicrographImage
        Gives the header and the pixel size (Å); its image is not looked at.
    dtype : str
        ``float32`` or ``float16`` (mode 12).
    label : str
        Added to the labels, after the program's name.  An MRC header holds 10: where it is full, the oldest goes.

    Raises
    ------
    InputError
        The image holds NaN or infinity, or does not fit into float16: values beyond 65504, or rounding that would
        change it by more than 5 % of its standard deviation.
    """
    low, high, mean, rms = numbers
    if not np.isfinite(numbers).all():
        raise InputError(f"{path}: the result holds NaN or infinity; nothing is written: check the micrograph")
    order = source.header.order if source.header else "<"
    extended = source.header.extended if source.header else b""
    stored, change, error = np.dtype(dtype).newbyteorder(order), 0.0, 0.0
    header = _header(shape, source, MODES[dtype], order)
    with lap("sync and rename"), files.atomic_path(path) as temporary, open(temporary, "wb") as file:
        at = file.write(bytes(header.nbytes)) + file.write(extended)
        for piece in pieces:
            if dtype == "float16":
                with lap("convert"):
                    piece, change, error = _as_half(piece, stored, change, error)
            with lap("write"):
                size = file.write(memoryview(piece.astype(stored, copy=False).view(np.uint8)))
                _begin_writing_back(file, at, size)
            at += size
        if dtype == "float16":
            n = shape[0] * shape[1]
            _check_half(path, max(-low, high), rms, error / n)
            # Rounding keeps the order of values, so the least stays the least.
            low, high, mean = np.float16(low), np.float16(high), mean + change / n
            # Not determined, as the standard allows: mrcfile (1.5.4) sums float16 in float16 when it validates, which
            # overflows, and calls the right value wrong.
            rms = -1.0
        header["dmin"], header["dmax"], header["dmean"], header["rms"] = low, high, mean, rms
        file.seek(0)
        file.write(_with_label(header, label))


def _begin_writing_back(file: BinaryIO, at: int, size: int) -> None:
    """Have the system begin to write bytes of a file to the disk, which waits for the sync otherwise."""
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):
            os.posix_fadvise(file.fileno(), at, size, os.POSIX_FADV_DONTNEED)


def statistics(image: np.ndarray) -> tuple[float, float, float, float]:
    """Return minimum, maximum, mean and standard deviation of an image (h, w), computed in float64."""
    flat = image.reshape(-1)
    pivot = float(flat[0])  # near the mean, so that no digits cancel
    low, high, first, second = np.inf, -np.inf, 0.0, 0.0
    for at in range(0, flat.size, CHUNK):
        part = flat[at : at + CHUNK].astype(np.float64)
        low, high = np.minimum(low, part.min()), np.maximum(high, part.max())
        part -= pivot
        first, second = first + part.sum(), second + part @ part
    first, second = first / flat.size, second / flat.size
    return float(low), float(high), float(pivot + first), float(np.sqrt(max(0.0, second - first**2)))


def _as_half(exact: np.ndarray, stored: np.dtype, change: float, error: float) -> tuple[np.ndarray, float, float]:
    """Return pixels (n,) as float16, and the sums of all changes and of their squares with those of these pixels."""
    rounded = np.empty(exact.shape, stored)
    for at in range(0, exact.size, CHUNK):
        part = slice(at, at + CHUNK)
        with np.errstate(over="ignore"):
            rounded[part] = exact[part]
        difference = rounded[part].astype(np.float32) - exact[part]
        change, error = change + float(difference.sum()), error + float(difference @ difference)
    return rounded, change, error


def _check_half(path: str | Path, peak: float, rms: float, square: float) -> None:
    """Raise `InputError` where float16 changes an image too much; `square`: mean squared change."""
    if not np.isfinite(square):
        raise InputError(f"{path}: values reach {peak:.6g}, float16 holds at most {HALF_LIMIT}; take --dtype float32")
    error = np.sqrt(square)
    if error > HALF_ERROR * rms:
        raise InputError(
            f"{path}: rounding to float16 would change the image by {error / rms:.1%} of its standard deviation "
            f"(at most {HALF_ERROR:.0%} is wanted); take --dtype float32"
        )


def _header(shape: tuple[int, int], source: MicrographImage, mode: int, order: str) -> np.ndarray:
    """Return the header of one image without labels and statistics; what the source says wrongly is put right."""
    h, w = shape
    head = source.header.head if source.header else bytes(1024)
    header = np.frombuffer(bytearray(head), HEADER_DTYPE.newbyteorder(order))[0:1].reshape(())
    size, cell = source.pixel_size, header["cella"]
    with np.errstate(all="ignore"):
        said = float(cell["x"]) / float(header["mx"]) if header["mx"] else 0.0
    same = (header["nx"], header["ny"]) == (w, h) and min(header[f"m{axis}"] for axis in "xyz") > 0
    same = same and all(0 <= cell[axis] < np.inf for axis in "xyz") and (not size or said == size)
    if not same:
        header["mx"], header["my"], header["mz"] = w, h, 1
        cell["x"], cell["y"], cell["z"] = np.array((w, h, 1)) * (size or 0.0)
    header["nx"], header["ny"], header["nz"], header["mode"] = w, h, 1, mode
    if not 0 <= header["ispg"] <= 1:
        header["ispg"] = 0
    if sorted(int(header[f"map{axis}"]) for axis in "crs") != [1, 2, 3]:
        header["mapc"], header["mapr"], header["maps"] = 1, 2, 3
    if source.header is None:
        header["cellb"] = (90, 90, 90)
    if header["nsymbt"] and header["exttyp"].item() not in EXTENDED_TYPES:
        header["exttyp"] = b"MRCO"  # the standard's for what any program may have put there
    header["nversion"] = 20141 if mode == 12 else 20140
    header["map"], header["machst"] = b"MAP ", STAMPS[order]
    return header


def _with_label(header: np.ndarray, label: str) -> bytes:
    """Return the bytes of a header with one label more; the oldest goes where there is no room."""
    head = bytearray(header.tobytes())
    found = [bytes(head[at : at + LABEL]) for at in range(LABELS.start, LABELS.stop, LABEL)]
    kept = [text for text in found if text.rstrip(b"\0").strip()]
    kept = [*kept[-(MOST_LABELS - 1) :], f"cryon2n {__version__} {label}".encode("ascii", "replace")[:LABEL]]
    head[LABELS] = b"".join(text.ljust(LABEL, b"\0") for text in kept).ljust(LABELS.stop - LABELS.start, b"\0")
    order = ">" if tuple(header["machst"]) == STAMPS[">"] else "<"
    struct.pack_into(f"{order}i", head, N_LABELS, len(kept))
    stamp, flags = struct.unpack_from(f"{order}2i", head, IMOD_STAMP)
    if stamp == IMOD_MAGIC:  # the pixels are no longer bytes, signed or packed
        struct.pack_into(f"{order}i", head, IMOD_STAMP + 4, flags & ~(SIGNED | PACKED))
    return bytes(head)


def write_quicklook(path: str | Path, image: np.ndarray, side: int = QUICKLOOK) -> None:
    """Write a small 8-bit picture, PNG or JPEG by the name: boxes of pixels averaged, rows in the file's order.

    Parameters
    ----------
    path : path
    image : ndarray, shape (h, w)
    side : int
        Pixels; the longer side has no more.
    """
    from cryon2n.figures import grey_limits, to_grey  # with a plotting library, which few runs need

    box = max(1, -(-max(image.shape) // side))
    small = shrunk(image, min(box, *image.shape))
    picture = Image.fromarray(to_grey(small, grey_limits(small)))
    with files.atomic_path(path) as temporary:
        picture.save(temporary)


def shrunk(image: np.ndarray, box: int) -> np.ndarray:
    """Return the means of `box` x `box` pixels of an image (h, w); what fills no box at the far edges is left out."""
    h, w = (side // box for side in image.shape)
    rows = image[: h * box, : w * box].reshape(h, box, w * box).mean(axis=1, dtype=np.float32)
    return rows.reshape(h, w, box).mean(axis=2)
