"""What is made of one micrograph: repair, grey levels, pixel size, halves, uncertainty."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from cryon2n import denoise_repair, fourier
from cryon2n.denoise_model import Wanted, compute, denoise, denoise_halves, load_model, prepare, warm_up
from cryon2n.denoise_repair import Repaired, grey_levels, repair_pixels
from cryon2n.denoise_scale import choose_scaling, resize
from cryon2n.denoise_tiles import denoise_image
from cryon2n.denoise_uncertainty import calibrate, power_percent, read_calibration, spread_map, sums_of
from cryon2n.errors import InputError
from making import field, random_net, white, write_weights


@pytest.fixture
def model(tmp_path):
    return load_model(write_weights(tmp_path / "w.safetensors", pixel_size_A="1.5"), "cpu", "float32")


def image_of(seed=1, shape=(192, 160)):
    return (500 + 40 * (field(seed, shape) + white(seed, shape))).astype(np.float32)


def test_memory_that_is_short_while_a_gpu_warms_up_makes_no_tiles_smaller(model, monkeypatch):
    forward, tile, calls = model.run.forward, model.run.tile, []

    def short(x):
        calls.append(x.shape)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(x)

    monkeypatch.setattr(model.run, "forward", short)
    warm_up(model)
    assert len(calls) > 1
    assert model.run.tile == tile


# ---------------------------------------------------------------------------- repair


def repaired(image):
    x = torch.from_numpy(image.copy())
    return repair_pixels(x), x.numpy()


def test_a_sound_micrograph_is_left_as_it_is():
    image = image_of()
    count, found = repaired(image)
    assert count == Repaired(0, 0)
    np.testing.assert_array_equal(found, image)


def test_bad_pixels_are_replaced_by_neighbours_and_counted():
    clean = white(4, (192, 160))
    image = clean.copy()
    image[5, 7], image[0, 0], image[100, 20:24] = np.nan, np.inf, -np.inf
    image[50, 50], image[191, 159], image[60, 60:62], image[9, 80] = 1e6, -30, 9, 12
    changed = image != clean
    count, found = repaired(image)
    assert count == Repaired(6, 5)
    np.testing.assert_array_equal(found[~changed], clean[~changed])
    for y, x in np.argwhere(changed):
        near = clean[max(y - 8, 0) : y + 9, max(x - 8, 0) : x + 9]
        assert found[y, x] in near


def test_bands_of_rows_are_looked_at_as_the_whole_is(monkeypatch):
    image = image_of(7, (300, 90))
    image[:, :20] += np.linspace(0, 800, 300, dtype=np.float32)[:, None]
    image[::31, ::17] += 560  # some stand out, others not, by where the local mean is
    levels = grey_levels(torch.from_numpy(image))
    count, found = repaired(image)
    assert 20 < count.hot < 60
    monkeypatch.setattr(denoise_repair, "BAND", 64)
    again, banded = repaired(image)
    assert again == count
    np.testing.assert_array_equal(banded, found)
    assert grey_levels(torch.from_numpy(image)) == pytest.approx(levels, rel=1e-9)


def test_gold_and_edges_are_no_hot_pixels():
    y, x = np.mgrid[:192, :160]
    image = white(5, (192, 160))
    for radius, cy, cx in ((4, 40, 40), (10, 100, 100), (30, 150, 30)):
        image[np.hypot(y - cy, x - cx) <= radius] -= 60  # gold: dark discs with a hard edge
    image[:, 140:] += 25  # carbon
    count, found = repaired(image)
    assert count == Repaired(0, 0)
    np.testing.assert_array_equal(found, image)


def test_a_block_without_numbers_gets_the_texture_around_it():
    image = white(6, (192, 160))
    image[60:100, 60:100] = np.nan
    count, found = repaired(image)
    assert count.not_finite == 1600
    assert 0.85 < found[60:100, 60:100].std() < 1.15 and abs(found[60:100, 60:100].mean()) < 0.2


@given(share=st.floats(0, 0.5), hot=st.integers(0, 20), seed=st.integers(0, 99), value=st.floats(30, 1e30))
@settings(max_examples=20, deadline=None)
def test_whatever_is_bad_the_result_is_finite_and_of_the_same_levels(share, hot, seed, value):
    rng, image = np.random.default_rng(seed), white(seed, (64, 80))
    image.ravel()[rng.choice(image.size, int(share * image.size), replace=False)] = rng.choice([np.nan, np.inf])
    image.ravel()[rng.choice(image.size, hot, replace=False)] = value
    _, found = repaired(image)
    assert np.isfinite(found).all()
    offset, scale = grey_levels(torch.from_numpy(found))
    assert abs(offset) < 0.3 and 0.7 < scale < 1.3


def test_more_than_half_without_numbers_is_refused():
    image = white(1, (64, 64))
    image[:33] = np.nan
    with pytest.raises(InputError, match=r"m\.mrc: 2112 of 4096 pixels are NaN or infinite; wanted at most half"):
        repair_pixels(torch.from_numpy(image), "m.mrc")


def test_grey_levels_are_those_of_the_ice_whatever_lies_on_it():
    image = (1e5 + 3 * white(1, (256, 256))).astype(np.float32)
    offset, scale = grey_levels(torch.from_numpy(image))
    assert offset == pytest.approx(image.mean(dtype=np.float64), abs=1e-2) and scale == pytest.approx(3, rel=0.02)
    image[:10] = 0  # a border that another program left empty
    assert grey_levels(torch.from_numpy(image))[1] == pytest.approx(3, rel=0.02)


# ---------------------------------------------------------------------------- one micrograph


def test_it_is_the_network_in_normalised_units_and_back(model):
    image = image_of()
    before = image.copy()
    found = denoise(image, model)
    offset, scale = grey_levels(torch.from_numpy(image))
    expected = denoise_image(random_net(), (image - offset) / scale, precision="float32") * scale + offset
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-3)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(image, before)


def test_other_units_give_the_same_image(model):
    """The network is bias-free: grey levels come out as they went in."""
    image = image_of()
    np.testing.assert_allclose(denoise(3 * image - 700, model), 3 * denoise(image, model) - 700, atol=0.05)


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.uint16, np.float16, np.float64, ">f4"])
def test_any_real_type(model, dtype):
    image = (50 + 12 * white(1, (64, 64))).clip(0, 120).astype(dtype)
    np.testing.assert_allclose(denoise(image, model), denoise(image.astype(np.float32), model), atol=1e-4)


def test_bad_pixels_leave_no_trace(model):
    image = white(1, (128, 128))
    bad = image.copy()
    bad[64, 64], bad[20, 30] = np.nan, 5000
    difference = denoise(bad, model) - denoise(image, model)
    # What remains is that of two ordinary pixels that are others.
    assert np.abs(difference).max() < 3 * denoise(image, model).std()


def test_a_path_is_loaded(tmp_path):
    path = write_weights(tmp_path / "w.safetensors")
    np.testing.assert_array_equal(denoise(image_of(), path), denoise(image_of(), load_model(path)))


@pytest.mark.parametrize(
    ("images", "text"),
    [
        ([np.zeros((64, 64))], "the image: the image is constant"),
        ([white(1, (63, 64))], r"found shape \(63, 64\), wanted one micrograph \(h, w\) of at least 64 x 64"),
        ([white(1, (3, 64, 64))], r"found shape \(3, 64, 64\)"),
        ([white(1, (64, 64)), white(2, (64, 65))], "64 x 65 pixels, but the image has 64 x 64"),
    ],
)
def test_what_is_no_micrograph_is_refused(model, images, text):
    with pytest.raises(InputError, match=text):
        prepare(images, model)


# ---------------------------------------------------------------------------- pixel size


@pytest.mark.parametrize(("shape", "new"), [((96, 80), (48, 40)), ((96, 80), (61, 77)), ((97, 81), (200, 163))])
def test_resampling_there_and_back_keeps_what_both_sizes_hold(shape, new):
    least = [min(a, b) for a, b in zip(shape, new, strict=True)]
    cutoff = 0.9 * min(n / (2 * s) for n, s in zip(least, shape, strict=True))
    image = torch.from_numpy(3 + field(1, shape, cutoff))
    there = resize(image, new)
    assert there.shape == new and float(there.mean()) == pytest.approx(float(image.mean()))
    torch.testing.assert_close(resize(there, shape), image, rtol=0, atol=1e-9)


def test_half_the_size_is_the_binned_image():
    image = field(2, (96, 80), 0.2)
    np.testing.assert_allclose(resize(torch.from_numpy(image), (48, 40)), fourier.fourier_crop(image, 2), atol=1e-9)


def test_when_a_micrograph_is_rescaled():
    shape = (1000, 900)
    assert choose_scaling(shape, 1.0, 1.0).new_shape is None
    assert choose_scaling(shape, 0.7, 1.0) == choose_scaling(shape, 1.04, 1.0) == choose_scaling(shape, 1.0, 1.0)
    assert choose_scaling(shape, 1.06, 1.0).new_shape == (1128, 1022)
    half = choose_scaling(shape, 0.5, 1.0)
    assert half.shape == (1064, 964) and half.new_shape == (532, 482)
    assert "denoised at 1 Å per pixel" in half.reason
    assert choose_scaling(shape, 2.0, 1.0).new_shape == (2128, 1928)
    larger = choose_scaling(shape, 2.1, 1.0)
    assert larger.new_shape is None and "more than 2 times the model's 1 Å: denoised as it is" in larger.reason
    assert choose_scaling(shape, 2.1, 1.0, "always").new_shape == (2234, 2024)
    assert choose_scaling(shape, 1.0, 1.05, "always").new_shape == (1013, 918)
    assert choose_scaling(shape, 0.5, 1.0, "never") == choose_scaling(shape, 1.0, 1.0)
    assert "micrograph's pixel size is not known" in choose_scaling(shape, None, 1.0).reason
    assert "model's pixel size is not known" in choose_scaling(shape, 1.0, None).reason


def test_a_finer_micrograph_is_denoised_at_the_models_pixel_size(model, monkeypatch):
    seen = []
    monkeypatch.setattr(type(model.run), "__call__", lambda self, x: seen.append(tuple(x.shape)) or x.clone())
    image = (500 + 40 * field(1, (192, 160), 0.15)).astype(np.float32)
    found = denoise(image, model, pixel_size=0.75)
    assert seen == [(128, 112)]  # with the margins: half of 256 x 224
    assert found.shape == image.shape
    # Frequencies that both hold come back; the border, which is mirrored, has others.
    np.testing.assert_allclose(found[8:-8, 8:-8], image[8:-8, 8:-8], atol=2.5)


# ---------------------------------------------------------------------------- halves


def halves(seed, shape=(256, 256), sigma=1.0):
    clean = 0.5 * field(seed, shape, 0.1)
    return clean, *((clean + white(s, shape, sigma)).astype(np.float32) for s in (10 * seed + 1, 10 * seed + 2))


def test_halves_give_the_mean_and_its_standard_error(model):
    _, a, b = halves(1)
    a, b = 500 + 40 * a, 300 + 40 * b
    mean, sigma = denoise_halves(a, b, model, factor=2.0)
    scale = np.sqrt((grey_levels(torch.from_numpy(a))[1] ** 2 + grey_levels(torch.from_numpy(b))[1] ** 2) / 2)
    fa, fb = (
        denoise_image(random_net(), (x - grey_levels(torch.from_numpy(x))[0]) / scale, precision="float32")
        for x in (a, b)
    )
    offset = (grey_levels(torch.from_numpy(a))[0] + grey_levels(torch.from_numpy(b))[0]) / 2
    np.testing.assert_allclose(mean, (fa + fb) / 2 * scale + offset, rtol=1e-4, atol=1e-2)
    # Independent noise: half the difference has the noise of the mean.  Blocks of 64 pixels, interpolated.
    assert (sigma.astype(np.float64) ** 2).mean() ** 0.5 == pytest.approx(scale * (fa - fb).std(), rel=0.02)


def test_halves_of_unequal_exposure_are_scaled_each_by_itself_and_said(model):
    _, a, b = halves(1)
    prepared = prepare([a, 7 * b], model)
    np.testing.assert_allclose(prepared.images[1], prepare([b], model).images[0], atol=1e-5)
    assert "not of equal exposure (standard deviations 1.1" in prepared.unequal
    compute(prepared, model)
    with pytest.raises(InputError, match="not of equal exposure"):
        compute(prepared, model, Wanted(uncertainty=True))


def smooth(x, sigma=3.0):
    return torch.from_numpy(ndimage.gaussian_filter(np.asarray(x, np.float64), sigma, mode="reflect"))


def test_the_error_is_estimated_without_the_truth():
    """A low-pass that takes away noise and detail: its error is known, and none of it may be missed."""
    for sigma in (1.0, 3.0, 6.0):
        error, truth = [], []
        for seed in range(4):
            clean, a, b = halves(seed)
            fa, fb = smooth(a, sigma), smooth(b, sigma)
            error.append(sums_of(torch.from_numpy(a), torch.from_numpy(b), fa, fb).error)
            truth.append(((fa + fb) / 2 - torch.from_numpy(clean)).square().mean())
        assert np.mean(error) == pytest.approx(np.mean(truth), rel=0.05, abs=0.002)


@pytest.mark.parametrize("sigma", [1.0, 2.0, 4.0])
def test_the_calibrated_map_covers_68_percent_on_other_micrographs(sigma):
    def both(seed):
        clean, a, b = halves(seed)
        # Twice the noise in the right half: one number for the whole image would not do.
        a[:, 128:] += white(seed + 500, (256, 128), np.sqrt(3))
        b[:, 128:] += white(seed + 600, (256, 128), np.sqrt(3))
        return clean, *(torch.from_numpy(x) for x in (a, b)), smooth(a, sigma), smooth(b, sigma)

    found = calibrate([sums_of(*both(seed)[1:]) for seed in range(6)])
    assert found.low <= found.factor <= found.high and found.micrographs == 6
    if sigma == 4.0:  # the more it smooths, the more it misses
        assert found.factor > 1.5
    covered, raw = [], []
    for seed in range(20, 24):
        clean, _, _, fa, fb = both(seed)
        error = ((fa + fb) / 2 - torch.from_numpy(clean)).abs()
        spread = spread_map(fa, fb)
        covered.append(float((error < found.factor * spread).double().mean()))
        raw.append(float((error < spread).double().mean()))
        left, right = spread[:, :96].mean(), spread[:, 160:].mean()
        assert 1.6 < float(right / left) < 2.4
    assert abs(np.mean(covered) - 0.683) < 0.05
    if sigma == 4.0:
        assert np.mean(raw) < 0.6  # not calibrated it says too little


def test_calibration_needs_halves_of_independent_noise(tmp_path):
    with pytest.raises(InputError, match="no micrograph came through"):
        calibrate([])
    a = torch.from_numpy(white(1))
    with pytest.raises(InputError, match="check that the two halves' noise is independent"):
        calibrate([sums_of(a, a, a, a)])
    (tmp_path / "c.json").write_text("{}")
    with pytest.raises(InputError, match=r"c\.json: is no calibration"):
        read_calibration(tmp_path / "c.json", "")


def test_what_comes_out_of_noise_alone(model):
    _, a, b = halves(3)
    prepared = prepare([a, b], model)
    found = compute(prepared, model, Wanted(signal_free=True)).signal_free_percent
    x, y = (image.numpy() for image in prepared.images)
    noise, whole = (denoise_image(random_net(), z, precision="float32").var() for z in ((x - y) / 2, (x + y) / 2))
    assert found == pytest.approx(100 * noise / whole, rel=1e-3)
    assert power_percent(torch.zeros(4, 4), torch.from_numpy(white(1))) == 0
    assert np.isnan(power_percent(torch.zeros(4, 4), torch.zeros(4, 4)))


def test_names_for_labels(tmp_path):
    assert load_model(write_weights(tmp_path / "run5" / "weights.safetensors"), "cpu").name == "run5"
    found = load_model(write_weights(tmp_path / "ours-v1.safetensors"), "cpu")
    assert found.name == "ours-v1" and found.pixel_size is None
