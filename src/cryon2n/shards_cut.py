"""Cut a micrograph's patches from its halves: bad areas, normalisation, float16."""

import contextlib
import functools
import hashlib
import itertools
import json
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cryon2n import files, mrcio, shards, shards_bad
from cryon2n.codeversion import code_version
from cryon2n.errors import InputError
from cryon2n.shards_pairings import Pairing, sum_of_groups
from cryon2n.shards_part import Order, Part
from cryon2n.shards_tiles import ShardSettings

# What makes the arrays' bytes and the manifest's words.
CODE = (
    "shards_write.py", "shards_cut.py", "shards.py", "shards_bad.py", "shards_pairings.py", "shards_part.py",
    "shards_tiles.py", "groups.py", "pair.py", "mrcio.py",
)  # fmt: skip
# Pixels of a patch that are normalised and cast at once: they stay in the cache, and torch, which takes threads of
# its own from 32768 on, takes none.
BAND = 32000


def code() -> str:
    """Return the hash of the code that makes the shards.  Not in threads: CPython 3.11's parser may fail there."""
    return code_version(*CODE)


@dataclass(frozen=True)
class Task:
    """A micrograph whose patches are to be written.

    Attributes
    ----------
    path : Path
        Its record.
    record : dict
    record_sha256 : str
    positions : list of (y, x)
        Of its patches, if none is left out; the same in every pairing.
    pairings : list of Pairing
        What the patches are cut from.
    mask : Path or None
    code : str
        Of `code`.
    """

    path: Path
    record: dict[str, Any]
    record_sha256: str
    positions: list[tuple[int, int]]
    pairings: list[Pairing]
    mask: Path | None
    code: str

    def half(self, side: str) -> Path:
        """Return the file of a half."""
        return self.path.with_name(f"{self.path.stem}_{side}.mrc")

    def source(self, side: str, pairing: Pairing) -> Path:
        """Return the file that a pairing's a or b is read from."""
        return self.half(side) if pairing.stored else self.path.with_name(self.record["group_stack"]["file"])

    @functools.cached_property
    def patches(self) -> list[tuple[Pairing, int, int]]:
        """The patches, if none is left out: pairing, y and x, a pairing after the other."""
        return [(pairing, y, x) for pairing in self.pairings for y, x in self.positions]

    @functools.cached_property
    def mask_sha256(self) -> str | None:
        """The mask file's SHA-256."""
        return None if self.mask is None else files.sha256_of(self.mask)

    def key(self, settings: ShardSettings) -> str:
        """Return a digest of everything that makes the patches: what has another must be written again.

        The record holds the halves' SHA-256; their files must also have the size and time that they had.
        """
        values = {k: v for k, v in asdict(settings).items() if k != "masks"}
        stats = []
        for path in dict.fromkeys(self.source(side, pairing) for pairing in self.pairings for side in "ab"):
            with contextlib.suppress(OSError):  # a missing file is told of where it is opened
                about = path.stat()
                stats.append([about.st_size, about.st_mtime_ns])
        text = json.dumps([values, self.record_sha256, stats, self.mask_sha256, self.code], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def bad_patches(task: Task, settings: ShardSettings) -> list[float]:
    """Return the share of bad pixels in each patch of a micrograph, rounded to 6 digits."""
    valid, shape = task.record["valid"], task.record["shape"]
    mask = None if task.mask is None else shards_bad.read_mask(task.mask, (shape[0], shape[1]))
    found: list[float] = []
    for pairing in task.pairings:
        with open_half(task, "a", pairing) as a, open_half(task, "b", pairing) as b:
            flat = shards_bad.flat_blocks(a, b, valid, (pairing.sides["a"]["scale"], pairing.sides["b"]["scale"]))
        found += shards_bad.bad_shares(flat, mask, valid, task.positions, settings.patch)
    return [round(share, 6) for share in found]


def write_half(
    task: Task, side: str, chosen: list[tuple[Pairing, int, int]], first: int, part: Part, order: Order
) -> list[str]:
    """Write one side of some of a micrograph's patches, from patch `first` of the array on; returns their CRC-32."""
    p = part.shape[1]
    checksums: list[str] = []
    for pairing, of_pairing in itertools.groupby(chosen, key=lambda patch: patch[0]):
        rows = [(y, [x for *_, x in row]) for y, row in itertools.groupby(of_pairing, key=lambda patch: patch[1])]
        buffer = np.empty((max(len(xs) for _, xs in rows), p, p), shards.DTYPE)
        where = str(task.source(side, pairing))
        with open_half(task, side, pairing) as image:
            for y, xs in rows:
                patches = cut_row(image, y, xs, pairing.sides[side], buffer[: len(xs)], where)
                checksums += [shards.crc32(patch) for patch in patches]
                order.check()
                part.write(side, first + len(checksums) - len(patches), patches)
    return checksums


def cut_row(
    image: np.ndarray, y: int, xs: list[int], unit: dict[str, float], out: np.ndarray, where: str
) -> np.ndarray:
    """Cut a row of patches from a half, normalised and cast to float16, rounded to nearest even.

    Parameters
    ----------
    image : ndarray, shape (h, w)
        In its own units; it may be memory-mapped.
    y : int
        First row of the patches.
    xs : list of int
        First column of each, ascending.
    unit : dict
        ``offset`` and ``scale`` of the half's record.
    out : ndarray, shape (len(xs), p, p), float16
        Gets the patches.
    where : str
        The half, for the message.

    Returns
    -------
    out : ndarray

    Raises
    ------
    InputError
        A patch holds NaN, infinity or values beyond what float16 holds.
    """
    p = out.shape[1]
    left, right = xs[0], xs[-1] + p
    height = max(1, min(p, BAND // p))
    band = np.empty((height, right - left), np.float32)
    with np.errstate(all="ignore"):  # what is not finite is refused below
        for row in range(0, p, height):
            part = band[: min(height, p - row)]
            counts = mrcio.frame_data(image[y + row : y + row + len(part), left:right])
            # In float32, as `pair.load_pair` does it, to the bit.
            np.subtract(counts, np.float32(unit["offset"]), out=part, dtype=np.float32)
            np.divide(part, np.float32(unit["scale"]), out=part)
            pieces = [part[:, x - left : x - left + p] for x in xs]
            # Between the patches, where others are left out, there may be anything.
            if not _within(part) and not all(map(_within, pieces)):
                raise InputError(
                    f"{where}: NaN, infinity, or values above {shards.HALF_MAX:.0f} standard deviations in rows "
                    f"{y + row} to {y + row + len(part) - 1}; wanted repaired pixels, or a mask (shards: masks)"
                )
            for patch, piece in zip(out, pieces, strict=True):
                # NumPy casts to float16 without the processor's instruction for it, 20 times slower.
                torch.from_numpy(patch[row : row + len(part)]).copy_(torch.from_numpy(piece))
    return out


def _within(x: np.ndarray) -> bool:
    return bool(x.min() >= -shards.HALF_MAX and x.max() <= shards.HALF_MAX)  # False of NaN


_opening = threading.Lock()  # opening an MRC file changes the process's filters of warnings


@contextlib.contextmanager
def open_half(task: Task, side: str, pairing: Pairing) -> Iterator[np.ndarray]:
    """Open a half, memory-mapped, or the sum of groups that stands for it in a pairing, shape (h, w)."""
    path = task.source(side, pairing)
    with contextlib.ExitStack() as stack:
        with _opening:
            mrc = stack.enter_context(mrcio.open_mrc(path))
        data, wanted = mrc.data, task.record["shape"]
        if not pairing.stored:
            wanted = [len(task.record["groups"]), *wanted]
        elif data.ndim == 3 and len(data) == 1:
            data = data[0]
        if list(data.shape) != wanted:
            raise InputError(
                f"{path}: holds {' x '.join(map(str, data.shape))} pixels, but its record {task.path.name} says "
                f"{' x '.join(map(str, wanted))}; make the halves again"
            )
        yield data if pairing.stored else sum_of_groups(data, pairing.groups[side])
