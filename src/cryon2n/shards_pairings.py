"""Pairings of a micrograph's groups of frames: the halves, and other pairs of sums that are as good.

Of K groups every half of them against the other half makes a pair of images of one signal with independent noises
of all but equal variance.  One of these pairings is the halves themselves.
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cryon2n import mrcio
from cryon2n.errors import InputError
from cryon2n.groups import sum_content
from cryon2n.shards_tiles import most_pairings


@dataclass(frozen=True)
class Pairing:
    """Two sums of frames without a common one, a and b, from which patches are cut.

    Attributes
    ----------
    name : str or None
        Groups of a, then of b, such as ``0+2|1+3``; None where the halves are all that is written.
    groups : dict of tuple of int
        Groups of ``a`` and of ``b``, from 0; empty where the halves are all that is written.
    sides : dict of dict
        What a record says of a half, of ``a`` and of ``b``.
    stored : bool
        These are the halves, which lie in files of their own.
    """

    name: str | None
    groups: dict[str, tuple[int, ...]]
    sides: dict[str, dict[str, Any]]
    stored: bool


def pairings(path: Path, record: dict[str, Any], wanted: int) -> list[Pairing]:
    """Return the first `wanted` pairings of a micrograph: its halves, then the others in the order of a's groups.

    Parameters
    ----------
    path : Path
        Of the record, for messages.
    record : dict
    wanted : int
        1 for the halves alone, which need no groups.

    Raises
    ------
    InputError
        The record has no groups, an odd number or too few, or its halves are not sums of them.
    """
    halves = {side: record[side] for side in "ab"}
    if wanted == 1:
        return [Pairing(None, {}, halves, True)]
    groups = record.get("groups")
    if not groups or not record.get("group_stack"):
        raise InputError(
            f"{path}: its halves were made without groups of frames, of which shards: pairings {wanted} would be made; "
            "set halves: groups to 4 and split the movie again, or shards: pairings to 1"
        )
    if len(groups) % 2:
        raise InputError(
            f"{path}: has {len(groups)} groups of frames, an odd number, which no pairing halves; wanted an even one: "
            "split the movie again, or set shards: pairings to 1"
        )
    if wanted > (most := most_pairings(len(groups))):
        raise InputError(
            f"{path}: {len(groups)} groups of frames make {most} pairing{'s' * (most > 1)}; shards: pairings wants "
            f"{wanted}: lower it, or raise halves: groups and split the movie again"
        )
    own = {side: tuple(_members(groups, record[side].get("frames"))) for side in "ab"}
    if sorted(own["a"] + own["b"]) != list(range(len(groups))) or len(own["a"]) != len(own["b"]):
        raise InputError(
            f"{path}: its halves' frames are not those of half of its groups each; split the movie again, or set "
            "shards: pairings to 1"
        )
    # Group 0 is in the first of two sets; of the halves' it may be in b.
    others = [{"a": a, "b": b} for a, b in _balanced(len(groups)) if a not in own.values()]
    return [
        Pairing(_name(chosen), chosen, halves if chosen is own else _sides(groups, chosen), chosen is own)
        for chosen in [own, *others][:wanted]
    ]


def sum_of_groups(stack: np.ndarray, chosen: Iterable[int]) -> np.ndarray:
    """Return the sum of some images of a stack (n, h, w), shape (h, w), float32."""
    total = np.zeros(stack.shape[1:], np.float32)
    with np.errstate(all="ignore"):  # what is not finite is refused where patches are cut
        for k in chosen:
            total += mrcio.frame_data(stack[k])
    return total


def _balanced(n: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return every way to halve `n` groups, each once, group 0 in the first half."""
    firsts = (chosen for chosen in itertools.combinations(range(n), n // 2) if 0 in chosen)
    return [(first, tuple(k for k in range(n) if k not in first)) for first in firsts]


def _members(groups: list[dict[str, Any]], frames: list[int] | None) -> list[int]:
    """Return the groups that make up a half of these frames; none if no groups do."""
    wanted = set(frames or [])
    found = [k for k, group in enumerate(groups) if set(group["frames"]) <= wanted]
    return found if sorted(frame for k in found for frame in groups[k]["frames"]) == sorted(wanted) else []


def _name(chosen: dict[str, tuple[int, ...]]) -> str:
    return "|".join("+".join(map(str, chosen[side])) for side in "ab")


def _sides(groups: list[dict[str, Any]], chosen: dict[str, tuple[int, ...]]) -> dict[str, dict[str, Any]]:
    return {side: sum_content([groups[k] for k in chosen[side]]) for side in "ab"}
