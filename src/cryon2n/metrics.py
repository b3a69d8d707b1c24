"""What is measured of a denoised micrograph: one small pure function per metric.

Notation, as in ``docs/metrics.md``: a and b are the halves of a micrograph in normalised units (same
signal S, independent noise), f a denoiser, ``fa = f(a)``.  Without a truth, an honest metric compares
``fa`` with b, whose noise f has not seen.  All images are ``(h, w)`` in normalised units, cut to the
region to score; all results are floats, nan where a metric is undefined.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from skimage.metrics import structural_similarity
from skimage.registration import phase_cross_correlation

from cryon2n import fourier
from cryon2n.half_errors import covariance, mean_square

Box = tuple[slice, slice]  # rows, columns

# ---------------------------------------------------------------------------- without a truth


def correlation_coefficient(x: np.ndarray, y: np.ndarray) -> float:
    """Return Pearson's correlation of two images; nan where one is constant."""
    product = covariance(x, x) * covariance(y, y)
    return covariance(x, y) / float(np.sqrt(product)) if product > 0 else float("nan")


def measured_noise(a: np.ndarray, b: np.ndarray, noise_var: tuple[float, float]) -> tuple[float, float]:
    """Split the measured ``mean((a - b)²)`` into the noise variances of a and of b.

    Only the *ratio* of the recorded `noise_var` is used; the sum is measured on the pixels that are
    scored.  For equal halves both are ``mean((a - b)²) / 2``.
    """
    share = noise_var[0] / (noise_var[0] + noise_var[1])
    total = mean_square(a - b)
    return total * share, total * (1 - share)


def unbiased_mse(estimate: np.ndarray, other: np.ndarray, other_noise_var: float) -> float:
    """Mean squared error of an estimate against the truth, which is not known.

    ``mean((f(a) - b)²) - var(noise of b)`` (Marcos-Morales et al., ICML 2023, arXiv 2210.05553).  It is
    unbiased where the noise of `other` is independent of the estimate; it can come out negative.
    """
    return mean_square(estimate - other) - other_noise_var


def decibel_over(power: float, error: float) -> float:
    """Return ``10 log10(power / error)``; nan unless both are positive."""
    return float(10 * np.log10(power / error)) if power > 0 and error > 0 else float("nan")


def raw_range(full: np.ndarray) -> float:
    """Return the 0.1 to 99.9 percentile range of the raw whole exposure: uPSNR's peak without a truth."""
    low, high = np.percentile(full, [0.1, 99.9])
    return float(high - low)


def noise_power_ratio(f_noise: np.ndarray, noise: np.ndarray) -> float:
    """Power of what a method makes of a signal-free image, over that image's power."""
    power = mean_square(noise)
    return mean_square(f_noise) / power if power > 0 else float("nan")


# ---------------------------------------------------------------------------- rings

# Columns of the rings table: the sums over a ring of Re(X Y*), named X_Y.
POWERS = ("a_a", "b_b", "a_b", "fa_fa", "fb_fb", "fa_fb", "fa_b", "fb_a", "n_n", "fn_fn")


def ring_powers(
    images: Mapping[str, np.ndarray], region: Box, pixel_size: float, names: Sequence[str] = POWERS, taper: int = 32
) -> dict[str, np.ndarray]:
    """Return the Fourier powers behind the ring metrics.

    Parameters
    ----------
    images : mapping
        ``a``, ``b``, ``fa``, ``fb``, ``n`` (signal-free input) and ``fn``, each (h, w), not cut.  The
        powers of what is missing are nan.
    region : two slices
        The rest is set to 0 rather than cut away, so that all micrographs of a set have the same
        rings.  Inside, the mean is removed and 1/`taper` of the shorter side is tapered at each edge.
    pixel_size : float
        In Å.
    names : sequence of str
        Which powers, as pairs of names of images: ``a_b``.
    taper : int
        2 (a Hann window) where no ring may leak into others, at the cost of half of the bins along each axis.

    Returns
    -------
    dict of ndarray, shape (n_rings,)
        ``frequency`` (1/Å), ``count`` (Fourier bins, times the share of the area that is in the
        region) and each of `names`.
    """
    shape = images["a"].shape
    inside = images["a"][region].shape
    edge = min(inside) // taper
    spectra = {}
    for name, image in images.items():
        window = np.zeros(shape, dtype=np.float32)
        part = image[region]
        window[region] = (part - np.float32(part.mean(dtype=np.float64))) * fourier.edge_taper(inside, edge)
        spectra[name] = fourier.windowed_spectrum(window)
    out = {
        "frequency": fourier.ring_frequencies(shape, pixel_size),
        "count": fourier.ring_counts(shape) * (inside[0] * inside[1] / (shape[0] * shape[1])),
    }
    for name in names:
        x, y = name.split("_")
        if x not in spectra or y not in spectra:
            out[name] = np.full(len(out["frequency"]), np.nan)
            continue
        out[name] = fourier.ring_sums(fourier.cross_power(spectra[x], spectra[y]), shape)
    return out


def raw_frc(p: Mapping[str, np.ndarray]) -> np.ndarray:
    """FRC of the two raw halves from (pooled) ring powers, shape (..., n_rings)."""
    return fourier.correlation(p["a_b"], p["a_a"], p["b_b"])


def half_frc(p: Mapping[str, np.ndarray]) -> np.ndarray:
    """FRC of the two denoised halves.  Not a measure of truth: it rises with hallucination."""
    return fourier.correlation(p["fa_fb"], p["fa_fa"], p["fb_fb"])


def cross_frc(p: Mapping[str, np.ndarray], direction: str = "both") -> np.ndarray:
    """FRC between a denoised half and the *truth*, estimated with the other half.

    ``<fa, b> / sqrt(<fa, fa> <a, b>)``: b's noise is independent of fa, so that ``<fa, b>`` estimates
    ``<fa, S>``, and ``<a, b>`` the signal's power (from Frank & Al-Ali 1975).

    Parameters
    ----------
    p : mapping
        Ring powers, shape (..., n_rings), summed over micrographs first.
    direction : {"both", "ab", "ba"}
        f(a) scored on b, f(b) scored on a, or the mean of the two curves.  Not the curve of the added
        powers: with unequal halves a filter that passes more of the cleaner half would raise that.

    Returns
    -------
    ndarray, shape (..., n_rings)
        nan where ``<a, b>`` is not positive (no signal to be found), 0 where the method left no power.
    """
    if direction == "both":
        return (cross_frc(p, "ab") + cross_frc(p, "ba")) / 2
    cross, own = (p["fa_b"], p["fa_fa"]) if direction == "ab" else (p["fb_a"], p["fb_fb"])
    curve = fourier.correlation(cross, own, p["a_b"])
    return np.where((own <= 0) & (np.asarray(p["a_b"]) > 0), 0.0, curve)


def first_below(curve: np.ndarray, threshold: float, run: int = 3) -> int | None:
    """Return the ring at which a curve falls below a threshold and stays there for `run` rings.

    Ring 0 is not looked at, nan counts as below, and the search begins at the first ring that reaches
    the threshold.  None if no ring does; ``len(curve)`` if the curve never falls below.
    """
    below = ~(np.asarray(curve) >= threshold)
    reached = np.flatnonzero(~below[1:])
    if reached.size == 0:
        return None
    padded = np.concatenate([below, np.ones(run - 1, dtype=bool)])
    stays = np.lib.stride_tricks.sliding_window_view(padded, run).all(axis=-1)
    start = int(reached[0]) + 2  # `reached` counts from ring 1; the search begins one ring later
    found = np.flatnonzero(stays[start:])
    return start + int(found[0]) if found.size else below.size


def information_limit(p: Mapping[str, np.ndarray], threshold: float = 0.143) -> int:
    """Return the ring at which the pooled raw half FRC falls below 0.143 (1 if it never reaches it).

    The threshold is Rosenthal & Henderson's (2003).  It depends on the data alone, not on a method.
    """
    return first_below(raw_frc(p), threshold) or 1


def band_mean(curve: np.ndarray, limit: int) -> np.ndarray:
    """Return the mean of a curve (..., n_rings) over the rings 1 to `limit` - 1, nan rings left out."""
    part = np.asarray(curve)[..., 1:limit]
    ok = np.isfinite(part)
    n = ok.sum(axis=-1)
    return np.where(n > 0, np.where(ok, part, 0).sum(axis=-1) / np.maximum(n, 1), np.nan)


def crossing_resolution(curve: np.ndarray, frequency: np.ndarray, threshold: float, limit: int | None = None) -> float:
    """Return the resolution (Å) at which a curve falls below a threshold, interpolated between rings.

    Parameters
    ----------
    curve, frequency : ndarray, shape (n_rings,)
    threshold : float
    limit : int, optional
        Only rings below this are looked at; a curve that is still above there gives the resolution of
        the last of them ("at least as good as").

    Returns
    -------
    float
        nan where the curve never reaches the threshold.
    """
    curve = np.asarray(curve, dtype=np.float64)[:limit]
    k = first_below(curve, threshold)
    if k is None:
        return float("nan")
    if k == curve.size:
        return float(1 / frequency[k - 1])
    above, below = curve[k - 1], curve[k]
    part = (above - threshold) / (above - below) if above >= threshold and np.isfinite(below) else 0.0
    return float(1 / (frequency[k - 1] + part * (frequency[k] - frequency[k - 1])))


def significant_limit(p: Mapping[str, np.ndarray], sigmas: float = 3.0) -> int:
    """Return the ring from which on the pooled raw FRC is within 3 standard errors of none, ``1/sqrt(N)``."""
    return first_below(raw_frc(p) * np.sqrt(p["count"]), sigmas) or 1


# ---------------------------------------------------------------------------- with a truth


def clean_range(truth: np.ndarray) -> float:
    """Return max - min of the clean image."""
    return float(truth.max() - truth.min())


def psnr(estimate: np.ndarray, truth: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB, ``10 log10(range² / mse)`` with the clean image's own range."""
    return decibel_over(clean_range(truth) ** 2, mean_square(estimate - truth))


def signal_to_error_db(estimate: np.ndarray, truth: np.ndarray) -> float:
    """Signal variance over mean squared error, in dB."""
    return decibel_over(covariance(truth, truth), mean_square(estimate - truth))


def ssim(estimate: np.ndarray, truth: np.ndarray) -> float:
    """Structural similarity (Wang et al. 2004) with the paper's Gaussian window and the clean range.

    SSIM's luminance term needs an origin of grey values; both images are shifted by the clean image's
    minimum, so that the clean one runs from 0 to its range and the arbitrary offset of the units drops
    out.
    """
    low = truth.min()
    return float(
        structural_similarity(
            truth - low,
            estimate - low,
            data_range=clean_range(truth),
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )


def best_affine(estimate: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Return (gain, offset) that bring ``gain * estimate + offset`` closest to the truth (least squares)."""
    variance = covariance(estimate, estimate)
    gain = covariance(estimate, truth) / variance if variance > 0 else 0.0
    return gain, float(truth.mean(dtype=np.float64) - gain * estimate.mean(dtype=np.float64))


def truth_metrics(estimate: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Return all metrics against a truth: as the method gave it, and after the best affine map."""
    gain, offset = best_affine(estimate, truth)
    mapped = (gain * estimate + offset).astype(estimate.dtype)
    out = {}
    for ending, image in (("", estimate), ("_affine", mapped)):
        for function in (psnr, ssim, signal_to_error_db):
            out[function.__name__ + ending] = function(image, truth)
    return {**out, "affine_gain": gain, "affine_offset": offset}


def register_shift(truth: np.ndarray, image: np.ndarray) -> tuple[float, float]:
    """Return the shift (dy, dx) in pixels, to 1/100, that moves `truth` onto `image`.

    The maximum of the plain (not phase-only) cross-correlation, mean-free and tapered (Guizar-Sicairos
    et al. 2008 for the sub-pixel part).
    """
    window = fourier.edge_taper(truth.shape, min(truth.shape) // 32)
    moving, fixed = ((x - x.mean()) * window for x in (truth, image))
    shift, _, _ = phase_cross_correlation(fixed, moving, upsample_factor=100, normalization=None)
    return float(shift[0]), float(shift[1])


# ---------------------------------------------------------------------------- Topaz's SNR


def snr_boxes(particles: Sequence[tuple[float, float, float]], region: Box) -> list[tuple[Box, Box]]:
    """Place a signal box on each particle and a background box beside it, from the labels alone.

    The signal box is the square inscribed in the particle's circle.  The background box has the same
    size; of the places around the particle at 2, 2.5, 3 … 8 radii and 16 angles, the first is taken
    whose circumscribed circle touches no labelled particle and whose box lies within the region.  A
    particle without such a place, or not wholly within the region, has no pair.

    Parameters
    ----------
    particles : sequence of (x, y, radius)
        In pixels of the image, pixel centres at integers.
    region : two slices
        With numbers for start and stop.

    Returns
    -------
    list of (signal, background)
        Each two slices (rows, columns).
    """
    table = np.asarray(particles, dtype=np.float64).reshape(-1, 3)
    angles = 2 * np.pi * np.arange(16) / 16
    pairs = []
    for x, y, radius in table:
        half = max(int(radius / np.sqrt(2)), 1)
        signal = _box(x, y, half, region)
        if signal is None:
            continue
        for distance in np.arange(2, 8.01, 0.5) * radius:
            places = [(x + distance * np.cos(t), y + distance * np.sin(t)) for t in angles]
            free = (
                box
                for u, v in places
                if (np.hypot(table[:, 0] - u, table[:, 1] - v) >= table[:, 2] + radius).all()
                and (box := _box(u, v, half, region)) is not None
            )
            background = next(free, None)
            if background is not None:
                pairs.append((signal, background))
                break
    return pairs


def _box(x: float, y: float, half: int, region: Box) -> Box | None:
    """Return the square of 2·half + 1 pixels around (x, y), or None if it is not within the region."""
    row, column = round(y), round(x)
    box = slice(row - half, row + half + 1), slice(column - half, column + half + 1)
    inside = all(r.start <= s.start and s.stop <= r.stop for r, s in zip(region, box, strict=True))
    return box if inside else None


def topaz_snr_db(image: np.ndarray, boxes: Sequence[tuple[tuple[slice, slice], tuple[slice, slice]]]) -> float:
    """Region contrast in dB, ``10/N sum log10((mean_s - mean_b)² / var_b)`` over pairs of boxes.

    From Bepler et al. 2020 (Nat Commun 11:5208), in the form of DRACO's eq. 11 (NeurIPS 2024), for
    comparability only: smoothing alone raises it.  nan without boxes, or where a box is constant.
    """
    terms = []
    for signal, background in boxes:
        contrast = image[signal].mean(dtype=np.float64) - image[background].mean(dtype=np.float64)
        terms.append(decibel_over(contrast**2, image[background].var(dtype=np.float64)))
    return float(np.mean(terms)) if terms else float("nan")
