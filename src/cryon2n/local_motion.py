"""Motion that differs from place to place: patches scored together, and a smooth field that explains them.

Each patch alone tells little; a Gaussian process ties them together: smooth in space, and in time fast at
the beginning of the exposure and slow later.  Its width and lengths are those that make the data most
probable, so that a movie without local motion gets none.  In the end a field fitted to every other patch
must explain the patches between, which it has not seen, or it is thrown away.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from scipy import interpolate

from cryon2n import alignment, motion_prior

if TYPE_CHECKING:
    from cryon2n.motion import MotionSettings

KNOTS = 7  # of the stored field along each side
ACCEPT = 4.0  # log-likelihood that unseen patches must gain, in all
ROUNDS = 4
MOST_PATCHES = 12  # along a side
AT_ONCE = {"cpu": 1, "cuda": 16}  # frames that are cut, or patches that are moved, together; bounds the memory


@dataclass(frozen=True)
class LocalField:
    """What is added to the trajectory at each place.

    Places are those of the image whose frames are moved back to the *mean* of the trajectory.

    Attributes
    ----------
    knots_A : ndarray, shape (n_frames, KNOTS, KNOTS, 2)
        [y, x] Å on a regular grid from edge to edge; cubic splines in between.
    """

    knots_A: np.ndarray

    def at(self, points: np.ndarray) -> np.ndarray:
        """Return the local motion, shape (n_frames, k, 2) in Å, at [y, x] (k, 2) in fractions of the frame."""
        y, x = (spline_matrix(self.knots_A.shape[1 + axis], points[:, axis]) for axis in (0, 1))
        return np.einsum("ki,kj,tijc->tkc", y, x, self.knots_A)

    def sampling(
        self, shape: tuple[int, int], offset: np.ndarray, pixel_size: float, device: torch.device | str
    ) -> Callable[[int], torch.Tensor]:
        """Return a function that gives where each pixel of a frame is to be taken from, shape (h, w, 2).

        At pixel (y, x) of the image, which lies at ``(y, x) + offset`` pixels of the field: [x, y] plus the local
        motion, on a scale where the first pixel's centre is -1 and the last one's 1, as torch's ``grid_sample`` takes
        it with ``align_corners``.

        Parameters
        ----------
        shape : (h, w)
        offset : ndarray, shape (2,)
            [y, x] in pixels.
        pixel_size : float
            Å.
        device : torch.device or str
        """
        splines = [spline_matrix(KNOTS, (np.arange(s) + by) / s) for s, by in zip(shape, offset, strict=True)]
        lines = [np.linspace(-1, 1, size) for size in shape]
        # Two sums of products of a function of y and one of x, as one matrix product whose even columns are x.
        ones = [np.ones_like(line) for line in lines]
        right = np.zeros((2 * KNOTS + 2, shape[1], 2))
        right[:KNOTS, :, 0], right[KNOTS, :, 0] = splines[1].T, lines[1]
        right[KNOTS + 1 : -1, :, 1], right[-1, :, 1] = splines[1].T, ones[1]
        across = torch.as_tensor(right.reshape(len(right), -1), dtype=torch.float32, device=device)

        def at(frame: int) -> torch.Tensor:
            y, x = (
                splines[0] @ self.knots_A[frame, ..., axis] * (2 / (shape[axis] - 1) / pixel_size) for axis in (0, 1)
            )
            down = np.concatenate([x, ones[0][:, None], y, lines[0][:, None]], 1)
            return (torch.as_tensor(down, dtype=torch.float32, device=device) @ across).view(*shape, 2)

        return at


def spline_matrix(knots: int, at: np.ndarray) -> np.ndarray:
    """Return the matrix (k, knots) that takes values at regular knots on 0 to 1 to those at `at`."""
    return interpolate.make_interp_spline(np.linspace(0, 1, knots), np.eye(knots), k=3)(at)


# Patches


@dataclass(frozen=True)
class Patches:
    """Overlapping windows of globally aligned frames; the squares of the windows sum to 1 at each pixel.

    Attributes
    ----------
    grid : Grid
    images : tensor, shape (p, n, h, w // 2 + 1), complex64
        Spectra; each divided by the root mean square of its window.
    centres : ndarray, shape (p, 2)
        [y, x] in fractions of the frame.
    areas : ndarray, shape (p,)
        Mean square of each window.
    cells : ndarray of int, shape (p, 2)
        Row and column of each patch.
    """

    grid: alignment.Grid
    images: torch.Tensor
    centres: np.ndarray
    areas: np.ndarray
    cells: np.ndarray


def windows(size: int, count: int) -> np.ndarray:
    """Return `count` windows of a side, shape (count, size); their squares sum to 1 everywhere."""
    at = (np.arange(size) + 0.5) / size * count - 0.5  # centres of the windows lie at 0, 1, 2 …
    out = np.zeros((count, size))
    for i in range(count):
        distance = np.clip(np.abs(np.clip(at, 0, count - 1) - i), 0, 1)
        out[i] = np.where(distance < 1, np.cos(np.pi / 2 * distance), 0)
    return out


def cut_patches(grid: alignment.Grid, images: torch.Tensor, counts: tuple[int, int], low_A: float) -> Patches:
    """Cut aligned frames, given by their spectra, into patches.

    Parameters
    ----------
    grid : Grid
    images : tensor, shape (n, h, w // 2 + 1), complex64
    counts : (rows, columns)
    low_A : float
        Å; coarser detail takes no part.
    """
    device = images.device
    sides = [_strips(size, count) for size, count in zip(grid.shape, counts, strict=True)]
    size = tuple(side.at.shape[1] for side in sides)
    high_A = 1 / (grid.ring_s[grid.counts > 0].max() + 0.5 * grid.ring_width)
    patch_grid = alignment.make_grid(size, grid.pixel_A, low_A, high_A, device)
    cells = np.array([(i, j) for i in range(counts[0]) for j in range(counts[1])])
    y, x = (torch.as_tensor(side.at.ravel(), device=device) for side in sides)
    along_y, along_x = (torch.as_tensor(side.window, dtype=torch.float32, device=device) for side in sides)
    window = along_y[:, None, :, None] * along_x[None, :, None, :]
    spectra = torch.empty(len(cells), len(images), size[0], size[1] // 2 + 1, dtype=torch.complex64, device=device)
    band = grid.inside.clamp_max(1)
    step = AT_ONCE[device.type]
    for t in range(0, len(images), step):
        frames = torch.fft.irfft2(images[t : t + step] * band, s=grid.shape)
        cut = frames[:, y][:, :, x].view(len(frames), counts[0], size[0], counts[1], size[1]).transpose(2, 3)
        spectra[:, t : t + step] = torch.fft.rfft2(cut * window).flatten(1, 2).transpose(0, 1)
    centres, areas = (
        np.stack([one[cells[:, axis]] for axis, one in enumerate(both)], 1)
        for both in ([side.centre for side in sides], [side.area for side in sides])
    )
    return Patches(patch_grid, spectra, centres, areas.prod(1), cells)


class _Strips(NamedTuple):
    """The windows of one side, each cut out where it is not 0.

    Attributes
    ----------
    at : ndarray of int, shape (count, length)
        Which pixels; within the image.
    window : ndarray, shape (count, length)
        Divided by the root of its mean square; 0 where a strip reaches past the image.
    centre : ndarray, shape (count,)
        In fractions of the side.
    area : ndarray, shape (count,)
        The window's mean square.
    """

    at: np.ndarray
    window: np.ndarray
    centre: np.ndarray
    area: np.ndarray


def _strips(size: int, count: int) -> _Strips:
    from cryon2n.motion import fast_size

    lines = windows(size, count)
    begin = (lines > 0).argmax(1)
    longest = size - (lines[:, ::-1] > 0).argmax(1) - begin
    at = begin[:, None] + np.arange(fast_size(int(longest.max())))
    inside, at = at < size, at.clip(0, size - 1)
    window = np.take_along_axis(lines, at, 1) * inside
    power = (window**2).sum(1)
    area = power / at.shape[1]
    return _Strips(at, window / np.sqrt(area)[:, None], (window**2 * at).sum(1) / power / size, area)


def estimate_local(
    grid: alignment.Grid, images: torch.Tensor, dose_per_frame: float | None, settings: "MotionSettings"
) -> tuple[LocalField | None, np.ndarray, dict[str, Any]]:
    """Look for local motion in globally aligned frames.

    Parameters
    ----------
    grid : Grid
    images : tensor, shape (n, h, w // 2 + 1), complex64
        Moved back by the trajectory.
    dose_per_frame : float or None
        e⁻/Å².
    settings : MotionSettings

    Returns
    -------
    field : LocalField or None
        None if nothing was found that holds on unseen patches.
    correction : ndarray, shape (n, 2)
        What of it is common to all places, in Å, to be added to the trajectory.
    info : dict
    """
    n = len(images)
    sides = np.array([s * p for s, p in zip(grid.shape, grid.pixel_A, strict=True)])
    counts = tuple(int(np.clip(round(side / settings.patch_A), 2, MOST_PATCHES)) for side in sides)
    patches = cut_patches(grid, images, counts, settings.patch_A / 2)
    q = alignment.damage_factors(patches.grid, n, dose_per_frame)
    aspect = sides / sides.max()
    priors = motion_prior.make_priors(patches.centres, aspect, n)
    shifts = np.zeros((len(patches.centres), n, 2))
    for _ in range(ROUNDS):
        spectrum = alignment.measure_spectrum(patches.grid, patches.images, q)
        weights = alignment.make_weights(patches.grid, spectrum, q)
        gradient = alignment.gradients(patches.grid, weights, patches.images, patches.areas[:, None, None])
        told = gradient + (patches.areas[:, None] * weights.information)[..., None] * shifts
        evidence, prior = motion_prior.best_prior(priors, told, patches.areas, weights.information)
        if evidence <= 0:  # that of no motion at all
            return None, np.zeros((n, 2)), {"patches": list(counts)}
        coefficients, _ = motion_prior.fit(prior, told, patches.areas, weights.information)
        new = motion_prior.evaluate(prior.space, prior.frames, coefficients)
        step = new - shifts
        alignment.move_back(patches.grid, patches.images, step)
        shifts = new
        if np.abs(step).max() < 0.02:
            break
    gain = _gain_on_unseen(patches, weights, prior, told, shifts)
    info = {
        "patches": list(counts),
        "local_width_A": prior.width,
        "local_length": prior.length,
        "unseen_gain": round(float(gain), 2),
    }
    if gain < ACCEPT:
        return None, np.zeros((n, 2)), info
    fractions = np.linspace(0, 1, KNOTS)
    points = np.stack(np.meshgrid(fractions, fractions, indexing="ij"), -1).reshape(-1, 2)
    knots = motion_prior.evaluate(prior.extended(points, patches.centres, aspect), prior.frames, coefficients)
    knots = knots.transpose(1, 0, 2).reshape(n, KNOTS, KNOTS, 2)
    mean = shifts.mean(0)
    return LocalField(knots - knots[:1] - (mean - mean[:1])[:, None, None]), mean - mean[:1], info


def _gain_on_unseen(
    patches: Patches, weights: alignment.Weights, prior: motion_prior.Prior, told: np.ndarray, shifts: np.ndarray
) -> float:
    """Return the log-likelihood that patches gain by a field fitted to the other half of the patches."""
    moved = np.zeros_like(shifts)
    colour = patches.cells.sum(1) % 2
    for fold in (0, 1):
        seen, unseen = colour == fold, colour != fold
        solution, _ = motion_prior.fit(prior, told * seen[:, None, None], patches.areas * seen, weights.information)
        moved[unseen] = motion_prior.evaluate(prior.space, prior.frames, solution)[unseen]
    with_field, without = (_likelihoods(patches, weights, wanted - shifts) for wanted in (moved, np.zeros_like(moved)))
    return float(patches.areas @ (with_field - without))


def _likelihoods(patches: Patches, weights: alignment.Weights, shifts: np.ndarray) -> np.ndarray:
    """Return the log-likelihood (p,) of the patches' images, moved back by `shifts` (p, n, 2) in Å, areas aside."""
    step, told = AT_ONCE[patches.images.device.type], []
    for p in range(0, len(patches.images), step):
        rows, columns = alignment.phases(patches.grid, shifts[p : p + step])
        scenes = ((patches.images[p : p + step] * rows[..., None]).mul_(columns[..., None, :])).sum(1)
        told.append(alignment.likelihood(weights, scenes))
    return torch.cat(told).double().cpu().numpy()
