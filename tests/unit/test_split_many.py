"""Splitting many movies in one process: the same results, failures apart, a stopped run goes on."""

import json
import multiprocessing
import os
import shutil
from contextlib import ExitStack

import numpy as np
import pytest
import torch

from cryon2n import files, gain, mrcio, split_many
from cryon2n.movies import TRANSFORMS
from cryon2n.split import SplitSettings
from making import command, field, frames, write_movie

N, SHAPE = 6, (128, 160)
NAMES = ("a", "b", "c")


def counts(seed):
    path = np.linspace(0, 1, N)[:, None] * np.array([3.0, -2.0])
    return frames(seed, 8.0 * (1 + 0.2 * field(seed, SHAPE)), path)


@pytest.fixture(scope="module")
def entry(tmp_path_factory):
    """Three movies of one camera, of 4 to 6 frames, and its gain; a movie that is cut off."""
    folder = tmp_path_factory.mktemp("entry")
    reference = np.exp(0.03 * np.random.default_rng(0).standard_normal(SHAPE)).astype(np.float32)
    mrcio.write_mrc(folder / "gain.mrc", reference, 1.5)
    for seed, name in enumerate(NAMES):
        write_movie(folder / f"{name}.mrc", counts(seed)[: N - seed])
    write_movie(folder / "other.mrc", counts(9)[:, :100, :100])
    whole = (folder / "a.mrc").read_bytes()
    (folder / "short.mrc").write_bytes(whole[:-1000])
    return folder


def many(entry, out, *names, settings=("gain_check=off",), more=()):
    """Split movies of the entry; returns the exit code."""
    chosen = [x for s in settings for x in ("--set", s)]
    paths = [entry / f"{name}.mrc" for name in names]
    return command(
        "split-halves", "--movie", *paths, "--gain", entry / "gain.mrc", "--out-dir", out, "--device", "cpu",
        "--summary", out / "summary.json", *chosen, *more,
    )  # fmt: skip


def record(out, name):
    return json.loads((out / f"{name}.json").read_text())


def states(out):
    found = json.loads((out / "summary.json").read_text())["movies"]
    return {os.path.basename(path): about["state"] for path, about in found.items()}


@pytest.mark.parametrize("settings", [("gain_check=off",), ("gain_check=off", "bin=2", "groups=4", "frames='0-3'")])
def test_many_movies_give_bit_for_bit_what_single_ones_give(entry, tmp_path, settings):
    assert many(entry, tmp_path / "many", *NAMES, settings=settings) == 0
    for name in NAMES:
        chosen = [x for s in settings for x in ("--set", s)]
        single = tmp_path / "single" / name
        assert command(
            "split-halves", "--movie", entry / f"{name}.mrc", "--gain", entry / "gain.mrc", "--out", single,
            "--device", "cpu", *chosen,
        ) == 0  # fmt: skip
    names = sorted(path.name for path in (tmp_path / "single").iterdir())
    assert sorted(path.name for path in (tmp_path / "many").iterdir() if path.name != "summary.json") == names
    assert len(names) == len(NAMES) * (4 if len(settings) > 1 else 3)
    for name in names:
        pair = [tmp_path / kind / name for kind in ("single", "many")]
        if name.endswith(".json"):
            one, other = ({**json.loads(p.read_text()), "seconds": None} for p in pair)
            assert one == other
        else:
            assert pair[0].read_bytes() == pair[1].read_bytes()


def test_several_processes_give_the_same(entry, tmp_path, capsys):
    one, two = tmp_path / "one", tmp_path / "two"
    assert many(entry, one, *NAMES) == 0
    assert many(entry, two, *NAMES, "short", more=("--processes", 2, "--threads", 2)) == 2
    assert states(two) == {"a.mrc": "split", "b.mrc": "split", "c.mrc": "split", "short.mrc": "failed"}
    assert "1 of 4 movies failed" in capsys.readouterr().err
    for name in NAMES:
        for side in "ab":
            assert (one / f"{name}_{side}.mrc").read_bytes() == (two / f"{name}_{side}.mrc").read_bytes()
    # Again: nothing is left to be done but what failed.
    assert many(entry, two, *NAMES, more=("--processes", 3)) == 0
    assert set(states(two).values()) == {"was done"}


def test_a_process_that_is_ended_by_force_is_told_and_the_others_go_on(entry, tmp_path, monkeypatch, capsys):
    begin = multiprocessing.context.SpawnProcess.start

    def start_and_kill_the_second(process):
        number = process._args[0]
        begin(process)
        if number == 2:
            process.kill()

    monkeypatch.setattr(multiprocessing.context.SpawnProcess, "start", start_and_kill_the_second)
    assert many(entry, tmp_path / "out", *NAMES, more=("--processes", 2)) == 2
    assert "b.mrc: its process was ended by force" in capsys.readouterr().err
    assert states(tmp_path / "out") == {"a.mrc": "split", "b.mrc": "failed", "c.mrc": "split"}
    assert many(entry, tmp_path / "out", *NAMES) == 0


def test_the_checksums_are_those_of_the_files(entry, tmp_path):
    assert many(entry, tmp_path, "a", "b") == 0
    for name in ("a", "b"):
        about = record(tmp_path, name)
        wanted = {x: files.sha256_of(entry / x) for x in (f"{name}.mrc", "gain.mrc")}
        assert about["inputs"] == wanted
        for side in "ab":
            assert about[side]["sha256"] == files.sha256_of(tmp_path / f"{name}_{side}.mrc")


@pytest.mark.parametrize("order", [("short", "a", "gone", "b"), ("a", "other", "b"), ("short",)])
def test_a_movie_that_fails_is_named_and_the_others_go_on(entry, tmp_path, capsys, order):
    assert many(entry, tmp_path, *order) == 2
    good = {"a", "b"} & set(order)
    assert {path.stem for path in tmp_path.glob("*.json")} - {"summary"} == good
    bad = [name for name in order if name not in good]
    wanted = {"short": "copy or fetch it again", "gone": "no such file", "other": "the gain reference has shape"}
    lines = capsys.readouterr().err.splitlines()
    for name in bad:
        assert sum(f"{name}.mrc" in line and wanted[name] in line and "error: " in line for line in lines) == 1
    assert f"{len(bad)} of {len(order)} movies failed" in lines[-1]
    assert all(f"{name}.mrc" in lines[-1] for name in bad)
    assert states(tmp_path) == {f"{x}.mrc": "split" if x in good else "failed" for x in order}


def test_a_movie_that_disagrees_with_the_gain_does_not_stop_the_others(entry, tmp_path, capsys):
    # Counts behind the gain: scene / gain.  Turned by half, those of movie "turned" do not fit it.
    reference = mrcio.read_mrc(entry / "gain.mrc")[0]
    rng = np.random.default_rng(4)
    shutil.copy(entry / "gain.mrc", tmp_path / "gain.mrc")
    for name, turn in (("good", "none"), ("turned", "rotate_180"), ("late", "none")):
        write_movie(tmp_path / f"{name}.mrc", rng.poisson(40 / TRANSFORMS[turn](reference), (N, *SHAPE)).astype("u1"))
    out = tmp_path / "out"
    assert many(tmp_path, out, "good", "turned", "late", settings=()) == 2
    assert states(out) == {"good.mrc": "split", "turned.mrc": "failed", "late.mrc": "split"}
    assert "reference_transform: rotate_180" in capsys.readouterr().err


def test_a_full_disk_is_the_failure_of_its_movie(entry, tmp_path, monkeypatch, capsys):
    write = split_many.halves.write_halves

    def failing(prefix, *rest):
        if prefix.name == "a":
            raise OSError(28, "No space left on device")
        write(prefix, *rest)

    monkeypatch.setattr(split_many.halves, "write_halves", failing)
    assert many(entry, tmp_path, *NAMES) == 2
    assert states(tmp_path) == {"a.mrc": "failed", "b.mrc": "split", "c.mrc": "split"}
    assert "a.mrc: [Errno 28] No space left on device; check the disk" in capsys.readouterr().err


# ---------------------------------------------------------------------------- going on where it stopped


@pytest.fixture(scope="module")
def split_once(entry, tmp_path_factory):
    out = tmp_path_factory.mktemp("once")
    assert many(entry, out, "a", "b") == 0
    return out


@pytest.fixture
def again(entry, split_once, tmp_path, monkeypatch):
    """A copy of entry and halves, and a function that splits again and returns the movies that were split."""
    shutil.copytree(entry, tmp_path / "entry")  # keeps the times of last change
    shutil.copytree(split_once, tmp_path / "out")

    def run(*names, **how):
        assert many(tmp_path / "entry", tmp_path / "out", *names, **how) == 0
        return {name[0] for name, state in states(tmp_path / "out").items() if state == "split"}

    return run


def test_what_is_done_is_not_done_again(again, tmp_path, capsys):
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.mrc")}
    assert again("a", "b") == set()
    assert "2 of 2 movies are split already" in capsys.readouterr().err
    assert again("a", "b", "c") == {"c"}
    assert {path: path.stat().st_mtime_ns for path in before} == before


def touch(path):
    os.utime(path, ns=(1, 1))


def change_a_byte(path, at=-5):
    """Change one byte; size and time of last change stay."""
    stat, data = path.stat(), bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def rewrite(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda folder: touch(folder / "entry" / "a.mrc"), ""),  # the same bytes, copied anew
        (lambda folder: [touch(folder / "entry" / "a.mrc"), write_movie(folder / "entry" / "a.mrc", counts(7))], "a"),
        (lambda folder: write_movie(folder / "entry" / "b.mrc", counts(1)), "b"),  # one frame more
        (lambda folder: mrcio.write_mrc(folder / "entry" / "gain.mrc", np.ones(SHAPE, np.float32), 1.5), "ab"),
        (lambda folder: (folder / "out" / "a_b.mrc").unlink(), "a"),
        (lambda folder: change_a_byte(folder / "out" / "a_a.mrc"), "a"),
        (lambda folder: (folder / "out" / "b.json").unlink(), "b"),
        (lambda folder: (folder / "out" / "b.json").write_text("{"), "b"),
        (lambda folder: (folder / "out" / "b.json").write_text("[]"), "b"),
        (lambda folder: rewrite(folder / "out" / "a.json", made_with=None), "a"),
        (lambda folder: rewrite(folder / "out" / "a.json", inputs={}), "a"),
    ],
    ids=["touched", "changed", "longer", "gain", "no half", "damaged half", "no record", "torn", "list", "none", "0"],
)  # fmt: skip
def test_what_changed_is_done_again(again, tmp_path, change, wanted):
    change(tmp_path)
    assert again("a", "b") == set(wanted)
    assert again("a", "b") == set()


def test_other_settings_or_other_code_do_it_again(again, monkeypatch):
    assert again("a", "b", settings=("gain_check=off", "bin=2")) == {"a", "b"}
    assert again("a", "b", settings=("gain_check=off", "bin=2")) == set()
    monkeypatch.setattr("cryon2n.codeversion.code_version", lambda *modules, **_: "another")
    assert again("a", "b", settings=("gain_check=off", "bin=2")) == {"a", "b"}


def test_arguments_that_contradict_each_other_are_refused(entry, tmp_path, capsys):
    movies = ["split-halves", "--movie", entry / "a.mrc", entry / "b.mrc"]
    assert command(*movies, "--out", tmp_path / "m") == 2
    assert "--out takes one movie" in capsys.readouterr().err
    (tmp_path / "x").mkdir()
    shutil.copy(entry / "a.mrc", tmp_path / "x" / "a.mrc")
    assert command("split-halves", "--movie", entry / "a.mrc", tmp_path / "x/a.mrc", "--out-dir", tmp_path) == 2
    assert "several movies would be written as a" in capsys.readouterr().err
    for wrong in ([], ["--out", tmp_path / "m", "--out-dir", tmp_path]):
        with pytest.raises(SystemExit):
            command(*movies, *wrong)


# ---------------------------------------------------------------------------- on a GPU, and on tensors as there


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32])
def test_frames_read_ahead_for_a_gpu_are_those_of_the_file(tmp_path, dtype):
    data = np.random.default_rng(0).integers(0, 60000 if dtype == np.uint16 else 100, (5, 64, 70)).astype(dtype)
    write_movie(tmp_path / "m.mrc", data)
    opener = split_many.Opener(split_many.References(), SplitSettings(), torch.device("cuda"))
    with ExitStack() as stack:
        raw = opener.open(tmp_path / "m.mrc", stack)
    for index, frame in enumerate(data):
        np.testing.assert_array_equal(raw.corrected(index).cpu().numpy(), frame.astype(np.float32))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_splits_as_a_cpu_does(entry, tmp_path):
    assert many(entry, tmp_path / "cpu", *NAMES) == 0
    assert many(entry, tmp_path / "cuda", *NAMES, more=("--device", "cuda")) == 0
    for name in NAMES:
        one, other = (record(tmp_path / kind, name) for kind in ("cpu", "cuda"))
        np.testing.assert_allclose(one["trajectory_A"], other["trajectory_A"], atol=1e-3)
        assert one["inputs"] == other["inputs"] and one["valid"] == other["valid"]


@pytest.mark.parametrize("transform", ["none", "flip_y", "rotate_180"])
def test_the_gain_check_says_the_same_of_tensors_and_of_arrays(transform):
    rng = np.random.default_rng(2)
    reference = np.exp(0.03 * rng.standard_normal(SHAPE)).astype(np.float32)
    reference[5, 7] = 0
    dark = rng.uniform(0, 2, SHAPE).astype(np.float32)
    stack = rng.poisson(20 / np.maximum(reference, 0.1) + dark, (N, *SHAPE)).astype(np.uint8)
    stack[:, 30, 40] = 255
    one = gain.check_gain([stack], reference, dark, transform)
    other = gain.check_gain([[torch.from_numpy(frame) for frame in stack]], reference, dark, transform)
    assert (one.verdict, one.best) == (other.verdict, other.best)
    assert one.verdict == ("agrees" if transform == "none" else "turned")
    for name, slope in one.slopes.items():
        if slope is not None:
            assert other.slopes[name].value == pytest.approx(slope.value, abs=1e-5)
            assert other.slopes[name].error == pytest.approx(slope.error, rel=1e-4)
