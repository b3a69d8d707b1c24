"""Reading raw movies: frames corrected by dark and gain, defects found and repaired."""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cryon2n import references
from cryon2n.errors import InputError
from cryon2n.frame_range import FrameRange
from cryon2n.frames import Frames, open_frames
from cryon2n.repair import evenly, local_mean


@dataclass(frozen=True)
class Movie:
    """An open movie and its references.

    Attributes
    ----------
    path : Path
    frames : Frames
        Raw counts: ``frames[i]`` has shape (h, w).
    gain : ndarray, shape (h, w), or None
        Multiplies a dark-subtracted frame.
    dark : ndarray, shape (h, w), or None
    pixel_size : float or None
        Å, from the header; None where the header holds none.
    defects : ndarray of bool, shape (h, w), or None
        Defects known beforehand.
    """

    path: Path
    frames: Frames
    gain: np.ndarray | None
    dark: np.ndarray | None
    pixel_size: float | None
    defects: np.ndarray | None = None


# The eight orientations in which a program may have written a reference.
TRANSFORMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "none": lambda x: x,
    "flip_y": lambda x: x[::-1],
    "flip_x": lambda x: x[:, ::-1],
    "rotate_180": lambda x: x[::-1, ::-1],
    "rotate_90": lambda x: np.rot90(x, 1),
    "rotate_270": lambda x: np.rot90(x, 3),
    "transpose": lambda x: x.T,
    "antitranspose": lambda x: x[::-1, ::-1].T,
}


def turned_back(reference: np.ndarray, transform: str) -> np.ndarray:
    """Return a reference that was turned by `transform` as it is stored."""
    # All are their own inverse but the two quarter turns, which are each other's.
    inverse = {"rotate_90": "rotate_270", "rotate_270": "rotate_90"}.get(transform, transform)
    return TRANSFORMS[inverse](reference)


@contextlib.contextmanager
def open_movie(
    path: str | Path,
    gain: str | Path | None = None,
    dark: str | Path | None = None,
    transform: str = "none",
    *,
    operation: str = "multiply",
    defects: str | Path | None = None,
    defects_transform: str = "none",
    fraction: int | None = None,
    frames: FrameRange | None = None,
) -> Iterator[Movie]:
    """Open a movie with its references and check that they belong together.

    Parameters
    ----------
    path : path
        A movie of any format that `frames.open_frames` reads.
    gain, dark : path, optional
        References ``(h, w)`` of the same detector (`references.read_reference`).
    transform : str
        How the references are turned to the movie's orientation: one of `TRANSFORMS`.
    operation : str
        What the gain does to a frame: ``multiply`` or ``divide`` (`references.OPERATIONS`).
    defects : path, optional
        List or image of defects (`references.read_defects`).
    defects_transform : str
        How the defects are turned to the movie's orientation.  MotionCor2's y counts from the last row of a TIFF:
        ``flip_y``.
    fraction : int, optional
        Raw frames of an EER movie in each frame.
    frames : FrameRange, optional
        The frames to use (of an EER: after they were summed), numbered anew from 0.  Default: all.

    Raises
    ------
    InputError
        Truncated file, a single image instead of frames, or a reference of another shape.
    """
    path = Path(path)
    with open_frames(path, fraction) as opened:
        if len(opened) < 2:
            raise InputError(
                f"{path}: holds {len(opened)} frame(s); "
                "Noise2Noise needs a movie of at least 2 frames (an average cannot be split)"
            )
        shape = opened.shape[1:]
        pair = {
            name: None if file is None else _fitting_reference(file, name, transform, shape, path)
            for name, file in {"gain": gain, "dark": dark}.items()
        }
        if pair["gain"] is not None:
            pair["gain"] = references.as_multiplier(pair["gain"], operation)
        known = None
        if defects is not None:
            stored = turned_back(np.broadcast_to(False, shape), defects_transform).shape
            known = np.ascontiguousarray(TRANSFORMS[defects_transform](references.read_defects(defects, stored)))
        yield Movie(
            path, opened if frames is None else opened.part(frames), **pair, pixel_size=opened.pixel_size, defects=known
        )


def _fitting_reference(path: str | Path, name: str, transform: str, shape: tuple[int, ...], movie: Path) -> np.ndarray:
    data = references.read_reference(path, name)
    if transform not in fitting_transforms(data.shape, shape):
        raise wrong_shape(path, name, data.shape, transform, shape, movie)
    return np.ascontiguousarray(TRANSFORMS[transform](data))


def fitting_transforms(reference: tuple[int, ...], frame: tuple[int, ...]) -> list[str]:
    """Return the names of the `TRANSFORMS` that give a reference of shape `reference` the shape `frame`."""
    blank = np.broadcast_to(np.int8(0), reference)
    return [name for name, turn in TRANSFORMS.items() if turn(blank).shape == tuple(frame)]


def wrong_shape(
    path: str | Path, name: str, found: tuple[int, ...], transform: str, frame: tuple[int, ...], movie: str | Path
) -> InputError:
    """Return the error for a reference whose shape, turned by `transform`, is not that of the frames."""
    fitting = fitting_transforms(found, frame)
    hint = (
        f"; it is turned by 90 degrees: set reference_transform to {', '.join(fitting[:-1])} or {fitting[-1]} "
        "(cryon2n check-gain tells which)"
        if fitting
        else ""
    )
    turned = "" if transform == "none" else f" before reference_transform: {transform}"
    return InputError(
        f"{path}: the {name} reference has shape {found}{turned}, but the frames of {movie} have {tuple(frame)}; "
        f"give the {name} reference of this detector and binning{hint}"
    )


class RawFrames:
    """The frames of a movie on the device where the work is done, read or decoded once.

    An uncompressed movie stays in its file where the work is done on the CPU (it is mapped into memory).
    Everything else is kept as it was decoded, which is one movie's frames at most.

    Parameters
    ----------
    movie : Movie
    where : torch.device
    """

    def __init__(self, movie: Movie, where: torch.device):
        self.movie, self.where, self.n = movie, where, len(movie.frames)
        self.kept: list[torch.Tensor | None] = [None] * self.n
        self.gain, self.dark, self.known = (
            None if x is None else torch.as_tensor(x).to(where) for x in (movie.gain, movie.dark, movie.defects)
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(n_frames, h, w)."""
        return self.movie.frames.shape

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> np.ndarray:
        """Return frame `index` as recorded, shape (h, w), as an array; not to be changed."""
        frame = self.kept[index]
        if frame is None:
            array = self.movie.frames[index]
            if not array.flags.writeable and self.where.type == "cpu":
                return array  # a view of the file
            self._keep(index, array)
            return array
        return frame.cpu().numpy()

    def raw(self, index: int) -> torch.Tensor:
        """Return frame `index` as recorded, shape (h, w); not to be changed."""
        if self.kept[index] is None:
            array = self.movie.frames[index]
            if not array.flags.writeable and self.where.type == "cpu":
                return _as_tensor(array)
            self._keep(index, array)
        return self.kept[index]

    def _keep(self, index: int, array: np.ndarray) -> None:
        self.kept[index] = _as_tensor(array).to(self.where)

    def corrected(self, index: int) -> torch.Tensor:
        """Return frame `index`, dark-subtracted and gain-multiplied, shape (h, w), float32, to be changed at will."""
        raw = self.raw(index)
        frame = raw.to(torch.float32, copy=True)
        if raw.is_floating_point() and not torch.isfinite(frame).all():
            raise InputError(
                f"{self.movie.path}: frame {index} holds NaN or infinite values; wanted finite counts: "
                "write the movie again or leave it out of the sheet"
            )
        return self.correct(frame)

    def correct(self, counts: torch.Tensor, n: int = 1) -> torch.Tensor:
        """Subtract the dark from the sum of n recorded frames (h, w), float32, and multiply by the gain, in place."""
        if self.dark is not None:
            counts.sub_(self.dark, alpha=n)
        if self.gain is not None:
            counts *= self.gain
        return counts


def _as_tensor(array: np.ndarray) -> torch.Tensor:
    """Return an array's memory as a tensor, of a type that torch can calculate with."""
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if array.dtype == np.uint16:
        array = array.astype(np.int32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a view of the file is read-only, and nobody writes to it
        return torch.from_numpy(array)


def find_defects(frames: RawFrames, n_sigma: float = 7.0) -> torch.Tensor:
    """Find pixels that cannot be trusted: hot, dead, or without gain.

    A pixel is a defect where the sum over all frames stands more than `n_sigma` robust standard
    deviations (1.4826 MAD) from the local mean, its gain is not positive, it never changes, or the
    movie's defects are known to include it.  One molecule's contrast is far below that; a hot pixel would
    pull the alignment to zero shift and would be the same in both halves.

    Returns
    -------
    defects : tensor of bool, shape (h, w)
    """
    first = frames.raw(0)
    counted = not first.is_floating_point()  # whole numbers are added up as they are, and corrected once
    whole = torch.int16 if first.element_size() == 1 and frames.n <= 128 else torch.int32
    total = torch.zeros(first.shape, dtype=whole if counted else torch.float32, device=first.device)
    steady = torch.ones(first.shape, dtype=torch.bool, device=first.device)
    for index in range(frames.n):
        total += frames.raw(index) if counted else frames.corrected(index)
        steady &= frames.raw(index) == first
        frames.movie.frames.release()
    if counted:
        total = frames.correct(total.float(), frames.n)
    # Below 7² electrons a dead pixel is within 7 sigma of the mean.  By chance a good pixel of 20 or
    # more electrons stays empty in one of 5e8 cases; that equal counts recur 16 times is as rare.
    if frames.n < 16:
        steady &= first == 0
    defects = torch.zeros_like(steady)
    if frames.gain is not None:
        defects |= frames.gain <= 0
    if frames.known is not None:
        defects |= frames.known
    # Twice, so that very hot pixels do not lift the local mean that judges their neighbours.
    for _ in range(2):
        local = local_mean(torch.where(defects, evenly(total).median(), total))
        deviation = total - local
        good = evenly(deviation)[~evenly(defects)]
        sigma = 1.4826 * float((good - good.median()).abs().median())
        defects |= (deviation.abs() > n_sigma * max(sigma, 1e-6)) | (steady & (local > 20))
    return defects


BLOCK = 16  # pixels; what is repaired over a whole block is no longer a defect pixel but a missing area


def repaired_area_percent(defects: torch.Tensor) -> float:
    """Percentage of the blocks of `BLOCK` x `BLOCK` pixels of a frame (h, w) that hold no good pixel."""
    whole = torch.nn.functional.max_pool2d((~defects)[None, None].float(), BLOCK) == 0
    return round(100 * float(whole.float().mean()), 4)
