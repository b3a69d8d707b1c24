"""How far a denoised micrograph may be from the truth, from its two halves alone.

f(a) and f(b) share the signal; the noise that is left in them is independent.  Half their difference is one sample, at
every pixel, of the noise left in their mean m.  Its local mean square is a map of that noise's variance.  What both
halves have in common by mistake (detail that was smoothed away) does not show in it; the calibration adds it.

The calibration needs no truth.  With a = s + n_a and b = s + n_b, independent noises of mean zero, and e_a = f(a) - s:

    E (f(a) - b)² = E e_a² + E n_b²      E (f(b) - a)² = E e_b² + E n_a²      E (a - b)² = E n_a² + E n_b²

The first two less the third are E e_a² + E e_b² (as Noise2Noise's loss, Lehtinen et al. 2018), and from

    m - s = (e_a + e_b) / 2,   E (f(a) - f(b))² = E e_a² + E e_b² - 2 E e_a e_b

follows, unbiased, for whatever a network does:

    E (m - s)² = ½ [E (f(a) - b)² + E (f(b) - a)² - E (a - b)²] - ¼ E (f(a) - f(b))²
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from cryon2n import files
from cryon2n.errors import InputError
from cryon2n.repair import local_mean

WINDOW = 64  # pixels; side of the blocks whose mean squares make the map
FORMAT = "cryon2n-uncertainty"


def spread_map(fa: torch.Tensor, fb: torch.Tensor, window: int = WINDOW) -> torch.Tensor:
    """Return the local standard deviation (h, w) of the noise left in the mean of f(a) and f(b).

    Parameters
    ----------
    fa, fb : tensor, shape (h, w)
        In units in which both hold the same signal.
    window : int
        Pixels.  Mean squares of whole blocks are interpolated linearly between the blocks' middles.
    """
    return local_mean((fa - fb).square_().mul_(0.25), window).clamp_min_(0).sqrt_()


@dataclass(frozen=True)
class Sums:
    """What one micrograph adds to a calibration.

    Attributes
    ----------
    error : float
        Mean squared error of the mean of f(a) and f(b), estimated without the truth (it may come out negative).
    noise : float
        Mean square of `spread_map`.
    """

    error: float
    noise: float


def sums_of(a: torch.Tensor, b: torch.Tensor, fa: torch.Tensor, fb: torch.Tensor) -> Sums:
    """Return what a micrograph, all (h, w) and in the same units, adds to a calibration."""

    def square(x: torch.Tensor) -> float:
        return float(x.square().mean(dtype=torch.float64))

    left = square(fa - fb) / 4
    return Sums((square(fa - b) + square(fb - a) - square(a - b)) / 2 - left, left)


@dataclass(frozen=True)
class Calibration:
    """Factor between `spread_map` and the root mean squared error.

    Attributes
    ----------
    factor : float
    low, high : float
        95 % confidence interval, bootstrapped over micrographs; of one micrograph just the factor.
    micrographs : int
    weights : str
        SHA-256 of the weights that it belongs to.
    """

    factor: float
    low: float
    high: float
    micrographs: int
    weights: str = ""


def calibrate(found: list[Sums], weights: str = "") -> Calibration:
    """Calibrate on micrographs that the network was not trained on.

    Raises
    ------
    InputError
        There are none, or their estimated error is not positive.
    """
    if not found:
        raise InputError("calibration: no micrograph came through; wanted both halves of one or more")
    values = np.array([[s.error, s.noise] for s in found])
    error, noise = values.mean(0)
    if not (error > 0 and noise > 0):
        raise InputError(
            f"calibration: mean squared error {error:.3g}, noise {noise:.3g} (of a half: 1); wanted both above 0: "
            "take more micrographs, and check that the two halves' noise is independent (cryon2n audit-halves)"
        )
    drawn = np.random.default_rng(0).integers(len(values), size=(2000, len(values)))
    means = values[drawn].mean(1)
    ratios = np.sqrt(np.clip(means[:, 0], 0, None) / means[:, 1])
    low, high = np.percentile(ratios, [2.5, 97.5])
    return Calibration(float(np.sqrt(error / noise)), float(low), float(high), len(values), weights)


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Write a calibration as JSON."""
    files.write_json(path, {"format": FORMAT, **asdict(calibration)})


def read_calibration(path: Path, weights: str) -> Calibration:
    """Read a calibration, which must belong to these weights (SHA-256)."""
    found = files.read_json(path)
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise InputError(f"{path}: is no calibration; wanted a JSON that cryon2n denoise --calibrate wrote")
    try:
        calibration = Calibration(**{key: value for key, value in found.items() if key != "format"})
    except TypeError:
        raise InputError(f"{path}: is a calibration of another version; make it again with --calibrate") from None
    if calibration.weights != weights:
        raise InputError(f"{path}: belongs to other weights; calibrate these ones with --calibrate")
    return calibration


def power_percent(noise: torch.Tensor, whole: torch.Tensor) -> float:
    """Return the variance of f(signal-free) in percent of that of f(micrograph), both (h, w)."""
    of_whole = float(whole.var())
    return 100 * float(noise.var()) / of_whole if of_whole > 0 else float("nan")
