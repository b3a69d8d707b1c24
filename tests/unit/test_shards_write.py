"""Writing shards: every pixel used, values kept, no leaks, bad areas left out, the same bytes whatever happens."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from conftest import ROOT
from cryon2n import files, mrcio, pair, shards, shards_write
from cryon2n.errors import InputError
from cryon2n.shards_tiles import ShardSettings, tile_starts
from making import command, field, white, write_pair, write_pairs

SETTINGS = ShardSettings(patch=48)
OUTPUTS = ("train_a.npy", "train_b.npy", "manifest.json")


def write(folder, records, settings=SETTINGS, val=(), test=(), threads=2):
    return shards_write.write_shards(records, {"val": list(val), "test": list(test)}, folder, settings, threads)


def contents(folder):
    return {name: (folder / name).read_bytes() for name in OUTPUTS}


def pixels(path):
    """The pixels of a half as they lie in its file, behind the 1024 bytes of the header; changes change the file."""
    return np.memmap(path, np.float32, "r+", 1024, (128, 160))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# ---------------------------------------------------------------------------- which patches


@given(begin=st.integers(0, 500), length=st.integers(1, 3000), patch=st.integers(1, 1024), data=st.data())
def test_tiles_cover_everything_within_bounds_and_overlap_enough(begin, length, patch, data):
    overlap = data.draw(st.integers(0, patch - 1))
    if length < patch:
        with pytest.raises(ValueError, match="holds no patch"):
            tile_starts(begin, begin + length, patch, overlap)
        return
    starts = tile_starts(begin, begin + length, patch, overlap)
    assert starts[0] == begin and starts[-1] + patch == begin + length
    steps = np.diff(starts)
    assert (steps > 0).all() and (patch - steps >= overlap).all()
    # The fewest: one patch less could not cover the length even at the least overlap.
    assert len(starts) == 1 or patch + (len(starts) - 2) * (patch - overlap) < length


@hypothesis_settings(deadline=None, max_examples=20)
@given(
    shape=st.tuples(st.integers(64, 200), st.integers(64, 200)),
    patch=st.integers(32, 64),
    overlap=st.integers(0, 31),
    threads=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_patches_are_the_normalised_halves_to_the_bit(tmp_path_factory, shape, patch, overlap, threads, seed):
    folder = tmp_path_factory.mktemp("bits")
    size = [(shape[0], shape[1]), (shape[1], shape[0])]
    records = [
        write_pair(folder, f"m{k}", 300 + 7 * white(seed + k, s), 20 + 7 * white(seed + 9 + k, s), n_frames=(2, 3))
        for k, s in enumerate(size)
    ]
    manifest = write(folder / "s", records, ShardSettings(patch, overlap), threads=threads)
    halves = {x.name: x for x in map(pair.load_pair, records)}
    for side in "ab":
        array = shards.open_array(folder / "s" / "manifest.json", manifest, side)
        covered = {name: np.zeros(half.a.shape, bool) for name, half in halves.items()}
        for image, entry in zip(array, manifest["patches"], strict=True):
            own, y, x = halves[entry["micrograph"]], entry["y"], entry["x"]
            part = (slice(y, y + patch), slice(x, x + patch))
            np.testing.assert_array_equal(image, getattr(own, side)[part].astype(np.float16))
            assert (entry["noise_var_a"], entry["noise_var_b"]) == own.noise_var
            covered[own.name][part] = True
        assert all(x.all() for x in covered.values())


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.uint8, np.float16])
def test_halves_in_other_number_types_give_the_same_as_when_they_are_loaded(tmp_path, dtype):
    (record,) = write_pairs(tmp_path, n=1)
    counts = np.random.default_rng(1).poisson(150, (128, 160)).astype(dtype)  # beyond 127
    mrcio.write_mrc(tmp_path / "mic0_a.mrc", counts, 1.5)
    entry = write(tmp_path / "s", [record])["patches"][5]
    part = (slice(entry["y"], entry["y"] + 48), slice(entry["x"], entry["x"] + 48))
    wanted = pair.load_pair(record).a[part].astype(np.float16)
    np.testing.assert_array_equal(np.load(tmp_path / "s" / "train_a.npy")[5], wanted)


def test_rounding_is_to_nearest_even_over_the_whole_range(tmp_path):
    # All of float16 with every midpoint, where rounding must decide.
    half = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    values = np.concatenate([half, (half[1:] + half[:-1]) / 2])
    a = np.resize(np.concatenate([values, -values]), (352, 384)).astype(np.float32)  # 126974 values and 8194 again
    record = write_pair(tmp_path, "m", a, white(1, a.shape))
    about = files.read_json(record)
    about["a"] |= {"offset": 0.0, "scale": 1.0}
    files.write_json(record, about)
    write(tmp_path / "s", [record], ShardSettings(patch=352, max_bad=1.0))  # many squares are all but constant
    np.testing.assert_array_equal(np.load(tmp_path / "s" / "train_a.npy")[0], a[:, :352].astype(np.float16))


def test_patches_stay_inside_the_valid_region(tmp_path):
    record = write_pair(tmp_path, "m", white(1), white(2), valid=[5, 120, 0, 150])
    for entry in write(tmp_path / "s", [record])["patches"]:
        assert entry["y"] >= 5 and entry["y"] + 48 <= 120 and entry["x"] + 48 <= 150


def test_the_manifest_tells_what_the_halves_are(tmp_path):
    records = write_pairs(tmp_path / "h", n=2)
    for record in records:
        about = files.read_json(record)
        about["a"] |= {"frames": [0, 2, 4], "n_frames": 3, "dose_e_per_A2": 3.0}
        about["b"] |= {"frames": [1, 3], "n_frames": 2, "dose_e_per_A2": 2.0 if record == records[0] else 2.5}
        files.write_json(record, about)
    manifest = write(tmp_path / "s", records)
    assert manifest["groups"] == {
        "a": {"which": "0:5:2", "n_frames": 3, "dose_e_per_A2": 3.0},
        "b": {"which": "1:4:2", "n_frames": 2, "dose_e_per_A2": None},
    }
    for record, entry in zip(records, manifest["micrographs"], strict=True):
        about = files.read_json(record)
        assert entry["a"] == about["a"] and entry["producer"] == about["producer"]
        assert entry["record_sha256"] == files.sha256_of(record)


# ---------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("val", "test", "name"), [(["mic0"], [], "mic0"), ([], ["mic1"], "mic1"), (["other"], ["other"], "other")]
)
def test_a_micrograph_in_two_splits_is_refused(tmp_path, val, test, name):
    records = write_pairs(tmp_path / "h", n=2)
    with pytest.raises(InputError, match=f"^{name}: "):
        write(tmp_path / "s", records, val=val, test=test)
    assert not (tmp_path / "s").exists()


def test_a_micrograph_named_twice_is_refused(tmp_path):
    (record,) = write_pairs(tmp_path / "h", n=1)
    with pytest.raises(InputError, match="mic0"):
        write(tmp_path / "s", [record, record])


def test_differing_pixel_sizes_and_small_regions_are_refused(tmp_path):
    one, other = write_pair(tmp_path, "one", white(1), white(2)), write_pair(tmp_path, "o", white(3), white(4), 2.0)
    with pytest.raises(InputError, match="pixel sizes differ"):
        write(tmp_path / "s", [one, other])
    with pytest.raises(InputError, match="128 x 160 px holds no patch of 1024"):
        write(tmp_path / "s", [one], ShardSettings())


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"patch": 64, "overlap": 64}, "patch of 32 or more"),
        ({"patch": 16}, "patch of 32 or more"),
        ({"max_bad": 1.5}, "max_bad 1.5"),
    ],
)
def test_settings_out_of_range_are_refused(values, says):
    with pytest.raises(InputError, match=says):
        ShardSettings(**values)


@pytest.mark.parametrize("value", [1e7, -1e7, np.nan, np.inf])
@pytest.mark.parametrize("side", "ab")
def test_values_beyond_float16_are_refused_and_nothing_is_left(tmp_path, value, side):
    records = write_pairs(tmp_path, n=3)
    path = tmp_path / f"mic1_{side}.mrc"
    pixels(path)[70, 3] = value
    with pytest.raises(InputError, match=rf"mic1_{side}\.mrc: NaN, infinity, .* wanted repaired pixels"):
        write(tmp_path / "s", records)
    assert names(tmp_path / "s") == []


def test_the_largest_float16_is_taken_and_the_next_number_is_not(tmp_path):
    a = white(1)
    a[60, 60] = 65504
    record = write_pair(tmp_path, "m", a, white(2))
    about = files.read_json(record)
    about["a"] |= {"offset": 0.0, "scale": 1.0}
    files.write_json(record, about)
    write(tmp_path / "s", [record])
    assert np.load(tmp_path / "s" / "train_a.npy").max() == 65504
    a[60, 60] = np.nextafter(np.float32(65504), np.float32(np.inf))
    mrcio.write_mrc(tmp_path / "m_a.mrc", a, 1.5)
    with pytest.raises(InputError, match="wanted repaired pixels"):
        write(tmp_path / "s", [record])


@pytest.mark.parametrize("shape", [(128, 150), (2, 128, 160)])
def test_halves_that_are_not_those_of_the_record_are_refused(tmp_path, shape):
    (record,) = write_pairs(tmp_path, n=1)
    mrcio.write_mrc(tmp_path / "mic0_b.mrc", np.zeros(shape, np.float32), 1.5)
    with pytest.raises(InputError, match=r"mic0_b\.mrc: holds .* pixels, but its record mic0\.json says 128 x 160"):
        write(tmp_path / "s", [record])
    (tmp_path / "mic0_b.mrc").unlink()
    with pytest.raises(InputError, match=r"mic0_b\.mrc: no such file"):
        write(tmp_path / "s", [record])


def test_a_disk_that_is_too_small_is_said_before_anything_is_written(tmp_path, monkeypatch):
    import shutil

    records = write_pairs(tmp_path / "h", n=1)
    # Two arrays of a header and 3 x 4 patches of 48 x 48 x 2 bytes: 2 x (4096 + 12 x 4608) = 118784.
    for free, fits in ((118783, False), (118784, True)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: shutil._ntuple_diskusage(10**9, 0, free))
        if fits:
            write(tmp_path / "s", records)
        else:
            with pytest.raises(InputError, match="GB are still to be written; free space"):
                write(tmp_path / "s", records)
            assert names(tmp_path / "s") == []


def test_a_disk_that_fills_up_is_said_and_nothing_is_left(tmp_path, monkeypatch):
    import errno

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    records = write_pairs(tmp_path / "h", n=3)
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(InputError, match="the disk is full"):
        write(tmp_path / "s", records)
    assert names(tmp_path / "s") == []


def test_two_writers_do_not_share_a_folder(tmp_path):
    import fcntl

    records = write_pairs(tmp_path / "h", n=1)
    (tmp_path / "s").mkdir()
    with open(tmp_path / "s" / ".shards.journal", "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process is writing shards there"):
            write(tmp_path / "s", records)
    write(tmp_path / "s", records)


# ---------------------------------------------------------------------------- the same bytes


def test_the_same_input_gives_the_same_bytes_whatever_the_threads_and_the_place(tmp_path, cryon2n):
    records = write_pairs(tmp_path / "h", n=5)
    words = ["write-shards", "--train", *records, "--val", "v", "--set", "patch=48", "--set", "overlap=7"]
    cryon2n(*words, "--out", tmp_path / "s0")
    for threads in (1, 2, 7):
        assert command(*words, "--out", tmp_path / f"s{threads}", "--threads", threads) == 0
        assert contents(tmp_path / f"s{threads}") == contents(tmp_path / "s0")
    assert names(tmp_path / "s0") == sorted(OUTPUTS)
    assert command(*words, "--out", tmp_path / "s8", "--threads", 0) == 2


# ---------------------------------------------------------------------------- killed

# Everything that changes a file goes through one of these; the process dies before the n-th of them.
KILLED = """
import os, shutil, signal, sys
from cryon2n import cli, shards_write
folder, old, step, *words = sys.argv[1:]
def die_at(n):
    seen = [0]
    for name in ("pwrite", "write", "ftruncate", "replace", "fsync", "open", "unlink"):
        def wrapped(*args, real=getattr(os, name), **kwargs):
            seen[0] += 1
            if seen[0] == n:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)
        setattr(os, name, wrapped)
for n in range(1, 500, int(step)):
    out = f"{folder}/{n}"
    if n % 2:
        shutil.copytree(old, out)
    child = os.fork()
    if child == 0:
        die_at(n)
        os._exit(cli.main([*words, "--out", out]))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code != -signal.SIGKILL:
        sys.exit(code)
sys.exit(4)
"""


@pytest.mark.parametrize(("threads", "step"), [(1, 1), (3, 3)])
def test_a_kill_at_any_moment_leaves_nothing_wrong_that_passes_and_the_next_run_ends_it(tmp_path, threads, step):
    records = write_pairs(tmp_path / "h", n=3)
    write(tmp_path / "whole", records)
    write(tmp_path / "old", write_pairs(tmp_path / "oldh", n=3, first=7))  # same shape, other pixels
    whole, old = contents(tmp_path / "whole"), contents(tmp_path / "old")
    words = ["write-shards", "--set", "patch=48", "--threads", str(threads), "--train", *map(str, records)]
    (tmp_path / "k").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", KILLED, tmp_path / "k", tmp_path / "old", str(step), *words],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = {"old": 0, "refused": 0, "whole": 0, "resumed": 0}
    for folder in (tmp_path / "k").iterdir():
        journal = folder / ".shards.journal"
        found["resumed"] += journal.exists() and b"\n" in journal.read_bytes()
        try:
            shards.read_manifest(folder / "manifest.json")
        except InputError:
            found["refused"] += 1
        else:
            found["old" if contents(folder) == old else "whole"] += 1
            assert contents(folder) in (old, whole)
        write(folder, records)
        assert contents(folder) == whole and names(folder) == sorted(OUTPUTS)
    assert all(found.values()) and found["resumed"] > 6 // step


def test_the_real_command_killed_again_and_again_goes_on_and_ends_with_the_same_bytes(tmp_path):
    records = write_pairs(tmp_path / "h", n=12, shape=(512, 512))
    settings = ShardSettings(patch=64, overlap=32)
    write(tmp_path / "whole", records, settings)
    journal, kept = tmp_path / "s" / ".shards.journal", []
    words = ["--set", "patch=64", "--set", "overlap=32", "--threads", "1", "--out", str(tmp_path / "s")]
    for _ in range(4):
        process = subprocess.Popen(
            [sys.executable, "-m", "cryon2n", "write-shards", "--train", *map(str, records), *words],
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        wanted = (kept[-1] if kept else 0) + 1
        while process.poll() is None:
            if journal.exists() and journal.read_bytes().count(b"\n") >= wanted:
                process.kill()
            time.sleep(0.002)
        process.communicate()
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL
        with pytest.raises(InputError):
            shards.read_manifest(tmp_path / "s" / "manifest.json")
        kept.append(journal.read_bytes().count(b"\n"))
    assert kept and kept == sorted(set(kept))
    write(tmp_path / "s", records, settings)
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")


def interrupted(folder, records, settings=SETTINGS, after=2):
    """Begin to write, with one thread, and end as a kill would after some micrographs."""
    real = shards_write.write_micrograph

    def stop(task, index, *rest):
        if index >= after:
            raise KeyboardInterrupt
        return real(task, index, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards_write, "write_micrograph", stop)
        with pytest.raises(KeyboardInterrupt):
            write(folder, records, settings, threads=1)
    assert (folder / ".shards.journal").read_bytes().count(b"\n") == after


def written_by(folder, records, settings=SETTINGS, **rest):
    """Write, and return the names of the micrographs whose patches were written this time."""
    real, written = shards_write.shards_cut.write_half, []

    def note(task, side, *args):
        written.append((task.record["micrograph"], side))
        return real(task, side, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards_write.shards_cut, "write_half", note)
        write(folder, records, settings, **rest)
    return sorted({name for name, _ in written})


def test_only_what_is_not_there_is_written(tmp_path):
    records = write_pairs(tmp_path / "h", n=4)
    write(tmp_path / "whole", records)
    interrupted(tmp_path / "s", records)
    assert written_by(tmp_path / "s", records) == ["mic2", "mic3"]
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def touch_half(folder):
    path = folder / "h" / "mic1_b.mrc"
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))


def new_noise(folder):
    write_pair(folder / "h", "mic1", field(1) + white(71), field(1) + white(72))


@pytest.mark.parametrize(
    ("change", "again"),
    [
        (touch_half, ["mic1", "mic2", "mic3"]),
        (new_noise, ["mic1", "mic2", "mic3"]),
        # Bytes that did not reach the disk: a patch of mic0 in b (12 patches of 4608 bytes each in a micrograph) …
        (lambda folder: flip(folder / "s" / ".train_b.part.npy", 4096 + 12 * 4608 - 1), ["mic0", "mic2", "mic3"]),
        (lambda folder: flip(folder / "s" / ".train_a.part.npy", 4096 + 12 * 4608), ["mic1", "mic2", "mic3"]),
        # … a whole array, the journal's end, all of it.
        (lambda folder: (folder / "s" / ".train_a.part.npy").unlink(), ["mic0", "mic1", "mic2", "mic3"]),
        (
            lambda folder: os.truncate(
                folder / "s" / ".shards.journal", (folder / "s" / ".shards.journal").stat().st_size - 1
            ),
            ["mic1", "mic2", "mic3"],
        ),
        (lambda folder: flip(folder / "s" / ".shards.journal", 0), ["mic0", "mic1", "mic2", "mic3"]),
    ],
)
def test_what_an_earlier_run_left_is_believed_only_if_it_is_right(tmp_path, change, again):
    records = write_pairs(tmp_path / "h", n=4)
    interrupted(tmp_path / "s", records)
    change(tmp_path)
    assert written_by(tmp_path / "s", records) == again
    write(tmp_path / "whole", records)
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")


@pytest.mark.parametrize("settings", [ShardSettings(64), ShardSettings(48, 5), ShardSettings(48, max_bad=0.5)])
def test_other_settings_begin_anew(tmp_path, settings):
    records = write_pairs(tmp_path / "h", n=3)
    interrupted(tmp_path / "s", records)
    assert written_by(tmp_path / "s", records, settings) == ["mic0", "mic1", "mic2"]
    write(tmp_path / "whole", records, settings)
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")


def test_another_list_of_micrographs_keeps_what_is_in_its_place(tmp_path):
    records = write_pairs(tmp_path / "h", n=4)
    interrupted(tmp_path / "s", records, after=3)
    # mic1 moves to the front's second place, where mic1 was; mic2 moves up.
    fewer = [records[0], records[2], records[3]]
    assert written_by(tmp_path / "s", fewer) == ["mic2", "mic3"]
    write(tmp_path / "whole", fewer)
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")


# ---------------------------------------------------------------------------- bad areas


def write_with_dead_area(folder, value=0.0, sides="ab", area=(slice(0, 48), slice(0, 64)), n=2):
    """Pairs of 128 x 160 px of which mic1 is constant in an area."""
    records = []
    for k in range(n):
        images = {side: 50 + white(10 * k + i) for i, side in enumerate("ab")}
        for side in sides if k == 1 else "":
            images[side][area] = value
        records.append(write_pair(folder, f"mic{k}", images["a"], images["b"]))
    return records


# Patches of 64 px begin at y 0, 64 and at x 0, 48, 96.  The area is 3 of the 4 rows of squares of the patch at
# (0, 0), 0.75 of it, and columns 48 to 64 of the patch at (0, 48): 0.75 x 16/64 = 0.1875.
SHARES = {(0, 0): 0.75, (0, 48): 0.1875}


@pytest.mark.parametrize("sides", ["a", "b", "ab"])
@pytest.mark.parametrize("value", [0.0, 50.0, 5e6])
@pytest.mark.parametrize(("max_bad", "left_out"), [(0.05, [(0, 0), (0, 48)]), (0.2, [(0, 0)]), (0.75, [])])
def test_dead_and_saturated_areas_are_left_out_and_counted(tmp_path, sides, value, max_bad, left_out):
    records = write_with_dead_area(tmp_path, value, sides)
    if value > 65504:  # the units of the rest, which a saturated area must not make
        for record in records:
            about = files.read_json(record)
            for side in "ab":
                about[side] |= {"offset": 50.0, "scale": 1.0}
            files.write_json(record, about)
        if len(left_out) < 2:
            with pytest.raises(InputError, match="wanted repaired pixels"):
                write(tmp_path / "s", records, ShardSettings(64, max_bad=max_bad))
            return
    manifest = write(tmp_path / "s", records, ShardSettings(64, max_bad=max_bad))
    entries = manifest["micrographs"]
    assert [e["patches"] for e in entries] == [6, 6 - len(left_out)] and manifest["left_out"] == len(left_out)
    assert entries[1]["left_out"] == [[*place, SHARES[place]] for place in left_out] and entries[0]["left_out"] == []
    assert manifest["shape"] == [12 - len(left_out), 64, 64] and entries[1]["first"] == 6
    places = {(p["y"], p["x"]) for p in manifest["patches"] if p["micrograph"] == "mic1"}
    assert places == {(y, x) for y in (0, 64) for x in (0, 48, 96)} - set(left_out)
    # The digest was begun as if none were left out.
    for side in "ab":
        path = tmp_path / "s" / f"train_{side}.npy"
        assert files.sha256_of(path) == manifest["arrays"][side]["sha256"]
    assert shards.read_manifest(tmp_path / "s" / "manifest.json") == json.loads(
        (tmp_path / "s" / OUTPUTS[2]).read_text()
    )


def test_the_same_noise_in_both_halves_is_bad(tmp_path):
    a, b = white(1), white(2)
    a[:64, :48] = b[:64, :48]
    manifest = write(tmp_path / "s", [write_pair(tmp_path, "m", a, b)], ShardSettings(64))
    # 48 of 64 columns of the patch at (0, 0), none of the next, which begins at 48.
    assert [entry[:2] for entry in manifest["micrographs"][0]["left_out"]] == [[0, 0]]
    assert manifest["micrographs"][0]["left_out"][0][2] == pytest.approx(0.75, abs=0.02)


def test_shares_and_places_do_not_depend_on_the_threads_or_on_a_kill(tmp_path):
    records = write_with_dead_area(tmp_path / "h", n=5)
    settings = ShardSettings(64)
    write(tmp_path / "one", records, settings, threads=1)
    write(tmp_path / "many", records, settings, threads=5)
    assert contents(tmp_path / "one") == contents(tmp_path / "many")
    for after in range(1, 5):
        interrupted(tmp_path / f"k{after}", records, settings, after)
        assert written_by(tmp_path / f"k{after}", records, settings) == [f"mic{k}" for k in range(after, 5)]
        assert contents(tmp_path / "one") == contents(tmp_path / f"k{after}")


@hypothesis_settings(deadline=None)
@given(
    seed=st.integers(0, 10**6),
    smooth=st.floats(0.05, 0.5),
    counts=st.floats(0.1, 1000),
    slope=st.floats(0, 0.9),
    sparse=st.booleans(),
)
def test_living_micrographs_have_no_bad_areas(seed, smooth, counts, slope, sparse):
    from cryon2n.shards_bad import flat_blocks

    rng = np.random.default_rng(seed)
    shape = (128, 160)
    # Counts under uneven illumination with a specimen; from few electrons to many.
    expected = counts * (1 + 0.1 * field(seed, shape, smooth)) * np.linspace(1, 1 - slope, shape[1])
    # At 0.1 all 256 pixels of a square are 0 with a probability of exp(-25.6) = 8e-12, all 16 of a sample with 0.2.
    a, b = (rng.poisson(np.clip(expected, 0.1, None)).astype(np.float32) for _ in range(2))
    if sparse:  # interpolated: neighbours are alike
        a, b = ((x + np.roll(x, 1, 0) + np.roll(x, 1, 1) + np.roll(x, (1, 1), (0, 1))) / 4 for x in (a, b))
    assert not flat_blocks(a, b, [0, 128, 0, 160], (a.std(), b.std())).any()


def test_a_micrograph_of_which_nothing_is_left_is_said_and_one_of_all_refuses(tmp_path):
    records = write_with_dead_area(tmp_path / "h", area=(slice(0, 128), slice(0, 120)))
    manifest = write(tmp_path / "s", records, ShardSettings(64))
    assert [entry["patches"] for entry in manifest["micrographs"]] == [6, 0]
    with pytest.raises(InputError, match="all patches of the 1 micrographs have more than 5% bad pixels"):
        write(tmp_path / "t", records[1:], ShardSettings(64))
    assert names(tmp_path / "t") == []


# ---------------------------------------------------------------------------- masks


def save_mask(path, good):
    import tifffile
    from PIL import Image

    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".mrc":
        mrcio.write_mrc(path, good.astype(np.uint8), 1.5)
    elif path.suffix == ".png":
        Image.fromarray(good.astype(np.uint8) * 255).save(path)
    else:
        tifffile.imwrite(path, good.astype(np.float32))


@pytest.mark.parametrize("ending", [".mrc", ".png", ".tif", ".tiff"])
def test_what_a_mask_says_is_bad_is_left_out(tmp_path, ending):
    records = write_pairs(tmp_path / "h", n=3)
    good = np.ones((128, 160), bool)
    good[:10, 100:] = False  # the first row of the file: rows 0 to 9 of columns 100 to 159
    save_mask(tmp_path / "masks" / f"mic1{ending}", good)
    manifest = write(tmp_path / "s", records, ShardSettings(64, masks=str(tmp_path / "masks")))
    # At (0, 48): columns 100 to 111, 12 of 64; at (0, 96): columns 100 to 159, 60 of 64; 10 of 64 rows.
    shares = [[0, 48, round(12 * 10 / 64**2, 6)], [0, 96, round(60 * 10 / 64**2, 6)]]
    assert [share > 0.05 for _, _, share in shares] == [False, True]
    assert [e["left_out"] for e in manifest["micrographs"]] == [[], shares[1:], []]
    digests = [None, files.sha256_of(tmp_path / "masks" / f"mic1{ending}"), None]
    assert [e["mask_sha256"] for e in manifest["micrographs"]] == digests
    assert str(tmp_path) not in (tmp_path / "s" / "manifest.json").read_text()


def test_another_mask_is_not_taken_for_the_one_before(tmp_path):
    records = write_pairs(tmp_path / "h", n=4)
    settings = ShardSettings(64, masks=str(tmp_path / "masks"))
    save_mask(tmp_path / "masks" / "mic1.png", np.ones((128, 160), bool))
    interrupted(tmp_path / "s", records, settings, after=3)
    good = np.ones((128, 160), bool)
    good[:64, :64] = False
    save_mask(tmp_path / "masks" / "mic1.png", good)
    # A patch less of mic1: mic2 moves up and is written again.
    assert written_by(tmp_path / "s", records, settings) == ["mic1", "mic2", "mic3"]
    write(tmp_path / "whole", records, settings)
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")


def test_nan_under_a_mask_does_no_harm(tmp_path):
    (record,) = write_pairs(tmp_path, n=1)
    pixels(tmp_path / "mic0_a.mrc")[:60, :48] = np.nan
    # Squares of 16 px with NaN are bad: 48 of 64 columns and all rows of the patch at (0, 0), none of the next.
    manifest = write(tmp_path / "s", [record], ShardSettings(64))
    assert [entry[:2] for entry in manifest["micrographs"][0]["left_out"]] == [[0, 0]]
    assert np.isfinite(np.load(tmp_path / "s" / "train_a.npy")).all()


@pytest.mark.parametrize(
    ("prepare", "says"),
    [
        (lambda folder: None, "no such folder"),
        (lambda folder: folder.mkdir(), "holds no mask of any of the 2 micrographs; wanted files such as mic0.png"),
        (lambda folder: save_mask(folder / "mic0.png", np.ones((128, 161), bool)), "the mask has 128 x 161 pixels"),
        (lambda folder: [save_mask(folder / f"mic0{e}", np.ones((128, 160), bool)) for e in (".png", ".mrc")],
         "two masks of one micrograph"),
        (lambda folder: (folder.mkdir(), (folder / "mic0.png").write_bytes(b"none")), "cannot read the mask"),
        (lambda folder: (folder.mkdir(), (folder / "mic0.tif").write_bytes(b"II*")), "cannot read the mask"),
        (lambda folder: (folder.mkdir(), (folder / "mic0.mrc").write_bytes(b"x")), "not a complete MRC file"),
    ],
)  # fmt: skip
def test_masks_that_cannot_be_used_are_refused(tmp_path, prepare, says):
    records = write_pairs(tmp_path / "h", n=2)
    prepare(tmp_path / "masks")
    with pytest.raises(InputError, match=says):
        write(tmp_path / "s", records, ShardSettings(64, masks=str(tmp_path / "masks")))
    assert not (tmp_path / "s").exists() or names(tmp_path / "s") == []


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_all_kinds_of_png_mean_the_same(tmp_path, mode):
    from PIL import Image

    from cryon2n.shards_bad import read_mask

    good = np.zeros((20, 30), bool)
    good[3:9, 4:7] = True
    Image.fromarray(good.astype(np.uint8) * 200).convert(mode).save(tmp_path / "m.png")
    if mode == "1":  # PIL dithers grey
        Image.fromarray(good).save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png", (20, 30)), good)


def test_the_setting_is_in_the_schema():
    schema = (ROOT / "workflow/schemas/config.schema.yaml").read_text()
    part = schema[schema.index("\n  shards:") : schema.index("\n  models:")]
    for name in ShardSettings.__dataclass_fields__:
        assert f"      {name}:" in part
    assert Path(ROOT / "docs/shards.md").exists()
