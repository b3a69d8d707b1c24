"""Halves from elsewhere: units brought together, pairs that cannot be pairs, and real ones."""

import contextlib
import io
import json

import numpy as np
import pytest

from cryon2n import files, halves_import, mrcio, pair
from cryon2n.errors import InputError
from cryon2n.pair_sheet import PairRow
from making import command, field, white

SHAPE = (256, 320)


def sides(factor=1.0, frames=(1, 1), seed=1, amplitude=0.6):
    """Two means of frames of one signal; a stands in units `factor` times those of b.  One frame's noise is 1."""
    signal = amplitude * field(seed, SHAPE, cutoff=0.05)
    a, b = (signal + white(seed + 10 + i, SHAPE, n**-0.5) for i, n in enumerate(frames))
    return ((a + 3) * factor).astype(np.float32), (b + 5).astype(np.float32)


def write(tmp_path, a, b, size=1.5):
    for name, image in (("a", a), ("b", b)):
        mrcio.write_mrc(tmp_path / f"{name}.mrc", np.asarray(image, np.float32), size)
    return tmp_path / "a.mrc", tmp_path / "b.mrc"


def row(paths, **known):
    return PairRow("m", str(paths[0]), str(paths[1]), **known)


def run_import(tmp_path, *args, check=True):
    """Run ``cryon2n import-halves`` in this process; returns the exit code and what it said."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        code = command(
            "import-halves", "--a", tmp_path / "a.mrc", "--b", tmp_path / "b.mrc", "--out", tmp_path / "h" / "m", *args
        )
    assert code == 0 or not check, said.getvalue()
    return code, said.getvalue()


@pytest.mark.parametrize("factor", [0.2, 1.0, 37.0])
@pytest.mark.parametrize("frames", [(10, 10), (1, 49), (49, 1), (4, 6)])
def test_a_planted_ratio_of_units_is_found_both_ways(frames, factor):
    a, b = sides(factor, frames)
    scale, check = halves_import.relative_scale(a, b, frames)
    assert scale == pytest.approx(factor, rel=0.03)
    assert check == pytest.approx(factor, rel=0.1)  # with one frame a side is 0.36 signal against noise 1
    without, nothing = halves_import.relative_scale(a, b, None)
    assert without == check and np.isnan(nothing)


def test_the_noise_floor_is_the_variance_of_white_noise():
    image = field(1, SHAPE, cutoff=0.2) + white(2, SHAPE, 0.7)
    assert halves_import.noise_floor(image) == pytest.approx(0.49, rel=0.03)


@pytest.mark.parametrize("frames", [(1, 49), (20, 20)])
def test_normalised_sides_hold_one_signal_and_the_noise_that_the_record_says(tmp_path, frames):
    a, b = sides(12.0, frames)
    known = row(write(tmp_path, a, b), frames_a=frames[0], frames_b=frames[1])
    _, _, record, warnings = halves_import.import_pair(known, same_units=False)
    assert not warnings
    truth = 0.6 * field(1, SHAPE, cutoff=0.05)
    truth -= truth.mean()
    slopes = []
    for side, image, n in (("a", a, frames[0]), ("b", b, frames[1])):
        unit = record[side]
        x = (image - unit["offset"]) / unit["scale"]
        slopes.append(float((x * truth).mean() / truth.var()))
        assert unit["noise_var"] == pytest.approx((x - slopes[-1] * truth).var(), rel=0.1), side
        assert unit["noise_var"] == pytest.approx(slopes[-1] ** 2 / n, rel=0.1), side
    assert slopes[0] == pytest.approx(slopes[1], rel=0.05)
    best = "b" if frames[1] > frames[0] else min("ab", key=lambda s: record[s]["noise_var"])
    assert record["full"] == {k: record[best][k] for k in ("offset", "scale")}


def test_sums_of_unequal_numbers_of_frames_share_their_units(tmp_path):
    a, b = sides(1.0, (3, 5))
    write(tmp_path, 3 * a, 5 * b)
    run_import(tmp_path, "--frames-a", 3, "--frames-b", 5)
    halves = pair.load_pair(tmp_path / "h" / "m.json")
    assert halves.noise_var[0] / halves.noise_var[1] == pytest.approx(5 / 3)
    total = halves.to_units(halves.full, "full")
    np.testing.assert_allclose(total, 3 * a + 5 * b, atol=2e-4)


def test_means_given_out_as_sums_are_refused(tmp_path):
    write(tmp_path, *sides(1.0, (1, 49)))
    code, said = run_import(tmp_path, "--frames-a", 1, "--frames-b", 49, check=False)
    assert code == 2 and "--units fit" in said and not (tmp_path / "h").exists()


def test_halves_keep_their_own_units_in_the_files(tmp_path):
    a, b = sides(12.0, (2, 3))
    write(tmp_path, a, b)
    run_import(tmp_path, "--units", "fit")
    np.testing.assert_array_equal(mrcio.read_mrc(tmp_path / "h" / "m_a.mrc")[0], a)
    np.testing.assert_array_equal(mrcio.read_mrc(tmp_path / "h" / "m_b.mrc")[0], b)
    record = json.loads((tmp_path / "h" / "m.json").read_text())
    assert record["alignment"] == "unknown" and record["dose_weighted"] is None and record["trajectory_A"] is None


# ---------------------------------------------------------------------------- pairs that are none


def bad(tmp_path, a, b, text, size=1.5, same=True, **known):
    paths = write(tmp_path, a, b, size)
    with pytest.raises(InputError, match=text):
        halves_import.import_pair(row(paths, **known), same)


def test_impossible_pairs_are_refused_with_a_sentence(tmp_path):
    a, b = sides()
    bad(tmp_path, a, a, "hold the same pixels")
    bad(tmp_path, a, b[:-8], "256 x 320 pixels but .* 248 x 320")
    bad(tmp_path, np.stack([a, b]), b, r"a\.mrc: holds 3-dimensional")
    bad(tmp_path, a, np.full(SHAPE, 2.0), r"b\.mrc: the image is constant")
    bad(tmp_path, np.full(SHAPE, 2.0), b, r"a\.mrc: the image is constant", same=False)
    bad(tmp_path, a, b, "pixel size missing", size=1.0)
    bad(tmp_path, white(1, SHAPE), white(2, SHAPE), "no common signal", same=False)
    bad(tmp_path, a, sides(seed=2)[1], "no common signal")  # halves of two micrographs
    bad(tmp_path, a, 2 * a + 1, "noises of a and b correlate by 1.00")  # one image in two scales
    bad(tmp_path, a, -b, "opposite contrast")


def test_one_file_under_two_names_is_refused(tmp_path):
    paths = write(tmp_path, *sides())
    (tmp_path / "c.mrc").symlink_to(paths[0])
    with pytest.raises(InputError, match="are the same file"):
        halves_import.import_pair(row((paths[0], tmp_path / "c.mrc")), True)


def test_denoised_halves_are_refused_by_what_their_header_says(tmp_path):
    paths = write(tmp_path, *sides())
    mrcio.write_mrc(paths[1], sides()[1], 1.5, "denoised somehow")
    with pytest.raises(InputError, match=r"b\.mrc: its name or header says that it was denoised"):
        halves_import.import_pair(row(paths), True)


def test_pixel_sizes_that_contradict_are_refused_and_one_is_enough(tmp_path):
    a, b = sides()
    paths = write(tmp_path, a, b)
    mrcio.write_mrc(paths[1], b, 1.6)
    with pytest.raises(InputError, match="give --pixel-size"):
        halves_import.import_pair(row(paths), True)
    mrcio.write_mrc(paths[0], a, 0.0)
    assert halves_import.import_pair(row(paths), True)[2]["pixel_size_A"] == pytest.approx(1.6)
    assert halves_import.import_pair(row(paths, pixel_size_A=1.25), True)[2]["pixel_size_A"] == 1.25


@pytest.mark.filterwarnings("ignore:Data array contains NaN")
def test_nan_ends_with_2_and_no_output(tmp_path):
    a, b = sides()
    b[5, 5] = np.nan
    write(tmp_path, a, b)
    code, said = run_import(tmp_path, check=False)
    assert code == 2 and "b.mrc: 1 pixels are NaN" in said
    assert not (tmp_path / "h").exists()


def test_no_frames_in_a_half_is_a_sentence(tmp_path):
    write(tmp_path, *sides())
    code, said = run_import(tmp_path, "--frames-a", 0, "--frames-b", 49, check=False)
    assert code == 2 and "found 0 and 49 frames in the halves, wanted 1 or more" in said


def test_a_shift_between_the_halves_is_said_and_recorded(tmp_path):
    a, b = sides(amplitude=1.5)
    b = np.roll(b, (6, -9), (0, 1))  # the content of a stands at (-6, 9) from b's
    _, _, record, warnings = halves_import.import_pair(row(write(tmp_path, a, b)), True)
    np.testing.assert_allclose(record["pair"]["shift_px"], (-6, 9), atol=1)
    assert len(warnings) == 1 and "b stands" in warnings[0]


# ---------------------------------------------------------------------------- what is known of them


def test_what_the_sheet_knows_is_in_the_record(tmp_path):
    write(tmp_path, *sides(1.0, (10, 9)))
    run_import(tmp_path, "--which-a", "2:21:2", "--which-b", "3:21:2", "--dose-weighted", "false",
        "--alignment", "joint", "--producer", "relion", "--units", "fit",
    )  # fmt: skip
    record = json.loads((tmp_path / "h" / "m.json").read_text())
    assert record["a"]["frames"] == list(range(2, 21, 2)) and record["a"]["n_frames"] == 10
    assert record["b"]["frames"] == list(range(3, 21, 2)) and record["b"]["n_frames"] == 9
    assert record["dose_weighted"] is False and record["alignment"] == "joint"
    assert record["producer"].endswith("import-halves of relion")
    assert record["pair"]["signal_z"] > 6 and abs(record["pair"]["noise_correlation"]) < 0.05


def test_an_open_end_leaves_the_numbers_unknown_but_says_which(tmp_path):
    known = row(write(tmp_path, *sides()), which_a="0::2", which_b="1::2")
    record = halves_import.import_pair(known, True)[2]
    assert record["a"]["frames"] is None and record["a"]["n_frames"] is None and record["a"]["which"] == "0::2"


def test_sum_and_difference_become_the_halves(tmp_path):
    a, b = sides()
    write(tmp_path, a + b, a - b)
    run_import(tmp_path, "--form", "full-diff")
    np.testing.assert_allclose(mrcio.read_mrc(tmp_path / "h" / "m_a.mrc")[0], a, atol=1e-5)
    np.testing.assert_allclose(mrcio.read_mrc(tmp_path / "h" / "m_b.mrc")[0], b, atol=1e-5)
    write(tmp_path, a - b, a + b)  # the wrong way round: a and -b
    code, said = run_import(tmp_path, "--form", "full-diff", check=False)
    assert code == 2 and "a sum and a difference are mixed up" in said


def test_an_image_of_a_stack_is_taken_alone(tmp_path):
    pairs = [sides(seed=i) for i in (1, 2, 3)]
    paths = write(tmp_path, np.stack([p[0] for p in pairs]), np.stack([p[1] for p in pairs]))
    a, b, _, _ = halves_import.import_pair(row(paths, section=2), True)
    np.testing.assert_array_equal(a, pairs[2][0])
    np.testing.assert_array_equal(b, pairs[2][1])
    with pytest.raises(InputError, match=r"a\.mrc: holds 3 images; wanted section 3"):
        halves_import.import_pair(row(paths, section=3), True)


# ---------------------------------------------------------------------------- real pairs


def test_real_apoferritin_pairs_of_1_and_49_frames(shared_data, tmp_path, capsys):
    folder = shared_data / "apoferritin-10146"
    names = sorted(p.name.removesuffix("_a.mrc") for p in folder.glob("*_a.mrc"))[:3]
    ratios = []
    for name in names:
        assert 0 == command(
            "import-halves", "--a", folder / f"{name}_a.mrc", "--b", folder / f"{name}_b.mrc", "--out", tmp_path / name,
            "--pixel-size", 1.5, "--frames-a", 1, "--frames-b", 49, "--units", "fit",
        )  # fmt: skip
        halves = pair.load_pair(tmp_path / f"{name}.json")
        # The other frames are not aligned to the single one: a shift, but a pair.
        assert halves.record["pair"]["signal_z"] > 15
        assert halves.a.shape in ((1240, 1200), (1200, 1240)) and halves.pixel_size == 1.5
        # The other way of matching the units agrees: both hold the same signal.
        assert halves.record["relative_scale_check"] == pytest.approx(halves.record["relative_scale"], rel=0.35)
        ratios.append(halves.noise_var[0] / halves.noise_var[1])
    # One frame against 49, whose noise is not quite white after averaging.
    assert all(15 < r < 100 for r in ratios), ratios
    assert 0 == command(
        "audit-halves", "--halves", *(tmp_path / f"{n}.json" for n in names),
        "--table", tmp_path / "audit.tsv", "--figure", tmp_path / "audit.png",
    )  # fmt: skip
    assert (tmp_path / "audit.png").stat().st_size > 1000, capsys.readouterr().err
    for row in files.read_table(tmp_path / "audit.tsv", ["micrograph", "frc_beyond_z", "flags"]):
        # Warnings are right here: the single frame is not aligned to the average, and the detector's pattern shows.
        assert not set(row["flags"].split(",")) - {"halves-shifted", "fixed-pattern"}, row
        assert abs(float(row["frc_beyond_z"])) < 5
