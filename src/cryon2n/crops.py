"""Which crops a step of training takes, and how a device gathers them: the same for every loader.

A patch is read once and serves several steps: a *visit*.  Random crops of 512² px out of patches of
1024² that are read for one crop each would read four times the bytes that are used; a visit of
(1024/512)² = 4 steps, one random crop in each, reads as many bytes as it trains, one of 16 steps a
quarter of them, which is what a disk can give a GPU.  The places of a batch begin their visits at
different steps, so that a step's crops come from visits of all ages.

Everything is a function of (seed, step): nothing to save, and a resumed run takes the same crops.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from cryon2n.symmetry import apply_symmetry

USES = 4  # of each pixel in a visit: visits fifteen times as long did no harm (benchmarks/README.md)
LONGEST_VISIT = 16  # steps; tiny crops would else stay with the same few patches for hundreds of steps


@dataclass(frozen=True)
class CropPlan:
    """Which crops one step takes: arrays of shape (batch,).

    Attributes
    ----------
    visit : ndarray
        Number of the visit, counted from the start of the training; visits start in this order.
    patch : ndarray
        Index of the patch that is visited.
    y, x : ndarray
        First pixel of the crop within the patch.
    symmetry : ndarray
        0 to 7, see `symmetry`; `cut` applies it as it is defined, `gather` with an index.
    """

    visit: np.ndarray
    patch: np.ndarray
    y: np.ndarray
    x: np.ndarray
    symmetry: np.ndarray


def visit_steps(patch: int, crop: int, wanted: int = 0) -> int:
    """Return for how many steps a visit lasts: `wanted`, or for 0 until each pixel was used `USES` times."""
    return wanted or int(np.clip(round(USES * (patch / crop) ** 2), 1, LONGEST_VISIT))


def visits_at(step: int, batch: int, steps: int) -> np.ndarray:
    """Return the numbers of the visits that a step serves from, for each place of the batch, shape (batch,).

    They are always `batch` consecutive numbers: the oldest visits end first.
    """
    place = np.arange(batch)
    age = (batch - 1 - place) * steps // batch  # of the visit at step 0; place 0 is the first to change
    return (step + age) // steps * batch + place


def visited_patch(seed: int, visit: int, n_patches: int) -> int:
    """Return the patch of a visit: a fresh random order in each round, so each patch comes equally often."""
    return int(_round_order(seed, visit // n_patches, n_patches)[visit % n_patches])


@lru_cache(maxsize=8)
def _round_order(seed: int, number: int, n: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(key=[seed, 2 * number])).permutation(n)


def plan_crops(seed: int, step: int, n_patches: int, patch: int, crop: int, batch: int, visit: int = 0) -> CropPlan:
    """Draw the crops of a step from counters, not from a stream: no state to save.

    Parameters
    ----------
    seed, step : int
    n_patches : int
        Patches in the shards; may be fewer than `batch`.
    patch, crop : int
        Pixels; sides of a patch and of a crop.
    batch : int
        Crops per step.
    visit : int
        Steps that a visit lasts (0: see `visit_steps`).
    """
    visits = visits_at(step, batch, visit_steps(patch, crop, visit))
    chosen = np.array([visited_patch(seed, int(v), n_patches) for v in visits])
    rng = np.random.Generator(np.random.Philox(key=[seed, 2 * step + 1]))
    y, x = rng.integers(0, patch - crop + 1, (2, batch))
    return CropPlan(visits, chosen, y, x, rng.integers(0, 8, batch))


def crop_table(plan: CropPlan, slot: np.ndarray, patch: int, crop: int) -> np.ndarray:
    """Say where the crops of a plan lie in a flat array of patches: what `gather` needs.

    A crop under a symmetry is an affine walk through memory: first pixel, step per row, step per column.

    Parameters
    ----------
    plan : CropPlan
    slot : ndarray, shape (batch,)
        Where each crop's patch lies in the array: patch `slot` begins at ``slot * patch²``.
    patch, crop : int

    Returns
    -------
    table : ndarray, shape (batch, 4), int64
        First pixel, step per row, step per column, and the index of the patch (for its noise variances).
    """
    turned = (plan.symmetry & 1).astype(bool)
    down, right = np.where(turned, 1, patch), np.where(turned, patch, 1)
    flip_y, flip_x = (plan.symmetry & 2) > 0, (plan.symmetry & 4) > 0
    first = slot.astype(np.int64) * patch**2 + plan.y * patch + plan.x
    first += (crop - 1) * (np.where(flip_y, down, 0) + np.where(flip_x, right, 0))
    return np.stack([first, np.where(flip_y, -down, down), np.where(flip_x, -right, right), plan.patch], axis=1)


def cut(sides: tuple[torch.Tensor, ...], plan: CropPlan, slot: np.ndarray, crop: int) -> list[torch.Tensor]:
    """Cut a step's crops out of each of `sides` one by one: on a CPU this takes a third of `gather`'s time.

    Parameters
    ----------
    sides : tuple of tensor
        Patches, shape (n, patch, patch).
    plan : CropPlan
    slot : ndarray, shape (batch,)
        Where each crop's patch lies in them.
    crop : int

    Returns
    -------
    crops : list of tensor, shape (batch, 1, crop, crop)
        In the dtype of the patches.
    """
    places = list(zip(slot.tolist(), plan.y.tolist(), plan.x.tolist(), plan.symmetry.tolist(), strict=True))
    found = [side.new_empty((len(places), 1, crop, crop)) for side in sides]
    for out, side in zip(found, sides, strict=True):
        for k, (place, y, x, symmetry) in enumerate(places):
            out[k, 0].copy_(apply_symmetry(side[place, y : y + crop, x : x + crop], symmetry))
    return found


def gather(sides: tuple[torch.Tensor, ...], table: torch.Tensor, crop: int) -> list[torch.Tensor]:
    """Gather a step's crops from each of `sides` by one index: no loop, nothing that waits for a device.

    The table is data, not Python numbers, so the whole may stand in a CUDA graph.

    Parameters
    ----------
    sides : tuple of tensor
        Patches, shape (n, patch, patch), contiguous.
    table : tensor, shape (batch, 4), int64
        Of `crop_table`, on the same device.
    crop : int

    Returns
    -------
    crops : list of tensor, shape (batch, 1, crop, crop)
        In the dtype of the patches.
    """
    k = torch.arange(crop, device=table.device)
    rows = table[:, 0, None] + table[:, 1, None] * k
    columns = table[:, 2, None] * k
    index = rows[:, None, :, None] + columns[:, None, None, :]
    return [side.view(-1).take(index) for side in sides]
