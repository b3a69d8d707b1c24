"""How other programs feed a training: torch's DataLoader over the same patches, and over raw MRC files."""

from collections.abc import Iterator
from pathlib import Path

import mrcfile
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from cryon2n import shards
from cryon2n.loader_base import Batch
from cryon2n.symmetry import apply_symmetry
from cryon2n.waits import WARM, Waits


class MemmapCrops(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Random crops of random patches, cut out of the memory-mapped arrays.

    Parameters
    ----------
    manifest : path
    crop : int
    length : int
        Samples of an epoch.
    """

    def __init__(self, manifest: Path, crop: int, length: int):
        info = shards.read_manifest(manifest)
        self.sides = [shards.open_array(manifest, info, side) for side in "ab"]
        self.crop, self.length = crop, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a crop of both halves, shape (1, crop, crop), float16."""
        rng = np.random.default_rng(index)
        n, patch, _ = self.sides[0].shape
        k, symmetry = int(rng.integers(n)), int(rng.integers(8))
        y, x = rng.integers(0, patch - self.crop + 1, 2)
        cut = (torch.from_numpy(np.array(s[k, y : y + self.crop, x : x + self.crop])) for s in self.sides)
        a, b = (apply_symmetry(side, symmetry).contiguous()[None] for side in cut)
        return a, b


class MrcCrops(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Random crops of random micrographs, each read whole from its float32 MRC files for one crop.

    Parameters
    ----------
    records : list of Path
        Records of halves; ``{name}_a.mrc`` and ``{name}_b.mrc`` lie beside them.
    crop, length : int
    """

    def __init__(self, records: list[Path], crop: int, length: int):
        self.records, self.crop, self.length = records, crop, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a crop of both halves, shape (1, crop, crop), float32."""
        rng = np.random.default_rng(index)
        record = self.records[int(rng.integers(len(self.records)))]
        a, b = (mrcfile.read(record.with_name(f"{record.stem}_{side}.mrc")) for side in "ab")
        y, x = (int(rng.integers(0, size - self.crop + 1)) for size in a.shape)
        symmetry = int(rng.integers(8))
        cut = (torch.from_numpy(np.array(s[y : y + self.crop, x : x + self.crop])) for s in (a, b))
        a, b = (apply_symmetry(side, symmetry).contiguous()[None] for side in cut)
        return a, b


class TorchFeed:
    """Batches from a `Dataset` through torch's DataLoader, in the form that our loaders have.

    Parameters
    ----------
    dataset : Dataset
    batch, workers : int
    device : torch.device
    """

    def __init__(
        self, dataset: Dataset[tuple[torch.Tensor, torch.Tensor]], batch: int, workers: int, device: torch.device
    ):
        self.loader = DataLoader(
            dataset, batch, num_workers=workers, pin_memory=device.type == "cuda", drop_last=True,
            multiprocessing_context="fork" if workers else None,
        )  # fmt: skip
        self.device, self.waits = device, Waits(device)
        self.ones = torch.ones(batch, device=device)

    def batches(self, first: int, last: int) -> Iterator[Batch]:
        """Yield ``last - first`` batches (or what there is); `first` means nothing here."""
        self.waits.skip(WARM)
        source = iter(self.loader)
        for _ in range(first, last):
            self.waits.begin()
            found = next(source, None)
            if found is None:
                return
            a, b = (side.to(self.device, non_blocking=True) for side in found)
            self.waits.end()
            yield Batch(a, b, self.ones, self.ones)
