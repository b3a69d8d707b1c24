"""The gain check: planted orientations, inverses and strangers are named; good gains and thin data are let through."""

import argparse
import dataclasses
import json

import numpy as np
import pytest

from cryon2n import gain, movies, mrcio, phantom
from cryon2n import split as splitting
from cryon2n.errors import InputError
from making import command, field, write_movie

SHAPE = (192, 208)
N = 5
MEAN = 18.0  # counts per pixel and frame: 53 e/Å² on 1.3 Å pixels in 5 frames
SPREAD = 0.03
ORIENTATIONS = list(movies.TRANSFORMS)


def a_gain(seed=1, shape=SHAPE, spread=SPREAD):
    return phantom.gain_reference(shape, spread, np.random.default_rng(seed))


def counts(g, seed=0, n=N, mean=MEAN, dark=0.0):
    """Raw frames behind the gain `g`, on ice with a slope and some specimen."""
    h, w = g.shape
    slope = 1 + 0.1 * np.linspace(-1, 1, h)[:, None] + 0.05 * np.linspace(-1, 1, w)[None, :]
    clean = slope * (1 + 0.02 * field(seed, g.shape, 0.1))
    return (np.random.default_rng(seed).poisson(mean * clean / g, (n, h, w)) + dark).astype(np.uint8)


def check(frames, g, dark=None, transform="none"):
    return gain.check_gain([frames], g, dark, transform)


# ---------------------------------------------------------------------------- the pieces


def test_relative_is_the_quotient_by_the_mean_of_the_good_pixels_around():
    x = np.random.default_rng(0).uniform(1, 2, (30, 40))
    good = np.ones(x.shape, bool)
    good[14, 20] = False
    x[14, 20] = np.nan
    deviation, still = gain.relative(x, good)
    np.testing.assert_array_equal(still, good)
    around = x[12 - 4 : 12 + 5, 20 - 4 : 20 + 5]
    assert deviation[12, 20] == pytest.approx(x[12, 20] / np.nanmean(around) - 1, abs=1e-5)
    assert deviation[0, 0] == pytest.approx(x[0, 0] / x[:5, :5].mean() - 1, abs=1e-5)  # no pixels beyond the edge
    assert deviation[14, 20] == 0


def test_hot_pixels_leave_themselves_but_not_their_neighbours_out():
    x = np.random.default_rng(0).normal(100, 5, (64, 64))
    hot = [(10, 10), (11, 10), (40, 50)]
    for y, x_ in hot:
        x[y, x_] = 20000
    deviation, good = gain.relative(x, np.ones(x.shape, bool))
    assert sorted(map(tuple, np.argwhere(~good))) == hot
    # Lifted by one hot pixel, the mean of 81 would be 3.5 times too high.
    assert abs(deviation[10, 12]) < 0.25


def test_few_counts_are_not_outliers():
    x = np.random.default_rng(0).poisson(0.25, (256, 256))  # the median, and the median deviation, are 0
    _, good = gain.relative(x, np.ones(x.shape, bool))
    assert good.mean() > 0.999


def test_the_slope_is_that_of_least_squares_with_a_constant_per_tile():
    rng = np.random.default_rng(3)
    u, v = rng.normal(size=(2, 9, 6, 5))
    u += 0.7 * v + rng.normal(size=(9, 1, 1))
    good = rng.random((2, 9, 6, 5)) < 0.9
    slope = gain.regress(u, good[0], v, good[1])
    keep = (good[0] & good[1]).ravel()
    constants = np.repeat(np.eye(9), 30, axis=0)
    design = np.column_stack([v.ravel(), constants])[keep]
    (expected, *_), (rest,), *_ = np.linalg.lstsq(design, u.ravel()[keep], rcond=None)
    assert slope.value == pytest.approx(expected, abs=1e-9)
    white = np.sqrt(rest / (keep.sum() - 10) * np.linalg.inv(design.T @ design)[0, 0])
    assert slope.error >= white * (1 - 1e-9)


def test_too_few_good_tiles_or_nothing_that_varies_give_no_slope():
    u, v = np.random.default_rng(0).normal(size=(2, 9, 6, 5))
    good = np.ones(u.shape, bool)
    bad = good.copy()
    bad[:2] = False
    assert gain.regress(u, good, v, good) is not None
    assert gain.regress(u, bad, v, good) is None
    assert gain.regress(u, good, 0 * v, good) is None and gain.regress(0 * u, good, v, good) is None


def test_the_error_is_the_scatter_of_the_slope():
    g = a_gain()
    found = [check(counts(g, seed, mean=2.0), g).slopes["none"] for seed in range(40)]
    # Relative error of a standard deviation from 40 values: 1 / sqrt(78) = 11 %.
    assert np.std([s.value for s in found]) == pytest.approx(np.mean([s.error for s in found]), rel=0.45)
    assert np.mean([s.value for s in found]) == pytest.approx(1, abs=5 * found[0].error / np.sqrt(40))


def test_turning_back_undoes_each_transform():
    image = np.arange(12).reshape(3, 4)
    for name, turn in movies.TRANSFORMS.items():
        np.testing.assert_array_equal(movies.turned_back(turn(image), name), image)


def slopes(values, paired=True):
    """Slopes of error 0.02 from 64 tiles, whose errors are the same (as in one movie) or independent."""
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.02 / 8, (len(ORIENTATIONS), 64))
    return {
        name: None if name not in values else gain.Slope(values[name], 0.02, noise[0 if paired else i], 5.0)
        for i, name in enumerate(ORIENTATIONS)
    }


@pytest.mark.parametrize(
    ("values", "transform", "verdict", "best"),
    [
        ({"none": 0.98, "flip_y": 0.05}, "none", "agrees", "none"),
        ({"none": 0.05, "flip_y": 0.98}, "none", "turned", "flip_y"),
        ({"none": 0.93, "flip_y": 1.0}, "none", "agrees", "none"),  # symmetric within a tenth
        ({"none": 0.70, "flip_y": 1.0}, "none", "turned", "flip_y"),  # a common pattern: both above a half
        ({"rotate_90": 0.98, "transpose": 0.02}, "none", "turned", "rotate_90"),  # its shape does not even fit
        ({"none": 0.05, "flip_y": 0.55}, "none", "turned", "flip_y"),  # a noisy reference
        ({"none": 0.02, "flip_y": -0.97}, "none", "inverse", "flip_y"),
        ({"none": -0.95, "flip_y": -0.97}, "none", "inverse", "none"),
        ({"none": 0.02, "flip_y": -0.55}, "none", "inverse", "flip_y"),
        ({"none": 0.30, "flip_y": 0.02}, "none", "no effect", "none"),  # it would add more than it takes away
        ({"none": 0.45, "flip_y": 0.5}, "none", "undecided", "none"),
        ({}, "flip_x", "undecided", "flip_x"),
    ],
)
def test_verdicts(values, transform, verdict, best):
    assert gain.judge(slopes(values), transform) == (verdict, best)


def test_an_inverse_in_few_counts_is_not_taken_for_a_turn():
    # With errors of 0.1 the other orientation may be as high as 0.6, but it may be 0 as well.
    wide = {name: dataclasses.replace(s, error=0.1) for name, s in slopes({"none": -1.05, "flip_y": 0.1}).items() if s}
    assert gain.judge({**dict.fromkeys(ORIENTATIONS), **wide}, "none") == ("inverse", "none")


def test_orientations_are_compared_with_the_error_of_their_difference():
    values = {"none": 0.75, "flip_y": 0.87}
    assert gain.judge(slopes(values), "none") == ("turned", "flip_y")
    # Independent: 0.12 is less than 5 errors of sqrt(2) · 0.02.
    assert gain.judge(slopes(values, paired=False), "none") == ("agrees", "none")


# ---------------------------------------------------------------------------- planted gains


@pytest.mark.parametrize("shape", [SHAPE, (192, 192)])
@pytest.mark.parametrize("name", ORIENTATIONS)
def test_each_orientation_is_found_and_accepted(name, shape):
    g = a_gain(2, shape)
    dark = phantom.dark_reference(shape, 0.3, np.random.default_rng(5))  # it only fits the right way round, too
    frames = counts(g, 1, dark=dark)
    stored = [movies.turned_back(x, name) for x in (g, dark)]
    good = check(frames, *stored, name)
    assert (good.verdict, good.best) == ("agrees", name)
    assert good.slopes[name].value == pytest.approx(1, abs=5 * good.slopes[name].error)
    assert good.slopes[name].error < 0.03
    for other in ORIENTATIONS:
        if other != name:
            assert (found := check(frames, *stored, other)).verdict == "turned" and found.best == name
    fitting = movies.fitting_transforms(stored[0].shape, shape)
    assert len(fitting) == (8 if shape[0] == shape[1] else 4)
    assert {k for k, slope in good.slopes.items() if slope is None} == set(ORIENTATIONS) - set(fitting)


def test_a_gain_that_is_alike_in_several_orientations_agrees_in_all_of_them():
    g = (a_gain(1) + a_gain(1)[::-1]) / 2
    frames = counts(g)
    for name, verdict in (("none", "agrees"), ("flip_y", "agrees"), ("flip_x", "turned"), ("rotate_180", "turned")):
        assert check(frames, g, transform=name).verdict == verdict


@pytest.mark.parametrize("order", [[[1, -1], [-1, 1]], [[1, 1], [-1, -1]], [[1.7, -0.6], [-0.6, -0.6]]])
def test_the_pattern_of_super_resolution_pixels_does_not_hide_a_flip(order):
    # The 2 x 2 pattern is as strong as the rest; flipping rows swaps its rows.
    order = np.array(order)
    common = SPREAD * order / order.std()
    g = (a_gain(4) * (1 + np.tile(common, (SHAPE[0] // 2, SHAPE[1] // 2)))).astype(np.float32)
    frames = counts(g)
    assert check(frames, g).verdict == "agrees"
    assert (found := check(frames, g[::-1])).verdict == "turned" and found.best == "flip_y"
    # A flip of a pattern of ±1 rows gives its negative, mirrored columns the same: both half of the variance.
    if (order == [[1, 1], [-1, -1]]).all():
        assert check(frames, g[:, ::-1]).slopes["none"].value == pytest.approx(0.45, abs=0.15)
        assert check(frames, g[:, ::-1]).best == "flip_x"


@pytest.mark.parametrize(("name", "best"), [("none", "none"), ("flip_y", "flip_y")])
def test_an_inverse_is_named(name, best):
    g = a_gain()
    found = check(counts(g), movies.turned_back(1 / g, name))
    assert (found.verdict, found.best) == ("inverse", best)
    assert found.slopes[best].value == pytest.approx(-1, abs=0.1)
    assert (
        "reference_operation: divide" in found.sentence and (f"reference_transform: {name};" in found.sentence) is False
    )
    assert ("and set halves: reference_transform: flip_y" in found.sentence) == (name == "flip_y")


def test_a_stranger_and_frames_that_were_corrected_already_are_named():
    g = a_gain()
    frames = counts(g)
    for case in (check(frames, a_gain(99)), check(frames * g, g)):
        assert case.verdict == "no effect" and abs(case.slopes["none"].value) < 0.15
        assert "corrected already" in case.sentence and "another camera" in case.sentence


def test_an_even_gain_has_nothing_to_check():
    g = a_gain()
    ramp = np.broadcast_to(np.linspace(0.5, 2, SHAPE[1], dtype=np.float32), SHAPE)
    for even in (np.ones(SHAPE, np.float32), 1 + 0.0002 * (g - 1), ramp):
        assert check(counts(g), even).verdict == "flat"


def test_dead_and_hot_pixels_do_not_disturb():
    g, rng = a_gain(), np.random.default_rng(7)
    frames = counts(g)
    dead, hot = (rng.random(SHAPE) < 0.01 for _ in range(2))
    g = np.where(dead, 0, g).astype(np.float32)
    g[:, 100] = -1
    frames[:, dead] = 0
    frames[:, hot] = 250
    slope = check(frames, g).slopes["none"]
    assert slope.value == pytest.approx(1, abs=5 * slope.error) and slope.error < 0.03


def test_real_ice_and_protein_look_like_no_gain(shared_data):
    raw, _ = mrcio.read_mrc(sorted((shared_data / "apoferritin-10146").glob("*_a.mrc"))[0])
    g = a_gain(3, raw.shape)
    behind = (raw / g)[None]  # planted: a real frame behind a gain
    assert check(behind, g).verdict == "agrees"
    assert check(behind, g[::-1]).verdict == "turned"
    assert check(raw[None], g).verdict == "no effect"


def test_few_counts_are_undecided_whatever_is_planted():
    g = a_gain()
    for reference in (g, g[::-1], 1 / g, a_gain(9)):
        # One count in two pixels: the error is 1 / (sqrt(0.5) · 0.03 · sqrt(184 · 200)) = 0.25, half of what is asked.
        found = check(counts(g, mean=0.1), reference)
        assert found.verdict == "undecided" and "not enough counts" in found.sentence
        assert found.slopes["none"].error == pytest.approx(0.25, rel=0.25)


def test_a_tiny_frame_is_undecided_or_right():
    for h in (12, 20, 32, 48):
        g = a_gain(3, (h, h))
        for mean in (1.0, 30.0):
            assert check(counts(g, mean=mean), g).verdict in ("undecided", "agrees")
    assert check(np.zeros((3, 64, 64), np.uint8), a_gain(3, (64, 64))).verdict == "undecided"


@pytest.mark.parametrize("n_movies", [1, 2])
def test_the_dark_is_subtracted_from_each_frame_and_turned_like_the_gain(n_movies):
    # Offsets of up to 20 counts on a mean of 18, of standard deviation 5.8: as noise they would be seven times that
    # of counting, 1 / sqrt(90).
    g, dark = a_gain(), np.random.default_rng(3).integers(0, 20, SHAPE).astype(np.float32)
    stacks = [counts(g, seed, dark=dark) for seed in range(n_movies)]
    for name in ("none", "flip_y"):
        turn = movies.TRANSFORMS[name]
        found = gain.check_gain(stacks, turn(g), turn(dark))
        assert (found.verdict, found.best) == ("agrees" if name == "none" else "turned", name)
        assert found.slopes[name].error < 0.025
        assert found.slopes["rotate_180"].error > 0.03
    assert gain.check_gain(stacks, g).slopes["none"].error > 0.03


def test_several_movies_are_pooled():
    g = a_gain()
    thin = [counts(g, seed, n=2, mean=0.5) for seed in range(12)]
    alone, pooled = check(thin[0], g[::-1]), gain.check_gain(thin, g[::-1])
    assert alone.verdict == "undecided" and pooled.verdict == "turned"
    assert pooled.slopes["none"].error == pytest.approx(alone.slopes["none"].error / np.sqrt(12), rel=0.25)


# ---------------------------------------------------------------------------- the commands


@pytest.fixture(scope="module")
def entry(tmp_path_factory):
    """A simulated entry with one movie, and its gain flipped, inverted and of another camera."""
    folder = tmp_path_factory.mktemp("entry")
    settings = json.dumps({"shape": SHAPE, "n_frames": N, "n_movies": 1})
    references = ["--gain", folder / "gain.mrc", "--dark", folder / "dark.mrc"]
    assert command("simulate-references", "--settings", settings, *references, "--entry", folder / "e.json") == 0
    outputs = ["--movie", folder / "m.mrc", "--truth", folder / "t.mrc", "--record", folder / "t.json"]
    assert command("simulate-movie", "--settings", settings, "--index", 0, "--name", "m", *references, *outputs) == 0
    for name in ("gain", "dark"):
        data, pixel = mrcio.read_mrc(folder / f"{name}.mrc")
        mrcio.write_mrc(folder / f"{name}_flipped.mrc", data[::-1], pixel)
        mrcio.write_mrc(folder / f"{name}_turned.mrc", np.rot90(data), pixel)
    g, pixel = mrcio.read_mrc(folder / "gain.mrc")
    mrcio.write_mrc(folder / "gain_inverse.mrc", 1 / g, pixel)
    mrcio.write_mrc(folder / "gain_other.mrc", a_gain(77), pixel)
    mrcio.write_mrc(folder / "gain_ones.mrc", np.ones_like(g), pixel)
    return folder


def split(entry, out, kind="", *settings):
    dark = "dark" if kind in ("_inverse", "_other", "_ones") else f"dark{kind}"
    return command(
        "split-halves", "--movie", entry / "m.mrc", "--gain", entry / f"gain{kind}.mrc",
        "--dark", entry / f"{dark}.mrc", "--out", out, *[x for s in settings for x in ("--set", s)],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "transform", "verdict"),
    [("", "none", "agrees"), ("_flipped", "flip_y", "agrees"), ("_turned", "rotate_270", "agrees"),
     ("_ones", "none", "flat")],
)  # fmt: skip
def test_a_good_gain_goes_into_the_record(entry, tmp_path, kind, transform, verdict):
    assert split(entry, tmp_path / "m", kind, f"reference_transform={transform}") == 0
    found = json.loads((tmp_path / "m.json").read_text())["gain_check"]
    assert (found["verdict"], found["best"]) == (verdict, transform)
    if verdict == "agrees":
        assert found["slope"] == pytest.approx(1, abs=5 * found["slope_error"]) and 0 < found["slope_error"] < 0.03
    else:
        assert found["slope"] is None and found["slope_error"] is None


@pytest.mark.parametrize(
    ("kind", "text"),
    [("_flipped", "set halves: reference_transform: flip_y"), ("_inverse", "stored as its inverse"),
     ("_other", "not in the counts")],
)  # fmt: skip
def test_a_wrong_gain_stops_the_split_with_a_sentence(entry, tmp_path, capsys, monkeypatch, kind, text):
    monkeypatch.setattr(splitting.motion, "estimate", lambda *_: pytest.fail("the alignment was reached"))
    assert split(entry, tmp_path / "m", kind) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "m.mrc" in line and text in line and "±" in line and "gain_check: warn" in line
    assert not list(tmp_path.iterdir())


def test_the_check_can_warn_or_be_off(entry, tmp_path, capsys):
    assert split(entry, tmp_path / "warn", "_flipped", "gain_check=warn") == 0
    assert "warning: " in capsys.readouterr().err
    found = json.loads((tmp_path / "warn.json").read_text())["gain_check"]
    assert found["verdict"] == "turned" and found["best"] == "flip_y" and abs(found["slope"]) < 0.3
    for off in ("off", "'off'"):  # YAML takes a bare off for false
        assert split(entry, tmp_path / "off", "_flipped", f"gain_check={off}") == 0
        assert "slope" not in capsys.readouterr().err
        assert json.loads((tmp_path / "off.json").read_text())["gain_check"] is None
    with pytest.raises(InputError, match="gain_check: found 'maybe', wanted error, warn or off"):
        splitting.SplitSettings(gain_check="maybe")


def test_a_gain_turned_by_90_degrees_names_the_transforms_that_fit(entry, tmp_path, capsys):
    assert split(entry, tmp_path / "m", "_turned") == 2
    assert "set reference_transform to rotate_90, rotate_270, transpose or antitranspose" in capsys.readouterr().err
    assert split(entry, tmp_path / "m", "", "reference_transform=rotate_90") == 2
    assert "set reference_transform to none, flip_y, flip_x or rotate_180" in capsys.readouterr().err


def check_command(*args):
    add_arguments, run = gain.COMMANDS["check-gain"]
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    run(parser.parse_args([str(a) for a in args]))


def test_check_gain_prints_all_orientations_and_the_verdict(entry, capsys):
    check_command("--movie", entry / "m.mrc", "--gain", entry / "gain.mrc", "--dark", entry / "dark.mrc")
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line for line in lines[1:9]}
    assert list(rows) == ORIENTATIONS and lines[0].split() == ["orientation", "slope", "error", "z", "note"]
    assert rows["none"].endswith("in use, fits") and rows["flip_x"].endswith("does not fit")
    assert rows["rotate_90"].split() == ["rotate_90", "n/a", "n/a", "n/a"]
    slope, error, z = map(float, rows["none"].split()[1:4])
    assert slope == pytest.approx(1, abs=5 * error) and z == pytest.approx(slope / error, rel=0.05)
    assert lines[9].startswith("agrees: ") and len(lines) == 10


@pytest.mark.parametrize(
    ("kind", "transform", "text"),
    [("_flipped", "none", "reference_transform: flip_y"), ("_turned", "none", "reference_transform: rotate_270"),
     ("", "flip_x", "reference_transform: none"), ("_inverse", "none", "its inverse")],
)  # fmt: skip
def test_check_gain_ends_in_an_error_where_they_disagree(entry, capsys, kind, transform, text):
    with pytest.raises(InputError, match=f"gain{kind}.mrc: .*{text}"):
        check_command(
            "--movie", entry / "m.mrc", entry / "m.mrc", "--gain", entry / f"gain{kind}.mrc", "--transform", transform
        )
    assert len(capsys.readouterr().out.splitlines()) == 10  # the table is there all the same


def test_check_gain_refuses_files_that_do_not_belong_together(entry, tmp_path):
    movie, reference = entry / "m.mrc", entry / "gain.mrc"
    mrcio.write_mrc(tmp_path / "small.mrc", np.ones((50, 50), np.float32), 1.3)
    mrcio.write_mrc(tmp_path / "stack.mrc", np.ones((2, *SHAPE), np.float32), 1.3)
    write_movie(tmp_path / "n.mrc", np.ones((3, 64, 64), np.uint8))
    with pytest.raises(InputError, match=r"small.mrc: the gain reference has shape \(50, 50\)"):
        check_command("--movie", movie, "--gain", tmp_path / "small.mrc")
    with pytest.raises(InputError, match=r"stack.mrc: the gain reference has shape .* wanted one image"):
        check_command("--movie", movie, "--gain", tmp_path / "stack.mrc")
    with pytest.raises(InputError, match=r"small.mrc: the dark reference has shape \(50, 50\)"):
        check_command("--movie", movie, "--gain", reference, "--dark", tmp_path / "small.mrc")
    with pytest.raises(InputError, match=r"n.mrc: frames of \(64, 64\).* one detector"):
        check_command("--movie", movie, tmp_path / "n.mrc", "--gain", reference)
