"""The STAR file of denoised micrographs: what is in it, and that RELION picks particles from it."""

import shutil
import subprocess

import mrcfile
import numpy as np
import pytest

from cryon2n import micrograph_inputs, micrograph_outputs
from cryon2n.micrograph_outputs import StarRow, write_star
from cryon2n.producer_files import read_star

OPTICS = {
    "rlnOpticsGroupName": "grid1",
    "rlnOpticsGroup": "7",
    "rlnMicrographPixelSize": "9.9",
    "rlnVoltage": "300.000000",
    "rlnSphericalAberration": "2.7",
    "rlnAmplitudeContrast": "0.1",
}
CTF = {
    "rlnDefocusU": "9000",
    "rlnDefocusV": "8900",
    "rlnDefocusAngle": "12",
    "rlnCtfImage": "x.ctf",
    "rlnOpticsGroup": "7",
}


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    """A RELION project, which is not the working directory."""
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "default_pipeline.star").touch()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "project"


def test_optics_and_ctf_go_on_and_the_pixel_size_is_the_outputs(project):
    rows = [StarRow(project / "d" / f"{name}.mrc", 1.25, OPTICS, CTF) for name in "xy"]
    assert write_star(project / "d" / "micrographs.star", rows) == ()
    found = read_star(project / "d" / "micrographs.star")
    kept = {name: OPTICS[name] for name in ("rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast")}
    assert found["optics"] == [
        {"rlnOpticsGroupName": "grid1", "rlnOpticsGroup": "1", "rlnMicrographPixelSize": "1.25", **kept}
    ]
    ctf = {name: CTF[name] for name in ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle")}
    assert found["micrographs"] == [
        {"rlnMicrographName": f"d/{name}.mrc", "rlnOpticsGroup": "1", **ctf} for name in "xy"
    ]


def test_micrographs_with_other_optics_or_pixel_sizes_are_other_groups(project):
    other = {**OPTICS, "rlnVoltage": "200", "rlnOpticsGroupName": "grid2"}
    rows = [
        StarRow(project / f"{i}.mrc", size, optics)
        for i, (size, optics) in enumerate([(1.0, OPTICS), (1.0, other), (2.0, OPTICS), (1.0, OPTICS)])
    ]
    write_star(project / "m.star", rows)
    found = read_star(project / "m.star")
    assert [row["rlnOpticsGroup"] for row in found["micrographs"]] == ["1", "2", "3", "1"]
    groups = [(g["rlnOpticsGroupName"], g["rlnMicrographPixelSize"], g["rlnVoltage"]) for g in found["optics"]]
    # Two groups of one name have other names now: RELION tells groups apart by them.
    assert groups == [("opticsGroup1", "1", "300.000000"), ("grid2", "1", "200"), ("opticsGroup3", "2", "300.000000")]


def test_what_is_not_known_is_left_out_and_said(project, capsys):
    rows = [StarRow(project / "x.mrc", None), StarRow(project / "y.mrc", 1.0, OPTICS, CTF)]
    missing = write_star(project / "m.star", rows)
    assert missing == ("rlnMicrographPixelSize", "rlnVoltage", "rlnSphericalAberration")
    assert "RELION needs rlnMicrographPixelSize, rlnVoltage, rlnSphericalAberration" in capsys.readouterr().err
    assert (project / "m.star").read_text().startswith("# Add to data_optics, because RELION needs it: rlnMicrographP")
    found = read_star(project / "m.star")
    assert all(set(row) == {"rlnOpticsGroupName", "rlnOpticsGroup"} for row in found["optics"])
    assert all(set(row) == {"rlnMicrographName", "rlnOpticsGroup"} for row in found["micrographs"])


def test_names_are_relative_to_the_project_or_the_working_directory_or_whole(project, tmp_path, capsys):
    paths = [project / "d e" / "x.mrc", tmp_path / "elsewhere" / "y.mrc", tmp_path / "z.mrc"]
    write_star(project / "m.star", [StarRow(path, 1.0, OPTICS) for path in paths])
    names = [row["rlnMicrographName"] for row in read_star(project / "m.star")["micrographs"]]
    assert names == ["d e/x.mrc", "y.mrc", str(tmp_path / "z.mrc")]
    assert "RELION cannot pick in folders whose names have spaces" in capsys.readouterr().err


def test_what_was_written_is_found_again(project):
    (project / "d").mkdir()
    with mrcfile.new(project / "d" / "x.mrc") as file:
        file.set_data(np.eye(4, dtype=np.float32))
    write_star(project / "d" / "micrographs.star", [StarRow(project / "d" / "x.mrc", 1.25, OPTICS, CTF)])
    (x,) = micrograph_inputs.find([project / "d"])
    assert (x.full, x.pixel_size, x.optics["rlnVoltage"]) == (project / "d" / "x.mrc", 1.25, "300.000000")
    assert x.columns["rlnDefocusV"] == "8900"


# ---------------------------------------------------------------------------- RELION itself

PICK = "--LoG --LoG_diam_min 60 --LoG_diam_max 100 --shrink 0 --lowpass 20 --odir pick/ --pickname autopick".split()


def relion(name, *args, cwd):
    program = shutil.which(name)
    if program is None:
        pytest.skip(f"RELION ({name}) is not installed")
    return subprocess.run([program, *args], cwd=cwd, capture_output=True, text=True, timeout=120)


def denoised(project, dtype="float32"):
    """A micrograph as the command writes it, with dark discs on a grid, at 4 Å."""
    y, x = np.mgrid[:384, :384]
    image = np.random.default_rng(1).standard_normal((384, 384)).astype(np.float32)
    centres = [(cy, cx) for cy in range(60, 384, 110) for cx in range(60, 384, 110)]
    for cy, cx in centres:
        image -= 6 * (np.hypot(y - cy, x - cx) < 10)
    with mrcfile.new(project / "raw.mrc") as file:
        file.set_data(image)
        file.voxel_size = 4
    source = micrograph_inputs.read(project / "raw.mrc")
    micrograph_outputs.write(project / "d" / "x.mrc", image, source, dtype=dtype, label="denoised")
    return project / "d" / "x.mrc", centres


def test_relion_imports_the_star_and_picks_from_it(project):
    path, centres = denoised(project)
    write_star(project / "d" / "micrographs.star", [StarRow(path, 4.0, OPTICS, CTF)])
    (project / "Import" / "job001").mkdir(parents=True)
    done = relion(
        *("relion_import", "--do_other", "--i", "d/micrographs.star"),
        *("--odir", "Import/job001/", "--ofile", "micrographs.star"),
        cwd=project,
    )
    assert done.returncode == 0, done.stderr
    done = relion("relion_autopick", "--i", "Import/job001/micrographs.star", *PICK, cwd=project)
    picks = read_star(project / "pick" / "d" / "x_autopick.star")[""]
    found = np.array([[float(row[f"rlnCoordinate{axis}"]) for axis in "YX"] for row in picks])
    # Every disc is picked, at its place: rows, columns and pixel size are RELION's.
    for centre in centres:
        assert np.hypot(*(found - centre).T).min() < 3


def test_relion_asks_for_what_write_star_says_is_missing(project):
    path, _ = denoised(project)
    assert write_star(project / "m.star", [StarRow(path, 4.0)]) == ("rlnVoltage", "rlnSphericalAberration")
    done = relion("relion_autopick", "--i", "m.star", *PICK, cwd=project)
    assert done.returncode != 0 and "not all necessary variables defined" in done.stdout + done.stderr
    # The other way, which the note names.
    (project / "Import").mkdir()
    optics = "--angpix 4 --kV 300 --Cs 2.7 --Q0 0.1".split()
    done = relion(
        *("relion_import", "--do_micrographs", "--i", "d/*.mrc", "--odir", "Import/", "--ofile", "m.star", *optics),
        cwd=project,
    )
    assert read_star(project / "Import" / "m.star")["micrographs"][0]["rlnMicrographName"] == "d/x.mrc"
