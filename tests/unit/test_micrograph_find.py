"""Which micrographs are found: files, globs, folders, halves by name, RELION's and cryoSPARC's tables."""

import io
import os

import mrcfile
import numpy as np
import pytest

from cryon2n import micrograph_inputs
from cryon2n.errors import InputError
from cryon2n.micrograph_inputs import find
from cryon2n.names import is_safe_name

IMAGE = np.random.default_rng(1).standard_normal((8, 9)).astype(np.float32)

OPTICS = """# version 30001

data_optics

loop_
_rlnOpticsGroupName #1
_rlnOpticsGroup #2
_rlnMicrographPixelSize #3
_rlnVoltage #4
_rlnSphericalAberration #5
_rlnAmplitudeContrast #6
grid1 1 0.885 200 1.4 0.1
grid2 2 1.10 300 2.7 0.07

"""


def put(folder, *names):
    """Micrographs under these names."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with mrcfile.new(path, overwrite=True) as file:
            file.set_data(IMAGE)
    return folder


def star(path, labels, rows, optics=OPTICS):
    path.parent.mkdir(parents=True, exist_ok=True)
    head = "\n".join(f"_{label} #{i}" for i, label in enumerate(labels, 1))
    path.write_text(f"{optics}data_micrographs\n\nloop_\n{head}\n" + "\n".join(" ".join(row) for row in rows) + "\n\n")
    return path


def cs_bytes(**columns):
    """The bytes of a .cs file; column names with __ for the slash."""
    names = {name.replace("__", "/"): np.asarray(values) for name, values in columns.items()}
    n = len(next(iter(names.values())))
    table = np.zeros(n, [(name, values.dtype, values.shape[1:]) for name, values in names.items()])
    for name, values in names.items():
        table[name] = values
    file = io.BytesIO()
    np.save(file, table)
    return file.getvalue()


def cs(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cs_bytes(**columns))
    return path


def seen(found, root):
    """What was found, with paths below `root`: name, full, a, b."""
    paths = [[p and os.path.relpath(p, root) for p in (m.full, m.a, m.b)] for m in found]
    return [(m.name, *three) for m, three in zip(found, paths, strict=True)]


# ---------------------------------------------------------------------------- files, globs, folders


def test_files_globs_and_folders_name_each_micrograph_once(tmp_path):
    put(tmp_path, "one/x.mrc", "one/y.mrcs", "one/z.mrc.bz2", "one/.hidden.mrc", "two/[1].mrc")
    (tmp_path / "one" / "notes.txt").write_text("no micrograph")
    wanted = [("x", "one/x.mrc", None, None), ("y", "one/y.mrcs", None, None), ("z", "one/z.mrc.bz2", None, None)]
    assert seen(find([tmp_path / "one"]), tmp_path) == wanted
    assert seen(find(tmp_path / "one"), tmp_path) == wanted
    assert seen(find([f"{tmp_path}/one/*", tmp_path / "one" / "x.mrc", tmp_path / "two" / ".." / "one"]), tmp_path) == (
        wanted
    )
    assert seen(find([f"{tmp_path}/two/[[]*.mrc", str(tmp_path / "two" / "[1].mrc")]), tmp_path) == [
        ("_1_", "two/[1].mrc", None, None)
    ]


def test_micrographs_deep_below_a_folder_are_found(tmp_path):
    put(tmp_path, "a/b/x.mrc", "a/c/y.mrc")
    assert [m.name for m in find([tmp_path])] == ["x", "y"]


def test_equal_names_are_told_apart_by_their_folders_or_endings(tmp_path):
    put(tmp_path, "g1/day/x.mrc", "g2/day/x.mrc", "g2/day/y.mrc", "g2/day/y.mrc.gz")
    names = {
        m.name: os.path.relpath(m.full, tmp_path) for m in find([tmp_path / "g1" / "day", tmp_path / "g2" / "day"])
    }
    assert names == {
        "g1_day_x": "g1/day/x.mrc",
        "g2_day_x": "g2/day/x.mrc",
        "y": "g2/day/y.mrc",
        "y.mrc.gz": "g2/day/y.mrc.gz",
    }


def test_names_are_safe_whatever_the_files_are_called(tmp_path):
    put(tmp_path, "a b;$(c).mrc", "..d..e.mrc", "-f.mrc", "µ.mrc", f"{'n' * 240}.mrc")
    found = find([tmp_path / name for name in os.listdir(tmp_path)])
    assert len({m.name for m in found}) == 5 and all(is_safe_name(m.name) for m in found)
    assert {"a_b___c_", "f", "_"} <= {m.name for m in found}


def test_names_that_cannot_be_told_apart_are_refused(tmp_path):
    put(tmp_path, "a b.mrc", "a;b.mrc")
    with pytest.raises(InputError, match=r"a b.mrc and .*a;b.mrc: their results would have one name"):
        find([tmp_path])


def test_nothing_found_is_said(tmp_path):
    (tmp_path / "empty").mkdir()
    for source, said in (
        (tmp_path / "none.mrc", "is not there"),
        (f"{tmp_path}/*.mrc", "fits no micrograph"),
        (tmp_path / "empty", "holds no micrographs"),
        (tmp_path / "none.star", "is not there"),
    ):
        with pytest.raises(InputError, match=said):
            find([source])
    with pytest.raises(InputError, match="no micrographs were given"):
        find([])


def test_a_source_at_fault_does_not_end_the_others(tmp_path):
    put(tmp_path, "x.mrc")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.star").write_text("data_micrographs\nloop_\n_rlnMicrographName\n_b\nonly-one\n")
    found = find([tmp_path / "bad.star", tmp_path / "empty", tmp_path / "x.mrc", tmp_path / "gone.mrc"])
    assert sorted(m.name for m in found) == ["bad", "empty", "gone", "x"]
    said = {}
    for m in found:
        try:
            micrograph_inputs.read(m.full)
        except InputError as error:
            said[m.name] = str(error)
    assert list(said) == ["bad", "empty", "gone"]
    assert "line 5 is not of a STAR file" in said["bad"]
    assert "is a folder" in said["empty"] and "is not there" in said["gone"]


# ---------------------------------------------------------------------------- halves


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["x.mrc", "x_EVN.mrc", "x_ODD.mrc"], ("x", "x.mrc", "x_EVN.mrc", "x_ODD.mrc")),
        (["x_even.tif", "x_odd.tif"], ("x", None, "x_even.tif", "x_odd.tif")),
        (["x_a.mrc", "x_b.mrc"], ("x", None, "x_a.mrc", "x_b.mrc")),
        (["x_A.mrc", "x_B.mrc", "x.mrc.gz"], ("x", "x.mrc.gz", "x_A.mrc", "x_B.mrc")),
        (["even/x.mrc", "odd/x.mrc"], ("x", None, "even/x.mrc", "odd/x.mrc")),
        (
            ["average/x.mrc", "average/even/x.mrc", "average/odd/x.mrc"],
            ("x", "average/x.mrc", "average/even/x.mrc", "average/odd/x.mrc"),
        ),
        (["x_EVN.mrc"], ("x_EVN", "x_EVN.mrc", None, None)),
        (["x_a.mrc"], ("x_a", "x_a.mrc", None, None)),
        (["x_a.mrc", "x_B.mrc"], None),
    ],
)
def test_halves_are_put_together_by_name(tmp_path, names, wanted):
    for name in names:  # of the names only the files' matter
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = seen(find([tmp_path]), tmp_path)
    assert found == ([wanted] if wanted else [("x_B", "x_B.mrc", None, None), ("x_a", "x_a.mrc", None, None)])


def test_halves_beside_a_named_exposure_are_taken_and_a_named_half_is_not_widened(tmp_path):
    put(tmp_path, "x.mrc", "x_EVN.mrc", "x_ODD.mrc", "average/y.mrc", "average/even/y.mrc", "average/odd/y.mrc")
    named = find([tmp_path / "x.mrc", tmp_path / "average" / "y.mrc"])
    assert seen(named, tmp_path) == [
        ("x", "x.mrc", "x_EVN.mrc", "x_ODD.mrc"),
        ("y", "average/y.mrc", "average/even/y.mrc", "average/odd/y.mrc"),
    ]
    assert seen(find([tmp_path / "x_EVN.mrc"]), tmp_path) == [("x_EVN", "x_EVN.mrc", None, None)]
    both = find([tmp_path / "x_ODD.mrc", tmp_path / "x_EVN.mrc"])
    assert seen(both, tmp_path) == [("x", "x.mrc", "x_EVN.mrc", "x_ODD.mrc")]


def test_relions_power_spectra_are_no_micrographs(tmp_path):
    put(tmp_path, "x.mrc", "x_PS.mrc", "y_PS.mrc")
    for source in (tmp_path, f"{tmp_path}/*.mrc"):
        assert [m.name for m in find([source])] == ["x", "y_PS"]


def test_the_apoferritin_halves_are_found(shared_data):
    found = find([shared_data / "apoferritin-10146"])
    assert len(found) == 14
    assert all((m.a.name, m.b.name, m.full) == (f"{m.name}_a.mrc", f"{m.name}_b.mrc", None) for m in found)


# ---------------------------------------------------------------------------- RELION


def relion_project(tmp_path, *names):
    return put(tmp_path / "project", *(f"MotionCorr/job002/Movies/{name}" for name in names))


def test_a_relion_star_gives_paths_pixel_sizes_optics_and_what_is_known_of_the_ctf(tmp_path):
    project = relion_project(tmp_path, "x.mrc", "y.mrc", "y_EVN.mrc", "y_ODD.mrc")
    table = star(
        project / "MotionCorr" / "job002" / "corrected_micrographs.star",
        ("rlnMicrographName", "rlnOpticsGroup", "rlnDefocusU", "rlnCtfImage"),
        [(f"MotionCorr/job002/Movies/{n}.mrc", g, "9000", "ctf.mrc") for n, g in (("x", "2"), ("y", "1"))],
    )
    for source in (table, table.parent):  # the table, or the job's folder
        x, y = find([source])
        assert seen([x, y], table.parent / "Movies") == [
            ("x", "x.mrc", None, None),
            ("y", "y.mrc", "y_EVN.mrc", "y_ODD.mrc"),
        ]
        assert (x.pixel_size, y.pixel_size, x.origin) == (1.10, 0.885, str(table))
        assert (x.optics["rlnVoltage"], y.optics["rlnSphericalAberration"]) == ("300", "1.4")
        assert x.columns["rlnDefocusU"] == "9000"


def test_relion_columns_name_the_halves(tmp_path):
    project = put(tmp_path / "p", "raw/x.mrc", "halves/x_1.mrc", "halves/x_2.mrc")
    table = star(
        project / "j" / "micrographs.star",
        ("rlnMicrographName", "rlnOpticsGroup", "rlnMicrographNameEven", "rlnMicrographNameOdd"),
        [("raw/x.mrc", "1", "halves/x_1.mrc", "halves/x_2.mrc")],
    )
    assert seen(find([table]), project) == [("x", "raw/x.mrc", "halves/x_1.mrc", "halves/x_2.mrc")]


def test_a_star_of_relion_3_0_has_its_pixel_size_from_the_magnification(tmp_path):
    put(tmp_path, "m/x.mrc")
    (tmp_path / "micrographs.star").write_text(
        "\ndata_\n\nloop_ \n_rlnMicrographName #1 \n_rlnVoltage #2 \n_rlnDetectorPixelSize #3 \n_rlnMagnification #4 \n"
        "m/x.mrc 300.000000 5.000000 50000.000000 \n \n"
    )
    (x,) = find([tmp_path / "micrographs.star"])
    assert x.pixel_size == pytest.approx(5e4 / 50000)  # 5 µm are 5e4 Å
    assert x.optics["rlnVoltage"] == "300.000000"


def test_a_missing_micrograph_of_a_table_fails_alone(tmp_path):
    put(tmp_path, "m/x.mrc")
    table = star(tmp_path / "t.star", ("rlnMicrographName", "rlnOpticsGroup"), [("m/gone.mrc", "1"), ("m/x.mrc", "1")])
    gone, x = find([table])
    assert micrograph_inputs.read(x.full).image.shape == IMAGE.shape
    with pytest.raises(InputError, match=r"gone.mrc: is not there"):
        micrograph_inputs.read(gone.full)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no data block"),
        ("data_particles\n\nloop_\n_rlnImageName\n1@x.mrcs\n", r"has no micrographs \(found: data_particles\)"),
        (f"{OPTICS}data_micrographs\n\nloop_\n_rlnMicrographName\n_rlnOpticsGroup\n", "has no micrographs"),
        ("data_\nloop_\n_rlnMicrographName\nx.mrc\ndata_\nloop_\n_rlnVoltage\n300\n", "has no micrographs"),
        (f"{OPTICS}data_micrographs\n\nloop_\n_rlnMicrographName\n_rlnOpticsGroup\nno/x.mrc 1\n", "none of which is"),
        (f"{OPTICS.replace('0.885', 'x')}data_micrographs\n\nloop_\n_rlnMicrographName\n_rlnOpticsGroup\nx.mrc 1\n",
         "the pixel size of x.mrc is no number"),
    ],
)  # fmt: skip
def test_a_star_file_without_micrographs_is_refused(tmp_path, text, said):
    (tmp_path / "t.star").write_text(text)
    with pytest.raises(InputError, match=said):
        find([tmp_path / "t.star"])


def test_what_a_table_says_of_a_file_that_is_named_twice_stays(tmp_path):
    put(tmp_path, "m/x.mrc")
    table = star(tmp_path / "t.star", ("rlnMicrographName", "rlnOpticsGroup"), [("m/x.mrc", "1")])
    for sources in ([tmp_path / "m", table], [table, tmp_path / "m"]):
        (x,) = find(sources)
        assert x.pixel_size == 0.885


# ---------------------------------------------------------------------------- cryoSPARC


def test_a_cs_file_gives_paths_pixel_sizes_and_optics(tmp_path):
    put(tmp_path / "CS-p", "J7/motioncorrected/x.mrc", "J7/motioncorrected/y.mrc")
    columns = {
        "uid": np.arange(2, dtype=np.uint64),
        "micrograph_blob__path": [b">J7/motioncorrected/x.mrc", b"J7/motioncorrected/y.mrc"],
        "micrograph_blob__psize_A": np.array([0.5, 0.6], np.float32),
        "micrograph_blob__shape": np.full((2, 2), 8, np.uint32),
        "mscope_params__accel_kv": np.full(2, 300, np.float32),
        "mscope_params__cs_mm": np.full(2, 2.7, np.float32),
        "ctf__amp_contrast": np.full(2, 0.1, np.float32),
    }
    table = cs(tmp_path / "CS-p" / "J7" / "exposures.cs", **columns)
    cs(table.with_name("particles.cs"), uid=np.arange(3))  # another table, which names no micrographs
    for source in (table, table.parent):
        x, y = find([source])
        assert seen([x, y], table.parent / "motioncorrected") == [
            ("x", "x.mrc", None, None),
            ("y", "y.mrc", None, None),
        ]
        assert (x.pixel_size, y.pixel_size) == (pytest.approx(0.5), pytest.approx(0.6))
        assert x.optics == {"rlnVoltage": "300", "rlnSphericalAberration": "2.7", "rlnAmplitudeContrast": "0.1"}
    cs(table.with_name("more.cs"), **columns)
    with pytest.raises(InputError, match=r"exposures.cs and more.cs name micrographs; give one of them"):
        find([table.parent])


def test_slots_that_hold_halves_are_taken(tmp_path):
    put(tmp_path, "J1/x_A.mrc", "J1/x_B.mrc")
    table = cs(
        tmp_path / "J1" / "e.cs", half_A__path=["J1/x_A.mrc"], half_B__path=["J1/x_B.mrc"], half_A__psize_A=[2.0]
    )
    (x,) = find([table])
    assert (x.name, x.full, x.a.name, x.b.name, x.pixel_size) == ("x", None, "x_A.mrc", "x_B.mrc", 2.0)


def test_a_cs_file_is_never_unpickled_nor_believed(tmp_path):
    table = np.zeros(2, [("micrograph_blob/path", "O")])
    np.save(tmp_path / "pickle.npy", table, allow_pickle=True)
    (tmp_path / "pickle.npy").rename(tmp_path / "pickle.cs")
    with pytest.raises(InputError, match=r"pickle.cs: cannot be read as a .cs file"):
        find([tmp_path / "pickle.cs"])
    whole = cs(tmp_path / "whole.cs", micrograph_blob__path=["x.mrc"]).read_bytes()
    many = whole.replace(b"(1,), }" + b" " * 12, b"(1000000000000,), }")
    assert len(many) == len(whole) and many != whole
    (tmp_path / "many.cs").write_bytes(many)
    with pytest.raises(InputError, match=r"many.cs: cannot be read as a .cs file"):
        find([tmp_path / "many.cs"])
    np.save(tmp_path / "plain.npy", IMAGE)
    (tmp_path / "plain.npy").rename(tmp_path / "plain.cs")
    with pytest.raises(InputError, match="is not a table with columns"):
        find([tmp_path / "plain.cs"])
