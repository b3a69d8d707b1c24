"""Gain and dark references and lists of defects, from the formats in which cameras and programs leave them.

The format is told by a file's first bytes, not its name: MRC (also compressed), TIFF, which Thermo Fisher's
``.gain`` files are too, and Gatan's DM3 and DM4.  Images are in the order of their file: rows from the first.
"""

import re
from pathlib import Path

import numpy as np

from cryon2n import dm4, frames, mrcio
from cryon2n.errors import InputError
from cryon2n.movie_header import MAGIC, MRC_HEADER

# What a gain reference does to a frame.  SerialEM's and most programs' multiply; Falcon cameras' ``.gain``
# files divide: they are the response to even illumination.  `gain.check_gain` tells an inverse.
OPERATIONS = ("multiply", "divide")


def read_reference(path: str | Path, name: str) -> np.ndarray:
    """Read a gain or dark reference as it is stored.

    Parameters
    ----------
    path : path
        MRC, TIFF, ``.gain``, DM3 or DM4: one image.
    name : str
        ``gain`` or ``dark``, for the message.

    Returns
    -------
    reference : ndarray, shape (h, w), float32

    Raises
    ------
    InputError
        The file is missing, damaged or of another format, holds several images, NaN or infinity.
    """
    data = _read_image(Path(path), _first_bytes(path), f"the {name} reference").astype(np.float32)
    mrcio.check_finite(path, data)
    return data


def as_multiplier(gain: np.ndarray, operation: str) -> np.ndarray:
    """Return what a gain reference (h, w) of one of `OPERATIONS` multiplies frames by.

    Pixels that would divide by 0 or less get 0, which marks them as defects.
    """
    if operation not in OPERATIONS:
        raise InputError(f"reference_operation: found {operation!r}, wanted one of {', '.join(OPERATIONS)}")
    if operation == "multiply":
        return gain
    return np.divide(1, gain, where=gain > 0, out=np.zeros_like(gain))


def read_defects(path: str | Path, shape: tuple[int, int]) -> np.ndarray:
    """Read which pixels of a camera are defects.

    Parameters
    ----------
    path : path
        Text with a rectangle ``x y w h`` in each line (MotionCor2's ``-DefectFile``): x is the column, y
        the row, both counted from 0 at the file's first pixel; ``#`` begins a comment.  Or an image, of which
        all pixels that are not 0 are defects, as IMOD's ``clip defect -D`` makes of SerialEM's list.
    shape : (int, int)
        h and w of the frames.

    Returns
    -------
    defects : ndarray of bool, shape (h, w)

    Raises
    ------
    InputError
        The file is missing, damaged or of another format; a rectangle reaches out of the frame; the image has
        another shape.
    """
    path, head = Path(path), _first_bytes(path)
    if b"\0" in head or head.startswith(tuple(magic for magics, _ in MAGIC.values() for magic in magics)):
        image = _read_image(path, head, "the defect map")
        if image.shape != tuple(shape):
            raise InputError(f"{path}: the defect map has shape {image.shape}; wanted that of the frames, {shape}")
        return image != 0
    defects = np.zeros(shape, bool)
    h, w = shape
    for number, line in enumerate(_text(path).splitlines(), start=1):
        if not (words := line.partition("#")[0].split()):
            continue
        if len(words) != 4 or not all(re.fullmatch(r"[0-9]{1,9}", word) for word in words):
            raise InputError(
                f"{path}: line {number} is {line.strip()[:80]!r}; wanted x y w h, whole numbers of pixels, of a "
                "rectangle of defects (make an image of SerialEM's own list: clip defect -D)"
            )
        x, y, width, height = map(int, words)
        if width < 1 or height < 1 or x + width > w or y + height > h:
            raise InputError(
                f"{path}: line {number} marks columns {x} to {x + width - 1} and rows {y} to {y + height - 1}; wanted "
                f"pixels of a frame of {h} x {w} (h x w): give the list of this camera and binning"
            )
        defects[y : y + height, x : x + width] = True
    return defects


def _first_bytes(path: str | Path) -> bytes:
    with frames.as_damage(Path(path), "cannot be read"), open(path, "rb") as file:
        return file.read(MRC_HEADER)


def _text(path: Path) -> str:
    with frames.as_damage(path, "not a text file"):
        return path.read_text(encoding="utf-8")


def _read_image(path: Path, head: bytes, what: str) -> np.ndarray:
    """Read a file's one image, shape (h, w), in its own data type; `head` are the file's first bytes."""
    if dm4.is_dm(head):
        return dm4.read_image(path)
    form = next((form for form in ("tiff", "gz", "bz2") if head.startswith(MAGIC[form][0])), "mrc")
    with frames.open_format(path, form) as opened:
        if len(opened) != 1:
            raise InputError(f"{path}: {what} has shape {opened.shape}; wanted one image (h, w)")
        return opened.read(0)
