"""Splines of order 5: their coefficients by Fourier transforms, and their values anywhere, on any device.

On a CPU the values are SciPy's.  One core takes 140 ns for each, and a full frame's movie with a dozen fields has
6500 million: on a GPU 36 coefficients are gathered for each value.
"""

import math

import numpy as np
import torch
from scipy import ndimage

REACH = 3  # coefficients to either side of a place
SETTLED = 24  # pixels; farther ones change a coefficient by less than 1e-8: the spline's larger pole is -0.4306
SCIPY_MODES = {"circular": "grid-wrap", "reflect": "mirror"}


def divide_by_spline(spectrum: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """Turn ``rfft2`` of an image of `shape` into that of its coefficients, in place."""
    for axis, frequencies in enumerate((torch.fft.fftfreq(shape[0]), torch.fft.rfftfreq(shape[1]))):
        angle = 2 * math.pi * frequencies.double()
        # The transform of the B-spline of order 5 at the whole numbers: 66, 26 and 1, of 120.
        sampled = ((66 + 52 * torch.cos(angle) + 2 * torch.cos(2 * angle)) / 120).float().to(spectrum.device)
        spectrum /= sampled[:, None] if axis == 0 else sampled
    return spectrum


def coefficients(image: torch.Tensor, fast_shape: tuple[int, int]) -> torch.Tensor:
    """Return the coefficients (h, w) of an image that goes on as in a mirror at the middle of its last pixels.

    Parameters
    ----------
    image : tensor, shape (h, w), float32
    fast_shape : (H, W)
        What is transformed: at least 48 larger than the image, and less than three times as large.
    """
    h, w = image.shape
    top, left = ((big - small) // 2 for big, small in zip(fast_shape, (h, w), strict=True))
    if min(top, left) < SETTLED:
        raise ValueError(f"spline: {fast_shape} leaves less than {SETTLED} px around an image of {(h, w)}")
    padding = (left, fast_shape[1] - w - left, top, fast_shape[0] - h - top)
    padded = torch.nn.functional.pad(image[None, None], padding, mode="reflect")[0, 0]
    spectrum = divide_by_spline(torch.fft.rfft2(padded), fast_shape)
    return torch.fft.irfft2(spectrum, s=fast_shape)[top : top + h, left : left + w]


def sample(
    coefficients: torch.Tensor, displacement: torch.Tensor, start: tuple[int, int], step: int, beyond: str
) -> torch.Tensor:
    """Return the spline's values at ``start + step · (row, column) + displacement``, shape (h, w), float32.

    Parameters
    ----------
    coefficients : tensor, shape (H, W), float32
    displacement : tensor, shape (2, h, w), float32
        Of coefficients.
    start : (y, x)
    step : int
    beyond : str
        What lies beyond the coefficients: ``circular`` or ``reflect``, as of `torch.nn.functional.pad`.
    """
    if coefficients.device.type != "cpu":
        return gather(coefficients, displacement, start, step, beyond)
    sizes = displacement.shape[1:]
    axes = (first + step * np.arange(n, dtype=np.float64) for first, n in zip(start, sizes, strict=True))
    places = np.stack(np.meshgrid(*axes, indexing="ij"))
    places += displacement.numpy()
    values = ndimage.map_coordinates(
        coefficients.numpy(), places, order=5, mode=SCIPY_MODES[beyond], prefilter=False, output=np.float32
    )
    return torch.from_numpy(values)


def gather(
    coefficients: torch.Tensor, displacement: torch.Tensor, start: tuple[int, int], step: int, beyond: str
) -> torch.Tensor:
    """As `sample`, by 36 gathers.

    The whole part of a place is an integer, so that float32 displacements of 100 pixels are exact to 4e-6 px.
    """
    before, after = [], []
    for axis, (first, size, n) in enumerate(zip(start, coefficients.shape, displacement.shape[1:], strict=True)):
        low, high = (math.floor(float(d)) for d in torch.aminmax(displacement[axis]))
        before.append(max(0, REACH - first - low))
        after.append(max(0, first + step * (n - 1) + high + REACH + 1 - size))
    padding = (before[1], after[1], before[0], after[0])
    padded = torch.nn.functional.pad(coefficients[None, None], padding, mode=beyond)[0, 0].contiguous()
    width, flat = padded.shape[1], padded.flatten()

    whole = displacement.floor()
    rows, columns = (
        first + ahead - 2 + step * torch.arange(n, device=padded.device)
        for first, ahead, n in zip(start, before, displacement.shape[1:], strict=True)
    )
    # The first of the 36 coefficients; the others lie at fixed distances from it.
    corner = (whole[0].long() + rows[:, None]) * width + whole[1].long() + columns
    down, across = (weights(fraction) for fraction in displacement - whole)
    value = torch.zeros_like(whole[0])
    for j in range(6):
        line = torch.zeros_like(value)
        for i in range(6):
            line.addcmul_(across[i], torch.take(flat[j * width + i :], corner))
        value.addcmul_(down[j], line)
    return value


def weights(fraction: torch.Tensor) -> list[torch.Tensor]:
    """Return the weights of the coefficients at -2, -1 … 3 for places at a fraction, 0 to 1, of the way from 0 to 1."""

    def power(distance: torch.Tensor) -> torch.Tensor:
        positive = distance.clamp_min(0)
        square = positive * positive
        return square * square * positive

    distances = [(fraction - offset).abs() for offset in range(-2, 4)]
    return [(power(3 - d) - 6 * power(2 - d) + 15 * power(1 - d)) / 120 for d in distances]
