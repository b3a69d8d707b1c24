"""Take halves that another program made, or that came from an archive: a sheet of pairs.

The two sides may hold different numbers of frames and stand in different units.  Then the units
are brought together (`relative_scale`) so that both hold the same signal: training and metrics
need nothing else.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from cryon2n import files, fourier, log, mrcio
from cryon2n.errors import InputError
from cryon2n.halves import add_out_argument, normalise_equal, pixel_size_of, robust_mean, write_halves

SHEET_COLUMNS = ("micrograph", "a", "b", "pixel_size_A", "frames_a", "frames_b")


def noise_floor(image: np.ndarray) -> float:
    """White-noise variance of an image (h, w) from its Fourier power between 0.8 and 1 of Nyquist.

    In a cryo-EM micrograph the signal there is far below the noise.
    """
    power = np.abs(fourier.windowed_spectrum(image - image.mean())) ** 2
    sums = fourier.ring_sums(power, image.shape)
    counts = fourier.ring_counts(image.shape)
    n = len(sums)
    band = slice(int(0.8 * n), n)
    return float(sums[band].sum() / counts[band].sum() / image.size)


def relative_scale(a: np.ndarray, b: np.ndarray, n_frames: tuple[int, int] | None) -> tuple[float, float]:
    """Estimate how many units of `a` hold the signal that one unit of `b` holds.

    Two independent ways:

    * frames: whether sums or means, in units of the common signal the noise variances (white floors
      N) go as 1 / frames: ``s² = N_a n_a / (N_b n_b)``.  Used where the frame numbers are known.
    * regression at low frequencies of the noisier side on the other, corrected for the noise of the
      regressor: ``s = <a,b> / (<b,b> - N_b)``, in the rings where b's signal is at least its noise.
      Used where they are not known, and as a check.

    Parameters
    ----------
    a, b : ndarray, shape (h, w)
    n_frames : (int, int) or None

    Returns
    -------
    scale, check : float
        The estimate, and the other way's (nan where it does not apply).
    """
    floor_a, floor_b = noise_floor(a), noise_floor(b)
    spectra = [fourier.windowed_spectrum(x - x.mean()) / np.sqrt(x.size) for x in (a, b)]
    counts = fourier.ring_counts(a.shape)
    ab = fourier.ring_sums(fourier.cross_power(spectra[0], spectra[1]), a.shape)
    aa = fourier.ring_sums(fourier.cross_power(spectra[0], spectra[0]), a.shape)
    bb = fourier.ring_sums(fourier.cross_power(spectra[1], spectra[1]), a.shape)
    # Regress on the side whose low rings stand higher above its noise.
    low = slice(2, max(6, len(counts) // 12))
    better_b = bb[low].sum() / floor_b >= aa[low].sum() / floor_a
    power, floor = (bb, floor_b) if better_b else (aa, floor_a)
    use = np.zeros(len(counts), bool)
    use[low] = power[low] > 2 * floor * counts[low]
    regression = float("nan")
    if use.any():
        slope = ab[use].sum() / (power[use] - floor * counts[use]).sum()
        if slope > 0:
            regression = float(slope if better_b else 1 / slope)
    if n_frames is None:
        if not np.isfinite(regression):
            raise InputError(
                "the two sides' units cannot be matched: no common signal at low frequencies; "
                "give frames_a and frames_b in the sheet, or check that they are halves of one micrograph"
            )
        return regression, float("nan")
    return float(np.sqrt(floor_a * n_frames[0] / (floor_b * n_frames[1]))), regression


def normalise_unequal(
    a: np.ndarray, b: np.ndarray, n_frames: tuple[int, int] | None
) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Offset, scale and noise variance of two sides in different units or with different doses.

    Returns
    -------
    sides : dict
        ``a``, ``b``, ``full`` as in the halves record; ``full`` has the units of the less noisy side.
    match : dict
        ``relative_scale`` and ``relative_scale_check``: see `relative_scale`.
    """
    scale, check = relative_scale(a, b, n_frames)
    offsets = {"a": robust_mean(a), "b": robust_mean(b)}
    common = {"a": (a - offsets["a"]) / scale, "b": b - offsets["b"]}
    unit = float(np.sqrt(np.mean([x.var(dtype=np.float64) for x in common.values()])))
    floor_b = noise_floor(common["b"]) / unit**2
    total = float((common["a"] - common["b"]).var(dtype=np.float64)) / unit**2
    # The difference holds both noises and nothing else; the less noisy side's floor gives its share.
    floor_a = noise_floor(common["a"]) / unit**2
    noise = {"a": floor_a, "b": total - floor_a} if floor_a < floor_b else {"a": total - floor_b, "b": floor_b}
    sides = {
        side: {
            "offset": offsets[side],
            "scale": unit * (scale if side == "a" else 1.0),
            "noise_var": noise[side],
        }
        for side in "ab"
    }
    best = min("ab", key=lambda side: noise[side])
    full = {k: sides[best][k] for k in ("offset", "scale")}
    return {**sides, "full": full}, {
        "relative_scale": round(scale, 6),
        **({} if np.isnan(check) else {"relative_scale_check": round(check, 6)}),
    }


def read_pair_sheet(path: str | Path) -> list[dict[str, str]]:
    """Read a sheet of pairs: columns `SHEET_COLUMNS`; paths are relative to the sheet; ``-`` is unknown."""
    rows = files.read_table(path, SHEET_COLUMNS)
    names = [row["micrograph"] for row in rows]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{path}: micrograph {name!r} stands there twice; wanted one row each")
    for row in rows:
        if row["a"] == row["b"]:
            raise InputError(f"{path}: {row['micrograph']}: a and b are the same file {row['a']}; wanted two halves")
    return rows


def import_pair(
    a_path: Path,
    b_path: Path,
    pixel_size: float | None,
    n_frames: tuple[int | None, int | None],
    same_units: bool,
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Read two halves and make their record; a pair that cannot be one raises `InputError`.

    Parameters
    ----------
    a_path, b_path : Path
    pixel_size : float or None
        Å; None takes the headers'.
    n_frames : (int or None, int or None)
        Frames in each side.
    same_units : bool
        Both are sums of frames in the same counts (or means of equally many frames).
    """
    (a, size_a), (b, size_b) = mrcio.read_mrc(a_path), mrcio.read_mrc(b_path)
    for path, image in ((a_path, a), (b_path, b)):
        if image.ndim != 2:
            raise InputError(f"{path}: holds {image.ndim}-dimensional data; wanted one image (a half's sum)")
    if a.shape != b.shape:
        raise InputError(
            f"{a_path} has {a.shape[0]} x {a.shape[1]} pixels but {b_path} has {b.shape[0]} x {b.shape[1]}; "
            "the halves of one micrograph have one shape: check the pairing in the sheet"
        )
    if pixel_size is None and None not in (size_a, size_b) and not np.isclose(size_a, size_b, rtol=1e-4):
        raise InputError(f"{a_path} has a pixel size of {size_a:.4f} Å but {b_path} {size_b:.4f} Å; give --pixel-size")
    size = pixel_size_of(size_b if size_a is None else size_a, pixel_size, a_path)
    for path, image in ((a_path, a), (b_path, b)):
        if image.min() == image.max():
            raise InputError(f"{path}: the image is constant; wanted half a micrograph with its noise")
    if np.array_equal(a, b):
        raise InputError(f"{a_path} and {b_path} hold the same pixels; wanted two halves with independent noise")
    if any(n is not None and n < 1 for n in n_frames):
        raise InputError(f"{a_path}: found {n_frames[0]} and {n_frames[1]} frames in the halves, wanted 1 or more")
    known = None if None in n_frames else n_frames
    match: dict[str, float] = {}
    whole = [0, a.shape[0], 0, a.shape[1]]
    if same_units:
        _check_sums(a, b, known or (1, 1), a_path)
        sides: dict[str, dict[str, Any]] = normalise_equal(a, b, whole, known or (1, 1))
    else:
        sides, match = normalise_unequal(a, b, known)
    for side, count in zip("ab", n_frames, strict=True):
        sides[side] = {"frames": None, "n_frames": count, "dose_e_per_A2": None, **sides[side]}
    record = {
        "shape": list(a.shape),
        "pixel_size_A": size,
        "valid": whole,
        **sides,
        "alignment": "unknown",
        "dose_weighted": None,
        "trajectory_A": None,
        "bin": 1,
        "defects": None,
        **match,
    }
    return a, b, record


def _check_sums(a: np.ndarray, b: np.ndarray, n_frames: tuple[int, int], path: Path) -> None:
    """Refuse sides whose noise contradicts "sums of `n_frames` frames in the same counts"."""
    expected = n_frames[0] / n_frames[1]
    found = noise_floor(a) / max(noise_floor(b), 1e-30)
    if not 1 / 2 < found / expected < 2:
        raise InputError(
            f"{path}: its noise variance is {found:.3g} times the other half's; sums of {n_frames[0]} and "
            f"{n_frames[1]} frames in the same counts give {expected:.3g}: correct the frame numbers, or take "
            "--units fit"
        )


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--a", type=Path, required=True, help="one half (MRC)")
    parser.add_argument("--b", type=Path, required=True, help="the other half (MRC)")
    add_out_argument(parser)
    parser.add_argument("--pixel-size", type=float, metavar="A", help="Å; default: the headers'")
    parser.add_argument("--frames-a", type=int, help="frames in a")
    parser.add_argument("--frames-b", type=int, help="frames in b")
    parser.add_argument("--units", choices=["same", "fit"], default="same", help="'fit': the sides' units differ")


def _run(args: argparse.Namespace) -> None:
    a, b, record = import_pair(args.a, args.b, args.pixel_size, (args.frames_a, args.frames_b), args.units == "same")
    write_halves(args.out, a, b, record, {"a": args.a, "b": args.b}, "import-halves")
    scale, check = record.get("relative_scale"), record.get("relative_scale_check")
    if check and not 2 / 3 < scale / check < 3 / 2:
        log.say(f"warning: {args.out.name}: units matched by frame numbers {scale:.4g}, by common signal {check:.4g}")
    noise = [record[side]["noise_var"] for side in "ab"]
    log.say(f"{args.out.name}: {a.shape[0]} x {a.shape[1]} px, noise variances {noise[0]:.3f} and {noise[1]:.3f}")


COMMANDS = {"import-halves": (_add_arguments, _run)}
