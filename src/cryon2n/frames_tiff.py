"""Frames of TIFF and EER movies: tifffile finds the pages, imagecodecs decodes what is in them.

A TIFF movie has a page per frame.  An EER movie is a BigTIFF with a page of electron events per raw frame,
hundreds to thousands of them with a few events per hundred pixels, which are summed into frames as they are
decoded (https://github.com/fei-company/EerReaderLib).  Every page is visited when a movie is opened, so that
a truncated file is known at once.  Rows are in the file's order; a TIFF orientation is not applied.
"""

import contextlib
from pathlib import Path
from typing import BinaryIO

import imagecodecs
import numpy as np
import tifffile

from cryon2n import tiff_header
from cryon2n.errors import InputError
from cryon2n.frames import check_frame_size, plausible_pixel_size, pread

# By number: what can be read, and the most bytes of pixels that a byte of it can give.  LZW: a table's longest
# string, below 6144 bytes, for 12 bits; deflate: 258 bytes for 2 bits; ZSTD: a block of 128 KiB for 4 bytes.
EXPANSION = {1: 1, 5: 4096, 8: 1032, 32946: 1032, 32773: 64, 50000: 32768}
COMPRESSIONS = "none, LZW, deflate, ZSTD or PackBits"
X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT = 282, 283, 296
UNITS = {2: 2.54e8, 3: 1e8}  # Å in an inch and a centimetre
RUN_BITS, X_BITS, Y_BITS = 65007, 65008, 65009  # of EER: of a run of empty pixels, and of each sub-pixel coordinate
FEW = 100  # raw frames of an EER; more of them are summed into
MANY = 40  # frames or more


class TiffSource:
    """A TIFF movie, or the image of a TIFF file."""

    group = 1

    def __init__(self, path: Path, file: BinaryIO):
        self.file, self.pages = file, []
        for page in tiff_header.frame_pages(str(path), events=False):
            check_frame_size(path, *page.shape)
            if page.compression not in EXPANSION:
                name = getattr(page.compression, "name", page.compression)
                raise InputError(f"{path}: is compressed by {name}; wanted compression {COMPRESSIONS}")
            if page.dtype.kind not in "uif":
                raise InputError(f"{path}: holds {page.dtype.name} pixels; wanted counts or real numbers")
            wanted = page.shape[0] * tiff_header.row_bytes(page.shape[1], page.bitspersample)
            _check_expansion(page, wanted, EXPANSION[page.compression])
            if not self.pages:
                self.pixel_size = _resolution(page)
            page.decode  # noqa: B018 - made now, because the file that tifffile opened is closed afterwards
            self.pages.append(page)
        first = self.pages[0]
        self.shape, self.dtype = (len(self.pages), *first.shape), first.dtype.newbyteorder("=")
        self.raw = len(self.pages)

    def read(self, index: int, out: np.ndarray) -> None:
        """Write frame `index` into `out`."""
        page = self.pages[index]
        for number, (offset, size) in enumerate(zip(page.dataoffsets, page.databytecounts, strict=True)):
            segment, (_, _, y, x, _), _ = page.decode(pread(self.file, size, offset), number)
            here = out[y : y + segment.shape[1], x : x + segment.shape[2]]
            np.copyto(here, segment[0, : here.shape[0], : here.shape[1], 0])  # tiles may reach over the edge

    def view(self, index: int) -> None:
        """Return None: frames are decoded."""


class EerSource:
    """An EER movie, its raw frames summed in groups."""

    def __init__(self, path: Path, file: BinaryIO, group: int | None):
        self.file, self.strips, metadata = file, [], []
        for page in tiff_header.frame_pages(str(path), True, metadata):
            check_frame_size(path, *page.shape)
            # A code without event of `run` bits is the one that skips most pixels per bit.
            run = _bits(page)[0]
            _check_expansion(page, page.shape[0] * page.shape[1], (2**run - 1) * 8 / run)
            self.strips.append((_bits(page), page.dataoffsets, page.databytecounts))
        self.raw = len(self.strips)
        self.group = eer_group(self.raw, group, str(path))
        self.shape = (self.raw // self.group, *page.shape)
        # A raw frame has at most one event per pixel.
        self.dtype = np.dtype(np.uint8 if self.group <= 255 else np.uint16)
        self.pixel_size = _eer_pixel_size(metadata)

    def read(self, index: int, out: np.ndarray) -> None:
        """Write frame `index` into `out`."""
        out[...] = 0
        for bits, offsets, sizes in self.strips[index * self.group : (index + 1) * self.group]:
            # One stream, however many strips it is cut into, as in EerReaderLib.
            events = b"".join(pread(self.file, n, at) for at, n in zip(offsets, sizes, strict=True))
            # The decoder wants whole 16-bit words, and adds to what is there.
            imagecodecs.eer_decode(events + bytes(len(events) % 2), out.shape, *bits, out=out)

    def view(self, index: int) -> None:
        """Return None: frames are decoded."""


def eer_group(raw: int, wanted: int | None, where: str) -> int:
    """Return how many raw frames of an EER movie make a frame.

    Parameters
    ----------
    raw : int
        Raw frames in the movie.
    wanted : int or None
        The user's choice.  None: 1 up to 100 raw frames, beyond that ``raw // 40``, which makes 40 to 59 frames
        and leaves out at most 1 raw frame in 40.
    where : str
        What the message calls the file.
    """
    if wanted is None:
        return 1 if raw <= FEW else raw // MANY
    if not 1 <= wanted <= raw // 2:
        raise InputError(
            f"{where}: fraction {wanted} of {raw} raw frames given; wanted 1 to {raw // 2}, which leaves two frames"
        )
    return wanted


def _check_expansion(page: tifffile.TiffPage, wanted: int, most: float) -> None:
    """Check that the compressed bytes of a page can hold `wanted` bytes or pixels, before memory is given to them."""
    there = sum(page.databytecounts)
    if there * most < wanted:
        raise ValueError(f"{there} compressed bytes cannot hold {page.shape[0]} x {page.shape[1]} pixels")


def _bits(page: tifffile.TiffPage) -> tuple[int, int, int]:
    """Return the bits of a run of empty pixels and of an event's sub-pixel x and y."""
    if page.compression == 65002:
        tags = ((RUN_BITS, 7), (X_BITS, 2), (Y_BITS, 2))
        run, x, y = (int(page.tags.valueof(tag, default)) for tag, default in tags)
        if not (4 <= run <= 14 and 1 <= x <= 4 and 1 <= y <= 4 and 8 < run + x + y <= 16):
            raise ValueError(f"its events are coded in {run} + {x} + {y} bits, wanted 9 to 16 in all")
        return run, x, y
    return {65000: 8, 65001: 7}[page.compression], 2, 2


def _resolution(page: tifffile.TiffPage) -> float | None:
    """Return the pixel size in Å that the resolution tags tell; None where they tell none or another thing's."""
    unit = UNITS.get(page.tags.valueof(RESOLUTION_UNIT, 0))
    sizes = []
    for tag in (X_RESOLUTION, Y_RESOLUTION):
        value = page.tags.valueof(tag)
        if unit is None or not isinstance(value, tuple) or len(value) != 2 or not all(value):
            return None
        sizes.append(unit * value[1] / value[0])
    return plausible_pixel_size(sizes[0]) if abs(sizes[0] - sizes[1]) <= 0.01 * sizes[0] else None


def _eer_pixel_size(metadata: list[bytes]) -> float | None:
    """Return the pixel size in Å from an EER movie's metadata (XML), which give it in metres at the specimen."""
    for text in metadata:
        # Of any kind on damage; a movie without metadata is still a movie.
        with contextlib.suppress(Exception):
            found = tifffile.tifffile.eer_xml_metadata(text.rstrip(b"\0").decode())
            return plausible_pixel_size(1e10 * float(found["sensorPixelSize.width"]))
    return None
