"""Measures of what a denoiser invents, copies, keeps constant or blurs: one small function each.

Every measure has a *null*, the value of any filter that treats a ring of frequencies alike (for `signal_lost` and
`noise_copied`: of the best such filter, Wiener's), and the standard error of the measure about it.  Notation as in
``docs/metrics.md``; p are ring powers from `metrics.ring_powers`, sums over the bins of a ring, with ``count`` bins.
Definitions, thresholds and their reasons: ``docs/hallucination.md``.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import fft

from cryon2n import fourier, picking

Powers = Mapping[str, np.ndarray]
Band = tuple[int, int]  # rings, the last excluded
Box = tuple[slice, slice]

# What `metrics.ring_powers` has to give.  a, b: halves; d = a - b; w: whole exposure; n: signal-free image; f… what
# the method made of them; o: what it made of another micrograph's whole exposure.
OWN = (
    *("a_a", "b_b", "a_b", "d_d", "w_w", "n_n", "fa_fa", "fb_fb", "fa_fb", "fa_b", "fb_a"),
    *("fd_fd", "fd_d", "fw_fw", "fn_fn", "fw_fn", "fo_fo", "fo_fn"),
)
INJECTED = ("j_j", "ga_j", "gb_j", "ga_ga", "gb_gb")  # j: what was put in; ga, gb: made of the injected halves
# s: the scrambled micrograph; sw, sa, sb: made of its whole exposure and its halves.
SCRAMBLED = ("fw_fw", "sw_fw", "sw_sw", "sa_b", "sb_a", "sa_sa", "sb_sb", "fa_b", "fb_a", "a_a", "b_b")
READING_COLUMNS = ["method", "micrograph", "metric", "value", "error"]
SMOOTH = 5  # rings, over which powers are added before they are divided
GUARD = 3  # rings beyond the shell that are not looked at: a Hann window leaks over two
HANN_SHARE = 0.514**2  # of the bins under a Hann window, as many are independent (Welch 1967: (Σw²)²/Σw⁴ per axis)
SOME = 0.01  # of an output's power must lie beyond the shell, or there is only what leaks from below
OWN_SHARE = 0.1  # of the training particle's profile must be unlike the unknown molecule's to tell them apart
SURROGATES, RESAMPLES = 20, 200
FEWEST = 3  # molecules, or particles, of which a mean profile is taken


@dataclass(frozen=True)
class Reading:
    """A measured value, and the standard error that it has where the null is true (nan: not defined)."""

    value: float
    error: float


NOTHING = Reading(float("nan"), float("nan"))


def running(x: np.ndarray) -> np.ndarray:
    """Add the powers (n_rings,) of `SMOOTH` neighbouring rings."""
    return np.convolve(x, np.ones(SMOOTH), "same")


def _product_variance(x: np.ndarray, y: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Variance of a ring's cross-power of two independent fields with ring powers x and y.

    Bins come in pairs of mirror images, so a ring of n bins has n/2 independent ones: the variance is ``x y / n``.
    """
    return x * y / np.maximum(count, 1)


# ---------------------------------------------------------------------------- a signal-free input


def noise_excess(p: Powers, band: Band) -> Reading:
    """Power of the method's output on a signal-free image over that which a linear filter of its kind would give.

    ``sum <f(n), f(n)> / sum <f(w), f(w)> <n, n> / <w, w>`` over the rings of the band.  A filter with any transfer
    passes of n what it passes of w: 1.  A method that recognises that there is nothing gives less, one that paints
    into noise gives more.
    """
    low, high = band
    part = slice(low, high)
    made, n = p["fn_fn"][part], p["count"][part]
    linear = p["fw_fw"][part] * p["n_n"][part] / p["w_w"][part]
    total = float(linear.sum())
    if not total > 0:
        return NOTHING
    # Each ring power of Gaussian noise has a relative variance of 2 / n; three of them make `linear`.
    variance = float((2 * linear**2 / n).sum()) * 4 / total**2
    return Reading(float(made.sum()) / total, float(np.sqrt(variance)))


def surrogates(image: np.ndarray, n: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Return white noise through the linear filter that gives it the power spectrum of an image (h, w), n times."""
    amplitude = np.abs(fft.rfft2(image))
    out = []
    for _ in range(n):
        white = fft.rfft2(rng.standard_normal(image.shape).astype(np.float32))
        out.append(fft.irfft2(amplitude * white / np.abs(white), s=image.shape))
    return out


def picks_excess(
    f_noise: np.ndarray,
    f_full: np.ndarray,
    centres: np.ndarray,
    blobs: picking.Blobs,
    region: Box,
    rng: np.random.Generator,
) -> tuple[Reading, Reading]:
    """Count false picks on a signal-free image, above those on Gaussian noise of the same spectrum.

    The picker is `picking.blob_response`; its threshold the median response at the known particles of the denoised
    whole exposure, at which half of them are picked.

    Parameters
    ----------
    f_noise, f_full : ndarray, shape (h, w)
        What the method made of the signal-free image and of the whole exposure.
    centres : ndarray, shape (n, 2)
        Known particles, (y, x) in pixels.
    blobs : Blobs
    region : two slices
    rng : numpy.random.Generator

    Returns
    -------
    per_mpx, share : Reading
        Per million pixels, and over the number of known particles.
    """
    inside = picking.within(centres, region, blobs.distance)
    if not inside.any() or not np.ptp(f_full[region]) > 0:
        return NOTHING, NOTHING
    response = picking.blob_response(f_full, blobs)
    threshold = float(np.median(picking.highest_near(response, centres[inside], blobs.distance)))
    if not threshold > 0:
        return NOTHING, NOTHING

    def count(image: np.ndarray) -> int:
        places, _ = picking.find_peaks(picking.blob_response(image, blobs), blobs.distance, threshold)
        return int(picking.within(places, region, 0).sum())

    chance = np.array([count(image) for image in surrogates(f_noise, SURROGATES, rng)])
    excess = count(f_noise) - float(chance.mean())
    error = max(float(chance.std()), 1.0)  # one pick can always come or go
    mpx, known = f_noise[region].size / 1e6, int(inside.sum())
    return Reading(excess / mpx, error / mpx), Reading(excess / known, error / known)


# ---------------------------------------------------------------------------- constant output


def common_output(p: Powers) -> Reading:
    """Correlation of outputs whose inputs have nothing in common.

    Of the whole exposure with the signal-free image, and of another micrograph's whole exposure with that: the mean
    of both.  0 for every method whose output depends on its input; 1 for one that always gives the same image.
    Powers of all rings but the mean's.
    """
    found = []
    for other in ("fw", "fo"):
        x, y, xy = (p[name][1:] for name in (f"{other}_{other}", "fn_fn", f"{other}_fn"))
        if not np.isfinite(x).all():
            continue  # no other micrograph
        scale = float(np.sqrt(x.sum() * y.sum()))
        if scale > 0:
            found.append(
                (float(xy.sum()) / scale, float(np.sqrt(_product_variance(x, y, p["count"][1:]).sum())) / scale)
            )
        elif x.sum() == y.sum():
            found.append((1.0, 0.0))  # both flat: the same
    if not found:
        return NOTHING
    values, errors = np.array(found).T
    return Reading(float(values.mean()), float(np.sqrt((errors**2).sum())) / len(errors))


# ---------------------------------------------------------------------------- copied noise, lost signal


def _wiener(p: Powers) -> tuple[np.ndarray, np.ndarray]:
    """Return the Wiener filters of both halves, ``<a,b> / <a,a>`` and ``<a,b> / <b,b>``.

    0 in rings whose signal is within 3 standard errors of none: noise has no negative transfer to cancel it.
    """
    signal, count = running(p["a_b"]), running(p["count"])
    own = [running(p[name]) for name in ("a_a", "b_b")]
    seen = signal > 3 * np.sqrt(_product_variance(*own, count))
    return np.where(seen, np.minimum(signal / own[0], 1), 0), np.where(seen, np.minimum(signal / own[1], 1), 0)


def noise_copied(p: Powers) -> Reading:
    """Share of the input's noise that a method hands on beyond what the Wiener filter would: 0 Wiener, 1 a copy.

    The share handed on in a ring is ``h = <f(a) - f(b), a - b> / <a - b, a - b>``, from which the signal has dropped
    out.  ``sum N max(h - W, 0) / sum N (1 - W)`` over all rings, N being the noise's power.
    """
    noise_a, noise_b = (np.maximum(running(p[name] - p["a_b"]), 0)[1:] for name in ("a_a", "b_b"))
    wa, wb = (curve[1:] for curve in _wiener(p))
    noise = noise_a + noise_b
    ideal = (wa * noise_a + wb * noise_b) / np.where(noise > 0, noise, 1)
    passed, difference = running(p["fd_d"])[1:], running(p["d_d"])[1:]
    excess = np.maximum(passed / np.where(difference > 0, difference, 1) - ideal, 0)
    total = float((noise * (1 - ideal)).sum())
    if not total > 0:
        return NOTHING
    variance = _product_variance(p["fd_fd"], p["d_d"], p["count"])[1:] * (noise / SMOOTH / p["d_d"][1:]) ** 2
    return Reading(float((noise * excess).sum()) / total, SMOOTH * float(np.sqrt(variance.sum())) / total)


def signal_lost(p: Powers, band: Band) -> Reading:
    """Share of the signal that the Wiener filter keeps and the method does not: 0 Wiener or better, 1 nothing kept.

    With the method's transfer of signal ``g = <f(a), b> / <a, b>`` and the Wiener filter ``W = <a, b> / <a, a>``:
    ``1 - sum W min(g, W) / sum W²`` over the rings of the band, mean of both directions.
    """
    low, high = band
    shares, variances = [], []
    for cross, own, made, other in (("fa_b", "a_a", "fa_fa", "b_b"), ("fb_a", "b_b", "fb_fb", "a_a")):
        power = running(p[own])[low:high]
        w = np.maximum(running(p["a_b"])[low:high] / power, 0)
        gw = running(p[cross])[low:high] / power
        total = float((w**2).sum())
        if not total > 0:
            return NOTHING
        shares.append(1 - float(np.minimum(gw, w**2).sum()) / total)
        unsmoothed = _product_variance(p[made], p[other], p["count"])[low:high] / p[own][low:high] ** 2
        variances.append(float(unsmoothed.sum()) / total**2)
    return Reading(float(np.mean(shares)), float(np.sqrt(np.mean(variances))))


def disagreement(p: Powers, band: Band) -> Reading:
    """Noise left in a denoised half over what both have in common, in the band.

    ``½ <f(a) - f(b), f(a) - f(b)> / <f(a), f(b)>``.  Not a fault by itself and without a null: its error is nan.
    """
    low, high = band
    common = float(p["fa_fb"][low:high].sum())
    value = float(p["fd_fd"][low:high].sum()) / 2 / common if common > 0 else float("nan")
    return Reading(value, float("nan"))


# ---------------------------------------------------------------------------- scrambled phases


def phase_invented(p: Powers, shell: int, limit: int) -> Reading:
    """Share of the output beyond the shell that is there, too, when the phases beyond it are random.

    ``sum <f(s), f(w)> / sum <f(w), f(w)>`` beyond the shell, s being the scrambled whole exposure.  What remains
    is drawn from the lower frequencies alone.  Not defined for an output with next to nothing beyond the shell.
    """
    part = slice(shell + GUARD, limit)
    made, own = p["sw_fw"][part], p["fw_fw"][part]
    total = float(own.sum())
    if not total > SOME * float(p["fw_fw"][1:limit].sum()):
        return NOTHING
    error = np.sqrt(_product_variance(p["sw_sw"][part], own, p["count"][part]).sum())
    return Reading(float(made.sum()) / total, float(error) / total)


def phase_regained(p: Powers, shell: int, limit: int) -> Reading:
    """Share of the signal beyond the shell that a method gives although the phases there were random.

    ``sum <f(s_a), b> + <f(s_b), a>`` over ``sum <f(a), b> + <f(b), a>``: the other half's noise is independent, so
    this is true signal, inferred from the lower frequencies.
    """
    part = slice(shell + GUARD, limit)
    total = float((p["fa_b"] + p["fb_a"])[part].sum())
    if not total > 0:
        return NOTHING
    made = float((p["sa_b"] + p["sb_a"])[part].sum())
    pairs = (("sa_sa", "b_b"), ("sb_sb", "a_a"))
    variance = sum(_product_variance(p[x][part], p[y][part], p["count"][part]).sum() for x, y in pairs)
    return Reading(made / total, float(np.sqrt(variance)) / total)


# ---------------------------------------------------------------------------- a molecule that is not known


def injected_kept(p: Powers, q: Powers, band: Band) -> Reading:
    """Amplitude that a method keeps of an unknown molecule, over that which it keeps of the data's own signal.

    The regression of the output on what was put in, ``h = <g, j> / <j, j>``, and that on the signal,
    ``g = <f(a), b> / <a, b>``, each weighted by ``<j, j> <a, b>`` in the rings of the band: the ratio is 1 for
    every filter that treats a ring alike.

    Parameters
    ----------
    p : mapping
        `OWN` powers of the micrograph.
    q : mapping
        `INJECTED` powers of its probe.
    band : (low, high)
    """
    low, high = band
    part = slice(low, high)
    scale = (p["a_a"] + p["b_b"])[part]
    signal, injected = p["a_b"][part] / scale, q["j_j"][part] / scale
    unknown = float(((q["ga_j"] + q["gb_j"])[part] * signal).sum())
    known = float(((p["fa_b"] + p["fb_a"])[part] * injected).sum())
    if not known > 0:
        return NOTHING
    variance = sum((_product_variance(q[x], q["j_j"], q["count"])[part] * signal**2).sum() for x in ("ga_ga", "gb_gb"))
    for x, y in (("fa_fa", "b_b"), ("fb_fb", "a_a")):
        variance += (_product_variance(p[x], p[y], p["count"])[part] * injected**2).sum()
    return Reading(unknown / known, float(np.sqrt(variance)) / known)


def radial_profiles(image: np.ndarray, centres: np.ndarray, reach: int, region: Box) -> np.ndarray:
    """Return the rotational averages of an image about places, shape (m, reach + 1).

    Places (n, 2), (y, x), whose box is not within the region are left out.
    """
    places = np.rint(centres[picking.within(centres, region, reach + 1)]).astype(int)
    offsets = np.arange(-reach, reach + 1)
    boxes = image[places[:, 0, None, None] + offsets[:, None], places[:, 1, None, None] + offsets]
    index = np.rint(np.hypot(offsets[:, None], offsets)).astype(int).ravel()
    rings = (index[:, None] == np.arange(reach + 1)).astype(np.float64)
    return boxes.reshape(len(places), index.size) @ (rings / rings.sum(axis=0))


def filtered(image: np.ndarray, transfer: np.ndarray) -> np.ndarray:
    """Multiply the Fourier transform of an image (h, w) with a transfer (n_rings,); 0 beyond the last ring."""
    index = np.minimum(fourier.ring_index(image.shape), len(transfer))
    return fft.irfft2(fft.rfft2(image) * np.append(transfer, 0.0)[index], s=image.shape)


def turned(
    output: np.ndarray,
    expected: np.ndarray,
    centres: np.ndarray,
    training: np.ndarray,
    known: np.ndarray,
    radius: float,
    regions: tuple[Box, Box],
    rng: np.random.Generator,
) -> Reading:
    """How much of the training particle stands where an unknown molecule was put in: 0 none, 1 a whole one.

    Least squares of the mean rotational profile of the output about the unknown molecules on that of the molecules
    as a filter of rings would show them, that of the output about the known (training) particles, and a constant; the
    coefficient of the second.  The error is its spread when molecules and particles are drawn anew, with replacement.

    Parameters
    ----------
    output : ndarray, shape (h, w)
        Mean of what the method made of the injected halves.
    expected : ndarray, shape (h, w)
        What was put in, through the method's transfer of it by ring.
    centres : ndarray, shape (n, 2)
        Of the unknown molecules, (y, x) in pixels.
    training : ndarray, shape (h, w)
        Mean of what the method made of the micrograph's own halves.
    known : ndarray, shape (m, 2)
        Of the training particles there.
    radius : float
        In pixels.
    regions : two of two slices
        Valid regions of the injected and of the own micrograph.
    rng : numpy.random.Generator

    Returns
    -------
    Reading
        Not defined with fewer than three of either, or where the profiles of both are alike.
    """
    reach = int(np.ceil(1.5 * radius))
    seen, linear = (radial_profiles(image, centres, reach, regions[0]) for image in (output, expected))
    particle = radial_profiles(training, known, reach, regions[1])
    if min(len(seen), len(particle)) < FEWEST:
        return NOTHING
    weights = np.sqrt(np.maximum(np.arange(reach + 1), 0.5))  # a ring has as many pixels as it is long

    def solve(molecules: np.ndarray, particles: np.ndarray) -> tuple[float, float]:
        """Return the coefficient, and the share of the particle's profile that the others do not explain."""
        ones = np.ones(reach + 1)
        others = np.stack([linear[molecules].mean(axis=0), ones], axis=1) * weights[:, None]
        wanted, own = (x.mean(axis=0) * weights for x in (seen[molecules], particle[particles]))
        constant = weights * (weights @ own) / (weights @ weights)
        wanted, left = (x - others @ np.linalg.lstsq(others, x)[0] for x in (wanted, own))
        spread = float((own - constant) @ (own - constant))
        power = float(left @ left)
        return (float(left @ wanted) / power if power > 0 else np.nan), (power / spread if spread > 0 else 0.0)

    value, share = solve(np.arange(len(seen)), np.arange(len(particle)))
    if share < OWN_SHARE:
        return NOTHING  # blurred so much that the two look alike
    drawn = [
        solve(rng.integers(len(seen), size=len(seen)), rng.integers(len(particle), size=len(particle)))[0]
        for _ in range(RESAMPLES)
    ]
    return Reading(value, float(np.nanstd(drawn)))
