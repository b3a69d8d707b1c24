"""Motion of a movie: one trajectory for the whole frame, and how each place departs from it.

Signs: ``trajectory[t]`` is where frame t's content stands relative to frame 0, so that
``frame_t(y) = clean(y - d(t, y))`` with ``d = trajectory + local``.

First every frame is correlated with the sum of the others at low resolution, from no knowledge at all;
then the likelihood of all frames is maximised (`alignment`) with a prior for smooth trajectories; then
patches are scored the same way and a smooth field is fitted to what they tell together (`local_motion`),
which is kept only if it explains patches that the fit has not seen.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from cryon2n import alignment, local_motion
from cryon2n.errors import InputError

LOW_A = 250.0  # coarser detail is ice and illumination more than specimen
ACCELERATIONS = np.geomspace(0.01, 10.0, 13)  # Å per frame²: candidates for the prior's width


@dataclass(frozen=True)
class MotionSettings:
    """Settings of the alignment.

    Attributes
    ----------
    resolution_A : float
        Å; finer detail does not take part.
    coarse_A : float
        Å; resolution of the first search.
    b_factor : float
        Å²; weight exp(-b_factor s² / 4) of the first search, per spectrum.
    max_shift_A : float
        Å; the largest shift that the first search takes, between a frame and the mean of all.
    local : bool
        Whether to look for motion that differs from place to place.
    local_resolution_A : float
        Å; finer detail has no part in the search for local motion.  Its number of pixels is what that costs.
    patch_A : float
        Å; distance of the patches' centres, about.
    max_iterations : int
        Rounds of each search.
    tolerance_A : float
        Å; stop when no shift changes by more.
    """

    resolution_A: float = 4.0
    coarse_A: float = 12.0
    b_factor: float = 500.0
    max_shift_A: float = 80.0
    local: bool = True
    local_resolution_A: float = 7.0
    patch_A: float = 300.0
    max_iterations: int = 10
    tolerance_A: float = 0.01

    def __post_init__(self) -> None:
        for name in ("resolution_A", "coarse_A", "local_resolution_A", "max_shift_A", "patch_A", "tolerance_A"):
            if getattr(self, name) <= 0:
                raise InputError(f"motion setting {name}: found {getattr(self, name)}, wanted more than 0")
        if self.b_factor < 0 or self.max_iterations < 1:
            raise InputError("motion settings: b_factor must not be negative, max_iterations at least 1")


@dataclass(frozen=True)
class Motion:
    """How a movie's content moved.

    Attributes
    ----------
    trajectory_A : ndarray, shape (n_frames, 2)
        [y, x] Å relative to frame 0: the mean over the frame.
    local : LocalField or None
        What to add at each place; None if nothing was found that holds.
    info : dict
        How it was found: resolution used, prior, likelihoods.
    """

    trajectory_A: np.ndarray
    local: "local_motion.LocalField | None" = None
    info: dict[str, Any] = field(default_factory=dict)

    def field(self, points: np.ndarray) -> np.ndarray:
        """Return the motion at places, shape (n_frames, k, 2) in Å.

        Parameters
        ----------
        points : ndarray, shape (k, 2)
            [y, x] as fractions of height and width, 0 to 1, of the image whose frames are moved back to
            the mean of the trajectory.
        """
        out = np.repeat(self.trajectory_A[:, None], len(points), axis=1)
        return out if self.local is None else out + self.local.at(points)

    def extremes(self) -> np.ndarray:
        """Return motions that enclose all of them: those at the knots of the local field, shape (k, 2) in Å."""
        if self.local is None:
            return self.trajectory_A
        return (self.trajectory_A[:, None, None] + self.local.knots_A).reshape(-1, 2)


def estimate(
    spectra: torch.Tensor,
    shape: tuple[int, int],
    pixel_A: tuple[float, float],
    settings: MotionSettings | None = None,
    dose_per_frame: float | None = None,
) -> Motion:
    """Estimate the motion of a movie.

    Parameters
    ----------
    spectra : tensor, shape (n_frames, h, w // 2 + 1), complex64
        ``rfft2`` of the corrected frames, on any device.  Not changed.
    shape : (h, w)
        Of the frames, pixels.
    pixel_A : (y, x)
        Å per pixel.
    settings : MotionSettings, optional
    dose_per_frame : float, optional
        e⁻/Å²; weakens what later frames count at high resolution (Grant & Grigorieff, eLife 2015).

    Returns
    -------
    Motion
    """
    settings = settings or MotionSettings()
    start = _coarse(spectra, shape, pixel_A, settings)
    band, images = cut_band(spectra, shape, pixel_A, settings.resolution_A)
    q = alignment.damage_factors(band, len(images), dose_per_frame)
    if dose_per_frame:
        for t, factor in enumerate(q):
            images[t] *= alignment.on_bins(band, factor)
    trajectory, info = _refine(band, images, start, q, settings)
    found = None
    if settings.local:
        band, images = cut_band(images, band.shape, band.pixel_A, settings.local_resolution_A)
        found, correction, local_info = local_motion.estimate_local(band, images, dose_per_frame, settings)
        info.update(local_info)
        trajectory = trajectory + correction
    return Motion(trajectory - trajectory[0], found, info)


def estimate_apart(
    spectra: torch.Tensor,
    groups: Sequence[Sequence[int]],
    shape: tuple[int, int],
    pixel_A: tuple[float, float],
    settings: MotionSettings,
    dose_per_frame: float | None = None,
) -> Motion:
    """Estimate the motion of each group of frames from its own frames alone, then one shift between the groups.

    Parameters
    ----------
    spectra, shape, pixel_A, settings
        As for `estimate`.
    groups : two sequences of int
        Frame numbers.
    dose_per_frame : float, optional
        e⁻/Å² from one frame of a group to its next.
    """
    trajectory, sums = np.zeros((len(spectra), 2)), []
    knots = np.zeros((len(spectra), local_motion.KNOTS, local_motion.KNOTS, 2))
    parts = []
    for group in groups:
        members = list(group)
        part = estimate(spectra[members], shape, pixel_A, settings, dose_per_frame)
        grid, images = cut_band(spectra[members], shape, pixel_A, settings.resolution_A)
        alignment.move_back(grid, images, part.trajectory_A)
        sums.append(images.sum(0))
        trajectory[members] = part.trajectory_A
        if part.local is not None:
            knots[members] = part.local.knots_A
        parts.append(part)
    whole = dataclasses.replace(settings, local=False)
    between = estimate(torch.stack(sums), grid.shape, grid.pixel_A, whole).trajectory_A[1]
    trajectory[list(groups[1])] += between
    field = local_motion.LocalField(knots) if any(p.local is not None for p in parts) else None
    return Motion(trajectory, field, {"groups": [p.info for p in parts], "between_A": between.round(4).tolist()})


def cut_band(
    spectra: torch.Tensor, shape: tuple[int, int], pixel_A: tuple[float, float], resolution_A: float
) -> tuple[alignment.Grid, torch.Tensor]:
    """Return a copy of spectra, cut to a resolution, and its grid."""
    images, new, new_A = cut_spectra(spectra, shape, pixel_A, resolution_A)
    return alignment.make_grid(new, new_A, LOW_A, max(resolution_A, 2.02 * max(new_A)), images.device), images


def cut_spectra(
    spectra: torch.Tensor, shape: tuple[int, int], pixel_A: tuple[float, float], resolution_A: float
) -> tuple[torch.Tensor, tuple[int, int], tuple[float, float]]:
    """Return a copy of spectra, cut to a resolution: with its shape and pixel size; sizes that transform fast."""
    new = tuple(
        min(size, fast_size(int(np.ceil(2.04 * size * pixel / resolution_A))))
        for size, pixel in zip(shape, pixel_A, strict=True)
    )
    new_A = tuple(size * pixel / cut for size, pixel, cut in zip(shape, pixel_A, new, strict=True))
    rows, columns = (new[0] + 1) // 2, new[1] // 2 + 1
    below = new[0] // 2
    images = torch.cat([spectra[:, :rows, :columns], spectra[:, shape[0] - below :, :columns]], 1)
    return images, new, new_A


def fast_size(size: int) -> int:
    """Return the next even size from `size` on that has no prime factor beyond 5."""
    size += size % 2
    while True:
        rest = size
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return size
        size += 2


# The first search


def _coarse(
    spectra: torch.Tensor, shape: tuple[int, int], pixel_A: tuple[float, float], settings: MotionSettings
) -> np.ndarray:
    """Return trajectories (n, 2) in Å from whole correlation maps: rough, but from no knowledge at all."""
    grid, images = cut_band(spectra, shape, pixel_A, settings.coarse_A)
    images *= grid.inside.clamp_max(1) * alignment.on_bins(grid, np.exp(-settings.b_factor / 4 * grid.ring_s**2))
    reach = [
        min(int(np.ceil(settings.max_shift_A / p)), s // 2 - 1) for p, s in zip(grid.pixel_A, grid.shape, strict=True)
    ]
    shifts = np.zeros((len(images), 2))
    for _ in range(settings.max_iterations):
        steps = _peaks(images, grid, reach)
        steps = (steps - steps.mean(0)) * (len(images) - 1) / len(images)  # the others move, too
        steps = np.clip(shifts + steps, -settings.max_shift_A, settings.max_shift_A) - shifts
        alignment.move_back(grid, images, steps)
        shifts += steps
        if np.abs(steps).max() < 0.1 * min(grid.pixel_A):
            break
    return shifts - shifts.mean(0)


def _peaks(images: torch.Tensor, grid: alignment.Grid, reach: list[int]) -> np.ndarray:
    """Return how far each image (n, h, w // 2 + 1) stands from the sum of the others, (n, 2) in Å.

    The place [y, x] of the highest correlation within `reach` pixels, refined by parabolas.
    """
    total = images.sum(0)
    rows, columns = (
        torch.arange(-r, r + 1, device=images.device) % size for r, size in zip(reach, grid.shape, strict=True)
    )
    windows = []
    for some in images.split(local_motion.AT_ONCE[images.device.type]):
        correlation = torch.fft.irfft2((total - some).conj() * some, s=grid.shape)
        windows.append(correlation[:, rows[:, None], columns])
    return np.array([_peak(window, reach) for window in torch.cat(windows).cpu().numpy()]) * grid.pixel_A


def _peak(window: np.ndarray, reach: list[int]) -> np.ndarray:
    """Return the [y, x] of a window's highest value, in pixels from the middle."""
    y, x = np.unravel_index(int(window.argmax()), window.shape)
    peak = np.array([y - reach[0], x - reach[1]], float)
    if 0 < y < window.shape[0] - 1:
        peak[0] += _vertex(*window[y - 1 : y + 2, x])
    if 0 < x < window.shape[1] - 1:
        peak[1] += _vertex(*window[y, x - 1 : x + 2])
    return peak


def _vertex(left: float, middle: float, right: float) -> float:
    """Position of the vertex of the parabola through three equidistant points, from the middle one."""
    curvature = left - 2 * middle + right
    return 0.0 if curvature >= 0 else float(0.5 * (left - right) / curvature)


# Maximum likelihood with a smooth prior


def _refine(
    grid: alignment.Grid, images: torch.Tensor, start: np.ndarray, q: np.ndarray, settings: MotionSettings
) -> tuple[np.ndarray, dict[str, Any]]:
    """Refine trajectories (n, 2) in Å; `images` are left moved back by them."""
    alignment.move_back(grid, images, start)
    shifts, info = start.copy(), {}
    for _ in range(settings.max_iterations):
        weights = alignment.make_weights(grid, alignment.measure_spectrum(grid, images, q), q)
        gradient = alignment.gradients(grid, weights, images)
        wanted, info = smooth_trajectory(gradient, weights.information, shifts)
        step = wanted - shifts
        step -= step.mean(0)
        # Beyond a quarter of the first search's detail the parabola no longer holds.
        step *= min(1.0, settings.coarse_A / 4 / max(np.abs(step).max(), 1e-9))
        alignment.move_back(grid, images, step)
        shifts += step
        if np.abs(step).max() < settings.tolerance_A:
            break
    return shifts, info


def smooth_trajectory(
    gradient: np.ndarray, information: np.ndarray, shifts: np.ndarray
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the most probable trajectory, given what the images tell and that it is smooth.

    The prior: accelerations (second differences) are normal, and wider at the beginning of the exposure,
    where specimens move most.  Its width is the one that makes the data most probable.

    Parameters
    ----------
    gradient : ndarray, shape (n, 2)
        Of the log-likelihood at `shifts`, 1/Å.
    information : ndarray, shape (n,)
        Its expected negative curvature along either axis, 1/Å².
    shifts : ndarray, shape (n, 2)
        Å.

    Returns
    -------
    shifts : ndarray, shape (n, 2)
    info : dict
    """
    n = len(shifts)
    # All frames move, each against the others that move, too: together they need less than each alone.
    information = information * n / (n - 1)
    precision = np.diag(information + 1e-9)
    told = gradient + information[:, None] * shifts
    if n < 3:
        return np.linalg.solve(precision, told), {}
    second = np.diff(np.eye(n), 2, axis=0)
    early = 1 + 4 * np.exp(-np.arange(n - 2) / 3)
    rough = (second / early[:, None] ** 2).T @ second
    best = None
    for width in ACCELERATIONS:
        posterior = precision + rough / width**2
        mean = np.linalg.solve(posterior, told)
        # Evidence of the width, up to a constant; on each axis n - 2 accelerations are constrained.
        evidence = 0.5 * (told * mean).sum() - np.linalg.slogdet(posterior)[1] - 2 * (n - 2) * np.log(width)
        if best is None or evidence > best[0]:
            best = (evidence, width, mean)
    return best[2], {"acceleration_A": float(best[1])}
