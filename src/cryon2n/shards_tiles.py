"""Where the patches of a micrograph lie, and the settings that say so."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from cryon2n.errors import InputError


@dataclass(frozen=True)
class ShardSettings:
    """Settings of the patches.

    Attributes
    ----------
    patch : int
        Pixels; side of a patch.
    overlap : int
        Pixels; the least overlap between neighbours.
    max_bad : float
        Largest share of bad pixels in a patch that is kept.
    masks : str or None
        Folder of masks, one image per micrograph, in which what is not 0 is good.
    pairings : int
        Pairs of sums of the halves' groups of frames that each patch is cut from; 1 for the halves alone.
    """

    patch: int = 1024
    overlap: int = 0
    max_bad: float = 0.05
    masks: str | None = None
    pairings: int = 1

    def __post_init__(self) -> None:
        if self.patch < 32 or not 0 <= self.overlap < self.patch:
            raise InputError(
                f"shard settings: found patch {self.patch} and overlap {self.overlap}; "
                "wanted a patch of 32 or more and an overlap below it"
            )
        if not 0 <= self.max_bad <= 1:
            raise InputError(f"shard settings: found max_bad {self.max_bad}; wanted a share from 0 to 1")
        if self.pairings < 1:
            raise InputError(f"shard settings: found pairings {self.pairings}; wanted 1 (the halves alone) or more")


def most_pairings(groups: int) -> int:
    """Return in how many ways an even number of groups of frames can be halved into two sums of equally many."""
    return math.comb(groups, groups // 2) // 2


def tile_starts(begin: int, end: int, patch: int, overlap: int) -> list[int]:
    """Return the first pixel of each patch along one axis.

    The fewest patches that cover ``begin … end`` with at least `overlap`, spread evenly, so that the
    first starts at `begin` and the last ends at `end`: every pixel is used, none is padded.
    """
    length = end - begin
    if length < patch:
        raise ValueError(f"a region of {length} px holds no patch of {patch}")
    if length == patch:
        return [begin]
    n = 1 + int(np.ceil((length - patch) / (patch - overlap)))
    return [begin + int(s) for s in np.rint(np.linspace(0, length - patch, n))]


def patch_positions(record: dict[str, Any], settings: ShardSettings) -> list[tuple[int, int]]:
    """Return the [y, x] of the first pixel of each patch of a micrograph, row by row, within its valid region."""
    y0, y1, x0, x1 = record["valid"]
    if min(y1 - y0, x1 - x0) < settings.patch:
        raise InputError(
            f"{record['micrograph']}: its valid region of {y1 - y0} x {x1 - x0} px holds no patch of "
            f"{settings.patch}; set shards: patch to {min(y1 - y0, x1 - x0) // 64 * 64} or less"
        )
    rows = tile_starts(y0, y1, settings.patch, settings.overlap)
    columns = tile_starts(x0, x1, settings.patch, settings.overlap)
    return [(y, x) for y in rows for x in columns]
