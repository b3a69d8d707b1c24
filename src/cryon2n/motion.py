"""Global motion correction: one trajectory per movie, by iterative leave-one-out correlation.

Signs: ``trajectory[t]`` is where frame t's content stands relative to frame 0, so that
``frame_t(y) = clean(y - trajectory[t])``.  Everything works on half-plane spectra (``rfft2``) that
are already Fourier-cropped to the output grid.
"""

from dataclasses import dataclass

import numpy as np
from scipy import fft

from cryon2n import fourier
from cryon2n.errors import InputError


@dataclass(frozen=True)
class MotionSettings:
    """Settings of the alignment.

    Attributes
    ----------
    b_factor : float
        Å²; the correlation is weighted by exp(-b_factor s² / 4) per spectrum.
    resolution_A : float
        Å; finer frequencies do not take part in the correlation.
    max_shift_A : float
        Å; the largest shift between a frame and the sum of the others.
    smoothness : float
        Weight of the squared second differences of the trajectory (Whittaker smoothing).
    max_iterations : int
        Rounds of correlation.
    tolerance_px : float
        Output pixels; stop when no shift changes by more.
    """

    b_factor: float = 300.0
    resolution_A: float = 5.0
    max_shift_A: float = 60.0
    smoothness: float = 1.0
    max_iterations: int = 10
    tolerance_px: float = 0.02

    def __post_init__(self) -> None:
        for name in ("resolution_A", "max_shift_A", "tolerance_px"):
            if getattr(self, name) <= 0:
                raise InputError(f"motion setting {name}: found {getattr(self, name)}, wanted more than 0")
        if self.b_factor < 0 or self.smoothness < 0 or self.max_iterations < 1:
            raise InputError("motion settings: b_factor and smoothness must not be negative, max_iterations at least 1")


def align_frames(
    spectra: np.ndarray, shape: tuple[int, int], pixel_size: float, settings: MotionSettings
) -> np.ndarray:
    """Estimate the trajectory of a movie.

    Each frame is correlated with the sum of all *other* frames at their current shifts, so that its
    own noise never attracts it; the peak is refined by a parabola; after convergence the trajectory
    is smoothed.

    Parameters
    ----------
    spectra : ndarray, shape (n_frames, h, w // 2 + 1), complex
        Half-plane spectra of the frames on the output grid.
    shape : (int, int)
        Rows and columns of that grid.
    pixel_size : float
        Å, of that grid.
    settings : MotionSettings

    Returns
    -------
    trajectory : ndarray, shape (n_frames, 2)
        [y, x] in Å relative to frame 0.
    """
    n = spectra.shape[0]
    small = tuple(min(size, 2 * int(np.ceil(size * pixel_size / settings.resolution_A))) for size in shape)
    frames = fourier.crop_spectrum(spectra, shape, small)
    weight = _correlation_weight(small, shape, pixel_size, settings)
    frames *= weight
    px_A = np.array([pixel_size * shape[0] / small[0], pixel_size * shape[1] / small[1]])
    reach = np.minimum(np.ceil(settings.max_shift_A / px_A).astype(int), (np.array(small) - 1) // 2)

    shifts = np.zeros((n, 2))
    for _ in range(settings.max_iterations):
        aligned = frames * fourier.shift_phase(small, -shifts)
        total = aligned.sum(0)
        # Leave-one-out reference, conjugated: the peak stands where the frame's content stands.
        residual = np.array([_peak((total - frame).conj() * frame, small, reach) for frame in aligned])
        shifts = shifts + residual
        shifts -= shifts.mean(0)
        if np.abs(residual - residual.mean(0)).max() * px_A.max() < settings.tolerance_px * pixel_size:
            break
    shifts = smooth_trajectory(shifts, settings.smoothness)
    return (shifts - shifts[0]) * px_A


def _correlation_weight(
    small: tuple[int, int], shape: tuple[int, int], pixel_size: float, settings: MotionSettings
) -> np.ndarray:
    """Weights (h, w // 2 + 1) of one spectrum; zero at the origin and beyond the resolution limit."""
    sy = np.fft.fftfreq(small[0]) * small[0] / (shape[0] * pixel_size)
    sx = np.fft.rfftfreq(small[1]) * small[1] / (shape[1] * pixel_size)
    s2 = sy[:, None] ** 2 + sx[None, :] ** 2
    weight = np.exp(-settings.b_factor * s2 / 4)
    weight[s2 > settings.resolution_A**-2] = 0
    weight[0, 0] = 0
    return weight.astype(np.float32)


def _peak(cross: np.ndarray, shape: tuple[int, int], reach: np.ndarray) -> np.ndarray:
    """Return the [y, x] of the highest correlation within `reach`, refined by parabolas."""
    correlation = fft.irfft2(cross, s=shape)
    rows = np.arange(-reach[0], reach[0] + 1)
    columns = np.arange(-reach[1], reach[1] + 1)
    window = correlation[rows % shape[0]][:, columns % shape[1]]
    y, x = np.unravel_index(int(window.argmax()), window.shape)
    out = np.array([rows[y], columns[x]], float)
    if 0 < y < len(rows) - 1:
        out[0] += _vertex(window[y - 1, x], window[y, x], window[y + 1, x])
    if 0 < x < len(columns) - 1:
        out[1] += _vertex(window[y, x - 1], window[y, x], window[y, x + 1])
    return out


def _vertex(left: float, middle: float, right: float) -> float:
    """Position of the vertex of the parabola through three equidistant points, from the middle one."""
    curvature = left - 2 * middle + right
    return 0.0 if curvature >= 0 else float(0.5 * (left - right) / curvature)


def smooth_trajectory(shifts: np.ndarray, smoothness: float) -> np.ndarray:
    """Whittaker smoothing: the y that minimises |y - shifts|² + smoothness |second differences of y|².

    Parameters
    ----------
    shifts : ndarray, shape (n_frames, 2)
    smoothness : float
    """
    n = len(shifts)
    if n < 3 or smoothness == 0:
        return shifts
    second = np.diff(np.eye(n), 2, axis=0)
    return np.linalg.solve(np.eye(n) + smoothness * second.T @ second, shifts)
