"""Pixels that cannot be trusted are replaced by good ones near them; and what tells them apart: local mean, median."""

import numpy as np
import torch

from cryon2n.errors import InputError

CHOICES = 8  # good pixels for each defect; even, so that even and odd frames take different ones
AT_ONCE = 1 << 17  # defects that are looked after together; bounds the memory that this takes


def local_mean(x: torch.Tensor, size: int = 32) -> torch.Tensor:
    """Return the means of blocks of `size` pixels, interpolated linearly between the blocks' middles."""
    coarse = torch.nn.functional.avg_pool2d(x[None, None], size, ceil_mode=True, count_include_pad=False)
    h, w = x.shape
    if h % size or w % size:  # the interpolation takes all blocks for whole ones
        whole = [-(-n // size) * size for n in x.shape]
        return torch.nn.functional.interpolate(coarse, size=whole, mode="bilinear")[0, 0, :h, :w]
    return torch.nn.functional.interpolate(coarse, size=(h, w), mode="bilinear")[0, 0]


def evenly(x: torch.Tensor, most: int = 4_000_000) -> torch.Tensor:
    """Return at most about `most` of the values, evenly chosen, shape (k,): enough for their median."""
    flat = x.flatten()
    return flat[:: max(1, flat.numel() // most)]


class Repair:
    """Replace each defect pixel of a frame by a good pixel near it.

    By a pixel of the *same* frame, so that frames stay independent of each other; by one pixel rather than
    the mean of many, so that what is filled has the mean and the variance of its surroundings, at any dose
    and over any area; by another one in each of `CHOICES` frames, so that no pixel of a sum is a copy.
    The choice is the same for every movie with these defects.

    Parameters
    ----------
    defects : tensor of bool, shape (h, w)

    Raises
    ------
    InputError
        Every pixel is a defect.
    """

    def __init__(self, defects: torch.Tensor):
        where, sources = good_pixels_near(defects.cpu().numpy(), CHOICES, np.random.default_rng(0))
        self.where, self.sources = (torch.from_numpy(x).to(defects.device) for x in (where, sources))

    def __call__(self, frame: torch.Tensor, number: int) -> torch.Tensor:
        """Repair frame `number` of a movie, shape (h, w), in place and return it."""
        flat = frame.view(-1)
        flat[self.where] = flat.index_select(0, self.sources[number % CHOICES])
        return frame


def good_pixels_near(bad: np.ndarray, choices: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Choose good pixels near each bad one.

    At random from a square about it, which ends at the image's edges; its half side is 1, 2, 4 … pixels,
    until half of what is drawn is good.  One pixel may be chosen several times.

    Parameters
    ----------
    bad : ndarray of bool, shape (h, w)
    choices : int
    rng : Generator

    Returns
    -------
    where : ndarray of int64, shape (n,)
        The bad pixels, in the flattened image.
    sources : ndarray of int32, shape (choices, n)
        The good pixels for each.
    """
    (h, w), where, flat = bad.shape, np.flatnonzero(bad), bad.ravel()
    if len(where) == bad.size:
        raise InputError("every pixel is a defect; wanted a movie with good ones: check gain, dark and defects")
    sources = np.empty((choices, len(where)), np.int32)
    for start in range(0, len(where), AT_ONCE):
        left, radius = np.arange(start, min(start + AT_ONCE, len(where))), 1
        while len(left) and radius <= 2 * max(h, w):
            y, x = (at.astype(np.int32) for at in np.divmod(where[left], w))
            y0, y1 = np.maximum(y - radius, 0), np.minimum(y + radius + 1, h)
            x0, x1 = np.maximum(x - radius, 0), np.minimum(x + radius + 1, w)
            # Deep within a bad block the square's corners are bad, too: no need to draw there.
            worth = ~(bad[y0, x0] & bad[y0, x1 - 1] & bad[y1 - 1, x0] & bad[y1 - 1, x1 - 1])
            inside, y0, y1, x0, x1 = left[worth], *(at[worth, None] for at in (y0, y1, x0, x1))
            random = rng.random((2, len(inside), 2 * choices), np.float32)  # below 1, and times n below n
            drawn = (y0 + (random[0] * (y1 - y0)).astype(np.int32)) * w + x0 + (random[1] * (x1 - x0)).astype(np.int32)
            good = ~flat[drawn]
            rank = good.cumsum(1, dtype=np.int16)
            enough = rank[:, -1] >= choices
            chosen = drawn[enough][(good & (rank <= choices))[enough]]
            sources[:, inside[enough]] = chosen.reshape(-1, choices).T
            left = np.concatenate([left[~worth], inside[~enough]])
            radius *= 2
        if len(left):  # more than half of all pixels are bad
            sources[:, left] = rng.choice(np.flatnonzero(~flat), (choices, len(left)))
    return where, sources
