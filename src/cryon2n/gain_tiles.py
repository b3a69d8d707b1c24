"""The tiles that the gain check reads, and what is done to their pixels.

Written for arrays and tensors alike: NumPy is faster on a CPU, a GPU needs torch.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy import ndimage

Image = np.ndarray | torch.Tensor

WINDOW = 9  # pixels; of the local mean: wider than a super-resolution camera's 2 x 2 pixels, narrower than molecules
BORDER = WINDOW // 2  # pixels read around each tile
TILES = 8  # along each axis; they are also the samples of the standard error
TILE = 256  # pixels, at most; 2048² in all: an error of 0.004 at 20 counts per pixel and a spread of 0.03


def corners(length: int) -> tuple[np.ndarray, int]:
    """Return the first pixels of the tiles along one axis, and their size: both with their margin."""
    inner = length - 2 * BORDER
    count = max(1, min(TILES, inner // 8))
    part = inner // count
    size = min(part, TILE)
    return np.arange(count) * part + (part - size) // 2, size + 2 * BORDER


def library(x: Image) -> Any:
    """Return the library whose functions take x: NumPy or torch, whose names are mostly the same."""
    return np if isinstance(x, np.ndarray) else torch


def like(x: Image, array: np.ndarray) -> Image:
    """Return an array as what x is: an array, or a tensor where x lies."""
    return array if isinstance(x, np.ndarray) else torch.from_numpy(array).to(x.device)


def sums(stacks: list[Image]) -> np.ndarray:
    """Return the sums over the last two axes of stacks (..., h, w), one row for each stack, float64."""
    if isinstance(stacks[0], np.ndarray):
        return np.array([x.sum(axis=(-2, -1), dtype=np.float64) for x in stacks])
    return torch.stack([x.sum((-2, -1), dtype=torch.float64) for x in stacks]).cpu().numpy()


def inner(pair: tuple[Image, Image]) -> tuple[Image, Image]:
    """Cut the margin off: there the mean is one-sided, and a mere ramp deviates from it."""
    inside = slice(BORDER, -BORDER)
    return pair[0][:, inside, inside], pair[1][:, inside, inside]


def tiles(image: Image) -> Image:
    """Cut an image (h, w) into its tiles (n_tiles, tile_h, tile_w), float32, in the middle of equal parts."""
    (rows, h), (columns, w) = corners(image.shape[0]), corners(image.shape[1])
    cut = [image[y : y + h, x : x + w] for y in rows for x in columns]
    stacked = library(image).stack(cut)
    return stacked.astype(np.float32) if isinstance(stacked, np.ndarray) else stacked.float()


def sum_tiles(frames: Sequence[Image]) -> Image:
    """Return the sum over frames (h, w) of their tiles, shape (n_tiles, tile_h, tile_w), float32."""
    total = tiles(frames[0])
    for index in range(1, len(frames)):
        total += tiles(frames[index])
    return total


def local_mean(x: Image) -> Image:
    """Return the means over `WINDOW` x `WINDOW` pixels, 0 beyond the edges, shape (..., h, w), float32."""
    if isinstance(x, np.ndarray):
        size = (1,) * (x.ndim - 2) + (WINDOW, WINDOW)
        return ndimage.uniform_filter(x.astype(np.float32), size, mode="constant")
    images = x.float().reshape(-1, 1, *x.shape[-2:])
    for size in ((WINDOW, 1), (1, WINDOW)):
        images = torch.nn.functional.avg_pool2d(images, size, 1, tuple(n // 2 for n in size))
    return images.view(x.shape)


def deviation(x: Image, good: Image) -> float:
    """Return the standard deviation of the good pixels of x, shape (n, h, w)."""
    x = library(x).where(good, x, 0)
    n, total, squares = (float(part.sum()) for part in sums([good, x, x * x]))
    return max(squares / n - (total / n) ** 2, 0.0) ** 0.5 if n else 0.0
