"""What is put right in a micrograph before it is denoised: pixels that are no numbers, hot pixels, grey levels.

Works where the image is, on a CPU or a GPU.
"""

from dataclasses import dataclass

import numpy as np
import torch

from cryon2n.border import bad_border, outside
from cryon2n.errors import InputError
from cryon2n.repair import evenly, good_pixels_near, local_mean

N_SIGMA = 7.0  # robust standard deviations from which on a single pixel is no noise
NEIGHBOURS = 2  # pixels to each side among which the others that stand out are counted
CROWD = 6  # that stand out within 5 x 5 pixels: the most that alignment makes of one hot pixel
CUT = 30.0  # robust standard deviations beyond which a value counts no more for the local mean
SAMPLE = 1_000_000  # pixels that medians are taken of
BAND = 1024  # rows that are looked at together, as a multiple of the local mean's blocks; bounds the memory, too
MARGIN = 32  # rows beyond a band whose local means count in it: one block
AT_ONCE = 1 << 18  # candidates that are looked at together; bounds the memory that this takes


@dataclass(frozen=True)
class Repaired:
    """How many pixels were replaced: that were NaN or infinite, that were hot (or dead), and of border lines."""

    not_finite: int = 0
    hot: int = 0
    border: int = 0

    def __add__(self, other: "Repaired") -> "Repaired":
        return Repaired(self.not_finite + other.not_finite, self.hot + other.hot, self.border + other.border)


def repair_pixels(image: torch.Tensor, where: str = "the image") -> Repaired:
    """Replace bad pixels of a micrograph (h, w), float32, in place, each by a good one near it.

    Bad is what is NaN or infinite, and what stands more than `N_SIGMA` robust standard deviations (1.4826 MAD) from
    the local mean and from its neighbours' median, almost alone: gold, ice and the edge of carbon do so in crowds of
    more than `CROWD` pixels, and stay.  And bad are border lines of another grey level (`border`).

    Parameters
    ----------
    image : tensor, shape (h, w)
    where : str
        Names the image in errors.

    Raises
    ------
    InputError
        More than half of the pixels are not finite.
    """
    bad = ~torch.isfinite(image)
    not_finite = int(bad.sum())
    if 2 * not_finite > image.numel():
        raise InputError(
            f"{where}: {not_finite} of {image.numel()} pixels are NaN or infinite; wanted at most half of them: "
            "make or copy the file again"
        )
    if not_finite:
        image.masked_fill_(bad, float(evenly(image[~bad]).median()))
    n_border = 0
    if any(border := bad_border(image)):
        lines = torch.from_numpy(outside(image.shape, border)).to(image.device)
        n_border = int((lines & ~bad).sum())
        bad |= lines
    hot = _hot(image, bad)
    bad.view(-1)[hot] = True
    n_hot = len(hot)
    if not_finite or n_hot or n_border:
        at, sources = good_pixels_near(bad.cpu().numpy(), 1, np.random.default_rng(0))
        at, sources = (torch.from_numpy(x).to(image.device) for x in (at, sources[0]))
        image.view(-1)[at] = image.view(-1).index_select(0, sources)
    return Repaired(not_finite, n_hot, n_border)


def _hot(image: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Return where in the flattened image (h, w) hot pixels are that are not known to be bad."""
    centre, spread = _centre_and_spread(image[~known] if known.any() else image)
    if not spread > 0:
        return torch.zeros(0, dtype=torch.int64, device=image.device)
    (h, w), found = image.shape, []
    outside = torch.empty_like(known)
    for y, band in zip(range(0, h, BAND), image.split(BAND), strict=True):
        first, last = max(0, y - MARGIN), min(h, y + BAND + MARGIN)
        # Cut, so that a very hot pixel does not lift the local mean that judges its neighbours.
        local = local_mean(image[first:last].clamp(centre - CUT * spread, centre + CUT * spread))
        outside[y : y + BAND] = local[y - first : y - first + len(band)].sub_(band).abs_() > N_SIGMA * spread
    steps = torch.arange(-NEIGHBOURS, NEIGHBOURS + 1, device=image.device)
    for some in torch.nonzero((outside & ~known).view(-1))[:, 0].split(AT_ONCE):
        rows, columns = (some // w)[:, None] + steps, (some % w)[:, None] + steps
        # Reflected at the border, where a repeated pixel would be its own neighbour.
        rows, columns = ((n - 1) - ((n - 1) - x.abs()).abs() for x, n in ((rows, h), (columns, w)))
        around = rows[:, :, None], columns[:, None, :]
        crowd = outside[around].flatten(1).sum(1)
        # The local mean is lifted beside gold, too: the neighbours' median is not.
        stands_out = (image.view(-1)[some] - image[around].flatten(1).median(1).values).abs() > N_SIGMA * spread
        found.append(some[stands_out & (crowd <= CROWD)])
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.int64, device=image.device)


def _centre_and_spread(image: torch.Tensor) -> tuple[float, float]:
    """Return median and robust standard deviation (1.4826 MAD)."""
    some = image.flatten()[:: max(1, image.numel() // SAMPLE)]
    centre = some.median()
    return float(centre), 1.4826 * float((some - centre).abs_().median())


def grey_levels(image: torch.Tensor, where: str = "the image") -> tuple[float, float]:
    """Return mean and standard deviation of the values of (h, w) within 6 robust deviations of the median.

    Raises
    ------
    InputError
        The image is constant.
    """
    centre, spread = _centre_and_spread(image)
    sums = torch.zeros(3, dtype=torch.float64, device=image.device)
    for band in image.split(BAND):
        about = band - centre  # so that a large offset costs no digits
        outside = about.abs() > 6 * spread if spread > 0 else torch.zeros_like(band, dtype=torch.bool)
        about.masked_fill_(outside, 0)
        sums[0] += outside.numel() - outside.sum()
        sums[1] += about.sum(dtype=torch.float64)
        sums[2] += about.square_().sum(dtype=torch.float64)
    n, mean, square = sums.tolist()
    mean, square = mean / n, square / n
    variance = square - mean**2
    if not variance > 0:
        raise InputError(f"{where}: the image is constant; wanted a micrograph")
    return centre + mean, variance**0.5
