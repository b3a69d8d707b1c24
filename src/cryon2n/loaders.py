"""Batches of random crops from patch shards, one interface for three places of the data.

``gpu``: all patches on the GPU.  ``ram``: all patches in memory.  ``stream``: patches stay on disk and
are read as they are needed.  The crops of a step depend on (seed, step) alone (`crops`), so every
loader gives the same batches, and a resumed run goes on exactly where it stopped.  Patches travel as
float16; whoever computes casts them, on the device.
"""

from pathlib import Path

import torch

from cryon2n import memory
from cryon2n.errors import InputError
from cryon2n.loader_base import Batch, Loader
from cryon2n.loader_resident import ResidentLoader
from cryon2n.loader_window import WindowLoader
from cryon2n.patch_files import PatchFiles

__all__ = ["LOADERS", "Batch", "Loader", "choose_loader", "open_loader", "patch_bytes"]

LOADERS = ("auto", "gpu", "ram", "stream")
# Share of the free memory that resident patches may take; the rest is for the network and the user.
GPU_SHARE, RAM_SHARE = 0.5, 0.6
WORKERS = 8  # reading threads; they wait for disks rather than compute


def patch_bytes(n: int, patch: int) -> int:
    """Return the bytes of `n` patches of `patch` px: two sides, float16."""
    return 2 * 2 * n * patch**2


def choose_loader(wanted: str, n_bytes: int, device: torch.device, ram_GB: float = 0.0) -> tuple[str, str]:
    """Choose the loader for `n_bytes` of patches; returns its name and the reason.

    Parameters
    ----------
    wanted : str
        One of `LOADERS`.
    n_bytes : int
        Of `patch_bytes`.
    device : torch.device
    ram_GB : float
        Most memory that resident patches may take; 0 for `RAM_SHARE` of what is free.

    Raises
    ------
    InputError
        An unknown loader, or ``gpu`` without one.
    """
    if wanted not in LOADERS:
        raise InputError(f"loader {wanted!r}: wanted one of {', '.join(LOADERS)}")
    if wanted == "gpu" and device.type != "cuda":
        raise InputError("loader 'gpu' wants a CUDA device; take 'ram' or 'auto' on this machine")
    if wanted != "auto":
        return wanted, "as asked"
    patches = f"{n_bytes / 1e9:.2f} GB of patches"
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        if n_bytes <= GPU_SHARE * free:
            return "gpu", f"{patches} fit {GPU_SHARE:.0%} of {free / 1e9:.0f} GB free GPU memory"
    free, what = memory.available()
    limit, name = RAM_SHARE * free, f"{RAM_SHARE:.0%} of {free / 1e9:.0f} GB {what}"
    if 0 < ram_GB * 1e9 < limit:
        limit, name = ram_GB * 1e9, f"the {ram_GB:g} GB that ram_GB allows"
    return ("ram", f"{patches} fit {name}") if n_bytes <= limit else ("stream", f"{patches} exceed {name}")


def open_loader(
    manifest: Path,
    kind: str,
    crop: int,
    batch: int,
    seed: int,
    device: torch.device,
    visit: int = 0,
    workers: int = WORKERS,
    direct: bool = True,
) -> Loader:
    """Open the patches of a manifest.

    Parameters
    ----------
    manifest : path
    kind : str
        ``gpu``, ``ram`` or ``stream``.
    crop, batch, seed, visit : int
        As `crops.plan_crops` takes them.
    device : torch.device
        Where the batches go.
    workers : int
        Reading threads.
    direct : bool
        ``stream``: read past the page cache where the system can.
    """
    choose_loader(kind, 0, device)
    order = (PatchFiles(manifest, direct=direct, keep=not direct), crop, batch, seed, visit, device)
    if kind == "gpu" or (kind == "ram" and device.type == "cpu"):
        return ResidentLoader(*order, workers)
    return WindowLoader(*order, workers, resident=kind == "ram")
