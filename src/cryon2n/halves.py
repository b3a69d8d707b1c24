"""Split a movie into two half micrographs with independent noise.

Frames are corrected by dark and gain, defects are repaired within each frame, one trajectory is
estimated from all frames, and the even and the odd frames are summed after alignment, without dose
weighting.  Working set: one output-grid spectrum per frame, ``n_frames · h · w · 4 / bin²`` bytes.
"""

import argparse
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy import fft

from cryon2n import __version__, files, fourier, gain, log, motion, movies, mrcio, pair
from cryon2n.errors import InputError
from cryon2n.settings import add_settings_arguments, build, settings_from_arguments


@dataclass(frozen=True)
class HalvesSettings:
    """Settings of the split.

    Attributes
    ----------
    pixel_size_A : float or None
        Å, of the raw movie; None takes the header's.
    dose_e_per_A2 : float or None
        e⁻/Å², of the whole exposure; None where unknown.
    bin : int
        Fourier-crop binning of the output.
    reference_transform : str
        How gain and dark references are turned to fit the frames (`movies.TRANSFORMS`).
    gain_check : str
        What a gain reference does that disagrees with the counts (`gain.check_gain`): ``error`` stops,
        ``warn`` goes on, ``off`` (or false, which is how YAML reads a bare off) does not look.
    defect_sigma : float
        Robust standard deviations beyond which a pixel of the summed movie is a defect.
    motion : dict
        Settings of the alignment (`motion.MotionSettings`).
    """

    pixel_size_A: float | None = None
    dose_e_per_A2: float | None = None
    bin: int = 1
    reference_transform: str = "none"
    gain_check: str | bool = "error"
    defect_sigma: float = 7.0
    motion: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.bin < 1:
            raise InputError(f"halves setting bin: found {self.bin}, wanted 1 or more")
        if self.reference_transform not in movies.TRANSFORMS:
            raise InputError(
                f"halves setting reference_transform: found {self.reference_transform!r}, "
                f"wanted one of {', '.join(movies.TRANSFORMS)}"
            )
        if self.gain_check not in ("error", "warn", "off", False):
            raise InputError(f"halves setting gain_check: found {self.gain_check!r}, wanted error, warn or off")
        if self.pixel_size_A is not None and self.pixel_size_A <= 0:
            raise InputError(f"halves setting pixel_size_A: found {self.pixel_size_A}, wanted more than 0 Å")


def split_movie(movie: movies.Movie, settings: HalvesSettings) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Align a movie and sum its even and its odd frames.

    Parameters
    ----------
    movie : Movie
    settings : HalvesSettings

    Returns
    -------
    a, b : ndarray, shape (h // bin, w // bin), float32
        Even (0, 2, 4 …) and odd frames, in electrons per output pixel.
    record : dict
        The halves record without ``micrograph``, ``inputs`` and checksums.
    """
    raw_pixel = pixel_size_of(movie.pixel_size, settings.pixel_size_A, movie.path)
    n, h, w = movie.frames.shape
    b = settings.bin
    out = (h // b, w // b)
    if min(out) < 32:
        raise InputError(
            f"{movie.path}: frames of {h} x {w} px at bin {b} leave {out[0]} x {out[1]}; wanted 32 or more"
        )
    gain_check = check_gain(movie, settings)  # first: it takes seconds, and the rest minutes
    defects = movies.find_defects(movie, settings.defect_sigma)
    if defects.mean() > 0.05:
        raise InputError(
            f"{movie.path}: {100 * defects.mean():.1f} % of the pixels are defects; wanted at most 5 %: "
            "the gain or dark reference does not belong to this movie, or is turned or flipped"
        )
    repair = movies.Repair(defects)
    spectra = np.empty((n, out[0], out[1] // 2 + 1), np.complex64)
    for i in range(n):
        frame = repair(movie.corrected(i))[: out[0] * b, : out[1] * b]
        spectra[i] = fourier.crop_spectrum(fft.rfft2(frame), frame.shape, out)
    spectra *= b * b  # the crop keeps the mean; counts per larger pixel are wanted

    pixel_size = raw_pixel * b
    trajectory = motion.align_frames(spectra, out, pixel_size, build(motion.MotionSettings, settings.motion))
    shifts = trajectory / pixel_size
    halves = []
    for start in (0, 1):
        total = np.zeros(spectra.shape[1:], np.complex64)
        for i in range(start, n, 2):
            total += spectra[i] * fourier.shift_phase(out, -shifts[i])
        halves.append(fft.irfft2(total, s=out).astype(np.float32))

    valid = valid_region(shifts, out)
    frames = [list(range(0, n, 2)), list(range(1, n, 2))]
    sides = normalise_equal(halves[0], halves[1], valid, (len(frames[0]), len(frames[1])))
    dose = settings.dose_e_per_A2
    for side, own in zip(("a", "b"), frames, strict=True):
        share = None if dose is None else round(dose * len(own) / n, 6)
        sides[side] = {"frames": own, "n_frames": len(own), "dose_e_per_A2": share, **sides[side]}
    record = {
        "shape": list(out),
        "pixel_size_A": round(pixel_size, 6),
        "valid": valid,
        **sides,
        "alignment": "joint",
        "dose_weighted": False,
        "trajectory_A": np.round(trajectory, 4).tolist(),
        "bin": b,
        "defects": int(defects.sum()),
        "reference_transform": settings.reference_transform,
        "gain_check": None if gain_check is None else gain_check.record,
    }
    if gain_check is not None and gain_check.verdict not in ("agrees", "flat"):
        log.say(f"warning: {movie.path}: {gain_check.sentence}")
    return halves[0], halves[1], record


def check_gain(movie: movies.Movie, settings: HalvesSettings) -> gain.GainCheck | None:
    """Check the movie's gain against its counts; None without a gain, or if the check is off.

    Raises
    ------
    InputError
        They disagree clearly, and ``settings.gain_check`` is ``error``.
    """
    if movie.gain is None or settings.gain_check in ("off", False):
        return None
    stored = [
        None if x is None else movies.turned_back(x, settings.reference_transform) for x in (movie.gain, movie.dark)
    ]
    check = gain.check_gain([movie.frames], *stored, settings.reference_transform)
    if check.verdict in gain.DISAGREEMENTS and settings.gain_check == "error":
        raise InputError(f"{movie.path}: {check.sentence}; or go on with halves: gain_check: warn")
    return check


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


def valid_region(shifts: np.ndarray, shape: tuple[int, int]) -> list[int]:
    """Return [y0, y1, x0, x1]: the pixels that hold real data in every aligned frame.

    A frame whose content stands at +d is moved back by d, which wraps d pixels round at the far edge.
    """
    box = []
    for axis in (0, 1):
        low = int(np.ceil(max(0.0, float(-shifts[:, axis].min()))))
        high = shape[axis] - int(np.ceil(max(0.0, float(shifts[:, axis].max()))))
        if high - low < 32:
            raise InputError(f"motion of {np.ptp(shifts[:, axis]):.0f} px leaves no common region of {shape[axis]} px")
        box += [low, high]
    return box


def robust_mean(x: np.ndarray) -> float:
    """Mean of the values within 6 robust standard deviations of the median."""
    median = np.median(x)
    sigma = 1.4826 * np.median(np.abs(x - median))
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
        raise InputError("both halves are constant; wanted images with noise: check the movie")
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
            "inputs": {path.name: files.sha256_of(path) for path in inputs.values()},
        },
    )


def add_out_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--out``, where `write_halves` writes."""
    text = "writes PREFIX_a.mrc, PREFIX_b.mrc, PREFIX.json"
    parser.add_argument("--out", type=Path, required=True, metavar="PREFIX", help=text)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--movie", type=Path, required=True, help="raw movie (MRC)")
    parser.add_argument("--gain", type=Path, help="gain reference, multiplied")
    parser.add_argument("--dark", type=Path, help="dark reference, subtracted")
    add_out_argument(parser)
    parser.add_argument("--threads", type=int, default=1)
    add_settings_arguments(parser)


def _run(args: argparse.Namespace) -> None:
    settings = settings_from_arguments(HalvesSettings, args)
    began = time.monotonic()
    with (
        fft.set_workers(max(1, args.threads)),
        movies.open_movie(args.movie, args.gain, args.dark, settings.reference_transform) as movie,
    ):
        a, b, record = split_movie(movie, settings)
    inputs = {"movie": args.movie, "gain": args.gain, "dark": args.dark}
    write_halves(args.out, a, b, record, {k: v for k, v in inputs.items() if v is not None}, "split-halves")
    path = np.array(record["trajectory_A"])
    travelled = float(np.linalg.norm(np.diff(path, axis=0), axis=1).sum())
    log.say(
        f"{args.out.name}: {len(path)} frames, motion {travelled:.1f} Å, {record['defects']} defects, "
        f"{time.monotonic() - began:.1f} s"
    )


COMMANDS = {"split-halves": (_add_arguments, _run)}
