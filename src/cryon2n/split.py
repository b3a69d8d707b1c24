"""Split a movie into two half micrographs with independent noise, and on request into more groups of frames.

Frames are corrected by dark and gain, defects are repaired within each frame, one motion is estimated from
all frames (`motion`), and the even and the odd frames are summed after alignment.  With K groups, frame i
belongs to group i mod K, and the halves are the sums of their groups.

Memory beside one movie's decoded frames: a spectrum per frame on the output grid, ``n_frames · h · w · 4 /
bin²`` bytes, and about as much again for the alignment.  Where that is more than `KEEP` allows, frames are
transformed twice instead.  The sums come after the alignment: two images of ``h · w · 4 / bin²`` bytes for
each of K groups, and the two halves.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import fft

from cryon2n import dose, gain, log, memory, motion, movies, warp
from cryon2n.errors import InputError
from cryon2n.frame_range import parse_frame_range
from cryon2n.halves import normalise_equal, normalise_groups, pixel_size_of
from cryon2n.repair import Repair
from cryon2n.settings import build

KEEP = {"cpu": 3e9, "cuda": 20e9}  # bytes of spectra that are kept rather than made twice


@dataclass(frozen=True)
class SplitSettings:
    """Settings of the split.

    Attributes
    ----------
    pixel_size_A : float or None
        Å, of the raw movie; None takes the header's.
    dose_e_per_A2 : float or None
        e⁻/Å², of all frames of the movie's file; None where unknown.  The alignment trusts early frames more
        by it.
    voltage_kV : float
        Of the microscope: 300 or 200; radiation damage depends on it (`dose.voltage_scale`).
    dose_weighting : bool
        Weight the frames by what radiation damage has left of them (`dose.frame_weights`); wants the dose.
    frames : str or None
        The frames to use, counted from 0, both ends included, such as ``2-37``; None for all.
    groups : int
        Groups of frames that are summed apart, even: frame i (of those used) belongs to group i mod `groups`.
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
    voltage_kV: float = 300.0
    dose_weighting: bool = False
    frames: str | None = None
    groups: int = 2
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
        if self.groups < 2 or self.groups % 2:
            raise InputError(
                f"halves setting groups: found {self.groups}, wanted an even number from 2 on, "
                "so that each group lies in one half"
            )
        if self.dose_weighting and self.dose_e_per_A2 is None:
            raise InputError("halves setting dose_weighting: wants the movie's dose; give dose_e_per_A2 in e⁻/Å²")
        dose.voltage_scale(self.voltage_kV)
        if self.frames is not None:
            parse_frame_range(self.frames)


class Split(NamedTuple):
    """What a movie was split into.

    Attributes
    ----------
    a, b : ndarray, shape (h // bin, w // bin), float32
        Sums of the even (0, 2, 4 …) and of the odd of the frames that were used, in electrons per output pixel.
    record : dict
        The halves record without ``micrograph``, ``inputs`` and checksums.
    groups : ndarray, shape (K, h // bin, w // bin), float32, or None
        Sums of the K groups of frames; None for two, which are the halves.
    """

    a: np.ndarray
    b: np.ndarray
    record: dict[str, Any]
    groups: np.ndarray | None


def split_movie(movie: movies.Movie, settings: SplitSettings, where: torch.device | str = "cpu") -> Split:
    """Align a movie's frames and sum them in groups: `align_movie`, and the record."""
    return align_movie(movie, settings, where)()


def align_movie(
    movie: movies.Movie,
    settings: SplitSettings,
    where: torch.device | str = "cpu",
    loaded: movies.RawFrames | None = None,
) -> Callable[[], Split]:
    """Align a movie's frames and sum them in groups; the function that is returned makes the record, on a CPU.

    Parameters
    ----------
    movie : Movie
        Of its frames, those of ``settings.frames`` are used.
    settings : SplitSettings
    where : torch.device
    loaded : RawFrames, optional
        The frames of `used_frames`, if they were read before.
    """
    where, b = torch.device(where), settings.bin
    raw_pixel = pixel_size_of(movie.pixel_size, settings.pixel_size_A, movie.path)
    motion_settings = build(motion.MotionSettings, settings.motion)
    per_frame = dose_per_frame(movie, settings)
    movie = used_frames(movie, settings) if loaded is None else loaded.movie
    n, h, w = movie.frames.shape
    shape, pixel_size = (h // b, w // b), raw_pixel * b
    if n < settings.groups:
        raise InputError(
            f"{movie.path}: {n} frames are too few for {settings.groups} groups of at least one frame; "
            f"wanted {settings.groups} or more: lower halves: groups, or use more frames"
        )
    if settings.alignment == "independent" and n < 4:
        raise InputError(f"{movie.path}: holds {n} frames; halves of one's own alignment want 4 or more")
    if min(shape) < 32:
        raise InputError(
            f"{movie.path}: frames of {h} x {w} px at bin {b} leave {shape[0]} x {shape[1]}; wanted 32 or more"
        )
    seconds = _Stopwatch()
    raw = loaded or movies.RawFrames(movie, where)
    gain_check = check_gain(raw, settings)
    seconds.lap("gain check")
    defects = movies.find_defects(raw, settings.defect_sigma)
    share = float(defects.float().mean())
    if share > 0.05:
        raise InputError(
            f"{movie.path}: {100 * share:.1f} % of the pixels are defects; wanted at most 5 %: "
            "the gain or dark reference does not belong to this movie, or is turned or flipped"
        )
    repair = Repair(defects)
    movie.frames.release()
    trim(where)
    seconds.lap("reading, defects")

    def spectra() -> Iterator[torch.Tensor]:
        for i in range(n):
            yield cropped_spectrum(repair(raw.corrected(i), i)[: shape[0] * b, : shape[1] * b], shape)
            movie.frames.release()  # each frame is wanted once in a pass

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
    trim(where)
    seconds.lap("transforms")
    groups = [list(range(k, n, settings.groups)) for k in range(settings.groups)]
    members = [list(range(k, n, 2)) for k in range(2)]  # of the halves
    about = (grid_shape, grid_pixel, motion_settings)
    damaging = per_frame / dose.voltage_scale(settings.voltage_kV) if per_frame else None  # as much as at 300 kV
    if settings.alignment == "joint":
        moved = motion.estimate(band, *about, damaging)
    else:
        moved = motion.estimate_apart(band, members, *about, 2 * damaging if damaging else None)
    del band
    trim(where)
    seconds.lap("alignment")
    weights = None
    if settings.dose_weighting:
        frequencies = warp.weight_frequencies(shape, pixel_size)
        weights = dose.frame_weights(frequencies, per_frame * np.arange(n), groups, settings.voltage_kV)
    sums = warp.sum_groups(kept if keep else spectra(), groups, shape, pixel_size, moved, weights)
    del kept
    trim(where)
    a, b_ = sums if len(sums) == 2 else (sums[k::2].sum(0) for k in range(2))
    seconds.lap("sums")
    n_defects, repaired = int(defects.sum()), movies.repaired_area_percent(defects)

    def finish() -> Split:
        shifts = moved.extremes() / pixel_size
        try:
            valid = valid_region(shifts, shape, 0 if moved.local is None else warp.REACH)
            sides = normalise_equal(a, b_, valid, (len(members[0]), len(members[1])))
        except InputError as error:
            raise InputError(f"{movie.path}: {error}; look at the movie, and leave it out of the sheet") from None
        first = movie.frames.first
        for side, own in zip("ab", members, strict=True):
            sides[side] = {**content(own, first, per_frame), **sides[side]}
        record = {
            "shape": list(shape),
            "pixel_size_A": round(pixel_size, 6),
            "valid": valid,
            **sides,
            "alignment": settings.alignment,
            "dose_weighted": settings.dose_weighting,
            "voltage_kV": settings.voltage_kV,
            "trajectory_A": np.round(moved.trajectory_A, 4).tolist(),
            "local_motion_A": None if moved.local is None else np.round(moved.local.knots_A, 3).tolist(),
            "motion": moved.info,
            "bin": b,
            "defects": n_defects,
            "repaired_area_percent": repaired,
            "reference_transform": settings.reference_transform,
            "gain_check": None if gain_check is None else gain_check.record,
            "source_frames": movie.frames.record,
            "seconds": seconds.laps,
        }
        if len(groups) > 2:
            unit = record["a"]["scale"] / record["a"]["n_frames"]
            normal = normalise_groups(sums, valid, [len(own) for own in groups], unit)
            record["groups"] = [
                {**content(own, first, per_frame), **side} for own, side in zip(groups, normal, strict=True)
            ]
        if gain_check is not None and gain_check.verdict not in ("agrees", "flat"):
            log.say(f"warning: {movie.path}: {gain_check.sentence}")
        return Split(a, b_, record, sums if len(groups) > 2 else None)

    return finish


def trim(where: torch.device) -> None:
    """Give freed memory back between parts of the work that want blocks of other sizes; on a GPU these lie there."""
    if where.type == "cpu":
        memory.give_back_freed_memory()


def used_frames(movie: movies.Movie, settings: SplitSettings) -> movies.Movie:
    """Return a movie with those of its frames that ``settings.frames`` names."""
    if settings.frames is None:
        return movie
    return replace(movie, frames=movie.frames.part(parse_frame_range(settings.frames)))


def dose_per_frame(movie: movies.Movie, settings: SplitSettings) -> float | None:
    """Return e⁻/Å² of one frame: the file's dose falls on all its raw frames, used or not; None where unknown."""
    if settings.dose_e_per_A2 is None:
        return None
    source = movie.frames.source
    return settings.dose_e_per_A2 * source.group / source.raw


def content(own: list[int], first: int, dose_per_frame: float | None) -> dict[str, Any]:
    """Return what a sum of frames holds, for the record: the frames' numbers in the file, and their dose."""
    taken = None if dose_per_frame is None else round(dose_per_frame * len(own), 6)
    return {"frames": [first + i for i in own], "n_frames": len(own), "dose_e_per_A2": taken}


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
            torch.cuda.current_stream().synchronize()  # not of a thread that reads ahead
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
    frames = raw if raw.where.type == "cpu" else [raw.raw(i) for i in range(raw.n)]
    check = gain.check_gain([frames], *stored, settings.reference_transform, thorough=False)
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
