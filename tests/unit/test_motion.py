"""Alignment of simulated movies with a known drift."""

import numpy as np
import pytest
from scipy import fft

from cryon2n import motion
from cryon2n.errors import InputError
from making import field, frames

PIXEL = 1.5  # Å


def align(data, **settings):
    spectra = fft.rfft2(data.astype(np.float32))
    return motion.align_frames(spectra, data.shape[1:], PIXEL, motion.MotionSettings(**settings)) / PIXEL


def drift(n):
    """A curved path of some pixels, in pixels, from 0."""
    t = np.linspace(0, 1, n)
    return np.stack([3.7 * t - 1.2 * t**2, -2.3 * np.sqrt(t) + 0.4 * t], axis=1)


@pytest.mark.parametrize("shape", [(256, 256), (192, 320), (211, 257)])
def test_a_known_drift_is_recovered_at_a_realistic_dose(shape):
    # 1.2 electrons per pixel and frame, contrast 15 % at frequencies below 1 / (10 Å).
    path = drift(16)
    clean = 1.2 * (1 + 0.15 * field(1, shape, cutoff=0.15))
    found = align(frames(2, clean, path))
    assert np.sqrt(np.mean((found - path) ** 2)) < 0.15
    # Opposite signs, or y and x swapped, would be wrong by pixels.
    assert np.linalg.norm(found[-1] - path[-1]) < 0.5
    assert found[0].tolist() == [0, 0]


def test_a_frame_s_own_noise_does_not_hold_it_back():
    # Of 4 frames each is a quarter of the sum; with its own noise in the reference it would stay where it is.
    path = np.arange(4)[:, None] * np.array([2.0, -1.3])
    clean = 0.6 * (1 + 0.2 * field(1, (256, 256)))
    found = align(frames(2, clean, path), b_factor=0.0, smoothness=0.0)
    assert np.sqrt(np.mean((found - path) ** 2)) < 0.25


def test_no_drift_gives_about_zero():
    clean = 1.2 * (1 + 0.15 * field(1, (256, 256)))
    assert np.abs(align(frames(3, clean, np.zeros((16, 2))))).max() < 0.15


def test_the_frames_are_left_as_they_were():
    data = frames(3, 1.2 + 0.15 * field(1, (64, 64)), np.zeros((4, 2)))
    spectra = fft.rfft2(data.astype(np.float32))
    before = spectra.copy()
    motion.align_frames(spectra, (64, 64), 5.0, motion.MotionSettings())  # 5 Å: nothing is cropped away
    np.testing.assert_array_equal(spectra, before)


def test_smoothing_keeps_a_straight_line_and_bends_a_kink():
    line = np.stack([np.arange(9) * 0.7, 3 - np.arange(9) * 0.2], axis=1)
    np.testing.assert_allclose(motion.smooth_trajectory(line, 10.0), line, atol=1e-12)
    kink = line.copy()
    kink[4] += 1
    smooth = motion.smooth_trajectory(kink, 10.0)
    assert np.square(np.diff(smooth, 2, axis=0)).sum() < 0.1 * np.square(np.diff(kink, 2, axis=0)).sum()
    np.testing.assert_allclose(smooth.mean(0), kink.mean(0), atol=1e-12)


def test_smoothing_solves_its_normal_equations():
    shifts = np.random.default_rng(0).standard_normal((7, 2))
    y = motion.smooth_trajectory(shifts, 2.5)

    def cost(x):
        return np.square(x - shifts).sum() + 2.5 * np.square(np.diff(x, 2, axis=0)).sum()

    rng = np.random.default_rng(1)
    assert all(cost(y + 1e-3 * rng.standard_normal(y.shape)) > cost(y) for _ in range(20))


@pytest.mark.parametrize("name", ["resolution_A", "max_shift_A", "tolerance_px"])
def test_settings_that_make_no_sense_are_refused(name):
    with pytest.raises(InputError, match=name):
        motion.MotionSettings(**{name: 0.0})
