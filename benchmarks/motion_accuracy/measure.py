"""What a motion field is worth: its error in Å, and the halves that are made with it."""

from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage

from cryon2n import alignment, fourier, motion
from motion_accuracy import spline
from motion_accuracy.field import Field, coarse, constant, grid
from motion_accuracy.simulate import Movie

PLACES = 12  # the field is compared on 12 x 12 places
LOWEST = 1 / 60  # 1/Å; slower than that is ice, which correlates whatever the motion
SHORTEST = 1 / 20  # 1/Å; curves are compared at least to here
THRESHOLD = 0.143  # Rosenthal & Henderson 2003


def relative(field: Field, truth: Field, places: np.ndarray) -> np.ndarray:
    """Return a field's ``e(t, x)`` (n, k, 2) in Å where the corrected image is shifted onto the true one.

    A corrected image may stand anywhere: a shift c of it changes a field e to ``e(t, x + c) + c``.  The c that
    makes the mean of the fields equal is taken.
    """
    true_mean = truth.corrected(places).mean(axis=(0, 1))
    c = np.zeros(2)
    for _ in range(3):
        found = field.corrected(places + c / field.pixel_size) + c
        c += true_mean - found.mean(axis=(0, 1))
    return field.corrected(places + c / field.pixel_size) + c


def centred(values: np.ndarray) -> np.ndarray:
    """Take the mean over time from values (n, k, 2): what stands still distorts, but does not blur."""
    return values - values.mean(axis=0)


def rms(values: np.ndarray) -> float:
    """Return the root of the mean squared length of vectors (..., 2)."""
    return float(np.sqrt((values**2).sum(axis=-1).mean()))


def kept(error: np.ndarray, resolution: float) -> float:
    """Return the share of the amplitude at `resolution` Å that a sum of frames keeps when they are off by `error`.

    ``|mean over t of exp(2πi k · error)|``, averaged over places and directions of k; for small errors it is
    ``exp(-π² error² / resolution²)`` with the RMS length of `error` (n, k, 2), Å.
    """
    angles = np.arange(12) * np.pi / 12
    phases = error @ np.stack([np.sin(angles), np.cos(angles)]) * (2 * np.pi / resolution)
    return float(np.abs(np.exp(1j * phases).mean(axis=0)).mean())


def field_errors(field: Field, movie: Movie) -> dict[str, float]:
    """Return what a field's error is, everywhere (``local_A``) and in the mean over the image (``global_A``), Å.

    ``bend_A`` is the error of what departs from the mean over the image.
    ``kept_4A`` is the share of the amplitude at 4 Å that the error leaves (`kept`): what the FRC of one movie's raw
    halves, which ends at 10 to 20 Å, cannot show.
    """
    places = grid(movie.shape, PLACES)
    error = centred(relative(field, movie.truth, places) - movie.truth.corrected(places))
    mean = error.mean(axis=1, keepdims=True)
    return {"global_A": rms(mean), "local_A": rms(error), "bend_A": rms(error - mean), "kept_4A": kept(error, 4.0)}


def best_global(movie: Movie) -> Field:
    """Return the trajectory that is nearest to the true field: its mean over the image."""
    return constant(movie.truth.corrected(grid(movie.shape, PLACES)).mean(axis=1), movie.pixel_size)


def frame_bound(movie: Movie, device: torch.device | str = "cpu") -> float:
    """Return the RMS error in Å of a trajectory whose frames are each located apart, as well as can be.

    The Cramér-Rao bound, from the Fisher information of frames that stand where the mean of the known field puts
    them, to 4 Å.  Who knows that trajectories are smooth can stay below.
    """
    spectra = torch.stack([torch.fft.rfft2(torch.from_numpy(f).to(device).float()) for f in movie.counts])
    bins, images = motion.cut_band(spectra, movie.shape, (movie.pixel_size,) * 2, motion.MotionSettings().resolution_A)
    q = alignment.damage_factors(bins, len(images), movie.dose_per_frame)
    for image, factor in zip(images, q, strict=True):
        image *= alignment.on_bins(bins, factor)
    alignment.move_back(bins, images, best_global(movie).corrected(np.zeros((1, 2)))[:, 0])
    weights = alignment.make_weights(bins, alignment.measure_spectrum(bins, images, q), q)
    return float(np.sqrt(2 * (1 / weights.information).mean()))


def polynomial_terms(t: np.ndarray, places: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return the terms (n, k, 18) of the polynomial of Zivanov et al. 2019 (IUCrJ 6, 5) at frames t (n,).

    ``{1, x, x², y, y², xy} × {t, t², t³}``, time running fastest; x and y from -0.5 to 0.5.
    """
    y, x = (places / np.array(shape) - 0.5).T
    space = np.stack([np.ones_like(x), x, x * x, y, y * y, x * y], axis=-1)
    time = np.stack([t, t**2, t**3], axis=-1)
    return np.einsum("ns,kp->nkps", time, space).reshape(len(t), len(places), 18)


def best_polynomial(movie: Movie) -> Field:
    """Return the best of all fields that are a free trajectory and the polynomial of 18 coefficients per axis."""
    truth, places = movie.truth.corrected(grid(movie.shape, PLACES)), grid(movie.shape, PLACES)
    times = np.linspace(0, 1, truth.shape[0])
    # Without the means over time and over the image the trajectory and what stands still are free.
    terms = polynomial_terms(times, places, movie.shape)
    free = [v - v.mean(0) - v.mean(1, keepdims=True) + v.mean((0, 1)) for v in (truth, terms)]
    weights = np.linalg.lstsq(free[1].reshape(-1, 18), free[0].reshape(-1, 2), rcond=None)[0]
    trajectory = (truth - terms @ weights).mean(axis=1)

    def displacement(t: int, at: np.ndarray) -> np.ndarray:
        return trajectory[t] + polynomial_terms(times[t : t + 1], at, movie.shape)[0] @ weights

    return Field(displacement, len(times), movie.pixel_size, in_frame=False)


class Halves:
    """Half sums of a movie by any field, all by the same interpolation: a spline of order 5 in the frame.

    Parameters
    ----------
    movie : Movie
    device : torch device
        Where the sums are made.
    """

    def __init__(self, movie: Movie, device: torch.device | str = "cpu"):
        self.movie, self.points, self.device = movie, coarse(movie.shape), device
        reach = np.abs(movie.truth.corrected(grid(movie.shape, PLACES))).max() / movie.pixel_size
        self.margin = int(np.ceil(reach)) + 8
        self.size = tuple(n - 2 * self.margin - (n - 2 * self.margin) % 16 for n in movie.shape)

    def sums(self, fields: Sequence[Field]) -> list[np.ndarray]:
        """Return the sums (2, h, w) of the even and of the odd frames, corrected by each of the fields."""
        movie, inside = self.movie, tuple(slice(self.margin, self.margin + n) for n in self.size)
        displacements = [relative(field, movie.truth, self.points.places) / movie.pixel_size for field in fields]
        fast = tuple(motion.fast_size(n + 2 * spline.SETTLED) for n in movie.shape)
        sums = [torch.zeros((2, *self.size), device=self.device) for _ in fields]
        for t, frame in enumerate(movie.counts):
            coefficients = spline.coefficients(torch.from_numpy(frame).to(self.device).float(), fast)
            for total, displacement in zip(sums, displacements, strict=True):
                shift = self.points.dense(displacement[t], self.device)[:, *inside]
                total[t % 2] += spline.sample(coefficients, shift, (self.margin,) * 2, 1, "reflect")
        return [total.cpu().numpy() for total in sums]

    @property
    def frequencies(self) -> np.ndarray:
        """Of the rings of the sums, 1/Å."""
        return fourier.ring_frequencies(self.size, self.movie.pixel_size)


def half_correlation(sums: np.ndarray) -> np.ndarray:
    """Return the FRC (n_rings,) of two sums (2, h, w)."""
    return fourier.frc(*sums, edge=32)


def curve_end(curve: np.ndarray, frequencies: np.ndarray) -> float:
    """Return the frequency in 1/Å to which a curve is above 0.143; 0 if it never is.

    The curve is smoothed over a fiftieth of the rings, which is wider than the oscillations of the CTF.
    """
    smooth = ndimage.uniform_filter1d(np.nan_to_num(curve), max(3, len(curve) // 50), mode="nearest")
    above = np.flatnonzero((smooth > THRESHOLD) & (frequencies >= LOWEST))
    return float(frequencies[above[-1]]) if len(above) else 0.0


def curve_measures(curve: np.ndarray, known: np.ndarray, frequencies: np.ndarray) -> dict[str, float]:
    """Return the area under a curve relative to that of the known field, and its resolution in Å at 0.143.

    The area is that from 1/60 Å to where the known field's curve ends, or to 1/20 Å if that is further.  A curve that
    never reaches 0.143 has no resolution.
    """
    end = max(curve_end(known, frequencies), SHORTEST)
    rings = (frequencies >= LOWEST) & (frequencies <= end)
    out = {"frc_ratio": float(curve[rings].sum() / known[rings].sum())}
    own_end = curve_end(curve, frequencies)
    return out | ({"resolution_A": 1 / own_end} if own_end else {})
