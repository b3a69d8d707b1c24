"""Reading the one image of a Gatan DM3 or DM4 file, as gain and dark references of Gatan's cameras are kept.

Gatan does not publish the format.  It is a tree of tags, each with a description of its own data, and was
described by C. B. Boothroyd (https://phyweb.physics.nus.edu.sg/~phybcb/info/dmformat/) and G. Jefferis
(https://imagej.net/ij/plugins/DM3Format.gj.html).  DM4 has 8-byte where DM3 has 4-byte lengths, and says of
each tag how long it is.  The tree's own numbers are big-endian; the data may be in either order.
"""

import math
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np

from cryon2n.errors import InputError
from cryon2n.frames import as_damage, check_frame_size

GROUP, DATA = 20, 21  # what a tag is
STRUCT, STRING, ARRAY = 15, 18, 20  # what its data are, if not one number
NUMBERS = {2: "i2", 3: "i4", 4: "u2", 5: "u4", 6: "f4", 7: "f8", 8: "u1", 9: "i1", 10: "i1", 11: "i8", 12: "u8"}
# DataType of an image of one real number per pixel
PIXELS = {1: "i2", 2: "f4", 6: "u1", 7: "i4", 9: "i1", 10: "u2", 11: "u4", 12: "f8", 39: "i8", 40: "u8"}
WORDS = 4096  # a longer description of data is damage

# A tag's path of names, and its data: one number, or where an array lies (position, number of bytes).
Tags = dict[tuple[str, ...], float | tuple[int, int]]


def is_dm(head: bytes) -> bool:
    """Say whether a file's first bytes are those of a DM3 or DM4 file."""
    return head[:4] in (b"\0\0\0\3", b"\0\0\0\4")


def read_image(path: str | Path) -> np.ndarray:
    """Read the image of a DM3 or DM4 file, shape (h, w), in its own data type.

    Raises
    ------
    InputError
        The file is missing or damaged, or does not hold exactly one image (a thumbnail is none).
    """
    path = Path(path)
    with as_damage(path, "not a complete DM3 or DM4 file"), open(path, "rb") as file:
        tree = _Tree(file)
        images = {}
        for name, kind in tree.tags.items():
            if name[:1] == ("ImageList",) and name[2:] == ("ImageData", "DataType") and kind in PIXELS:
                images[name[1]] = np.dtype(PIXELS[int(kind)]).newbyteorder(tree.order)
        if len(images) != 1:
            raise InputError(f"{path}: holds {len(images)} images of real numbers; wanted one, of shape (h, w)")
        ((number, dtype),) = images.items()
        data = ("ImageList", number, "ImageData")
        sides = [int(v) for k, v in tree.tags.items() if k[:-1] == (*data, "Dimensions")]
        if len(sides) < 2 or min(sides) < 1 or math.prod(sides[2:]) != 1:
            raise InputError(f"{path}: holds an image of {' x '.join(map(str, sides))} pixels; wanted w x h")
        w, h = sides[:2]
        check_frame_size(path, h, w)
        position, size = tree.tags[*data, "Data"]
        if size != h * w * dtype.itemsize:
            raise ValueError(f"its image has {size} bytes, {h} x {w} pixels need {h * w * dtype.itemsize}")
        file.seek(position)
        return np.fromfile(file, dtype, h * w).reshape(h, w).astype(dtype.newbyteorder("="))


class _Tree:
    """The tags of a file."""

    def __init__(self, file: BinaryIO):
        self.file, self.tags = file, Tags()
        self.size = file.seek(0, 2)
        file.seek(0)
        version = self._numbers(">i")[0]
        if version not in (3, 4):
            raise ValueError(f"it begins with {version}, wanted 3 or 4")
        self.long, self.dm4 = (">q", True) if version == 4 else (">i", False)
        self._numbers(self.long)
        self.order = "<" if self._numbers(">i")[0] else ">"
        self._group(())

    def _numbers(self, form: str) -> tuple:
        return struct.unpack(form, self.file.read(struct.calcsize(form)))

    def _group(self, path: tuple[str, ...]) -> None:
        self.file.read(2)  # sorted, open
        (count,) = self._numbers(self.long)
        for number in range(count):  # a wrong count ends at the end of the file
            kind, length = self._numbers(">BH")
            name = self.file.read(length).decode("latin-1") or str(number)
            if self.dm4:
                self._numbers(">q")
            if kind == GROUP:
                self._group((*path, name))
            elif kind == DATA:
                self._data((*path, name))
            else:
                raise ValueError(f"a tag of kind {kind}, wanted {GROUP} or {DATA}")

    def _data(self, path: tuple[str, ...]) -> None:
        mark, (words,) = self.file.read(4), self._numbers(self.long)
        if mark != b"%%%%" or not 1 <= words <= WORDS:
            raise ValueError(f"the data of {'/'.join(path)} begin with {mark!r} and {words} words")
        info = self._numbers(f">{words}{self.long[1]}")
        if info[0] in NUMBERS:
            (self.tags[path],) = self._numbers(self.order + np.dtype(NUMBERS[info[0]]).char)
            return
        # What is in an array of bytes or a struct does not matter, only where it ends.
        size = _length(info)
        begin = self.file.tell()
        if not 0 <= size <= self.size - begin:
            raise ValueError(f"the data of {'/'.join(path)} would end at byte {begin + size} of {self.size}")
        self.tags[path] = (begin, size)
        self.file.seek(begin + size)


def _length(info: tuple[int, ...]) -> int:
    """Return the bytes that data of a description take."""
    kind = info[0]
    if kind in NUMBERS:
        return np.dtype(NUMBERS[kind]).itemsize
    if kind == STRING:
        return info[1]
    if kind == STRUCT:  # kind, length of its name, number of fields, then length of the name and kind of each
        return sum(_length((field,)) for field in info[4 : 4 + 2 * info[2] : 2])
    if kind == ARRAY:  # kind, description of an element, number of elements
        return _length(info[1:-1]) * info[-1]
    raise ValueError(f"data of kind {kind}")
