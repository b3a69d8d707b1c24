"""Bring images to a GPU and back piece by piece, through a little page-locked memory that each thread keeps.

Whole images in fresh memory cost more than their copies: the system clears every page when it is first touched, and
page-locks it one by one (docs/performance-notes.md).  A piece is read from the file, copied, and its memory taken for
the next.  On a CPU nothing is copied: an image's own memory is the only piece.
"""

import contextlib
import threading
from collections.abc import Iterator

import numpy as np
import torch

from cryon2n.denoise_tiles import out_of_memory
from cryon2n.denoise_timing import lap

PIECE = 1 << 20  # pixels; 4 MiB stay in the processor's cache between copy and file
BAND = 1 << 22  # pixels whose float64 copies are in memory at once: 32 MiB, while others need the GPU's, too

_own = threading.local()


@contextlib.contextmanager
def own_stream(where: torch.device) -> Iterator[None]:
    """Work on a stream of this thread's own; at the end of the block it is done.  Nothing of the kind on a CPU."""
    if where.type != "cuda":
        yield
        return
    if not hasattr(_own, "stream"):
        _own.stream = torch.cuda.Stream(where)
    with torch.cuda.stream(_own.stream):
        yield
    _own.stream.synchronize()


def empty(shape: tuple[int, int], where: torch.device) -> torch.Tensor:
    """Return memory for an image (h, w), float32; raises `MemoryError` where there is none, whatever the device."""
    if where.type == "cpu":
        return torch.from_numpy(np.empty(shape, np.float32))  # in large pages, which torch's own memory is not
    try:
        return torch.empty(shape, device=where)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise MemoryError(str(error)) from None


def filling(image: torch.Tensor) -> Iterator[np.ndarray]:
    """Yield memory (n,) to be filled with the next n pixels of an image (h, w), until it is full.

    To ask for the next piece says that the one before is filled; it is then on the device.
    """
    flat = image.view(-1)
    if not is_far(image):
        yield flat.numpy()
        return
    for place in flat.split(PIECE):
        piece = _piece(image.device)[: len(place)]
        yield piece.numpy()
        with lap("copy in"):
            place.copy_(piece)  # waits, on this thread's stream only: the piece is free again


def fetched(image: torch.Tensor) -> Iterator[np.ndarray]:
    """Yield the pixels of an image (h, w), pieces (n,) one after another, each valid until the next is asked for."""
    flat = image.contiguous().view(-1)
    if not is_far(image):
        yield flat.numpy()
        return
    for place in flat.split(PIECE):
        piece = _piece(image.device)[: len(place)]
        with lap("copy back"):
            piece.copy_(place)
        yield piece.numpy()


def statistics(image: torch.Tensor) -> tuple[float, float, float, float]:
    """Return minimum, maximum, mean and standard deviation of an image (h, w), computed in float64 where it is."""
    flat = image.contiguous().view(-1)
    pivot = flat[0].double()  # near the mean, so that no digits cancel
    sums = torch.zeros(2, dtype=torch.float64, device=image.device)
    for band in flat.split(BAND):
        about = band.double() - pivot
        sums += torch.stack((about.sum(), about.square_().sum()))
    first, second = sums / len(flat)
    spread = (second - first**2).clamp_min(0).sqrt()
    low, high = (x.double() for x in torch.aminmax(flat))
    return tuple(torch.stack((low, high, pivot + first, spread)).tolist())


def is_far(image: torch.Tensor) -> bool:
    """Tell whether the CPU cannot reach an image's memory."""
    return image.device.type != "cpu"


def _piece(where: torch.device) -> torch.Tensor:
    """Return this thread's memory for one piece, page-locked for a GPU."""
    if not hasattr(_own, "piece"):
        _own.piece = torch.empty(PIECE, pin_memory=where.type == "cuda")
    return _own.piece
