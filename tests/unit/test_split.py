"""Splitting movies: plain sums where nothing moves, clean ones where it does, counting statistics, records."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from cryon2n import files, halves, motion, movies, mrcio, pair
from cryon2n import split as splitting
from cryon2n.errors import InputError
from making import field, frames, moved, write_movie

SHAPE = (128, 160)


def split(tmp_path, data, pixel_size=1.5, **settings):
    with movies.open_movie(write_movie(tmp_path / "m.mrc", data, pixel_size)) as movie:
        return splitting.split_movie(movie, splitting.SplitSettings(**settings))[:3]


def counts(seed, n, shape=SHAPE, mean=2.0, contrast=0.2):
    return frames(seed, mean * (1 + contrast * field(seed, shape)), np.zeros((n, 2)))


@pytest.fixture
def unmoved(monkeypatch):
    """Take the trajectory as known: no motion."""
    monkeypatch.setattr(splitting.motion, "estimate", lambda spectra, *rest: motion.Motion(np.zeros((len(spectra), 2))))


@pytest.mark.parametrize("shape", [(128, 160), (101, 133)])
def test_halves_of_a_movie_that_does_not_move_are_plain_sums(tmp_path, unmoved, shape):
    data = counts(1, 7, shape)
    a, b, record = split(tmp_path, data)
    np.testing.assert_allclose(a, data[0::2].sum(0), atol=1e-4)
    np.testing.assert_allclose(b, data[1::2].sum(0), atol=1e-4)
    assert record["a"]["frames"] == [0, 2, 4, 6] and record["b"]["frames"] == [1, 3, 5]
    assert record["valid"] == [0, shape[0], 0, shape[1]]


def test_a_dead_block_is_filled_with_other_noise_in_each_half_and_the_audit_knows(tmp_path, cryon2n):
    """A block of 80 x 80 px that a list of defects names: no good pixel is within 32 px of its middle."""
    mean, n, shape = 3.0, 12, (400, 400)
    data = counts(9, n, shape, mean, contrast=0.05)
    data[:, 100:180, 200:280] = 0
    write_movie(tmp_path / "m.mrc", data)
    (tmp_path / "defects.txt").write_text("200 100 80 80\n")
    words = ["--movie", tmp_path / "m.mrc", "--set", f"defects={tmp_path / 'defects.txt'}"]
    cryon2n("split-halves", *words, "--out", tmp_path / "h" / "m")
    a, b = (mrcio.read_mrc(tmp_path / "h" / f"m_{side}.mrc")[0][110:170, 210:270] for side in "ab")
    for half in (a, b):
        assert half.mean() == pytest.approx(n / 2 * mean, rel=0.05)
        assert half.var() == pytest.approx(n / 2 * mean, rel=0.15)  # 5 standard errors of sqrt(2 / 3600), and signal
    assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 5 / 60
    record = json.loads((tmp_path / "h" / "m.json").read_text())
    # Whole blocks of 16 within rows 100 to 180 are 112 to 176, within columns 200 to 280 208 to 272: 4 x 4 of 25 x 25.
    assert record["defects"] == 80 * 80 and record["repaired_area_percent"] == pytest.approx(100 * 16 / 625)
    words = ["audit-halves", "--halves", tmp_path / "h" / "m.json", "--figure", tmp_path / "f.png"]
    cryon2n(*words, "--table", tmp_path / "t.tsv", "--settings", json.dumps({"max_excluded": 1}))
    row = files.read_table(tmp_path / "t.tsv", ["flags"])[0]
    assert "dead-area" in row["flags"] and float(row["dead_percent"]) == pytest.approx(2.56)


@pytest.mark.parametrize("step", [(2, -1), (-1, 3)])
def test_with_a_drift_of_whole_pixels_the_sums_equal_the_clean_ones_inside_valid(tmp_path, monkeypatch, step):
    n, path = 6, np.arange(6)[:, None] * np.array(step)
    rng = np.random.default_rng(0)
    big = rng.poisson(3.0, (n, SHAPE[0] + 40, SHAPE[1] + 40)).astype(np.uint8)  # each frame's own scene
    # What stands at (y, x) in frame 0's coordinates stands at (y, x) + path[t] in frame t; the rest is not recorded.
    data = np.stack(
        [big[t, 20 - dy : 20 - dy + SHAPE[0], 20 - dx : 20 - dx + SHAPE[1]] for t, (dy, dx) in enumerate(path)]
    )
    monkeypatch.setattr(splitting.motion, "estimate", lambda *_: motion.Motion(path * 1.5))
    a, b, record = split(tmp_path, data)
    y0, y1, x0, x1 = record["valid"]
    for half, start in ((a, 0), (b, 1)):
        clean = big[start::2, 20 : 20 + SHAPE[0], 20 : 20 + SHAPE[1]].sum(0, dtype=float)
        difference = np.abs(half - clean)
        assert difference[y0:y1, x0:x1].max() < 1e-3
        if start == 1:  # the frame that moved most; just outside, wrapped pixels are wrong
            outside = difference.copy()
            outside[y0:y1, x0:x1] = 0
            assert (outside > 0.5).any(1).sum() >= y0 + SHAPE[0] - y1 and outside.max() > 1
    extent = 5 * np.array(step)
    expected = [max(0, -extent[0]), SHAPE[0] - max(0, extent[0]), max(0, -extent[1]), SHAPE[1] - max(0, extent[1])]
    assert record["valid"] == expected


def test_halves_aligned_apart_still_lie_on_one_another(tmp_path):
    shape, n = (256, 256), 16
    path = np.stack([np.linspace(0, 6, n), 3 * np.sin(np.linspace(0, 2, n))], 1)
    data = frames(3, 2.0 * (1 + 0.2 * field(6, shape)), path)
    a, b, record = split(tmp_path, data, alignment="independent")
    assert record["alignment"] == "independent"
    error = np.array(record["trajectory_A"]) / 1.5 - path
    assert np.sqrt(np.mean((error - error.mean(0)) ** 2)) < 0.2
    y0, y1, x0, x1 = record["valid"]
    size = min(y1 - y0, x1 - x0)
    spectra = [np.fft.rfft2(x[y0 : y0 + size, x0 : x0 + size] - x.mean()) for x in (a, b)]
    correlation = np.fft.irfft2(spectra[0] * spectra[1].conj())
    assert np.unravel_index(correlation.argmax(), correlation.shape) == (0, 0)
    # Other noise in one half changes nothing in the other's path.
    other = frames(4, 2.0 * (1 + 0.2 * field(6, shape)), path)
    other[0::2] = data[0::2]
    again = split(tmp_path, other, alignment="independent")[2]
    np.testing.assert_allclose(again["trajectory_A"][0::2], record["trajectory_A"][0::2], atol=1e-6)


@pytest.mark.parametrize("number", range(int(os.environ.get("CRYON2N_KILLS", "4"))))
def test_killed_at_any_moment_it_leaves_nothing_half_written(tmp_path, number):
    """CRYON2N_KILLS=50 tries fifty moments."""
    write_movie(tmp_path / "m.mrc", counts(1, 8, (512, 512)))
    arguments = ["split-halves", "--movie", str(tmp_path / "m.mrc"), "--out", str(tmp_path / "h" / "m")]
    with subprocess.Popen([sys.executable, "-m", "cryon2n", *arguments], stderr=subprocess.DEVNULL) as running:
        while not (tmp_path / "h").exists() and running.poll() is None and number % 2:
            time.sleep(0.001)  # every other moment lies in the writing
        time.sleep(np.random.default_rng(number).uniform(0, 0.02 if number % 2 else 4))
        running.kill()
    for path in (tmp_path / "h").glob("*") if (tmp_path / "h").exists() else []:
        if path.suffix == ".mrc" and not path.name.startswith("."):
            assert mrcio.read_mrc(path)[0].shape == (512, 512)
    if (tmp_path / "h" / "m.json").exists():
        record = json.loads((tmp_path / "h" / "m.json").read_text())
        for side in "ab":
            assert record[side]["sha256"] == files.sha256_of(tmp_path / "h" / f"m_{side}.mrc")


def test_the_valid_region_rounds_fractions_up():
    shifts = np.array([[0, 0], [2.2, -0.4], [-1.5, 3.0]])
    assert splitting.valid_region(shifts, (100, 120)) == [2, 97, 1, 117]
    assert splitting.valid_region(shifts, (100, 120), 2) == [4, 95, 3, 115]
    with pytest.raises(InputError, match="no common region"):
        splitting.valid_region(np.array([[0, 0], [90, 0]]), (100, 120))


def test_a_moving_movie_is_aligned_and_its_halves_hold_the_clean_image(tmp_path):
    path = np.linspace(0, 1, 12)[:, None] * np.array([4.3, -2.6])
    clean = 2.0 * (1 + 0.2 * field(1, (192, 224)))
    a, b, record = split(tmp_path, frames(5, clean, path))
    found = np.array(record["trajectory_A"]) / 1.5
    assert np.sqrt(np.mean((found - path) ** 2)) < 0.15
    box = tuple(slice(*record["valid"][i : i + 2]) for i in (0, 2))
    error = (a + b)[box] - 12 * clean[box]
    assert error.var() == pytest.approx(12 * 2.0, rel=0.1)  # counting noise, and no more


@pytest.mark.parametrize("n", [6, 7])
def test_noises_are_independent_and_follow_counting_statistics(tmp_path, unmoved, n):
    mean, contrast = 2.0, 0.2
    data = counts(3, n, (256, 256), mean, contrast)
    clean = mean * (1 + contrast * field(3, (256, 256)))
    a, b, record = split(tmp_path, data)
    n_a, n_b = (n + 1) // 2, n // 2
    noise_a, noise_b = a - n_a * clean, b - n_b * clean
    # Standard error of a variance of N values: sqrt(2 / N) = 0.55 %; of a correlation: 1 / sqrt(N) = 0.4 %.
    assert noise_a.var() == pytest.approx(n_a * mean, rel=0.03)
    assert noise_b.var() == pytest.approx(n_b * mean, rel=0.03)
    assert abs(np.corrcoef(noise_a.ravel(), noise_b.ravel())[0, 1]) < 5 / 256
    # Normalised: the same signal in both, and noise variances as the record says.
    for half, side, frames_in in ((a, "a", n_a), (b, "b", n_b)):
        unit = record[side]
        signal = (frames_in * clean - unit["offset"]) / unit["scale"]
        assert unit["noise_var"] == pytest.approx(((half - unit["offset"]) / unit["scale"] - signal).var(), rel=0.03)
        amplitude = mean * contrast * frames_in / unit["scale"]
        assert amplitude == pytest.approx(mean * contrast / (record["a"]["scale"] / n_a), rel=1e-6)
    assert record["a"]["noise_var"] * n_a == pytest.approx(record["b"]["noise_var"] * n_b, rel=1e-6)


def test_the_whole_exposure_is_the_weighted_mean_of_the_halves(tmp_path, cryon2n):
    write_movie(tmp_path / "m.mrc", counts(4, 5))
    cryon2n("split-halves", "--movie", tmp_path / "m.mrc", "--out", tmp_path / "h" / "m")
    halves_pair = pair.load_pair(tmp_path / "h" / "m.json")
    a, b = (mrcio.read_mrc(tmp_path / "h" / f"m_{side}.mrc")[0] for side in "ab")
    np.testing.assert_allclose(halves_pair.to_units(halves_pair.full, "full"), a + b, atol=2e-3)


def test_binning_keeps_the_counts(tmp_path, unmoved):
    data = counts(6, 4)
    a, _, record = split(tmp_path, data, bin=2)
    assert a.shape == (64, 80) and record["pixel_size_A"] == pytest.approx(3.0) and record["bin"] == 2
    assert a.sum() == pytest.approx(data[0::2].sum(), rel=1e-5)
    assert a.mean() == pytest.approx(4 * data[0::2].sum(0).mean(), rel=1e-5)
    # Four raw pixels' counting noise in each: 4 · 2 frames · 2 electrons.
    white = a - 4 * 2 * 2.0 * (1 + 0.2 * field(6, SHAPE))[::2, ::2]
    assert white.var() == pytest.approx(16, rel=0.1)


@pytest.mark.parametrize("header", [1.0, 0.0])
def test_a_missing_pixel_size_is_a_sentence(tmp_path, cryon2n, header):
    write_movie(tmp_path / "m.mrc", counts(1, 4), header)
    done = cryon2n("split-halves", "--movie", tmp_path / "m.mrc", "--out", tmp_path / "h" / "m", check=False)
    assert done.returncode == 2 and "m.mrc: pixel size missing" in done.stderr
    assert not (tmp_path / "h").exists()
    cryon2n("split-halves", "--movie", tmp_path / "m.mrc", "--out", tmp_path / "h" / "m", "--set", "pixel_size_A=1.25")
    assert json.loads((tmp_path / "h" / "m.json").read_text())["pixel_size_A"] == 1.25


@pytest.mark.parametrize("value", [-1.0, 0.0, float("nan")])
def test_a_pixel_size_that_is_none_is_refused(value):
    with pytest.raises(InputError, match="more than 0"):
        halves.pixel_size_of(1.5, value, "m.mrc")


def test_the_record_holds_what_the_data_guide_says(tmp_path, cryon2n):
    write_movie(tmp_path / "m.mrc", counts(1, 5))
    gain = np.ones(SHAPE, np.float32)
    mrcio.write_mrc(tmp_path / "gain.mrc", gain, 1.5)
    cryon2n(
        "split_halves", "--movie", tmp_path / "m.mrc", "--gain", tmp_path / "gain.mrc", "--out", tmp_path / "h" / "m",
        "--set", "dose_e_per_A2=50",
    )  # fmt: skip
    record = json.loads((tmp_path / "h" / "m.json").read_text())
    assert set(record) == {
        "format", "version", "micrograph", "shape", "pixel_size_A", "valid", "a", "b", "full", "alignment",
        "dose_weighted", "voltage_kV", "trajectory_A", "bin", "defects", "repaired_area_percent", "producer", "inputs",
        "reference_transform", "gain_check", "local_motion_A", "motion", "source_frames", "seconds", "made_with",
    }  # fmt: skip
    side = {"frames", "n_frames", "dose_e_per_A2", "offset", "scale", "noise_var", "sha256"}
    assert set(record["a"]) == set(record["b"]) == side and set(record["full"]) == {"offset", "scale"}
    assert record["format"] == "cryon2n-halves" and record["version"] == 1 and record["micrograph"] == "m"
    assert record["a"]["dose_e_per_A2"] == 30 and record["b"]["dose_e_per_A2"] == 20
    assert record["alignment"] == "joint" and record["dose_weighted"] is False and len(record["trajectory_A"]) == 5
    assert record["inputs"] == {f: files.sha256_of(tmp_path / f) for f in ("m.mrc", "gain.mrc")}
    for name in "ab":
        assert record[name]["sha256"] == files.sha256_of(tmp_path / "h" / f"m_{name}.mrc")


def test_a_turned_gain_reference_is_noticed_by_its_defects(tmp_path):
    gain = np.where(np.random.default_rng(0).random(SHAPE) < 0.1, 0.0, 1.0).astype(np.float32)
    mrcio.write_mrc(tmp_path / "gain.mrc", gain, 1.5)
    with movies.open_movie(write_movie(tmp_path / "m.mrc", counts(1, 4)), tmp_path / "gain.mrc") as movie:
        with pytest.raises(InputError, match="% of the pixels are defects"):
            splitting.split_movie(movie, splitting.SplitSettings())


def test_the_same_frames_in_both_halves_are_caught_by_the_audit(tmp_path, cryon2n):
    data = counts(8, 8)
    data[1::2] = data[0::2]  # planted: every frame stands in the movie twice
    write_movie(tmp_path / "m.mrc", data)
    cryon2n("split-halves", "--movie", tmp_path / "m.mrc", "--out", tmp_path / "h" / "m")
    done = cryon2n(
        "audit-halves", "--halves", tmp_path / "h" / "m.json", "--table", tmp_path / "t.tsv",
        "--figure", tmp_path / "f.png", check=False,
    )  # fmt: skip
    assert done.returncode == 2 and "m: the halves' noises are correlated" in done.stderr
    assert not (tmp_path / "t.tsv").exists() and not (tmp_path / "f.png").exists()


def test_robust_mean_leaves_out_outliers():
    x = np.random.default_rng(0).normal(5, 1, 10000)
    x[:10] = 1e6
    assert halves.robust_mean(x) == pytest.approx(5, abs=0.05)
    assert halves.robust_mean(np.full(10, 2.0)) == 2


def test_moved_content_goes_where_the_data_guide_says():
    image = np.zeros((32, 32))
    image[10, 12] = 1
    assert np.unravel_index(moved(image, (3, -2)).argmax(), image.shape) == (13, 10)
