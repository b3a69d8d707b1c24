"""Take halves that another program made, or that came from an archive: a sheet of pairs.

The two sides may hold different numbers of frames and stand in different units.  Then the units
are brought together (`relative_scale`) so that both hold the same signal: training and metrics
need nothing else.  Every pair is verified (`pair_check`) before it is taken.
"""

import argparse
import re
from pathlib import Path
from typing import Any

import numpy as np

from cryon2n import fourier, log, mrcio, pair_check
from cryon2n.border import bad_border, fill_border
from cryon2n.errors import InputError
from cryon2n.halves import add_out_argument, normalise_equal, pixel_size_of, robust_mean, write_halves
from cryon2n.pair_sheet import ALIGNMENTS, FORMS, PairRow, check_names, frame_numbers, parse_bool


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


def read_halves(row: PairRow) -> tuple[np.ndarray, np.ndarray, float]:
    """Read the two halves of a pair; files that cannot be halves raise `InputError`.

    Returns
    -------
    a, b : ndarray, shape (h, w), float32
    pixel_size : float
        Å.
    """
    check_names(row)
    paths = Path(row.a), Path(row.b)
    if paths[0].exists() and paths[1].exists() and paths[0].samefile(paths[1]):
        raise InputError(f"{paths[0]} and {paths[1]} are the same file; wanted two halves")
    (a, size_a), (b, size_b) = (_read_image(path, row.section) for path in paths)
    if a.shape != b.shape:
        raise InputError(
            f"{paths[0]} has {a.shape[0]} x {a.shape[1]} pixels but {paths[1]} has {b.shape[0]} x {b.shape[1]}; "
            "the halves of one micrograph have one shape: check the pairing in the sheet"
        )
    given = row.pixel_size_A
    if given is None and None not in (size_a, size_b) and not np.isclose(size_a, size_b, rtol=1e-4):
        raise InputError(
            f"{paths[0]} has a pixel size of {size_a:.4f} Å but {paths[1]} {size_b:.4f}; give --pixel-size"
        )
    size = pixel_size_of(size_b if size_a is None else size_a, given, paths[0])
    for path, image in zip(paths, (a, b), strict=True):
        if image.min() == image.max():
            raise InputError(f"{path}: the image is constant; wanted half a micrograph with its noise")
    if np.array_equal(a, b):
        raise InputError(f"{paths[0]} and {paths[1]} hold the same pixels; wanted two halves with independent noise")
    if row.form == "full-diff":
        a, b = (a + b) / 2, (a - b) / 2
    return a, b, size


def _read_image(path: Path, section: int | None) -> tuple[np.ndarray, float | None]:
    """Read one image, alone or from a stack; one that says that it was denoised is refused."""
    with mrcio.open_mrc(path) as mrc:
        labels = " ".join(mrc.get_labels())
        if re.search("denoised", f"{labels} {path.name}", re.IGNORECASE):
            raise InputError(f"{path}: its name or header says that it was denoised; wanted a half with all its noise")
        if section is not None:
            if mrc.data.ndim != 3 or section >= len(mrc.data):
                found = f"{len(mrc.data)} images" if mrc.data.ndim == 3 else "one image"
                raise InputError(f"{path}: holds {found}; wanted section {section}, counted from 0")
            image, size = np.asarray(mrcio.frame_data(mrc.data[section]), np.float32), mrcio.header_pixel_size(mrc)
            if not np.isfinite(image).all():
                raise InputError(f"{path}: section {section} holds NaN or infinity; leave it out of the sheet")
            return image, size
    image, size = mrcio.read_mrc(path)
    if image.ndim != 2:
        raise InputError(f"{path}: holds {image.ndim}-dimensional data; wanted one image (a half's sum)")
    return image, size


def import_pair(row: PairRow, same_units: bool) -> tuple[np.ndarray, np.ndarray, dict[str, Any], list[str]]:
    """Read two halves, verify them and make their record; a pair that cannot be one raises `InputError`.

    Parameters
    ----------
    row : PairRow
    same_units : bool
        Both are sums of frames in the same counts (or means of equally many frames).

    Returns
    -------
    a, b : ndarray, shape (h, w), float32
    record : dict
        The halves record without ``micrograph``, ``inputs`` and checksums.
    warnings : list of str
        What is odd about the pair, in sentences.
    """
    a, b, size = read_halves(row)
    where = f"{row.a} and {row.b}"
    # In both, where it is in one: what is there is no half of anything.
    border = tuple(max(sides) for sides in zip(*(bad_border(x) for x in (a, b)), strict=True))
    if any(border):
        a, b = (fill_border(x, border) for x in (a, b))
    noise = pair_check.check_noise(a, b, size, bool(row.dose_weighted), where)
    found = pair_check.match(pair_check.signature(a, size), pair_check.signature(b, size))
    pair_check.check_signal(found, None, where)
    n_frames = row.n_frames
    known = None if None in n_frames else n_frames
    units: dict[str, float] = {}
    (h, w), (top, bottom, left, right) = a.shape, border
    valid = [top, h - bottom, left, w - right]
    if same_units:
        _check_sums(a, b, known or (1, 1), Path(row.a))
        sides: dict[str, dict[str, Any]] = normalise_equal(a, b, valid, known or (1, 1))
    else:
        sides, units = normalise_unequal(a, b, known)
    for side, which, count in zip("ab", (row.which_a, row.which_b), n_frames, strict=True):
        numbers = frame_numbers(which, where)
        sides[side] = {
            "frames": None if numbers is None else list(numbers),
            "which": which,
            "n_frames": count,
            "dose_e_per_A2": None,
            **sides[side],
        }
    record = {
        "shape": list(a.shape),
        "pixel_size_A": size,
        "valid": valid,
        **sides,
        "alignment": row.alignment,
        "dose_weighted": row.dose_weighted,
        "trajectory_A": None,
        "bin": 1,
        "defects": None,
        **units,
        "pair": {
            "signal_z": round(found.z, 2),
            "shift_px": [round(x, 2) for x in found.shift],
            "noise_correlation": round(noise.correlation, 5),
            "noise_correlation_z": round(noise.z, 2),
        },
    }
    warnings = pair_check.warnings(found, noise, size)
    scale, check = units.get("relative_scale"), units.get("relative_scale_check")
    if check and not 2 / 3 < scale / check < 3 / 2:
        warnings.append(f"units matched by frame numbers {scale:.4g}, by common signal {check:.4g}")
    if any(border):
        names = ("top", "bottom", "left", "right")
        found_at = ", ".join(f"{n} {name}" for n, name in zip(border, names, strict=True) if n)
        warnings.append(f"border lines of another grey level ({found_at}): filled with pixels near them, and left out")
    return a, b, record, warnings


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
    parser.add_argument("--a", required=True, help="one half (MRC); with --form full-diff the sum of both")
    parser.add_argument("--b", required=True, help="the other half (MRC); with --form full-diff a - b")
    add_out_argument(parser)
    parser.add_argument("--pixel-size", type=float, metavar="A", help="Å; default: the headers'")
    parser.add_argument("--frames-a", type=int, help="frames in a")
    parser.add_argument("--frames-b", type=int, help="frames in b")
    parser.add_argument("--which-a", metavar="FIRST:STOP:STEP", help="which frames, from 0: 0:38:2, or 0::2")
    parser.add_argument("--which-b", metavar="FIRST:STOP:STEP", help="likewise")
    parser.add_argument("--form", choices=FORMS, default="halves", help="what the two files hold")
    parser.add_argument("--section", type=int, help="the image in a stack, from 0")
    parser.add_argument("--dose-weighted", type=parse_bool, metavar="true|false", help="frames were weighted by dose")
    parser.add_argument("--alignment", choices=ALIGNMENTS, default="unknown", help="of the halves' frames")
    parser.add_argument("--producer", help="the program that made the halves")
    parser.add_argument("--units", choices=["same", "fit"], default="same", help="'fit': the sides' units differ")


def _run(args: argparse.Namespace) -> None:
    row = PairRow(
        args.out.name, args.a, args.b, args.pixel_size, args.frames_a, args.frames_b, args.which_a, args.which_b,
        args.form, args.section, args.dose_weighted, args.alignment, args.producer,
    )  # fmt: skip
    a, b, record, warnings = import_pair(row, args.units == "same")
    made_by = f"import-halves of {row.producer}" if row.producer else "import-halves"
    write_halves(args.out, a, b, record, {"a": Path(args.a), "b": Path(args.b)}, made_by)
    for warning in warnings:
        log.say(f"warning: {row.micrograph}: {warning}")
    noise = [record[side]["noise_var"] for side in "ab"]
    log.say(
        f"{row.micrograph}: {a.shape[0]} x {a.shape[1]} px, noise variances {noise[0]:.3f} and {noise[1]:.3f}, "
        f"common signal {record['pair']['signal_z']:.0f} standard deviations"
    )


COMMANDS = {"import-halves": (_add_arguments, _run)}
