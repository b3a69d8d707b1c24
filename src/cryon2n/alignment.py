"""What a set of noisy images of one scene tells about their shifts: gradient and Fisher information.

Each image t is ``F_t(k) = q_t(k) S(k) exp(-2 pi i k d_t) + N_t(k)``: a common scene S, weakened by
radiation damage q, shifted by d, with independent noise.  Both the log-likelihood's gradient in d and its
expected curvature come from the correlation of each image with the sum of all *others*, so that an image's
own noise never attracts it.  The weight of a frequency follows from the signal-to-noise ratio that the
images themselves show (their Fourier ring correlation), not from a chosen B-factor.

Everything works on half-plane spectra, ``(n, h, w // 2 + 1)`` complex64, on any device; shifts are in Å,
frequencies in 1/Å.  Images are multiplied by q_t once, at the beginning; after that their plain sum is the
best estimate of the scene, and one matrix product gives all gradients.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from cryon2n import dose

TAU = 2 * np.pi


@dataclass(frozen=True)
class Grid:
    """The frequencies of a half-plane spectrum, cut to a band.

    Attributes
    ----------
    shape : (h, w)
        Of the images, pixels.
    pixel_A : (y, x)
        Å per pixel.
    sy, sx : tensor, shape (h,) and (w // 2 + 1,)
        1/Å.
    inside : tensor, shape (h, w // 2 + 1)
        How often a bin counts in the whole plane: 0 outside the band, else 1 or 2.
    ring : tensor of int, shape (h, w // 2 + 1)
        Ring of each bin; rings are `ring_width` 1/Å wide.
    counts : ndarray, shape (n_rings,)
        Bins of each ring that lie in the band, of the whole plane.
    """

    shape: tuple[int, int]
    pixel_A: tuple[float, float]
    sy: torch.Tensor
    sx: torch.Tensor
    inside: torch.Tensor
    ring: torch.Tensor
    n_rings: int
    ring_width: float
    counts: np.ndarray

    @property
    def ring_s(self) -> np.ndarray:
        """Frequency of each ring, 1/Å."""
        return np.arange(self.n_rings) * self.ring_width


@lru_cache(maxsize=4)  # the coarse, the fine, the local and the patches' grid: of every movie of a dataset the same
def make_grid(
    shape: tuple[int, int], pixel_A: tuple[float, float], low_A: float, high_A: float, device: torch.device | str
) -> Grid:
    """Return the grid of images of `shape` whose band goes from `low_A` to `high_A` Å; not to be changed.

    Coarser detail than `low_A` is left out: illumination and ice gradients do not move with the specimen.
    """
    h, w = shape
    sy = torch.fft.fftfreq(h, pixel_A[0], dtype=torch.float64)
    sx = torch.fft.rfftfreq(w, pixel_A[1], dtype=torch.float64)
    s = torch.sqrt(sy[:, None] ** 2 + sx[None, :] ** 2)
    width = 1 / max(h * pixel_A[0], w * pixel_A[1])
    inside = torch.full((h, len(sx)), 2.0)
    inside[:, 0] = 1
    if w % 2 == 0:
        inside[:, -1] = 0  # the Nyquist frequency cannot tell a shift's sign
    if h % 2 == 0:
        inside[h // 2] = 0
    inside[(s < 1 / low_A) | (s > 1 / high_A)] = 0
    ring = torch.round(s / width).long()
    n_rings = int(ring.max()) + 1
    return Grid(
        shape,
        pixel_A,
        sy.float().to(device),
        sx.float().to(device),
        inside.to(device),
        ring.to(device),
        n_rings,
        width,
        np.bincount(ring.flatten().numpy(), inside.flatten().double().numpy(), n_rings),
    )


def ring_sums(grid: Grid, values: torch.Tensor) -> np.ndarray:
    """Sum values (k, h, w // 2 + 1) of the band over rings, shape (k, n_rings), float64."""
    flat = (values * grid.inside).double().flatten(1)
    sums = torch.zeros(len(flat), grid.n_rings, dtype=torch.float64, device=flat.device)
    return sums.scatter_add_(1, grid.ring.flatten().expand_as(flat), flat).cpu().numpy()


def on_bins(grid: Grid, values: np.ndarray) -> torch.Tensor:
    """Return values of rings (n_rings,) on the bins, (h, w // 2 + 1), float32."""
    return torch.as_tensor(values, dtype=torch.float32, device=grid.ring.device)[grid.ring]


def move_back(grid: Grid, images: torch.Tensor, shifts: np.ndarray) -> None:
    """Move images (..., h, w // 2 + 1) back by `shifts` (..., 2) in Å, in place."""
    rows, columns = phases(grid, shifts)
    images *= rows[..., :, None]
    images *= columns[..., None, :]


def phases(grid: Grid, shifts: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the factors of rows (..., h) and columns (..., w // 2 + 1) that move images back by `shifts` Å."""
    by = torch.as_tensor(shifts, dtype=torch.float32, device=grid.sy.device)
    angles = (TAU * by[..., :1] * grid.sy, TAU * by[..., 1:] * grid.sx)
    return tuple(torch.polar(torch.ones_like(a), a) for a in angles)


def damage_factors(grid: Grid, n: int, dose_per_image: float | None) -> np.ndarray:
    """Return q_t (`dose.amplitude_left`) of images that follow one another in an exposure, shape (n, n_rings).

    After the dose at each image's middle; `dose_per_image` in e⁻/Å² at 300 kV, None for no damage.
    """
    return dose.amplitude_left(grid.ring_s, (np.arange(n) + 0.5) * (dose_per_image or 0.0))


@dataclass(frozen=True)
class Spectrum:
    """How strong signal and noise of one image are, ring by ring, shape (n_rings,).

    Attributes
    ----------
    ssnr : ndarray
        Power of the undamaged signal over that of the noise, in one image.
    noise : ndarray
        Power of the noise in one image.
    """

    ssnr: np.ndarray
    noise: np.ndarray


def measure_spectrum(grid: Grid, images: torch.Tensor, q: np.ndarray, smooth: int = 5) -> Spectrum:
    """Estimate the strength of signal and noise from the even and the odd images, ring by ring.

    Parameters
    ----------
    grid : Grid
    images : tensor, shape (..., n, h, w // 2 + 1)
        Aligned, times q; of one place or several.
    q : ndarray, shape (n, n_rings)
    smooth : int
        Rings on either side over which the estimate is averaged.
    """
    x, y = (images[..., k::2, :, :].sum(-3).reshape(-1, *grid.inside.shape) for k in (0, 1))
    bins = [(u * v.conj()).real.sum(0, dtype=torch.float64) for u, v in ((x, y), (x, x), (y, y))]
    count = grid.counts * len(x)
    cross, *powers = ring_sums(grid, torch.stack(bins))
    smooth = min(smooth, (grid.n_rings - 1) // 2)
    share = np.maximum([(q[0::2] ** 2).sum(0), (q[1::2] ** 2).sum(0)], 1e-9)
    kernel = np.ones(2 * smooth + 1)
    cross, even, odd, count = (np.convolve(x, kernel, "same") for x in (cross, *powers, count))
    count = np.maximum(count, 1e-9)
    signal, power = cross / count / (share[0] * share[1]), np.stack([even, odd]) / count
    noise = np.maximum(((power - share**2 * signal) / share).mean(0), 1e-12)
    ssnr = signal / noise
    # The standard error of a ring's estimate; half its bins are mirror images of the others.
    error = np.sqrt(power[0] * power[1] / np.maximum(count / 2, 1)) / (share[0] * share[1] * noise)
    # Shrunk towards 0 by what of it is likely chance, so that rings without signal get no weight.
    ssnr = np.maximum(ssnr, 0) * ssnr**2 / np.maximum(ssnr**2 + error**2, 1e-30)
    return Spectrum(ssnr, noise)


@dataclass(frozen=True)
class Weights:
    """Weights of the Fourier bins that make a gradient's variance equal to the expected curvature.

    With rho the signal-to-noise ratio of one image, N its noise power and Q the sum of all q²:
    ``w = rho / (N (1 + rho) (1 + Q rho))``; the same for all images but for their q, because rho is small.

    Attributes
    ----------
    bins : tensor, shape (h, w // 2 + 1)
    information : ndarray, shape (n,)
        Expected curvature of the log-likelihood in an image's shift, along either axis, 1/Å².
    """

    bins: torch.Tensor
    information: np.ndarray


def make_weights(grid: Grid, spectrum: Spectrum, q: np.ndarray) -> Weights:
    """Return the weights for images whose signal is weakened by `q` (n, n_rings)."""
    rho, squares = spectrum.ssnr, (q**2).sum(0)
    weight = rho / (spectrum.noise * (1 + rho) * (1 + squares * rho))
    expected = weight * spectrum.noise * rho * q**2 * (squares - q**2)
    information = TAU**2 / 2 * expected @ (grid.counts * grid.ring_s**2)
    return Weights(on_bins(grid, weight) * grid.inside, information)


def gradients(grid: Grid, weights: Weights, aligned: torch.Tensor, area: float | np.ndarray = 1.0) -> np.ndarray:
    """Return the gradient (..., n, 2) of the log-likelihood at the images' present shifts, in 1/Å.

    An image's own part of the sum has no say in it: its product with itself is real.

    Parameters
    ----------
    grid : Grid
    weights : Weights
    aligned : tensor, shape (..., n, h, w // 2 + 1), complex
        Images, times q, moved back by their present shifts.
    area : float or ndarray, shape (..., 1, 1)
        Mean square of the window of images that were windowed (and divided by its root) before the
        transform: neighbouring bins then tell partly the same.
    """
    scene = (weights.bins * aligned.sum(-3)).conj()
    slopes = torch.stack([scene * grid.sy[:, None], scene * grid.sx], -1)
    products = aligned.flatten(-2) @ slopes.flatten(-3, -2)
    return -TAU * area * products.imag.double().cpu().numpy()


def likelihood(weights: Weights, scenes: torch.Tensor) -> torch.Tensor:
    """Return the log-likelihood (...), up to what no shift changes, of images whose aligned sums are `scenes`."""
    return 0.5 * (weights.bins * (scenes * scenes.conj()).real).sum((-2, -1))
