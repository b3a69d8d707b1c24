"""Classical filters: their settings against brute force, their errors against closed forms."""

import json

import numpy as np
import pytest

from cryon2n import files, filters, pair
from cryon2n.errors import InputError
from making import white, write_pair

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
    return pairs, truths, {m: filters.tune(m, powers) for m in filters.FILTERS}


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
    errors = {method: true_mse(fields, method, side) for method in filters.FILTERS}
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


@pytest.mark.parametrize("method", filters.FILTERS)
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


def test_what_is_no_tuned_filter_is_refused(tmp_path, cryon2n):
    record = write_pair(tmp_path, "m", white(2), white(3))
    files.write_json(tmp_path / "f.json", {"some": "thing"})
    done = cryon2n(
        "filter-micrograph", "--filter", tmp_path / "f.json", "--halves", record, "--out", tmp_path / "out", check=False
    )
    assert done.returncode == 2 and "f.json: is not a tuned filter" in done.stderr and not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="unknown method"):
        filters.tune("median", known_powers())
