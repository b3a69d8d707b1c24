"""Non-local means (Buades, Coll and Morel, CVPR 2005) by scikit-image, at its best setting.

A pixel becomes the mean of the pixels around it, each weighted by how alike the patches about the two are:
``exp(-max(d² - 2 σ², 0) / h²)`` with the mean squared difference d² of the patches and the noise's standard
deviation σ, which the record of the halves knows.  Unlike the filters of `filters` it is not linear, so its error
is measured, not computed: ``mean((f(a) - b)²)`` on halves differs from the true squared error by what is the same
for every setting.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from skimage.restoration import denoise_nl_means

from cryon2n.half_errors import mean_square
from cryon2n.pair import Pair

PATCHES = (7, 15)  # px, side of the patches that are compared
DISTANCES = (7, 11)  # px, how far away they are looked for
STRENGTHS = np.geomspace(0.25, 1.25, 6)  # h / σ
CROP = 384  # px: the setting is chosen on the middle of each micrograph, to bound the time
MICROGRAPHS = 4  # at most, for the same reason


def denoise(image: np.ndarray, patch: int, distance: int, strength: float, sigma: float) -> np.ndarray:
    """Denoise one image.

    Parameters
    ----------
    image : ndarray, shape (h, w), float32
    patch, distance : int
        Pixels.
    strength : float
        h / σ.
    sigma : float
        Standard deviation of the noise, in the image's units.

    Returns
    -------
    ndarray, shape (h, w), float32
    """
    out = denoise_nl_means(
        image, patch_size=patch, patch_distance=distance, h=strength * sigma, sigma=sigma, fast_mode=True
    )
    return out.astype(np.float32)


def tune(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Choose the setting with the least squared error of each half against the other.

    Patch and distance are shared by all inputs, the strength is each half's own.  The whole exposure has no unseen
    half to be scored on: it gets the strength of its less noisy half, with its own noise.

    Returns
    -------
    dict
        ``method``, ``patch``, ``distance`` and, per input, ``setting`` (h / σ) and ``sigma`` (normalised units).
    """
    pairs = pairs[:MICROGRAPHS]
    errors = {}
    for key in itertools.product(PATCHES, DISTANCES, STRENGTHS):
        errors[key] = np.zeros(2)
        for p in pairs:
            a, b = (_middle(x[p.valid]) for x in (p.a, p.b))
            sigma_a, sigma_b = np.sqrt(p.noise_var)
            errors[key] += mean_square(denoise(a, *key, sigma_a) - b), mean_square(denoise(b, *key, sigma_b) - a)
    shapes = list(itertools.product(PATCHES, DISTANCES))
    best = min(shapes, key=lambda shape: sum(min(errors[*shape, s][side] for s in STRENGTHS) for side in (0, 1)))
    strength = [float(min(STRENGTHS, key=lambda s: errors[*best, s][side])) for side in (0, 1)]
    va, vb = np.mean([p.noise_var for p in pairs], axis=0)
    setting = {"a": strength[0], "b": strength[1], "full": strength[0] if va <= vb else strength[1]}
    sigma = {"a": va**0.5, "b": vb**0.5, "full": (va * vb / (va + vb)) ** 0.5}
    return {
        "method": "nlm",
        "patch": best[0],
        "distance": best[1],
        "setting": {side: round(x, 6) for side, x in setting.items()},
        "sigma": {side: round(float(x), 6) for side, x in sigma.items()},
    }


def apply(tuned: dict[str, Any], image: np.ndarray, side: str) -> np.ndarray:
    """Denoise an image (h, w) with the setting for input `side`."""
    return denoise(image, tuned["patch"], tuned["distance"], tuned["setting"][side], tuned["sigma"][side])


def _middle(image: np.ndarray) -> np.ndarray:
    y, x = (max(0, (n - CROP) // 2) for n in image.shape)
    return image[y : y + CROP, x : x + CROP]
