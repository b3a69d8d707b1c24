"""Validation on held-out micrographs, in closed form."""

import numpy as np
import pytest

from cryon2n import pair, validation
from cryon2n.validation import Validation
from making import field, white, write_pair


@pytest.fixture
def held_out(tmp_path):
    """A micrograph whose signal and noise have the same power."""
    s = field(1)
    s -= s.mean()
    return pair.load_pair(write_pair(tmp_path, "m", s + white(1), s + white(2)))


@pytest.mark.parametrize("c", [0.5, 0.9])
def test_a_factor_has_known_errors(c, held_out, monkeypatch):
    monkeypatch.setattr(validation, "denoise_image", lambda net, x, **_: c * x)
    found = validation.validate(None, [held_out], "float32")
    unit = held_out.record["a"]["scale"] ** 2  # of normalised power; S = V = 1 before
    # E(cx - s)² - E(x - s)² = (1 - c)² S + c² V - V.
    assert found.delta_umse == pytest.approx(((1 - c) ** 2 + c**2 - 1) / unit, rel=0.1)
    assert found.bias_variance == pytest.approx((1 - c) ** 2 / unit, abs=0.03 / unit)
    assert found.residual_noise == pytest.approx(c**2 / unit, rel=0.05)


def test_over_denoising_is_a_rising_bias_that_no_longer_pays():
    paying = [Validation(-0.5 - 0.01 * k, 0.01 * (1 + k), 0.1) for k in range(5)]
    assert not validation.over_denoises(paying)  # the bias rises, but the whole still falls
    steady = [Validation(-0.5 + 0.001 * (k % 2), 0.01, 0.1) for k in range(6)]
    assert not validation.over_denoises(steady)
    too_far = [*paying, Validation(-0.52, 0.06, 0.01)]
    assert validation.over_denoises(too_far)
    assert not validation.over_denoises(too_far[-2:])  # two looks tell no trend
    assert np.isfinite(too_far[-1].bias_variance)
