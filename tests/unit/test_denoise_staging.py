"""Images piece by piece: to a device and back, from a file and into one; and where the time of it goes."""

import threading

import numpy as np
import pytest
import torch

from cryon2n import denoise_many, denoise_staging, denoise_timing, files, micrograph_image, micrograph_outputs, mrcio
from cryon2n.denoise_done import DONE
from cryon2n.denoise_many import Job, Pipeline
from cryon2n.denoise_model import load_model
from cryon2n.errors import InputError
from cryon2n.micrograph_inputs import find
from making import command, white, write_weights

CPU = torch.device("cpu")


@pytest.fixture
def far(monkeypatch):
    """The CPU's own memory is treated as a GPU's, in pieces of 7 pixels."""
    monkeypatch.setattr(denoise_staging, "PIECE", 7)
    monkeypatch.setattr(denoise_staging, "is_far", lambda image: True)
    monkeypatch.setattr(denoise_staging, "_own", threading.local())


def test_an_image_goes_there_and_back_through_one_piece_of_memory(far):
    image = white(1, (5, 9))
    there, at, memory = denoise_staging.empty(image.shape, CPU), 0, set()
    for piece in denoise_staging.filling(there):
        piece[:] = image.reshape(-1)[at : at + piece.size]
        at += piece.size
        memory.add(piece.ctypes.data)
    np.testing.assert_array_equal(there.numpy(), image)
    back = [(piece.copy(), piece.ctypes.data) for piece in denoise_staging.fetched(there)]
    assert [piece.size for piece, _ in back] == [7] * 6 + [3]
    np.testing.assert_array_equal(np.concatenate([piece for piece, _ in back]), image.reshape(-1))
    assert memory == {data for _, data in back} and len(memory) == 1


def test_where_the_cpu_reaches_the_image_nothing_is_copied():
    image = denoise_staging.empty((4, 6), CPU)
    for pieces in (denoise_staging.filling(image), denoise_staging.fetched(image)):
        (piece,) = pieces
        assert np.shares_memory(piece, image.numpy()) and piece.shape == (24,)


def test_statistics_are_those_of_numpy(monkeypatch):
    monkeypatch.setattr(denoise_staging, "BAND", 100)
    image = (1e5 + 3 * white(2, (31, 29))).astype(np.float32)
    exact = image.astype(np.float64)
    wanted = image.min(), image.max(), exact.mean(), exact.std()
    np.testing.assert_allclose(denoise_staging.statistics(torch.from_numpy(image)), wanted, rtol=1e-9)
    image[3, 4] = np.nan
    assert not np.isfinite(denoise_staging.statistics(torch.from_numpy(image))).all()


@pytest.mark.parametrize("dtype", ["float32", "float16", "int16", "uint8"])
def test_a_file_is_read_into_pieces_as_it_is_read_whole(tmp_path, far, dtype):
    path, image = tmp_path / "m.mrc", (60 + 9 * white(3, (12, 11))).astype(dtype)
    mrcio.write_mrc(path, image.astype(np.uint8) if dtype == "uint8" else image.astype("float32"), 1.5)
    if dtype in ("float16", "int16"):
        import mrcfile

        with mrcfile.new(path, overwrite=True) as mrc:
            mrc.set_data(image)
    there = denoise_staging.empty(image.shape, CPU)
    found = micrograph_image.read(path, lambda shape: denoise_staging.filling(there))
    assert found.image.shape == (0, 0) and found.header == micrograph_image.read(path).header
    np.testing.assert_array_equal(there.numpy(), micrograph_image.read(path).image)
    np.testing.assert_array_equal(there.numpy(), image.astype(np.float32))


def test_what_is_read_into_pieces_must_have_contrast_in_any_of_them(tmp_path, far, monkeypatch):
    monkeypatch.setattr(micrograph_image, "SAMPLES", 2)  # so that the pixel that differs is not looked at
    path, image = tmp_path / "m.mrc", np.full((8, 8), 3, np.float32)
    there = denoise_staging.empty(image.shape, CPU)
    mrcio.write_mrc(path, image, 1.5)
    with pytest.raises(InputError, match="the image is constant"):
        micrograph_image.read(path, lambda shape: denoise_staging.filling(there))
    image[2, 3] = 4
    mrcio.write_mrc(path, image, 1.5)
    micrograph_image.read(path, lambda shape: denoise_staging.filling(there))
    np.testing.assert_array_equal(there.numpy(), image)


def test_no_room_is_not_taken_for_a_damaged_file(tmp_path):
    mrcio.write_mrc(tmp_path / "m.mrc", white(4, (8, 8)).astype(np.float32), 1.5)

    def room(shape):
        raise MemoryError("CUDA out of memory")

    with pytest.raises(MemoryError, match="CUDA out of memory"):
        micrograph_image.read(tmp_path / "m.mrc", room)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_pieces_make_the_same_file_as_the_whole(tmp_path, monkeypatch, dtype, order):
    monkeypatch.setattr(micrograph_outputs, "CHUNK", 16)
    image = (500 + 40 * white(5, (24, 20))).astype(np.float32)
    header = micrograph_image.MrcFields(bytes(1024), b"", order)
    source = micrograph_image.MicrographImage(np.empty((0, 0), np.float32), 1.5, header)
    numbers, pieces = micrograph_outputs.statistics(image), np.split(image.reshape(-1), [32, 64, 400])
    micrograph_outputs.write(tmp_path / "whole.mrc", image, source, dtype=dtype, label="x")
    about = {"dtype": dtype, "label": "x"}
    micrograph_outputs.write_pieces(tmp_path / "pieces.mrc", image.shape, pieces, numbers, source, **about)
    assert (tmp_path / "pieces.mrc").read_bytes() == (tmp_path / "whole.mrc").read_bytes()
    if dtype == "float16":
        image[23, 19] = 1e6  # in the last piece: nothing is left of those before
        with pytest.raises(InputError, match=r"values reach 1e\+06, float16 holds at most 65504"):
            numbers = micrograph_outputs.statistics(image)
            micrograph_outputs.write_pieces(tmp_path / "bad.mrc", image.shape, pieces, numbers, source, **about)
        assert {p.name for p in tmp_path.iterdir()} == {"whole.mrc", "pieces.mrc"}


def test_many_threads_in_pieces_make_the_same_files(tmp_path, far):
    weights = write_weights(tmp_path / "w.safetensors", pixel_size_A="1.5")
    for i in range(7):
        mrcio.write_mrc(tmp_path / "in" / f"m{i}.mrc", (500 + 40 * white(i, (70, 64 + i))).astype(np.float32), 1.5)
    model = load_model(weights, "cpu", "float32")
    denoise_staging.PIECE = 512
    rows = [f.row for f in Pipeline(model, Job(tmp_path / "pieces"), ahead=3).run(find([tmp_path / "in"]))]
    assert [(row.micrograph, row.status) for row in rows] == [(f"m{i}", DONE) for i in range(7)]
    denoise_staging.is_far = lambda image: False  # both are put back by the fixture
    assert all(f.row.status == DONE for f in Pipeline(model, Job(tmp_path / "whole")).run(find([tmp_path / "in"])))
    for i in range(7):
        pieces, whole = (mrcio.read_mrc(tmp_path / out / f"m{i}.mrc")[0] for out in ("pieces", "whole"))
        np.testing.assert_array_equal(pieces, whole)


# ---------------------------------------------------------------------------- timing


def test_a_lap_within_another_counts_for_itself(monkeypatch):
    walls, cpus = iter([0, 10, 11, 14, 20, 100]), iter([0, 1, 1.5, 2, 4])
    monkeypatch.setattr(denoise_timing.time, "perf_counter", lambda: next(walls))
    monkeypatch.setattr(denoise_timing.time, "thread_time", lambda: next(cpus))
    monkeypatch.setattr(denoise_timing.time, "process_time", lambda: 0.0)
    next(cpus)
    with denoise_timing.recording() as timing:
        with denoise_timing.lap("outer"), denoise_timing.lap("inner"):
            pass
        found = {row["stage"]: row for row in timing.rows()}
    assert [found["outer"][c] for c in denoise_timing.COLUMNS[1:]] == [1, "7", "7", "2.5"]
    assert [found["inner"][c] for c in denoise_timing.COLUMNS[1:]] == [1, "3", "3", "0.5"]
    assert found["whole"]["wall_s"] == "100"


def test_laps_of_all_threads_are_added_and_none_where_nothing_is_recorded():
    def work():
        for _ in range(50):
            with denoise_timing.lap("work"):
                pass

    work()
    with denoise_timing.recording() as timing:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert timing.sums["work"][0] == 200
    work()
    assert timing.sums["work"][0] == 200 and denoise_timing.now() is None


def test_the_command_writes_where_the_time_went(tmp_path, capsys):
    weights = write_weights(tmp_path / "w.safetensors", pixel_size_A="1.5")
    for i in range(3):
        mrcio.write_mrc(tmp_path / "in" / f"m{i}.mrc", (500 + 40 * white(i, (70, 64))).astype(np.float32), 1.5)
    args = [tmp_path / "in", "-o", tmp_path / "out", "--weights", weights, "--timing", tmp_path / "t.tsv"]
    assert command("denoise", *args, "--device", "cpu") == 0
    times = {row["stage"]: int(row["times"]) for row in files.read_table(tmp_path / "t.tsv", denoise_timing.COLUMNS)}
    once = {"find micrographs", "load weights", "whole"}
    thrice = {"read", "repair and normalise", "network", "statistics", "write", "sync and rename", "record"}
    assert {times[stage] for stage in once} == {1} and {times[stage] for stage in thrice} == {3}
    assert command("denoise", *args, "--devices", "cpu", "cpu") == 2
    assert "--timing: tells of one process" in capsys.readouterr().err
    assert denoise_many.denoise_timing.now() is None
