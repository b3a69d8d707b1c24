"""Bad areas of a micrograph: what is dead, filled or saturated in a half, and what a mask of the user's says."""

import functools
import struct
from collections.abc import Iterable
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile

from cryon2n import mrcio
from cryon2n.errors import InputError

BLOCK = 16  # pixels; side of the squares in which the halves are looked at
EVERY = 4  # pixels; every fourth row and column of a square are enough to see that it is not constant
FLAT = 0.1  # of the median range of values: a hundredth of the variance, as in the audit's dead area
MASK_ENDINGS = (".mrc", ".png", ".tif", ".tiff")


def flat_blocks(a: np.ndarray, b: np.ndarray, valid: list[int], scales: tuple[float, float]) -> np.ndarray:
    """Find the squares of 16 pixels that hold no noise of their own.

    The range of the values in a square is compared with the median range of the micrograph's squares.  In
    half a or b it is near 0 where the detector is dead, the image filled or saturated; in their difference
    where both were filled with the same noise.

    Parameters
    ----------
    a, b : ndarray, shape (h, w)
        The halves, which may be memory-mapped.
    valid : list of int
        [y0, y1, x0, x1]: squares are counted from its first pixel, and what is left over at the far edges is
        left out.
    scales : (float, float)
        How many units of a and of b hold the same signal.

    Returns
    -------
    flat : ndarray of bool, shape (rows, columns) of squares
    """
    y0, y1, x0, x1 = valid
    rows, columns = (y1 - y0) // BLOCK, (x1 - x0) // BLOCK

    def look(row: int, n: int, every: int) -> np.ndarray:
        """Return the ranges of `n` rows of squares from `row` on, shape (3, n, columns): of a, b and a - b."""
        begin = y0 + row * BLOCK
        part = (slice(begin, begin + n * BLOCK, every), slice(x0, x0 + columns * BLOCK, every))
        one, other = (np.asarray(x[part], np.float32) for x in (a, b))
        difference = one * np.float32(1 / scales[0]) - other * np.float32(1 / scales[1])
        side = BLOCK // every
        squares = [image.reshape(n, side, columns, side) for image in (one, other, difference)]
        return np.stack([_reduced(np.maximum, x) - _reduced(np.minimum, x) for x in squares])

    with np.errstate(all="ignore"):  # values that are not finite are found by comparing below
        found = [look(row, min(BLOCK, rows - row), EVERY) for row in range(0, rows, BLOCK)]
        ranges = np.concatenate(found, axis=1)
        # Of those that are neither constant nor NaN.
        medians = [np.median(alive) if (alive := image[image > 0]).size else np.inf for image in ranges]
        limits = FLAT * np.array(medians)[:, None, None]
        flat = np.any(~(ranges > limits), axis=0)
        # Where counts are few, 16 pixels can be alike by chance.
        for row in np.flatnonzero(flat.any(axis=1)):
            flat[row] = np.any(~(look(int(row), 1, 1) > limits), axis=0)
    return flat


def _reduced(choose: np.ufunc, squares: np.ndarray) -> np.ndarray:
    """Reduce the second and the last axis; NumPy's own way is slow along a short last axis."""
    rows = choose.reduce(squares, axis=1)
    return functools.reduce(choose, (rows[..., k] for k in range(rows.shape[-1])))


def bad_shares(
    flat: np.ndarray, mask: np.ndarray | None, valid: list[int], positions: list[tuple[int, int]], patch: int
) -> list[float]:
    """Return the share of bad pixels in each patch.

    Parameters
    ----------
    flat : ndarray of bool, shape (rows, columns)
        Of `flat_blocks`.  Pixels beyond its last square count like that square.
    mask : ndarray of bool, shape (h, w), or None
        What is good.
    valid : list of int
        [y0, y1, x0, x1].
    positions : list of (y, x)
    patch : int
    """
    if mask is None and not flat.any():
        return [0.0] * len(positions)
    y0, y1, x0, x1 = valid
    rows = np.minimum(np.arange(y1 - y0) // BLOCK, flat.shape[0] - 1)
    columns = np.minimum(np.arange(x1 - x0) // BLOCK, flat.shape[1] - 1)
    bad = flat[np.ix_(rows, columns)]
    if mask is not None:
        bad |= ~mask[y0:y1, x0:x1]
    return [float(bad[y - y0 : y - y0 + patch, x - x0 : x - x0 + patch].mean()) for y, x in positions]


def find_masks(folder: str | Path, names: Iterable[str]) -> dict[str, Path]:
    """Return the masks of a folder by micrograph: ``{mic}.mrc``, ``.png``, ``.tif`` or ``.tiff``.

    Micrographs without one are good everywhere.

    Raises
    ------
    InputError
        There is no such folder, or it has two masks of one micrograph or none of any.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; shards: masks wants a folder of masks, one per micrograph")
    found: dict[str, Path] = {}
    names = list(names)
    for name in names:
        there = [path for ending in MASK_ENDINGS if (path := folder / f"{name}{ending}").exists()]
        if len(there) > 1:
            raise InputError(f"{there[0]} and {there[1]}: two masks of one micrograph; leave one")
        if there:
            found[name] = there[0]
    if names and not found:
        raise InputError(
            f"{folder}: holds no mask of any of the {len(names)} micrographs; wanted files such as "
            f"{names[0]}.png ({', '.join(MASK_ENDINGS)})"
        )
    return found


def read_mask(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """Read a mask: True where its pixel is not 0.

    Parameters
    ----------
    path : Path
        MRC, PNG or TIFF, one image, whose first row belongs to the halves' first row as their files store it.
    shape : (int, int)
        h and w of the halves.

    Returns
    -------
    good : ndarray of bool, shape (h, w)

    Raises
    ------
    InputError
        The file cannot be read, or has another shape.
    """
    if path.suffix == ".mrc":
        image = mrcio.read_mrc(path)[0]
    else:
        try:
            if path.suffix == ".png":
                image = imagecodecs.png_decode(path.read_bytes())
            else:
                image = tifffile.imread(path)
        except (OSError, ValueError, RuntimeError, IndexError, struct.error) as error:  # what damage can raise
            raise InputError(f"{path}: cannot read the mask ({error}); wanted an image (MRC, PNG or TIFF)") from None
        if image.ndim == 3 and (colours := {2: 1, 3: 3, 4: 3}.get(image.shape[-1])):
            image = image[..., :colours].any(axis=-1)  # the last of 2 or 4 is opacity
    if image.shape != tuple(shape):
        found = " x ".join(map(str, image.shape))
        raise InputError(
            f"{path}: the mask has {found} pixels, the halves {shape[0]} x {shape[1]} (h x w); make it for these halves"
        )
    return image != 0
