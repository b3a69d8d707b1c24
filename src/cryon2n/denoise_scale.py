"""Bring a micrograph to the pixel size that a model was trained at, and its result back.

A network is a filter in units of pixels: on larger pixels than the model's it smooths too far, on smaller ones too
little.  Within `SMALLER` and `LARGER` that costs less than it gains: the network was trained to smooth one half, and of
the mean of two a little less is better (benchmarks/denoise_pixel_size.py, docs/denoising.md).
"""

from dataclasses import dataclass

import torch

from cryon2n.denoise_tiles import mirrored

# Pixel sizes, in units of the model's, between which nothing is done.
SMALLER, LARGER = 0.65, 1.05
ENLARGED = 2.0  # most by which a micrograph is enlarged: it costs the square of it
MARGIN = 32  # pixels mirrored at each border, where the Fourier transform, which is periodic, sees a jump
CHOICES = ("auto", "never", "always")


@dataclass(frozen=True)
class Scaling:
    """How an image is brought to another pixel size.

    Attributes
    ----------
    shape : (h, w) or None
        With its margins, before; None: it is left as it is.
    new_shape : (h, w) or None
        With its margins, after.
    reason : str
        For the user.
    """

    shape: tuple[int, int] | None
    new_shape: tuple[int, int] | None
    reason: str


def choose_scaling(
    shape: tuple[int, int], pixel_size: float | None, model_pixel_size: float | None, choice: str = "auto"
) -> Scaling:
    """Decide whether an image is brought to the model's pixel size.

    Parameters
    ----------
    shape : (h, w)
        Of the image.
    pixel_size, model_pixel_size : float or None
        In Å; None where it is not known.
    choice : str
        ``auto``: where the micrograph's is below `SMALLER` or above `LARGER` times the model's (and at most `ENLARGED`
        times); ``always``: wherever they differ; ``never``.
    """
    if choice == "never":
        return Scaling(None, None, "")
    if pixel_size is None or model_pixel_size is None:
        whose = "micrograph" if pixel_size is None else "model"
        return Scaling(None, None, f"the {whose}'s pixel size is not known: denoised as it is")
    ratio = model_pixel_size / pixel_size
    if choice == "auto":
        if SMALLER <= 1 / ratio <= LARGER:
            return Scaling(None, None, "")
        if 1 / ratio > ENLARGED * 1.001:
            text = f"its pixels of {pixel_size:g} Å are more than {ENLARGED:g} times the model's {model_pixel_size:g} Å"
            return Scaling(None, None, f"{text}: denoised as it is")
    padded = shape[0] + 2 * MARGIN, shape[1] + 2 * MARGIN
    new = max(1, round(padded[0] / ratio)), max(1, round(padded[1] / ratio))
    if new == padded:
        return Scaling(None, None, "")
    return Scaling(padded, new, f"denoised at {model_pixel_size:g} Å per pixel, the model's, and brought back")


def there(image: torch.Tensor, scaling: Scaling) -> torch.Tensor:
    """Bring an image (h, w) to the model's pixel size."""
    if scaling.shape is None:
        return image
    rows, columns = (mirrored(n, MARGIN, MARGIN, image.device) for n in image.shape)
    return resize(image[rows][:, columns], scaling.new_shape)


def back(image: torch.Tensor, scaling: Scaling) -> torch.Tensor:
    """Bring a result of `there`'s image back to (h, w)."""
    if scaling.shape is None:
        return image
    return resize(image, scaling.shape)[MARGIN:-MARGIN, MARGIN:-MARGIN].contiguous()


def resize(image: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """Sample an image (h, w) anew on `shape` points of the same field, by its Fourier transform; the mean is kept.

    A frequency at the Nyquist limit of an even side is left out, so that there and back and both ways are alike.
    """
    h, w = image.shape
    nh, nw = shape
    spectrum = torch.fft.rfft2(image)
    out = torch.zeros((nh, nw // 2 + 1), dtype=spectrum.dtype, device=image.device)
    low_h, low_w = (min(h, nh) - 1) // 2, (min(w, nw) - 1) // 2  # highest frequency that both hold
    out[: low_h + 1, : low_w + 1] = spectrum[: low_h + 1, : low_w + 1]
    if low_h:
        out[-low_h:, : low_w + 1] = spectrum[-low_h:, : low_w + 1]
    return torch.fft.irfft2(out, s=shape) * (nh * nw / (h * w))
