"""Malformed inputs of every kind: each gives a sentence that names it; no crash, no hang, no great memory.

Also a program: ``python test_micrograph_fuzz.py FORMAT N SEED`` damages N files at random and reads them, apart from
the tests so that a crash, a hang and memory beyond a limit end it and not them.
"""

import bz2
import gzip
import io
import os
import struct
import subprocess
import sys
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tifffile
from test_micrograph_find import OPTICS, cs_bytes

from cryon2n import micrograph_inputs
from cryon2n.errors import InputError
from fuzz_frames import attack
from movie_files import mrc_head, nibbles

H, W = 24, 33
COUNTS = np.random.default_rng(1).poisson(4.0, (H, W)).clip(0, 15).astype(np.uint8)
NAMES = {"mrc": "a.mrc", "gz": "a.mrc.gz", "bz2": "a.mrc.bz2", "tiff": "a.tif", "star": "a.star", "cs": "a.cs"}


def mrc(mode=1, order="<", extended=768):
    head = mrc_head(W, H, 1, mode, order)
    struct.pack_into(f"{order}i", head, 92, extended)
    head[104:108] = b"FEI1"
    kinds = {0: "u1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}
    pixels = nibbles(COUNTS[None]) if mode == 101 else COUNTS.astype(order + kinds[mode]).tobytes()
    return bytes(head) + bytes(extended) + pixels


STAR = (
    OPTICS.encode()
    + b"""data_micrographs

loop_
_rlnMicrographName #1
_rlnOpticsGroup #2
_rlnMicrographNameEven #3
_rlnMicrographNameOdd #4
x.mrc 1 e.mrc o.mrc
x.mrc 1 "e.mrc" o.mrc
"""
)


def seeds(form):
    """Give whole files of a format."""
    if form == "mrc":
        return [mrc(mode, order) for mode in (0, 1, 2, 6, 12, 101) for order in "<>"]
    if form in ("gz", "bz2"):
        return [{"gz": gzip, "bz2": bz2}[form].compress(mrc(2))]
    if form == "star":
        return [STAR, b"data_\n\n" + STAR[STAR.rindex(b"loop_") :]]
    if form == "cs":
        sizes = np.array([0.5, 0.5], np.float32)
        return [cs_bytes(uid=[1, 2], micrograph_blob__path=[b">x.mrc", b"x.mrc"], micrograph_blob__psize_A=sizes)]
    out = []
    for options in ({}, {"rowsperstrip": 5}, {"tile": (16, 16)}, {"bigtiff": True}):
        for compression in (None, "lzw", "zstd"):
            file = io.BytesIO()
            with tifffile.TiffWriter(file, bigtiff=options.get("bigtiff", False)) as tiff:
                tiff.write(COUNTS, compression=compression, **{k: v for k, v in options.items() if k != "bigtiff"})
            out.append(file.getvalue())
    return out


def use(path):
    """Find and read what a file names."""
    for micrograph in micrograph_inputs.find([path]):
        for image in (micrograph.full, micrograph.a, micrograph.b):
            if image is not None:
                micrograph_inputs.read(image)


def fuzz(form, n, seed):
    """Read `n` damaged files; print how many of them were refused."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("x", "e", "o"):
            Path(folder, f"{name}.mrc").write_bytes(mrc())
        # A table may also name another file, by a damaged name.
        named = form not in ("star", "cs")
        print(attack(form, n, seed, seeds(form), Path(folder, NAMES[form]), use, named))


@pytest.mark.parametrize("form", NAMES)
def test_damage_at_random_gives_a_sentence(form):
    """CRYON2N_FUZZ: files of each format."""
    n = int(os.environ.get("CRYON2N_FUZZ", 300))
    done = subprocess.run(
        [sys.executable, "-W", "error", __file__, form, str(n), str(n)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
        text=True,
        timeout=60 + n,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > n / 3  # most of the damage was noticed: over 600 refused inputs in all


# ---------------------------------------------------------------------------- by name


def head(*words, order="<", mode=2, extended=0):
    """A header whose first words (nx, ny, nz) are these."""
    out = mrc_head(*words, mode, order)
    struct.pack_into(f"{order}i", out, 92, extended)
    return bytes(out)


BIG = 2**31 - 1
MALFORMED = {
    "empty.mrc": (b"", "has 0 bytes"),
    "short.mrc": (mrc()[:1000], "has 1000 bytes"),
    "header.mrc": (mrc()[:1024], "complete MRC file"),
    "half.mrc": (mrc(2)[:-40], "complete MRC file"),
    "byte.mrc": (mrc(2)[:-1], "complete MRC file"),
    "long.mrc": (mrc(2) + b"0", "complete MRC file"),
    "text.mrc": (b"not a micrograph\n" * 100, "is not an MRC file"),
    "page.mrc": (b"<!DOCTYPE html><html>" + bytes(2000), "an HTML or XML page"),
    "tiff.mrc": (seeds("tiff")[0] + bytes(1024), "a TIFF file"),
    "gzip.mrc": (gzip.compress(np.random.default_rng(0).bytes(2000)), "a gzip file"),
    "zero.mrc": (head(0, H, 1) + bytes(100), "is not an MRC file"),
    "negative.mrc": (head(-W, H, 1) + bytes(100), "is not an MRC file"),
    "wide.mrc": (head(BIG, BIG, 1) + bytes(100), "is not an MRC file"),
    "huge.mrc": (head(100000, 100000, 1) + bytes(100), "wanted at most"),
    "large.mrc": (head(16000, 16000, 1) + bytes(100), "needs 1024001024"),
    "deep.mrc": (head(8000, 8000, BIG) + bytes(100), "holds 2147483647 images"),
    "extended.mrc": (head(W, H, 1, extended=BIG) + bytes(100), "extended header has 2147483647 bytes"),
    "cut.mrc": (head(W, H, 1, extended=80000) + bytes(100), "complete MRC file"),
    "complex.mrc": (head(W, H, 1, mode=4) + bytes(8 * W * H), "is of MRC mode 4"),
    "complex16.mrc": (head(W, H, 1, mode=3) + bytes(4 * W * H), "is of MRC mode 3"),
    "mode.mrc": (head(W, H, 1, mode=99) + bytes(W * H), "mode 99"),
    "black.mrc": (head(W, H, 1) + bytes(4 * W * H), "is constant"),
    "nan.mrc": (head(W, H, 1) + b"\xff" * (4 * W * H), "only NaN"),
    "stack.mrcs": (head(W, H, 2) + bytes(8 * W * H), "holds 2 images"),
    "empty.mrc.gz": (b"", "has 0 bytes"),
    "garbage.mrc.gz": (b"garbage" * 300, "complete GZ file"),
    "cut.mrc.gz": (gzip.compress(mrc(2))[:-300], "complete GZ file"),
    "tail.mrc.gz": (gzip.compress(mrc(2)) + b"garbage", "complete GZ file"),
    "bomb.mrc.gz": (gzip.compress(mrc(2) + bytes(1 << 26)), "complete GZ file"),
    "deep.mrc.gz": (gzip.compress(head(8000, 8000, BIG) + bytes(1 << 20)), "holds 2147483647 images"),
    "garbage.mrc.bz2": (b"garbage" * 300, "complete BZ2 file"),
    "cut.mrc.bz2": (bz2.compress(mrc(2))[:-30], "complete BZ2 file"),
    "short.mrc.bz2": (bz2.compress(mrc(2)[:-8]), "complete BZ2 file"),
    "bomb.mrc.bz2": (bz2.compress(mrc(2) + bytes(1 << 24)), "complete BZ2 file"),
    "empty.tif": (b"", "complete TIFF file"),
    "garbage.tif": (b"II*\0" + b"\xff" * 200, "complete TIFF file"),
    "mrc.tif": (mrc(2), "complete TIFF file"),
    "movie.eer": (b"", "is no micrograph by its name"),
    "picture.jpg": (b"\xff\xd8", "is no micrograph by its name"),
    "no_ending": (b"", "is no micrograph by its name"),
    "empty.star": (b"", "holds no data block"),
    "binary.star": (bytes(range(256)) * 8, "is not of a STAR file"),
    "ragged.star": (STAR.replace(b"x.mrc 1 e.mrc", b"x.mrc"), "lacks columns"),
    "quote.star": (STAR.replace(b'"e.mrc"', b'"e.mrc'), "is not of a STAR file"),
    "long.star": (STAR.replace(b"x.mrc", b"x" * 5000), "none of which is there"),
    "null.star": (STAR.replace(b"x.mrc", b"x\0.mrc").replace(b"e.mrc", b"e\0"), "none of which is there"),
    "empty.cs": (b"", "cannot be read as a .cs file"),
    "zip.cs": (b"PK\x03\x04" + bytes(100), "cannot be read as a .cs file"),
    "nested.cs": (b"\x93NUMPY\x01\0\x88\x13" + b"(" * 5000, "cannot be read as a .cs file"),
    "code.cs": (b"\x93NUMPY\x01\0\x20\0" + b"__import__('os').abort()".ljust(32), "cannot be read as a .cs file"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_input_gives_a_sentence_and_no_memory(tmp_path, name):
    content, said = MALFORMED[name]
    (tmp_path / name).write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(InputError) as error:
            use(tmp_path / name)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    sentence = str(error.value)
    assert sentence.startswith(f"{tmp_path / name}: ") and said in sentence and "\n" not in sentence
    assert "address" not in sentence and "sheet" not in sentence  # that is advice for downloads
    assert peak < 20 << 20  # bytes


def test_what_is_no_file_gives_a_sentence(tmp_path):
    (tmp_path / "folder.mrc").mkdir()
    os.mkfifo(tmp_path / "pipe.mrc")
    (tmp_path / "link.mrc").symlink_to(tmp_path / "gone.mrc")
    (tmp_path / "circle.mrc").symlink_to(tmp_path / "circle.mrc")
    for name, said in (
        ("folder.mrc", "is a folder"),
        ("pipe.mrc", "is no file"),
        ("link.mrc", "is not there"),
        ("circle.mrc", "is not there"),
    ):
        with pytest.raises(InputError, match=f"{name}: {said}"):
            micrograph_inputs.read(tmp_path / name)


if __name__ == "__main__":
    fuzz(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
