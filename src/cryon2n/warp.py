"""Sum groups of frames of a movie, each frame moved back by its motion and, on request, weighted by its dose.

A shift of the whole frame is a phase ramp: exact.  What a place departs from it is a small, smooth
displacement: bicubic interpolation (Keys 1981, with the slope -3/4 that torch uses), whose mean loss of
power over the displacements of each frame is made up for beforehand, so that white noise stays white.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import fft

from cryon2n import fourier

if TYPE_CHECKING:
    from cryon2n.local_motion import LocalField
    from cryon2n.motion import Motion

KEYS_SLOPE = -0.75
REACH = 2  # pixels to either side that the kernel looks at
FRACTIONS = 32  # of a pixel: how finely displacements are told apart when interpolation's loss is made up for
STEPS = 8  # of a weight's frequency between one ring of the spectrum and the next
PLACES = 24  # along each axis, at which a frame's displacements are looked at for this


def sum_groups(
    spectra: Iterable[torch.Tensor],
    groups: Sequence[Sequence[int]],
    shape: tuple[int, int],
    pixel_size: float,
    motion: "Motion",
    weights: np.ndarray | None = None,
) -> np.ndarray:
    """Return the sums of groups of frames, each moved back by its motion, shape (n_groups, h, w), float32.

    Memory: a spectrum or an image per group, ``n_groups · h · w · 4`` bytes, and the sums themselves; with weights
    half an image more.

    Parameters
    ----------
    spectra : tensors, shape (h, w // 2 + 1) each
        ``rfft2`` of the frames, in order.
    groups : sequence of sequence of int
        Frame numbers.
    shape : (h, w)
    pixel_size : float
        Å.
    motion : Motion
    weights : ndarray, shape (n_frames, n_rings), optional
        Of each frame, at the frequencies of `weight_frequencies`.
    """
    total: list[torch.Tensor | None] = [None] * len(groups)
    member = {t: g for g, group in enumerate(groups) for t in group}
    shifts = -motion.trajectory_A / pixel_size
    rings = None
    # The sum's content stands where it stood in frame 0; the field is that of places in the mean frame.
    offset = motion.trajectory_A.mean(0) / pixel_size
    factors = None if motion.local is None else making_up(motion.local, shape, pixel_size, offset)
    places = None
    for t, spectrum in enumerate(spectra):
        if t not in member:
            continue
        if motion.local is not None and places is None:
            places = motion.local.sampling(shape, offset, pixel_size, spectrum.device)
        axes = fourier.shift_phase_axes(shape, shifts[t])
        if factors is not None:
            axes = [axis * factor[t] for axis, factor in zip(axes, factors, strict=True)]
        rows, columns = (torch.as_tensor(axis, device=spectrum.device) for axis in axes)
        moved = (spectrum * rows[:, None]).mul_(columns)
        if weights is not None:
            if rings is None:
                rings = weight_rings(shape, spectrum.device)
            moved *= torch.as_tensor(weights[t], dtype=torch.float32, device=spectrum.device)[rings]
        if motion.local is not None:
            moved = pull(inverse(moved, shape), places(t))
        group = member[t]
        total[group] = moved if total[group] is None else total[group].add_(moved)
    # Page-locked for a GPU: a copy to memory that was never touched waits for the system, page by page.
    out = torch.empty((len(groups), *shape), pin_memory=total[0].device.type == "cuda")
    for g, image in enumerate(out):
        image.copy_(total[g] if motion.local is not None else inverse(total[g], shape))
        total[g] = None  # as the sums fill up, their spectra go
    return out.numpy()


def weight_frequencies(shape: tuple[int, int], pixel_size: float) -> np.ndarray:
    """Return the frequencies in 1/Å at which `sum_groups` takes weights, from 0 to the corner of the spectrum."""
    steps = STEPS * max(shape)
    return np.arange(int(np.ceil(steps / np.sqrt(2))) + 2) / (steps * pixel_size)


def weight_rings(shape: tuple[int, int], device: torch.device | str) -> torch.Tensor:
    """Return for each bin of ``rfft2`` the nearest of `weight_frequencies`, shape (h, w // 2 + 1), int32."""
    y, x = torch.fft.fftfreq(shape[0], device=device), torch.fft.rfftfreq(shape[1], device=device)
    return torch.hypot(y[:, None], x).mul_(STEPS * max(shape)).round_().int()


def inverse(spectrum: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """Return the ``irfft2`` of a spectrum; on a CPU by SciPy, which takes 0.8 of the time."""
    if spectrum.device.type != "cpu":
        return torch.fft.irfft2(spectrum, s=shape)
    return torch.from_numpy(fft.irfft2(spectrum.numpy(), s=shape, workers=torch.get_num_threads()))


def pull(image: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Return an image (h, w) at `places` (h, w, 2), by bicubic interpolation; edges are repeated.

    Places are as `LocalField.sampling` gives them.
    """
    return torch.nn.functional.grid_sample(
        image[None, None], places[None], mode="bicubic", padding_mode="border", align_corners=True
    )[0, 0]


def making_up(field: "LocalField", shape: tuple[int, int], pixel_size: float, offset: np.ndarray) -> list[np.ndarray]:
    """Return by what to multiply each frame's spectrum so that interpolation keeps the power of white noise.

    By what the frame's displacements lose on average, along each axis by itself.  Not by what all fractions of
    a pixel would lose: the first frame, which dose weighting trusts most, is not displaced at all.

    Parameters
    ----------
    field : LocalField
    shape : (h, w)
    pixel_size : float
        Å.
    offset : ndarray, shape (2,)
        As `LocalField.sampling` takes it.

    Returns
    -------
    list of ndarray, float32
        Of rows, shape (n_frames, h), and of columns, shape (n_frames, w // 2 + 1).
    """
    places = (np.arange(PLACES) + 0.5) / PLACES
    points = np.stack(np.meshgrid(places, places, indexing="ij"), -1).reshape(-1, 2) + offset / shape
    bins = np.rint(field.at(points) * (FRACTIONS / pixel_size)).astype(int) % FRACTIONS
    share = np.stack([(bins == k).mean(1) for k in range(FRACTIONS)])  # (FRACTIONS, n_frames, 2)
    kept = [power_kept(f) for f in (np.fft.fftfreq(shape[0]), np.fft.rfftfreq(shape[1]))]
    # Were all of a frame half a pixel off, nothing would be left at Nyquist; no noise is raised above twice its height.
    losses = [np.maximum(share[..., axis].T @ power, 0.25) for axis, power in enumerate(kept)]
    return [(loss**-0.5).astype(np.float32) for loss in losses]


def power_kept(frequency: np.ndarray) -> np.ndarray:
    """Return what share of the power at `frequency` (k,), in cycles per pixel, interpolation keeps.

    Returns
    -------
    ndarray, shape (FRACTIONS, k)
        For displacements by 0, 1 / FRACTIONS … of a pixel; 1 for the first.
    """
    taps = np.arange(1 - REACH, REACH + 1)
    weights = [[_keys(abs(tap - k / FRACTIONS)) for tap in taps] for k in range(FRACTIONS)]
    return np.abs(np.array(weights) @ np.exp(2j * np.pi * taps[:, None] * frequency)) ** 2


def _keys(x: float) -> float:
    a = KEYS_SLOPE
    if x < 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
