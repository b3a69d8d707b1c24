"""The halves of a micrograph as they lie on the disk: units of both sides, record, pixel size.

What every maker of halves shares: `split` makes them from a movie, `halves_import` takes another program's.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cryon2n import __version__, files, mrcio, pair
from cryon2n.errors import InputError

GROUPS_ENDING = "_groups.mrc"


def pixel_size_of(header: float | None, given: float | None, path: Path) -> float:
    """Return the pixel size in Å: the given one, else the header's; none at all raises `InputError`."""
    if given is not None:
        if not 0 < given < np.inf:
            raise InputError(f"{path}: pixel size {given} Å given; wanted more than 0")
        return given
    # 1 Å is what many programs write when they do not know.
    if header is None or header == 1.0:
        found = "none" if header is None else "1.0 Å, which is what programs write that do not know it"
        raise InputError(
            f"{path}: pixel size missing (header: {found}); give --pixel-size, or pixel_size_A in the config or sheet"
        )
    return header


def robust_mean(x: np.ndarray) -> float:
    """Mean of the values within 6 robust standard deviations of the median."""
    some = x.ravel()[:: max(1, x.size // 4_000_000)]  # enough for a median
    median = np.median(some)
    sigma = 1.4826 * np.median(np.abs(some - median))
    inside = np.abs(x - median) <= 6 * sigma
    return float(x[inside].mean(dtype=np.float64)) if sigma > 0 else float(median)


def normalise_equal(
    a: np.ndarray, b: np.ndarray, valid: list[int], n_frames: tuple[int, int]
) -> dict[str, dict[str, float]]:
    """Offset, scale and noise variance of two sums of frames of equal exposure.

    The signal of a sum of n frames is n times that of one, its noise variance (counting) too.

    Parameters
    ----------
    a, b : ndarray, shape (h, w)
        Sums of `n_frames[0]` and `n_frames[1]` frames.
    valid : list of int
        [y0, y1, x0, x1].
    n_frames : (int, int)

    Returns
    -------
    dict
        ``a``, ``b`` and ``full``, with ``offset``, ``scale`` and (for the halves) ``noise_var``.
    """
    y0, y1, x0, x1 = valid
    variances = [x[y0:y1, x0:x1].var(dtype=np.float64) / n**2 for x, n in zip((a, b), n_frames, strict=True)]
    unit = float(np.sqrt(np.mean(variances)))
    if unit == 0:
        raise InputError("both halves are constant; wanted images with noise")
    sides = dict(zip("ab", normalise_groups([a, b], valid, n_frames, unit), strict=True))
    return {**sides, "full": {key: sum(side[key] for side in sides.values()) for key in ("offset", "scale")}}


def normalise_groups(
    sums: Sequence[np.ndarray], valid: list[int], n_frames: Sequence[int], unit: float
) -> list[dict[str, float]]:
    """Offset, scale and noise variance of sums of frames of equal exposure.

    The noise of one frame follows from how each sum differs from all before it together; the shares of the
    variance that these differences tell are independent, and all of it.

    Parameters
    ----------
    sums : sequence of ndarray, shape (h, w)
    valid : list of int
        [y0, y1, x0, x1].
    n_frames : sequence of int
        In each sum.
    unit : float
        What is 1 in normalised units, in one frame.
    """
    y0, y1, x0, x1 = valid
    inner = [x[y0:y1, x0:x1] for x in sums]
    before, n_before, found = inner[0], n_frames[0], []
    for x, n in zip(inner[1:], n_frames[1:], strict=True):
        difference = x / n - before / n_before
        found.append(float(difference.var(dtype=np.float64)) / (1 / n + 1 / n_before))
        if len(found) < len(inner) - 1:
            before, n_before = before + x, n_before + n
    noise = float(np.mean(found)) / unit**2
    return [
        {"offset": robust_mean(x), "scale": unit * n, "noise_var": noise / n}
        for x, n in zip(inner, n_frames, strict=True)
    ]


def write_halves(
    prefix: Path,
    a: np.ndarray,
    b: np.ndarray,
    record: dict[str, Any],
    inputs: dict[str, Path],
    producer: str,
    groups: np.ndarray | None = None,
    known: Mapping[Path, str] | None = None,
) -> None:
    """Write ``{prefix}_a.mrc``, ``{prefix}_b.mrc`` and, last, the record ``{prefix}.json``.

    `inputs` are the files that the halves were made from: their SHA-256 go into the record.  `groups`,
    shape (K, h, w), is what the record's ``groups`` describe; it goes into ``{prefix}_groups.mrc``.
    `known` are SHA-256 of inputs that were computed before.
    """
    known, paths = known or {}, list(inputs.values())
    sides = {}
    for side, image, what in (("a", a, "half a"), ("b", b, "half b")):
        path = prefix.with_name(f"{prefix.name}_{side}.mrc")
        mrcio.write_mrc(path, image, record["pixel_size_A"], what)
        sides[side] = {**record[side], "sha256": files.sha256_of(path)}
    if groups is not None:
        path = prefix.with_name(f"{prefix.name}{GROUPS_ENDING}")
        mrcio.write_mrc(path, groups, record["pixel_size_A"], f"{len(groups)} groups of frames")
        sides["group_stack"] = {"file": path.name, "sha256": files.sha256_of(path)}
    files.write_json(
        prefix.with_name(f"{prefix.name}.json"),
        {
            "format": pair.RECORD_FORMAT,
            "version": pair.RECORD_VERSION,
            "micrograph": prefix.name,
            **{**record, **sides},
            "producer": f"cryon2n {__version__} {producer}",
            "inputs": {
                key: known.get(path) or files.sha256_of(path)
                for key, path in zip(checksum_keys(paths), paths, strict=True)
            },
        },
    )


def checksum_keys(paths: list[Path]) -> list[str]:
    """Return under which names a record has its inputs: with the folder where two share a name (Warp's even/, odd/)."""
    names = [path.name for path in paths]
    return [p.name if names.count(p.name) == 1 else f"{p.parent.name}/{p.name}" for p in paths]


def add_out_argument(parser: argparse._ActionsContainer, required: bool = True) -> None:
    """Add ``--out``, where `write_halves` writes, to a parser or a group of arguments."""
    text = "writes PREFIX_a.mrc, PREFIX_b.mrc, PREFIX.json (and PREFIX_groups.mrc where groups are more than 2)"
    parser.add_argument("--out", type=Path, required=required, metavar="PREFIX", help=text)
