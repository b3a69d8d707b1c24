"""Split a movie into two half micrographs with independent noise.

Frames are corrected by dark and gain, defects are repaired within each frame, one motion is estimated from
all frames (`motion`), and the even and the odd frames are summed after alignment.

Memory beside one movie's decoded frames: a spectrum per frame on the output grid, ``n_frames · h · w · 4 /
bin²`` bytes, and about as much again for the alignment.  Where that is more than `KEEP` allows, frames are
transformed twice instead.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import fft

from cryon2n import device, gain, log, motion, movies, warp
from cryon2n.errors import InputError
from cryon2n.halves import add_out_argument, normalise_equal, pixel_size_of, write_halves
from cryon2n.settings import add_settings_arguments, build, settings_from_arguments

KEEP = {"cpu": 3e9, "cuda": 20e9}  # bytes of spectra that are kept rather than made twice


@dataclass(frozen=True)
class SplitSettings:
    """Settings of the split.

    Attributes
    ----------
    pixel_size_A : float or None
        Å, of the raw movie; None takes the header's.
    dose_e_per_A2 : float or None
        e⁻/Å², of the whole exposure; None where unknown.  The alignment trusts early frames more by it.
    bin : int
        Fourier-crop binning of the output.
    reference_transform : str
        How gain and dark references are turned to fit the frames (`movies.TRANSFORMS`).
    reference_operation : str
        ``multiply`` or ``divide``: what the gain does to a frame.
    defects : str or None
        File with known defects (`references.read_defects`).
    defects_transform : str
        How they are turned to fit the frames.
    gain_check : str
        What a gain reference does that disagrees with the counts (`gain.check_gain`): ``error`` stops,
        ``warn`` goes on, ``off`` (or false, which is how YAML reads a bare off) does not look.
    defect_sigma : float
        Robust standard deviations beyond which a pixel of the summed movie is a defect.
    eer_fraction : int or None
        Raw frames of an EER movie in each frame; None for about 40 frames.
    alignment : str
        ``joint``: one motion from all frames.  ``independent``: each half its own, from its own frames, and
        then one shift between the two; no noise of one half has a say in the other's motion, at the price of
        less certain motions.
    motion : dict
        Settings of the alignment (`motion.MotionSettings`).
    """

    pixel_size_A: float | None = None
    dose_e_per_A2: float | None = None
    bin: int = 1
    reference_transform: str = "none"
    reference_operation: str = "multiply"
    defects: str | None = None
    defects_transform: str = "none"
    gain_check: str | bool = "error"
    defect_sigma: float = 7.0
    eer_fraction: int | None = None
    alignment: str = "joint"
    motion: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.bin < 1:
            raise InputError(f"halves setting bin: found {self.bin}, wanted 1 or more")
        for name in ("reference_transform", "defects_transform"):
            if getattr(self, name) not in movies.TRANSFORMS:
                raise InputError(
                    f"halves setting {name}: found {getattr(self, name)!r}, "
                    f"wanted one of {', '.join(movies.TRANSFORMS)}"
                )
        if self.alignment not in ("joint", "independent"):
            raise InputError(f"halves setting alignment: found {self.alignment!r}, wanted joint or independent")
        if self.gain_check not in ("error", "warn", "off", False):
            raise InputError(f"halves setting gain_check: found {self.gain_check!r}, wanted error, warn or off")
        if self.dose_e_per_A2 is not None and self.dose_e_per_A2 <= 0:
            raise InputError(f"halves setting dose_e_per_A2: found {self.dose_e_per_A2}, wanted more than 0 e⁻/Å²")
        if self.pixel_size_A is not None and self.pixel_size_A <= 0:
            raise InputError(f"halves setting pixel_size_A: found {self.pixel_size_A}, wanted more than 0 Å")


def split_movie(
    movie: movies.Movie, settings: SplitSettings, where: torch.device | str = "cpu"
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Align a movie and sum its even and its odd frames.

    Parameters
    ----------
    movie : Movie
    settings : SplitSettings
    where : torch.device

    Returns
    -------
    a, b : ndarray, shape (h // bin, w // bin), float32
        Even (0, 2, 4 …) and odd frames, in electrons per output pixel.
    record : dict
        The halves record without ``micrograph``, ``inputs`` and checksums.
    """
    where, b = torch.device(where), settings.bin
    raw_pixel = pixel_size_of(movie.pixel_size, settings.pixel_size_A, movie.path)
    motion_settings = build(motion.MotionSettings, settings.motion)
    n, h, w = movie.frames.shape
    shape, pixel_size = (h // b, w // b), raw_pixel * b
    if settings.alignment == "independent" and n < 4:
        raise InputError(f"{movie.path}: holds {n} frames; halves of one's own alignment want 4 or more")
    if min(shape) < 32:
        raise InputError(
            f"{movie.path}: frames of {h} x {w} px at bin {b} leave {shape[0]} x {shape[1]}; wanted 32 or more"
        )
    seconds = _Stopwatch()
    raw = movies.RawFrames(movie, where)
    gain_check = check_gain(raw, settings)
    seconds.lap("gain check")
    defects = movies.find_defects(raw, settings.defect_sigma)
    share = float(defects.float().mean())
    if share > 0.05:
        raise InputError(
            f"{movie.path}: {100 * share:.1f} % of the pixels are defects; wanted at most 5 %: "
            "the gain or dark reference does not belong to this movie, or is turned or flipped"
        )
    repair = movies.Repair(defects)
    movie.frames.release()
    seconds.lap("reading, defects")

    def spectra() -> Iterator[torch.Tensor]:
        for i in range(n):
            yield cropped_spectrum(repair(raw.corrected(i))[: shape[0] * b, : shape[1] * b], shape)

    keep = n * shape[0] * (shape[1] // 2 + 1) * 8 <= KEEP[where.type]
    if keep:
        kept = torch.empty(n, shape[0], shape[1] // 2 + 1, dtype=torch.complex64, device=where)
        for i, spectrum in enumerate(spectra()):
            kept[i] = spectrum
        band, grid_shape, grid_pixel = kept, shape, (pixel_size, pixel_size)
    else:
        kept = None
        cut = [motion.cut_spectra(s[None], shape, (pixel_size,) * 2, motion_settings.resolution_A) for s in spectra()]
        band, (grid_shape, grid_pixel) = torch.cat([images for images, _, _ in cut]), cut[0][1:]
        del cut
    movie.frames.release()
    seconds.lap("transforms")
    dose, groups = settings.dose_e_per_A2, [list(range(0, n, 2)), list(range(1, n, 2))]
    about = (grid_shape, grid_pixel, motion_settings)
    if settings.alignment == "joint":
        moved = motion.estimate(band, *about, dose / n if dose else None)
    else:
        moved = motion.estimate_apart(band, groups, *about, 2 * dose / n if dose else None)
    del band
    seconds.lap("alignment")
    a, b_ = warp.sum_groups(kept if keep else spectra(), groups, shape, pixel_size, moved)
    seconds.lap("sums")

    shifts = moved.extremes() / pixel_size
    try:
        valid = valid_region(shifts, shape, 0 if moved.local is None else warp.REACH)
        sides = normalise_equal(a, b_, valid, (len(groups[0]), len(groups[1])))
    except InputError as error:
        raise InputError(f"{movie.path}: {error}; look at the movie, and leave it out of the sheet") from None
    for side, own in zip(("a", "b"), groups, strict=True):
        part = None if dose is None else round(dose * len(own) / n, 6)
        sides[side] = {"frames": own, "n_frames": len(own), "dose_e_per_A2": part, **sides[side]}
    record = {
        "shape": list(shape),
        "pixel_size_A": round(pixel_size, 6),
        "valid": valid,
        **sides,
        "alignment": settings.alignment,
        "dose_weighted": False,
        "trajectory_A": np.round(moved.trajectory_A, 4).tolist(),
        "local_motion_A": None if moved.local is None else np.round(moved.local.knots_A, 3).tolist(),
        "motion": moved.info,
        "bin": b,
        "defects": int(defects.sum()),
        "reference_transform": settings.reference_transform,
        "gain_check": None if gain_check is None else gain_check.record,
        "source_frames": movie.frames.record,
        "seconds": seconds.laps,
    }
    if gain_check is not None and gain_check.verdict not in ("agrees", "flat"):
        log.say(f"warning: {movie.path}: {gain_check.sentence}")
    return a, b_, record


def cropped_spectrum(frame: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """Return the ``rfft2`` of a frame, Fourier-cropped to `shape`, in counts per new pixel.

    Transforms along x first and drops what the crop drops before the longer way along y.  The two bins
    that fall together on an even new Nyquist frequency are added, as sampling does.
    """
    (h, w), (nh, nw) = frame.shape, shape
    if frame.device.type == "cpu":
        # SciPy's transforms take 0.6 of the time of torch's here (docs/performance-notes.md).
        workers = torch.get_num_threads()
        half = np.ascontiguousarray(fft.rfft(frame.numpy(), workers=workers)[:, : nw // 2 + 1])
        rows = torch.from_numpy(fft.fft(half, axis=0, workers=workers, overwrite_x=True))
    else:
        rows = torch.fft.fft(torch.fft.rfft(frame)[:, : nw // 2 + 1], dim=0)
    if (nh, nw) == (h, w):
        return rows
    up = (nh + 1) // 2
    out = torch.cat([rows[:up], rows[h - nh // 2 :]])
    if nh % 2 == 0 and nh < h:
        out[nh // 2] += rows[nh // 2]
    if nw % 2 == 0 and nw < w:
        out[:, nw // 2] *= 2  # the inverse transform takes the mean of this column and its mirror
    return out


class _Stopwatch:
    """Seconds of each part of the work."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self.began = time.monotonic()

    def lap(self, name: str) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.monotonic()
        self.laps[name], self.began = round(now - self.began, 2), now


def check_gain(raw: movies.RawFrames, settings: SplitSettings) -> gain.GainCheck | None:
    """Check the movie's gain against its counts; None without a gain, or if the check is off.

    Raises
    ------
    InputError
        They disagree clearly, and ``settings.gain_check`` is ``error``.
    """
    movie = raw.movie
    if movie.gain is None or settings.gain_check in ("off", False):
        return None
    stored = [
        None if x is None else movies.turned_back(x, settings.reference_transform) for x in (movie.gain, movie.dark)
    ]
    check = gain.check_gain([raw], *stored, settings.reference_transform, thorough=False)
    if check.verdict in gain.DISAGREEMENTS and settings.gain_check == "error":
        raise InputError(f"{movie.path}: {check.sentence}; or go on with halves: gain_check: warn")
    return check


def valid_region(shifts: np.ndarray, shape: tuple[int, int], reach: int = 0) -> list[int]:
    """Return [y0, y1, x0, x1]: the pixels that hold real data in every aligned frame.

    A frame whose content stands at +d is moved back by d, which wraps d pixels round at the far edge;
    interpolation looks `reach` pixels further.
    """
    box = []
    for axis in (0, 1):
        low = int(np.ceil(max(0.0, float(-shifts[:, axis].min())))) + reach
        high = shape[axis] - int(np.ceil(max(0.0, float(shifts[:, axis].max())))) - reach
        if high - low < 32:
            raise InputError(f"motion of {np.ptp(shifts[:, axis]):.0f} px leaves no common region of {shape[axis]} px")
        box += [low, high]
    return box


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--movie", type=Path, required=True, help="raw movie (MRC, TIFF, EER …)")
    parser.add_argument("--gain", type=Path, help="gain reference (MRC, TIFF, DM4)")
    parser.add_argument("--dark", type=Path, help="dark reference, subtracted")
    add_out_argument(parser)
    device.add_arguments(parser)
    add_settings_arguments(parser)


def _run(args: argparse.Namespace) -> None:
    settings = settings_from_arguments(SplitSettings, args)
    where = device.choose(args.device, args.threads)
    device.keep_freed_memory()
    began = time.monotonic()
    with movies.open_movie(
        args.movie,
        args.gain,
        args.dark,
        settings.reference_transform,
        operation=settings.reference_operation,
        defects=settings.defects,
        defects_transform=settings.defects_transform,
        fraction=settings.eer_fraction,
    ) as movie:
        a, b, record = split_movie(movie, settings, where)
    defects = None if settings.defects is None else Path(settings.defects)
    inputs = {"movie": args.movie, "gain": args.gain, "dark": args.dark, "defects": defects}
    write_halves(args.out, a, b, record, {k: v for k, v in inputs.items() if v is not None}, "split-halves")
    path = np.array(record["trajectory_A"])
    travelled = float(np.linalg.norm(np.diff(path, axis=0), axis=1).sum())
    log.say(
        f"{args.out.name}: {len(path)} frames, motion {travelled:.1f} Å, {record['defects']} defects, "
        f"{time.monotonic() - began:.1f} s"
    )


COMMANDS = {"split-halves": (_add_arguments, _run)}
