"""Picking particles, and how well: blobs of a known size, matching with known particles, precision and recall.

Places are (y, x) in pixels, pixel centres at whole numbers.  Definitions: ``docs/picking.md``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import fft
from scipy.spatial import KDTree
from skimage.feature import peak_local_max

Box = tuple[slice, slice]

# Two circles of one radius whose centres are half a radius apart overlap by 0.52 of their union: what the usual
# intersection over union of at least 0.5 asks for.
TOLERANCE = 0.5
SCALES = (0.5, 0.6, 0.7, 0.85, 1.0, 1.2, 1.4)  # of the radius: what `choose_blobs` tries


# ---------------------------------------------------------------------------- the picker


@dataclass(frozen=True)
class Blobs:
    """A picker of blobs.

    Attributes
    ----------
    size : float
        Radius of the disc that is looked for, in pixels.
    bright : bool
        Bright discs on dark, rather than dark on bright.
    distance : float
        No two picks are closer than this many pixels.
    """

    size: float
    bright: bool
    distance: float


def blob_response(image: np.ndarray, blobs: Blobs) -> np.ndarray:
    """Return the response of an image (h, w) to discs: the Laplacian of a Gaussian, normalised for scale.

    ``σ² ∇²`` of the image smoothed with ``σ = size / √2``, the scale at which a disc of that radius responds most
    (Lindeberg 1998; what scikit-image's ``blob_log`` takes).  Edges are mirrored.
    """
    h, w = image.shape
    ky = np.pi * np.arange(h)[:, None] / h
    kx = np.pi * np.arange(w)[None, :] / w
    k2 = (ky * ky + kx * kx) * (blobs.size**2 / 2)
    sign = 1 if blobs.bright else -1
    return fft.idctn(fft.dctn(image) * (sign * k2 * np.exp(-k2 / 2)).astype(np.float32)).astype(np.float32)


def choose_blobs(images: Sequence[np.ndarray], centres: Sequence[np.ndarray], radius: float) -> Blobs:
    """Choose size and contrast of the disc that stands out most at known particles.

    Of `SCALES` times the particles' radius, dark and bright, the one with the highest mean response at the particles
    over its standard deviation in the image, mean over the images.  Chosen on raw micrographs, so that no method has
    a say: a shell seen from outside is a dark ring about a bright middle, and its radius in a table of marks may be
    that of the ring or that of the whole.

    Parameters
    ----------
    images : sequence of ndarray, shape (h, w)
    centres : sequence of ndarray, shape (n, 2)
        Particles in each.
    radius : float
        Of a particle, in pixels.
    """
    best, chosen = -np.inf, Blobs(radius, False, radius)
    for scale in SCALES:
        found = []
        for image, places in zip(images, centres, strict=True):
            response = blob_response(image, Blobs(scale * radius, False, radius))
            inside = np.rint(places[within(places, (slice(0, image.shape[0]), slice(0, image.shape[1])), 0.5)])
            y, x = inside.astype(int).T
            spread = float(response.std())
            found.append(float(response[y, x].mean()) / spread if len(inside) and spread > 0 else 0.0)
        contrast = float(np.mean(found))
        if abs(contrast) > best:
            best, chosen = abs(contrast), Blobs(scale * radius, contrast < 0, radius)
    return chosen


def find_peaks(response: np.ndarray, distance: float, threshold: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Return the local maxima of a response above a threshold, no two closer than `distance` pixels.

    Returns
    -------
    places : ndarray, shape (n, 2)
    scores : ndarray, shape (n,)
        Falling.
    """
    apart = max(int(np.ceil(distance)), 1)
    places = peak_local_max(response, min_distance=apart, threshold_abs=threshold, exclude_border=False)
    scores = response[places[:, 0], places[:, 1]]
    order = np.argsort(-scores, kind="stable")
    return places[order].astype(np.float64), scores[order].astype(np.float64)


def highest_near(response: np.ndarray, centres: np.ndarray, radius: float) -> np.ndarray:
    """Return the highest response within half a radius (`TOLERANCE`) of each place, shape (n,)."""
    reach = max(int(TOLERANCE * radius), 1)
    h, w = response.shape
    out = []
    for y, x in np.rint(centres).astype(int):
        box = response[max(y - reach, 0) : min(y + reach, h) + 1, max(x - reach, 0) : min(x + reach, w) + 1]
        out.append(float(box.max()))
    return np.array(out)


def within(places: np.ndarray, region: Box, margin: float) -> np.ndarray:
    """Tell which places (n, 2) lie within a region, at least `margin` pixels from its border."""
    low = np.array([part.start + margin for part in region])
    high = np.array([part.stop - 1 - margin for part in region])
    return ((places >= low) & (places <= high)).all(axis=1)


# ---------------------------------------------------------------------------- matching


def match(places: np.ndarray, scores: np.ndarray, known: np.ndarray, tolerance: float) -> np.ndarray:
    """Match picks with known particles, one to one, the best picks first.

    In the order of falling scores each pick takes the nearest particle within the tolerance that is still free.
    So the matches of the best k picks do not depend on the others, and one pass serves all thresholds.

    Parameters
    ----------
    places : ndarray, shape (n, 2)
    scores : ndarray, shape (n,)
    known : ndarray, shape (m, 2)
    tolerance : float
        In pixels.

    Returns
    -------
    ndarray, shape (n,), int
        Which particle each pick found; -1 for none.
    """
    out = np.full(len(places), -1)
    if not len(places) or not len(known):
        return out
    near = KDTree(known).query_ball_point(places, tolerance)
    free = np.ones(len(known), dtype=bool)
    for i in np.argsort(-np.asarray(scores), kind="stable"):
        candidates = [j for j in near[i] if free[j]]
        if candidates:
            distances = np.hypot(*(known[candidates] - places[i]).T)
            out[i] = candidates[int(np.argmin(distances))]
            free[out[i]] = False
    return out


@dataclass(frozen=True)
class Picked:
    """The picks of one micrograph that count.

    Attributes
    ----------
    scores : ndarray, shape (n,)
    hits : ndarray, shape (n,), bool
        Whether each found a particle.
    particles : int
        How many there were to find.
    """

    scores: np.ndarray
    hits: np.ndarray
    particles: int


def judge(places: np.ndarray, scores: np.ndarray, known: np.ndarray, radius: float, region: Box) -> Picked:
    """Compare picks with the known particles of one micrograph.

    Particles whose disc reaches over the region's border are neither asked for nor held against a pick that finds
    them; picks there that find nothing are dropped.

    Parameters
    ----------
    places, scores
        From `find_peaks`.
    known : ndarray, shape (m, 2)
    radius : float
        Of a particle, in pixels.
    region : two slices
    """
    found = match(places, scores, known, TOLERANCE * radius)
    asked = within(known, region, radius)
    hit = found >= 0
    counts = np.where(hit, asked[found] if len(known) else False, within(places, region, radius))
    return Picked(np.asarray(scores)[counts], hit[counts], int(asked.sum()))


# ---------------------------------------------------------------------------- precision and recall


def ranked(picked: Sequence[Picked]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Put the picks of all micrographs in one order of falling scores.

    Returns
    -------
    scores, hits, micrograph : ndarray, shape (n,)
        The last says which of `picked` each is from.
    """
    scores = np.concatenate([p.scores for p in picked])
    hits = np.concatenate([p.hits for p in picked])
    micrograph = np.repeat(np.arange(len(picked)), [len(p.scores) for p in picked])
    order = np.argsort(-scores, kind="stable")
    return scores[order], hits[order], micrograph[order]


def precision_recall(
    scores: np.ndarray, hits: np.ndarray, weights: np.ndarray, particles: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return precision and recall after each pick.

    Parameters
    ----------
    scores : ndarray, shape (n,)
        Falling.  Picks of one score belong together: all of them get the values after the last.
    hits : ndarray, shape (n,)
    weights : ndarray, shape (..., n)
        How often each pick counts (in a resample); ones for the data themselves.
    particles : ndarray, shape (...)
        How many there are to find.

    Returns
    -------
    precision, recall : ndarray, shape (..., n)
        nan where nothing was picked, or nothing is to be found.
    """
    last = np.searchsorted(-scores, -scores, side="right") - 1
    true = np.cumsum(weights * hits, axis=-1)[..., last]
    all_picks = np.cumsum(weights, axis=-1)[..., last]
    particles = np.asarray(particles, dtype=np.float64)[..., None]
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(all_picks > 0, true / all_picks, np.nan)
        recall = np.where(particles > 0, true / particles, np.nan)
    return precision, recall


def average_precision(precision: np.ndarray, recall: np.ndarray) -> np.ndarray:
    """Return the area under precision over recall as a sum of steps, ``Σ (R_k - R_(k-1)) P_k``, shape (...)."""
    steps = np.diff(recall, axis=-1, prepend=0.0)
    return np.where(np.isfinite(recall).all(axis=-1), np.nansum(steps * precision, axis=-1), np.nan)


def best_f1(precision: np.ndarray, recall: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the largest ``F1 = 2 P R / (P + R)`` over the thresholds, and at which pick, each of shape (...)."""
    total = precision + recall
    f1 = np.where(total > 0, 2 * precision * recall / np.where(total > 0, total, 1), 0.0)
    at = f1.argmax(axis=-1)
    return np.take_along_axis(f1, at[..., None], axis=-1)[..., 0], at
