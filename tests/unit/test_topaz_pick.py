"""Topaz's detector: against a stand-in for the program."""

import os
import sys

import numpy as np
import pytest

import making
from cryon2n import files, pair, picking_score, topaz_pick
from cryon2n.errors import InputError

# Stands in for the environment's Python: scales by leaving out pixels, and picks the darkest pixel of each image.
FAKE = """#!{python}
import json, os, pathlib, sys
import mrcfile
argv = sys.argv[1:]
command = argv[argv.index("-m") + 1].rpartition(".")[2]
take = lambda flag, words: words[words.index(flag) + 1]
words = argv[argv.index("-m") + 2 :]
if os.environ.get("FAKE_TOPAZ") == command:
    sys.exit("RuntimeError: out of everything")
images = [pathlib.Path(a) for a in words if a.endswith(".mrc")]
log = pathlib.Path({log!r})
seen = json.loads(log.read_text()) if log.exists() else []
log.write_text(json.dumps([*seen, [command, *words]]))
if command == "preprocess":
    out = pathlib.Path(take("-o", words))
    out.mkdir()
    step = int(take("-s", words))
    for path in images:
        with mrcfile.new(out / path.name) as mrc:
            mrc.set_data(mrcfile.read(path)[::step, ::step].copy())
else:
    lines = ["image_name\\tx_coord\\ty_coord\\tscore"]
    for path in images:
        data, scale = mrcfile.read(path), int(take("-x", words))
        y, x = divmod(int(data.argmin()), data.shape[1])
        if data.min() < 0:
            lines.append(f"{{path.stem}}\\t{{x * scale}}\\t{{y * scale}}\\t{{-float(data.min())}}")
    pathlib.Path(take("-o", words)).write_text("\\n".join(lines) + "\\n")
"""


@pytest.fixture
def environment(tmp_path):
    folder = tmp_path / "env"
    (folder / "bin").mkdir(parents=True)
    python = folder / "bin/python"
    python.write_text(FAKE.format(python=sys.executable, log=str(tmp_path / "seen.json")))
    python.chmod(0o755)
    files.write_json(folder / "ready.json", {"topaz": "0.3.20"})
    return folder


def dot(y, x):
    image = np.ones((96, 120), np.float32)
    image[y, x] = -5
    return image


def test_places_are_in_the_images_own_pixels_and_an_image_without_picks_has_none(environment, tmp_path):
    images = {"one": dot(48, 96), "none": np.ones((96, 120), np.float32), "two": dot(24, 12)}
    found = topaz_pick.detect(environment, images, radius=24.0, device="cpu")
    assert found["one"][0].tolist() == [[48.0, 96.0]] and found["two"][0].tolist() == [[24.0, 12.0]]
    assert found["one"][1].tolist() == [5.0]
    assert found["none"][0].shape == (0, 2) and found["none"][1].shape == (0,)
    scaling, picks = files.read_json(tmp_path / "seen.json")
    # A radius of 24 px is scaled to 8.
    assert scaling[:3] == ["preprocess", "-s", "3"] and scaling[-2:] == ["-d", "-1"]
    assert picks[picks.index("-r") + 1] == "8" and picks[picks.index("-m") + 1] == "resnet16"


@pytest.mark.parametrize("command", ["preprocess", "extract"])
def test_a_failure_is_told_with_topaz_s_own_words(environment, monkeypatch, command):
    monkeypatch.setitem(os.environ, "FAKE_TOPAZ", command)
    with pytest.raises(InputError, match=rf"topaz {command} ended with exit code 1.*\n.*out of everything"):
        topaz_pick.detect(environment, {"one": dot(9, 9)}, 8.0)


def test_an_environment_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no finished environment of Topaz; run `envs/topaz.sh"):
        topaz_pick.detect(tmp_path / "no", {"one": dot(9, 9)}, 8.0)


def test_from_micrographs_to_the_table_of_both_pickers(environment, tmp_path):
    y, x = np.mgrid[:96, :120]
    signal = -30 * np.exp(-((y - 40) ** 2 + (x - 60) ** 2) / 16)
    record = making.write_pair(tmp_path / "h", "m", *(signal + making.white(k, signal.shape, 0.5) for k in (1, 2)))
    one = pair.load_pair(record)
    pair.write_estimates(one, pair.estimate_all(one, lambda image: image), tmp_path / "d/raw", "raw")
    (tmp_path / "marks.csv").write_text("micrograph,x_px,y_px,radius_px\nm,60,40,8\n")
    common = ["--halves", record, "--denoised", tmp_path / "d", "--methods", "raw", "--labels", tmp_path / "marks.csv"]
    picks, table = tmp_path / "picks.tsv", tmp_path / "t.tsv"
    assert making.command("pick-topaz", "--env", environment, *common, "--device", "cpu", "--picks", picks) == 0
    words = ["score-picking", *common, "--picks", picks, "--bootstrap", 200, "--table", table]
    assert making.command(*words, "--curves", tmp_path / "c.tsv") == 0
    rows = files.read_table(table, picking_score.COLUMNS)
    found = {row["picker"]: float(row["value"]) for row in rows if row["metric"] == "average_precision"}
    assert found == {"blobs": 1, "topaz": 1}


def test_picks_of_others_are_checked(tmp_path):
    table = tmp_path / "p.tsv"
    row = {"picker": "mine", "method": "raw", "micrograph": "m", "x_px": 1.0, "y_px": 2.0, "score": 3.0}
    files.write_table(table, [row], picking_score.PICK_COLUMNS)
    places, scores = picking_score.read_picks(table)["mine", "raw", "m"]
    assert places.tolist() == [[2.0, 1.0]] and scores.tolist() == [3.0]
    files.write_table(table, [{**row, "score": "high"}], picking_score.PICK_COLUMNS)
    with pytest.raises(InputError, match=r"p.tsv: row 1 holds no numbers"):
        picking_score.read_picks(table)
    files.write_table(table, [{**row, "picker": "blobs"}], picking_score.PICK_COLUMNS)
    with pytest.raises(InputError, match="built in"):
        picking_score.read_picks(table)
