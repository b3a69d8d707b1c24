"""Groups of frames of a micrograph: more than two images of one scene, each with independent noise.

`split` writes them (``halves: groups``) as one stack ``{mic}_groups.mrc`` beside the halves, and the halves'
record describes them.  Any two sets of groups that have no group in common make a pair as good as the halves:
in normalised units both hold the same signal, and each its own noise.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cryon2n import mrcio
from cryon2n.errors import InputError
from cryon2n.pair import Pair, read_record


@dataclass(frozen=True)
class Groups:
    """Groups of frames of a micrograph, in normalised units (those of its halves).

    Attributes
    ----------
    name : str
        The micrograph's name.
    images : ndarray, shape (K, h, w), float32
        Same signal, independent noise.
    record : dict
        The halves record (``docs/data-guide.md``).
    """

    name: str
    images: np.ndarray
    record: dict[str, Any]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def pixel_size(self) -> float:
        """Pixel size in Å."""
        return float(self.record["pixel_size_A"])

    @property
    def noise_var(self) -> tuple[float, ...]:
        """Noise variance of each group, in normalised units."""
        return tuple(float(group["noise_var"]) for group in self.record["groups"])

    @property
    def valid(self) -> tuple[slice, slice]:
        """The region that no frame's shift has wrapped around, as two slices (rows, columns)."""
        return Pair(self.name, self.images[0], self.images[0], self.record).valid

    def pair(self, first: Sequence[int], second: Sequence[int]) -> Pair:
        """Return the pair of the exposures of two sets of groups, which must not share one.

        The image of a set is what the sum of its frames is in normalised units: the mean of its groups,
        weighted by their scales (that is, by their numbers of frames).

        Parameters
        ----------
        first, second : sequence of int
            Groups, from 0: of a and of b.

        Raises
        ------
        ValueError
            A set is empty, or a group stands there twice.
        """
        members = [*first, *second]
        if not first or not second or len(set(members)) < len(members):
            raise ValueError(f"groups {list(first)} and {list(second)}: wanted two sets without a common group")
        (a, about_a), (b, about_b) = (self._sum(list(chosen)) for chosen in (first, second))
        full = {key: about_a[key] + about_b[key] for key in ("offset", "scale")}
        rest = {key: value for key, value in self.record.items() if key not in ("groups", "group_stack")}
        return Pair(self.name, a, b, {**rest, "a": about_a, "b": about_b, "full": full})

    def leave_one_out(self) -> Iterator[Pair]:
        """Give, for each group k, the pair of all other groups (a) and group k (b)."""
        for k in range(len(self)):
            yield self.pair([j for j in range(len(self)) if j != k], [k])

    def _sum(self, chosen: list[int]) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the image of a set of groups, in normalised units, and what a record says of a half."""
        about = [self.record["groups"][k] for k in chosen]
        weights = _weights(about).astype(np.float32)
        return np.tensordot(weights, self.images[chosen], axes=1), sum_content(about)


def sum_content(about: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what a record says of a half, of the sum of some groups, of which `about` is what it says."""
    doses = [group["dose_e_per_A2"] for group in about]
    return {
        "frames": sorted(frame for group in about for frame in group["frames"]),
        "n_frames": sum(group["n_frames"] for group in about),
        "dose_e_per_A2": None if None in doses else round(sum(doses), 6),
        "offset": sum(group["offset"] for group in about),
        "scale": sum(group["scale"] for group in about),
        "noise_var": float(_weights(about) ** 2 @ [group["noise_var"] for group in about]),
    }


def _weights(about: list[dict[str, Any]]) -> np.ndarray:
    """Return the share of each group in the sum's scale."""
    scales = np.array([group["scale"] for group in about])
    return scales / sum(scales)


def load_groups(record_path: str | Path) -> Groups:
    """Load the groups that belong to a record ``{mic}.json``.

    Raises
    ------
    InputError
        The record has no groups, or their stack is missing, damaged or of another shape.
    """
    record_path = Path(record_path)
    record = read_record(record_path)
    if not record.get("groups"):
        raise InputError(
            f"{record_path}: its halves were made without groups of frames; wanted more than two: "
            "set halves: groups to 4, say, and split the movie again"
        )
    path = record_path.with_name(record["group_stack"]["file"])
    data, _ = mrcio.read_mrc(path)
    wanted = (len(record["groups"]), *record["shape"])
    if data.shape != wanted:
        raise InputError(f"{path}: has shape {data.shape}, its record {record_path.name} says {wanted}; split again")
    images = np.empty(wanted, np.float32)
    for image, stored, unit in zip(images, data, record["groups"], strict=True):
        image[:] = (stored - unit["offset"]) / unit["scale"]
    return Groups(record["micrograph"], images, record)
