"""Rows and columns at a micrograph's border that are no picture: a detector's outermost lines, or a program's.

Cameras give their first and last lines other grey levels, often along a part of them only.  A few such pixels are
lost on no one's eye, but a network takes a bright line for structure and smears it inwards.
"""

import numpy as np
import torch

from cryon2n.repair import good_pixels_near

DEPTH = 32  # outermost lines of each side that are looked at
BESIDE = 32  # lines further in, which tell what is usual
SEGMENT = 64  # pixels along a line that are averaged
N_SIGMA = 8.0  # robust standard deviations of such a mean, from which on it is no picture
N_STEP = 6.0  # those of its differences from line to line, from which on the border ends sharply
UNEVEN = 3.0  # times the usual scatter, from which on the lines further in tell nothing

Border = tuple[int, int, int, int]


def bad_border(image: np.ndarray | torch.Tensor) -> Border:
    """Count the outermost lines of each side whose grey level is not that of the lines further in.

    The means of segments of `SEGMENT` pixels along each line are held against the median of the same segment in the
    `BESIDE` lines further in, and against how much those scatter.  What goes on further in than half of `DEPTH` is
    taken for an object (carbon, ice) and left.

    Parameters
    ----------
    image : ndarray or tensor, shape (h, w)
        Finite.

    Returns
    -------
    top, bottom, left, right : int
        At most `DEPTH` / 2 each; 0 for images too small to tell.
    """
    if min(image.shape) < max(2 * (DEPTH + BESIDE), SEGMENT):
        return 0, 0, 0, 0
    lines = DEPTH + BESIDE
    strips = (image[:lines], image[-lines:], image[:, :lines].T, image[:, -lines:].T)
    means = (_segment_means(strip) for strip in strips)
    top, bottom, left, right = (_bad_lines(x[::-1] if i % 2 else x) for i, x in enumerate(means))
    return top, bottom, left, right


def _segment_means(strip: np.ndarray | torch.Tensor) -> np.ndarray:
    """Return the means of segments along each line of (lines, n) pixels, taken where the strip is: few travel."""
    x = strip if isinstance(strip, torch.Tensor) else torch.from_numpy(strip.copy())
    x, n = x.double(), x.shape[1] // SEGMENT
    means = x[:, : n * SEGMENT].unflatten(1, (n, SEGMENT)).mean(2)
    return torch.cat([means, x[:, -SEGMENT:].mean(1, keepdim=True)], 1).cpu().numpy()  # the last: what is left over


def _bad_lines(means: np.ndarray) -> int:
    """Count the first of the lines whose segments' means are given, (`DEPTH` + `BESIDE`, n), that are no picture."""
    off = np.abs(means - np.median(means[DEPTH:], axis=0))
    step = np.abs(np.diff(means, axis=0))  # from each line to the next one in
    scatter, steps = (1.4826 * np.median(x[DEPTH:], axis=0) for x in (off, step))
    # A quarter of the segments without objects will do.
    usual, usual_step = (np.quantile(x, 0.25) for x in (scatter, steps))
    bad = off[:DEPTH] > N_SIGMA * usual
    object_there = bad[DEPTH // 2 :].any(0) | (scatter > UNEVEN * usual)
    sharp = step[:DEPTH] > N_STEP * usual_step
    last = bad & sharp & ~object_there
    last[:-1] &= ~np.logical_or.accumulate(bad[::-1], axis=0)[::-1][1:]  # nothing bad further in
    found = np.flatnonzero(last.any(1))
    return int(found[-1]) + 1 if len(found) else 0


def outside(shape: tuple[int, int], border: Border) -> np.ndarray:
    """Return the mask (h, w) of the border."""
    (h, w), (top, bottom, left, right) = shape, border
    mask = np.ones(shape, bool)
    mask[top : h - bottom, left : w - right] = False
    return mask


def fill_border(image: np.ndarray, border: Border) -> np.ndarray:
    """Return a copy of (h, w) with the pixels of the border replaced, each by a good one of the same image near it.

    The same ones for every image of a shape and border, so that two halves go on holding the same signal.
    """
    bad = outside(image.shape, border)
    where, sources = good_pixels_near(bad, 1, np.random.default_rng(0))
    filled = image.copy()
    filled.flat[where] = image.flat[sources[0]]
    return filled
