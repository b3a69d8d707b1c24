"""Rings, FRC, crop and shift against `numpy.fft.fft2`, `numpy.roll` and closed forms."""

import numpy as np
import pytest

from cryon2n import fourier

SHAPES = [(8, 8), (9, 9), (8, 9), (9, 8), (12, 20), (21, 10), (7, 16)]


def noise(shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("shape", SHAPES)
def test_ring_sums_are_those_of_the_whole_plane(shape):
    image = noise(shape)
    h, w = shape
    power = np.abs(np.fft.fft2(image)) ** 2
    radius = np.hypot(np.fft.fftfreq(h)[:, None], np.fft.fftfreq(w)[None, :]) * max(shape)
    rings = np.rint(radius).astype(int)
    want = [power[rings == k].sum() for k in range(max(shape) // 2 + 1)]
    spectrum = fourier.windowed_spectrum(image)
    np.testing.assert_allclose(fourier.ring_sums(fourier.cross_power(spectrum, spectrum), shape), want, rtol=1e-10)
    counts = [(rings == k).sum() for k in range(max(shape) // 2 + 1)]
    np.testing.assert_array_equal(fourier.ring_counts(shape), counts)


def test_a_rectangles_rings_are_circles_in_frequency():
    # One sine along y, one along x, of the same period 8 px on a 32 x 64 image: the same ring, 64 / 8.
    y, x = np.mgrid[:32, :64]
    for phase in (y, x):
        spectrum = fourier.windowed_spectrum(np.cos(2 * np.pi * phase / 8))
        power = fourier.ring_sums(fourier.cross_power(spectrum, spectrum), (32, 64))
        assert power.argmax() == 8
        assert power[8] == pytest.approx(power.sum())
    assert fourier.ring_frequencies((32, 64), 2.0)[8] == pytest.approx(1 / 16)  # period 8 px of 2 Å
    assert fourier.ring_frequencies((32, 64), 2.0)[-1] == pytest.approx(1 / 4)  # Nyquist


def test_ring_sums_takes_leading_axes():
    stack = noise((3, 2, 10, 7)) ** 2
    got = fourier.ring_sums(stack, (10, 12))
    assert got.shape == (3, 2, 7)
    np.testing.assert_allclose(got[1, 0], fourier.ring_sums(stack[1, 0], (10, 12)))


@pytest.mark.parametrize("shape", SHAPES)
def test_frc_of_an_image_with_itself_is_1_and_with_its_negative_minus_1(shape):
    image = noise(shape)
    np.testing.assert_allclose(fourier.frc(image, image), 1)
    np.testing.assert_allclose(fourier.frc(image, -3 * image), -1)


def test_frc_of_independent_noise_is_within_its_bound():
    shape = (128, 96)
    # N bins, of which N / 2 independent, each with a real part of variance 1 / 2: together 1 / N.
    sigma = 1 / np.sqrt(fourier.ring_counts(shape))
    z = [fourier.frc(noise(shape, s), noise(shape, s + 100))[1:] / sigma[1:] for s in range(10)]
    z = np.concatenate(z)
    assert np.abs(z).max() < 5
    assert np.std(z) == pytest.approx(1, abs=0.15)  # 640 values: standard error 0.03
    assert abs(np.mean(z)) < 0.2


@pytest.mark.parametrize("edge", [0, 16])
def test_frc_of_a_known_mixture_is_snr_over_snr_plus_1(edge):
    shape, snr = (256, 200), 0.5
    signal = noise(shape, 1) * np.sqrt(snr)
    curve = fourier.frc(signal + noise(shape, 2), signal + noise(shape, 3), edge)
    counts = fourier.ring_counts(shape)[1:]
    assert np.average(curve[1:], weights=counts) == pytest.approx(snr / (snr + 1), abs=0.02)


def test_frc_refuses_other_shapes():
    with pytest.raises(ValueError, match="one shape"):
        fourier.frc(np.zeros((4, 4)), np.zeros((4, 5)))


def test_frc_without_power_is_nan_not_a_warning():
    assert np.isnan(fourier.frc(np.zeros((8, 8)), noise((8, 8)))).all()


def test_taper_is_1_inside_0_outside_and_symmetric():
    window = fourier.edge_taper((20, 31), 5)
    assert (window[5:15, 5:26] == 1).all()
    assert window[0].max() < 0.03
    np.testing.assert_array_equal(window, window[::-1, ::-1])
    with pytest.raises(ValueError, match="11 px on an image"):
        fourier.edge_taper((20, 31), 11)


def test_taper_stops_a_gradient_from_leaking():
    y, _ = np.mgrid[:128, :128].astype(float)
    high = slice(40, 64)

    def power(edge):
        s = fourier.windowed_spectrum(y - y.mean(), edge)
        return fourier.ring_sums(fourier.cross_power(s, s), y.shape)[high].sum()

    assert power(16) < 1e-3 * power(0)


@pytest.mark.parametrize(
    ("shape", "bin"),
    [((24, 36), 2), ((24, 36), 3), ((30, 42), 2), ((25, 35), 5), ((25, 38), 2), ((31, 29), 3), ((9, 9), 1)],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_crop_keeps_mean_shape_and_dtype(shape, bin, dtype):
    image = noise(shape, dtype=dtype) + 7
    out = fourier.fourier_crop(image, bin)
    h, w = shape[0] // bin, shape[1] // bin
    assert out.shape == (h, w)
    assert out.dtype == dtype
    assert out.mean() == pytest.approx(image[: h * bin, : w * bin].mean(), rel=1e-5)


@pytest.mark.parametrize(("shape", "bin"), [((24, 36), 2), ((24, 36), 3), ((30, 42), 3), ((25, 35), 5), ((30, 42), 2)])
def test_crop_samples_a_band_limited_image_exactly(shape, bin):
    (h, w), rng = shape, np.random.default_rng(0)
    y, x = np.mgrid[:h, :w]
    image = np.full(shape, 2.5)
    # Every frequency up to and including the new Nyquist one, with random phase below it.
    for ky in range(-(h // bin // 2), h // bin // 2 + 1):
        for kx in range(w // bin // 2 + 1):
            image += rng.standard_normal() * np.cos(2 * np.pi * (ky * y / h + kx * x / w) + rng.uniform(0, 6))
    np.testing.assert_allclose(fourier.fourier_crop(image, bin), image[::bin, ::bin], atol=1e-9)


def test_crop_removes_what_is_beyond_nyquist_instead_of_aliasing_it():
    _, x = np.mgrid[:24, :24]
    np.testing.assert_allclose(fourier.fourier_crop(np.cos(2 * np.pi * 9 * x / 24), 2), 0, atol=1e-9)


def test_crop_takes_stacks_and_integers():
    stack = np.random.default_rng(0).integers(0, 255, (2, 3, 12, 14), dtype=np.uint8)
    out = fourier.fourier_crop(stack, 2)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out[1, 2], fourier.fourier_crop(stack[1, 2].astype(np.float32), 2), atol=1e-3)


@pytest.mark.parametrize("bin", [0, -1, 1.5, 13])
def test_crop_refuses_a_bin_that_does_not_fit(bin):
    with pytest.raises(ValueError, match="wanted an integer"):
        fourier.fourier_crop(np.zeros((12, 12)), bin)


def test_crop_of_bin_1_does_not_give_back_the_input_itself():
    image = noise((6, 6))
    out = fourier.fourier_crop(image, 1)
    out[0, 0] = 99
    assert image[0, 0] != 99


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("shift", [(0, 0), (1, 0), (0, -2), (3, 5), (-11, 13)])
def test_integer_shift_is_roll(shape, shift):
    image = noise(shape)
    np.testing.assert_allclose(fourier.fourier_shift(image, shift), np.roll(image, shift, (0, 1)), atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("shift", [(0.5, -0.5), (0.3, 1.7), (-2.49, 0.01)])
def test_shift_there_and_back_restores_and_keeps_the_power(shape, shift):
    image = noise(shape)
    moved = fourier.fourier_shift(image, shift)
    assert (moved**2).sum() == pytest.approx((image**2).sum())
    assert not np.allclose(moved, image, atol=1e-3)
    back = fourier.fourier_shift(moved, (-shift[0], -shift[1]))
    np.testing.assert_allclose(back, image, atol=1e-12)


def test_fractional_shift_moves_a_sine_towards_larger_coordinates():
    y, x = np.mgrid[:15, :20]

    def wave(y, x):
        return np.cos(2 * np.pi * (2 * y / 15 + 3 * x / 20) + 0.4)

    np.testing.assert_allclose(fourier.fourier_shift(wave(y, x), (0.3, -1.2)), wave(y - 0.3, x + 1.2), atol=1e-12)


def test_shift_takes_one_shift_per_image():
    stack = noise((3, 10, 11), dtype=np.float32)
    shifts = np.array([[0, 1], [2.5, -0.5], [0, 0]])
    out = fourier.fourier_shift(stack, shifts)
    assert out.dtype == np.float32
    for got, image, shift in zip(out, stack, shifts, strict=True):
        np.testing.assert_allclose(got, fourier.fourier_shift(image, shift), atol=1e-5)
