"""What the audit measures on a pair of halves, each as one small function.

Correlations come with their standard error under independence.  For images of white noise under a window
w, ``Σ x y / sqrt(Σ x² Σ y²)`` scatters by ``sqrt(Σ w⁴) / Σ w²``; restricted to a share s of the Fourier
bins, by ``1 / sqrt(s)`` times that (`independent_bins`).
"""

from dataclasses import dataclass

import numpy as np
from scipy import fft, ndimage

from cryon2n import fourier

EDGE = 16  # pixels of the taper at each edge
BEYOND = 0.9  # of Nyquist: from here on a micrograph holds no signal
HIGH_PASS = 1 / 8  # of Nyquist: what two different micrographs share below is illumination and ice
PATTERN_SIDE = 2048  # pixels, at most, of the square in which a fixed pattern is looked for
REACH = 16  # pixels: frames are moved by their drift before they are added, and the detector's pattern with them
BANDS = 100  # of the table of spectra, from 0 to Nyquist
RIM = 4  # lines at each edge that may differ: frames moved in or out there, and detectors have dim rims
Box = tuple[slice, slice]


@dataclass(frozen=True)
class Rings:
    """Fourier powers of a pair of halves by ring; white noise of variance 1 has a power of 1.

    Attributes
    ----------
    frequencies : ndarray, shape (n_rings,)
        1/Å.
    nyquist : float
        1/Å.
    bins : ndarray, shape (n_rings,)
        Independent values in each ring (see `independent_bins`).
    aa, bb, ab : ndarray, shape (n_rings,)
        Mean power of a, of b, and mean cross-power.
    """

    frequencies: np.ndarray
    nyquist: float
    bins: np.ndarray
    aa: np.ndarray
    bb: np.ndarray
    ab: np.ndarray

    @property
    def frc(self) -> np.ndarray:
        """FRC of the raw halves (Saxton & Baumeister 1982); 0 where a half has no power."""
        return np.nan_to_num(fourier.correlation(self.ab, self.aa, self.bb))

    def band(self, low: float, high: float = 1.0) -> slice:
        """Return the rings from `low` to `high`, in shares of Nyquist."""
        n = len(self.frequencies)
        return slice(int(low * n), max(int(high * n), int(low * n) + 1))

    def mean(self, values: np.ndarray, band: slice) -> float:
        """Return the mean of `values` over the bins of a band."""
        return float(np.average(values[band], weights=self.bins[band]))


def spectra(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return ``rfft2`` of two images (h, w), mean-free and tapered."""
    return fourier.windowed_spectrum(a, EDGE), fourier.windowed_spectrum(b, EDGE)


def independent_bins(shape: tuple[int, int], edge: int = EDGE) -> np.ndarray:
    """Return how many independent values each ring holds for a correlation, shape (n_rings,).

    White noise correlates by chance with a standard deviation of ``1 / sqrt(bins)``.
    """
    square = fourier.edge_taper(shape, edge).astype(np.float64) ** 2
    return fourier.ring_counts(shape) * (square.mean() ** 2 / (square**2).mean())


def rings(sa: np.ndarray, sb: np.ndarray, shape: tuple[int, int], pixel_size: float) -> Rings:
    """Return the ring powers of two spectra (`spectra`) of images of `shape`; `pixel_size` in Å."""
    window = float((fourier.edge_taper(shape, EDGE).astype(np.float64) ** 2).mean())
    scale = fourier.ring_counts(shape) * (shape[0] * shape[1] * window)
    powers = (fourier.ring_sums(fourier.cross_power(x, y), shape) / scale for x, y in ((sa, sa), (sb, sb), (sa, sb)))
    frequencies = fourier.ring_frequencies(shape, pixel_size)
    return Rings(frequencies, 1 / (2 * pixel_size), independent_bins(shape), *powers)


# ---------------------------------------------------------------------------- do the halves share noise?


def beyond(r: Rings) -> tuple[float, float]:
    """Return the FRC beyond 0.9 of Nyquist and its standard error under independence.

    nan where a half has no power there: without noise there is nothing to be independent.
    """
    band = r.band(BEYOND)
    value = r.mean(r.frc, band) if r.mean(r.aa, band) > 1e-12 and r.mean(r.bb, band) > 1e-12 else float("nan")
    return value, 1 / float(np.sqrt(r.bins[band].sum()))


def pattern_map(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, float]:
    """Correlate two micrographs above 1/8 of Nyquist, in z, for moves of up to `REACH` pixels.

    Different specimens have independent signals: what correlates is the detector (gain, hot pixels,
    fixed pattern).  Each ring is brought to power 1 first, so that coloured noise counts as white.

    Parameters
    ----------
    x, y : ndarray, shape (h, w)
        The same pixels of the detector.

    Returns
    -------
    z : ndarray, shape (2 REACH + 1, 2 REACH + 1)
        In standard deviations of independent noise; no move is in the middle.
    error : float
        Standard error of the correlation: ``z * error`` is the correlation.
    """
    shape = x.shape
    index = fourier.ring_index(shape)
    n = max(shape) // 2 + 1
    kept = (index >= int(HIGH_PASS * n)) & (index < n)
    flat = []
    for s in spectra(x, y):
        power = fourier.ring_sums(fourier.cross_power(s, s), shape) / fourier.ring_counts(shape)
        weight = np.where(power > 0, 1 / np.sqrt(np.where(power > 0, power, 1)), 0).astype(np.float32)
        flat.append(s * np.where(kept, weight[np.minimum(index, n - 1)], np.float32(0)))
    bins = float(independent_bins(shape)[int(HIGH_PASS * n) :].sum())
    counts = float(fourier.ring_counts(shape)[int(HIGH_PASS * n) :].sum())
    correlation = fft.irfft2(flat[0] * flat[1].conj(), s=shape) * (shape[0] * shape[1] / counts)
    reach = np.arange(-REACH, REACH + 1)
    return correlation[np.ix_(reach % shape[0], reach % shape[1])] * np.sqrt(bins), 1 / float(np.sqrt(bins))


def common_box(one: list[int], other: list[int], side: int = PATTERN_SIDE) -> Box | None:
    """Return the middle square, of at most `side` pixels, of what two valid regions [y0, y1, x0, x1] share.

    None where less than 64 pixels are left.
    """
    out = []
    for k in (0, 2):
        low, high = max(one[k], other[k]), min(one[k + 1], other[k + 1])
        if high - low < 64:
            return None
        size = min(side, high - low)
        start = low + (high - low - size) // 2
        out.append(slice(start, start + size))
    return out[0], out[1]


# ---------------------------------------------------------------------------- do the halves belong together?


def common_signal(frc: np.ndarray, bins: np.ndarray) -> float:
    """How far the halves' correlation at low frequencies stands above that of unrelated images, in z.

    The most significant of the bands from ring 3 (below lie ice and illumination gradients, which any
    two micrographs may share) up to 1/32, 1/16, 1/8 and 1/4 of Nyquist.  Halves of one micrograph give
    tens; an empty micrograph, or halves of two different ones, a few at most.

    Parameters
    ----------
    frc, bins : ndarray, shape (n_rings,)
        FRC of the halves, and independent values per ring.
    """
    bands = [slice(3, max(8, len(frc) // d)) for d in (32, 16, 8, 4)]
    return float(max(np.average(frc[b], weights=bins[b]) * np.sqrt(bins[b].sum()) for b in bands))


def half_shift(sa: np.ndarray, sb: np.ndarray, shape: tuple[int, int]) -> float:
    """Distance in pixels of the highest cross-correlation from no shift; 0 where it does not stand out.

    On spectra (`spectra`) of images of `shape`, low-passed at 0.1 cycles per pixel.
    """
    size = (shape[0] // 2, shape[1] // 2)
    s = np.hypot(np.fft.fftfreq(size[0])[:, None], np.fft.rfftfreq(size[1])[None, :]) / 2
    cross = [fourier.crop_spectrum(x, shape, size) for x in (sa, sb)]
    correlation = fft.irfft2(cross[0] * cross[1].conj() * np.exp(-((s / 0.1) ** 2)).astype(np.float32), s=size)
    if correlation.max() < 6 * correlation.std():
        return 0.0
    peak = np.unravel_index(int(correlation.argmax()), size)
    shift = []
    for axis, n in enumerate(size):
        around = [list(peak), list(peak), list(peak)]
        around[0][axis], around[2][axis] = (peak[axis] - 1) % n, (peak[axis] + 1) % n
        low, top, high = (float(correlation[tuple(p)]) for p in around)
        curve = low - 2 * top + high
        offset = 0.5 * (low - high) / curve if curve < 0 else 0.0
        shift.append(((peak[axis] + offset + n / 2) % n - n / 2) * shape[axis] / n)
    return float(np.hypot(*shift))


def crossing(r: Rings, threshold: float) -> float:
    """Resolution in Å where the FRC, smoothed over 5 rings, first falls below `threshold`.

    Interpolated between rings; nan if it starts below, Nyquist if it never falls.
    """
    smooth = np.convolve(r.frc[1:], np.ones(5) / 5, "valid")
    below = np.flatnonzero(smooth < threshold)
    if len(below) == 0:
        return float(1 / r.frequencies[-1])
    k = int(below[0])
    if k == 0:
        return float("nan")
    part = (smooth[k - 1] - threshold) / (smooth[k - 1] - smooth[k])
    return float(1 / (r.frequencies[k + 2] + part * (r.frequencies[k + 3] - r.frequencies[k + 2])))


# ---------------------------------------------------------------------------- are the noises alike?


def noise_ratio(r: Rings, noise_var: tuple[float, float], low: float = 0.8, high: float = 1.0) -> float:
    """By how much the noises' ratio in a band differs from what the record says; 1 or more.

    In normalised units both halves hold the same signal, so that the noise power of a half is its power
    less the cross-power.

    Parameters
    ----------
    r : Rings
    noise_var : (float, float)
        Of the record.
    low, high : float
        The band, in shares of Nyquist.
    """
    band = r.band(low, high)
    na, nb = (max(r.mean(x - r.ab, band), 1e-30) for x in (r.aa, r.bb))
    ratio = na / nb * noise_var[1] / noise_var[0]
    return max(ratio, 1 / ratio)


def spectrum_ratio(r: Rings, noise_var: tuple[float, float]) -> float:
    """Return the largest `noise_ratio` of the five bands from half of Nyquist to Nyquist."""
    return max(noise_ratio(r, noise_var, k / 10, (k + 1) / 10) for k in range(5, 10))


# ---------------------------------------------------------------------------- detector and specimen


def stuck_line(a: np.ndarray, b: np.ndarray) -> tuple[float, str]:
    """Find the row or column that stands out most from its neighbours in both halves (h, w).

    By its mean (a column that reads too much or too little) or by the logarithm of its variance (one
    that is stuck).  Each profile is taken relative to the running median of 15 lines, in robust standard
    deviations; what counts is the smaller deviation of the two halves, if both go the same way.

    Returns
    -------
    z : float
    line : str
        ``column 17``, counted in the images' own pixels.
    """
    best, line = 0.0, "-"
    for axis, name in ((0, "column"), (1, "row")):
        profiles = [(x.mean(axis, dtype=np.float64), np.log(x.var(axis, dtype=np.float64) + 1e-12)) for x in (a, b)]
        for pa, pb in zip(*profiles, strict=True):
            za, zb = _robust_z(pa), _robust_z(pb)
            z = np.where(za * zb > 0, np.minimum(np.abs(za), np.abs(zb)), 0.0)
            z[:RIM] = z[-RIM:] = 0
            if z.max() > best:
                best, line = float(z.max()), f"{name} {int(z.argmax())}"
    return best, line


def _robust_z(profile: np.ndarray) -> np.ndarray:
    rest = profile - ndimage.median_filter(profile, 15, mode="reflect")
    return rest / max(float(np.median(np.abs(rest))) * 1.4826, 1e-9)


def dead_percent(a: np.ndarray, b: np.ndarray, block: int = 16) -> float:
    """Percentage of the area (h, w) that is constant or missing in either half.

    Blocks of 16 pixels whose variance is under a hundredth of the median one.
    """
    dead = []
    for x in (a, b):
        variance = _blocks(x, block).var(axis=(1, 3), dtype=np.float64)
        dead.append(variance < 0.01 * np.median(variance))
    return 100 * float((dead[0] | dead[1]).mean())


def outlying_percent(image: np.ndarray) -> float:
    """Percentage of the area (h, w) whose brightness departs from a smooth layer of ice.

    Means of blocks of 1/16 of the shorter side, relative to a surface of second order that is fitted to the
    majority (iteratively reweighted with Tukey's biweight, Beaton & Tukey 1974, of a scale that shrinks from
    the spread of all blocks), beyond 5 standard deviations of neighbouring blocks.  A carbon edge, a
    contamination or a broken film make a large connected part outlying.
    """
    block = max(min(image.shape) // 16, 8)
    means = _blocks(image, block).mean(axis=(1, 3), dtype=np.float64)
    y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in means.shape), indexing="ij")
    terms = np.stack([np.ones_like(x), x, y, x * y, x * x, y * y], axis=-1).reshape(-1, 6)
    # Of neighbours, because an edge is between few of them, however large the areas that it parts.
    steps = np.concatenate([np.diff(means, axis=0).ravel(), np.diff(means, axis=1).ravel()])
    sigma = max(1.4826 / np.sqrt(2) * float(np.median(np.abs(steps))), 1e-12)
    values = means.ravel()
    rest = values - np.median(values)
    scale = max(float(np.median(np.abs(rest))), sigma)
    while True:
        weight = np.clip(1 - (rest / (4.685 * scale)) ** 2, 0, None)
        fit = np.linalg.lstsq(terms * weight[:, None], values * weight, rcond=None)[0]
        rest = values - terms @ fit
        if scale == sigma:
            break
        scale = max(0.8 * scale, sigma)
    outlying = (np.abs(rest) > 5 * sigma).reshape(means.shape)
    labels, n = ndimage.label(outlying)
    largest = max(ndimage.sum_labels(outlying, labels, range(1, n + 1)), default=0.0)
    return 100 * float(largest) / outlying.size


def _blocks(image: np.ndarray, block: int) -> np.ndarray:
    h, w = (n // block for n in image.shape)
    return image[: h * block, : w * block].reshape(h, block, w, block)


def low_frequency_power(r: Rings, resolution: float = 100.0) -> float:
    """Mean cross-power from ring 3 to 1/`resolution` (Å): what dirt, crystals and thick ice raise."""
    stop = max(int(np.searchsorted(r.frequencies, 1 / resolution)), 8)
    return r.mean(r.ab, slice(3, stop))


def ice_ring_z(r: Rings) -> float:
    """How far the FRC at 3.60 to 3.95 Å stands above both its neighbours, in z; nan where Nyquist is coarser.

    There lie the first reflections of hexagonal (3.90, 3.67 Å) and cubic ice (3.66 Å) (Dowell & Rinfret
    1960, Nature 188, 1144).
    """
    edges = [np.searchsorted(r.frequencies, 1 / d) for d in (4.6, 4.2, 3.95, 3.6, 3.4, 3.2)]
    if edges[-1] >= len(r.frequencies) or min(np.diff(edges)) < 2:
        return float("nan")
    parts = [slice(edges[i], edges[i + 1]) for i in (0, 2, 4)]
    left, ring, right = (r.mean(r.frc, part) for part in parts)
    error = np.sqrt(1 / r.bins[parts[1]].sum() + 1 / min(r.bins[parts[0]].sum(), r.bins[parts[2]].sum()))
    return float((ring - max(left, right)) / error)


def robust_outliers(values: np.ndarray, floor: float) -> np.ndarray:
    """Return how far each value (n,) stands from the median, in robust standard deviations of at least `floor`.

    nan for fewer than 8 finite values: among so few nothing is an outlier.
    """
    finite = values[np.isfinite(values)]
    if len(finite) < 8:
        return np.full(len(values), np.nan)
    middle = np.median(finite)
    return np.abs(values - middle) / max(1.4826 * float(np.median(np.abs(finite - middle))), floor)


def bands(r: Rings) -> dict[str, np.ndarray]:
    """Pool rings into `BANDS` bands of equal width.

    Returns
    -------
    dict of ndarray, shape (BANDS,)
        ``frequency`` (1/Å, middle), ``bins``, and sums over the bins of the powers ``aa``, ``bb``, ``ab``.
    """
    index = np.minimum((r.frequencies / r.nyquist * BANDS).astype(int), BANDS - 1)

    def total(x: np.ndarray) -> np.ndarray:
        return np.bincount(index[1:], weights=x[1:], minlength=BANDS)

    out = {"frequency": (np.arange(BANDS) + 0.5) / BANDS * r.nyquist, "bins": total(r.bins)}
    return {**out, **{name: total(getattr(r, name) * r.bins) for name in ("aa", "bb", "ab")}}
