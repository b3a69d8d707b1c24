"""Reading raw movies: frames corrected by dark and gain, defects found and repaired."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from cryon2n import mrcio
from cryon2n.errors import InputError


@dataclass(frozen=True)
class Movie:
    """An open movie and its references.

    Attributes
    ----------
    path : Path
    frames : ndarray, shape (n_frames, h, w)
        Raw counts, memory-mapped.
    gain : ndarray, shape (h, w), or None
        Multiplies a dark-subtracted frame.
    dark : ndarray, shape (h, w), or None
    pixel_size : float or None
        Å, from the header; None where the header holds none.
    """

    path: Path
    frames: np.ndarray
    gain: np.ndarray | None
    dark: np.ndarray | None
    pixel_size: float | None

    def corrected(self, index: int) -> np.ndarray:
        """Return frame `index`, dark-subtracted and gain-multiplied, shape (h, w), float32."""
        frame = self.frames[index].astype(np.float32)
        if not np.isfinite(frame).all():
            raise InputError(
                f"{self.path}: frame {index} holds NaN or infinite values; wanted finite counts: "
                "write the movie again or leave it out of the sheet"
            )
        if self.dark is not None:
            frame -= self.dark
        if self.gain is not None:
            frame *= self.gain
        return frame


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
    path: str | Path, gain: str | Path | None = None, dark: str | Path | None = None, transform: str = "none"
) -> Iterator[Movie]:
    """Open a movie with its references and check that they belong together.

    Parameters
    ----------
    path : path
        MRC or MRCS, ``(n_frames, h, w)``; 8-bit data are taken as unsigned counts.
    gain, dark : path, optional
        References ``(h, w)`` of the same detector.
    transform : str
        How the references are turned to the movie's orientation: one of `TRANSFORMS`.

    Raises
    ------
    InputError
        Truncated file, a single image instead of frames, or a reference of another shape.
    """
    path = Path(path)
    with mrcio.open_mrc(path) as mrc:
        frames = mrcio.frame_data(mrc.data)
        if frames.ndim != 3 or frames.shape[0] < 2:
            raise InputError(
                f"{path}: holds {'one image' if frames.ndim == 2 else f'{frames.shape[0]} frame(s)'}; "
                "Noise2Noise needs a movie of at least 2 frames (an average cannot be split)"
            )
        references = {}
        for name, reference in {"gain": gain, "dark": dark}.items():
            references[name] = (
                None if reference is None else _read_reference(reference, name, transform, frames.shape[1:], path)
            )
        yield Movie(path, frames, references["gain"], references["dark"], mrcio.header_pixel_size(mrc))


def _read_reference(path: str | Path, name: str, transform: str, shape: tuple[int, ...], movie: Path) -> np.ndarray:
    data = read_reference(path, name)
    if transform not in fitting_transforms(data.shape, shape):
        raise wrong_shape(path, name, data.shape, transform, shape, movie)
    return np.ascontiguousarray(TRANSFORMS[transform](data))


def read_reference(path: str | Path, name: str) -> np.ndarray:
    """Read a gain or dark reference as it is stored, shape (h, w), float32; `name` is for the message."""
    data, _ = mrcio.read_mrc(path)
    if data.ndim != 2:
        raise InputError(f"{path}: the {name} reference has shape {data.shape}; wanted one image (h, w)")
    return data


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


def find_defects(movie: Movie, n_sigma: float = 7.0) -> np.ndarray:
    """Find pixels that cannot be trusted: hot, dead, or without gain.

    A pixel is a defect where the sum over all frames stands more than `n_sigma` robust standard
    deviations (1.4826 MAD) from the local mean, its gain is not positive, or it never changes.  One
    molecule's contrast is far below that; a hot pixel would pull the alignment to zero shift and
    would be the same in both halves.

    Returns
    -------
    defects : ndarray of bool, shape (h, w)
    """
    n_frames, first = movie.frames.shape[0], movie.frames[0]
    total = np.zeros(first.shape, np.float32)
    steady = np.ones(first.shape, bool)
    for index in range(n_frames):
        total += movie.corrected(index)
        steady &= movie.frames[index] == first
    # Below 7² electrons a dead pixel is within 7 sigma of the mean.  By chance a good pixel of 20 or
    # more electrons stays empty in one of 5e8 cases; that equal counts recur 16 times is as rare.
    if n_frames < 16:
        steady &= first == 0
    defects = np.zeros(total.shape, bool)
    if movie.gain is not None:
        defects |= movie.gain <= 0
    # Twice, so that very hot pixels do not lift the local mean that judges their neighbours.
    for _ in range(2):
        flat = np.where(defects, np.median(total), total)
        local = ndimage.uniform_filter(flat, 65, mode="nearest")
        deviation = total - local
        good = deviation[~defects]
        sigma = 1.4826 * np.median(np.abs(good - np.median(good)))
        defects |= (np.abs(deviation) > n_sigma * max(float(sigma), 1e-6)) | (steady & (local > 20))
    return defects


class Repair:
    """Replace defect pixels of a frame by the mean of their good neighbours.

    Neighbours of the *same* frame, so that frames stay independent of each other.

    Parameters
    ----------
    defects : ndarray of bool, shape (h, w)
    """

    def __init__(self, defects: np.ndarray):
        self.defects = defects
        self.where = np.argwhere(defects)
        h, w = defects.shape
        self.neighbours = []
        for y, x in self.where:
            for radius in (1, 2, 4, 8, 16, 32):  # grows until a good pixel is found (dead columns, blocks)
                box = (
                    slice(max(y - radius, 0), min(y + radius + 1, h)),
                    slice(max(x - radius, 0), min(x + radius + 1, w)),
                )
                good = ~defects[box]
                if np.count_nonzero(good) >= 3:
                    break
            self.neighbours.append((box, good))

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        """Repair `frame`, shape (h, w), in place and return it."""
        values = [frame[box][good].mean() if good.any() else 0.0 for box, good in self.neighbours]
        frame[tuple(self.where.T)] = values
        return frame
