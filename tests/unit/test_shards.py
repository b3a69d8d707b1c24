"""Patch shards: every pixel used, values kept, no leaks, nothing half-written taken for whole."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryon2n import files, pair, shards
from cryon2n.errors import InputError
from making import white, write_pair, write_pairs

SETTINGS = shards.ShardSettings(patch=48)


def write(folder, records, settings=SETTINGS, val=(), test=()):
    return shards.write_shards(records, {"val": list(val), "test": list(test)}, folder, settings)


@given(begin=st.integers(0, 500), length=st.integers(1, 3000), patch=st.integers(1, 1024), data=st.data())
def test_tiles_cover_everything_within_bounds_and_overlap_enough(begin, length, patch, data):
    overlap = data.draw(st.integers(0, patch - 1))
    if length < patch:
        with pytest.raises(ValueError, match="holds no patch"):
            shards.tile_starts(begin, begin + length, patch, overlap)
        return
    starts = shards.tile_starts(begin, begin + length, patch, overlap)
    assert starts[0] == begin and starts[-1] + patch == begin + length
    steps = np.diff(starts)
    assert (steps > 0).all() and (patch - steps >= overlap).all()
    # The fewest: one patch less could not cover the length even at the least overlap.
    assert len(starts) == 1 or patch + (len(starts) - 2) * (patch - overlap) < length


def test_patches_are_the_halves_to_float16(tmp_path):
    records = write_pairs(tmp_path / "h", n=2, shape=(100, 131))
    manifest = write(tmp_path / "s", records)
    n, p, _ = manifest["shape"]
    assert (n, p) == (2 * 3 * 3, 48) and len(manifest["patches"]) == n
    halves = {x.name: x for x in map(pair.load_pair, records)}
    for side in "ab":
        array = shards.open_array(tmp_path / "s" / "manifest.json", manifest, side)
        for patch, entry in zip(array, manifest["patches"], strict=True):
            own = halves[entry["micrograph"]]
            wanted = getattr(own, side)[entry["y"] : entry["y"] + p, entry["x"] : entry["x"] + p]
            # float16 has 11 bits: relative 2^-11, below 2^-14 absolute 2^-25.
            np.testing.assert_allclose(patch, wanted, rtol=2**-11, atol=2**-25)
            assert (entry["noise_var_a"], entry["noise_var_b"]) == own.noise_var


def test_patches_stay_inside_the_valid_region(tmp_path):
    record = write_pair(tmp_path, "m", white(1), white(2), valid=[5, 120, 0, 150])
    for entry in write(tmp_path / "s", [record])["patches"]:
        assert entry["y"] >= 5 and entry["y"] + 48 <= 120 and entry["x"] + 48 <= 150


def test_the_same_input_gives_the_same_bytes(tmp_path, cryon2n):
    records = write_pairs(tmp_path / "h", n=2)
    for name in ("s1", "s2"):
        cryon2n("write-shards", "--train", *records, "--val", "v", "--out", tmp_path / name, "--set", "patch=48")
    for file in ("train_a.npy", "train_b.npy", "manifest.json"):
        assert (tmp_path / "s1" / file).read_bytes() == (tmp_path / "s2" / file).read_bytes()


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
        write(tmp_path / "s", [one], shards.ShardSettings())
    with pytest.raises(InputError, match="patch of 32 or more"):
        shards.ShardSettings(patch=64, overlap=64)


def test_unrepaired_pixels_are_refused(tmp_path):
    a = white(1)
    a[3, 3] = 1e7
    record = write_pair(tmp_path, "m", a, white(2))
    files.write_json(record, {**pair.read_record(record), "a": {**pair.read_record(record)["a"], "scale": 1.0}})
    with pytest.raises(InputError, match="wanted repaired pixels"):
        write(tmp_path / "s", [record])
    assert list((tmp_path / "s").iterdir()) == []


@pytest.mark.parametrize("keep", [0, 50, 1000])
def test_a_truncated_array_is_refused_by_name(tmp_path, keep):
    write(tmp_path / "s", write_pairs(tmp_path / "h", n=1))
    array = tmp_path / "s" / "train_b.npy"
    array.write_bytes(array.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"train_b\.npy: cannot open"):
        shards.read_manifest(tmp_path / "s" / "manifest.json")


def test_an_array_of_another_shape_is_refused(tmp_path):
    write(tmp_path / "s", write_pairs(tmp_path / "h", n=1))
    np.save(tmp_path / "s" / "train_a.npy", np.zeros((2, 48, 48), np.float16))
    with pytest.raises(InputError, match=r"train_a\.npy: holds float16"):
        shards.read_manifest(tmp_path / "s" / "manifest.json")


@pytest.mark.parametrize("content", [None, "[]", "{}", '{"format": "cryon2n-shards", "version": 99}', "{half"])
def test_a_manifest_that_is_none_is_refused(tmp_path, content):
    path = tmp_path / "manifest.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=r"manifest\.json"):
        shards.read_manifest(path)


KILLED = """
import os, signal, sys
from pathlib import Path
from cryon2n import files, pair, shards
what, folder, *records = sys.argv[1:]
def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)
if what == "reading":  # at the second micrograph
    load, seen = pair.load_pair, []
    pair.load_pair = lambda path: die() if seen else (seen.append(path), load(path))[1]
elif what == "renaming":  # between the two arrays
    replace, done = os.replace, []
    os.replace = lambda *a: die() if done else (done.append(a), replace(*a))
else:  # before the manifest
    files.write_json = die
shards.write_shards([Path(r) for r in records], {"val": [], "test": []}, Path(folder), shards.ShardSettings(patch=48))
"""


@pytest.mark.parametrize("what", ["reading", "renaming", "manifest"])
@pytest.mark.parametrize("before", [False, True], ids=["fresh", "over old ones"])
def test_a_killed_writer_leaves_nothing_that_passes_for_shards(tmp_path, what, before):
    records = write_pairs(tmp_path / "h", n=2)
    if before:  # same shape, other pixels
        write(tmp_path / "s", write_pairs(tmp_path / "old", n=2, first=7))
    done = subprocess.run(
        [sys.executable, "-c", KILLED, what, tmp_path / "s", *records], env=os.environ, capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    manifest = tmp_path / "s" / "manifest.json"
    if before and what == "reading":  # the old shards are still whole
        arrays = shards.read_manifest(manifest)["arrays"]
        assert all(files.sha256_of(manifest.with_name(x["file"])) == x["sha256"] for x in arrays.values())
    else:
        with pytest.raises(InputError):
            shards.read_manifest(manifest)
    write(tmp_path / "s", records)  # and it is simply written again
    assert shards.read_manifest(manifest)["split"]["train"] == ["mic0", "mic1"]
