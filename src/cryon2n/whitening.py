"""Whitening of the training error by the noise's own spectrum, ring by ring.

The target's noise adds to every gradient.  Where it is coloured (halves of other programs, interpolated or
dose-weighted), dividing the error's spectrum by the noise's amplitude gives each frequency the say that its noise
allows.  The best network at each frequency stays what it was; what changes is how loudly noise drowns it.
"""

import numpy as np
import torch

from cryon2n import fourier

LOWEST_RING = 3  # below, noise and ice gradients cannot be told apart: those rings take its weight
LIMITS = (0.25, 4.0)  # of the weights: a filter that was applied to the halves must not make them explode


def noise_weights(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the weights of an error's Fourier coefficients, from halves whose difference holds no signal.

    Parameters
    ----------
    a, b : tensor, shape (n, h, w)
        Crops of the halves.

    Returns
    -------
    tensor, shape (h, w // 2 + 1), float32
        1 / amplitude of the noise, scaled so that the noise it was made from keeps its power: white noise gets 1.
    """
    difference = a.double().cpu() - b.double().cpu()
    difference -= difference.mean(dim=(1, 2), keepdim=True)
    shape = tuple(difference.shape[1:])
    power = fourier.ring_sums((np.abs(np.fft.rfft2(difference.numpy())) ** 2).mean(axis=0), shape)
    mean = power / fourier.ring_counts(shape)
    mean[:LOWEST_RING] = mean[LOWEST_RING]
    weight = np.clip(np.sqrt(np.median(mean) / np.maximum(mean, 1e-30 * mean.max())), *LIMITS)
    # The corners beyond Nyquist take the weight of the last ring.
    on_bins = torch.from_numpy(weight[np.minimum(fourier.ring_index(shape), len(weight) - 1)])
    on_bins *= difference.norm() / whiten(difference, on_bins).norm()
    return on_bins.float()


def whiten(error: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return an error (..., h, w) whose Fourier coefficients are multiplied by `weights` (h, w // 2 + 1)."""
    return torch.fft.irfft2(torch.fft.rfft2(error) * weights.to(error.dtype), s=error.shape[-2:])
