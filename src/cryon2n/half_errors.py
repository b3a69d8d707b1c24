"""Errors that two halves tell of a denoiser without a truth: what training looks at, and `metrics` builds on.

Notation as in ``docs/metrics.md``: a and b are the halves of a micrograph in normalised units (same signal S,
independent noise), f a denoiser, ``fa = f(a)``.  A room of its own, so that a change of the scores does not make
a trained network out of date.
"""

import numpy as np


def mean_square(x: np.ndarray) -> float:
    """Return the mean of ``x²``, accumulated in float64."""
    return float(np.mean(np.square(x, dtype=np.float64)))


def covariance(x: np.ndarray, y: np.ndarray) -> float:
    """Return the covariance of two images over their pixels (divided by N), accumulated in float64."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    return float(np.mean((x - x.mean()) * (y - y.mean())))


def bias_variance(fa: np.ndarray, fb: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    """Variance of a denoiser's systematic error, from halves (Palovcak et al., IUCrJ 2020, PMC7642784).

    ``cov(fa, fb) + cov(a, b) - cov(fa, b) - cov(fb, a)``: the expectation is ``cov(E fa - S, E fb - S)``.
    """
    return covariance(fa, fb) + covariance(a, b) - covariance(fa, b) - covariance(fb, a)


def residual_noise(fa: np.ndarray, fb: np.ndarray) -> float:
    """Variance of a denoised half that it does not share with the other, ``var(fa - fb) / 2``.

    This is ``cov(fa, fa) - cov(fa, fb)`` averaged over both halves.
    """
    difference = fa - fb
    return covariance(difference, difference) / 2
