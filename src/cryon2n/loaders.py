"""Batches of random crops from patch shards, one interface for three places of the data.

``gpu``: all patches on the GPU.  ``ram``: all patches in memory.  ``stream``: patches stay on disk and
are read as they are needed.  The crops of a step depend on (seed, step) alone, so every loader gives
the same batches, and a resumed run goes on exactly where it stopped.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import psutil
import torch

from cryon2n import shards
from cryon2n.errors import InputError

LOADERS = ("auto", "gpu", "ram", "stream")
# Share of the free memory that resident patches may take; the rest is for the network and the user.
GPU_SHARE, RAM_SHARE = 0.5, 0.6


@dataclass(frozen=True)
class CropPlan:
    """Which crops one step takes: arrays of shape (batch,)."""

    patch: np.ndarray
    y: np.ndarray
    x: np.ndarray
    symmetry: np.ndarray  # 0 to 7, see `apply_symmetry`


def plan_crops(seed: int, step: int, n_patches: int, patch: int, crop: int, batch: int) -> CropPlan:
    """Draw the crops of a step from counters, not from a stream: no state to save.

    Patches come in a fresh random order each epoch, so each is used equally often.
    """
    sample = step * batch + np.arange(batch)
    chosen = np.array([_epoch_order(seed, int(k) // n_patches, n_patches)[int(k) % n_patches] for k in sample])
    rng = np.random.Generator(np.random.Philox(key=[seed, 2 * step + 1]))
    y, x = rng.integers(0, patch - crop + 1, (2, batch))
    return CropPlan(chosen, y, x, rng.integers(0, 8, batch))


@lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, n: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(key=[seed, 2 * epoch])).permutation(n)


def apply_symmetry(x: torch.Tensor, symmetry: int) -> torch.Tensor:
    """Apply one of the 8 symmetries of the square to (..., h, w): bits are transpose, flip y, flip x."""
    if symmetry & 1:
        x = x.transpose(-1, -2)
    dims = [d for bit, d in ((2, -2), (4, -1)) if symmetry & bit]
    return x.flip(dims) if dims else x


@dataclass(frozen=True)
class Batch:
    """Crops of both halves, shape (batch, 1, crop, crop) float32, and their noise variances (batch,)."""

    a: torch.Tensor
    b: torch.Tensor
    var_a: torch.Tensor
    var_b: torch.Tensor


def choose_loader(wanted: str, n_bytes: int, device: torch.device) -> tuple[str, str]:
    """Choose the loader for `n_bytes` of patches; returns its name and the reason."""
    if wanted not in LOADERS:
        raise InputError(f"loader {wanted!r}: wanted one of {', '.join(LOADERS)}")
    if wanted == "gpu" and device.type != "cuda":
        raise InputError("loader 'gpu' wants a CUDA device; take 'ram' or 'auto' on this machine")
    if wanted != "auto":
        return wanted, "as asked"
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        if n_bytes <= GPU_SHARE * free:
            return (
                "gpu",
                f"{n_bytes / 1e9:.2f} GB of patches fit {GPU_SHARE:.0%} of {free / 1e9:.0f} GB free GPU memory",
            )
    free = psutil.virtual_memory().available
    if n_bytes <= RAM_SHARE * free:
        return (
            "ram",
            f"{n_bytes / 1e9:.2f} GB of patches fit {RAM_SHARE:.0%} of {free / 1e9:.0f} GB free memory",
        )
    return (
        "stream",
        f"{n_bytes / 1e9:.2f} GB of patches exceed {RAM_SHARE:.0%} of {free / 1e9:.0f} GB free memory",
    )


class Loader:
    """Batches of crops from a manifest's patches.

    Parameters
    ----------
    manifest : path
    kind : str
        ``gpu``, ``ram`` or ``stream``.
    crop, batch, seed : int
    device : torch.device
        Where the batches go.
    """

    def __init__(self, manifest: Path, kind: str, crop: int, batch: int, seed: int, device: torch.device):
        info = shards.read_manifest(manifest)
        self.n, self.patch, _ = info["shape"]
        if crop > self.patch:
            raise InputError(f"{manifest}: patches of {self.patch} px hold no crop of {crop}; lower train: crop")
        self.kind, self.crop, self.batch, self.seed, self.device = kind, crop, batch, seed, device
        arrays = [shards.open_array(Path(manifest), info, side) for side in "ab"]
        if kind == "stream":
            self.arrays = arrays
        else:
            resident = [torch.from_numpy(np.array(array)) for array in arrays]
            self.arrays = [t.to(device) for t in resident] if kind == "gpu" else resident
        self.var = torch.tensor([[p["noise_var_a"], p["noise_var_b"]] for p in info["patches"]], dtype=torch.float32)

    def batches(self, first: int, last: int) -> Iterator[Batch]:
        """Yield the batches of the steps `first` to `last` - 1; the next is prepared while one is used."""
        if self.kind == "gpu":
            for step in range(first, last):
                yield self._gather(step)
            return
        with ThreadPoolExecutor(1) as reader:
            ahead = reader.submit(self._gather, first) if first < last else None
            for step in range(first, last):
                assert ahead is not None
                batch = ahead.result()
                ahead = reader.submit(self._gather, step + 1) if step + 1 < last else None
                yield batch

    def _gather(self, step: int) -> Batch:
        plan = plan_crops(self.seed, step, self.n, self.patch, self.crop, self.batch)
        crops = [self._crops(array, plan) for array in self.arrays]
        var = self.var[torch.from_numpy(plan.patch)].to(self.device)
        return Batch(crops[0], crops[1], var[:, 0], var[:, 1])

    def _crops(self, array: np.ndarray | torch.Tensor, plan: CropPlan) -> torch.Tensor:
        out = []
        for k in range(self.batch):
            y, x = int(plan.y[k]), int(plan.x[k])
            crop = array[int(plan.patch[k]), y : y + self.crop, x : x + self.crop]
            if isinstance(crop, np.ndarray):
                crop = torch.from_numpy(np.array(crop))
            out.append(apply_symmetry(crop, int(plan.symmetry[k])))
        stacked = torch.stack(out)[:, None]
        if self.device.type == "cuda" and stacked.device.type == "cpu":
            stacked = stacked.pin_memory().to(self.device, non_blocking=True)
        return stacked.float()  # float16 travels, float32 is what the device computes from
