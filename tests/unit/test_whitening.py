"""Whitening of the training error, against closed forms."""

import json

import numpy as np
import pytest
import torch
from scipy import ndimage

from cryon2n import fourier
from cryon2n.step import n2n_loss
from cryon2n.whitening import noise_weights, whiten
from making import command, field, write_pairs, write_shards


def noise(seed, n=64, shape=(64, 96)):
    """White noise (n, h, w)."""
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((n, *shape)))


def test_white_noise_is_left_alone():
    signal = torch.from_numpy(np.stack([5 * field(i, (64, 96)) for i in range(64)]))
    weights = noise_weights(signal + noise(1), signal + noise(2))
    # 64 samples of ring k have about 64 · 2πk / 2 terms; the lowest ring used has some 600.
    torch.testing.assert_close(weights, torch.ones(64, 49), atol=0.1, rtol=0)


def test_coloured_noise_becomes_white_and_keeps_its_power():
    colour = np.array([[0.05, 0.1, 0.05], [0.1, 0.7, 0.1], [0.05, 0.1, 0.05]])  # 0.06 to 1.3 of amplitude

    def coloured(seed):
        return torch.from_numpy(np.stack([ndimage.convolve(x, colour, mode="wrap") for x in noise(seed).numpy()]))

    a, b = coloured(3), coloured(4)
    weights = noise_weights(a, b)
    fresh = coloured(5)
    flat = whiten(fresh, weights)
    assert float(flat.var()) == pytest.approx(float(fresh.var()), rel=0.02)
    powers = [fourier.ring_sums(np.abs(np.fft.rfft2(x.numpy())) ** 2, (64, 96)).mean(0) for x in (fresh, flat)]
    before, after = (p[4:] / fourier.ring_counts((64, 96))[4:] for p in powers)
    assert before.max() / before.min() > 2  # the kernel's amplitude falls from 1.3 to 0.7 and less
    assert after.max() / after.min() < 1.25


def test_the_weighted_error_is_that_of_parseval():
    error, weights = noise(6, 2), torch.rand(64, 49, dtype=torch.float64) + 0.5
    zero, one = torch.zeros(2, 1, 64, 96, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    # f = 0: the error of the first direction is -b, that of the second -a = 0.
    loss = n2n_loss(lambda x: 0 * x, zero, error[:, None], one, one, weights)
    spectrum = torch.fft.fft2(error)
    whole = torch.cat([weights, weights[(-torch.arange(64)) % 64][:, 1:-1].flip(1)], 1)  # of the whole plane
    # irfft2 takes the Hermitian part; at columns 0 and 48 the weights of k and -k differ and are averaged.
    for column in (0, 48):
        mirrored = weights[(-torch.arange(64)) % 64, column]
        whole[:, column] = (weights[:, column] + mirrored) / 2
    expected = ((spectrum * whole).abs() ** 2).mean() / (64 * 96) / 2
    assert float(loss) == pytest.approx(float(expected), rel=1e-9)


def test_training_with_it_from_the_command(tmp_path):
    records = write_pairs(tmp_path / "h", 2)
    manifest = write_shards(tmp_path / "s", records)
    out = tmp_path / "m"
    settings = {"steps": 4, "batch": 2, "crop": 32, "whiten": True, "net": {"stride": 2, "channels": [4]}}
    arguments = ["--manifest", manifest, "--weights", out / "weights.safetensors", "--metrics", out / "metrics.json"]
    arguments += ["--history", out / "log.csv", "--device", "cpu", "--settings", json.dumps(settings)]
    assert command("train-unet", *arguments) == 0
    assert np.isfinite(json.loads((out / "metrics.json").read_text())["final_loss"])
