"""Halves from elsewhere: units brought together, pairs that cannot be pairs, and real ones."""

import json

import numpy as np
import pytest

from cryon2n import files, halves_import, mrcio, pair
from cryon2n.errors import InputError
from making import field, white

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


def run_import(tmp_path, cryon2n, *args, check=True):
    a, b = tmp_path / "a.mrc", tmp_path / "b.mrc"
    return cryon2n("import-halves", "--a", a, "--b", b, "--out", tmp_path / "h" / "m", *args, check=check)


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
    _, _, record = halves_import.import_pair(*write(tmp_path, a, b), None, frames, False)
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


def test_sums_of_unequal_numbers_of_frames_share_their_units(tmp_path, cryon2n):
    a, b = sides(1.0, (3, 5))
    write(tmp_path, 3 * a, 5 * b)
    run_import(tmp_path, cryon2n, "--frames-a", 3, "--frames-b", 5)
    halves = pair.load_pair(tmp_path / "h" / "m.json")
    assert halves.noise_var[0] / halves.noise_var[1] == pytest.approx(5 / 3)
    total = halves.to_units(halves.full, "full")
    np.testing.assert_allclose(total, 3 * a + 5 * b, atol=2e-4)


def test_means_given_out_as_sums_are_refused(tmp_path, cryon2n):
    write(tmp_path, *sides(1.0, (1, 49)))
    done = run_import(tmp_path, cryon2n, "--frames-a", 1, "--frames-b", 49, check=False)
    assert done.returncode == 2 and "--units fit" in done.stderr and not (tmp_path / "h").exists()


def test_halves_keep_their_own_units_in_the_files(tmp_path, cryon2n):
    a, b = sides(12.0, (2, 3))
    write(tmp_path, a, b)
    run_import(tmp_path, cryon2n, "--units", "fit")
    np.testing.assert_array_equal(mrcio.read_mrc(tmp_path / "h" / "m_a.mrc")[0], a)
    np.testing.assert_array_equal(mrcio.read_mrc(tmp_path / "h" / "m_b.mrc")[0], b)
    record = json.loads((tmp_path / "h" / "m.json").read_text())
    assert record["alignment"] == "unknown" and record["dose_weighted"] is None and record["trajectory_A"] is None


# ---------------------------------------------------------------------------- pairs that are none


def bad(tmp_path, a, b, text, size=1.5, frames=(None, None), same=True):
    paths = write(tmp_path, a, b, size)
    with pytest.raises(InputError, match=text):
        halves_import.import_pair(*paths, None, frames, same)


def test_impossible_pairs_are_refused_with_a_sentence(tmp_path):
    a, b = sides()
    bad(tmp_path, a, a, "hold the same pixels")
    bad(tmp_path, a, b[:-8], "256 x 320 pixels but .* 248 x 320")
    bad(tmp_path, np.stack([a, b]), b, r"a\.mrc: holds 3-dimensional")
    bad(tmp_path, a, np.full(SHAPE, 2.0), r"b\.mrc: the image is constant")
    bad(tmp_path, np.full(SHAPE, 2.0), b, r"a\.mrc: the image is constant", same=False)
    bad(tmp_path, a, b, "pixel size missing", size=1.0)
    bad(tmp_path, white(1, SHAPE), white(2, SHAPE), "no common signal", same=False)


def test_pixel_sizes_that_contradict_are_refused_and_one_is_enough(tmp_path):
    a, b = sides()
    paths = write(tmp_path, a, b)
    mrcio.write_mrc(paths[1], b, 1.6)
    with pytest.raises(InputError, match="give --pixel-size"):
        halves_import.import_pair(*paths, None, (None, None), True)
    mrcio.write_mrc(paths[0], a, 0.0)
    assert halves_import.import_pair(*paths, None, (None, None), True)[2]["pixel_size_A"] == pytest.approx(1.6)
    assert halves_import.import_pair(*paths, 1.25, (None, None), True)[2]["pixel_size_A"] == 1.25


@pytest.mark.filterwarnings("ignore:Data array contains NaN")
def test_nan_ends_with_2_and_no_output(tmp_path, cryon2n):
    a, b = sides()
    b[5, 5] = np.nan
    write(tmp_path, a, b)
    done = run_import(tmp_path, cryon2n, check=False)
    assert done.returncode == 2 and "b.mrc: 1 pixels are NaN" in done.stderr
    assert not (tmp_path / "h").exists()


@pytest.mark.parametrize("frames", [(0, 49), (1, -2)])
def test_no_frames_in_a_half_is_a_sentence(tmp_path, frames):
    a, b = sides()
    write(tmp_path, a, b)
    with pytest.raises(InputError, match="wanted 1 or more"):
        halves_import.import_pair(tmp_path / "a.mrc", tmp_path / "b.mrc", 1.5, frames, False)


def test_a_sheet_of_pairs_is_checked(tmp_path):
    sheet = tmp_path / "pairs.tsv"
    head = "\t".join(halves_import.SHEET_COLUMNS)
    sheet.write_text(f"{head}\nm1\ta1.mrc\tb1.mrc\t1.5\t1\t49\nm2\ta2.mrc\tb2.mrc\t-\t-\t-\n")
    rows = halves_import.read_pair_sheet(sheet)
    assert [r["micrograph"] for r in rows] == ["m1", "m2"] and rows[1]["frames_a"] == "-"
    sheet.write_text(f"{head}\nm1\ta1.mrc\tb1.mrc\t1.5\t1\t49\nm1\ta2.mrc\tb2.mrc\t-\t-\t-\n")
    with pytest.raises(InputError, match="'m1' stands there twice"):
        halves_import.read_pair_sheet(sheet)
    sheet.write_text(f"{head}\nm1\tx.mrc\tx.mrc\t1.5\t1\t49\n")
    with pytest.raises(InputError, match="same file"):
        halves_import.read_pair_sheet(sheet)
    sheet.write_text("micrograph\ta\nm1\tx.mrc\n")
    with pytest.raises(InputError, match="'b', 'pixel_size_A'"):
        halves_import.read_pair_sheet(sheet)


# ---------------------------------------------------------------------------- real pairs


def test_real_apoferritin_pairs_of_1_and_49_frames(shared_data, tmp_path, cryon2n):
    folder = shared_data / "apoferritin-10146"
    names = sorted(p.name.removesuffix("_a.mrc") for p in folder.glob("*_a.mrc"))[:3]
    ratios = []
    for name in names:
        cryon2n(
            "import-halves", "--a", folder / f"{name}_a.mrc", "--b", folder / f"{name}_b.mrc", "--out", tmp_path / name,
            "--pixel-size", 1.5, "--frames-a", 1, "--frames-b", 49, "--units", "fit",
        )  # fmt: skip
        halves = pair.load_pair(tmp_path / f"{name}.json")
        assert halves.a.shape in ((1240, 1200), (1200, 1240)) and halves.pixel_size == 1.5
        # The other way of matching the units agrees: both hold the same signal.
        assert halves.record["relative_scale_check"] == pytest.approx(halves.record["relative_scale"], rel=0.35)
        ratios.append(halves.noise_var[0] / halves.noise_var[1])
    # One frame against 49, whose noise is not quite white after averaging.
    assert all(15 < r < 100 for r in ratios), ratios
    done = cryon2n(
        "audit-halves", "--halves", *(tmp_path / f"{n}.json" for n in names),
        "--table", tmp_path / "audit.tsv", "--figure", tmp_path / "audit.png",
    )  # fmt: skip
    assert (tmp_path / "audit.png").stat().st_size > 1000, done.stderr
    for row in files.read_table(tmp_path / "audit.tsv", ["micrograph", "frc_beyond_z", "flags"]):
        # Warnings are right here: the single frame is not aligned to the average, and the detector's pattern shows.
        assert not set(row["flags"].split(",")) - {"halves-shifted", "fixed-pattern"}, row
        assert abs(float(row["frc_beyond_z"])) < 5
