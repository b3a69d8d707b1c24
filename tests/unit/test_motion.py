"""Alignment of simulated movies whose motion is known, and the parts it is made of."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy import ndimage

from cryon2n import alignment, local_motion, motion, motion_prior, warp
from cryon2n.errors import InputError
from making import field, frames

PIXEL = 1.5  # Å


def estimate(data, dose=None, **settings):
    spectra = torch.fft.rfft2(torch.from_numpy(data.astype(np.float32)))
    return motion.estimate(spectra, data.shape[1:], (PIXEL, PIXEL), motion.MotionSettings(**settings), dose)


def align(data, **settings):
    return estimate(data, local=False, **settings).trajectory_A / PIXEL


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
    assert np.sqrt(np.mean((found - path) ** 2)) < 0.1
    # Opposite signs, or y and x swapped, would be wrong by pixels.
    assert np.linalg.norm(found[-1] - path[-1]) < 0.4
    assert found[0].tolist() == [0, 0]


def test_a_frame_s_own_noise_does_not_hold_it_back():
    # Of 4 frames each is a quarter of the sum; with its own noise in the reference it would stay where it is.
    path = np.arange(4)[:, None] * np.array([2.0, -1.3])
    clean = 0.6 * (1 + 0.2 * field(1, (256, 256)))
    found = align(frames(2, clean, path), b_factor=0.0)
    assert np.sqrt(np.mean((found - path) ** 2)) < 0.25


@pytest.mark.parametrize("n", [2, 3])
def test_movies_of_few_frames(n):
    path = np.arange(n)[:, None] * np.array([2.0, -1.3])
    found = align(frames(2, 2.0 * (1 + 0.2 * field(1, (256, 256))), path))
    assert np.abs(found - path).max() < 0.3


def test_no_drift_gives_about_zero_and_no_local_motion():
    clean = 1.2 * (1 + 0.15 * field(1, (384, 384)))
    found = estimate(frames(3, clean, np.zeros((16, 2))), patch_A=140)
    assert np.abs(found.trajectory_A).max() < 0.15 * PIXEL
    assert found.local is None


def test_the_spectra_are_left_as_they_were():
    data = frames(3, 1.2 + 0.15 * field(1, (64, 64)), np.zeros((4, 2)))
    spectra = torch.fft.rfft2(torch.from_numpy(data.astype(np.float32)))
    before = spectra.clone()
    motion.estimate(spectra, (64, 64), (5.0, 5.0))
    assert torch.equal(spectra, before)


def test_local_motion_is_recovered_where_it_is():
    """A dome that opens during the exposure, on top of a drift."""
    shape, n = (512, 512), 20
    rng = np.random.default_rng(5)
    clean = 1.5 * (1 + 0.2 * field(4, shape, cutoff=0.15))
    y, x = np.mgrid[: shape[0], : shape[1]].astype(float)
    opened = 1 - np.exp(-np.arange(n) / 5)
    dome = np.stack([(y - 200) / 512, (x - 300) / 512]) * 6  # pixels
    path = drift(n)
    data = np.empty((n, *shape), np.float32)
    for t in range(n):
        at = [c - path[t, i] - opened[t] * dome[i] for i, c in enumerate((y, x))]
        data[t] = rng.poisson(np.clip(ndimage.map_coordinates(clean, at, order=5, mode="grid-wrap"), 0, None))
    found = estimate(data, patch_A=150)
    places = np.stack(np.meshgrid([0.2, 0.5, 0.8], [0.2, 0.5, 0.8], indexing="ij"), -1).reshape(-1, 2)
    at = (places * 512).astype(int)
    truth = path[:, None] + opened[:, None, None] * dome[:, at[:, 0], at[:, 1]].T
    error = found.field(places) / PIXEL - truth
    error -= error.mean(0)  # what does not change during the exposure blurs nothing
    assert found.local is not None
    assert np.sqrt(np.mean(error**2)) < 0.1
    # Without the local field it would be wrong by about the dome.
    without = found.trajectory_A[:, None] / PIXEL - truth
    assert np.sqrt(np.mean((without - without.mean(0)) ** 2)) > 0.3
    assert (found.extremes().max(0) > found.trajectory_A.max(0)).all()


# The likelihood


def test_the_gradient_is_as_large_and_as_uncertain_as_the_information_says():
    """Images of known spectra, at known small shifts: mean gradient = information · shift, variance = information."""
    shape, n, trials, ssnr = (48, 60), 6, 300, 0.2
    grid = alignment.make_grid(shape, (2.0, 2.0), 60.0, 5.0, "cpu")
    spectrum = alignment.Spectrum(np.full(grid.n_rings, ssnr), np.full(grid.n_rings, float(shape[0] * shape[1])))
    q = alignment.damage_factors(grid, n, 3.0)
    weights = alignment.make_weights(grid, spectrum, q)
    shift = np.zeros((n, 2))
    shift[0] = [0.15, -0.1]
    rng, gradients = np.random.default_rng(0), []
    factors = torch.stack([alignment.on_bins(grid, x) for x in q])
    for _ in range(trials):
        scene = torch.fft.rfft2(torch.from_numpy(rng.standard_normal(shape).astype(np.float32) * np.sqrt(ssnr)))
        images = scene.repeat(n, 1, 1) * factors
        alignment.move_back(grid, images, -shift)
        images += torch.fft.rfft2(torch.from_numpy(rng.standard_normal((n, *shape)).astype(np.float32)))
        gradients.append(alignment.gradients(grid, weights, images * factors))
    gradients = np.array(gradients)
    still = gradients[:, 1:].reshape(-1, 2)
    # The weights count an image among its own reference: of 6 images that errs by 1/6, on the safe side.
    ratio = gradients[:, 1:].var(0).mean(1) / weights.information[1:]
    assert 0.7 < ratio.min() and ratio.max() < 1.1
    assert (
        np.abs(still.mean(0)).max()
        < 5 * np.sqrt(weights.information.max() / len(still)) + 0.1 * abs(weights.information[0] * shift[0]).max()
    )  # the moved image pulls the others a little
    error = gradients[:, 0].mean(0) - weights.information[0] * shift[0]
    assert np.abs(error).max() < 4 * np.sqrt(weights.information[0] / trials)


def test_signal_and_noise_are_measured():
    shape, n = (96, 120), 10
    grid = alignment.make_grid(shape, (2.0, 2.0), 100.0, 5.0, "cpu")
    rng = np.random.default_rng(1)
    scene = rng.standard_normal(shape)
    data = 0.5 * scene + rng.standard_normal((n, *shape))
    images = torch.fft.rfft2(torch.from_numpy(data.astype(np.float32)))
    found = alignment.measure_spectrum(grid, images, np.ones((n, grid.n_rings)))
    inside = grid.counts > 50
    assert np.median(found.ssnr[inside]) == pytest.approx(0.25, rel=0.15)
    assert np.median(found.noise[inside]) == pytest.approx(shape[0] * shape[1], rel=0.05)
    noise = torch.fft.rfft2(torch.from_numpy(rng.standard_normal((n, *shape)).astype(np.float32)))
    nothing = alignment.measure_spectrum(grid, noise, np.ones((n, grid.n_rings)))
    assert np.mean(nothing.ssnr[inside]) < 0.01


def test_the_critical_dose_is_that_of_the_paper():
    grid = alignment.make_grid((64, 64), (1.0, 1.0), 60.0, 2.0, "cpu")
    q = alignment.damage_factors(grid, 3, 2.0)
    ring = round(0.25 / grid.ring_width)  # at 4 Å: Nc = 0.245 · 0.25^-1.665 + 2.81 = 5.27
    assert q[1, ring] == pytest.approx(np.exp(-3.0 / (2 * 5.27)), rel=0.01)


def test_the_trajectory_is_the_most_probable_one():
    """Certain data are kept; uncertain ones follow their neighbours; a straight line is never bent."""
    line = np.stack([np.arange(9) * 0.7, 3 - np.arange(9) * 0.2], axis=1)
    smooth, _ = motion.smooth_trajectory(np.zeros((9, 2)), np.full(9, 1.0), line)
    np.testing.assert_allclose(smooth, line, atol=1e-6)
    kink = line.copy()
    kink[4] += 5
    information = np.full(9, 100.0)
    information[4] = 1e-3
    smooth, _ = motion.smooth_trajectory(np.zeros((9, 2)), information, kink)
    np.testing.assert_allclose(smooth, line, atol=0.1)


# Patches and their prior


@pytest.mark.parametrize(("size", "count"), [(100, 3), (97, 4), (64, 2)])
def test_squared_windows_sum_to_one(size, count):
    np.testing.assert_allclose((local_motion.windows(size, count) ** 2).sum(0), 1)


def test_patches_are_windows_of_the_frames():
    """Also at the border, where a window is shorter than the patch; in more pieces than one."""
    rng, shape, counts = np.random.default_rng(0), (60, 90), (2, 4)
    frames = rng.standard_normal((3, *shape)).astype(np.float32)
    grid = alignment.make_grid(shape, (2.0, 2.0), 1e6, 4.0, "cpu")  # all of the band but mean and Nyquist
    spectra = torch.fft.rfft2(torch.from_numpy(frames))
    patches = local_motion.cut_patches(grid, spectra, counts, 100.0)
    banded = torch.fft.irfft2(spectra * grid.inside.clamp_max(1), s=shape).numpy()
    (h, w), lines = patches.grid.shape, [local_motion.windows(*of) for of in zip(shape, counts, strict=True)]
    for p, (i, j) in enumerate(patches.cells):
        window = np.outer(lines[0][i], lines[1][j])
        y, x = (np.flatnonzero(line)[0] for line in (lines[0][i], lines[1][j]))
        cut = np.zeros((3, h, w))
        inside = (banded * window)[:, y : y + h, x : x + w]
        cut[:, : inside.shape[1], : inside.shape[2]] = inside
        area = (window**2).sum() / (h * w)
        assert patches.areas[p] == pytest.approx(area)
        np.testing.assert_allclose(patches.images[p].numpy(), np.fft.rfft2(cut / np.sqrt(area)), atol=1e-3)
        weight = window**2 / (window**2).sum()
        centre = [(weight.sum(1 - axis) * np.arange(size)).sum() / size for axis, size in enumerate(shape)]
        np.testing.assert_allclose(patches.centres[p], centre)


def test_the_best_prior_is_that_of_the_greatest_evidence():
    rng, n = np.random.default_rng(3), 8
    y, x = np.meshgrid([0.2, 0.5, 0.8], [0.2, 0.5, 0.8], indexing="ij")
    centres = np.stack([y.ravel(), x.ravel()], 1)
    areas, information = np.full(9, 0.8), np.full(n, 30.0)
    moved = np.einsum("p,t,c->ptc", centres[:, 0] - 0.5, np.log1p(np.arange(n)), [2.0, -1.0])
    told = information[:, None] * areas[:, None, None] * moved + rng.normal(0, 30**0.5, (9, n, 2))
    priors = motion_prior.make_priors(centres, np.ones(2), n)
    evidence, best = motion_prior.best_prior(priors, told, areas, information)
    each = [
        motion_prior.fit(dataclasses.replace(prior, width=width), told, areas, information)[1]
        for prior in priors
        for width in motion_prior.WIDTHS_A
    ]
    assert evidence == pytest.approx(max(each))
    assert motion_prior.fit(best, told, areas, information)[1] == pytest.approx(evidence)


def test_the_fit_solves_its_normal_equations():
    rng = np.random.default_rng(0)
    centres, n = rng.random((5, 2)), 6
    prior = motion_prior.make_prior(centres, np.ones(2), n, 1.7, 0.6, 0.5)
    told, areas, information = rng.standard_normal((5, n, 2)), rng.random(5), rng.random(n)
    coefficients, evidence = motion_prior.fit(prior, told, areas, information)
    basis = np.einsum("pj,tk->ptjk", 1.7 * prior.space, prior.frames).reshape(5 * n, -1)
    weight = np.outer(areas, information).ravel()
    matrix = np.eye(basis.shape[1]) + basis.T @ (weight[:, None] * basis)
    right = basis.T @ told.reshape(-1, 2)
    solution = np.linalg.solve(matrix, right)
    np.testing.assert_allclose(coefficients.reshape(-1, 2), 1.7 * solution, atol=1e-8)
    expected = 0.5 * (right * solution).sum() - np.linalg.slogdet(matrix)[1]
    assert evidence == pytest.approx(expected)


def test_a_local_field_between_its_knots():
    knots = np.linspace(0, 1, local_motion.KNOTS)
    y, x = np.meshgrid(knots, knots, indexing="ij")
    field = local_motion.LocalField(np.stack([y**3 - x, x**2 * y], -1)[None] * np.arange(3)[:, None, None, None])
    at = np.array([[0.13, 0.77], [0.0, 1.0]])
    expected = np.stack([at[:, 0] ** 3 - at[:, 1], at[:, 1] ** 2 * at[:, 0]], -1)
    np.testing.assert_allclose(field.at(at)[2], 2 * expected, atol=1e-12)
    x, y = field.sampling((10, 20), np.array([1.0, 2.0]), 0.5, "cpu")(2).numpy()[2, 5]
    from_place = np.array([(y + 1) / 2 * 9 - 2, (x + 1) / 2 * 19 - 5])  # pixels of 0.5 Å
    np.testing.assert_allclose(from_place, 4 * np.array([0.3**3 - 0.35, 0.35**2 * 0.3]), atol=1e-5)


# Moving the frames


def test_sums_undo_a_known_local_motion():
    """Frames without noise, moved by a drift and a dome: their sum is the clean image, to which only both lead."""
    shape, n = (256, 256), 6
    clean = field(7, shape, cutoff=0.1)
    y, x = np.mgrid[: shape[0], : shape[1]].astype(float)
    path = drift(n)

    def dome(rows, columns):
        return np.stack([(rows - 100) / 256, (columns - 150) / 256], -1) * 8  # pixels

    opened = np.arange(n) / n
    data = np.empty((n, *shape), np.float32)
    for t in range(n):
        at = [c - path[t, i] - opened[t] * dome(y, x)[..., i] for i, c in enumerate((y, x))]
        data[t] = ndimage.map_coordinates(clean, at, order=5, mode="grid-wrap")
    knots = np.linspace(0, 256, local_motion.KNOTS)
    # The field belongs to the mean frame, the dome to each frame's own pixels: half a pixel apart here.
    bend = opened[:, None, None, None] * dome(*np.meshgrid(knots, knots, indexing="ij"))
    spectra = torch.fft.rfft2(torch.from_numpy(data))

    def error(local):
        found = motion.Motion(path * PIXEL, local)
        sums = warp.sum_groups(spectra, [[0, 2, 4], [1, 3, 5]], shape, PIXEL, found)
        return [np.std((x / 3 - clean)[20:-20, 20:-20]) for x in sums]

    right, none, turned = (error(local_motion.LocalField(s * bend * PIXEL) if s else None) for s in (1, 0, -1))
    assert max(right) < 0.1 and min(none) > 3 * max(right) and min(turned) > min(none)


def test_pulling_by_whole_pixels_is_exact():
    image = torch.from_numpy(np.random.default_rng(0).standard_normal((40, 50)).astype(np.float32))
    knots = np.tile([6.0, -4.0], (1, local_motion.KNOTS, local_motion.KNOTS, 1))
    places = local_motion.LocalField(knots).sampling((40, 50), np.zeros(2), 2.0, "cpu")
    moved = warp.pull(image, places(0))
    np.testing.assert_allclose(moved[5:30, 5:45], image[8:33, 3:43], atol=2e-4)


def test_the_power_that_interpolation_keeps_in_closed_form():
    kept = warp.power_kept(np.array([0.0, 0.25, 0.5]))
    np.testing.assert_allclose(kept[0], 1)  # not displaced
    np.testing.assert_allclose(kept[:, 0], 1)  # constants are reproduced
    # Half a pixel: Keys' weights with slope -3/4 are -3/32, 19/32, 19/32, -3/32.  Of a wave of 4 pixels cos(pi/4)
    # of the inner two and cos(3 pi/4) of the outer two are left, of the alternating one nothing.
    inner, outer = 19 / 32, -3 / 32
    left = 2 * (inner * np.cos(np.pi / 4) + outer * np.cos(3 * np.pi / 4))
    np.testing.assert_allclose(kept[warp.FRACTIONS // 2], [1, left**2, 0], atol=1e-12)
    np.testing.assert_allclose(kept[5], kept[warp.FRACTIONS - 5], atol=1e-12)


@pytest.mark.parametrize("pixels", [0.0, 0.4, 0.8, 1.5])
def test_white_noise_stays_white_after_interpolation(pixels):
    """Whatever fractions of a pixel a frame is displaced by; the whole spectrum is looked at."""
    rng, shape, repeats = np.random.default_rng(3), (192, 224), 8
    knots = np.linspace(1, -1, local_motion.KNOTS)  # inwards: nothing is looked for beyond the edges
    bend = pixels * PIXEL * np.stack(np.meshgrid(knots, knots, indexing="ij"), -1)
    still = motion.Motion(np.zeros((1, 2)), local_motion.LocalField(bend[None]))
    powers = np.zeros((192, 224 // 2 + 1))
    for _ in range(repeats):
        noise = torch.fft.rfft2(torch.from_numpy(rng.standard_normal((1, *shape)).astype(np.float32)))
        image = warp.sum_groups(noise, [[0]], shape, PIXEL, still)[0]
        powers += np.abs(np.fft.rfft2(image)) ** 2 / image.size / repeats
    s = np.hypot(np.fft.fftfreq(192)[:, None], np.fft.rfftfreq(224))
    for low in (0.05, 0.15, 0.25, 0.35, 0.45):
        band = (s >= low) & (s < low + 0.1)
        # Taking the content from a share 1 - e of either axis brings noise of 1 + 2 e into a given band.
        spread = pixels * (1 / 96 + 1 / 112)
        error = 5 / np.sqrt(band.sum() * repeats / 2)
        assert powers[band].mean() == pytest.approx(1 + spread / 2, abs=error + 0.02 + spread / 2)


def test_a_frame_all_half_a_pixel_off_is_not_raised_without_limit():
    knots = np.full((1, local_motion.KNOTS, local_motion.KNOTS, 2), 0.5 * PIXEL)
    for factor in warp.making_up(local_motion.LocalField(knots), (64, 80), PIXEL, np.zeros(2)):
        assert factor.max() == 2 and factor[0, 0] == pytest.approx(1)


@pytest.mark.parametrize("name", ["resolution_A", "max_shift_A", "tolerance_A", "patch_A"])
def test_settings_that_make_no_sense_are_refused(name):
    with pytest.raises(InputError, match=name):
        motion.MotionSettings(**{name: 0.0})
