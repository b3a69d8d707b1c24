"""Halves of one micrograph are told from everything else: known answers, rates, planted faults, real pairs."""

import numpy as np
import pytest
from scipy import ndimage

from cryon2n import mrcio, pair_check
from cryon2n.errors import InputError
from making import field, moved, white

SHAPE, PIXEL = (256, 320), 4.0


def half(seed, side, snr=0.05, shape=SHAPE, gradient=0.0):
    """A half of micrograph `seed`: signal of variance `snr` (below 1/50 Å), an ice gradient, noise of variance 1."""
    signal = np.sqrt(snr) * field(seed, shape, cutoff=PIXEL / 50)
    slope = gradient * np.linspace(-1, 1, shape[0])[:, None] * np.random.default_rng(seed).standard_normal()
    return (signal + slope + white(1000 + 2 * seed + side, shape)).astype(np.float32)


def fit(x, y):
    return pair_check.match(pair_check.signature(x, PIXEL), pair_check.signature(y, PIXEL))


def test_right_pairs_stand_out_and_wrong_ones_do_not():
    """1560 wrong pairings, at a signal-to-noise ratio of 1/50 and with a slope of the ice that all share in kind."""
    n = 40
    signatures = [[pair_check.signature(half(i, side, 0.02, gradient=2.0), PIXEL) for side in (0, 1)] for i in range(n)]
    right = [pair_check.match(*signatures[i]).z for i in range(n)]
    wrong = [pair_check.match(signatures[i][0], signatures[j][1]).z for i in range(n) for j in range(n) if i != j]
    assert min(right) > pair_check.LEAST_Z + 1, min(right)
    assert max(wrong) < pair_check.LEAST_Z - 0.5, max(wrong)


def test_the_scale_and_the_offset_of_a_half_do_not_matter():
    a, b = half(1, 0), half(1, 1)
    assert fit(50 * a - 7, b).z == pytest.approx(fit(a, b).z, rel=1e-3)


def test_the_z_value_of_unrelated_noise_is_a_z_value():
    at_zero = []
    for i in range(60):
        x, y = (pair_check.signature(white(i + 500 * k, SHAPE), PIXEL) for k in (0, 1))
        correlation = np.fft.irfft2(x.spectrum * y.spectrum.conj(), s=x.shape)
        at_zero.append(correlation[0, 0] / correlation.std())
    assert np.std(at_zero) == pytest.approx(1.0, abs=0.3)


@pytest.mark.parametrize("shift", [(0, 0), (7, -4), (-10, 3)])
def test_a_planted_shift_is_found(shift):
    signal = field(3, SHAPE, cutoff=PIXEL / 50)
    a = moved(signal, shift) + white(1, SHAPE)
    found = fit(a.astype(np.float32), (signal + white(2, SHAPE)).astype(np.float32))
    np.testing.assert_allclose(found.shift, shift, atol=1.0)


def test_a_shift_beyond_any_motion_is_no_pair():
    far = int(2 * pair_check.WINDOW_A / PIXEL)
    assert fit(np.roll(half(1, 0), far, 0), half(1, 1)).z < pair_check.LEAST_Z


def test_inverted_contrast_has_its_own_sentence():
    found = fit(-half(1, 0), half(1, 1))
    with pytest.raises(InputError, match="m: a and b have opposite contrast"):
        pair_check.check_signal(found, None, "m")


def test_a_pattern_that_all_partners_share_does_not_make_a_pair():
    """A pattern of the detector gives every pair, right or wrong, the same peak."""
    pattern = 0.3 * field(99, SHAPE, cutoff=PIXEL / 50)
    a, other, third = (half(i, 0, 1e-6) + pattern for i in (1, 2, 3))
    found, wrong = fit(a, other), fit(a, third).z
    assert found.z > pair_check.LEAST_Z  # alone it would pass
    with pytest.raises(InputError, match=f"wrong partners reach {wrong:.1f}"):
        pair_check.check_signal(found, wrong, "m")


# ---------------------------------------------------------------------------- the noise


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_the_share_of_common_frames_is_the_noise_correlation(share):
    signal, common = field(1, SHAPE, cutoff=0.05), white(50, SHAPE)
    a, b = (signal + np.sqrt(share) * common + np.sqrt(1 - share) * white(i, SHAPE) for i in (1, 2))
    noise = pair_check.compare_noise(a.astype(np.float32), b.astype(np.float32))
    assert noise.correlation == pytest.approx(share, abs=0.03)
    if share > 0.2:
        with pytest.raises(InputError, match="the same frames are in both"):
            pair_check.check_noise(a, b, 1.5, False, "m")


def test_independent_noise_has_a_z_value_of_one():
    z = [pair_check.compare_noise(white(i, SHAPE), white(900 + i, SHAPE)).z for i in range(40)]
    assert np.std(z) == pytest.approx(1.0, abs=0.35)


def test_white_noise_is_all_there():
    assert pair_check.compare_noise(half(1, 0), half(1, 1)).floors == pytest.approx((1.0, 1.0), abs=0.1)


@pytest.mark.parametrize("side", [0, 1])
def test_a_filtered_half_is_refused(side):
    halves = [half(1, 0), half(1, 1)]
    halves[side] = ndimage.gaussian_filter(halves[side], 1.0)
    with pytest.raises(InputError, match=f"m: {'ab'[side]} has next to no noise left"):
        pair_check.check_noise(*halves, 1.5, False, "m")


def test_interpolated_frames_pass_and_dose_weights_pass_where_they_are_known():
    # A bilinear shift by half a pixel is the strongest attenuation that interpolation gives one frame; frames
    # have all shifts.
    frames = [ndimage.shift(white(i, SHAPE), (i / 12, 1 - i / 12), order=1, mode="wrap") for i in range(24)]
    a, b = (sum(frames[k::2]).astype(np.float32) for k in (0, 1))
    pair_check.check_noise(a, b, 1.5, False, "m")
    # exp(-B k²/4) with 3 Å² for each of 50 electrons per Å², 1 e/Å² a frame, at 0.5 Å/px (super-resolution).
    k2 = (np.fft.fftfreq(SHAPE[0], 0.5)[:, None] ** 2) + (np.fft.rfftfreq(SHAPE[1], 0.5)[None, :] ** 2)
    weighted = [
        np.fft.irfft2(np.fft.rfft2(white(i, SHAPE)) * np.exp(-3 * (i + 0.5) * k2 / 4), s=SHAPE) for i in range(50)
    ]
    a, b = (sum(weighted[k::2]).astype(np.float32) for k in (0, 1))
    pair_check.check_noise(a, b, 0.5, True, "m")
    with pytest.raises(InputError, match="dose_weighted true"):
        pair_check.check_noise(a, b, 0.5, False, "m")


# ---------------------------------------------------------------------------- real pairs


def test_14_real_pairs_and_their_182_wrong_pairings(shared_data):
    folder = shared_data / "apoferritin-10146"
    names = sorted(p.name.removesuffix("_a.mrc") for p in folder.glob("*_a.mrc"))
    halves = {n: [mrcio.read_mrc(folder / f"{n}_{side}.mrc")[0] for side in "ab"] for n in names}
    signatures = {n: [pair_check.signature(x, 1.5) for x in pair] for n, pair in halves.items()}
    right = {n: pair_check.match(*signatures[n]).z for n in names}
    wrong = {(n, m): pair_check.match(signatures[n][0], signatures[m][1]).z for n in names for m in names if n != m}
    assert len(right) == 14 and len(wrong) == 182
    assert min(right.values()) > 15, right
    assert max(wrong.values()) < 5, max(wrong.items(), key=lambda item: item[1])
    for n in names[:4]:
        noise = pair_check.check_noise(*halves[n], 1.5, False, n)
        assert abs(noise.z) < 5 and min(noise.floors) > 0.3
