"""Raw movies: correction by known references, planted defects, and files that are not what they should be."""

import contextlib
import warnings

import hypothesis.extra.numpy
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cryon2n import movies, mrcio, repair
from cryon2n.errors import InputError
from making import corrected, defects_of, white, write_movie

SHAPE = (96, 112)


def counts(seed=0, mean=4.0, n=20, shape=SHAPE):
    return np.random.default_rng(seed).poisson(mean, (n, *shape)).astype(np.uint8)


@contextlib.contextmanager
def opened(tmp_path, data, gain=None, dark=None):
    paths = {"gain": None, "dark": None}
    for name, reference in (("gain", gain), ("dark", dark)):
        if reference is not None:
            paths[name] = tmp_path / f"{name}.mrc"
            mrcio.write_mrc(paths[name], reference.astype(np.float32), 1.5)
    with movies.open_movie(write_movie(tmp_path / "m.mrc", data), paths["gain"], paths["dark"]) as movie:
        yield movie


def test_a_frame_is_dark_subtracted_and_then_multiplied_by_the_gain(tmp_path):
    data = counts()
    gain, dark = 1 + 0.1 * white(1, SHAPE), 0.5 + 0.1 * white(2, SHAPE)
    with opened(tmp_path, data, gain, dark) as movie:
        np.testing.assert_allclose(corrected(movie, 3), (data[3] - dark) * gain, rtol=1e-5, atol=1e-6)
        assert movie.pixel_size == pytest.approx(1.5)


def test_counts_above_127_are_not_negative(tmp_path):
    data = np.full((2, *SHAPE), 250, np.uint8)
    with opened(tmp_path, data) as movie:
        assert corrected(movie, 0).min() == 250


def test_a_stuck_pixel_is_found_however_large_the_sum_of_its_counts(tmp_path):
    """140 frames of 234: their sums lie about the largest number of 16 bits, 32767."""
    data = np.random.default_rng(0).integers(214, 255, (140, *SHAPE)).astype(np.uint8)
    data[:, 20, 30] = 234
    with opened(tmp_path, data, dark=np.ones(SHAPE)) as movie:
        assert np.argwhere(defects_of(movie)).tolist() == [[20, 30]]


def test_clean_frames_hold_no_defects_beyond_chance(tmp_path):
    # 7 sigma of a sum of 80 counts: a Poisson tail of about 1e-10 per pixel.
    with opened(tmp_path, counts()) as movie:
        assert defects_of(movie).sum() == 0


@pytest.mark.parametrize("n", [8, 20])
def test_few_counts_are_not_taken_for_dead_pixels(tmp_path, n):
    # 8 electrons in all: exp(-8) of the pixels, about 4 of 10752, are empty by chance.
    with opened(tmp_path, counts(mean=8 / n, n=n)) as movie:
        assert defects_of(movie).mean() < 1e-3


@pytest.mark.parametrize("mean", [1.2, 4.0])  # 24 electrons in all, 4.9 sigma above a dead pixel; and 80
def test_each_kind_of_planted_defect_is_found_and_nothing_else(tmp_path, mean):
    data, gain = counts(mean=mean), np.ones(SHAPE)
    planted = np.zeros(SHAPE, bool)
    data[:, 10, 20] = np.random.default_rng(5).poisson(mean * 5, 20)  # hot
    data[:, 40, 50] = 0  # dead
    data[:, :, 70] = round(mean)  # a stuck column: every frame the same value
    gain[80, 90] = 0
    planted[10, 20] = planted[40, 50] = planted[80, 90] = True
    planted[:, 70] = True
    with opened(tmp_path, data, gain) as movie:
        np.testing.assert_array_equal(defects_of(movie), planted)


def test_a_very_hot_pixel_does_not_mark_its_neighbours(tmp_path):
    data = counts()
    data[:, 30, 30] = 255
    with opened(tmp_path, data) as movie:
        assert np.argwhere(defects_of(movie)).tolist() == [[30, 30]]


def repaired(defects, data):
    """Frames (n, h, w) with their defects repaired."""
    fix = repair.Repair(torch.from_numpy(defects))
    return np.stack([fix(torch.from_numpy(frame.astype(np.float32)), i).numpy() for i, frame in enumerate(data)])


def test_repair_uses_only_good_neighbours_of_the_same_frame():
    defects = np.zeros((9, 9), bool)
    defects[4, 4] = defects[4, 5] = True
    frames = np.arange(16 * 81, dtype=np.float32).reshape(16, 9, 9)  # every value occurs once
    frames[:, defects] = 1e6
    out = repaired(defects, frames)
    np.testing.assert_array_equal(out[:, ~defects], frames[:, ~defects])
    for i, frame in enumerate(frames):
        around = [frame[y, x] for y in (3, 4, 5) for x in (3, 4, 5) if not defects[y, x]]
        assert out[i, 4, 4] in around and out[i, 4, 5] in frame[3:6, 4:7]
    assert len({float(out[i, 4, 4] - frames[i, 0, 0]) for i in range(8)}) > 2  # not one neighbour all the time


@pytest.mark.parametrize(
    "block",
    [np.s_[:, 10:17], np.s_[:33], np.s_[5:70, 5:70], np.s_[::2], np.s_[0, :], np.s_[1:, :], np.s_[:72, :79]],
    ids=["strip", "edge", "block", "stripes", "row", "one row left", "one corner left"],
)
def test_repair_reaches_over_whatever_is_dead(block):
    defects = np.zeros((73, 80), bool)
    defects[block] = True
    frames = np.full((9, 73, 80), 3.0, np.float32)
    frames[:, defects] = np.nan
    assert (repaired(defects, frames) == 3).all()


def test_a_movie_without_any_good_pixel_cannot_be_repaired():
    with pytest.raises(InputError, match="every pixel is a defect"):
        repair.Repair(torch.ones((20, 20), dtype=torch.bool))
    frame = torch.ones((20, 20))
    assert repair.Repair(torch.zeros((20, 20), dtype=torch.bool))(frame, 3) is frame


@given(hypothesis.extra.numpy.arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 40))))
def test_what_is_chosen_is_good(bad):
    if bad.all():
        bad[0, 0] = False
    where, sources = repair.good_pixels_near(bad, 8, np.random.default_rng(0))
    np.testing.assert_array_equal(where, np.flatnonzero(bad))
    assert sources.shape == (8, bad.sum()) and not bad.ravel()[sources].any()


def test_many_single_defects_are_filled_from_next_to_them():
    bad = np.zeros((600, 600), bool)
    bad[5:595:5, 5:595:5] = True  # more than are looked after at once
    at_once, repair.AT_ONCE = repair.AT_ONCE, 1000
    try:
        where, sources = repair.good_pixels_near(bad, 8, np.random.default_rng(0))
    finally:
        repair.AT_ONCE = at_once
    for axis in (0, 1):
        assert np.abs(np.divmod(sources, 600)[axis] - np.divmod(where, 600)[axis]).max() == 1


@pytest.mark.parametrize("width", [1, 100])
def test_filled_pixels_have_the_noise_of_their_surroundings_and_another_in_each_frame(width):
    """Closed form: Poisson counts of mean 2 have variance 2, in a column as in a block of 100 x 400 pixels."""
    mean, n, shape = 2.0, 16, (400, 300)
    rng = np.random.default_rng(3)
    frames = rng.poisson(mean, (n, *shape)).astype(np.float32)
    defects = np.zeros(shape, bool)
    defects[:, 100 : 100 + width] = True
    frames[:, defects] = 1e6
    filled = repaired(defects, frames)[:, defects]  # (n, pixels)
    # Fillings of one frame are drawn from its good pixels: of a column from some 3 x 400 values.
    count = min(filled.shape[1], 1200)
    assert filled.mean() == pytest.approx(mean, abs=5 * np.sqrt(mean / (n * count)))
    # The variance of Poisson counts' variance: (m + 2 m²) / N.
    assert filled.var() == pytest.approx(mean, abs=5 * np.sqrt((mean + 2 * mean**2) / (n * count)))
    correlations = np.corrcoef(filled)
    assert np.abs(correlations[~np.eye(n, dtype=bool)]).max() < 5 / np.sqrt(filled.shape[1])
    halves = [filled[k::2].sum(0) for k in (0, 1)]
    assert abs(np.corrcoef(*halves)[0, 1]) < 5 / np.sqrt(filled.shape[1])
    for half in halves:
        assert half.var() == pytest.approx(n / 2 * mean, rel=5 * np.sqrt(2 / count) + 0.05)
    if width > 1:  # neighbours within the block are independent, too
        block = halves[0].reshape(400, width)
        assert abs(np.corrcoef(block[:, 40:60].ravel(), block[:, 41:61].ravel())[0, 1]) < 5 / np.sqrt(8000)


def test_a_missing_area_is_told_from_single_defects():
    defects = np.zeros((64, 64), bool)
    defects[16:48, 16:32] = True  # two blocks of 16 x 16 of 16
    defects[::3, ::3] = True
    assert movies.repaired_area_percent(torch.from_numpy(defects)) == 12.5
    defects[20, 20] = False
    assert movies.repaired_area_percent(torch.from_numpy(defects)) == 6.25


@pytest.mark.parametrize("name", sorted(movies.TRANSFORMS))
def test_a_reference_turned_or_flipped_is_turned_back_by_its_transform(tmp_path, name):
    right = np.arange(12, dtype=np.float32).reshape(3, 4) + 1
    stored = next(
        t(right) for t in movies.TRANSFORMS.values() if np.array_equal(movies.TRANSFORMS[name](t(right)), right)
    )
    mrcio.write_mrc(tmp_path / "gain.mrc", np.ascontiguousarray(stored), 1.5)
    write_movie(tmp_path / "m.mrc", counts(n=2, shape=(3, 4)))
    with movies.open_movie(tmp_path / "m.mrc", tmp_path / "gain.mrc", None, name) as movie:
        np.testing.assert_array_equal(movie.gain, right)


def test_the_transforms_are_the_8_symmetries_of_the_square():
    image = np.arange(9).reshape(3, 3)
    assert len({t(image).tobytes() for t in movies.TRANSFORMS.values()}) == len(movies.TRANSFORMS) == 8


# ---------------------------------------------------------------------------- bad input


def refused(tmp_path, text, **kwargs):
    with pytest.raises(InputError, match=text), movies.open_movie(tmp_path / "m.mrc", **kwargs):
        pass


def test_a_truncated_movie_is_refused_by_name(tmp_path):
    path = write_movie(tmp_path / "m.mrc", counts())
    path.write_bytes(path.read_bytes()[:-1000])
    refused(tmp_path, r"m\.mrc: not a complete MRC file")


@pytest.mark.parametrize("data", [counts(n=1), counts(n=1)[0]])
def test_a_single_image_is_refused(tmp_path, data):
    write_movie(tmp_path / "m.mrc", data)
    refused(tmp_path, r"m\.mrc: holds (one image|1 frame).* at least 2 frames")


def test_a_frame_with_nan_is_named(tmp_path):
    break_nan(tmp_path)
    with movies.open_movie(tmp_path / "m.mrc") as movie, pytest.raises(InputError, match=r"m\.mrc: frame 7 holds NaN"):
        defects_of(movie)


@pytest.mark.parametrize(("shape", "text"), [((50, 50), "this detector"), (SHAPE[::-1], "turned by 90 degrees")])
def test_a_gain_of_another_shape_is_refused(tmp_path, shape, text):
    write_movie(tmp_path / "m.mrc", counts())
    mrcio.write_mrc(tmp_path / "gain.mrc", np.ones(shape, np.float32), 1.5)
    refused(tmp_path, text, gain=tmp_path / "gain.mrc")


def break_nan(folder):
    data = counts().astype(np.float32)
    data[7, 3, 3] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mrcfile warns of what is planted here
        write_movie(folder / "m.mrc", data)


def break_truncated(folder):
    (folder / "m.mrc").write_bytes((folder / "m.mrc").read_bytes()[:-9])


def break_single(folder):
    write_movie(folder / "m.mrc", counts(n=1))


def break_gain(folder):
    mrcio.write_mrc(folder / "gain.mrc", np.ones(SHAPE[::-1], np.float32), 1.5)


@pytest.mark.parametrize(
    ("fault", "file"),
    [(break_nan, "m.mrc"), (break_truncated, "m.mrc"), (break_single, "m.mrc"), (break_gain, "gain.mrc")],
)
def test_bad_input_ends_with_2_one_sentence_and_no_output(tmp_path, cryon2n, fault, file):
    write_movie(tmp_path / "m.mrc", counts())
    mrcio.write_mrc(tmp_path / "gain.mrc", np.ones(SHAPE, np.float32), 1.5)
    fault(tmp_path)
    done = cryon2n(
        "split-halves", "--movie", tmp_path / "m.mrc", "--gain", tmp_path / "gain.mrc", "--out", tmp_path / "out" / "m",
        check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and file in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
