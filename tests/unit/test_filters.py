"""Classical filters: their settings against brute force, their errors against closed forms."""

import json

import numpy as np
import pytest

from cryon2n import files, filters, filters_nlm, pair
from cryon2n.errors import InputError
from making import command, white, write_pair

SHAPE = (256, 256)
SIGMA2 = 1.0  # noise variance of a half


def spectrum(s, width=0.03, power=60.0):
    """Signal power per Fourier bin, in units of a pixel's variance."""
    return power / (1 + (s / width) ** 2) ** 2


def grid(shape):
    return np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None, :])


def random_field(seed, shape=SHAPE):
    noise = np.fft.rfft2(np.random.default_rng(seed).standard_normal(shape))
    noise[0, 0] = 0
    return np.fft.irfft2(noise * np.sqrt(spectrum(grid(shape))), s=shape)


def known_powers(n_rings=129, noise=(SIGMA2, SIGMA2)):
    s = np.linspace(0, 0.5, n_rings)
    counts = 2 * np.pi * np.arange(n_rings) + 1e-9
    va, vb = noise
    full = va * vb / (va + vb)
    return {
        "s": s,
        "signal": spectrum(s) * counts,
        **{k: np.full(n_rings, v) * counts for k, v in {"a": va, "b": vb, "full": full}.items()},
    }


def closed_form_mse(h, powers, side):
    return ((1 - h) ** 2 * powers["signal"] + h**2 * powers[side])[1:].sum()


@pytest.mark.parametrize("method", ["gaussian", "lowpass"])
@pytest.mark.parametrize("noise", [(1.0, 1.0), (0.2, 1.8)])
def test_the_chosen_setting_is_the_optimum_of_a_known_spectrum(method, noise):
    powers = known_powers(noise=noise)
    tuned = filters.tune(method, powers)["setting"]
    transfer = filters.CANDIDATES[method][0]
    fine = np.geomspace(0.002, 100, 20000)
    for side in filters.SIDES:
        errors = [closed_form_mse(transfer(powers["s"], v), powers, side) for v in fine]
        mine = closed_form_mse(transfer(powers["s"], tuned[side]), powers, side)
        assert mine <= min(errors) * 1.01
        assert mine < 0.9 * closed_form_mse(np.ones(129), powers, side)  # far better than raw
    if noise[0] == noise[1]:
        assert tuned["a"] == tuned["b"]
    else:  # the noisier half wants the stronger filter
        assert (tuned["b"] > tuned["a"]) == (method == "gaussian")


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    """Six pairs with a known clean image, and every filter tuned on the first four."""
    folder = tmp_path_factory.mktemp("fields")
    pairs, truths = [], []
    for i in range(6):
        clean = random_field(i)
        record = write_pair(folder, f"m{i}", clean + white(50 + i, SHAPE), clean + white(80 + i, SHAPE))
        pairs.append(pair.load_pair(record))
        unit = pairs[-1].record["a"]
        truths.append((clean - unit["offset"]) / unit["scale"])
    powers = filters.ring_powers(pairs[:4])
    return pairs, truths, {m: filters.tune(m, powers) for m in filters.LINEAR}


def true_mse(fields, method, side):
    pairs, truths, tuned = fields
    inner = (slice(24, -24), slice(24, -24))
    return np.mean(
        [
            np.square(filters.apply(tuned[method], getattr(p, side), side) - t)[inner].mean()
            for p, t in zip(pairs[4:], truths[4:], strict=True)
        ]
    )


@pytest.mark.parametrize("side", ["a", "full"])
def test_wiener_is_the_best_linear_filter_and_near_its_closed_form(fields, side):
    errors = {method: true_mse(fields, method, side) for method in filters.LINEAR}
    assert errors["wiener"] < min(errors["gaussian"], errors["lowpass"]) < errors["raw"]
    s = grid(SHAPE)
    twice = np.full(s.shape[1], 2.0)
    twice[[0, -1]] = 1
    noise = SIGMA2 if side == "a" else SIGMA2 / 2
    closed = (spectrum(s) * noise / (spectrum(s) + noise) * twice).sum() / np.prod(SHAPE)
    scale = np.mean([p.record["a"]["scale"] ** 2 for p in fields[0][4:]])
    assert errors["wiener"] == pytest.approx(closed / scale, rel=0.08)


def test_the_whole_exposure_gets_its_own_weaker_filter(fields):
    tuned = fields[2]
    assert tuned["gaussian"]["setting"]["full"] < tuned["gaussian"]["setting"]["a"]
    assert tuned["lowpass"]["setting"]["full"] > tuned["lowpass"]["setting"]["a"]


@pytest.mark.parametrize("method", filters.LINEAR)
@pytest.mark.parametrize("shape", [(64, 64), (61, 97)])
def test_a_constant_image_stays_as_it_is(fields, method, shape):
    out = filters.apply(fields[2][method], np.full(shape, 7.0, np.float32), "a")
    np.testing.assert_allclose(out, 7, rtol=1e-4)


def test_borders_are_mirrored_not_wrapped():
    image = np.zeros((64, 96), np.float32)
    image[:, -1] = 1
    out = filters.apply({"method": "gaussian", "setting": {"a": 3.0}}, image, "a")
    assert np.abs(out[:, :40]).max() < 1e-6  # nothing comes round to the other side
    assert out[32].sum() == pytest.approx(1, rel=1e-4)


def test_a_gaussian_is_a_gaussian():
    image = np.zeros((65, 65), np.float32)
    image[32, 32] = 1
    out = filters.apply({"method": "gaussian", "setting": {"a": 2.0}}, image, "a")
    y, x = np.mgrid[-32:33, -32:33]
    np.testing.assert_allclose(out, np.exp(-(y**2 + x**2) / 8) / (8 * np.pi), atol=1e-4)


def test_transfers_are_1_at_zero_frequency():
    for transfer, candidates in filters.CANDIDATES.values():
        assert all(transfer(np.zeros(1), v)[0] == 1 for v in candidates)


def test_the_commands_tune_and_filter(tmp_path, cryon2n):
    clean = random_field(1, (96, 128))
    record = write_pair(tmp_path, "m", clean + white(2, (96, 128)), clean + white(3, (96, 128)))
    cryon2n("tune-filter", "--method", "wiener", "--halves", record, "--filter", tmp_path / "f.json")
    tuned = json.loads((tmp_path / "f.json").read_text())
    assert tuned["chosen_on"] == ["m"] and tuned["pixel_size_A"] == 1.5
    cryon2n("filter-micrograph", "--filter", tmp_path / "f.json", "--halves", record, "--out", tmp_path / "out")
    halves = pair.load_pair(record)
    found = pair.read_estimates(halves, tmp_path / "out")
    np.testing.assert_allclose(found["a"], filters.apply(tuned, halves.a, "a"), atol=1e-5)
    np.testing.assert_allclose(found["mean"], (found["a"] + found["b"]) / 2, atol=1e-2)
    assert np.square(found["mean"] - halves.full).mean() > 0


def blocks(seed, shape=(96, 128)):
    """Flat squares of a few grey levels: patches that repeat, which is what non-local means lives on."""
    coarse = np.random.default_rng(seed).integers(-1, 2, (shape[0] // 16, shape[1] // 16))
    return np.kron(coarse, np.ones((16, 16)))


def test_non_local_means_is_tuned_to_near_its_best_and_beats_the_gaussian_on_edges(tmp_path):
    pairs, truths = [], []
    for i in range(2):
        clean = blocks(i)
        record = write_pair(tmp_path, f"m{i}", clean + white(50 + i, (96, 128)), clean + white(80 + i, (96, 128)))
        pairs.append(pair.load_pair(record))
        truths.append((clean - pairs[-1].record["a"]["offset"]) / pairs[-1].record["a"]["scale"])
    tuned = filters_nlm.tune(pairs[:1])
    one, truth = pairs[1], truths[1]

    def error(image):
        return np.square(image - truth).mean()

    mine = error(filters.apply(tuned, one.a, "a"))
    sigma = np.sqrt(one.noise_var[0])
    shape = tuned["patch"], tuned["distance"]
    best = min(error(filters_nlm.denoise(one.a, *shape, s, sigma)) for s in np.geomspace(0.1, 3, 12))
    assert mine < 1.05 * best
    gaussian = filters.tune("gaussian", filters.ring_powers(pairs[:1]))
    assert mine < 0.95 * error(filters.apply(gaussian, one.a, "a")) < 0.5 * error(one.a)
    # The whole exposure has half the noise of a half, and its filter knows.
    assert tuned["sigma"]["full"] == pytest.approx(tuned["sigma"]["a"] / np.sqrt(2), rel=1e-3)
    assert error(filters.apply(tuned, one.full, "full")) < mine


def test_the_commands_run_non_local_means_and_say_what_it_cost(tmp_path):
    clean = blocks(1)
    record = write_pair(tmp_path, "m", clean + white(2, (96, 128)), clean + white(3, (96, 128)))
    assert command("tune-filter", "--method", "nlm", "--halves", record, "--filter", tmp_path / "f.json") == 0
    words = ["filter-micrograph", "--filter", tmp_path / "f.json", "--halves", record, "--out", tmp_path / "out"]
    assert command(*words) == 0
    halves = pair.load_pair(record)
    found = pair.read_estimates(halves, tmp_path / "out")
    tuned = json.loads((tmp_path / "f.json").read_text())
    np.testing.assert_allclose(found["b"], filters.apply(tuned, halves.b, "b"), atol=1e-4)
    assert found["noise"].std() < 0.5 * halves.noise.std()
    cost = json.loads((tmp_path / "out/m.json").read_text())
    assert cost["images"] == 4 and cost["seconds_per_image"] > 0 and cost["gpu_memory_GB"] is None


def test_what_is_no_tuned_filter_is_refused(tmp_path, cryon2n):
    record = write_pair(tmp_path, "m", white(2), white(3))
    files.write_json(tmp_path / "f.json", {"some": "thing"})
    done = cryon2n(
        "filter-micrograph", "--filter", tmp_path / "f.json", "--halves", record, "--out", tmp_path / "out", check=False
    )
    assert done.returncode == 2 and "f.json: is not a tuned filter" in done.stderr and not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="unknown method"):
        filters.tune("median", known_powers())
