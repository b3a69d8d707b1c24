"""Driving a loader for a while, alone or under training, and measuring what it gives and takes."""

import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import psutil
import torch

from cryon2n import bench_memory, device
from cryon2n.loader_base import Batch
from cryon2n.step import Stepper
from cryon2n.unet import NetSettings, UNet
from cryon2n.waits import WARM, Waits


class Feed(Protocol):
    """What is driven: a `Loader`, or another program's way."""

    waits: Waits

    def batches(self, first: int, last: int) -> Iterator[Batch]:
        """Yield the batches of the steps `first` to `last` - 1."""


class Trainer:
    """Our training step, for any feed: compiled and captured once.

    Parameters
    ----------
    settings : NetSettings
    where : torch.device
    """

    def __init__(self, settings: NetSettings, where: torch.device):
        torch.manual_seed(0)
        nets = [UNet(settings).to(where, memory_format=torch.channels_last) for _ in range(2)]
        nets[1].requires_grad_(False)
        cuda = where.type == "cuda"
        self.precision = device.choose_precision("auto", where)
        self.stepper = Stepper(*nets, 3.0, 0.01, device.autocast(self.precision, where), compiled=cuda, graph=cuda)

    def __call__(self, batch: Batch) -> None:
        """Do one step."""
        self.stepper(batch.tensors(), 1e-4, 0.99)


class Again:
    """The same batch again and again: what training can reach if data cost nothing."""

    def __init__(self, batch: Batch, where: torch.device):
        self.batch, self.waits = batch, Waits(where)

    def batches(self, first: int, last: int) -> Iterator[Batch]:
        """Yield the batch ``last - first`` times."""
        for _ in range(first, last):
            self.waits.begin()
            self.waits.end()
            yield self.batch


def synchronise(where: torch.device) -> None:
    """Wait for the device."""
    if where.type == "cuda":
        torch.cuda.synchronize(where)


def disk_bytes() -> int:
    """Return the bytes that this process and its children have had read from disks."""
    own = psutil.Process()
    return sum(p.io_counters().read_bytes for p in (own, *own.children(recursive=True)))


def drive(
    feed: Feed,
    where: torch.device,
    seconds: float,
    steps: int = 10**9,
    use: Callable[[Batch], object] = lambda batch: None,
    each: Callable[[int], object] = lambda step: None,
) -> dict[str, Any]:
    """Take batches until `seconds` have passed or `steps` are done, after some that are not counted.

    Parameters
    ----------
    feed : Feed
    where : torch.device
    seconds : float
    steps : int
    use : callable
        What is done with a batch: nothing, or a `Trainer`.
    each : callable
        Told the number of steps done, after each.

    Returns
    -------
    row : dict
        ``steps``, ``seconds``, ``Mpx_per_s``, ``GB_per_s`` (of crops given, two halves of float16),
        ``wait_share``, ``disk_GB`` and ``read_per_used`` (bytes from the disk for each byte used),
        ``rss_GB``, ``gpu_GB``.
    """
    feed.waits = Waits(where)
    if where.type == "cuda":
        torch.cuda.reset_peak_memory_stats(where)
    began, started, disk, pixels, warm = 0.0, time.monotonic(), 0, 0, 0
    done = 0
    for batch in feed.batches(0, steps):
        use(batch)
        done += 1
        each(done)
        if not began and (done >= WARM or time.monotonic() - started > seconds):
            synchronise(where)
            began, disk, warm, pixels = time.monotonic(), disk_bytes(), done, batch.a.numel()
        elif began and done - warm >= 3 and time.monotonic() - began > seconds:
            break
    resident, read = bench_memory.resident_bytes(), disk_bytes()
    synchronise(where)
    took, counted = time.monotonic() - began, done - warm
    used = 2 * 2 * pixels * counted
    return {
        "steps": counted,
        "seconds": took,
        "Mpx_per_s": pixels * counted / took / 1e6,
        "GB_per_s": used / took / 1e9,
        "wait_share": feed.waits.share(),
        "disk_GB": max(0, read - disk) / 1e9,
        "read_per_used": max(0, read - disk) / max(1, used),
        "rss_GB": resident / 1e9,
        "gpu_GB": torch.cuda.max_memory_allocated(where) / 1e9 if where.type == "cuda" else 0.0,
    }


def digests(feed: Feed, use: Callable[[Batch], object], steps: int) -> list[int]:
    """Return a number for each of the first batches, of all their bits, while `use` keeps the device busy."""
    found = []
    for batch in feed.batches(0, steps):
        use(batch)
        weights = torch.arange(batch.a.numel(), device=batch.a.device) % 8191 + 1
        sums = [(side.view(torch.int16).flatten().long() * weights).sum() for side in (batch.a, batch.b)]
        found.append(sums[0] * 3 + sums[1])
    return torch.stack(found).tolist()


def machine(where: torch.device, place: Path) -> dict[str, Any]:
    """Say what the figures were measured on; the data lies at `place`."""
    mounts = [m for m in psutil.disk_partitions(all=True) if place.resolve().is_relative_to(m.mountpoint)]
    return {
        "device": device.describe(where),
        "cores": len(os.sched_getaffinity(0)),
        "memory_GB": psutil.virtual_memory().total / 1e9,
        "file_system": max(mounts, key=lambda m: len(m.mountpoint)).fstype if mounts else "unknown",
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
