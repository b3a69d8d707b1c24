"""Halves of simulated micrographs with their truth: EMPIAR-10025's optics and dose, no motion."""

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from cryon2n import phantom
from cryon2n import phantom_molecule as molecules
from cryon2n.halves import normalise_equal
from cryon2n.phantom_stage import PhantomSettings, draw_movie

COUNTS = 200  # first key of the random stream of the counts


@dataclass(frozen=True)
class Micrographs:
    """Normalised halves and their truth, shape (n, h, w), float16 and float32.

    The truth is in the halves' normalised units: a and b are the truth plus noise of variance 1 or so.
    """

    a: torch.Tensor
    b: torch.Tensor
    truth: torch.Tensor


def one(settings: PhantomSettings, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Simulate one micrograph: (a, b, truth), normalised."""
    draw = draw_movie(settings, index, molecules.barrel())
    clean = phantom.expected_frame(draw.scene, 0) * np.float32(settings.n_frames / 2)
    halves = [
        molecules.stream(settings.seed, COUNTS, index, side).poisson(clean).astype(np.float32) for side in range(2)
    ]
    h, w = clean.shape
    sides = normalise_equal(*halves, [0, h, 0, w], (1, 1))
    a, b = (
        ((x - sides[s]["offset"]) / sides[s]["scale"]).astype(np.float16) for x, s in zip(halves, "ab", strict=True)
    )
    scale = sides["a"]["scale"]
    return a, b, ((clean - np.mean([sides[s]["offset"] for s in "ab"])) / scale).astype(np.float32)


def simulate(seed: int, first: int, count: int, size: int) -> Micrographs:
    """Simulate micrographs `first` to `first + count - 1` of a seed, one process per core."""
    settings = PhantomSettings(
        seed=seed, shape=(size, size), pixel_size_A=1.315, n_frames=38, particles_per_um2=1000.0, drift_A=0.0
    )
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        made = list(pool.map(partial(one, settings), range(first, first + count)))
    return Micrographs(*(torch.from_numpy(np.stack(x)) for x in zip(*made, strict=True)))
