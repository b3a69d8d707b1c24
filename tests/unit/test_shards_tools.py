"""Tools for shards: every flipped byte is found and named, info and export say what is there."""

import json
import shutil
import subprocess
import sys

import mrcfile
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryon2n import files, shards, shards_tools
from cryon2n.errors import InputError
from making import command, write_pairs, write_shards


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The manifest of shards of 2 micrographs with 6 patches of 64 px each."""
    folder = tmp_path_factory.mktemp("whole")
    return write_shards(folder / "s", write_pairs(folder / "h", n=2))


@pytest.fixture
def copy(whole, tmp_path):
    """The manifest of a copy of them."""
    shutil.copytree(whole.parent, tmp_path / "s")
    return tmp_path / "s" / "manifest.json"


def verify(path, capsys):
    """Run the command; returns the exit code and the lines it prints."""
    code = command("shards", "verify", path)
    return code, capsys.readouterr().out.splitlines()


def patch_at(manifest, k):
    entry = manifest["patches"][k]
    return f"patch {k} (micrograph {entry['micrograph']}, y {entry['y']}, x {entry['x']})"


def test_whole_shards_pass(whole, capsys):
    assert verify(whole, capsys) == (0, [])


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_a_flipped_bit_anywhere_is_found_and_named(whole, tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "flipped"
    if not folder.exists():
        shutil.copytree(whole.parent, folder)
    manifest = files.read_json(whole)
    name = data.draw(st.sampled_from(["train_a.npy", "train_b.npy", "manifest.json"]))
    size = (folder / name).stat().st_size
    place = data.draw(st.one_of(st.integers(0, size - 1), st.integers(0, 4095)))
    with open(folder / name, "r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1 << data.draw(st.integers(0, 7))]))
        file.flush()
        try:
            if name == "manifest.json":
                with pytest.raises(InputError, match=r"manifest\.json: "):
                    shards_tools.verify(folder / "manifest.json")
            else:
                (sentence,) = shards_tools.verify(folder / "manifest.json")
                # 4096 bytes of header, then 64 x 64 x 2 bytes a patch.
                where = "" if place < 4096 else patch_at(manifest, (place - 4096) // 8192)
                assert sentence.startswith(f"{folder / name}: {where}")
        finally:
            file.seek(place)
            file.write(bytes([byte]))


def test_every_block_that_differs_is_named(copy, capsys):
    manifest = files.read_json(copy)
    for name, blocks in {"train_a.npy": [0, 7], "train_b.npy": [3, 4, 11]}.items():
        content = bytearray(copy.with_name(name).read_bytes())
        for k in blocks:
            content[4096 + 8192 * k + 100] ^= 0x40
        copy.with_name(name).write_bytes(content)
    code, lines = verify(copy, capsys)
    wanted = [f"{copy.with_name('train_a.npy')}: {patch_at(manifest, k)} differs" for k in (0, 7)]
    wanted += [f"{copy.with_name('train_b.npy')}: {patch_at(manifest, k)} differs" for k in (3, 4, 11)]
    assert code == 2 and [line.partition(": its CRC-32")[0] for line in lines] == wanted


@pytest.mark.parametrize("cut", [1, 8192, 2 * 8192 + 5])
def test_what_a_truncated_file_lacks_is_named(copy, capsys, cut):
    path, manifest = copy.with_name("train_b.npy"), files.read_json(copy)
    path.write_bytes(path.read_bytes()[:-cut])
    code, lines = verify(copy, capsys)
    lost = -(-cut // 8192)
    assert code == 2 and lines[0] == f"{path}: has {102400 - cut} bytes, wanted 102400"
    wanted = [f"{path}: {patch_at(manifest, k)} is not whole" for k in range(12 - lost, 12)]
    assert [line.partition(": the file ends")[0] for line in lines[1:]] == wanted


def test_extended_missing_and_empty_files_are_named(copy, capsys):
    a, b = copy.with_name("train_a.npy"), copy.with_name("train_b.npy")
    a.write_bytes(a.read_bytes() + b"\0")
    b.unlink()
    code, lines = verify(copy, capsys)
    assert (code, lines) == (
        2,
        [f"{a}: has 102401 bytes, wanted 102400", f"{b}: cannot be read (No such file or directory)"],
    )
    b.write_bytes(b"")
    lines = verify(copy, capsys)[1]
    assert f"{b}: has 0 bytes, wanted 102400" in lines and len(lines) == 1 + 2 + 12  # size; header, size, patches


def test_the_arrays_of_other_shards_are_found(copy, tmp_path, capsys):
    other = write_shards(tmp_path / "o", write_pairs(tmp_path / "h", n=2, first=4))
    shutil.copy(other.with_name("train_a.npy"), copy.with_name("train_a.npy"))
    code, lines = verify(copy, capsys)
    assert code == 2 and len(lines) == 12 and all("train_a.npy: patch" in line for line in lines)
    # Halves in each other's place have another noise.
    shutil.copy(copy.with_name("train_b.npy"), copy.with_name("train_a.npy"))
    assert len(verify(copy, capsys)[1]) == 12


def test_a_change_that_keeps_every_crc_is_found_by_the_sha256(copy, capsys):
    """CRC-32 is no seal: four bytes can be chosen so that it fits.  Here the manifest is made to fit instead."""
    path = copy.with_name("train_a.npy")
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    manifest = files.read_json(copy)
    del manifest["sha256"]
    manifest["patches"][0]["crc32_a"] = shards.crc32(bytes(content[4096 : 4096 + 8192]))
    shards.write_manifest(copy, manifest)
    code, (line,) = verify(copy, capsys)
    assert code == 2 and line.startswith(f"{path}: its SHA-256 is {files.sha256_of(path)}, wanted")


def test_the_command_exits_with_2_and_a_sentence(copy, cryon2n):
    copy.with_name("train_a.npy").write_bytes(b"")
    done = cryon2n("shards", "verify", copy, check=False)
    assert done.returncode == 2 and "error: " in done.stderr and "Traceback" not in done.stderr
    for action in ("verify", "info"):
        done = cryon2n("shards", action, copy.with_name("none.json"), check=False)
        assert done.returncode == 2 and "none.json: cannot read" in done.stderr


# ---------------------------------------------------------------------------- info


def test_info_says_what_the_shards_are(whole, capsys):
    assert command("shards", "info", whole) == 0
    text = capsys.readouterr().out
    manifest = files.read_json(whole)
    for part in ("12 of 64 x 64 px", "1.5 Å", manifest["arrays"]["a"]["sha256"], "2 train, 0 val, 0 test", "mic1"):
        assert part in text
    assert command("shards", "info", whole, "--json") == 0
    about = json.loads(capsys.readouterr().out)
    assert about["shape"] == [12, 64, 64] and about["micrographs"] == 2 and "patches" not in about


def test_info_needs_no_arrays(copy, capsys):
    for side in "ab":
        copy.with_name(f"train_{side}.npy").unlink()
    assert command("shards", "info", copy) == 0
    assert "12 of 64 x 64 px" in capsys.readouterr().out


# ---------------------------------------------------------------------------- export


@pytest.mark.parametrize(("words", "chosen"), [((), range(12)), (("--patches", "3,7-9,0"), [3, 7, 8, 9, 0])])
def test_exported_stacks_hold_the_patches(whole, tmp_path, words, chosen):
    chosen = list(chosen)
    for form in ("npy", "mrc"):
        assert command("shards", "export", whole, "--out", tmp_path, "--format", form, *words) == 0
    for side in "ab":
        wanted = np.load(whole.with_name(f"train_{side}.npy"))[chosen]
        np.testing.assert_array_equal(np.load(tmp_path / f"{side}.npy"), wanted)
        assert mrcfile.validate(tmp_path / f"{side}.mrcs")
        with mrcfile.open(tmp_path / f"{side}.mrcs") as mrc:
            assert mrc.is_image_stack() and mrc.data.dtype == np.float32 and mrc.header.mode == 2
            np.testing.assert_array_equal(mrc.data, wanted.astype(np.float32))
            assert mrc.voxel_size.x == mrc.voxel_size.y == 1.5
    rows = files.read_table(tmp_path / "patches.tsv", ["image", "patch", "micrograph", "y", "x"])
    assert [int(row["patch"]) for row in rows] == chosen
    first = files.read_json(whole)["patches"][chosen[0]]
    assert (rows[0]["micrograph"], int(rows[0]["y"]), int(rows[0]["x"])) == (
        first["micrograph"],
        first["y"],
        first["x"],
    )


@pytest.mark.parametrize("text", ["12", "0-12", "5-3", "-1", "a", "", "1,", "1;2"])
def test_patches_that_are_not_there_are_refused(whole, tmp_path, text, capsys):
    assert command("shards", "export", whole, "--out", tmp_path, f"--patches={text}") == 2
    assert "wanted numbers and ranges from 0 to 11" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", ["npy", "mrc"])
def test_a_damaged_patch_is_not_exported(copy, tmp_path, form, capsys):
    path = copy.with_name("train_b.npy")
    content = bytearray(path.read_bytes())
    content[4096 + 5 * 8192] ^= 1
    path.write_bytes(content)
    assert command("shards", "export", copy, "--out", tmp_path / "e", "--format", form) == 2
    assert "train_b.npy: patch 5 (micrograph mic0" in capsys.readouterr().err
    assert not [path for path in (tmp_path / "e").iterdir() if path.name.startswith(("b", "."))]
    assert command("shards", "export", copy, "--out", tmp_path / "e", "--format", form, "--patches", "0-4,6-11") == 0


def test_a_closed_pipe_is_no_error(whole):
    done = subprocess.run(
        f"{sys.executable} -m cryon2n shards info {whole} | head -1", shell=True, capture_output=True, text=True
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr
