"""Folders as other programs leave them: the right pairs, what is known of their frames, and planted faults."""

import csv

import numpy as np
import pytest

from cryon2n import files, mrcio, pair_sheet, producer_files, producers, study
from cryon2n.errors import InputError
from cryon2n.pair_sheet import PairRow
from making import command, field, white

SHAPE, PIXEL = (192, 224), 4.0
NAMES = ("m10", "m2", "m1")  # not in the order in which a folder lists them


def half(seed, side):
    signal = 0.4 * field(seed, SHAPE, cutoff=PIXEL / 50)
    return (10 + signal + white(100 + 2 * seed + side, SHAPE)).astype(np.float32)


def save(path, image, pixel_size=PIXEL):
    mrcio.write_mrc(path, image, pixel_size)


def known(**settings):
    return producers.Known(**settings)


def by_suffixes(folder, first, second):
    for seed, name in enumerate(NAMES):
        save(folder / f"{name}{first}.mrc", half(seed, 0))
        save(folder / f"{name}{second}.mrc", half(seed, 1))


def take(tmp_path, folder, producer, *args):
    """Run ``cryon2n import``; returns the exit code and the rows of the sheet (None if there is none)."""
    sheet = tmp_path / "sheet" / "pairs.tsv"
    code = command("import", folder, "--from", producer, "--out", sheet, *args)
    return code, pair_sheet.read_pair_sheet(sheet) if sheet.exists() else None


def first_frame_in_a(tmp_path, rows):
    """The pairs of the sheet are those that were made: a is half 0 of its micrograph, b half 1."""
    assert {row.micrograph for row in rows} == set(NAMES)
    for row in rows:
        seed = NAMES.index(row.micrograph)
        for path, side in ((row.a, 0), (row.b, 1)):
            image = mrcio.read_mrc(tmp_path / "sheet" / path)[0]
            np.testing.assert_array_equal(image, half(seed, side))


# ---------------------------------------------------------------------------- RELION

CORRECTED = """
# version 50001

data_optics

loop_
_rlnOpticsGroupName #1
_rlnOpticsGroup #2
_rlnMicrographOriginalPixelSize #3
_rlnMicrographPixelSize #4
opticsGroup1            1     2.000000     4.000000


data_micrographs

loop_
_rlnMicrographName #1
_rlnMicrographMetadata #2
_rlnOpticsGroup #3
_rlnAccumMotionTotal #4
"""
TRAJECTORY = """
data_general

_rlnImageSizeX                                     448
_rlnImageSizeZ                                      {frames}
_rlnMicrographMovieName        "Movies/a movie.mrc"
_rlnMicrographStartFrame                             1

data_global_shift

loop_
_rlnMicrographFrameNumber #1
_rlnMicrographShiftX #2
_rlnMicrographShiftY #3
"""


def relion_job(tmp_path, frames=9, skipped=(1, 2), listed=NAMES):
    job = tmp_path / "MotionCorr" / "job002"
    by_suffixes(job / "Movies", "_EVN", "_ODD")
    lines = [f"MotionCorr/job002/Movies/{n}.mrc MotionCorr/job002/Movies/{n}.star 1 3.2" for n in listed]
    (job / "corrected_micrographs.star").write_text(CORRECTED + "\n".join(lines) + "\n")
    for name in NAMES:
        shifts = [f"{k} {-9999 if k in skipped else k / 10} 0.5" for k in range(1, frames + 1)]
        (job / "Movies" / f"{name}.star").write_text(TRAJECTORY.format(frames=frames) + "\n".join(shifts) + "\n")
    return job


def test_relion(tmp_path):
    code, rows = take(tmp_path, relion_job(tmp_path), "relion")
    assert code == 0
    first_frame_in_a(tmp_path, rows)
    for row in rows:
        assert row.pixel_size_A == 4.0 and row.dose_weighted is False and row.alignment == "joint"
        # Of frames 0 to 8 the first two were left out: the first one summed is frame 2, and it is in _EVN.
        assert (row.which_a, row.which_b, row.n_frames) == ("2:9:2", "3:9:2", (4, 3))
        assert row.producer == "relion"


def test_relion_without_its_star_files_leaves_the_frames_unknown(tmp_path):
    by_suffixes(tmp_path / "job", "_EVN", "_ODD")
    code, rows = take(tmp_path, tmp_path / "job", "relion")
    assert code == 0 and rows[0].which_a == "0::2" and rows[0].n_frames == (None, None)
    code, rows = take(tmp_path, tmp_path / "job", "relion", "--frames", 7)
    assert code == 0 and rows[0].which_a == "0:7:2" and rows[0].n_frames == (4, 3)


def test_a_relion_micrograph_without_halves_is_named(tmp_path, capsys):
    code, rows = take(tmp_path, relion_job(tmp_path, listed=(*NAMES, "m99")), "relion")
    error = capsys.readouterr().err
    assert code == 2 and rows is None and "m99.mrc has no halves" in error and "--even_odd_split" in error


def test_a_relion_job_that_ran_motioncor_numbers_otherwise(tmp_path):
    job = relion_job(tmp_path)
    (job / "note.txt").write_text("relion_run_motioncorr --i movies.star --use_motioncor2 --other_motioncor2_args x\n")
    with pytest.raises(InputError, match="--from motioncor3"):
        producers.find_pairs(job, "relion", known())


# ---------------------------------------------------------------------------- MotionCor3

ALN = """setting
   stackSize: 448 384 {n} 1
   patches: 0 0 0
   throw: {throw} 0
#    Global Shift
#---------------------
globalShift
   stackID 0
{rows}
#    Local Shift
#---------------------
localShift
   patchID: 0
     0    10.00    10.00    +0.100    +0.200
"""


def test_motioncor3_numbers_the_other_way_round(tmp_path):
    folder = tmp_path / "mc"
    by_suffixes(folder, "_ODD", "_EVN")
    for name in NAMES:
        rows = "\n".join(f"{k:6d}  {0.1 * k:+8.3f}  {-0.2 * k:+8.3f}" for k in range(8))
        (folder / "aln").mkdir(exist_ok=True)
        (folder / "aln" / f"{name}.aln").write_text(ALN.format(n=8, throw=1, rows=rows))
    code, rows = take(tmp_path, folder, "motioncor3")
    assert code == 0
    first_frame_in_a(tmp_path, rows)
    assert all(row.a.endswith("_ODD.mrc") and row.which_a == "1:9:2" and row.n_frames == (4, 4) for row in rows)
    assert rows[0].dose_weighted is None  # no sum is there that would tell


@pytest.mark.parametrize(("weighted", "ending"), [(False, ""), (True, "_DW")])
def test_motioncor3_dose_weighting_is_told_by_the_sum_that_the_halves_make(tmp_path, weighted, ending, capsys):
    folder = tmp_path / "mc"
    by_suffixes(folder, "_ODD", "_EVN")
    for seed, name in enumerate(NAMES):
        save(folder / f"{name}.mrc", half(seed, 0) + 2 * half(seed, 1))
        save(folder / f"{name}_DW.mrc", 2 * half(seed, 0) + half(seed, 1))
        save(folder / f"{name}{ending}.mrc", half(seed, 0) + half(seed, 1))
    code, rows = take(tmp_path, folder, "motioncor3")
    assert code == 0 and all(row.dose_weighted is weighted for row in rows)
    assert ("weighted these frames by dose" in capsys.readouterr().err) is weighted


# ---------------------------------------------------------------------------- AreTomo3


def test_aretomo3_stacks_become_one_micrograph_for_each_tilt(tmp_path):
    folder = tmp_path / "at"
    for suffix, side in (("_EVN", 0), ("_ODD", 1)):
        save(folder / f"ts{suffix}.mrc", np.stack([half(seed, side) for seed in range(3)]))
        save(folder / f"ts{suffix}_Vol.mrc", np.stack([half(9, side)] * 2))  # volumes are no halves of micrographs
    save(folder / "ts.mrc", np.stack([half(seed, 0) for seed in range(3)]))
    code, rows = take(tmp_path, folder, "aretomo3", "--frames", 6)
    assert code == 0
    assert [(row.micrograph, row.section) for row in rows] == [("ts_000", 0), ("ts_001", 1), ("ts_002", 2)]
    assert rows[0].which_a == "0:6:2" and rows[0].a.endswith("ts_EVN.mrc") and rows[0].dose_weighted is False


# ---------------------------------------------------------------------------- Warp

XML = """<?xml version="1.0" encoding="utf-8"?>
<Movie CTFResolutionEstimate="3.2">
  <OptionsMovieExport>
    <Param Name="DoAverage" Value="True" />
    <Param Name="SkipFirstN" Value="1" />
    <Param Name="SkipLastN" Value="2" />
    <Param Name="DosePerAngstromFrame" Value="{dose}" />
  </OptionsMovieExport>
</Movie>
"""


def warp_folder(tmp_path, dose="1.2"):
    folder = tmp_path / "warp_frameseries"
    (folder / "logs").mkdir(parents=True)
    for seed, name in enumerate(NAMES):
        for side, where in enumerate(("even", "odd")):
            save(folder / "average" / where / f"{name}.mrc", half(seed, side).astype(np.float16))
        (folder / f"{name}.xml").write_text(XML.format(dose=dose))
        (folder / "logs" / f"{name}.log").write_text(
            "2025-10-01 07:02:56.112 Loaded stack: 224, 192, 12, normal, real, 1 A/px, ID = -1, 1\n"
        )
    return folder


@pytest.mark.parametrize(("dose", "weighted"), [("1.2", True), ("0", False), ("-40", True)])
def test_warp(tmp_path, dose, weighted):
    folder = warp_folder(tmp_path, dose)
    code, rows = take(tmp_path, folder, "warp")
    assert code == 0 and {row.micrograph for row in rows} == set(NAMES)
    for row in rows:
        assert row.a.endswith(f"even/{row.micrograph}.mrc") and row.b.endswith(f"odd/{row.micrograph}.mrc")
        # 12 frames, one left out before and two after: 1 to 9, the first of them in even.
        assert (row.which_a, row.which_b, row.n_frames) == ("1:10:2", "2:10:2", (5, 4))
        assert row.dose_weighted is weighted


def test_empty_warp_folders_are_said(tmp_path):
    for side in ("even", "odd"):
        (tmp_path / "average" / side).mkdir(parents=True)
    with pytest.raises(InputError, match="--out_average_halves"):
        producers.find_pairs(tmp_path, "warp", known())


# ---------------------------------------------------------------------------- CryoCRAB, cryoSPARC


def test_cryocrab_pairs_are_sum_and_difference(tmp_path, cryon2n):
    folder = tmp_path / "crab"
    for seed, name in enumerate(NAMES):
        a, b = half(seed, 0), half(seed, 1)
        save(folder / f"{name}_full.mrc", (a + b).astype(np.float16), 0)
        save(folder / f"{name}_diff.mrc", (a - b).astype(np.float16), 0)
    code, rows = take(tmp_path, folder, "cryocrab", "--pixel-size", 4)
    assert code == 0 and all(row.form == "full-diff" and row.which_a is None for row in rows)
    row = next(row for row in rows if row.micrograph == "m1")
    about = pair_sheet.import_arguments(row).split()
    sheet = tmp_path / "sheet"
    command("import-halves", "--a", sheet / row.a, "--b", sheet / row.b, *about, "--out", tmp_path / "h" / "m1")
    for side, name in enumerate("ab"):
        image = mrcio.read_mrc(tmp_path / "h" / f"m1_{name}.mrc")[0]
        np.testing.assert_allclose(image, half(2, side), atol=0.02)  # float16 at 20 is exact to 0.008


def test_cryocrab_hdf5_alone_is_refused(tmp_path):
    (tmp_path / "x.h5").write_bytes(b"\x89HDF")
    with pytest.raises(InputError, match="wanted CryoCRAB's MRC pairs"):
        producers.find_pairs(tmp_path, "cryocrab", known())


def cryosparc_job(tmp_path, slots):
    job = tmp_path / "P1" / "J7"
    rows = []
    for seed, name in enumerate(NAMES):
        paths = [f"J7/motioncorrected/{name}{ending}.mrc" for ending in ("_A", "_B")]
        for side, path in enumerate(paths):
            save(tmp_path / "P1" / path, half(seed, side), 0)
        rows.append((seed, paths[0].encode(), 4.0, paths[1].encode()))
    kinds = [("uid", "<u8"), (f"{slots[0]}/path", "S80"), (f"{slots[0]}/psize_A", "<f4"), (f"{slots[1]}/path", "S80")]
    with open(job / "J7_micrographs.cs", "wb") as f:
        np.save(f, np.array(rows, dtype=kinds))
    return job


def test_cryosparc_slots_are_found_or_named(tmp_path, capsys):
    code, rows = take(tmp_path, cryosparc_job(tmp_path, ("half_A", "half_B")), "cryosparc")
    assert code == 0 and rows[0].pixel_size_A == 4.0
    first_frame_in_a(tmp_path, rows)
    assert rows[0].which_a is None  # which frames they hold is not known
    job = cryosparc_job(tmp_path / "other", ("one", "two"))
    (tmp_path / "sheet" / "pairs.tsv").unlink()
    code, rows = take(tmp_path, job, "cryosparc")
    assert code == 2 and "--columns A B (found: one, two)" in capsys.readouterr().err
    code, rows = take(tmp_path, job, "cryosparc", "--columns", "one", "two")
    assert code == 0 and len(rows) == 3


# ---------------------------------------------------------------------------- planted faults


def test_a_shuffled_pairing_is_refused_and_the_partner_named(tmp_path, capsys):
    folder = tmp_path / "job"
    by_suffixes(folder, "_EVN", "_ODD")
    for seed, name in enumerate(NAMES):
        save(folder / f"{name}_ODD.mrc", half((seed + 1) % 3, 1))
    code, rows = take(tmp_path, folder, "relion")
    error = capsys.readouterr().err
    assert code == 2 and rows is None
    assert "m10: its a fits the b of m1 (" in error and "the pairing is shuffled" in error
    assert "3 of 3 pairs are refused" in error and "--leave-out" not in error


def test_one_wrong_pair_is_named_and_can_be_left_out(tmp_path, capsys):
    folder = tmp_path / "job"
    by_suffixes(folder, "_EVN", "_ODD")
    save(folder / "m2_ODD.mrc", half(77, 1))
    code, rows = take(tmp_path, folder, "relion")
    error = capsys.readouterr().err
    assert code == 2 and rows is None and "m2: no common signal" in error and "1 of 3 pairs are refused" in error
    code, rows = take(tmp_path, folder, "relion", "--leave-out")
    assert code == 0 and {row.micrograph for row in rows} == {"m10", "m1"}


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (lambda a, b: a, "hold the same pixels"),
        (lambda a, b: 3 * a + 2, "noises of a and b correlate by 1.00"),
        (lambda a, b: (a + b) / 2, "noises of a and b correlate by 0.7"),
        (lambda a, b: np.zeros_like(b), "the image is constant"),  # AreTomo3's black ODD
        (lambda a, b: b[:-2], "have one shape"),
    ],
)
def test_halves_that_are_none_are_refused(tmp_path, capsys, fault, text):
    folder = tmp_path / "job"
    by_suffixes(folder, "_EVN", "_ODD")
    save(folder / "m2_ODD.mrc", np.asarray(fault(half(1, 0), half(1, 1)), np.float32))
    code, rows = take(tmp_path, folder, "relion")
    error = capsys.readouterr().err
    assert code == 2 and rows is None and "m2" in error and text in error, error


def test_a_half_without_its_other_is_named(tmp_path):
    by_suffixes(tmp_path, "_EVN", "_ODD")
    (tmp_path / "m2_ODD.mrc").unlink()
    with pytest.raises(InputError, match=r"m2_EVN\.mrc: has no other half"):
        producers.find_pairs(tmp_path, "relion", known())


def test_one_name_in_two_folders_is_refused(tmp_path):
    for folder in ("one", "two"):
        by_suffixes(tmp_path / folder, "_EVN", "_ODD")
    with pytest.raises(InputError, match="import their folders one by one"):
        producers.find_pairs(tmp_path, "relion", known())


def test_a_folder_that_is_not_there_and_senseless_options(tmp_path, capsys):
    for args, text in [
        ((tmp_path / "no", "--from", "warp"), "no such folder"),
        ((tmp_path, "--from", "warp"), "holds no halves"),
        ((tmp_path, "--from", "warp", "--columns", "a", "b"), "--columns is for --from cryosparc"),
        ((tmp_path, "--from", "warp", "--frames", 1), "wanted 2 or more"),
    ]:
        assert command("import", *args) == 2
        assert text in capsys.readouterr().err


# ---------------------------------------------------------------------------- the sheet


def test_the_sheet_goes_to_standard_output_with_whole_paths(tmp_path, capsys):
    by_suffixes(tmp_path, "_EVN", "_ODD")
    assert command("import", tmp_path, "--from", "relion") == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines(), delimiter="\t"))
    assert [row["micrograph"] for row in rows] == sorted(NAMES)
    assert rows[0]["a"] == str(tmp_path / f"{rows[0]['micrograph']}_EVN.mrc")


def test_a_row_survives_the_way_through_the_sheet_and_the_study(tmp_path):
    row = PairRow("m", "x_EVN.mrc", "x_ODD.mrc", 0.885, 12, 12, "0:24:2", "1:24:2", "halves", 3, True, "joint", "warp")
    sheet = tmp_path / "s.tsv"
    files.write_text(sheet, pair_sheet.sheet_text([row]))
    assert pair_sheet.read_pair_sheet(sheet) == [row]
    source = study._pair_sources({"kind": "halves", "sheet": str(sheet), "folder": None, "units": "same"})["m"]
    assert source["a"] == str(tmp_path / "x_EVN.mrc")
    assert (
        source["about"].split()
        == (
            "--pixel-size 0.885 --frames-a 12 --frames-b 12 --which-a 0:24:2 --which-b 1:24:2 --form halves "
            "--section 3 --dose-weighted true --alignment joint --producer warp --units same"
        ).split()
    )


def test_a_sheet_of_six_columns_stays_valid(tmp_path):
    sheet = tmp_path / "s.tsv"
    sheet.write_text("\t".join(pair_sheet.REQUIRED) + "\nm1\ta1.mrc\tb1.mrc\t1.5\t1\t49\nm2\ta2.mrc\tb2.mrc\t-\t-\t-\n")
    rows = pair_sheet.read_pair_sheet(sheet)
    assert rows == [
        PairRow("m1", "a1.mrc", "b1.mrc", 1.5, 1, 49),
        PairRow("m2", "a2.mrc", "b2.mrc"),
    ]


def test_a_micrograph_stands_in_the_sheet_once(tmp_path):
    sheet = tmp_path / "s.tsv"
    files.write_text(sheet, pair_sheet.sheet_text([PairRow("m1", "a.mrc", "b.mrc"), PairRow("m1", "c.mrc", "d.mrc")]))
    with pytest.raises(InputError, match="'m1' stands there twice"):
        pair_sheet.read_pair_sheet(sheet)
    sheet.write_text("micrograph\ta\nm1\tx.mrc\n")
    with pytest.raises(InputError, match="'b', 'pixel_size_A'"):
        pair_sheet.read_pair_sheet(sheet)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"b": "x_EVN.mrc"}, "the same file x_EVN.mrc"),
        ({"b": "y_EVN.mrc"}, "are both even halves"),
        ({"b": "y_ODD.mrc"}, "is a half of x but y_ODD.mrc of y"),
        ({"a": "odd/x.mrc", "b": "other/odd/x.mrc"}, "are both odd halves"),
        ({"pixel_size_A": "wide"}, "column pixel_size_A: found 'wide', wanted a number"),
        ({"pixel_size_A": "nan"}, "wanted more than 0"),
        ({"frames_a": "0"}, "wanted 1 or more"),
        ({"frames_a": "2.5"}, "wanted a whole number"),
        ({"which_a": "0:24:2"}, "frames 0:24:2 are 12, but the sheet says 10"),
        ({"which_a": "0:20:2", "which_b": "0:20:2"}, "overlap; two halves share no frame"),
        ({"which_a": "even"}, "wanted first:stop:step"),
        ({"which_a": "0:4:0"}, "wanted first:stop:step"),
        ({"form": "sum"}, "found form 'sum', wanted one of halves, full-diff"),
        ({"alignment": "good"}, "found alignment 'good'"),
        ({"dose_weighted": "maybe"}, "wanted true or false"),
        ({"section": "-1"}, "wanted 0 or more"),
        ({"producer": "me; rm x"}, "wanted one word"),
        ({"micrograph": ""}, "micrograph is empty"),
    ],
)
def test_a_sheet_that_contradicts_itself_is_refused(tmp_path, change, text):
    row = {"micrograph": "m", "a": "x_EVN.mrc", "b": "x_ODD.mrc", "pixel_size_A": "1.5", "frames_a": "10",
           "frames_b": "10", **dict.fromkeys(pair_sheet.OPTIONAL, "-"), **change}  # fmt: skip
    sheet = tmp_path / "s.tsv"
    sheet.write_text("\t".join(row) + "\n" + "\t".join(row.values()) + "\n")
    with pytest.raises(InputError, match=text) as error:
        pair_sheet.read_pair_sheet(sheet)
    assert str(sheet) in str(error.value)


@pytest.mark.parametrize(
    ("path", "name", "side"),
    [
        ("d/x_EVN.mrc", "x", "even"), ("x_ODD.mrc.gz", "x", "odd"), ("x_even.mrc", "x", "even"),
        ("even/x_odd.mrc", "x_odd", "even"), ("x_eleven.mrc", "x_eleven", None), ("x.mrcs", "x", None),
    ],
)  # fmt: skip
def test_sides_are_told_by_name(path, name, side):
    assert pair_sheet.side_by_name(path) == (name, side)


# ---------------------------------------------------------------------------- the readers


def test_star_files_are_read(tmp_path):
    star = tmp_path / "x.star"
    star.write_text(TRAJECTORY.format(frames=3) + "1 0.0 0.5\n2 0.1 0.5\n3 0.2 0.5\n")
    blocks = producer_files.read_star(star)
    assert blocks["general"][0]["rlnMicrographMovieName"] == "Movies/a movie.mrc"
    assert [row["rlnMicrographFrameNumber"] for row in blocks["global_shift"]] == ["1", "2", "3"]
    assert producer_files.relion_frames(star) == (0, 3)
    star.write_text(TRAJECTORY.format(frames=3) + "1 0.0 0.5\n3 0.2 0.5\n")
    assert producer_files.relion_frames(star) is None  # a gap: not every second one is in a half


@pytest.mark.parametrize(
    "text", ["", "nothing here", "data_x\nloop_\n_a #1\n_b #2\n1\n", 'data_x\nloop_\n_a\n"open', "data_x\n_a\n"]
)
def test_what_is_no_star_file_is_a_sentence(tmp_path, text):
    (tmp_path / "x.star").write_text(text)
    with pytest.raises(InputError, match=r"x\.star: "):
        producer_files.read_star(tmp_path / "x.star")


def test_odd_files_of_warp_and_cryosparc_are_sentences(tmp_path):
    xml, cs = tmp_path / "m.xml", tmp_path / "m.cs"
    for text in ("<Movie>", '<!DOCTYPE x [<!ENTITY a "b">]><x>&a;</x>'):
        xml.write_text(text)
        with pytest.raises(InputError, match=r"m\.xml: "):
            producer_files.warp_settings(xml)
    xml.write_text(XML.format(dose="1.5"), encoding="utf-16")
    assert producer_files.warp_settings(xml)["DosePerAngstromFrame"] == 1.5
    cs.write_bytes(b"not numpy")
    with pytest.raises(InputError, match=r"m\.cs: cannot be read"):
        producer_files.read_cs(cs)
    with open(cs, "wb") as f:
        np.save(f, np.zeros(3))
    with pytest.raises(InputError, match="not a table with columns"):
        producer_files.read_cs(cs)
