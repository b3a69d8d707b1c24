"""Each metric against a closed form, or against the truth of a simulation that it is not shown."""

import numpy as np
import pytest
from scipy import fft, ndimage
from skimage.metrics import structural_similarity

from cryon2n import fourier, half_errors, metrics

SHAPE = (128, 160)


def noise(seed, shape=SHAPE, sigma=1.0):
    return (np.random.default_rng(seed).standard_normal(shape) * sigma).astype(np.float32)


def smooth(seed, sigma=3.0, shape=SHAPE):
    """A signal of variance 1 without sharp edges, periodic."""
    image = ndimage.gaussian_filter(noise(seed, shape), sigma, mode="wrap")
    return ((image - image.mean()) / image.std()).astype(np.float32)


def blur(image, sigma=2.0):
    return ndimage.gaussian_filter(image, sigma, mode="wrap")


def whole(shape=SHAPE):
    return slice(0, shape[0]), slice(0, shape[1])


# ---------------------------------------------------------------------------- unbiased MSE


@pytest.mark.parametrize(("var_a", "var_b"), [(1.0, 1.0), (0.2, 1.8)])  # equal, and 1:9
def test_umse_recovers_the_true_mse_within_its_standard_error(var_a, var_b):
    errors = {"ab": [], "ba": [], "both": []}
    spread = []
    for seed in range(30):
        s = smooth(seed) * 0.5
        a, b = s + noise(seed + 100, sigma=var_a**0.5), s + noise(seed + 200, sigma=var_b**0.5)
        fa, fb = blur(a) + 0.1, blur(b) + 0.1
        noise_a, noise_b = metrics.measured_noise(a, b, (var_a, var_b))
        ab = metrics.unbiased_mse(fa, b, noise_b)
        ba = metrics.unbiased_mse(fb, a, noise_a)
        true = {"ab": metrics.mean_square(fa - s), "ba": metrics.mean_square(fb - s)}
        true["both"] = (true["ab"] + true["ba"]) / 2
        for name, value in (("ab", ab), ("ba", ba), ("both", (ab + ba) / 2)):
            errors[name].append(value - true[name])
        spread.append(noise_b - var_b)
    for name, e in errors.items():
        assert abs(np.mean(e)) < 4 * np.std(e, ddof=1) / np.sqrt(len(e)), name
    # The standard error of a measured noise variance (a + b) var_b / (var_a + var_b) is var_b sqrt(2 / N).
    assert np.std(spread) == pytest.approx(var_b * np.sqrt(2 / s.size), rel=0.5)
    assert np.std(errors["both"]) < 0.02


def test_umse_of_equal_halves_is_the_plain_formula():
    a, b = noise(0), noise(1)
    fa = blur(a)
    # The recorded variances are wrong by a common factor; only their ratio counts.
    noise_a, noise_b = metrics.measured_noise(a, b, (7.0, 7.0))
    plain = np.mean((fa - b) ** 2, dtype=np.float64) - np.mean((a - b) ** 2, dtype=np.float64) / 2
    assert noise_a == noise_b
    assert metrics.unbiased_mse(fa, b, noise_b) == pytest.approx(plain, rel=1e-5)


def test_umse_is_fooled_if_the_estimate_has_seen_the_others_noise():
    s, b = smooth(0), smooth(0) + noise(1)
    leaked = s + 0.3 * (b - s)  # true mse 0.09
    assert metrics.unbiased_mse(leaked, b, 1.0) < -0.3


def test_the_difference_of_two_methods_is_much_tighter_than_their_levels():
    levels, differences = [], []
    for seed in range(20):
        s = smooth(seed)
        a, b = s + noise(seed + 100, sigma=3), s + noise(seed + 200, sigma=3)
        one, two = blur(a, 2.0), blur(a, 2.3)
        noise_b = metrics.measured_noise(a, b, (1, 1))[1]
        u = [metrics.unbiased_mse(f, b, noise_b) for f in (one, two)]
        t = [metrics.mean_square(f - s) for f in (one, two)]
        levels.append(u[0] - t[0])
        differences.append((u[0] - u[1]) - (t[0] - t[1]))
    assert np.std(differences) < np.std(levels) / 8
    assert abs(np.mean(differences)) < 4 * np.std(differences) / np.sqrt(20)


def test_umse_is_bias_variance_plus_residual_noise_exactly():
    a, b = (smooth(0) + noise(seed, sigma=1 + seed) for seed in (1, 2))
    fa, fb = np.tanh(blur(a)), np.tanh(blur(b))
    a, b, fa, fb = ((x - x.mean()).astype(np.float64) for x in (a, b, fa, fb))
    noise_a, noise_b = metrics.measured_noise(a, b, (0.3, 0.7))
    umse = (metrics.unbiased_mse(fa, b, noise_b) + metrics.unbiased_mse(fb, a, noise_a)) / 2
    parts = half_errors.bias_variance(fa, fb, a, b) + half_errors.residual_noise(fa, fb)
    assert umse == pytest.approx(parts, rel=1e-9)


def test_bias_and_residual_noise_of_a_known_blur():
    # f(x) = k * x: the bias is k * S - S, the residual noise sigma² sum(k²).
    kernel = np.zeros(SHAPE)
    kernel[0, 0] = 1
    kernel = blur(kernel, 3)
    bias, residual = [], []
    for seed in range(20):
        a, b = (smooth(0) + noise(seed + n, sigma=1.5) for n in (100, 200))
        bias.append(half_errors.bias_variance(blur(a, 3), blur(b, 3), a, b))
        residual.append(half_errors.residual_noise(blur(a, 3), blur(b, 3)))
    true_bias = np.var(blur(smooth(0), 3) - smooth(0), dtype=np.float64)
    true_residual = 1.5**2 * (kernel**2).sum()
    assert abs(np.mean(bias) - true_bias) < 4 * np.std(bias) / np.sqrt(20)
    assert abs(np.mean(residual) - true_residual) < 4 * np.std(residual) / np.sqrt(20)
    assert np.std(bias) < true_bias / 3  # the test can tell the bias from 0


def test_decibels_of_nothing_are_nan():
    assert metrics.decibel_over(100.0, 1.0) == pytest.approx(20)
    assert np.isnan(metrics.decibel_over(1.0, -0.1))
    assert np.isnan(metrics.decibel_over(1.0, 0.0))


def test_raw_range_is_a_percentile_range():
    image = np.linspace(0, 1, 10001, dtype=np.float32).reshape(73, 137)
    assert metrics.raw_range(image) == pytest.approx(0.998, abs=1e-5)


def test_noise_power_ratio_of_a_gain_and_of_an_added_pattern():
    n = noise(0)
    assert metrics.noise_power_ratio(0.5 * n, n) == pytest.approx(0.25, rel=1e-6)
    assert metrics.noise_power_ratio(np.zeros_like(n) + 2, n) == pytest.approx(4, rel=0.05)  # a mean counts
    assert np.isnan(metrics.noise_power_ratio(n, np.zeros_like(n)))


# ---------------------------------------------------------------------------- ring metrics


def simulate_rings(f, n=8, sigma=(1.2, 1.2), move=0):
    """Pool the ring powers of f over n micrographs, and the true FRC between f(a) and S."""
    pooled, cross, own, signal = None, 0, 0, 0
    for seed in range(n):
        s = smooth(seed, 1.5)
        a, b = s + noise(seed + 100, sigma=sigma[0]), s + noise(seed + 200, sigma=sigma[1])
        b = np.roll(b, move, axis=1)
        n_ab = (a - b) / 2
        images = {"a": a, "b": b, "fa": f(a), "fb": f(b), "n": n_ab, "fn": f(n_ab)}
        p = metrics.ring_powers(images, whole(), 1.0)
        pooled = p if pooled is None else {k: pooled[k] + p[k] for k in p}
        truth = metrics.ring_powers({**images, "b": s, "fb": s}, whole(), 1.0)
        cross, own, signal = cross + truth["fa_b"], own + truth["fa_fa"], signal + truth["b_b"]
    pooled["frequency"] = p["frequency"]
    return pooled, cross / np.sqrt(own * signal)


def wiener(image, signal_sigma=1.5):
    """The best linear filter for `smooth(…, 1.5)` in noise of variance 1.44."""
    h, w = image.shape
    f2 = np.fft.fftfreq(h)[:, None] ** 2 + np.fft.rfftfreq(w)[None, :] ** 2
    transfer = np.exp(-4 * np.pi**2 * signal_sigma**2 * f2)
    transfer /= np.average(transfer, weights=np.r_[1, np.full(w // 2 - 1, 2), 1][None, :].repeat(h, 0))
    return fft.irfft2(fft.rfft2(image) * (transfer / (transfer + 1.44)), s=image.shape).astype(np.float32)


PATTERN = smooth(999, 1.5) * 0.8


def hallucinate(image):
    return wiener(image) + PATTERN


def test_cross_frc_recovers_the_true_frc_and_is_not_fooled_by_a_fixed_pattern():
    honest, true_honest = simulate_rings(wiener)
    fooled, true_fooled = simulate_rings(hallucinate)
    band = metrics.information_limit(honest)
    assert 10 < band < 40

    def mean(curve):
        return float(metrics.band_mean(curve, band))

    assert mean(metrics.cross_frc(honest)) == pytest.approx(mean(true_honest), abs=0.02)
    assert mean(metrics.cross_frc(fooled)) == pytest.approx(mean(true_fooled), abs=0.02)
    # The hallucination costs true FRC, and the FRC of the two denoised halves *rises*.
    assert mean(true_fooled) < mean(true_honest) - 0.1
    assert mean(metrics.half_frc(fooled)) > mean(metrics.half_frc(honest)) + 0.1
    assert mean(metrics.cross_frc(fooled)) < mean(metrics.cross_frc(honest)) - 0.1


def test_cross_frc_of_no_denoiser_is_the_root_of_the_raw_frc():
    p, _ = simulate_rings(lambda image: image)
    band = metrics.information_limit(p)
    got = metrics.band_mean(metrics.cross_frc(p), band)
    raw = metrics.raw_frc(p)[:band]
    assert got == pytest.approx(metrics.band_mean(np.sqrt(raw), band), abs=0.01)


def test_the_raw_frc_is_snr_over_snr_plus_1():
    p, _ = simulate_rings(wiener, n=20)
    f = p["frequency"]
    signal = np.exp(-4 * np.pi**2 * 1.5**2 * f**2)
    # `smooth` has variance 1: scale its spectrum to mean 1 over the plane's bins, as white noise has.
    plane = np.hypot(np.fft.fftfreq(SHAPE[0])[:, None], np.fft.fftfreq(SHAPE[1])[None, :])
    snr = signal / np.exp(-4 * np.pi**2 * 1.5**2 * plane**2).mean() / 1.2**2
    band = slice(5, 35)
    assert np.mean(np.abs(metrics.raw_frc(p)[band] - (snr / (snr + 1))[band])) < 0.03


def test_directions_of_unequal_halves_differ_and_both_lies_between():
    p, true_ab = simulate_rings(wiener, sigma=(0.6, 1.8))
    band = metrics.information_limit(p)
    ab, ba, both = (metrics.band_mean(metrics.cross_frc(p, way), band) for way in ("ab", "ba", "both"))
    assert ab == pytest.approx(metrics.band_mean(true_ab, band), abs=0.03)
    assert ba < both < ab


@pytest.mark.parametrize("move", [1, 3])
def test_a_shifted_half_lowers_the_cross_frc(move):
    p, _ = simulate_rings(wiener)
    moved, _ = simulate_rings(wiener, move=move)
    band = metrics.information_limit(p)
    good = metrics.band_mean(metrics.raw_frc(p), band)
    assert metrics.band_mean(metrics.raw_frc(moved), band) < good - 0.02 * move
    # Against the signal power of the well-paired halves:
    mixed = {**p, "fa_b": moved["fa_b"], "fb_a": moved["fb_a"]}
    lost = metrics.band_mean(metrics.cross_frc(p), band) - metrics.band_mean(metrics.cross_frc(mixed), band)
    assert lost > 0.02 * move


def test_swapped_halves_of_two_micrographs_have_no_cross_frc():
    a, b = smooth(0, 1.5) + noise(1), smooth(5, 1.5) + noise(2)
    images = {"a": a, "b": b, "fa": wiener(a), "fb": wiener(b), "n": a - b, "fn": wiener(a - b)}
    p = metrics.ring_powers(images, whole(), 1.0)
    assert abs(np.nanmean(metrics.raw_frc(p)[5:40])) < 0.1
    assert metrics.information_limit(p) < 8


def test_cross_frc_where_nothing_is_known_or_nothing_is_left():
    p = {"fa_b": 1.0, "fb_a": 1.0, "fa_fa": np.array([1.0, 0.0, 4.0]), "fb_fb": np.array([1.0, 0.0, 4.0])}
    p["a_b"] = np.array([-1.0, 2.0, 1.0])
    np.testing.assert_allclose(metrics.cross_frc(p), [np.nan, 0, 0.5])


def test_ring_powers_take_only_the_region():
    s = smooth(0, 1.5)
    clean = {name: s.copy() for name in ("a", "b", "fa", "fb", "n", "fn")}
    region = slice(10, 120), slice(20, 150)
    want = metrics.ring_powers(clean, region, 1.0)
    for image in clean.values():
        image[:10], image[:, 150:] = 99, -99
    got = metrics.ring_powers(clean, region, 1.0)
    np.testing.assert_allclose(got["fa_b"], want["fa_b"])
    share = (110 * 130) / (128 * 160)
    np.testing.assert_allclose(got["count"], fourier.ring_counts(SHAPE) * share)
    assert got["frequency"][-1] == pytest.approx(0.5)


def test_a_gradient_does_not_leak_into_the_high_rings():
    ramp = np.broadcast_to(np.linspace(0, 10, SHAPE[0], dtype=np.float32)[:, None], SHAPE)
    p = metrics.ring_powers(dict.fromkeys(("a", "b", "fa", "fb", "n", "fn"), ramp), whole(), 1.0)
    spectrum = fourier.windowed_spectrum(ramp - ramp.mean())
    untapered = fourier.ring_sums(fourier.cross_power(spectrum, spectrum), SHAPE)
    assert p["a_b"][50:].sum() < 0.05 * untapered[50:].sum()


@pytest.mark.parametrize(
    ("curve", "want"),
    [
        ([1, 1, 1, 0, 0, 0, 0], 3),
        ([1, 1, 0, 1, 1, 0, 0, 0], 5),  # a dip of one ring is not the end
        ([1, 1, 0, 0, 1, 1, 0, 0], 6),  # the last rings count although fewer than 3 are left
        ([1, 0, 0, 0, 1, 1, 0, 0, 0], 6),  # the first rings may be dark (no contrast near 0)
        ([0, 1, 1, 1], 4),
        ([1, 0, 0, 0], None),
        ([0, 1, np.nan, np.nan, np.nan], 2),
    ],
)
def test_first_below(curve, want):
    assert metrics.first_below(np.array(curve, dtype=float), 0.5) == want


def test_crossing_resolution_is_interpolated_and_limited():
    frequency = np.arange(6) / 100
    curve = np.array([1, 0.9, 0.8, 0.6, 0.2, 0.1])
    # 0.5 lies a quarter of the way from 0.6 at 0.03 to 0.2 at 0.04.
    assert metrics.crossing_resolution(curve, frequency, 0.5) == pytest.approx(1 / 0.0325)
    assert metrics.crossing_resolution(curve, frequency, 0.5, limit=3) == pytest.approx(1 / 0.02)
    assert np.isnan(metrics.crossing_resolution(curve, frequency, 0.95))


def test_limits_of_a_drawn_curve():
    frc = np.array([1, 0.9, 0.5, 0.2, 0.1, 0.08, 0.04, 0.01, 0.0])
    p = {"a_b": frc, "a_a": np.ones(9), "b_b": np.ones(9), "count": np.full(9, 10000)}
    assert metrics.information_limit(p) == 4  # 0.1 < 0.143
    assert metrics.significant_limit(p) == 7  # 0.04 > 3 / 100 > 0.01
    assert metrics.band_mean(frc, 4) == pytest.approx((0.9 + 0.5 + 0.2) / 3)
    assert np.isnan(metrics.band_mean(frc, 1))


# ---------------------------------------------------------------------------- with a truth


def test_psnr_and_signal_to_error_of_a_known_error():
    s = smooth(0)
    error = noise(1, sigma=0.1)
    mse = np.mean(error.astype(np.float64) ** 2)
    assert metrics.psnr(s + error, s) == pytest.approx(10 * np.log10((s.max() - s.min()) ** 2 / mse), abs=1e-3)
    assert metrics.signal_to_error_db(s + error, s) == pytest.approx(10 * np.log10(1 / mse), abs=1e-3)
    assert metrics.signal_to_error_db(np.zeros_like(s), s) == pytest.approx(0, abs=1e-4)


def test_ssim_is_skimages_with_explicit_arguments():
    s, f = smooth(0) + 50, smooth(0) + 50 + noise(1, sigma=0.3)
    want = structural_similarity(
        (s - s.min()).astype(np.float64),
        (f - s.min()).astype(np.float64),
        data_range=float(s.max() - s.min()),
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    assert metrics.ssim(f, s) == pytest.approx(want, abs=1e-4)
    assert 0.2 < want < 0.95
    assert metrics.ssim(s, s) == pytest.approx(1)


def test_ssim_does_not_depend_on_the_units_offset_or_scale():
    s, f = smooth(0), smooth(0) + noise(1, sigma=0.3)
    assert metrics.ssim(5 * f + 20, 5 * s + 20) == pytest.approx(metrics.ssim(f, s), abs=1e-3)


def test_affine_is_recovered_and_reported():
    s = smooth(0)
    f = (s - 3) / 0.4
    gain, offset = metrics.best_affine(f, s)
    assert (gain, offset) == (pytest.approx(0.4, rel=1e-5), pytest.approx(3, rel=1e-5))
    found = metrics.truth_metrics(f, s)
    assert found["signal_to_error_db"] < 0  # before the map, the wrong units count
    assert found["signal_to_error_db_affine"] > 80
    assert found["ssim_affine"] == pytest.approx(1, abs=1e-4)
    assert found["affine_gain"] == gain


def test_affine_signal_to_error_is_that_of_the_correlation():
    s = smooth(0)
    f = 0.5 * s + noise(1, sigma=0.7)
    r = np.corrcoef(f.ravel(), s.ravel())[0, 1]
    found = metrics.truth_metrics(f, s)
    assert found["signal_to_error_db_affine"] == pytest.approx(-10 * np.log10(1 - r**2), abs=1e-3)
    assert found["signal_to_error_db_affine"] >= found["signal_to_error_db"]
    assert metrics.best_affine(np.ones_like(s), s)[0] == 0  # a constant carries nothing


@pytest.mark.parametrize("shift", [(0, 0), (2, -3), (1.37, 0.42), (-6.5, 8.25)])
def test_register_shift_finds_the_shift_in_heavy_noise(shift):
    s = smooth(0, 2.0, (256, 320))
    image = fourier.fourier_shift(s, shift) + noise(150 + int(10 * shift[0]), (256, 320), sigma=3)
    # Cramér-Rao: sigma / sqrt(N <(dS/dx)²>), and <(dS/dx)²> = 1 / (2 · 2²) for this signal.
    bound = 3 / np.sqrt(s.size / 8)
    assert bound < 0.03
    assert metrics.register_shift(s, image) == pytest.approx(shift, abs=4 * bound)


# ---------------------------------------------------------------------------- Topaz's SNR


def drawn(contrast=-2.0, shape=(200, 220)):
    """Three discs of a known contrast on a background of known variance."""
    particles = [(60.0, 50.0, 12.0), (150.0, 60.0, 12.0), (100.0, 140.0, 12.0)]
    y, x = np.mgrid[: shape[0], : shape[1]]
    image = np.where((x + y) % 2, 0.5, -0.5)  # mean 0 and variance 1/4 on a box of even area
    for px, py, r in particles:
        image = image + contrast * (np.hypot(x - px, y - py) <= r + 1)
    return image.astype(np.float32), particles


def test_topaz_snr_of_a_drawn_image():
    image, particles = drawn()
    boxes = metrics.snr_boxes(particles, whole(image.shape))
    assert len(boxes) == 3
    # Boxes of 17 x 17: the chequerboard's mean is ±0.5 / 289 and its variance 0.25 - that².
    want = 10 * np.log10(2.0**2 / 0.25)
    assert metrics.topaz_snr_db(image, boxes) == pytest.approx(want, abs=0.02)
    assert metrics.topaz_snr_db(7 * image + 3, boxes) == pytest.approx(want, abs=0.02)


def test_smoothing_alone_raises_topaz_snr():
    image, particles = drawn(-0.5)
    noisy = image + noise(3, image.shape)
    boxes = metrics.snr_boxes(particles, whole(image.shape))
    assert metrics.topaz_snr_db(blur(noisy, 3), boxes) > metrics.topaz_snr_db(noisy, boxes) + 5


def test_boxes_keep_clear_of_all_particles_and_edges():
    rng = np.random.default_rng(0)
    particles = [(float(x), float(y), 9.0) for x, y in rng.uniform(0, 300, (60, 2))]
    region = slice(10, 280), slice(5, 290)
    boxes = metrics.snr_boxes(particles, region)
    assert 10 < len(boxes) < 60
    for signal, background in boxes:
        for box in (signal, background):
            assert region[0].start <= box[0].start
            assert box[0].stop <= region[0].stop
            assert region[1].start <= box[1].start
            assert box[1].stop <= region[1].stop
        y, x = ((s.start + s.stop - 1) / 2 for s in background)
        nearest = min(np.hypot(px - x, py - y) for px, py, _ in particles)
        assert nearest >= 2 * 9 - 0.71  # the box's centre is rounded to a pixel
    assert boxes == metrics.snr_boxes(particles, region)


def test_no_labels_or_a_constant_box_give_nan():
    image, particles = drawn()
    assert np.isnan(metrics.topaz_snr_db(image, []))
    assert metrics.snr_boxes([], whole(image.shape)) == []
    boxes = metrics.snr_boxes(particles, whole(image.shape))
    assert np.isnan(metrics.topaz_snr_db(np.zeros_like(image), boxes))
