"""Fourier helpers on real images ``(..., h, w)``: rings, FRC, crop (binning) and shift.

All transforms are ``scipy.fft.rfft2``: float32 in gives complex64 inside and float32 out, float64 stays
float64.  Threads: wrap the call in ``with scipy.fft.set_workers(n):``.

Rings are bins of width ``1 / (max(h, w) * pixel_size)`` in 1/Å, so that on a rectangle a ring is a
circle in spatial frequency and not an ellipse.  They run from 0 (the mean) to Nyquist; the corners
beyond Nyquist belong to no ring.
"""

from functools import lru_cache

import numpy as np
from scipy import fft


def ring_frequencies(shape: tuple[int, int], pixel_size: float) -> np.ndarray:
    """Return the spatial frequency of each ring in 1/Å, shape (n_rings,), from 0 to Nyquist.

    Parameters
    ----------
    shape : (h, w)
        Of the image.
    pixel_size : float
        In Å.
    """
    size = max(shape)
    return np.arange(size // 2 + 1) / (size * pixel_size)


@lru_cache(maxsize=4)
def ring_index(shape: tuple[int, int]) -> np.ndarray:
    """Return the ring of every bin of ``rfft2``, shape (h, w // 2 + 1), read-only integers.

    Ring k holds the bins whose frequency rounds to ``k / max(h, w)`` cycles per pixel.  Bins beyond
    Nyquist (the corners) have an index of ``max(h, w) // 2 + 1`` or more.
    """
    h, w = shape
    fy, fx = np.fft.fftfreq(h)[:, None], np.fft.rfftfreq(w)[None, :]
    rings = np.rint(np.hypot(fy, fx) * max(shape)).astype(np.int32)
    rings.flags.writeable = False
    return rings


def ring_sums(values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Sum real values on the bins of ``rfft2`` over rings of the whole Fourier plane.

    Bins whose mirror image ``rfft2`` leaves out count twice, so sums and counts are those of ``fft2``.

    Parameters
    ----------
    values : ndarray, shape (..., h, w // 2 + 1)
        Powers ``|X|²`` or cross-powers ``Re(X Y*)``.
    shape : (h, w)
        Of the image.

    Returns
    -------
    ndarray, shape (..., n_rings), float64
    """
    shape = tuple(shape)
    n = max(shape) // 2 + 1
    index = ring_index(shape).ravel()
    twice = _multiplicity(shape[1])
    flat = (np.asarray(values) * twice).reshape(-1, index.size)
    sums = [np.bincount(index, weights=row, minlength=n)[:n] for row in flat]
    return np.stack(sums).reshape(*np.shape(values)[:-2], n)


def ring_counts(shape: tuple[int, int]) -> np.ndarray:
    """Return the number of Fourier bins (of the whole plane) in each ring, shape (n_rings,)."""
    return ring_sums(np.ones((shape[0], shape[1] // 2 + 1), dtype=np.float32), shape)


def cross_power(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return ``Re(X Y*)`` of two spectra of one shape; with ``x is y`` the power ``|X|²``."""
    return x.real * y.real + x.imag * y.imag


def correlation(xy: np.ndarray, xx: np.ndarray, yy: np.ndarray) -> np.ndarray:
    """Return ``xy / sqrt(xx yy)``; nan where a power is not positive."""
    product = np.asarray(xx, dtype=np.float64) * yy
    ok = (np.asarray(xx) > 0) & (np.asarray(yy) > 0)
    return np.where(ok, xy / np.sqrt(np.where(ok, product, 1.0)), np.nan)


def frc(x: np.ndarray, y: np.ndarray, edge: int = 0) -> np.ndarray:
    """Fourier ring correlation of two images (Saxton & Baumeister 1982; van Heel 1987).

    Parameters
    ----------
    x, y : ndarray, shape (h, w)
    edge : int
        Taper this many pixels at each edge after removing the mean (see `edge_taper`); 0 for none.

    Returns
    -------
    ndarray, shape (n_rings,), float64
        For ring k at ``k / (max(h, w) * pixel_size)`` 1/Å; nan where an image has no power (ring 0 of
        images with mean 0, or after a taper).
    """
    if x.shape != y.shape or x.ndim != 2:
        raise ValueError(f"frc: wanted two images of one shape, got {x.shape} and {y.shape}")
    sx, sy = (windowed_spectrum(i, edge) for i in (x, y))
    return correlation(*(ring_sums(cross_power(p, q), x.shape) for p, q in ((sx, sy), (sx, sx), (sy, sy))))


@lru_cache(maxsize=4)
def edge_taper(shape: tuple[int, int], edge: int) -> np.ndarray:
    """Return a window (h, w), float32, that is 1 inside and falls to 0 by a raised cosine at each edge.

    A micrograph does not go on at its other side; without a taper that jump leaks the strong low
    frequencies (ice gradients) into all rings along the axes.

    Parameters
    ----------
    shape : (h, w)
    edge : int
        Pixels of the slope, less than half the shorter side.
    """
    if not 0 <= edge <= min(shape) // 2:
        raise ValueError(f"edge_taper: {edge} px on an image of {shape}; wanted 0 to {min(shape) // 2}")
    slope = 0.5 - 0.5 * np.cos(np.pi * (np.arange(edge) + 0.5) / max(edge, 1))
    lines = []
    for n in shape:
        line = np.ones(n, dtype=np.float32)
        line[:edge], line[n - edge :] = slope, slope[::-1]
        lines.append(line)
    window = lines[0][:, None] * lines[1][None, :]
    window.flags.writeable = False
    return window


def windowed_spectrum(image: np.ndarray, edge: int = 0) -> np.ndarray:
    """Return ``rfft2`` of an image (..., h, w); with `edge` > 0 mean-free and tapered first."""
    if edge:
        mean = image.mean(axis=(-2, -1), keepdims=True, dtype=np.float64).astype(image.dtype)
        image = (image - mean) * edge_taper(tuple(image.shape[-2:]), edge)
    return fft.rfft2(image)


def fourier_crop(image: np.ndarray, bin: int) -> np.ndarray:
    """Bin an image by cropping its Fourier transform; the mean value is kept.

    The result is the image, band-limited to the new Nyquist frequency, sampled at the raw pixels
    0, bin, 2·bin …: a raw coordinate x (pixel centres at integers) becomes exactly ``x / bin``, and
    the pixel size exactly ``bin`` times the old one.  Up to ``bin - 1`` last rows and columns that
    do not fill a new pixel are left out.

    Parameters
    ----------
    image : ndarray, shape (..., h, w)
    bin : int
        1 or more.

    Returns
    -------
    ndarray, shape (..., h // bin, w // bin)
        float32 (for float64 input, float64).  A sum per raw pixel becomes the mean sum per raw
        pixel; multiply by ``bin**2`` for electrons per new pixel.
    """
    h, w = (n // bin if bin >= 1 else 0 for n in image.shape[-2:])
    if int(bin) != bin or h < 1 or w < 1:
        raise ValueError(
            f"fourier_crop: bin {bin} on an image of shape {image.shape}; wanted an integer >= 1 that fits"
        )
    bin = int(bin)
    image = _floating(image)[..., : h * bin, : w * bin]
    if bin == 1:
        return image.copy()
    spectrum = crop_spectrum(fft.rfft2(image), image.shape[-2:], (h, w))
    return fft.irfft2(spectrum, s=(h, w))


def crop_spectrum(spectrum: np.ndarray, shape: tuple[int, int], new_shape: tuple[int, int]) -> np.ndarray:
    """Crop ``rfft2`` of an image of `shape` to that of the same field in `new_shape` pixels, mean kept.

    The two bins that fall together on an even new Nyquist frequency are added, as sampling does.

    Parameters
    ----------
    spectrum : ndarray, shape (..., h, w // 2 + 1)
    shape, new_shape : (h, w)
        `new_shape` at most `shape` on both axes.
    """
    (h, w), (nh, nw) = shape, new_shape
    up = (nh + 1) // 2  # frequencies 0 … up-1; then -(nh // 2) … -1
    out = np.concatenate([spectrum[..., :up, : nw // 2 + 1], spectrum[..., h - nh // 2 :, : nw // 2 + 1]], axis=-2)
    if nh % 2 == 0 and nh < h:
        out[..., nh // 2, :] += spectrum[..., nh // 2, : nw // 2 + 1]
    if nw % 2 == 0 and nw < w:
        out[..., :, nw // 2] *= 2  # the inverse transform takes the mean of this column and its mirror
    out *= out.real.dtype.type(nh * nw / (h * w))
    return out


def fourier_shift(image: np.ndarray, shift: tuple[float, float] | np.ndarray) -> np.ndarray:
    """Move an image's content by `shift` pixels, periodically, by a phase ramp in Fourier space.

    An integer shift equals ``np.roll(image, shift, axis=(-2, -1))``.  The shift is unitary: no power
    is lost, noise stays as white as it was, and the shift back restores the image.

    Parameters
    ----------
    image : ndarray, shape (..., h, w)
    shift : (dy, dx), or ndarray of shape (..., 2)
        In pixels; content at y goes to y + dy.  One for all images, or one for each.

    Returns
    -------
    ndarray, shape (..., h, w)
        float32 (for float64 input, float64).
    """
    image = _floating(image)
    spectrum = fft.rfft2(image)
    spectrum *= shift_phase(image.shape[-2:], shift, spectrum.dtype)
    return fft.irfft2(spectrum, s=image.shape[-2:])


def shift_phase(
    shape: tuple[int, int], shift: tuple[float, float] | np.ndarray, dtype: np.dtype | type = np.complex64
) -> np.ndarray:
    """Return the factor by which ``rfft2`` is multiplied to move content by `shift` pixels.

    Parameters
    ----------
    shape : (h, w)
    shift : array_like, shape (..., 2)
        (dy, dx) in pixels.
    dtype : complex dtype

    Returns
    -------
    ndarray, shape (..., h, w // 2 + 1)
    """
    rows, columns = shift_phase_axes(shape, shift, dtype)
    return rows[..., :, None] * columns[..., None, :]


def shift_phase_axes(
    shape: tuple[int, int], shift: tuple[float, float] | np.ndarray, dtype: np.dtype | type = np.complex64
) -> tuple[np.ndarray, np.ndarray]:
    """Return the factors of rows (..., h) and columns (..., w // 2 + 1) whose product is `shift_phase`."""
    shift = np.asarray(shift, dtype=np.float64)
    (h, w), dy, dx = shape, shift[..., 0, None], shift[..., 1, None]
    rows = np.exp(-2j * np.pi * np.fft.fftfreq(h) * dy)
    columns = np.exp(-2j * np.pi * np.fft.rfftfreq(w) * dx)
    # At the Nyquist frequency of an even side a real image cannot hold a fractional shift: cos(pi d)
    # would lose power.  The sign of the nearest integer shift keeps the operation unitary.
    if h % 2 == 0:
        rows[..., h // 2] = (-1.0) ** np.rint(dy[..., 0])
    if w % 2 == 0:
        columns[..., w // 2] = (-1.0) ** np.rint(dx[..., 0])
    return rows.astype(dtype), columns.astype(dtype)


def _multiplicity(w: int) -> np.ndarray:
    """How often each column of ``rfft2`` occurs in ``fft2``, shape (w // 2 + 1,), float32."""
    twice = np.full(w // 2 + 1, 2, dtype=np.float32)
    twice[0] = 1
    if w % 2 == 0:
        twice[-1] = 1
    return twice


def _floating(image: np.ndarray) -> np.ndarray:
    """Return the image as float32, or as float64 where it is that already."""
    image = np.asarray(image)
    return image if image.dtype in (np.float32, np.float64) else image.astype(np.float32)
