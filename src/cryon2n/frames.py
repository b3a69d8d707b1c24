"""The frames of any movie, one at a time: MRC, compressed MRC, TIFF and EER behind one interface.

Nothing is read before it is asked for.  An uncompressed MRC movie is mapped into memory: a frame is a view
of the file.  TIFF and EER frames are decoded on demand (`frames_tiff`).  A ``.gz`` or ``.bz2`` movie, which
can only be read from its beginning, is decompressed once into a temporary file that has no name and so
vanishes with the process.  A frame may be asked for by several threads at once.
"""

import bz2
import contextlib
import errno
import gzip
import math
import mmap
import operator
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

from cryon2n import log
from cryon2n.errors import InputError
from cryon2n.frame_range import FrameRange
from cryon2n.movie_header import CHUNK, MOVIE_ENDINGS, MRC_HEADER, MRC_MODES, MrcHeader, movie_ending, parse_mrc_header

# Modes of an MRC movie (MRC2014; 101 is IMOD's, https://bio3d.colorado.edu/imod/doc/mrc_format.txt).
READABLE_MODES = (0, 1, 2, 6, 12, 101)
# Offsets in an MRC header: words 8, 11 and 39, 40.
MX, CELL_X, IMOD_STAMP = 28, 40, 152
IMOD_MAGIC = 1146047817
PACKED = 16  # IMOD's flag: the bytes of mode 0 hold two 4-bit pixels each
PIXEL_SIZES = (0.01, 100.0)  # Å; what lies beyond was written by a program that did not know
# Pixels; a Falcon's 16384² super-resolution grid.  No damaged header may ask for more memory than that.
FRAME_LIMIT = 1 << 28


class Source(Protocol):
    """One file format: what `Frames` asks of it."""

    shape: tuple[int, int, int]
    dtype: np.dtype
    pixel_size: float | None
    group: int  # raw frames in each frame
    raw: int  # raw frames in the file

    def read(self, index: int, out: np.ndarray) -> None:
        """Write frame `index` into `out`, shape (h, w), all of which is overwritten."""

    def view(self, index: int) -> np.ndarray | None:
        """Return frame `index` without copying, or None where it must be decoded."""


@dataclass(frozen=True)
class Frames:
    """The frames of an open movie; ``frames[i]`` is one of them.

    Memory: a frame takes ``h · w · dtype.itemsize`` bytes.  Decoding TIFF takes once more that and the
    compressed bytes, EER the compressed bytes of one raw frame.

    Attributes
    ----------
    path : Path
    source : Source
        Reads the file.
    first, n : int
        The part of the file's frames that is shown.
    """

    path: Path
    source: Source
    first: int
    n: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of frames, h and w in pixels."""
        return self.n, *self.source.shape[1:]

    @property
    def dtype(self) -> np.dtype:
        """Type of a pixel, in the machine's byte order; 4-bit pixels and electron events are uint8."""
        return self.source.dtype

    @property
    def pixel_size(self) -> float | None:
        """Å, as the file says; None where it does not."""
        return self.source.pixel_size

    @property
    def record(self) -> dict[str, int]:
        """What the frames are, for the halves record.

        ``first`` and ``frames`` of the file's frames; ``raw_frames_per_frame`` and, of the raw frames that
        remain when they are grouped, ``raw_frames_left_out``.
        """
        source = self.source
        left = source.raw - source.shape[0] * source.group
        return {
            "first": self.first,
            "frames": self.n,
            "raw_frames_per_frame": source.group,
            "raw_frames_left_out": left,
        }

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> np.ndarray:
        """Return frame `index`, shape (h, w); it may be a read-only view of the file."""
        index = self._index(index)
        with self._named(index):
            view = self.source.view(index)
        return self._read(index, np.empty(self.shape[1:], self.dtype)) if view is None else view

    def read(self, index: int, out: np.ndarray | None = None) -> np.ndarray:
        """Return frame `index` as an array of one's own, shape (h, w).

        Parameters
        ----------
        index : int
        out : ndarray, shape (h, w), of `dtype` and C-contiguous, optional
            Filled and returned.

        Raises
        ------
        InputError
            The frame is damaged or cannot be read.
        """
        if out is None:
            out = np.empty(self.shape[1:], self.dtype)
        elif out.shape != self.shape[1:] or out.dtype != self.dtype or not out.flags.c_contiguous:
            raise ValueError(f"out has {out.shape} {out.dtype}; wanted {self.shape[1:]} {self.dtype}, C-contiguous")
        return self._read(self._index(index), out)

    def release(self) -> None:
        """Let go of the pages of a mapped file: they no longer count as this process's memory."""
        mapped = getattr(self.source, "mapped", None)
        if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED)

    def part(self, wanted: FrameRange) -> "Frames":
        """Return the frames of a range, numbered anew from 0."""
        if wanted.last >= self.n:
            raise InputError(f"{self.path}: holds frames 0-{self.n - 1}, wanted {wanted}; ask for frames that it holds")
        return Frames(self.path, self.source, self.first + wanted.first, wanted.n)

    def _read(self, index: int, out: np.ndarray) -> np.ndarray:
        with self._named(index):
            self.source.read(index, out)
        return out

    def _index(self, index: int) -> int:
        return self.first + range(self.n)[operator.index(index)]

    def _named(self, index: int) -> contextlib.AbstractContextManager[None]:
        return as_damage(self.path, f"frame {index} cannot be decoded")


@contextlib.contextmanager
def open_frames(path: str | Path, fraction: int | None = None) -> Iterator[Frames]:
    """Open a movie.

    Parameters
    ----------
    path : path
        Its name tells the format: ``.mrc`` ``.mrcs`` (also with ``.gz`` or ``.bz2``), ``.tif`` ``.tiff``, ``.eer``.
        MRC: modes 0 (as unsigned counts), 1, 2, 6, 12 and 101.  TIFF: uncompressed, LZW, deflate, ZSTD or
        PackBits.
    fraction : int, optional
        EER only: raw frames to sum into each frame.  Default: an EER of more than 100 raw frames gives 40 to
        59 frames (`eer_group`), a shorter one its raw frames.  Raw frames that do not fill a last frame are
        left out; `Frames.record` tells.

    Raises
    ------
    InputError
        The file is missing, damaged, truncated, of another format or of a kind that cannot be read; there
        is no room to decompress it.
    """
    path = Path(path)
    ending = movie_ending(path.name)
    if ending is None:
        raise InputError(f"{path}: is no movie by its name; wanted a file that ends in {', '.join(MOVIE_ENDINGS)}")
    if fraction is not None and ending != ".eer":
        raise InputError(f"{path}: fraction {fraction} given, but only the raw frames of an EER movie are summed")
    last = ending.rpartition(".")[2]
    with open_format(path, {"mrcs": "mrc", "tif": "tiff"}.get(last, last), fraction) as frames:
        yield frames


@contextlib.contextmanager
def open_format(path: Path, form: str, fraction: int | None = None) -> Iterator[Frames]:
    """Open a file of frames whose format is known: ``mrc``, ``gz`` or ``bz2`` (of an MRC file), ``tiff`` or ``eer``."""
    from cryon2n import frames_tiff  # here, because it needs this module

    with contextlib.ExitStack() as stack:
        with as_damage(path, f"not a complete {form.upper()} file"):
            file = stack.enter_context(open(path, "rb"))
            source: Source
            if form == "eer":
                source = frames_tiff.EerSource(path, file, fraction)
            elif form == "tiff":
                source = frames_tiff.TiffSource(path, file)
            elif form == "mrc":
                source = MrcSource(path, file)
            else:
                source = MrcSource(path, stack.enter_context(_decompressed(path, file, form)))
        yield Frames(path, source, 0, source.shape[0])


@contextlib.contextmanager
def as_damage(path: Path, what: str) -> Iterator[None]:
    """Turn what a decoder raises on damage, which can be anything, into `InputError`; `what` begins the sentence."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except Exception as error:
        # The decoders' own have no number; EINVAL comes from a place in the file that cannot be.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise InputError(f"{path}: cannot read ({error.strerror}); check the file and the disk") from None
        reason = " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
        raise InputError(f"{path}: {what} ({reason}); copy or fetch it again") from None


def check_frame_size(path: Path, h: int, w: int) -> None:
    """Refuse a frame of more than `FRAME_LIMIT` pixels."""
    if h * w > FRAME_LIMIT:
        raise InputError(f"{path}: has frames of {h} x {w} pixels (h x w); wanted at most {FRAME_LIMIT} in each")


def plausible_pixel_size(size: float) -> float | None:
    """Return a pixel size in Å if a microscope can have it, else None."""
    return size if PIXEL_SIZES[0] < size < PIXEL_SIZES[1] else None


def pread(file: BinaryIO, size: int, offset: int) -> bytes:
    """Read `size` bytes at `offset`, whatever other threads read; less than that is damage."""
    pieces = []
    while size and (piece := os.pread(file.fileno(), size, offset)):
        pieces.append(piece)
        size, offset = size - len(piece), offset + len(piece)
    if size:
        raise ValueError(f"the file ends {size} bytes too early")
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


# ---------------------------------------------------------------------------- MRC


class MrcSource:
    """An MRC movie, mapped into memory (or what was decompressed of one)."""

    group = 1

    def __init__(self, path: Path, file: BinaryIO):
        head = pread(file, min(MRC_HEADER, os.fstat(file.fileno()).st_size), 0)
        header = parse_mrc_header(head, str(path))
        size = os.fstat(file.fileno()).st_size
        if size != header.size:
            raise ValueError(f"it has {size} bytes, its header ({header.geometry}) needs {header.size}")
        if header.mode not in READABLE_MODES:
            raise InputError(
                f"{path}: is of MRC mode {header.mode} ({MRC_MODES[header.mode][1]}); wanted counts or real numbers: "
                f"mode {', '.join(map(str, READABLE_MODES))}"
            )
        n, h, w = header.frames, header.h, header.w
        self.packed = header.mode == 101 or (header.mode == 0 and _is_packed(head, header.order))
        if self.packed:
            row = -(-w // 2) if header.mode == 101 else w
            stored, w = np.dtype(np.uint8), w if header.mode == 101 else 2 * w
        else:
            row, stored = w, np.dtype(MRC_MODES[header.mode][1]).newbyteorder(header.order)
        check_frame_size(path, h, w)
        memory = np.memmap(file, stored, "r", header.data_start, (n, h, row))
        self.stack, self.mapped = memory.view(np.ndarray), memory._mmap
        self.shape, self.dtype, self.raw = (n, h, w), stored.newbyteorder("="), n
        self.pixel_size = _mrc_pixel_size(head, header)

    def read(self, index: int, out: np.ndarray) -> None:
        """Write frame `index` into `out`."""
        if not self.packed:
            np.copyto(out, self.stack[index])
            return
        pairs = self.stack[index]
        np.bitwise_and(pairs, 15, out=out[:, ::2])
        np.right_shift(pairs[:, : out.shape[1] // 2], 4, out=out[:, 1::2])

    def view(self, index: int) -> np.ndarray | None:
        """Return frame `index` without copying, or None where it must be decoded."""
        return self.stack[index] if not self.packed and self.stack.dtype.isnative else None


def _is_packed(head: bytes, order: str) -> bool:
    stamp, flags = struct.unpack_from(f"{order}2i", head, IMOD_STAMP)
    return stamp == IMOD_MAGIC and bool(flags & PACKED)


def _mrc_pixel_size(head: bytes, header: MrcHeader) -> float | None:
    (mx,) = struct.unpack_from(f"{header.order}i", head, MX)
    (cell,) = struct.unpack_from(f"{header.order}f", head, CELL_X)
    return plausible_pixel_size(cell / mx) if mx > 0 else None


# ---------------------------------------------------------------------------- compressed MRC


@contextlib.contextmanager
def _decompressed(path: Path, file: BinaryIO, form: str) -> Iterator[BinaryIO]:
    """Decompress a movie into a nameless temporary file, piece by piece, and give that."""
    content = bz2.BZ2File(file) if form == "bz2" else gzip.GzipFile(fileobj=file)
    head = content.read(MRC_HEADER)
    wanted = parse_mrc_header(head, str(path)).size
    folder = _roomy_folder(path, wanted)
    log.say(f"{path.name}: decompressing {wanted / 1e9:.2g} GB into {folder}")
    with tempfile.TemporaryFile(dir=folder) as out:
        out.write(head)
        size = len(head)
        progress = log.Progress(math.ceil(wanted / 1e6), f"MB of {path.name} decompressed")
        # A piece too many is enough to know: what goes on and on is not unpacked to its end.
        while size <= wanted and (piece := content.read(CHUNK)):
            out.write(piece)
            size += len(piece)
            progress.update(int(size / 1e6))
        out.flush()
        yield out


def _roomy_folder(path: Path, size: int) -> Path:
    """Return a folder that can hold `size` bytes: TMPDIR if that is set, the movie's own, or the system's for such."""
    folders = [Path(os.environ["TMPDIR"])] if os.environ.get("TMPDIR") else []
    free = {}
    for folder in [*folders, path.absolute().parent, Path(tempfile.gettempdir())]:
        if os.access(folder, os.W_OK):
            free[folder] = shutil.disk_usage(folder).free
            if free[folder] >= size:
                return folder
    where = " and ".join(f"{room / 1e9:.1f} GB in {folder}" for folder, room in free.items()) or "no folder to write to"
    raise InputError(
        f"{path}: takes {size / 1e9:.1f} GB decompressed, found free {where}; free some space, or set TMPDIR to a "
        "folder that has it"
    )
