"""Are two images the halves of one micrograph?  Told from their pixels, by two properties of halves.

* The *signal* is common: their cross-correlation has a peak near zero shift that unrelated micrographs
  do not have.  It is sought where a micrograph's signal is strongest against its noise, from 1/300 Å to
  about 1/50 Å, and measured in standard deviations of the same map away from the centre.
* The *noise* is not: beyond the signal (near Nyquist) they do not correlate, and it is all there, neither
  filtered nor denoised away.

The numbers that the limits rest on stand in ``docs/other-programs.md``.
"""

from dataclasses import dataclass

import numpy as np
from scipy import fft

from cryon2n import fourier
from cryon2n.errors import InputError

SIGNAL_A = 50.0  # Å; the weight of a frequency k is exp(-(50 k)² / 2)
LARGEST_A = 300.0  # Å; below 1/300 lie ice gradients and illumination, which any two micrographs may share
LEAST_RINGS = 3, 12  # of a small image: the first ring used, and the width of the weight
WINDOW_A = 60.0  # Å; halves of one exposure are not further apart
LEAST_Z = 6.0  # of the peak; 3500 wrong pairings reached 4.8
LEAST_LEAD = 2.0  # of the peak over that of any wrong partner, in z
CLIP = 3.0  # robust standard deviations, so that no single bright spot makes a peak
NOISE_CROP = 2048  # pixels; enough for ± 0.002 in the noise's correlation
NOISE_BAND, REFERENCE_BAND = (0.85, 1.0), (0.1, 0.25)  # of Nyquist
# Overlapping halves correlate by the share of frames they have in common.  Where Nyquist is coarser than
# 8 Å, signal reaches it.
NOISE_LIMIT, NOISE_LIMIT_COARSE, COARSE_A = 0.2, 0.5, 4.0
# Noise power near Nyquist over that at a fifth of it.  Counted frames have 0.3 to 1, also interpolated
# ones.  Dose weights that are not renormalised (Warp's) reach 0.02 at the end of a long exposure.
FLOOR_LIMIT, FLOOR_LIMIT_WEIGHTED = 0.04, 0.002
# Odd, but no reason to refuse: a shift between the halves (Å, and more than a pixel), correlated noise (z).
WARN_SHIFT_A, WARN_NOISE_Z = 3.0, 5.0


@dataclass(frozen=True)
class Signature:
    """What is compared of one half: its whitened, weighted low frequencies.

    Attributes
    ----------
    spectrum : ndarray, shape (h, w // 2 + 1), complex64
    shape : (int, int)
        (h, w) of the binned image.
    step : int
        Pixels of the half in one of these.
    pixel_size : float
        Å, of the half.
    """

    spectrum: np.ndarray
    shape: tuple[int, int]
    step: int
    pixel_size: float


@dataclass(frozen=True)
class Match:
    """How well two signatures fit.

    Attributes
    ----------
    z : float
        Height of the correlation's peak, in its standard deviations.
    shift : (float, float)
        [y, x] of the peak, in pixels of the half: how far the first's content stands from the second's.
    lowest : float
        The deepest trough, likewise (negative).
    """

    z: float
    shift: tuple[float, float]
    lowest: float


def signature(image: np.ndarray, pixel_size: float) -> Signature:
    """Compute what `match` compares.

    Parameters
    ----------
    image : ndarray, shape (h, w)
    pixel_size : float
        Å.
    """
    size = max(image.shape) * pixel_size
    width = max(1 / SIGNAL_A, LEAST_RINGS[1] / size)
    step = max(1, round(1 / (4 * width * pixel_size)))
    h, w = (n // step for n in image.shape)
    small = image[: h * step, : w * step].reshape(h, step, w, step).mean((1, 3), dtype=np.float32)
    small -= _smooth_background(small)
    frequencies = fourier.ring_frequencies((h, w), pixel_size * step)
    weight = np.exp(-((frequencies / width) ** 2) / 2)
    weight[frequencies < max(1 / LARGEST_A, LEAST_RINGS[0] / size) - 1e-9] = 0
    index, inside = fourier.ring_index((h, w)), fourier.ring_index((h, w)) < len(weight)
    index = np.minimum(index, len(weight) - 1)
    edge = max(2, min(h, w) // 32)
    for last in (False, True):
        spectrum = fourier.windowed_spectrum(small, edge)
        power = fourier.ring_sums(fourier.cross_power(spectrum, spectrum), (h, w)) / fourier.ring_counts((h, w))
        factor = np.sqrt(weight / np.maximum(power, 1e-30)).astype(np.float32)
        spectrum = spectrum * (factor[index] * inside)
        if not last:
            small = fft.irfft2(spectrum, s=(h, w))
            sigma = 1.4826 * float(np.median(np.abs(small - np.median(small))))
            small = np.clip(small, -CLIP * sigma, CLIP * sigma)
    return Signature(spectrum.astype(np.complex64), (h, w), step, pixel_size)


def _smooth_background(image: np.ndarray) -> np.ndarray:
    """Fit a parabola to an image (h, w): ice and illumination, whose slope would leak into all rings."""
    y, x = (np.linspace(-1, 1, n, dtype=np.float32) for n in image.shape)
    y, x = np.broadcast_arrays(y[:, None], x[None, :])
    terms = np.stack([t.ravel() for t in (np.ones_like(x), y, x, y * y, y * x, x * x)], axis=1)
    return (terms @ np.linalg.lstsq(terms, image.ravel(), rcond=None)[0]).reshape(image.shape)


def match(x: Signature, y: Signature) -> Match:
    """Find the peak of the cross-correlation of two halves within ± `WINDOW_A`.

    Its height is in standard deviations of the map outside that window, where nothing is common.
    """
    correlation = fft.irfft2(x.spectrum * y.spectrum.conj(), s=x.shape)
    reach = WINDOW_A / (x.pixel_size * x.step)
    near = [np.abs(np.fft.fftfreq(n, 1 / n)) <= min(max(1.0, reach), n // 4) for n in x.shape]
    inside = near[0][:, None] & near[1][None, :]
    sigma = float(correlation[~inside].std())
    if sigma == 0:
        return Match(0.0, (0.0, 0.0), 0.0)
    peak = np.unravel_index(int(np.where(inside, correlation, -np.inf).argmax()), x.shape)
    shift = []
    for axis, n in enumerate(x.shape):
        line = np.take(correlation, np.arange(-1, 2) + peak[axis], axis, mode="wrap").take(peak[1 - axis], 1 - axis)
        bend = line[0] - 2 * line[1] + line[2]
        offset = 0.5 * (line[0] - line[2]) / bend if bend < 0 else 0.0
        shift.append(float(((peak[axis] + n // 2) % n - n // 2 + np.clip(offset, -0.5, 0.5)) * x.step))
    return Match(float(correlation[peak] / sigma), (shift[0], shift[1]), float(correlation[inside].min() / sigma))


@dataclass(frozen=True)
class Noise:
    """Of two halves, near Nyquist: the correlation of their noises, and the noise power left in each.

    Attributes
    ----------
    correlation : float
        Of independent noises 0; of halves with a share of their frames in common that share.
    z : float
        The same, in standard deviations of independent noise.
    floors : (float, float)
        Power in `NOISE_BAND` over the noise power in `REFERENCE_BAND`.
    """

    correlation: float
    z: float
    floors: tuple[float, float]


def compare_noise(a: np.ndarray, b: np.ndarray) -> Noise:
    """Compare the noises of two halves (h, w), in the middle of the field."""
    middle = tuple(slice((n - min(n, NOISE_CROP)) // 2, (n + min(n, NOISE_CROP)) // 2) for n in a.shape)
    a, b = a[middle], b[middle]
    spectra = [fourier.windowed_spectrum(x, min(16, min(a.shape) // 4)) for x in (a, b)]
    counts = fourier.ring_counts(a.shape)

    def powers(band: tuple[float, float]) -> tuple[float, float, float]:
        rings = slice(max(1, int(band[0] * len(counts))), max(2, int(band[1] * len(counts))))
        pairs = ((0, 1), (0, 0), (1, 1))
        sums = [fourier.ring_sums(fourier.cross_power(spectra[i], spectra[j]), a.shape)[rings] for i, j in pairs]
        return tuple(float(s.sum() / counts[rings].sum()) for s in sums)

    def correlation(ab: float, aa: float, bb: float) -> float:
        return ab / max(float(np.sqrt(aa * bb)), 1e-30)

    high, low = powers(NOISE_BAND), powers(REFERENCE_BAND)
    noise_share = max(1e-3, 1 - max(0.0, correlation(*low)))
    bins = counts[int(NOISE_BAND[0] * len(counts)) :].sum()
    found = correlation(*high)
    floors = tuple(high[i] / max(low[i] * noise_share, 1e-30) for i in (1, 2))
    return Noise(found, found * float(np.sqrt(bins / 2)), floors)


def check_noise(a: np.ndarray, b: np.ndarray, pixel_size: float, weighted: bool, where: str) -> Noise:
    """Compare the noises of two halves; raise `InputError` where they are one noise, or are gone.

    Parameters
    ----------
    a, b : ndarray, shape (h, w)
    pixel_size : float
        Å.
    weighted : bool
        The frames were weighted by dose, which may take away high frequencies.
    where : str
        What the error begins with.
    """
    noise = compare_noise(a, b)
    limit = NOISE_LIMIT if pixel_size < COARSE_A else NOISE_LIMIT_COARSE
    if noise.correlation > limit:
        raise InputError(
            f"{where}: the noises of a and b correlate by {noise.correlation:.2f} near Nyquist (independent noise "
            f"gives 0, wanted at most {limit}): the same frames are in both, or both are one image in two scales"
        )
    floor = min(noise.floors)
    if floor < (FLOOR_LIMIT_WEIGHTED if weighted else FLOOR_LIMIT):
        side = "ab"[int(np.argmin(noise.floors))]
        raise InputError(
            f"{where}: {side} has next to no noise left at high frequencies ({floor:.1e} of that at low ones; raw "
            "sums of frames have 0.3 to 1): it was filtered, enlarged or denoised; give the halves as the motion "
            "correction wrote them (where it weighted frames by dose: dose_weighted true)"
        )
    return noise


def check_signal(found: Match, wrong: float | None, where: str) -> None:
    """Raise `InputError` where the common signal of two halves does not stand out.

    Parameters
    ----------
    found : Match
    wrong : float or None
        The highest peak (z) of wrong partners, if some are known.
    where : str
        What the error begins with.
    """
    if -found.lowest > max(LEAST_Z, found.z):
        raise InputError(
            f"{where}: a and b have opposite contrast (correlation {found.lowest:.1f} standard deviations); one is "
            "inverted, or a sum and a difference are mixed up"
        )
    needed = LEAST_Z if wrong is None else max(LEAST_Z, wrong + LEAST_LEAD)
    if found.z < needed:
        partner = "" if wrong is None else f"; wrong partners reach {wrong:.1f}"
        raise InputError(
            f"{where}: no common signal: the correlation of a and b reaches {found.z:.1f} standard deviations, wanted "
            f"{needed:.1f}{partner}; they are halves of different micrographs, or of an empty one: check the pairing, "
            "or leave the micrograph out"
        )


def warnings(found: Match, noise: Noise, pixel_size: float) -> list[str]:
    """Say in sentences what is odd about a pair that passes.

    Parameters
    ----------
    found : Match
    noise : Noise
    pixel_size : float
        Å.
    """
    out = []
    shift = float(np.hypot(*found.shift)) * pixel_size
    if shift > max(WARN_SHIFT_A, pixel_size):
        out.append(f"b stands {shift:.1f} Å from a: the halves were not aligned with one trajectory")
    if noise.z > WARN_NOISE_Z:
        out.append(
            f"the noises of a and b correlate by {noise.correlation:.3f} near Nyquist: a fixed pattern of the "
            "detector, or frames that are in both"
        )
    return out
