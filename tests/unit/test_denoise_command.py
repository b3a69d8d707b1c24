"""``cryon2n denoise``: many micrographs from files to files, failures, resumption, live folders, several devices."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import mrcfile
import numpy as np
import pytest

from cryon2n import denoise_live, denoise_many, files, mrcio
from cryon2n.denoise_devices import Worker, parse_devices, run_on_devices
from cryon2n.denoise_many import Job
from cryon2n.denoise_model import denoise, denoise_halves, load_model
from cryon2n.errors import InputError
from cryon2n.micrograph_inputs import Micrograph
from making import command, field, white, write_weights


@pytest.fixture
def weights(tmp_path):
    return write_weights(tmp_path / "models" / "tiny" / "weights.safetensors", pixel_size_A="1.5")


def write_micrograph(path, seed=1, shape=(96, 80), pixel_size=1.5):
    path.parent.mkdir(parents=True, exist_ok=True)
    mrcio.write_mrc(path, (500 + 40 * white(seed, shape)).astype(np.float32), pixel_size)
    return path


def write_halves(folder, name, seed, shape=(128, 128)):
    clean = 0.5 * field(seed, shape, 0.1)
    for i, side in enumerate(("_EVN", "_ODD")):
        mrcio.write_mrc(folder / f"{name}{side}.mrc", (clean + white(10 * seed + i, shape)).astype(np.float32), 1.5)


def run(weights, *args, where="cpu"):
    return command("denoise", *args, "--weights", weights, "--device", where, "--precision", "float32")


def summary(folder):
    rows = files.read_table(folder / "summary.tsv", ["micrograph", "status", "sentence"])
    return {row["micrograph"]: row for row in rows}


def test_files_to_files_in_their_order(tmp_path, weights):
    paths = [write_micrograph(tmp_path / "in" / f"m{i}.mrc", i) for i in (3, 1, 2)]
    assert run(weights, *paths, "-o", tmp_path / "out") == 0
    assert list(summary(tmp_path / "out")) == ["m3", "m1", "m2"]
    model = load_model(weights, "cpu", "float32")
    for path in paths:
        found, size = mrcio.read_mrc(tmp_path / "out" / path.name)
        np.testing.assert_allclose(found, denoise(mrcio.read_mrc(path)[0], model), rtol=1e-5, atol=1e-3)
        assert size == pytest.approx(1.5)
        with mrcfile.open(tmp_path / "out" / path.name) as mrc:
            labels = " ".join(label.decode() for label in mrc.header.label)
        assert "denoised, for viewing and picking, not for reconstruction" in labels
    assert "m3.mrc" in (tmp_path / "out" / "micrographs.star").read_text()


def test_one_bad_micrograph_gives_its_sentence_and_the_rest_goes_on(tmp_path, weights, capsys):
    folder = tmp_path / "in"
    write_micrograph(folder / "a.mrc")
    (folder / "b.mrc").write_bytes(b"no micrograph")
    write_micrograph(folder / "c.mrc", shape=(40, 80))
    bad = write_micrograph(folder / "d.mrc", 4)
    with mrcfile.mmap(bad, "r+") as mrc:
        mrc.data[10, 10], mrc.data[20, 20] = np.nan, 1e5
    assert run(weights, folder, "-o", tmp_path / "out") == 1
    rows = summary(tmp_path / "out")
    assert [row["status"] for row in rows.values()] == ["done", "failed", "failed", "done"]
    assert "b.mrc" in rows["b"]["sentence"] and "at least 64 x 64 pixels" in rows["c"]["sentence"]
    assert (rows["d"]["not_finite"], rows["d"]["hot"]) == ("1", "1") and rows["a"]["hot"] == "0"
    said = capsys.readouterr().err
    assert "d: done (4 of 4); pixels replaced: 1 NaN or infinite, 1 hot" in said and "Traceback" not in said
    assert {p.name for p in (tmp_path / "out").glob("*.mrc")} == {"a.mrc", "d.mrc"}
    assert not list((tmp_path / "out").rglob("*.tmp*"))


def test_what_is_done_and_unchanged_is_not_done_again(tmp_path, weights):
    out = tmp_path / "out"
    paths = [write_micrograph(tmp_path / "in" / f"m{i}.mrc", i) for i in range(4)]

    def states(*args):
        assert run(args[0] if args else weights, tmp_path / "in", "-o", out, *args[1:]) == 0
        return [row["status"] for row in summary(out).values()]

    assert states() == ["done"] * 4
    before = {p: (p.stat().st_ino, p.read_bytes()) for p in out.glob("*.mrc")}
    assert states() == ["was done"] * 4
    assert {p: (p.stat().st_ino, p.read_bytes()) for p in out.glob("*.mrc")} == before
    write_micrograph(paths[0], 77)  # another micrograph of that name
    (out / "m1.mrc").write_bytes((out / "m1.mrc").read_bytes()[:-4])
    (out / "records" / "m2.json").write_text("[")
    assert states() == ["done", "done", "done", "was done"]
    assert mrcfile.validate(out / "m1.mrc")
    assert states(write_weights(tmp_path / "other.safetensors", seed=1)) == ["done"] * 4
    assert states(weights, "--dtype", "float16") == ["done"] * 4
    assert states(weights, "--dtype", "float16", "--again") == ["done"] * 4
    assert states(weights, "--dtype", "float16") == ["was done"] * 4


def test_halves_uncertainty_and_noise_alone(tmp_path, weights):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for i in (1, 2, 3):
        write_halves(folder, f"m{i}", i)
    calibration = tmp_path / "c.json"
    assert run(weights, folder, "--calibrate", calibration) == 0
    about = json.loads(calibration.read_text())
    assert about["micrographs"] == 3 and about["weights"] == files.sha256_of(weights) and not out.exists()
    extra = ["--uncertainty", "--calibration", calibration, "--signal-free", "--quicklook"]
    assert run(weights, folder, "-o", out, *extra) == 0
    assert {str(p.relative_to(out)) for p in out.rglob("*.*")} == {
        "summary.tsv", "micrographs.star",
        *(f"{place}m{i}.{end}" for i in (1, 2, 3) for place, end in
          (("", "mrc"), ("records/", "json"), ("uncertainty/", "mrc"), ("quicklook/", "png"))),
    }  # fmt: skip
    a, b = (mrcio.read_mrc(folder / f"m1_{side}.mrc")[0] for side in ("EVN", "ODD"))
    mean, sigma = denoise_halves(a, b, load_model(weights, "cpu", "float32"), factor=about["factor"])
    np.testing.assert_allclose(mrcio.read_mrc(out / "m1.mrc")[0], mean, atol=1e-4)
    np.testing.assert_allclose(mrcio.read_mrc(out / "uncertainty" / "m1.mrc")[0], sigma, rtol=1e-4)
    assert float(summary(out)["m1"]["signal_free_percent"]) > 0


def test_what_does_not_go_together_is_said(tmp_path, weights, capsys):
    path = write_micrograph(tmp_path / "in" / "m.mrc")
    write_halves(tmp_path / "in", "h", 1)
    calibration = tmp_path / "c.json"
    assert run(weights, tmp_path / "in" / "h_*.mrc", "--calibrate", calibration) == 0

    def attempt(text, *args, code=2, w=weights):
        assert run(w, *args) == code
        assert text in capsys.readouterr().err

    attempt("give either -o DIR", path)
    attempt("--calibration: is of use with --uncertainty only", path, "-o", tmp_path / "out", "--calibration", path)
    attempt("--live-minutes 3: wanted more than 0, together with --live", path, "-o", tmp_path, "--live-minutes", 3)
    attempt("--tile 12: wanted 128", path, "-o", tmp_path / "out", "--tile", 12)
    attempt("--pixel-size -1: wanted", path, "-o", tmp_path / "out", "--pixel-size=-1")
    attempt("nothing.mrc", tmp_path / "nothing.mrc", "-o", tmp_path / "out")
    attempt("no device cuda:99", path, "-o", tmp_path / "out", "--devices", "99")
    other = write_weights(tmp_path / "other.safetensors", seed=1)
    uncertain = ["-o", tmp_path / "out", "--uncertainty", "--calibration", calibration]
    attempt("belongs to other weights", tmp_path / "in" / "h_*.mrc", *uncertain, w=other)
    attempt("--uncertainty needs both halves of m", path, *uncertain, code=1)
    attempt("names no whole exposure of h", tmp_path / "in" / "h_*.mrc", "-o", tmp_path / "out", "--full", code=1)
    before = path.read_bytes()
    attempt("no micrographs were found outside", path, "-o", path.parent)
    assert path.read_bytes() == before


def test_whose_pixel_size_it_is(tmp_path, weights):
    """The user's, else the STAR file's, else the header's, where 1 Å means that it is not known."""
    path, out = write_micrograph(tmp_path / "in" / "m.mrc", pixel_size=1.0), tmp_path / "out"
    star = tmp_path / "in" / "micrographs.star"
    star.write_text(f"data_\n\nloop_\n_rlnMicrographName\n_rlnMicrographPixelSize\n{path} 1.4\n")

    def found(source, *args):
        assert run(weights, source, "-o", out, "--again", *args) == 0
        return summary(out)["m"]["pixel_size_A"], summary(out)["m"]["sentence"]

    assert found(path) == ("", "the micrograph's pixel size is not known: denoised as it is")
    assert found(star) == ("1.4", "")
    assert found(path, "--pixel-size", 0.75) == ("0.75", "denoised at 1.5 Å per pixel, the model's, and brought back")
    assert mrcio.read_mrc(out / "m.mrc")[1] == pytest.approx(0.75)
    assert found(star, "--pixel-size", 1, "--rescale", "never") == ("1", "")


def test_an_unforeseen_fault_of_one_file_does_not_end_the_others(tmp_path, weights, monkeypatch):
    real = denoise_many.micrograph_inputs.read

    def read(path, room):
        if path.name == "m1.mrc":
            raise ZeroDivisionError("nobody thought of this")
        return real(path, room)

    for i in range(3):
        write_micrograph(tmp_path / "in" / f"m{i}.mrc", i)
    monkeypatch.setattr(denoise_many.micrograph_inputs, "read", read)
    assert run(weights, tmp_path / "in", "-o", tmp_path / "out") == 1
    rows = summary(tmp_path / "out")
    assert [row["status"] for row in rows.values()] == ["done", "failed", "done"]
    assert "cannot be read (ZeroDivisionError: nobody thought of this)" in rows["m1"]["sentence"]


def test_a_micrograph_for_which_memory_is_too_short_is_told(tmp_path, weights, monkeypatch):
    real = denoise_many.denoise_model.upload

    def upload(image, where):
        if image.shape == (96, 96):
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory")
        return real(image, where)

    for i, width in enumerate((80, 96, 80)):
        write_micrograph(tmp_path / "in" / f"m{i}.mrc", i, (96, width))
    monkeypatch.setattr(denoise_many.denoise_model, "upload", upload)
    assert run(weights, tmp_path / "in", "-o", tmp_path / "out") == 1
    rows = summary(tmp_path / "out")
    assert [row["status"] for row in rows.values()] == ["done", "failed", "done"]
    assert "m1 needs more memory than is free" in rows["m1"]["sentence"]


def test_no_more_than_a_few_micrographs_are_in_memory(tmp_path, weights, monkeypatch):
    for i in range(12):
        write_micrograph(tmp_path / "in" / f"m{i:02d}.mrc", i)
    now, most, lock = set(), [0], threading.Lock()
    real_read, real_write = denoise_many.micrograph_inputs.read, denoise_many.micrograph_outputs.write_pieces

    def read(path, room):
        with lock:
            now.add(path.name)
            most[0] = max(most[0], len(now))
        return real_read(path, room)

    def write(path, *args, **kwargs):
        time.sleep(0.02)  # a slow disk
        real_write(path, *args, **kwargs)
        with lock:
            now.remove(path.name)

    monkeypatch.setattr(denoise_many.micrograph_inputs, "read", read)
    monkeypatch.setattr(denoise_many.micrograph_outputs, "write_pieces", write)
    assert run(weights, tmp_path / "in", "-o", tmp_path / "out") == 0
    assert most[0] <= 3  # one being read or computed, two to be written


def test_a_gpu_warms_up_once_while_the_first_micrograph_is_read_and_not_for_what_is_done(
    tmp_path, weights, monkeypatch
):
    paths = [write_micrograph(tmp_path / "in" / f"m{i}.mrc", i) for i in range(3)]
    events, real_read, real_warm_up = [], denoise_many.micrograph_inputs.read, denoise_many.denoise_model.warm_up
    warm = threading.Event()

    def read(path, room):
        assert warm.wait(10)  # a slow disk
        events.append("read")
        return real_read(path, room)

    def warm_up(model):
        real_warm_up(model)
        events.append("warm")
        warm.set()

    monkeypatch.setattr(denoise_many.micrograph_inputs, "read", read)
    monkeypatch.setattr(denoise_many.denoise_model, "warm_up", warm_up)

    def results(again):
        pipeline = denoise_many.Pipeline(load_model(weights, "cpu"), Job(tmp_path / "out", again=again))
        pipeline.cold = True
        events.clear()
        micrographs = [Micrograph(path.stem, path, None, None, None, str(path)) for path in paths]
        return [found.row.status for found in pipeline.run(micrographs)]

    assert results(again=True) == ["done"] * 3
    assert events == ["warm", "read", "read", "read"]
    monkeypatch.setattr(denoise_many, "DONE_BEFORE", 10)  # however busy the machine is
    assert len(results(again=False)) == 3
    assert events == []


# ---------------------------------------------------------------------------- live


def test_a_file_is_taken_once_it_is_complete(tmp_path):
    whole = write_micrograph(tmp_path / "whole.mrc").read_bytes()
    path, stop, found = tmp_path / "in" / "m.mrc", threading.Event(), []
    path.parent.mkdir()
    path.write_bytes(whole[:20_000])

    def find():
        return [Micrograph(p.stem, p, None, None, None, str(p)) for p in sorted(path.parent.glob("*.mrc"))]

    def follow():
        for micrograph in denoise_live.arriving(find, stop, None, 0.02):
            found.append((micrograph.name, micrograph.full.stat().st_size))

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        time.sleep(0.3)
        assert found == []  # it no longer grows, but its header promises more
        path.write_bytes(whole)
        (path.parent / "n.mrc").write_bytes(whole)
        deadline = time.monotonic() + 20
        while len(found) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        stop.set()
        thread.join()
    assert sorted(found) == [("m", len(whole)), ("n", len(whole))]


def test_an_empty_folder_is_waited_for(tmp_path, weights, monkeypatch, capsys):
    monkeypatch.setattr(denoise_live, "INTERVAL", 0.05)
    (tmp_path / "in").mkdir()
    assert run(weights, tmp_path / "in", "-o", tmp_path / "out", "--live", "--live-minutes", 0.005) == 0
    said = capsys.readouterr().err
    assert said.count("waiting: ") == 1 and "holds no micrographs" in said and "nothing to do" in said


def test_when_the_time_is_over_what_is_incomplete_fails_with_its_reason(tmp_path, weights, monkeypatch):
    monkeypatch.setattr(denoise_live, "INTERVAL", 0.05)
    folder = tmp_path / "in"
    whole = write_micrograph(folder / "a.mrc").read_bytes()
    (folder / "b.mrc").write_bytes(whole[:-100])
    assert run(weights, folder, "-o", tmp_path / "out", "--live", "--live-minutes", 0.05) == 1
    rows = summary(tmp_path / "out")
    assert rows["a"]["status"] == "done" and "b.mrc" in rows["b"]["sentence"]


def test_ctrl_c_ends_a_live_run_well(tmp_path, weights):
    write_micrograph(tmp_path / "in" / "a.mrc")
    out = tmp_path / "out"
    args = ["denoise", tmp_path / "in", "-o", out, "--weights", weights, "--live", "--device", "cpu", "--threads", 1]
    code = "import sys; from cryon2n import cli, denoise_live as d; d.INTERVAL = 0.05; sys.exit(cli.main(sys.argv[1:]))"
    process = subprocess.Popen([sys.executable, "-c", code, *map(str, args)], stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while not (out / "records" / "a.json").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, said
    assert "1 done" in said and "Traceback" not in said and summary(out)["a"]["status"] == "done"


# ---------------------------------------------------------------------------- several devices


def test_devices_by_name():
    assert parse_devices(["cpu", "cpu"]) == ["cpu", "cpu"]
    with pytest.raises(InputError, match="no device cuda:7; there are: cpu"):
        parse_devices(["7"])


def test_several_workers_give_the_same_in_the_same_order_and_one_that_is_killed_is_told(tmp_path, weights):
    found = [
        Micrograph(p.stem, p, None, None, None, str(p))
        for p in (write_micrograph(tmp_path / "in" / f"m{i:02d}.mrc", i) for i in range(30))
    ]
    worker, job = Worker(str(weights), ("float32", None, False, 1), 1), Job(tmp_path / "out")
    results = []
    for result in run_on_devices(["cpu", "cpu"], worker, job, found, threading.Event()):
        results.append(result.row)
        if len(results) == 4:
            os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
    assert [row.micrograph for row in results] == [m.name for m in found]
    done = [row for row in results if row.status == "done"]
    assert len(done) >= 16  # the other went on
    assert all("the worker on cpu was ended by force" in row.sentence for row in results if row not in done)
    model = load_model(weights, "cpu", "float32")
    for row in done[:3]:
        image, _ = mrcio.read_mrc(Path(tmp_path, "in", f"{row.micrograph}.mrc"))
        result, _ = mrcio.read_mrc(Path(tmp_path, "out", f"{row.micrograph}.mrc"))
        np.testing.assert_allclose(result, denoise(image, model), rtol=1e-5, atol=1e-3)


def test_a_worker_that_cannot_begin_says_why(tmp_path):
    worker, job = Worker(str(tmp_path / "none.safetensors"), ("auto", None, False, 1), 1), Job(tmp_path / "out")
    micrograph = Micrograph("m", tmp_path / "m.mrc", None, None, None, "m.mrc")
    with pytest.raises(InputError, match=r"none\.safetensors: cannot read the weights"):
        list(run_on_devices(["cpu"], worker, job, [micrograph], threading.Event()))
