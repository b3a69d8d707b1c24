"""What all loaders have in common: the order of the crops, the batch, the measured waiting."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from cryon2n.crops import CropPlan, crop_table, cut, gather, plan_crops, visit_steps
from cryon2n.errors import InputError
from cryon2n.patch_files import PatchFiles
from cryon2n.waits import Waits


@dataclass(frozen=True)
class Batch:
    """Crops of both halves, shape (batch, 1, crop, crop) float16, and their noise variances (batch,) float32."""

    a: torch.Tensor
    b: torch.Tensor
    var_a: torch.Tensor
    var_b: torch.Tensor

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return what a step of training takes."""
        return self.a, self.b, self.var_a, self.var_b


class Loader(ABC):
    """Batches of crops from a manifest's patches.

    Parameters
    ----------
    files : PatchFiles
    crop, batch, seed, visit : int
        As `crops.plan_crops` takes them.
    device : torch.device
        Where the batches go.

    Attributes
    ----------
    waits : Waits
        How long the device waited for batches.
    buffer_bytes : int
        Memory of the process that the loader holds, whatever the size of the data set.
    device_bytes : int
        Memory of the device that it holds.
    """

    buffer_bytes = device_bytes = 0

    def __init__(self, files: PatchFiles, crop: int, batch: int, seed: int, visit: int, device: torch.device):
        self.n, self.patch, _ = files.shape
        if crop > self.patch:
            raise InputError(f"{files.manifest}: patches of {self.patch} px hold no crop of {crop}; lower train: crop")
        self.crop, self.batch, self.seed, self.device = crop, batch, seed, device
        self.visit = visit_steps(self.patch, crop, visit)
        self.waits = Waits(device)
        self.var = torch.tensor(
            [[p["noise_var_a"], p["noise_var_b"]] for p in files.info["patches"]], dtype=torch.float32, device=device
        )

    @abstractmethod
    def batches(self, first: int, last: int) -> Iterator[Batch]:
        """Yield the batches of the steps `first` to `last` - 1."""

    def plan(self, step: int) -> CropPlan:
        """Return the crops of a step."""
        return plan_crops(self.seed, step, self.n, self.patch, self.crop, self.batch, self.visit)

    def take(self, sides: tuple[torch.Tensor, ...], plan: CropPlan, slot: np.ndarray) -> Batch:
        """Gather a plan's crops on the device; `slot` says where in `sides` each crop's patch lies."""
        if self.device.type == "cpu":
            (a, b), var = cut(sides, plan, slot, self.crop), self.var[torch.from_numpy(plan.patch)]
        else:
            # Pinned, so that the copy waits for nothing; the allocator keeps the memory until it is done.
            table = torch.from_numpy(crop_table(plan, slot, self.patch, self.crop)).pin_memory()
            table = table.to(self.device, non_blocking=True)
            a, b = gather(sides, table, self.crop)
            var = self.var[table[:, 3]]
        return Batch(a, b, var[:, 0], var[:, 1])
