"""Motion fields, as every part of the benchmark exchanges them.

A frame of a movie is the clean image, moved: ``frame_t(y) = clean(y - d(t, y))``.  A field gives that
displacement in Å, (y, x), at places in pixels.  Programs differ in where the place is: ``d(t, y)`` at the
place y in the frame, or ``e(t, x)`` at the place x in the corrected image, ``corrected(x) = frame_t(x + e(t, x))``.
With a drift of 30 Å and a field that changes by 0.5 % the two differ by 0.15 Å, so all is compared as e.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.interpolate import BSpline, make_interp_spline

# Between the places at which smooth fields are evaluated before interpolation:
COARSE_STEP = 48  # pixels, at least, and
COARSE_STEPS = 40  # along a side, at most


@dataclass(frozen=True)
class Field:
    """A motion field.

    Attributes
    ----------
    displacement : callable
        (frame t, places (k, 2) in pixels) -> (k, 2) in Å, all (y, x).
    n : int
        Frames.
    pixel_size : float
        Å.
    in_frame : bool
        The places are those in the frame; else those in the corrected image.
    """

    displacement: Callable[[int, np.ndarray], np.ndarray]
    n: int
    pixel_size: float
    in_frame: bool

    def corrected(self, places: np.ndarray) -> np.ndarray:
        """Return ``e(t, x)`` in Å, shape (n, k, 2), at places x (k, 2) in pixels of the corrected image."""
        return np.stack([self._corrected(t, places) for t in range(self.n)])

    def _corrected(self, t: int, places: np.ndarray) -> np.ndarray:
        found = self.displacement(t, places)
        if self.in_frame:
            # y = x + d(t, y) by fixed-point iteration: it gains a factor of 1/slope (100 or more) each time.
            for _ in range(5):
                found = self.displacement(t, places + found / self.pixel_size)
        return found


def constant(trajectory: np.ndarray, pixel_size: float) -> Field:
    """Return the field of a trajectory (n, 2) in Å: the same everywhere."""
    return Field(
        lambda t, places: np.broadcast_to(trajectory[t], places.shape), len(trajectory), pixel_size, in_frame=False
    )


def from_grid(values: np.ndarray, shape: tuple[int, int], pixel_size: float) -> Field:
    """Return a field of the corrected image from values (n, gh, gw, 2) in Å on a regular grid.

    The grid's first and last places are the middles of the first and last pixels of an image of `shape`.
    """
    splines = [interpolation(np.linspace(0, n - 1, size)) for n, size in zip(shape, values.shape[1:3], strict=True)]

    def displacement(t: int, places: np.ndarray) -> np.ndarray:
        rows, columns = (splines[axis](np.clip(places[:, axis], 0, shape[axis] - 1)) for axis in (0, 1))
        return np.einsum("kj,kjc->kc", columns, np.tensordot(rows, values[t], 1))

    return Field(displacement, len(values), pixel_size, in_frame=False)


def interpolation(knots: np.ndarray) -> BSpline:
    """Return the cubic spline that gives, at places (k,), the matrix (k, n) which interpolates values on n `knots`."""
    return make_interp_spline(knots, np.eye(len(knots)), k=min(3, len(knots) - 1))


def grid(shape: tuple[int, int], number: int) -> np.ndarray:
    """Return the middles (number², 2) in pixels of `number` × `number` cells of an image."""
    axes = [(np.arange(number) + 0.5) * n / number - 0.5 for n in shape]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)


@dataclass(frozen=True)
class Coarse:
    """Places that are dense enough for a smooth field, and how to get from them to every pixel.

    Attributes
    ----------
    places : ndarray, shape (k, 2)
        Pixels.
    rows, columns : ndarray, shape (h, gh) and (w, gw)
        ``rows @ values @ columns.T`` interpolates values (gh, gw) to (h, w).
    """

    places: np.ndarray
    rows: np.ndarray
    columns: np.ndarray

    def dense(self, values: np.ndarray, device: torch.device | str) -> torch.Tensor:
        """Interpolate displacements (k, 2) at `places` to every pixel, shape (2, h, w), float32."""
        rows, columns, grids = (torch.as_tensor(a, device=device) for a in (self.rows, self.columns, values))
        grids = grids.reshape(rows.shape[1], columns.shape[1], 2).permute(2, 0, 1)
        return (rows @ grids @ columns.T).float()


def coarse(shape: tuple[int, int]) -> Coarse:
    """Return the coarse places of an image of `shape`."""
    axes = [np.linspace(0, n - 1, max(5, min(COARSE_STEPS, -(-n // COARSE_STEP)) + 1)) for n in shape]
    places = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
    rows, columns = (interpolation(axis)(np.arange(n)) for axis, n in zip(axes, shape, strict=True))
    return Coarse(places, rows, columns)
