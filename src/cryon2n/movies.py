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
        if self.dark is not None:
            frame -= self.dark
        if self.gain is not None:
            frame *= self.gain
        return frame


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
    total = torch.zeros(first.shape, device=first.device)
    steady = torch.ones(first.shape, dtype=torch.bool, device=first.device)
    for index in range(frames.n):
        total += frames.corrected(index)
        steady &= frames.raw(index) == first
        frames.movie.frames.release()
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
        local = _local_mean(torch.where(defects, median(total), total))
        deviation = total - local
        good = deviation[~defects]
        sigma = 1.4826 * float(median((good - median(good)).abs()))
        defects |= (deviation.abs() > n_sigma * max(sigma, 1e-6)) | (steady & (local > 20))
    return defects


def _local_mean(x: torch.Tensor, size: int = 32) -> torch.Tensor:
    """Return the means of blocks of `size` pixels, interpolated linearly between the blocks' middles."""
    coarse = torch.nn.functional.avg_pool2d(x[None, None], size, ceil_mode=True, count_include_pad=False)
    h, w = x.shape
    if h % size or w % size:  # the interpolation takes all blocks for whole ones
        whole = [-(-n // size) * size for n in x.shape]
        return torch.nn.functional.interpolate(coarse, size=whole, mode="bilinear")[0, 0, :h, :w]
    return torch.nn.functional.interpolate(coarse, size=(h, w), mode="bilinear")[0, 0]


def median(x: torch.Tensor, most: int = 4_000_000) -> torch.Tensor:
    """Return the median of at most about `most` of the values, evenly chosen."""
    flat = x.flatten()
    return flat[:: max(1, flat.numel() // most)].median()


CHOICES = 8  # good pixels for each defect; even, so that even and odd frames take different ones
AT_ONCE = 1 << 17  # defects that are looked after together; bounds the memory that this takes
BLOCK = 16  # pixels; what is repaired over a whole block is no longer a defect pixel but a missing area


class Repair:
    """Replace each defect pixel of a frame by a good pixel near it.

    By a pixel of the *same* frame, so that frames stay independent of each other; by one pixel rather than
    the mean of many, so that what is filled has the mean and the variance of its surroundings, at any dose
    and over any area; by another one in each of `CHOICES` frames, so that no pixel of a sum is a copy.
    The choice is the same for every movie with these defects.

    Parameters
    ----------
    defects : tensor of bool, shape (h, w)

    Raises
    ------
    InputError
        Every pixel is a defect.
    """

    def __init__(self, defects: torch.Tensor):
        where, sources = good_pixels_near(defects.cpu().numpy(), CHOICES, np.random.default_rng(0))
        self.where, self.sources = (torch.from_numpy(x).to(defects.device) for x in (where, sources))

    def __call__(self, frame: torch.Tensor, number: int) -> torch.Tensor:
        """Repair frame `number` of a movie, shape (h, w), in place and return it."""
        flat = frame.view(-1)
        flat[self.where] = flat.index_select(0, self.sources[number % CHOICES])
        return frame


def good_pixels_near(bad: np.ndarray, choices: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Choose good pixels near each bad one.

    At random from a square about it, which ends at the image's edges; its half side is 1, 2, 4 … pixels,
    until half of what is drawn is good.  One pixel may be chosen several times.

    Parameters
    ----------
    bad : ndarray of bool, shape (h, w)
    choices : int
    rng : Generator

    Returns
    -------
    where : ndarray of int64, shape (n,)
        The bad pixels, in the flattened image.
    sources : ndarray of int32, shape (choices, n)
        The good pixels for each.
    """
    (h, w), where, flat = bad.shape, np.flatnonzero(bad), bad.ravel()
    if len(where) == bad.size:
        raise InputError("every pixel is a defect; wanted a movie with good ones: check gain, dark and defects")
    sources = np.empty((choices, len(where)), np.int32)
    for start in range(0, len(where), AT_ONCE):
        left, radius = np.arange(start, min(start + AT_ONCE, len(where))), 1
        while len(left) and radius <= 2 * max(h, w):
            y, x = (at.astype(np.int32) for at in np.divmod(where[left], w))
            y0, y1 = np.maximum(y - radius, 0), np.minimum(y + radius + 1, h)
            x0, x1 = np.maximum(x - radius, 0), np.minimum(x + radius + 1, w)
            # Deep within a bad block the square's corners are bad, too: no need to draw there.
            worth = ~(bad[y0, x0] & bad[y0, x1 - 1] & bad[y1 - 1, x0] & bad[y1 - 1, x1 - 1])
            inside, y0, y1, x0, x1 = left[worth], *(at[worth, None] for at in (y0, y1, x0, x1))
            random = rng.random((2, len(inside), 2 * choices), np.float32)  # below 1, and times n below n
            drawn = (y0 + (random[0] * (y1 - y0)).astype(np.int32)) * w + x0 + (random[1] * (x1 - x0)).astype(np.int32)
            good = ~flat[drawn]
            rank = good.cumsum(1, dtype=np.int16)
            enough = rank[:, -1] >= choices
            chosen = drawn[enough][(good & (rank <= choices))[enough]]
            sources[:, inside[enough]] = chosen.reshape(-1, choices).T
            left = np.concatenate([left[~worth], inside[~enough]])
            radius *= 2
        if len(left):  # more than half of all pixels are bad
            sources[:, left] = rng.choice(np.flatnonzero(~flat), (choices, len(left)))
    return where, sources


def repaired_area_percent(defects: torch.Tensor) -> float:
    """Percentage of the blocks of `BLOCK` x `BLOCK` pixels of a frame (h, w) that hold no good pixel."""
    whole = torch.nn.functional.max_pool2d((~defects)[None, None].float(), BLOCK) == 0
    return round(100 * float(whole.float().mean()), 4)
