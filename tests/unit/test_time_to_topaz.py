"""The race against Topaz's recipe: the plateau's rule and the verdict on planted curves, and a tiny race for real."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from conftest import ROOT
from cryon2n import files

sys.path.insert(0, str(ROOT / "benchmarks"))
import time_to_topaz as race


@pytest.mark.parametrize(("height", "tau", "patience"), [(5.0, 10.0, 20.0), (2.0, 30.0, 60.0), (0.5, 3.0, 10.0)])
def test_a_curve_that_levels_off_has_its_plateau_where_its_gain_falls_to_0_02_dB(height, tau, patience):
    seconds = np.arange(1.0, 40 * tau)
    decibels = height * (1 - np.exp(-seconds / tau))
    found = next(t for n, t in enumerate(seconds, 1) if race.at_plateau(seconds[:n], decibels[:n], patience))
    # It gains h (exp(-(t - p) / tau) - exp(-t / tau)) in the last p seconds: 0.02 at this t.
    wanted = tau * np.log(height * (np.exp(patience / tau) - 1) / 0.02)
    assert found == pytest.approx(max(np.ceil(wanted), 2 * patience))


@pytest.mark.parametrize(
    ("decibels", "plateau"),
    [
        ([1, 2, 3, 4, 5, 6, 7, 8], False),
        ([1, 2, 3, 4, 5, 5, 5, 5], False),  # the last four seconds' best is above that of the first four
        ([1, 2, 3, 5, 5, 5, 5, 5], True),
        ([1, 2, 3, 5, 4, 3, 2, 1], True),  # falling is no gain
        ([1, 2, 3, 5, 4, 5.01, 4, 3], True),
        ([1, 2, 3, 5, 4, 5.03, 4, 3], False),
        ([5, 5, 5, 5, 5, 5, 5], False),  # two patiences have not passed
        ([], False),
    ],
)
def test_what_is_a_plateau(decibels, plateau):
    assert race.at_plateau(list(range(1, len(decibels) + 1)), decibels, 4.0) is plateau


def rows(who, *values):
    return [{"who": who, "seconds": s, "steps": 1, "dB": d, "delta_umse": -d / 100} for s, d in values]


def test_the_verdict_takes_topaz_at_its_best_and_the_first_moment_that_is_as_good():
    topaz = rows("topaz", (10, 4.0), (20, 4.985), (30, 5.0), (40, 4.9), (50, 4.9), (60, 4.9))
    ours = rows("ours", (1, 3.0), (2, 4.99), (5, 5.0), (8, 4.5), (16, 6.0))
    found = race.judge(topaz + ours, 20.0)
    # 4.985 is within 0.02 of the best; ours must have all of it: 5.0 at 5 s, not 4.99 at 2 s.
    assert (found.topaz_dB, found.topaz_seconds, found.plateau) == (5.0, 20, True)
    assert (found.ours_seconds, found.times_as_fast, found.ours_dB) == (5, 4.0, 6.0)
    assert found.difference_dB == pytest.approx(1.0) and found.difference_umse == pytest.approx(-0.01)
    text = race.sentences(found, [1, 2, 5, 8, 16])
    assert "5.000 dB, reached after 20.0 s, at its plateau" in text
    assert "as good after 5.00 s, 4.0 times as fast\n" in text and "6.000 dB, +1.000 dB against" in text


def test_the_verdict_says_where_it_could_not_tell():
    topaz = rows("topaz", (10, 4.0), (20, 5.0))
    worse = race.judge(topaz + rows("ours", (1, 3.0), (2, 4.0)), 20.0)
    assert (worse.ours_seconds, worse.times_as_fast, worse.plateau) == (None, None, False)
    text = race.sentences(worse, [1, 2])
    assert "still gaining when its time was over" in text and "none of 2 trainings of up to 2 s is as good" in text
    first = race.judge(topaz + rows("ours", (1, 6.0), (2, 7.0)), 20.0)
    assert "20.0 times as fast at least, for no shorter one was tried" in race.sentences(first, [1, 2])


def test_crops_are_topaz_s_own_or_the_largest_that_fit():
    assert race.parse(["--out", "x"]).topaz_crop == 800
    assert race.parse(["--out", "x", "--size", "720"]).topaz_crop == 704  # 22 x 32
    small = race.parse(["--out", "x", "--small", "--every", "0.5"])
    assert (small.size, small.every, small.topaz_batch) == (256, 0.5, 2)


def test_a_tiny_race_runs_and_ours_gets_better_the_longer_it_trains(tmp_path):
    words = ["--small", "--device", "cpu", "--threads", "1", "--steps", "6", "90"]
    words += ["--topaz-seconds", "1.5", "--every", "0.5", "--out", tmp_path]
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks/time_to_topaz.py", *map(str, words)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    table = files.read_table(tmp_path / "runs.tsv", race.COLUMNS)
    topaz, ours = ([row for row in table if row["who"] == who] for who in ("topaz", "ours"))
    assert [row["steps"] for row in ours] == ["6", "90"]
    short, long = (float(row["dB"]) for row in ours)
    # Nothing at all, 0 everywhere, has 0 dB.
    assert long > short + 0.3 and long > 1
    assert float(ours[1]["delta_umse"]) < float(ours[0]["delta_umse"]) < 0
    seconds, steps = ([float(row[key]) for row in topaz] for key in ("seconds", "steps"))
    assert seconds == sorted(seconds) and seconds[-1] >= 1.5 > max([0, *seconds[:-1]])
    assert steps == sorted(steps) and steps[0] >= 1
    about = json.loads((tmp_path / "verdict.json").read_text())
    assert about["ours_dB"] == pytest.approx(long, abs=1e-4) and about["machine"].startswith("CPU")
    assert about["topaz_dB"] == pytest.approx(max(float(row["dB"]) for row in topaz), abs=1e-4)
    assert about["topaz_epochs"] == pytest.approx(steps[-1] * 2 / 3)
    assert f"our longest training: {about['ours_dB']:.3f} dB" in done.stdout
    assert (tmp_path / "quality.svg").read_text().lstrip().startswith("<?xml")
    with Image.open(tmp_path / "quality.png") as image:
        assert min(image.size) > 400
