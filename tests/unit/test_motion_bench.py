"""The motion benchmark: its simulator is exact, its measures are what they say, its adapters have the right signs."""

import dataclasses
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import fft, ndimage

from cryon2n import fourier

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from motion_accuracy import measure, methods, simulate, spline
from motion_accuracy.field import Field, from_grid, grid

PIXEL = 1.2  # Å


def scene(shape, cutoff=0.3, seed=1):
    """The spectrum of a random image with nothing beyond `cutoff` cycles per pixel and a deviation of 1."""
    spectrum = fft.rfft2(np.random.default_rng(seed).normal(size=shape))
    spectrum[np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None, :]) > cutoff] = 0
    spectrum[0, 0] = 0
    return (spectrum / fft.irfft2(spectrum, s=shape).std()).astype(np.complex64)


def stretch(shape, n, drift=(0.0, 0.0), slope=0.0, pixel_size=PIXEL):
    """A field d(t, y) that drifts by `drift` Å per frame and stretches by `slope` of the height per frame."""
    drift = np.array(drift)

    def displacement(t, places):
        middle = places[:, 0] - (shape[0] - 1) / 2
        return t * (drift + np.stack([slope * middle * pixel_size, 0.3 * slope * middle * pixel_size], axis=1))

    return Field(displacement, n, pixel_size, in_frame=True)


def movie(shape, truth, mean, contrast, seed=2, noise=True):
    """Counts of a random scene that moves by `truth`."""
    field = tuple(n + 64 for n in shape)
    coefficients = simulate.spline_coefficients(torch.from_numpy(scene(field, 0.2)), field)
    every = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1).reshape(-1, 2)
    counts = np.empty((truth.n, *shape), np.uint8)
    for t in range(truth.n):
        shift = (truth.displacement(t, every) / PIXEL).T.reshape(2, *shape).astype(np.float32)
        moved = simulate.moved(coefficients, torch.from_numpy(shift)).numpy()
        expected = np.maximum(mean * (1 + contrast * moved), 0)
        counts[t] = np.random.default_rng((seed, t)).poisson(expected) if noise else np.rint(expected)
    return simulate.Movie(counts, truth, PIXEL, 1.0, contrast)


@pytest.mark.parametrize("field", [(120, 128), (121, 135)])
def test_a_frame_of_the_simulator_is_the_scene_moved_exactly(field):
    spectrum = scene(field, cutoff=0.4)
    coefficients = simulate.spline_coefficients(torch.from_numpy(spectrum), field)
    for shift in ((0.0, 0.0), (3.0, -5.0), (2.37, -1.81), (-0.5, 20.25)):
        displacement = torch.tensor(shift)[:, None, None].expand(2, *field)
        found = simulate.moved(coefficients, displacement).numpy()
        wanted = fft.irfft2(spectrum * fourier.shift_phase(field, shift), s=field)
        # The error of a shift by ε px would be ε times the image's slope.
        slope = np.std(np.gradient(wanted, axis=0))
        assert np.std(found - wanted) < 0.002 * slope
        off = fft.irfft2(spectrum * fourier.shift_phase(field, (shift[0] + 0.01, shift[1])), s=field)
        assert np.std(found - off) > 0.005 * slope


@pytest.mark.parametrize(("beyond", "mode"), [("circular", "grid-wrap"), ("reflect", "mirror")])
@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("evaluate", [spline.sample, spline.gather])
def test_the_spline_is_scipy_s_on_any_device(evaluate, step, beyond, mode):
    rng = np.random.default_rng(5)
    values, start = rng.normal(size=(150, 131)).astype(np.float32), (3, -2)
    displacement = rng.uniform(-40, 20, (2, 70, 60)).astype(np.float32)
    places = np.stack(np.meshgrid(np.arange(70.0), np.arange(60.0), indexing="ij")) * step + displacement
    places += np.array(start)[:, None, None]
    wanted = ndimage.map_coordinates(values.astype(float), places, order=5, mode=mode, prefilter=False)
    found = evaluate(torch.from_numpy(values), torch.from_numpy(displacement), start, step, beyond).numpy()
    # A place that is off by 1e-4 px would be off by about 1e-4 of the values' spread.
    assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("fast", [(200, 256), (217, 221)])
def test_the_spline_s_coefficients_are_scipy_s(fast):
    image = np.random.default_rng(6).normal(size=(150, 131)).astype(np.float32)
    wanted = ndimage.spline_filter(image.astype(float), 5, mode="mirror")
    found = spline.coefficients(torch.from_numpy(image), fast).numpy()
    assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max()
    with pytest.raises(ValueError, match="less than 24 px"):
        spline.coefficients(torch.from_numpy(image), (190, 256))


def test_the_counts_do_not_depend_on_who_draws_them():
    scene = simulate.draw_scene("dim", 7, (96, 112))
    alone, together = (simulate.simulate("dim", 7, (96, 112), scene=s, threads=n) for s, n in ((None, 1), (scene, 3)))
    assert np.array_equal(alone.counts, together.counts)


def test_the_bound_is_what_frames_apart_reach():
    # Frames of a strong scene that does not move, each located in the noise-free scene by its own phase: the scatter
    # of the true place's gradient is what the bound says, so that a one-step estimate has the bound's error.
    shape, n = (256, 256), 12
    still = stretch(shape, n)
    known = dataclasses.replace(movie(shape, still, mean=3.0, contrast=0.25), dose_per_frame=0.0)  # no damage
    bound = measure.frame_bound(known)
    field = tuple(size + 64 for size in shape)
    coefficients = simulate.spline_coefficients(torch.from_numpy(scene(field, 0.2)), field)
    clean = simulate.moved(coefficients, torch.zeros(2, *shape)).numpy().astype(float) * 0.25
    slopes = [np.gradient(clean, PIXEL, axis=axis) for axis in (0, 1)]
    # d moves the content: frame - mean = -mean slope · d; least squares, all pixels having the variance `mean`.
    residual = known.counts - 3.0 * (1 + clean)
    found = np.stack([-(residual * s).sum((1, 2)) / (3.0 * (s**2).sum()) for s in slopes], axis=1)
    wanted = np.sqrt((found**2).sum(1).mean())
    # 24 numbers: their RMS has a standard error of 1/sqrt(48) = 14 %; the scene known, the error is a little smaller.
    assert wanted == pytest.approx(bound, rel=0.4)


def test_the_same_seed_gives_the_same_movie_and_the_motion_is_that_of_its_regime():
    first, again, other = (simulate.simulate("quiet", seed, (192, 180)) for seed in (3, 3, 4))
    assert np.array_equal(first.counts, again.counts) and not np.array_equal(first.counts, other.counts)
    regime = simulate.REGIMES["quiet"]
    assert first.counts.shape == (38, 192, 180)
    assert first.counts.mean() == pytest.approx(53 / 38 * 1.3**2, rel=0.03)
    for seed in range(5):
        truth = simulate.draw_motion(regime, (192, 192), np.random.default_rng(seed))
        field = np.stack([truth.displacement(t, grid((192, 192), 6)) for t in range(38)])
        assert np.abs(field[0]).max() < regime.rough_A * 2  # what stands still in frame 0
        local = field - field.mean(1, keepdims=True)
        assert regime.dome_A * 0.3 < np.linalg.norm(local - local[0], axis=-1).max() < regime.dome_A * 2 + 4
        assert 15 < np.linalg.norm(field - field[0], axis=-1).max() < 32


def test_the_critical_exposure_is_the_published_one():
    # 0.24499 · 10^1.6649 + 2.8141 at 10 Å; at 3 Å 0.24499 · 3^1.6649 + 2.8141.
    assert simulate.critical_exposure(np.array([0.1, 1 / 3])) == pytest.approx([14.140, 4.340], abs=0.01)


def test_places_in_the_frame_become_places_in_the_corrected_image():
    # d = 0.01 t y (Å, y in px): y = x + d / pixel, so that e = 0.01 t x / (1 - 0.01 t / pixel).
    field = Field(lambda t, places: 0.01 * t * places, 3, PIXEL, in_frame=True)
    x = np.array([[10.0, 100.0], [50.0, -7.0]])
    for t, found in enumerate(field.corrected(x)):
        assert found == pytest.approx(0.01 * t * x / (1 - 0.01 * t / PIXEL), abs=1e-6)


def test_a_grid_of_displacements_gives_them_back_between_its_places():
    y, x = np.meshgrid(np.linspace(0, 99, 9), np.linspace(0, 149, 9), indexing="ij")
    field = from_grid(np.stack([1e-5 * y**3, 0.1 * x], axis=-1)[None], (100, 150), 1.0)
    places = np.array([[0.0, 0.0], [33.3, 71.7], [99.0, 149.0]])
    assert field.corrected(places)[0] == pytest.approx(np.stack([1e-5 * places[:, 0] ** 3, 0.1 * places[:, 1]], 1))


def test_only_what_blurs_counts_as_an_error():
    shape = (200, 300)
    truth = stretch(shape, 5, drift=(6.0, -4.0), slope=0.002)
    known = simulate.Movie(np.zeros((5, *shape), np.uint8), truth, PIXEL, 1.0, 0.0)
    assert measure.field_errors(truth, known) == pytest.approx(
        {"global_A": 0, "local_A": 0, "bend_A": 0, "kept_4A": 1}, abs=1e-9
    )

    # Measured against frame 3 instead of frame 0: the corrected image is shifted and stretched, but as sharp.
    def against_3(t, places):
        x = places - truth.displacement(t, places) / PIXEL
        there = x
        for _ in range(9):
            there = x + truth.displacement(3, there) / PIXEL
        return (places - there) * PIXEL

    again = measure.field_errors(Field(against_3, 5, PIXEL, True), known)
    assert again["local_A"] < 0.01, again
    # An error of ±1 Å in y in turn has the mean 0.2 (3 plus, 2 minus), so that sqrt(1 - 0.04) is left.
    wrong = Field(lambda t, p: truth.displacement(t, p) + np.array([(-1.0) ** t, 0]), 5, PIXEL, True)
    found = measure.field_errors(wrong, known)
    assert found["global_A"] == pytest.approx(np.sqrt(0.96), rel=0.01)
    assert found["local_A"] == pytest.approx(np.sqrt(0.96), rel=0.01) and found["bend_A"] < 0.02
    # Amplitude at 4 Å along the error's axis: |3/5 exp(iπ/2) + 2/5 exp(-iπ/2)| = 0.2; across it 1.
    angles = np.arange(12) * np.pi / 12
    wanted = np.mean(np.abs(0.6 * np.exp(0.5j * np.pi * np.sin(angles)) + 0.4 * np.exp(-0.5j * np.pi * np.sin(angles))))
    assert found["kept_4A"] == pytest.approx(wanted, abs=0.01)


def test_the_best_fields_of_a_family_are_found():
    shape, n = (240, 240), 6

    def family(t, places):
        y, x = (places / np.array(shape) - 0.5).T
        z = t / 5
        return np.stack([z * y * y - 2 * z**3 * x + 9 * np.sin(t), z**2 * x * y + 5 * z], axis=1)

    known = simulate.Movie(np.zeros((n, *shape), np.uint8), Field(family, n, PIXEL, False), PIXEL, 1.0, 0.0)
    assert measure.field_errors(measure.best_polynomial(known), known)["local_A"] < 1e-9
    best = measure.field_errors(measure.best_global(known), known)
    assert best["global_A"] < 1e-9 and 0.1 < best["local_A"] < 1


def test_halves_by_the_known_field_agree_and_by_the_opposite_one_do_not():
    shape, n = (256, 256), 6
    truth = stretch(shape, n, drift=(2.1, -1.3), slope=0.004)
    sharp = movie(shape, truth, mean=100.0, contrast=0.2, noise=False)
    halves = measure.Halves(sharp)
    wrong = (
        measure.best_global(sharp),
        Field(lambda t, p: -truth.displacement(t, p), n, PIXEL, True),
        stretch(shape, n, drift=(2.1, -1.3), slope=-0.004),
    )
    known, *curves = map(measure.half_correlation, halves.sums([truth, *wrong]))
    inside = (halves.frequencies > 0.02) & (halves.frequencies < 0.15)
    assert known[inside].min() > 0.999
    for curve in curves:
        assert measure.curve_measures(curve, known, halves.frequencies)["frc_ratio"] < 0.99
    assert measure.curve_measures(known, known, halves.frequencies)["frc_ratio"] == 1


def test_the_area_and_the_resolution_of_a_curve():
    frequencies = np.arange(501) / 1000  # 0.001 1/Å per ring
    known = np.where(frequencies < 0.25, 0.8, 0.0)
    curve = np.where(frequencies < 0.20, 0.8, 0.0)
    found = measure.curve_measures(curve, known, frequencies)
    # From 1/60 to 0.25 against 1/60 to 0.20, apart from the smoothing's 5 rings on either side.
    assert found["frc_ratio"] == pytest.approx((0.2 - 1 / 60) / (0.25 - 1 / 60), abs=0.01)
    assert 1 / found["resolution_A"] == pytest.approx(0.20, abs=0.006)
    # Nothing above 0.143: compared to 1/20 Å, half of which is lost here; no resolution.
    faint = np.full(501, 0.1)
    half = np.where(frequencies < (1 / 60 + 1 / 20) / 2, 0.1, 0.0)
    assert measure.curve_measures(half, faint, frequencies) == {"frc_ratio": pytest.approx(0.5, abs=0.03)}


STAR = """
data_general

_rlnImageSizeX 300

data_global_shift

loop_
_rlnMicrographFrameNumber #1
_rlnMicrographShiftX #2
_rlnMicrographShiftY #3
1 0.0 0.0
2 1.5 -2.0

data_local_motion_model

loop_
_rlnMotionModelCoeffsIdx #1
_rlnMotionModelCoeff #2
"""


def test_relion_s_shifts_are_applied_and_its_model_is_added():
    model = np.zeros((2, 18))
    model[0, 3] = 10.0  # x: the coefficient of x · t
    model[1, 10] = 4.0  # y: that of y · t²
    text = STAR + "\n".join(f"{i} {value}" for i, value in enumerate(model.ravel())) + "\n"
    field = methods.relion_field(text, (2, 200, 300), 2.0)
    places = np.array([[100.0, 150.0], [150.0, 150.0], [100.0, 300.0]])
    # Middle: minus the shift, (2, -1.5) px = (4, -3) Å; a quarter lower y - 4 · 0.25 px; right edge x - 10 · 0.5 px.
    assert field.corrected(places)[1] == pytest.approx(np.array([[4.0, -3.0], [2.0, -3.0], [4.0, -13.0]]))
    assert field.corrected(places)[0] == pytest.approx(0)
    no_model = methods.relion_field(STAR[: STAR.index("data_local")], (2, 200, 300), 2.0)
    assert no_model.corrected(places)[1] == pytest.approx(np.array([[4.0, -3.0]] * 3))


def test_a_program_is_stopped_when_the_time_ends_and_its_failure_is_told(tmp_path):
    counts = np.zeros((2, 8, 8), np.uint8)
    task = methods.Task(counts, PIXEL, 1.0, tmp_path, 1, deadline=time.monotonic() + 0.5)
    began = time.monotonic()
    with pytest.raises(methods.OutOfTime):
        methods._run(["sleep", 60], task)
    with pytest.raises(methods.OutOfTime):
        methods._run(["touch", tmp_path / "begun"], task)
    assert time.monotonic() - began < 20 and not (tmp_path / "begun").exists()
    task = methods.Task(counts, PIXEL, 1.0, tmp_path, 1)
    with pytest.raises(methods.Failed, match="sh gave 3: no motion"):
        methods._run(["sh", "-c", "echo no motion; exit 3"], task)


@pytest.mark.parametrize("method", methods.METHODS)
def test_each_method_has_the_signs_of_the_benchmark(method, tmp_path):
    if why := methods.why_absent(method):
        pytest.skip(why)
    # Many electrons and a strong contrast: what is left is the method's own error, and its conventions.
    local = method in methods.GLOBAL_OF
    truth = stretch((640, 640), 8, drift=(0.5, -0.35), slope=0.004 if local else 0.0)
    known = movie((640, 640), truth, mean=8.0, contrast=0.3)
    field, seconds = methods.METHODS[method](methods.Task(known.counts, PIXEL, 1.0, tmp_path, 2))
    error = measure.field_errors(field, known)
    assert seconds > 0
    # The drift is 1.4 Å RMS (0.61 Å per frame, 8 frames): an opposite sign, or exchanged axes, would be 2.8 Å off;
    # whole pixels are 0.5 Å off.
    assert error["global_A"] < 0.7, error
    if local:
        # A model with exchanged axes or the other sign is worse than none.
        none = measure.field_errors(measure.best_global(known), known)["local_A"]
        assert none > 1.5 and error["local_A"] < 0.6 * none, (error, none)
