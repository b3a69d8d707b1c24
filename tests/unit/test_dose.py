"""Dose weighting: the paper's formula, white noise that stays white, a damped signal that comes out as derived."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cryon2n import audit, dose, files, fourier, local_motion, motion, movies, warp
from cryon2n import split as splitting
from cryon2n.errors import InputError
from making import field, frames, write_movie

PIXEL, N, PER_FRAME = 1.5, 10, 4.0  # Å, frames, e⁻/Å² each: 5 Å detail is damped to exp(-36 / 12.8) at the end
SHAPE = (192, 224)
HALVES = [list(range(0, N, 2)), list(range(1, N, 2))]
QUARTERS = [list(range(k, N, 4)) for k in range(4)]


def critical(s):
    """Grant & Grigorieff (2015), equation 3, at 300 kV, for s > 0."""
    return 0.245 * s**-1.665 + 2.81


def test_the_critical_dose_is_that_of_the_paper():
    # At 4 Å: 0.25^-1.665 = 4^1.665 = 10.056, and 0.245 · 10.056 + 2.81 = 5.274.
    assert dose.critical_dose(np.array([0.25]))[0] == pytest.approx(5.274, abs=1e-3)
    assert dose.critical_dose(np.array([0.25]), 200)[0] == pytest.approx(0.8 * 5.274, abs=1e-3)
    left = dose.amplitude_left(np.array([0, 0.25]), np.array([0, 2 * 5.274]))
    np.testing.assert_allclose(left, [[1, 1], [1, np.exp(-1)]], rtol=1e-3)
    with pytest.raises(InputError, match="voltage_kV: found 120, wanted 200 or 300 kV"):
        dose.critical_dose(np.array([0.25]), 120)


@given(st.floats(0, 20), st.floats(-5, 300), st.sampled_from([2, 4, 6]), st.integers(6, 60))
def test_noise_keeps_its_variance_and_only_doses_between_frames_count(per_frame, before, k, n):
    groups = [list(range(g, n, k)) for g in range(k)]
    s = np.linspace(0, 1, 7)
    weights = dose.frame_weights(s, per_frame * np.arange(n), groups)
    for group in groups:
        np.testing.assert_allclose((weights[group] ** 2).sum(0), len(group), rtol=1e-9)
    np.testing.assert_allclose(weights[:, 0], 1)  # the mean stays a number of electrons
    assert (np.diff(weights[groups[0]], axis=0) <= 1e-12).all()  # later frames never count more
    # To a frame's beginning, middle or end, and after any dose before: the same weights.
    np.testing.assert_allclose(dose.frame_weights(s, before + per_frame * np.arange(n), groups), weights, rtol=1e-6)


def test_the_mean_weight_in_closed_form():
    # A geometric series: q_i = r^i, mean r^i / sqrt(mean r^2i).
    s, n = np.array([0.1, 0.3]), 12
    r = np.exp(-PER_FRAME / (2 * critical(s)))
    expected = (1 - r**n) / (1 - r) / np.sqrt(n * (1 - r ** (2 * n)) / (1 - r**2))
    np.testing.assert_allclose(dose.mean_weight(s, PER_FRAME * np.arange(n)), expected, rtol=1e-9)


def weighted(data, groups, local=None, path=None):
    spectra = torch.fft.rfft2(torch.from_numpy(np.asarray(data, np.float32)))
    s = warp.weight_frequencies(SHAPE, PIXEL)
    weights = dose.frame_weights(s, PER_FRAME * np.arange(N), groups)
    path = np.zeros((N, 2)) if path is None else path
    return warp.sum_groups(spectra, groups, SHAPE, PIXEL, motion.Motion(path, local), weights)


def stretch(n):
    """A local motion that grows from none to up to 3 pixels, by 3 % of the way."""
    knots = np.linspace(-1, 1, local_motion.KNOTS)
    bend = np.stack(np.meshgrid(knots, knots, indexing="ij"), -1) * 3 * PIXEL
    return local_motion.LocalField(np.arange(n)[:, None, None, None] / n * bend)


@pytest.mark.parametrize("groups", [HALVES, QUARTERS], ids=["halves", "quarters"])
@pytest.mark.parametrize("moved", [False, True], ids=["whole", "local"])
def test_white_noise_stays_white_with_its_variance(groups, moved):
    """Of n frames: n at every frequency; with local motion interpolated, but whitened on average."""
    rng, repeats = np.random.default_rng(0), 4 if moved else 12
    path = rng.uniform(-9, 9, (N, 2)) if moved else None
    powers = 0
    for _ in range(repeats):
        sums = weighted(rng.standard_normal((N, *SHAPE)), groups, stretch(N) if moved else None, path)
        inner = sums[:, 16:-16, 16:-16] if moved else sums  # repeated edges are not noise of their own
        shape = inner.shape[1:]
        window = fourier.edge_taper(shape, 16 if moved else 0)
        spectra = np.fft.rfft2(inner * window)
        rings = fourier.ring_sums(np.abs(spectra) ** 2, shape) / fourier.ring_counts(shape)
        powers = powers + rings / (shape[0] * shape[1] * np.mean(window**2)) / repeats
    counts = fourier.ring_counts(shape) / 2 * repeats  # independent bins; half are mirror images
    bands = np.array_split(np.arange(1, min(shape) // 2), 6)
    for group, power in zip(groups, powers, strict=True):
        for band in bands:
            error = 1 / np.sqrt(counts[band].sum())
            level = np.average(power[band], weights=counts[band]) / len(group)
            assert level == pytest.approx(1, abs=5 * error + (0.03 if moved else 0))


def test_a_damped_signal_comes_out_as_the_formula_says():
    """Frames hold S q_t: their weighted sum is S sqrt(n Σ q²), and the halves differ by one frame's damage."""
    scene = np.fft.rfft2(np.random.default_rng(1).standard_normal(SHAPE))
    s = np.hypot(np.fft.fftfreq(SHAPE[0], PIXEL)[:, None], np.fft.rfftfreq(SHAPE[1], PIXEL))
    s[0, 0] = 1e-9
    damage = np.exp(-PER_FRAME * (np.arange(N)[:, None, None] + 0.5) / (2 * critical(s)))
    sums = weighted(np.fft.irfft2(scene * damage, s=SHAPE), HALVES)
    found = np.fft.rfft2(sums)
    inner = (s > 0.01) & (s < 0.33)  # weights stand 1 / (8 · 224 · 1.5 Å) apart; they change little but near the origin
    gain = []
    for group, spectrum in zip(HALVES, found, strict=True):
        expected = np.sqrt(len(group) * (damage[group] ** 2).sum(0))
        np.testing.assert_allclose((spectrum / scene)[inner], expected[inner], rtol=2e-3)
        gain.append((spectrum / scene).real[inner])
    # What the data guide says: as in plain sums.
    ratio, plain = gain[0] / gain[1], (damage[HALVES[0]].sum(0) / damage[HALVES[1]].sum(0))[inner]
    np.testing.assert_allclose(ratio, np.exp(PER_FRAME / (2 * critical(s[inner]))), rtol=2e-3)
    np.testing.assert_allclose(ratio, plain, rtol=2e-3)


@pytest.mark.parametrize(("resolution", "percent"), [(20, 1.8), (10, 5.1), (5, 12)])
def test_the_data_guide_s_figures(resolution, percent):
    one = 53 / 38
    assert 100 * (np.exp(one / (2 * critical(1 / resolution))) - 1) == pytest.approx(percent, abs=0.5)


def test_other_weights_are_better_nowhere():
    """A sum's signal-to-noise ratio is largest where weights follow q (Cauchy-Schwarz): 30 others are worse."""
    s = np.array([0.1, 0.2, 0.3])
    q = dose.amplitude_left(s, PER_FRAME * np.arange(N))
    best = (dose.frame_weights(s, PER_FRAME * np.arange(N), [range(N)]) * q).sum(0)
    rng = np.random.default_rng(0)
    for _ in range(30):
        other = q * rng.uniform(0.5, 1.5, q.shape)
        assert ((other * q).sum(0) / np.sqrt((other**2).mean(0)) < best).all()


# ---------------------------------------------------------------------------- the split


@pytest.fixture
def unmoved(monkeypatch):
    """Take the trajectory as known: no motion."""
    monkeypatch.setattr(splitting.motion, "estimate", lambda spectra, *rest: motion.Motion(np.zeros((len(spectra), 2))))


def split(folder, data, **settings):
    with movies.open_movie(write_movie(folder / "m.mrc", data, PIXEL)) as movie:
        return splitting.split_movie(movie, splitting.SplitSettings(**settings))


@pytest.mark.parametrize("voltage", [300.0, 200.0])
def test_a_movie_of_noise_gives_halves_of_the_same_noise(tmp_path, unmoved, voltage):
    data = np.random.default_rng(2).poisson(5.0, (N, *SHAPE)).astype(np.uint8)
    plain = split(tmp_path, data, dose_e_per_A2=40)
    done = split(tmp_path, data, dose_e_per_A2=40, dose_weighting=True, voltage_kV=voltage)
    assert done.record["dose_weighted"] is True and done.record["voltage_kV"] == voltage
    assert plain.record["dose_weighted"] is False
    for half, other, side in ((done.a, plain.a, "a"), (done.b, plain.b, "b")):
        assert half.mean() == pytest.approx(other.mean(), rel=1e-5)
        assert half.var() == pytest.approx(5 * 5.0, rel=5 * np.sqrt(2 / half.size))
        assert np.abs(half - other).max() > 1  # and yet another image
        assert done.record[side]["noise_var"] == pytest.approx(plain.record[side]["noise_var"], rel=0.03)
    # Weights from the settings: the sum over frames, each filtered, once more by other means.
    s = np.hypot(np.fft.fftfreq(SHAPE[0], PIXEL)[:, None], np.fft.rfftfreq(SHAPE[1], PIXEL))
    s[0, 0] = 1e-9
    scale = {300.0: 1.0, 200.0: 0.8}[voltage]
    q = np.exp(-4.0 * np.arange(0, N, 2)[:, None, None] / (2 * scale * critical(s)))
    expected = np.fft.irfft2((np.fft.rfft2(data[0::2]) * q).sum(0) * np.sqrt(5 / (q**2).sum(0)), s=SHAPE)
    assert np.std(done.a - expected) < 0.01 * done.a.std()


def test_a_damped_movie_is_sharper_with_weights(tmp_path, unmoved):
    """The halves' correlation at high frequencies rises by what the weights gain in signal."""
    shape = (256, 256)
    scene = np.fft.rfft2(0.5 * field(3, shape, cutoff=0.33))
    s = np.hypot(np.fft.fftfreq(shape[0], PIXEL)[:, None], np.fft.rfftfreq(shape[1], PIXEL))
    s[0, 0] = 1e-9
    # 4 e⁻/Å² per frame; expected counts, clipped nowhere near.
    q = np.exp(-4.0 * (np.arange(20)[:, None, None] + 0.5) / (2 * critical(s)))
    clean = 4 + np.fft.irfft2(scene * q, s=shape)
    assert clean.min() > 0
    data = np.stack([frames(50 + t, image, np.zeros((1, 2)))[0] for t, image in enumerate(clean)])
    band = (s > 0.15) & (s < 0.22)
    signals = []
    for weighting in (False, True):
        done = split(tmp_path, data, dose_e_per_A2=80, dose_weighting=weighting)
        spectra = [np.fft.rfft2(half) for half in (done.a, done.b)]
        signals.append((spectra[0] * spectra[1].conj()).real[band].mean())
    damage = [q[k::2] for k in (0, 1)]
    plain = np.prod([d.sum(0) for d in damage], axis=0)
    best = np.prod([np.sqrt(10 * (d**2).sum(0)) for d in damage], axis=0)
    wanted = (best * np.abs(scene) ** 2)[band].mean() / (plain * np.abs(scene) ** 2)[band].mean()
    assert wanted > 1.5 and signals[1] / signals[0] == pytest.approx(wanted, rel=0.15)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_gives_the_same_groups(tmp_path):
    """Repaired, moved from place to place, weighted and in groups: float32 on both, sums of some 20 electrons."""
    shape, n = (384, 416), 12
    data = frames(4, 5 * (1 + 0.2 * field(4, shape)), np.linspace(0, 1, n)[:, None] * np.array([4.3, -2.6]))
    data[:, 40, 50:90] = data[:, 200:300, 60] = 0
    path = write_movie(tmp_path / "m.mrc", data, PIXEL)
    settings = splitting.SplitSettings(dose_e_per_A2=50, dose_weighting=True, groups=4)
    found = []
    for where in ("cpu", "cuda"):
        with movies.open_movie(path) as movie:
            found.append(splitting.split_movie(movie, settings, where))
    one, other = (done.record for done in found)
    assert one["defects"] == other["defects"] >= 140
    # Trajectories of two ways to round agree to a hundredth of a pixel, and so do the sums but for that shift.
    np.testing.assert_allclose(one["trajectory_A"], other["trajectory_A"], atol=0.01 * PIXEL)
    box = tuple(slice(*one["valid"][i : i + 2]) for i in (0, 2))
    for x, y in zip(found[0].groups, found[1].groups, strict=True):
        assert np.std((x - y)[box]) < 0.05 * np.std(x[box])


def test_weighting_without_a_dose_or_at_an_unknown_voltage_is_refused(tmp_path, cryon2n):
    write_movie(tmp_path / "m.mrc", np.random.default_rng(0).poisson(3, (4, 64, 64)).astype(np.uint8))
    words = ["split-halves", "--movie", tmp_path / "m.mrc", "--out", tmp_path / "h" / "m", "--settings"]
    done = cryon2n(*words, json.dumps({"dose_weighting": True}), check=False)
    assert done.returncode == 2 and "give dose_e_per_A2" in done.stderr
    done = cryon2n(*words, json.dumps({"dose_e_per_A2": 40, "voltage_kV": 120}), check=False)
    assert done.returncode == 2 and "wanted 200 or 300 kV" in done.stderr and not (tmp_path / "h").exists()


# ---------------------------------------------------------------------------- the audit


def test_the_audit_tells_a_gain_s_spread_through_dose_weights(tmp_path, unmoved):
    """The fixed pattern is damped with the frames: uncorrected for that it would seem less than its 8 %."""
    from cryon2n.halves import write_halves

    shape, n, spread = (256, 256), 10, 0.08
    response = np.random.default_rng(5).normal(1, spread, shape)
    rng, records = np.random.default_rng(6), []
    for i in range(4):
        data = rng.poisson(np.clip(9 * response * (1 + 0.05 * field(i, shape, 0.1)), 0, None), (n, *shape))
        done = split(tmp_path, data.astype(np.uint8), dose_e_per_A2=60, dose_weighting=True)
        write_halves(tmp_path / f"mic{i}", done.a, done.b, done.record, {}, "split-halves")
        records.append(tmp_path / f"mic{i}.json")
    pooled = audit.measure(records)[0][-1]
    assert pooled["gain_spread_percent"] == pytest.approx(100 * spread, rel=0.1)
    for path in records:
        files.write_json(path, {**files.read_json(path), "dose_weighted": False})
    assert audit.measure(records)[0][-1]["gain_spread_percent"] < 0.85 * 100 * spread
