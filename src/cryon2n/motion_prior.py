"""A smooth field of motion as a Gaussian process in space and time: priors, and the one that fits what patches tell.

Correlated over a length in space, and in time fast at the beginning of the exposure and slow later.  Width, length and
time are those that make the data most probable.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

WIDTHS_A = (0.3, 0.6, 1.2, 2.5, 5.0, 10.0)  # candidates: standard deviation of the local motion, Å
LENGTHS = (0.35, 0.6, 1.0, 1.8)  # … correlation length in space, in units of the longer side
TIMES = (0.5, 1.0)  # … in time, in units of log(1 + frame / 3)


@dataclass(frozen=True)
class Prior:
    """A Gaussian process in space and time, as functions whose coefficients are standard normal.

    Attributes
    ----------
    width, length, time : float
        Its standard deviation in Å, its length in units of the longer side, and its time.
    space : ndarray, shape (p, j)
        At the patches' centres.
    frames : ndarray, shape (n, k)
        At the frames; each column's mean is 0, because a shift of all frames shows nowhere.
    """

    width: float
    length: float
    time: float
    space: np.ndarray
    frames: np.ndarray

    def extended(self, points: np.ndarray, centres: np.ndarray, aspect: np.ndarray) -> np.ndarray:
        """Return the functions of space at other places (k, 2), shape (k, j)."""
        kernel = _space_kernel(centres, centres, aspect, self.length)
        return _space_kernel(points, centres, aspect, self.length) @ np.linalg.solve(
            kernel + 1e-8 * np.eye(len(centres)), self.space
        )


def make_prior(centres: np.ndarray, aspect: np.ndarray, n: int, width: float, length: float, time: float) -> Prior:
    """Return the prior of patches at `centres` (fractions of a frame whose sides are as `aspect`) and `n` frames."""
    u = np.log1p(np.arange(n) / 3) / time
    frames = np.exp(-0.5 * (u[:, None] - u) ** 2)
    centring = np.eye(n) - 1 / n
    return Prior(
        width,
        length,
        time,
        _functions(_space_kernel(centres, centres, aspect, length)),
        _functions(centring @ frames @ centring),
    )


def _space_kernel(a: np.ndarray, b: np.ndarray, aspect: np.ndarray, length: float) -> np.ndarray:
    distance2 = (((a[:, None] - b[None]) * aspect) ** 2).sum(-1)
    return np.exp(-0.5 * distance2 / length**2)


def _functions(kernel: np.ndarray, keep: float = 1e-4) -> np.ndarray:
    """Return the columns whose outer products sum to `kernel`, without the negligible ones."""
    values, vectors = np.linalg.eigh(kernel)
    kept = values > keep * values.max()
    return (vectors[:, kept] * np.sqrt(values[kept]))[:, ::-1]


@dataclass(frozen=True)
class Equations:
    """The normal equations of a field, diagonalised in space and in time, for a prior of width 1.

    The information of patch p about frame t is ``areas[p] information[t]``, a product; so both sides
    diagonalise apart, and another width only scales them.

    Attributes
    ----------
    a, b : ndarray, shape (j,) and (k,)
        Eigenvalues, in space and in time.
    u, v : ndarray, shape (j, j) and (k, k)
        Their eigenvectors.
    right : ndarray, shape (j, k, 2)
        Right-hand side in these.
    """

    a: np.ndarray
    b: np.ndarray
    u: np.ndarray
    v: np.ndarray
    right: np.ndarray

    def solve(self, width: float) -> tuple[np.ndarray, float]:
        """Return the most probable solution (j, k, 2), in these eigenvectors, and the log-evidence of a width in Å."""
        right = width * self.right
        curvature = 1 + width**2 * np.outer(self.a, self.b)
        solution = right / curvature[..., None]
        # On two axes: half the logarithm of the determinant, twice.
        return solution, float(0.5 * (right * solution).sum() - np.log(curvature).sum())


def normal_equations(prior: Prior, told: np.ndarray, areas: np.ndarray, information: np.ndarray) -> Equations:
    """Return the normal equations of what patches tell of their motion.

    Parameters
    ----------
    prior : Prior
        Of any width.
    told : ndarray, shape (p, n, 2)
        ``gradient + information · shifts``: what the patches tell of motion from 0.
    areas : ndarray, shape (p,)
        0 leaves a patch out (then `told` must be 0 there, too).
    information : ndarray, shape (n,)
        1/Å².
    """
    space, frames = prior.space, prior.frames
    a, u = np.linalg.eigh(space.T @ (areas[:, None] * space))
    b, v = np.linalg.eigh(frames.T @ (information[:, None] * frames))
    # Sums in plain loops: for a matrix product of this size OpenBLAS takes all cores and waits for the last of them,
    # which beside threads that hash took most of the alignment's time (docs/performance-notes.md).
    right = np.einsum("tk,jtc->jkc", frames @ v, np.einsum("pj,ptc->jtc", space @ u, told))
    return Equations(a.clip(0), b.clip(0), u, v, right)


def fit(prior: Prior, told: np.ndarray, areas: np.ndarray, information: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the most probable coefficients (j, k, 2) and the log-evidence of the prior.

    Parameters
    ----------
    prior : Prior
    told, areas, information
        As for `normal_equations`.
    """
    equations = normal_equations(prior, told, areas, information)
    solution, evidence = equations.solve(prior.width)
    return prior.width * np.einsum("ji,mk,ikc->jmc", equations.u, equations.v, solution, optimize=True), evidence


def make_priors(centres: np.ndarray, aspect: np.ndarray, n: int) -> list[Prior]:
    """Return the candidates of width 1: all `LENGTHS` and `TIMES`."""
    return [make_prior(centres, aspect, n, 1.0, *of) for of in itertools.product(LENGTHS, TIMES)]


def best_prior(
    priors: Sequence[Prior], told: np.ndarray, areas: np.ndarray, information: np.ndarray
) -> tuple[float, Prior]:
    """Return the greatest log-evidence of all `priors` and `WIDTHS_A`, and the prior that it belongs to."""
    found = []
    for prior in priors:
        equations = normal_equations(prior, told, areas, information)
        found += [(equations.solve(width)[1], prior, width) for width in WIDTHS_A]
    evidence, prior, width = max(found, key=lambda one: one[0])
    return evidence, dataclasses.replace(prior, width=width)


def evaluate(space: np.ndarray, frames: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    """Return the field (p, n, 2) in Å of coefficients (j, k, 2), from the functions of space and of frames."""
    return np.einsum("pj,tk,jkc->ptc", space, frames, coefficients, optimize=True)
