"""How good a network is on whole held-out micrographs, while it trains, and whether it begins to denoise too much."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from cryon2n import half_errors, pair
from cryon2n.denoise_tiles import denoise_image

# Over-denoising: the systematic error has grown by this much over its lowest value while the whole no longer falls.
BIAS_RISE = 1.25


@dataclass(frozen=True)
class Validation:
    """Means over held-out micrographs, in normalised units (the noise of a half has a variance of about 1).

    Attributes
    ----------
    delta_umse : float
        Difference in mean squared error to the truth between the network and the raw half:
        ``mean((f(a) - b)²) - mean((a - b)²)``, over both directions.  The noise of b cancels, so it needs no
        estimate of it.  Negative is better than raw; only differences between networks mean something.
    bias_variance : float
        Variance of the network's systematic error (`half_errors.bias_variance`).
    residual_noise : float
        Variance of what a denoised half does not share with the other (`half_errors.residual_noise`).
    """

    delta_umse: float
    bias_variance: float
    residual_noise: float


@torch.no_grad()
def validate(net: nn.Module, pairs: Sequence[pair.Pair], precision: str) -> Validation:
    """Denoise both halves of each micrograph and compare with the other half."""
    found = []
    for p in pairs:
        a, b = p.a[p.valid], p.b[p.valid]
        fa, fb = (denoise_image(net, x, precision=precision)[p.valid] for x in (p.a, p.b))
        raw = half_errors.mean_square(a - b)
        delta = (half_errors.mean_square(fa - b) + half_errors.mean_square(fb - a)) / 2 - raw
        found.append((delta, half_errors.bias_variance(fa, fb, a, b), half_errors.residual_noise(fa, fb)))
    return Validation(*(float(x) for x in np.mean(found, axis=0)))


def over_denoises(history: Sequence[Validation]) -> bool:
    """Say whether the systematic error rises while the whole error no longer falls."""
    if len(history) < 3:
        return False
    lowest = min(v.bias_variance for v in history)
    last, best = history[-1], min(v.delta_umse for v in history)
    return last.bias_variance > BIAS_RISE * max(lowest, 0.0) and last.delta_umse > best
