"""Sum the frames of a movie, each moved back by its motion.

A shift of the whole frame is a phase ramp: exact.  What a place departs from it is a small, smooth
displacement: bicubic interpolation (Keys 1981, with the slope -3/4 that torch uses), whose mean loss of
power over all fractions of a pixel is made up for beforehand, so that white noise stays white.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from cryon2n import fourier

if TYPE_CHECKING:
    from cryon2n.motion import Motion

KEYS_SLOPE = -0.75
REACH = 2  # pixels to either side that the kernel looks at


def sum_groups(
    spectra: Iterable[torch.Tensor],
    groups: Sequence[Sequence[int]],
    shape: tuple[int, int],
    pixel_size: float,
    motion: "Motion",
) -> list[np.ndarray]:
    """Return the sums of groups of frames, each moved back by its motion, (h, w) float32.

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
    """
    total: list[torch.Tensor | None] = [None] * len(groups)
    member = {t: g for g, group in enumerate(groups) for t in group}
    shifts = -motion.trajectory_A / pixel_size
    whitened = None
    # The sum's content stands where it stood in frame 0; the field is that of places in the mean frame.
    offset = motion.trajectory_A.mean(0) / pixel_size
    for t, spectrum in enumerate(spectra):
        if t not in member:
            continue
        rows, columns = (torch.as_tensor(x, device=spectrum.device) for x in fourier.shift_phase_axes(shape, shifts[t]))
        moved = spectrum * rows[:, None] * columns
        if motion.local is not None:
            if whitened is None:
                y, x = (
                    torch.as_tensor(make_up(f), dtype=torch.float32, device=spectrum.device)
                    for f in (np.fft.fftfreq(shape[0]), np.fft.rfftfreq(shape[1]))
                )
                whitened = y[:, None] * x
            image = torch.fft.irfft2(moved * whitened, s=shape)
            moved = pull(image, motion.local.on_grid(t, shape, offset, image.device) / pixel_size)
        group = member[t]
        total[group] = moved if total[group] is None else total[group].add_(moved)
    if motion.local is None:
        total = [torch.fft.irfft2(x, s=shape) for x in total]
    return [x.cpu().numpy() for x in total]


def pull(image: torch.Tensor, displacement: torch.Tensor) -> torch.Tensor:
    """Return ``image(y + displacement(y))``, by bicubic interpolation; edges are repeated.

    Parameters
    ----------
    image : tensor, shape (h, w)
    displacement : tensor, shape (2, h, w)
        [y, x] pixels.
    """
    h, w = image.shape
    y = torch.arange(h, device=image.device, dtype=torch.float32)[:, None] + displacement[0]
    x = torch.arange(w, device=image.device, dtype=torch.float32)[None, :] + displacement[1]
    grid = torch.stack([x * (2 / (w - 1)) - 1, y * (2 / (h - 1)) - 1], -1)
    return torch.nn.functional.grid_sample(
        image[None, None], grid[None], mode="bicubic", padding_mode="border", align_corners=True
    )[0, 0]


def make_up(frequency: np.ndarray) -> np.ndarray:
    """Return by what to multiply a frequency (cycles per pixel) so that interpolation keeps its power on average.

    Sampled at a random fraction of a pixel, a wave of frequency f comes out with the power
    ``sum over m of K(f + m)²``, K being the kernel's Fourier transform.
    """
    power = sum(kernel_transform(frequency + m) ** 2 for m in range(-4, 5))
    return power**-0.5


def kernel_transform(frequency: np.ndarray) -> np.ndarray:
    """Return the Fourier transform of Keys' kernel at `frequency` in cycles per pixel, by quadrature."""
    nodes, weights = np.polynomial.legendre.leggauss(48)
    total = np.zeros_like(np.asarray(frequency, float))
    for first in (0.0, 1.0):
        x = first + (nodes + 1) / 2
        for at, weight in zip(x, weights / 2, strict=True):
            total += 2 * weight * _keys(at) * np.cos(2 * np.pi * frequency * at)
    return total


def _keys(x: float) -> float:
    a = KEYS_SLOPE
    if x < 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
