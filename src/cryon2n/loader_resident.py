"""The loader that keeps all patches where the batches are made: on the GPU, or in memory for the CPU."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from cryon2n.loader_base import Batch, Loader
from cryon2n.patch_files import SIDES, PatchFiles
from cryon2n.waits import WARM

CHUNK = 64 << 20  # bytes; of the two pinned buffers through which patches get to the GPU


class ResidentLoader(Loader):
    """Gathers from patches that all lie on the device.

    Parameters
    ----------
    files, crop, batch, seed, visit, device
        As `Loader` takes them; the files are read once, then closed.
    workers : int
        Reading threads.

    Raises
    ------
    InputError
        The files cannot be read, or do not fit their manifest.
    """

    def __init__(
        self,
        files: PatchFiles,
        crop: int,
        batch: int,
        seed: int,
        visit: int,
        device: torch.device,
        workers: int,
    ):
        super().__init__(files, crop, batch, seed, visit, device)
        if device.type == "cpu":
            self.sides = tuple(map(torch.from_numpy, files.read_all(workers)))
            self.buffer_bytes = sum(side.nbytes for side in self.sides)
        else:
            self.sides = tuple(to_device(files, side, device, workers) for side in range(len(SIDES)))
            self.device_bytes = sum(side.nbytes for side in self.sides)
        files.close()

    def batches(self, first: int, last: int) -> Iterator[Batch]:
        """Yield the batches of the steps `first` to `last` - 1."""
        self.waits.skip(WARM)
        for step in range(first, last):
            self.waits.begin()
            plan = self.plan(step)
            self.waits.end()
            yield self.take(self.sides, plan, plan.patch)


def to_device(files: PatchFiles, side: int, device: torch.device, workers: int) -> torch.Tensor:
    """Read one side through two pinned buffers, one filled while the other travels; shape (n, patch, patch)."""
    n, patch, _ = files.shape
    out = torch.empty(files.shape, dtype=torch.float16, device=device)
    chunk = max(1, min(n, CHUNK // files.size))
    buffers = [torch.empty((chunk, patch, patch), dtype=torch.float16, pin_memory=True) for _ in range(2)]
    files.check_direct(buffers[0][0].numpy())
    free = [torch.cuda.Event() for _ in buffers]  # a new event counts as reached
    with ThreadPoolExecutor(workers) as pool:
        for turn, begin in enumerate(range(0, n, chunk)):
            buffer, event, wanted = buffers[turn % 2], free[turn % 2], range(begin, min(begin + chunk, n))
            event.synchronize()
            array: np.ndarray = buffer.numpy()
            list(pool.map(lambda k, array=array, begin=begin: files.read(side, k, array[k - begin]), wanted))
            out[begin : wanted.stop].copy_(buffer[: len(wanted)], non_blocking=True)
            event.record()
    torch.cuda.synchronize(device)  # the buffers end with this function
    return out
