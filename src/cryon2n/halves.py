"""The halves of a micrograph as they lie on the disk: units of both sides, record, pixel size.

What every maker of halves shares: `split` makes them from a movie, `halves_import` takes another program's.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from cryon2n import __version__, files, mrcio, pair
from cryon2n.errors import InputError


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
    inner = [x[y0:y1, x0:x1] for x in (a, b)]
    offsets = [robust_mean(x) for x in inner]
    per_frame = [(x - o) / n for x, o, n in zip(inner, offsets, n_frames, strict=True)]
    unit = float(np.sqrt(np.mean([x.var(dtype=np.float64) for x in per_frame])))
    if unit == 0:
        raise InputError("both halves are constant; wanted images with noise")
    scales = [unit * n for n in n_frames]
    difference = float((per_frame[0] - per_frame[1]).var(dtype=np.float64)) / unit**2
    share = [(1 / n) / (1 / n_frames[0] + 1 / n_frames[1]) for n in n_frames]
    sides = {
        side: {"offset": offsets[i], "scale": scales[i], "noise_var": difference * share[i]}
        for i, side in enumerate("ab")
    }
    return {**sides, "full": {"offset": sum(offsets), "scale": sum(scales)}}


def write_halves(
    prefix: Path, a: np.ndarray, b: np.ndarray, record: dict[str, Any], inputs: dict[str, Path], producer: str
) -> None:
    """Write ``{prefix}_a.mrc``, ``{prefix}_b.mrc`` and, last, the record ``{prefix}.json``.

    `inputs` are the files that the halves were made from: their SHA-256 go into the record.
    """
    sides = {}
    for side, image, what in (("a", a, "half a"), ("b", b, "half b")):
        path = prefix.with_name(f"{prefix.name}_{side}.mrc")
        mrcio.write_mrc(path, image, record["pixel_size_A"], what)
        sides[side] = {**record[side], "sha256": files.sha256_of(path)}
    files.write_json(
        prefix.with_name(f"{prefix.name}.json"),
        {
            "format": pair.RECORD_FORMAT,
            "version": pair.RECORD_VERSION,
            "micrograph": prefix.name,
            **{**record, **sides},
            "producer": f"cryon2n {__version__} {producer}",
            "inputs": _checksums(list(inputs.values())),
        },
    )


def _checksums(paths: list[Path]) -> dict[str, str]:
    """Return SHA-256 by file name; by folder and name where two files share a name (Warp's even/ and odd/)."""
    names = [path.name for path in paths]
    keys = [p.name if names.count(p.name) == 1 else f"{p.parent.name}/{p.name}" for p in paths]
    return {key: files.sha256_of(path) for key, path in zip(keys, paths, strict=True)}


def add_out_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--out``, where `write_halves` writes."""
    text = "writes PREFIX_a.mrc, PREFIX_b.mrc, PREFIX.json"
    parser.add_argument("--out", type=Path, required=True, metavar="PREFIX", help=text)
