"""The shards' format: bytes that any tool opens, and a reader that refuses all else by name."""

import io
import json
import re
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryon2n import shards
from cryon2n.errors import InputError
from making import write_pairs, write_shards


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Shards of two micrographs, 4 patches of 64 px each: their files' bytes by name."""
    folder = tmp_path_factory.mktemp("whole")
    write_shards(folder / "s", write_pairs(folder / "h", n=2))
    return {path.name: path.read_bytes() for path in (folder / "s").iterdir()}


@pytest.fixture
def copy(whole, tmp_path):
    """A copy of them; returns the manifest's path."""
    for name, content in whole.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path / "manifest.json"


def changed(path, **values):
    """Change a manifest as another program might that knows the format: with a seal that fits."""
    manifest = json.loads(path.read_text())
    del manifest["sha256"]
    for key, value in values.items():
        *keys, at = (int(k) if k.isdigit() else k for k in key.split("__"))
        target = manifest
        for k in keys:
            target = target[k]
        if value is None:
            del target[at]
        else:
            target[at] = value
    shards.write_manifest(path, manifest)


# ---------------------------------------------------------------------------- the bytes


@given(st.lists(st.integers(1, 10**6), min_size=3, max_size=3))
def test_the_header_is_a_page_and_numpy_reads_it(shape):
    head = shards.array_header(shape)
    assert len(head) == 4096
    file = io.BytesIO(head)
    assert np.lib.format.read_magic(file) == (1, 0)
    assert np.lib.format.read_array_header_1_0(file) == (tuple(shape), False, np.dtype("<f2"))
    assert file.tell() == 4096


def test_numpy_opens_the_arrays_and_a_patch_is_where_the_page_says(whole, copy):
    for side in "ab":
        name = f"train_{side}.npy"
        array = np.load(copy.with_name(name))
        assert array.shape == (12, 64, 64) and array.dtype == np.float16
        # Patch 5 begins 5 x 64 x 64 x 2 bytes after the page, itself at a page: 8192 = 2 x 4096.
        begin = 4096 + 5 * 8192
        assert whole[name][begin : begin + 8192] == array[5].tobytes()
        assert len(whole[name]) == 4096 + 12 * 8192


def test_the_checksums_are_those_of_other_programs(whole, copy):
    import hashlib

    manifest = json.loads(whole["manifest.json"])
    for side in "ab":
        content = whole[f"train_{side}.npy"]
        assert manifest["arrays"][side]["sha256"] == hashlib.sha256(content).hexdigest()
        for k, entry in enumerate(manifest["patches"]):
            patch = content[4096 + 8192 * k : 4096 + 8192 * (k + 1)]
            assert int(entry[f"crc32_{side}"], 16) == zlib.crc32(patch)
    # As docs/shards.md says: head -n -2 manifest.json | head -c -2 | sha256sum
    text = whole["manifest.json"]
    body = b"".join(text.splitlines(keepends=True)[:-2])[:-2]
    assert manifest["sha256"] == hashlib.sha256(body).hexdigest()


def test_the_manifest_has_a_line_for_each_patch_and_micrograph(whole):
    lines = whole["manifest.json"].decode().splitlines()
    assert sum(line.startswith('  {"micrograph": "mic0", "y":') for line in lines) == 6
    assert sum(line.startswith('  {"micrograph": "mic0", "first":') for line in lines) == 1


# ---------------------------------------------------------------------------- what is refused


def refused(path):
    with pytest.raises(InputError) as caught:
        shards.read_manifest(path)
    return str(caught.value)


def header(change):
    """Change an array's header by a function of its bytes."""

    def apply(path):
        content = path.read_bytes()
        path.write_bytes(change(content[:4096]) + content[4096:])

    return apply


def npy(array):
    return lambda path: np.save(path, array)


PATCHES = np.zeros((12, 64, 64), np.float16)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda path: path.unlink(), "cannot open the shard (No such file"),
        (lambda path: path.write_bytes(b""), "begins with b''; wanted b'\\x93NUMPY'"),
        (header(lambda h: b"PK" + h[2:]), "begins with b'PKUMPY'; wanted"),
        (header(lambda h: h[:6] + b"\x02" + h[7:]), "is of NPY version 2.0; wanted 1.0"),
        (npy(PATCHES), "its data begin at byte 128; wanted 4096"),
        (header(lambda h: h.replace(b"<f2", b"<f4")), "holds numbers of type '<f4'; wanted '<f2' (float16)"),
        (header(lambda h: h.replace(b"<f2", b">f2")), "holds numbers of type '>f2'; wanted '<f2' (float16)"),
        (header(lambda h: h.replace(b"(12,", b"(13,")), "holds an array of shape (13, 64, 64); its manifest says (12"),
        (header(lambda h: h.replace(b"False", b"True ")), "in Fortran order; its manifest says"),
        (header(lambda h: h.replace(b"shape", b"shapo")), "its header cannot be read"),
        (header(lambda h: h[:3000] + b"\t" + h[3001:]), "byte 3000 of its header differs"),
        (lambda path: path.write_bytes(path.read_bytes()[:100]), "ends within its header, after 100 bytes"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "has 102399 bytes; wanted 102400, for 12 patches"),
        (lambda path: path.write_bytes(path.read_bytes() + b"\0"), "has 102401 bytes; wanted 102400"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x01"), "patch 11 (micrograph mic1, y 64, x 96) has"),
    ],
)  # fmt: skip
def test_an_array_is_refused_and_what_is_wrong_is_named(copy, change, says):
    path = copy.with_name("train_b.npy")
    change(path)
    sentence = refused(copy)
    assert sentence.startswith(f"{path}: ") and says in sentence and "write the shards again" in sentence


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"format": "other"}, "is not a manifest of patch shards"),
        ({"version": 1}, "is of version 1; wanted 2"),
        ({"dtype": "bfloat16"}, "its dtype is 'bfloat16'; wanted 'float16'"),
        ({"byte_order": "big"}, "its byte_order is 'big'; wanted 'little'"),
        ({"data_offset": 128}, "its data_offset is 128; wanted 4096"),
        ({"shape": [12, 64]}, "its shape is [12, 64]; wanted [n, p, p]"),
        ({"shape": [12, 64, 32]}, "its shape is [12, 64, 32]; wanted [n, p, p]"),
        ({"shape": [0, 64, 64]}, "its shape is [0, 64, 64]; wanted [n, p, p]"),
        ({"shape": [11, 64, 64]}, "gives 102400 bytes for shape [11, 64, 64]; wanted 94208"),
        ({"pixel_size_A": -1.0}, "its pixel size is -1.0 Å"),
        ({"shape": None}, "misses the key 'shape'"),
        ({"arrays__a": None}, "misses the key 'arrays: a'"),
        ({"arrays__a__sha256": None}, "misses the key 'arrays: a: sha256'"),
        ({"arrays__a__sha256": "12"}, "wanted a SHA-256"),
        ({"arrays__b__file": "../elsewhere.npy"}, "names the file '../elsewhere.npy'"),
        ({"patches__3__crc32_b": None}, "misses the key 'patches: 3: crc32_b'"),
        ({"patches__3__y": 1.5}, "patches: 3: y is 1.5; wanted int"),
        ({"patches__3": None}, "lists 11 patches, its shape says 12"),
        ({"patches__3": 7}, "patches: 3 is no mapping"),
        ({"micrographs__0__a": None}, "misses the key 'micrographs: 0: a'"),
        ({"split__val": None}, "misses the list 'split: val'"),
        ({"split__test": ["mic1"]}, "mic1: in more than one of train, val and test"),
        ({"split__train": ["mic0"], "split__val": ["mic1"]}, "patch 6 (micrograph mic1, y 0, x 0) is in val; wanted"),
        ({"split__train": ["mic0"]}, "patch 6 (micrograph mic1, y 0, x 0) is in no split; wanted"),
    ],
)  # fmt: skip
def test_a_manifest_is_refused_and_what_is_wrong_is_named(copy, values, says):
    changed(copy, **values)
    sentence = refused(copy)
    assert sentence.startswith(f"{copy}: ") and says in sentence


def test_a_changed_manifest_with_its_seal_made_anew_is_taken(copy):
    changed(copy, producer="another program")
    assert shards.read_manifest(copy)["producer"] == "another program"


@pytest.mark.parametrize("content", [None, b"[]", b"{}", b"{half", b"\xff\xfe", b""])
def test_what_is_no_manifest_is_refused(tmp_path, content):
    path = tmp_path / "manifest.json"
    if content is not None:
        path.write_bytes(content)
    assert refused(path).startswith(f"{path}: ")


def test_a_manifest_beside_the_arrays_of_other_shards_is_refused(copy, tmp_path):
    other = write_shards(tmp_path / "o", write_pairs(tmp_path / "h", n=2, first=5))
    copy.write_bytes((other).read_bytes())
    assert re.search(r"train_a\.npy: patch 0 \(micrograph mic5.*belongs to other shards", refused(copy))


@settings(deadline=None)
@given(data=st.data())
def test_no_flipped_bit_of_a_manifest_passes(whole, tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "flips"
    folder.mkdir(exist_ok=True)
    content = bytearray(whole["manifest.json"])
    # Half of them near the end, where the seal is.
    place = data.draw(st.one_of(st.integers(0, len(content) - 1), st.integers(len(content) - 90, len(content) - 1)))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(InputError, match=r"manifest\.json: "):
        shards.read_manifest(folder / "manifest.json", arrays=False)
