"""The directories of a TIFF or EER movie: what its frames are, and whether each strip lies inside the file.

tifffile reads the pages; the way from page to page is walked here, because tifffile's own walk ends in
silence where the chain is broken.  Formats: TIFF 6.0, BigTIFF, and EER, a BigTIFF with a page of electron
events per frame (https://github.com/fei-company/EerReaderLib).

Faults are raised as `ValueError` with a reason, or as whatever tifffile and NumPy raise on damage, which
can be anything: the caller knows what file it is and makes a sentence of it.
"""

import contextlib
import io
import logging
import math
import struct
import warnings
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import tifffile

TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0\x08\0\0\0", b"MM\0+\0\x08\0\0")
TIFF_HEADER = 16  # bytes; of a BigTIFF, the longer one
EER_COMPRESSIONS = (65000, 65001, 65002)
EER_METADATA = 65001  # the tag that holds an EER movie's acquisition metadata
FIRST_DATA = 8  # bytes; nothing in a TIFF file lies nearer to its beginning
# The longest list in a directory has 8 bytes for each row of a frame.
LIST_LIMIT = 4 << 20  # bytes


def row_bytes(pixels: int, bits: int) -> int:
    """Return the bytes of a row: in TIFF and MRC alike, rows end at a whole byte."""
    return -(-pixels * bits // 8)


def first_directory(head: bytes) -> int:
    """Return where a TIFF file's first directory lies, from its first 16 bytes; 0 if `head` ends before."""
    head = head.ljust(TIFF_HEADER, b"\0")
    order = "<" if head.startswith(b"II") else ">"
    form, place = ("Q", 8) if 43 in head[2:4] else ("I", 4)
    return struct.unpack_from(order + form, head, place)[0]


def first_frame(head: bytes, events: bool) -> tuple[int, int, str] | None:
    """Return h, w and data type of the first page, whose directory `head` must hold.

    None if `events` are wanted (EER) and the first page is the camera's own sum of the frames.
    """
    with _opened(io.BytesIO(head)) as tiff:
        page = tiff.pages.first
        return None if events and page.compression not in EER_COMPRESSIONS else _frame(page)


def read_frames(path: str, events: bool) -> tuple[int, int, int, str]:
    """Visit every page of a TIFF file: the frames must be alike, and their strips or tiles all in the file.

    Parameters
    ----------
    path : str
    events : bool
        The file is an EER: pages that hold no electron events (the camera's own sum) are no frames.

    Returns
    -------
    frames, h, w : int
    data_type : str
        NumPy's name, or ``uint4``; ``uint8`` for electron events, which are counts.

    Raises
    ------
    Exception
        Of any kind; see the module.
    """
    frames, first = 0, None
    for page in frame_pages(path, events):
        frames, first = frames + 1, first or _frame(page)
    return frames, *first


def frame_pages(path: str, events: bool, metadata: list[bytes] | None = None) -> Iterator[tifffile.TiffPage]:
    """Give each page of a TIFF file that is a frame, checked as `read_frames` says.

    What a page holds must be taken before the next one is asked for: the file is closed after the last.

    Parameters
    ----------
    path : str
    events : bool
        The file is an EER: pages that hold no electron events (the camera's own sum) are left out.
    metadata : list of bytes, optional
        The acquisition metadata (XML) of an EER's pages are appended to it.
    """
    first = None
    with _Bounded(io.FileIO(path)) as file, _opened(file) as tiff:
        size = file.seek(0, io.SEEK_END)
        for number, page in enumerate(_pages(tiff), start=1):
            if metadata is not None and isinstance(text := page.tags.valueof(EER_METADATA), bytes):
                metadata.append(text)
            if events and page.compression not in EER_COMPRESSIONS:
                continue
            found = _frame(page)
            first = first or found
            if found != first:
                raise ValueError(f"page {number} is {_text(found)}, the first {_text(first)}; frames must be alike")
            if fault := _segment_fault(page, size):
                raise ValueError(f"page {number} {fault}")
            yield page
    if first is None:
        raise ValueError("it holds no frame of electron events" if events else "it holds no page")


def _pages(tiff: tifffile.TiffFile) -> Iterator[tifffile.TiffPage]:
    """Give each page, until one says that it is the last."""
    file, layout, seen = tiff.filehandle, tiff.tiff, set()
    file.seek(0)
    offset = first_directory(file.read(TIFF_HEADER))
    while offset:
        if offset in seen:
            raise ValueError(f"its pages go in a circle after page {len(seen)}")
        if offset >= file.size:
            raise ValueError(f"page {len(seen) + 1} would begin at byte {offset} of {file.size}")
        seen.add(offset)
        file.seek(offset)
        yield tifffile.TiffPage(tiff, index=len(seen) - 1)
        file.seek(offset)
        (tags,) = struct.unpack(layout.tagnoformat, file.read(layout.tagnosize))
        _check_fields(file.read(tags * layout.tagsize), layout, file.size, f"page {len(seen)}")
        (offset,) = struct.unpack(layout.offsetformat, file.read(layout.offsetsize))


def _check_fields(fields: bytes, layout: tifffile.TiffFormat, size: int, page: str) -> None:
    """Check that a directory's values lie inside a file of `size` bytes; tifffile leaves out those that do not."""
    for code, kind, count, value in struct.iter_unpack(layout.tagheaderformat, fields):
        length = count * struct.calcsize(tifffile.TIFF.DATA_FORMATS.get(kind, ""))  # unknown kinds are to be skipped
        if length > layout.tagoffsetthreshold:
            (place,) = struct.unpack(layout.offsetformat, value)
            if place + length > size:
                raise ValueError(f"the value of field {code} of {page} would end at byte {place + length} of {size}")


def _frame(page: tifffile.TiffPage) -> tuple[int, int, str]:
    """Return h, w and data type of a page that can be a movie's frame."""
    if len(page.shape) != 2 or not all(isinstance(side, int) and side > 0 for side in page.shape):
        size = " x ".join(map(str, page.shape)) or "nothing"
        raise ValueError(f"a page holds {size}, wanted one value for each pixel of h x w")
    if page.compression in EER_COMPRESSIONS:
        return *page.shape, "uint8"
    if page.dtype is None:
        kind = f"{page.bitspersample} bits of sample format {page.sampleformat}"
        raise ValueError(f"a page has {kind} per pixel, wanted whole or floating-point numbers")
    return *page.shape, "uint4" if page.bitspersample == 4 else page.dtype.name


def _text(frame: tuple[int, int, str]) -> str:
    return f"{frame[0]} x {frame[1]} (h x w), {frame[2]}"


def _segment_fault(page: tifffile.TiffPage, size: int) -> str | None:
    """Tell what is wrong with the strips or tiles of a page in a file of `size` bytes; None if nothing is."""
    h, w = page.shape
    rows, columns = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip or h, w)
    wanted = math.ceil(h / rows) * math.ceil(w / columns)
    places, sizes = len(page.dataoffsets), len(page.databytecounts)
    if not places == sizes == wanted:
        return f"has {places} places and {sizes} sizes of strips or tiles, wanted {wanted}"
    starts = np.array(page.dataoffsets, np.uint64)
    lengths = np.array(page.databytecounts, np.uint64)
    if (starts < FIRST_DATA).any() or (lengths == 0).any():
        return "has strips or tiles that were never written"
    # In this order, because the sum of two such numbers may overflow.
    if (starts > size).any() or (lengths > size - starts).any():
        return f"has strips or tiles beyond the file's {size} bytes"
    if page.compression == 1:
        need = row_bytes(columns, page.bitspersample) * (rows * wanted if page.is_tiled else h)
        if (there := int(lengths.sum())) < need:
            return f"has {there} bytes of pixels, {h} x {w} pixels need {need}"
    return None


@contextlib.contextmanager
def _opened(file: BinaryIO) -> Iterator[tifffile.TiffFile]:
    """Open a TIFF file with tifffile, whose warnings and log stay silent."""
    logger = logging.getLogger("tifffile")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.addFilter(quiet := lambda record: False)
        try:
            # These microscopes' files have pages that are guessed, not read; no movie is one of them.
            with tifffile.TiffFile(file, is_lsm=False, is_ndpi=False, is_scanimage=False) as tiff:
                yield tiff
        finally:
            logger.removeFilter(quiet)


class _Bounded(io.BufferedReader):
    """A file from which no damaged length can make tifffile take gigabytes into memory at once."""

    def read(self, size: int | None = -1, /) -> bytes:
        self._check(-1 if size is None else size)
        return super().read(size)

    def readinto(self, buffer, /) -> int:
        self._check(memoryview(buffer).nbytes)
        return super().readinto(buffer)

    @staticmethod
    def _check(size: int) -> None:
        if not 0 <= size <= LIST_LIMIT:
            raise ValueError(f"a list of {size} bytes, wanted at most {LIST_LIMIT}")
