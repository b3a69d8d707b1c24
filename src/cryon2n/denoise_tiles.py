"""Run a network over a whole image in tiles that leave no trace.

Tiles start on the network's grid and see at least its reach beyond their borders, so that tiled and untiled are the
same image.  Beyond the image's own border they see it mirrored.  A tile that does not fit into memory is halved.
"""

import gc

import numpy as np
import torch
from torch import nn

from cryon2n import device, log
from cryon2n.symmetry import apply_symmetry, undo_symmetry

CPU_TILE = 2048  # pixels; measured: docs/denoising.md
SMALLEST = 128  # pixels; a tile that does not fit even so is given up
# Values of a layer's output that kernels can still count with 32 bits, with room to spare.
MOST_VALUES = 1 << 30


class Tiled:
    """A network that takes images of any size.

    Parameters
    ----------
    net : nn.Module
        On its device, (n, 1, h, w) → (n, 1, h, w), with ``grid`` and ``reach``.
    precision : str
        ``auto``, ``float32`` or ``bfloat16``.
    tile : int or None
        Pixels; side of the region that is denoised at once, without its halo.  None: on a CPU `CPU_TILE`, on a GPU as
        large as kernels can take.
    compiled : bool
        Compile the network; worth its time for many micrographs of one size.
    symmetries : int
        8: the result is the mean over the 8 turned and mirrored versions of the image, each turned back.  What a
        network makes of noise differs between them, so a part of it averages out, at 8 times the work.

    Attributes
    ----------
    tile : int
        As it is now; memory that runs out halves it.
    compiled : bool
    """

    def __init__(
        self,
        net: nn.Module,
        precision: str = "auto",
        tile: int | None = None,
        compiled: bool = False,
        symmetries: int = 1,
    ):
        self.where = next(net.parameters()).device
        self.precision = device.choose_precision(precision, self.where)
        self.grid, self.halo = net.grid, -(-net.reach // net.grid) * net.grid
        self.tile = tile or (CPU_TILE if self.where.type == "cpu" else largest_tile(net))
        self.compiled, self.forward = compiled, torch.compile(net, dynamic=False) if compiled else net
        self.symmetries = symmetries

    @torch.no_grad()
    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Denoise an image (h, w) on the network's device; returns float32.

        Raises
        ------
        torch.OutOfMemoryError
            Even the smallest tile does not fit.
        """
        found = self._fitting(image)
        for symmetry in range(1, self.symmetries):
            found += undo_symmetry(self._fitting(apply_symmetry(image, symmetry)), symmetry)
        return found.div_(self.symmetries) if self.symmetries > 1 else found

    def _fitting(self, image: torch.Tensor) -> torch.Tensor:
        """Denoise an image in tiles that fit into memory."""
        while True:
            try:
                return self._run(image)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                if self.tile <= SMALLEST:
                    raise torch.OutOfMemoryError(f"tiles of {self.tile} pixels do not fit into memory") from None
            # Only here, where the failed attempt's tensors are no longer held by its traceback.
            self.tile = max(SMALLEST, min(self.tile, max(image.shape)) // 2)
            gc.collect()
            if self.where.type == "cuda":
                torch.cuda.empty_cache()
            log.say(f"out of memory on {self.where}: going on with tiles of {self.tile} pixels")

    def _run(self, image: torch.Tensor) -> torch.Tensor:
        h, w = image.shape
        grid, halo = self.grid, self.halo
        step = max(grid, self.tile // grid * grid)
        out = torch.empty((h, w), device=self.where)
        rows, columns = (mirrored(n, halo, halo - n % -grid, self.where) for n in (h, w))
        for y in range(0, h, step):
            for x in range(0, w, step):
                height, width = (min(step, n + -n % grid) for n in (h - y, w - x))
                region = image.index_select(0, rows[y : y + height + 2 * halo])
                region = region.index_select(1, columns[x : x + width + 2 * halo])
                with device.autocast(self.precision, self.where):
                    result = self.forward(region[None, None].contiguous(memory_format=torch.channels_last))
                place = out[y : y + height, x : x + width]
                place.copy_(result[0, 0, halo : halo + place.shape[0], halo : halo + place.shape[1]])
        return out


def mirrored(n: int, before: int, after: int, where: torch.device) -> torch.Tensor:
    """Return which of n pixels stand at -before … n + after - 1, if the row is mirrored at its borders endlessly."""
    at = torch.arange(-before, n + after, device=where) % (2 * n)
    return torch.minimum(at, 2 * n - 1 - at)


def largest_tile(net: nn.Module) -> int:
    """Return the side of the largest tile, in pixels, of whose layers no output exceeds `MOST_VALUES`."""
    stride, width = (1, 64) if net.settings.kind == "topaz" else (net.settings.stride, net.settings.channels[0])
    halo = -(-net.reach // net.grid) * net.grid
    return int(stride * (MOST_VALUES / width) ** 0.5) // net.grid * net.grid - 2 * halo


def out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory ran out, on a GPU or on the CPU."""
    # torch has no types of their own for the CPU's and for those of CUDA's libraries.
    known = ("DefaultCPUAllocator", "STATUS_ALLOC_FAILED")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(text in str(error) for text in known)


def denoise_image(
    net: nn.Module, image: np.ndarray, tile: int | None = None, precision: str = "auto", symmetries: int = 1
) -> np.ndarray:
    """Denoise one image.

    Parameters
    ----------
    net : nn.Module
    image : ndarray, shape (h, w)
        In normalised units; any size.
    tile : int or None
        As `Tiled` takes it.
    precision : str
        ``auto``, ``float32`` or ``bfloat16``.
    symmetries : int
        As `Tiled` takes it.

    Returns
    -------
    ndarray, shape (h, w), float32
    """
    tiled = Tiled(net, precision, tile, symmetries=symmetries)
    x = torch.from_numpy(np.ascontiguousarray(image, np.float32)).to(tiled.where)
    return tiled(x).cpu().numpy()
