"""Groups of frames: plain sums, independent noises of known variance, pairs of one signal, and what is refused."""

import json

import numpy as np
import pytest

from cryon2n import audit, files, groups, motion, movies, mrcio, pair
from cryon2n import split as splitting
from cryon2n.errors import InputError
from cryon2n.frame_range import FrameRange
from cryon2n.halves import write_halves
from making import field, frames, write_movie
from movie_files import eer

SHAPE = (160, 192)
MEAN, CONTRAST = 3.0, 0.2


@pytest.fixture
def unmoved(monkeypatch):
    """Take the trajectory as known: no motion."""
    monkeypatch.setattr(splitting.motion, "estimate", lambda spectra, *rest: motion.Motion(np.zeros((len(spectra), 2))))


def movie(n, seed=1):
    return frames(seed, MEAN * (1 + CONTRAST * field(seed, SHAPE)), np.zeros((n, 2)))


def split(folder, data, **settings):
    with movies.open_movie(write_movie(folder / "m.mrc", data)) as opened:
        return splitting.split_movie(opened, splitting.SplitSettings(**settings))


def loaded(folder, data, **settings):
    done = split(folder, data, **settings)
    write_halves(folder / "m", done.a, done.b, done.record, {}, "test", done.groups)
    return groups.load_groups(folder / "m.json")


@pytest.mark.parametrize("k", [4, 6])
def test_groups_are_sums_of_every_kth_frame_and_the_halves_sums_of_groups(tmp_path, unmoved, k):
    n = 15
    data = movie(n)
    done = split(tmp_path, data, groups=k, dose_e_per_A2=30)
    assert done.groups.shape == (k, *SHAPE) and done.groups.dtype == np.float32
    for i, image in enumerate(done.groups):
        np.testing.assert_allclose(image, data[i::k].sum(0), atol=1e-3)
        about = done.record["groups"][i]
        assert about["frames"] == list(range(i, n, k)) and about["n_frames"] == len(about["frames"])
        assert about["dose_e_per_A2"] == pytest.approx(2 * len(about["frames"]))
    np.testing.assert_array_equal(done.a, done.groups[0::2].sum(0))
    np.testing.assert_array_equal(done.b, done.groups[1::2].sum(0))
    two = split(tmp_path, data, dose_e_per_A2=30)
    assert two.groups is None and "groups" not in two.record
    np.testing.assert_allclose(two.a, done.a, atol=1e-3)
    assert {key: two.record["a"][key] for key in ("frames", "n_frames", "dose_e_per_A2")} == {
        key: done.record["a"][key] for key in ("frames", "n_frames", "dose_e_per_A2")
    }


def test_one_left_out_closed_forms(tmp_path, unmoved):
    """Counts of mean m per frame: a group of n frames over n has noise m / n, all others together m / (N - n)."""
    k, n = 4, 18  # groups of 5, 5, 4 and 4 frames
    own = loaded(tmp_path, movie(n), groups=k)
    unit = own.record["a"]["scale"] / own.record["a"]["n_frames"]  # of one frame
    clean = MEAN * CONTRAST * field(1, SHAPE) / unit
    amplitude = clean.var()
    pairs = list(own.leave_one_out())
    assert len(pairs) == len(own) == k
    size = clean.size
    for left_out, (one, count) in enumerate(zip(pairs, (5, 5, 4, 4), strict=True)):
        expected = MEAN / unit**2 / (n - count), MEAN / unit**2 / count
        noises = one.a - clean, one.b - clean
        for noise, image, wanted, said in zip(noises, (one.a, one.b), expected, one.noise_var, strict=True):
            assert noise.var() == pytest.approx(wanted, rel=5 * np.sqrt(2 / size))
            assert said == pytest.approx(wanted, rel=0.02)
            # The same signal in both: the regression on the clean image has slope 1.
            slope = (image * clean).mean() / amplitude
            assert slope == pytest.approx(1, abs=5 * np.sqrt(wanted / amplitude / size))
        covariance = np.mean(noises[0] * noises[1])
        assert abs(covariance) < 5 * np.sqrt(expected[0] * expected[1] / size)
        np.testing.assert_allclose(one.b, own.images[left_out], atol=1e-6)
        assert sorted(one.record["a"]["frames"] + one.record["b"]["frames"]) == list(range(n))
        assert one.record["a"]["n_frames"] == n - count
        # In its own units, a is the sum of the other groups' frames, and full that of all.
        others = movie(n)[[t for t in range(n) if t % k != left_out]].sum(0)
        np.testing.assert_allclose(one.to_units(one.a, "a"), others, atol=2e-3)
        np.testing.assert_allclose(one.to_units(one.full, "full"), movie(n).sum(0), rtol=0.02, atol=0.5)


def test_pairs_of_groups_are_those_of_the_halves(tmp_path, unmoved):
    own = loaded(tmp_path, movie(12), groups=4)
    halves = pair.load_pair(tmp_path / "m.json")
    both = own.pair([0, 2], [1, 3])
    # Offsets are means without outliers, and of fewer counts others are outliers.
    np.testing.assert_allclose(both.a, halves.a, atol=1e-3)
    np.testing.assert_allclose(both.b, halves.b, atol=1e-3)
    assert both.noise_var == pytest.approx(halves.noise_var, rel=0.02)
    assert both.valid == halves.valid == own.valid and own.pixel_size == halves.pixel_size
    for first, second in (([0], [0]), ([0, 1], [1]), ([], [1]), ([2, 2], [1])):
        with pytest.raises(ValueError, match="without a common group"):
            own.pair(first, second)


def test_a_moving_movie_in_groups_holds_the_clean_image(tmp_path):
    path = np.linspace(0, 1, 16)[:, None] * np.array([4.3, -2.6])
    shape = (192, 224)
    clean = 2.0 * (1 + 0.2 * field(1, shape))
    done = split(tmp_path, frames(5, clean, path), groups=4)
    box = tuple(slice(*done.record["valid"][i : i + 2]) for i in (0, 2))
    noises = [image[box] - 4 * clean[box] for image in done.groups]
    for noise in noises:
        assert noise.var() == pytest.approx(4 * 2.0, rel=0.1)
    for i, one in enumerate(noises):
        for other in noises[:i]:
            assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 5 / np.sqrt(one.size) + 0.01


# ---------------------------------------------------------------------------- the command


def test_the_command_writes_groups_only_where_they_are_asked_for(tmp_path, cryon2n):
    write_movie(tmp_path / "m.mrc", movie(9))
    words = ["split-halves", "--movie", tmp_path / "m.mrc", "--out"]
    cryon2n(*words, tmp_path / "h" / "m", "--set", "groups=4")
    cryon2n(*words, tmp_path / "two" / "m")
    assert sorted(p.name for p in (tmp_path / "two").iterdir()) == ["m.json", "m_a.mrc", "m_b.mrc"]
    record = json.loads((tmp_path / "h" / "m.json").read_text())
    stack = tmp_path / "h" / "m_groups.mrc"
    assert record["group_stack"] == {"file": "m_groups.mrc", "sha256": files.sha256_of(stack)}
    assert set(record["groups"][0]) == {"frames", "n_frames", "dose_e_per_A2", "offset", "scale", "noise_var"}
    images, pixel_size = mrcio.read_mrc(stack)
    assert images.shape == (4, *SHAPE) and pixel_size == pytest.approx(1.5)
    np.testing.assert_array_equal(mrcio.read_mrc(tmp_path / "h" / "m_a.mrc")[0], images[0::2].sum(0))
    assert len(groups.load_groups(tmp_path / "h" / "m.json")) == 4
    with pytest.raises(InputError, match=r"m\.json: its halves were made without groups .* halves: groups"):
        groups.load_groups(tmp_path / "two" / "m.json")
    mrcio.write_mrc(stack, images[:3], 1.5)
    with pytest.raises(InputError, match=r"m_groups\.mrc: has shape \(3, 160, 192\), its record m\.json says \(4, "):
        groups.load_groups(tmp_path / "h" / "m.json")
    stack.unlink()
    with pytest.raises(InputError, match=r"m_groups\.mrc: no such file"):
        groups.load_groups(tmp_path / "h" / "m.json")


def test_too_few_frames_are_a_sentence_and_leave_nothing(tmp_path, cryon2n):
    write_movie(tmp_path / "m.mrc", movie(5))
    words = ["split-halves", "--movie", tmp_path / "m.mrc", "--out", tmp_path / "h" / "m", "--set", "groups=6"]
    done = cryon2n(*words, check=False)
    assert done.returncode == 2 and not (tmp_path / "h").exists()
    assert "m.mrc: 5 frames are too few for 6 groups" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("k", [0, 1, 3, -2])
def test_an_odd_number_of_groups_is_refused(k):
    with pytest.raises(InputError, match=f"groups: found {k}, wanted an even number"):
        splitting.SplitSettings(groups=k)


def test_the_audit_refuses_a_frame_in_two_groups(tmp_path, unmoved):
    loaded(tmp_path, movie(8), groups=4)
    record = files.read_json(tmp_path / "m.json")
    assert audit.measure([tmp_path / "m.json"])
    record["groups"][2]["frames"] = [2, 1]
    files.write_json(tmp_path / "m.json", record)
    with pytest.raises(InputError, match=r"m\.json: a frame is in two of the 4 groups"):
        audit.measure([tmp_path / "m.json"])


# ---------------------------------------------------------------------------- ranges of frames


@pytest.mark.parametrize("wanted", ["2-6", "0-3", "1-8"])
def test_a_range_of_frames_is_split_as_a_movie_of_these_alone(tmp_path, wanted):
    data = movie(9)
    first, last = map(int, wanted.split("-"))
    part = split(tmp_path, data, frames=wanted, dose_e_per_A2=18)
    n = last - first + 1
    alone = split(tmp_path, data[first : last + 1], dose_e_per_A2=2 * n)  # 2 e⁻/Å² per frame in both
    np.testing.assert_array_equal(part.a, alone.a)
    np.testing.assert_array_equal(part.b, alone.b)
    # Numbers of the file, and the first frame used is in a; the dose is that of the frames used.
    assert part.record["a"]["frames"] == list(range(first, last + 1, 2))
    assert part.record["b"]["frames"] == list(range(first + 1, last + 1, 2))
    assert part.record["source_frames"] | {"raw_frames_left_out": 0} == {
        "first": first, "frames": n, "raw_frames_per_frame": 1, "raw_frames_left_out": 0
    }  # fmt: skip
    for side in "ab":
        own = part.record[side]
        assert own["dose_e_per_A2"] == pytest.approx(2 * own["n_frames"]) == alone.record[side]["dose_e_per_A2"]
    assert len(part.record["trajectory_A"]) == n


def test_ranges_reach_the_command_with_groups_and_beyond_the_end_are_refused(tmp_path, cryon2n):
    write_movie(tmp_path / "m.mrc", movie(9))
    words = ["split-halves", "--movie", tmp_path / "m.mrc", "--out", tmp_path / "h" / "m", "--settings"]
    for wrong, said in (
        ("3-9", "m.mrc: holds frames 0-8, wanted 3-9"),
        ("4-4", "frames '4-4': wanted FIRST-LAST"),
        ("x", "frames 'x': wanted FIRST-LAST"),
    ):
        done = cryon2n(*words, json.dumps({"frames": wrong}), check=False)
        assert done.returncode == 2 and said in done.stderr and not (tmp_path / "h").exists()
    cryon2n(*words, json.dumps({"frames": "1-8", "groups": 4}))
    record = json.loads((tmp_path / "h" / "m.json").read_text())
    assert [group["frames"] for group in record["groups"]] == [[1, 5], [2, 6], [3, 7], [4, 8]]


def test_the_dose_of_raw_frames_that_are_left_out_is_not_the_frames_dose(tmp_path):
    data = (np.random.default_rng(7).random((11, 8, 16)) < 0.2).astype(np.uint8)
    (tmp_path / "a.eer").write_bytes(eer(data))
    settings = splitting.SplitSettings(dose_e_per_A2=22.0)
    with movies.open_movie(tmp_path / "a.eer", fraction=4) as opened:
        # 11 raw frames of 2 e⁻/Å²; two frames of 4 raw ones each.
        assert splitting.dose_per_frame(opened, settings) == pytest.approx(8)
    with movies.open_movie(tmp_path / "a.eer", frames=FrameRange(2, 5)) as opened:
        assert splitting.dose_per_frame(opened, settings) == pytest.approx(2)
