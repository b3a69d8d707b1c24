"""Frames of every format and compression, against files of independent writers; damage of every kind."""

import bz2
import concurrent.futures
import gzip
import os
import re
import shutil
import struct
import subprocess
import sys
import tracemalloc

import mrcfile
import numpy as np
import pytest
import tifffile
from test_movie_header import tiff

from conftest import ROOT
from cryon2n import frames, frames_tiff
from cryon2n.errors import InputError
from cryon2n.frame_range import FrameRange
from movie_files import eer, events, mrc_head, nibbles

N, H, W = 3, 21, 34
COUNTS = np.random.default_rng(1).poisson(2.0, (N, H, W))
HITS = (np.random.default_rng(2).random((N, 24, 40)) < 0.05).astype(np.uint8)


def stack(path, **options):
    """All frames, read in both ways, which must agree."""
    with frames.open_frames(path, **options) as movie:
        assert movie.dtype.isnative
        own = np.stack([movie.read(i) for i in range(len(movie))])
        np.testing.assert_array_equal(np.stack(list(movie)), own)
        assert own.dtype == movie.dtype and own.shape == movie.shape
    return own


def put(path, content):
    path.write_bytes(content)
    return path


def refused(path, **options):
    with pytest.raises(InputError) as error, frames.open_frames(path, **options) as movie:
        for i in range(len(movie)):
            movie.read(i)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)
    return str(error.value)


# ---------------------------------------------------------------------------- MRC


@pytest.mark.parametrize("name", ["a.mrc", "A.MRCS"])
@pytest.mark.parametrize("dtype", ["int8", "int16", "float32", "uint16", "float16"])
def test_mrc_modes(tmp_path, dtype, name):
    data = (COUNTS - (2 if dtype != "uint16" else 0)).astype(dtype)
    with mrcfile.new(tmp_path / name) as mrc:
        mrc.set_data(data)
        mrc.set_image_stack()
        mrc.voxel_size = 0.6575
    with frames.open_frames(tmp_path / name) as movie:
        assert movie.pixel_size == pytest.approx(0.6575)
    # What mode 0 calls -1 is a count of 255.
    np.testing.assert_array_equal(stack(tmp_path / name), data.view(np.uint8) if dtype == "int8" else data)


@pytest.mark.parametrize(("mode", "dtype"), [(1, ">i2"), (2, ">f4"), (6, ">u2"), (12, ">f2")])
def test_mrc_of_the_other_byte_order(tmp_path, mode, dtype):
    path = put(tmp_path / "a.mrc", bytes(mrc_head(W, H, N, mode, ">", 1.25)) + COUNTS.astype(dtype).tobytes())
    np.testing.assert_array_equal(stack(path), COUNTS)
    with frames.open_frames(path) as movie:
        assert movie.pixel_size == pytest.approx(1.25)


@pytest.mark.parametrize("w", [1, 2, 33, 34])
def test_4_bit_mrc(tmp_path, w):
    data = np.random.default_rng(w).integers(0, 16, (N, H, w)).astype(np.uint8)
    path = put(tmp_path / "a.mrc", bytes(mrc_head(w, H, N, 101)) + nibbles(data))
    np.testing.assert_array_equal(stack(path), data)


def test_mrc_that_says_by_imods_flag_that_its_bytes_hold_two_pixels(tmp_path):
    head = mrc_head(W // 2, H, N, 0)
    head[152:160] = np.array([1146047817, 16], "<i4").tobytes()
    data = np.random.default_rng(3).integers(0, 16, (N, H, W)).astype(np.uint8)
    np.testing.assert_array_equal(stack(put(tmp_path / "a.mrc", bytes(head) + nibbles(data))), data)
    head[156] = 1  # another flag: bytes are bytes
    assert stack(put(tmp_path / "a.mrc", bytes(head) + nibbles(data))).shape == (N, H, W // 2)


def test_an_extended_header_is_stepped_over(tmp_path):
    head = mrc_head(W, H, N, 0)
    head[92:96] = (768).to_bytes(4, "little")
    path = put(tmp_path / "a.mrc", bytes(head) + b"\xff" * 768 + COUNTS.astype(np.uint8).tobytes())
    np.testing.assert_array_equal(stack(path), COUNTS)


@pytest.mark.parametrize(("size", "wanted"), [(1.5, 1.5), (0.0, None), (1e6, None), (-1.0, None), (np.nan, None)])
def test_a_pixel_size_that_cannot_be_is_none(tmp_path, size, wanted):
    path = put(tmp_path / "a.mrc", bytes(mrc_head(W, H, N, 0, "<", size)) + COUNTS.astype(np.uint8).tobytes())
    with frames.open_frames(path) as movie:
        assert movie.pixel_size == wanted


# ---------------------------------------------------------------------------- compressed MRC


@pytest.mark.parametrize("name", ["a.mrc.gz", "a.mrcs.BZ2"])
def test_compressed_mrc(tmp_path, monkeypatch, name):
    (tmp_path / "scratch").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    content = bytes(mrc_head(W, H, N, 2)) + COUNTS.astype("<f4").tobytes()
    # Two members one after the other are one file, as pbzip2 and bgzip write it.
    compress = gzip.compress if name.endswith("gz") else bz2.compress
    path = put(tmp_path / name, compress(content[:3000]) + compress(content[3000:]))
    np.testing.assert_array_equal(stack(path), COUNTS)
    with frames.open_frames(path) as movie:
        assert list((tmp_path / "scratch").iterdir()) == []  # nothing that a killed process could leave
        np.testing.assert_array_equal(movie[1], COUNTS[1])


def test_room_to_decompress_is_looked_for(tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    path = put(tmp_path / "a.mrc.gz", gzip.compress(bytes(mrc_head(4000, 5000, 50, 0)) + bytes(1000)))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "full"))
    asked, room = [], {}

    def usage(folder):
        asked.append(str(folder))
        return shutil._ntuple_diskusage(10**12, 0, room.get(str(folder), 10**8))

    monkeypatch.setattr(frames.shutil, "disk_usage", usage)
    assert "takes 1.0 GB decompressed, found free 0.1 GB in" in refused(path)
    assert asked[:2] == [str(tmp_path / "full"), str(tmp_path)]
    room[str(tmp_path)] = 10**10  # the movie's own folder, then
    assert "it has 2024 bytes, its header" in refused(path)


def test_what_goes_on_and_on_is_not_decompressed_to_its_end(tmp_path):
    path = put(tmp_path / "a.mrc.bz2", bz2.compress(bytes(mrc_head(W, H, N, 0)) + bytes(200 << 20)))
    tracemalloc.start()
    sentence = refused(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 << 20
    # The header's 3 frames, and no more than a piece beyond them.
    assert int(re.search(r"it has (\d+) bytes, its header", sentence)[1]) <= 1024 + N * H * W + frames.CHUNK


# ---------------------------------------------------------------------------- TIFF

LAYOUTS = {
    "one strip": {},
    "strips": {"rowsperstrip": 5},
    "tiles": {"tile": (16, 32)},
    "predictor": {"predictor": True},
}


# There is no predictor without one of the compressions that can use it.
TIFFS = [
    (compression, layout)
    for compression in (None, "packbits", "lzw", "deflate", "zstd")
    for layout in LAYOUTS
    if layout != "predictor" or compression not in (None, "packbits")
]


@pytest.mark.parametrize(("compression", "layout"), TIFFS)
@pytest.mark.parametrize(("dtype", "order"), [("u1", "<"), ("i2", "<"), ("u2", ">"), ("f4", "<"), ("f2", ">")])
def test_tiff(tmp_path, dtype, order, compression, layout):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path, bigtiff=order == ">", byteorder=order) as out:
        for frame in COUNTS.astype(dtype):
            out.write(frame, compression=compression, contiguous=False, **LAYOUTS[layout])
    np.testing.assert_array_equal(stack(path), COUNTS)


@pytest.mark.parametrize("w", [10, 11])
def test_4_bit_tiff_has_the_first_pixel_in_the_high_half(tmp_path, w):
    data = np.random.default_rng(w).integers(0, 16, (N, 6, w)).astype(np.uint8)
    packed = np.frombuffer(nibbles(data), np.uint8).reshape(N, 6, -1)
    swapped = (packed >> 4 | packed << 4).astype(np.uint8)
    content = tiff(swapped, rows=6, t256=(4, (w,)), t258=(3, (4,)))
    np.testing.assert_array_equal(stack(put(tmp_path / "a.tiff", content)), data)


@pytest.mark.parametrize(
    ("resolution", "unit", "wanted"),
    [
        ((1e8 / 0.66, 1e8 / 0.66), "CENTIMETER", 0.66),
        ((2.54e8 / 1.1, 2.54e8 / 1.1), "INCH", 1.1),
        ((72, 72), "INCH", None),
        ((1e8 / 0.66, 1e8 / 0.66), "NONE", None),
        ((1e8 / 0.66, 1e8 / 0.7), "CENTIMETER", None),
        ((1, 1), "CENTIMETER", None),
    ],
)
def test_resolution_tags_are_believed_where_they_are_a_microscopes(tmp_path, resolution, unit, wanted):
    data = COUNTS.astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", data, photometric="minisblack", resolution=resolution, resolutionunit=unit)
    with frames.open_frames(tmp_path / "a.tif") as movie:
        assert movie.pixel_size == (wanted and pytest.approx(wanted, rel=1e-6))


# ---------------------------------------------------------------------------- EER


@pytest.mark.parametrize(
    ("compression", "bits"), [(65000, None), (65001, None), (65002, (7, 2, 2)), (65002, (9, 3, 1)), (65002, (6, 1, 4))]
)
@pytest.mark.parametrize("fill", [0, 0.001, 0.05, 0.5, 1])
def test_eer(tmp_path, compression, bits, fill):
    rng = np.random.default_rng(5)
    data = (rng.random((5, 24, 40)) < fill).astype(np.uint8)
    path = put(tmp_path / "a.eer", eer(data, compression, bits))
    np.testing.assert_array_equal(stack(path), data)
    with frames.open_frames(path) as movie:
        assert movie.pixel_size == pytest.approx(0.75)


def test_both_even_and_odd_numbers_of_bytes_are_decoded():
    """What `test_eer` rests on."""
    assert {len(events((np.random.default_rng(5).random((24, 40)) < p).astype(np.uint8))) % 2 for p in (0.05, 0.06)}


@pytest.mark.parametrize("options", [{"final_image": True}, {"strips": 3}, {"metadata": b""}, {"metadata": b"<meta"}])
def test_eer_of_other_programs(tmp_path, options):
    path = put(tmp_path / "a.eer", eer(HITS, **options))
    np.testing.assert_array_equal(stack(path), HITS)
    with frames.open_frames(path) as movie:
        assert movie.pixel_size == (pytest.approx(0.75) if "metadata" not in options else None)


@pytest.mark.parametrize(
    ("raw", "wanted", "group"),
    [(2, None, 1), (100, None, 1), (101, None, 2), (119, None, 2), (120, None, 3), (1000, None, 25), (1000, 7, 7)],
)
def test_the_rule_of_fractions(raw, wanted, group):
    assert frames_tiff.eer_group(raw, wanted, "a.eer") == group
    if wanted is None and raw > 100:
        assert 40 <= raw // group <= 59 and raw % group <= raw / 40


def test_raw_frames_are_summed_and_the_rest_is_recorded(tmp_path):
    data = (np.random.default_rng(7).random((11, 8, 16)) < 0.2).astype(np.uint8)
    path = put(tmp_path / "a.eer", eer(data))
    np.testing.assert_array_equal(stack(path, fraction=4), [data[:4].sum(0), data[4:8].sum(0)])
    with frames.open_frames(path, fraction=4) as movie:
        assert movie.record == {"first": 0, "frames": 2, "raw_frames_per_frame": 4, "raw_frames_left_out": 3}
    assert "wanted 1 to 5" in refused(path, fraction=6)


def test_more_than_255_events_in_a_pixel_are_counted(tmp_path):
    data = np.ones((520, 2, 8), np.uint8)
    data[:, 0] = 0
    assert stack(put(tmp_path / "a.eer", eer(data)), fraction=260).max() == 260
    assert stack(tmp_path / "a.eer").shape == (40, 2, 8)  # 13 raw frames each, the default


# ---------------------------------------------------------------------------- use


@pytest.fixture(params=["a.mrc", "b.mrc", "a.tif", "a.eer"])
def movie_path(request, tmp_path):
    """A movie that is mapped, one of 4 bits, and two that are decoded; all of HITS."""
    path = tmp_path / request.param
    n, h, w = HITS.shape
    if path.suffix == ".mrc":
        mode, content = (0, HITS.tobytes()) if path.stem == "a" else (101, nibbles(HITS))
        return put(path, bytes(mrc_head(w, h, n, mode)) + content)
    if path.suffix == ".eer":
        return put(path, eer(HITS))
    tifffile.imwrite(path, HITS, photometric="minisblack", compression="lzw", rowsperstrip=7)
    return path


def test_a_frame_is_read_into_an_array_of_ones_own(movie_path):
    out = np.full(HITS.shape[1:], 9, np.uint8)
    with frames.open_frames(movie_path) as movie:
        assert movie.read(1, out) is out
        np.testing.assert_array_equal(out, HITS[1])
        np.testing.assert_array_equal(movie.read(0, out), HITS[0])  # and anew
        for wrong in (out[:-1], out.astype(np.uint16), np.asfortranarray(out)):
            with pytest.raises(ValueError, match="out has"):
                movie.read(0, wrong)


def test_frames_are_numbered_as_a_sequence_is(movie_path):
    with frames.open_frames(movie_path) as movie:
        np.testing.assert_array_equal(movie[-1], HITS[-1])
        np.testing.assert_array_equal(movie[np.int64(1)], HITS[1])
        for index in (len(HITS), -len(HITS) - 1):
            with pytest.raises(IndexError):
                movie[index]
            with pytest.raises(IndexError):
                movie.read(index)


def test_a_range_of_frames_is_numbered_anew(movie_path):
    with frames.open_frames(movie_path) as movie:
        part = movie.part(FrameRange(1, 2))
        assert part.shape == (2, *HITS.shape[1:]) and part.record["first"] == 1
        np.testing.assert_array_equal(np.stack(list(part)), HITS[1:])
        with pytest.raises(IndexError):
            part[2]
        with pytest.raises(InputError, match=r"holds frames 0-2, wanted 1-3"):
            movie.part(FrameRange(1, 3))


def test_threads_may_ask_at_once(movie_path):
    order = np.random.default_rng(0).integers(0, len(HITS), 400)
    with frames.open_frames(movie_path) as movie, concurrent.futures.ThreadPoolExecutor(8) as pool:
        for index, frame in zip(order, pool.map(movie.read, order), strict=True):
            np.testing.assert_array_equal(frame, HITS[index])


def test_a_disk_that_gives_a_few_bytes_at_a_time(tmp_path, monkeypatch):
    path = put(tmp_path / "a.eer", eer(HITS))
    whole = os.pread
    monkeypatch.setattr(frames.os, "pread", lambda file, size, at: whole(file, min(size, 7), at))
    np.testing.assert_array_equal(stack(path), HITS)


@pytest.mark.parametrize("form", ["tif", "eer", "mrc", "4bit"])
def test_memory_is_that_of_one_frame(tmp_path, form):
    n, side = 6, 1024
    data = (np.random.default_rng(0).random((n, side, side)) < 0.02).astype(np.uint8)
    path = tmp_path / f"a.{form.replace('4bit', 'mrc')}"
    if form == "tif":
        tifffile.imwrite(path, data, photometric="minisblack", compression="lzw")
    elif form == "eer":
        path.write_bytes(eer(data))
    else:
        packed = data[:, :, ::2] | data[:, :, 1::2] << 4
        mode, content = (0, data) if form == "mrc" else (101, packed)
        path.write_bytes(bytes(mrc_head(side, side, n, mode)) + content.tobytes())
    with frames.open_frames(path) as movie:
        movie.read(0)
        tracemalloc.start()
        for i in range(n):
            movie.read(i)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    # The frame, the strip that it is decoded to, the compressed bytes; in `for`, none of the frame before.
    assert peak < 2.3 * side * side


# ---------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.dm4", "is no movie by its name; wanted a file that ends in .mrcs.bz2"), ("missing.tif", "no such file")],
)
def test_a_file_that_is_no_movie(tmp_path, name, text):
    if name != "missing.tif":
        put(tmp_path / name, b"x")
    assert text in refused(tmp_path / name)


def test_a_folder_is_no_movie(tmp_path):
    (tmp_path / "a.mrc").mkdir()
    assert "cannot read (Is a directory)" in refused(tmp_path / "a.mrc")


@pytest.mark.parametrize("name", ["a.mrc", "a.tif", "a.mrc.bz2"])
def test_fractions_are_for_eer(tmp_path, name):
    assert "only the raw frames of an EER" in refused(tmp_path / name, fraction=2)


@pytest.mark.parametrize(("mode", "size"), [(3, 4), (4, 8)])
def test_complex_mrc(tmp_path, mode, size):
    path = put(tmp_path / "a.mrc", bytes(mrc_head(4, 4, 2, mode)) + bytes(2 * 16 * size))
    assert f"is of MRC mode {mode}" in refused(path)


def test_a_cut_movie_is_refused_when_it_is_opened(movie_path):
    movie_path.write_bytes(movie_path.read_bytes()[:-9])
    with pytest.raises(InputError, match="not a complete"), frames.open_frames(movie_path):
        pass


@pytest.mark.parametrize("name", ["a.mrc.gz", "a.mrc.bz2"])
def test_a_cut_compressed_movie(tmp_path, name):
    content = (gzip if name.endswith("gz") else bz2).compress(
        bytes(mrc_head(W, H, N, 0)) + COUNTS.astype("u1").tobytes()
    )
    assert "not a complete" in refused(put(tmp_path / name, content[:-9]))


def test_a_frame_whose_strip_ends_early_is_named(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, COUNTS.astype(np.uint8), photometric="minisblack", compression="deflate")
    with tifffile.TiffFile(path) as opened:
        at, size = opened.pages[1].dataoffsets[0], opened.pages[1].databytecounts[0]
    content = bytearray(path.read_bytes())
    content[at : at + size] = bytes(size)
    assert "frame 1 cannot be decoded" in refused(put(path, content))
    with frames.open_frames(path) as movie:
        np.testing.assert_array_equal(movie[2], COUNTS[2])


@pytest.mark.parametrize(
    ("frame", "options", "text"),
    [
        (COUNTS[0].astype(np.uint8), {"compression": "jpeg"}, "is compressed by JPEG; wanted compression none, LZW"),
        (COUNTS[0].astype(np.complex64), {}, "holds complex64 pixels"),
        (np.zeros((H, W, 3), np.uint8), {"photometric": "rgb"}, "a page holds 21 x 34 x 3"),
    ],
)
def test_tiff_that_is_no_movie(tmp_path, frame, options, text):
    tifffile.imwrite(tmp_path / "a.tif", frame, **options)
    assert text in refused(tmp_path / "a.tif")


def test_pixels_that_the_compressed_bytes_cannot_hold_get_no_memory(tmp_path):
    wide = tiff(COUNTS.astype(np.uint8), compression=8, t256=(4, (16384,)), t257=(4, (16384,)), t278=(4, (16384,)))
    assert "cannot hold 16384 x 16384 pixels" in refused(put(tmp_path / "a.tif", wide))
    wider = tiff(COUNTS.astype(np.uint8), compression=8, t256=(4, (16384,)), t257=(4, (16385,)), t278=(4, (16385,)))
    assert "wanted at most 268435456 in each" in refused(put(tmp_path / "a.tif", wider))
    data = events(np.zeros((64, 64), np.uint8))
    assert 64 * 64 <= len(data) * 8 / 7 * 127  # the least that an EER frame takes is let through
    wide = eer(HITS).replace(field(256, 40), field(256, 24000))
    assert "cannot hold 24 x 24000 pixels" in refused(put(tmp_path / "a.eer", wide))


def field(tag, value):
    """A BigTIFF field of one LONG."""
    return struct.pack("<HHQQ", tag, 4, 1, value)


def test_an_event_beyond_the_last_pixel_is_damage(tmp_path):
    tall = np.zeros((3, 24, 40), np.uint8)
    tall[1, 20, 3] = 1
    content = eer(tall).replace(field(257, 24), field(257, 20))
    assert "frame 0 cannot be decoded" in refused(put(tmp_path / "a.eer", content))


# ---------------------------------------------------------------------------- damage at random


@pytest.mark.parametrize("form", ["mrc", "gz", "bz2", "tiff", "eer", "dm"])
def test_damage_at_random_gives_a_sentence(form):
    """No crash, no hang, no memory, no other exception: see `fuzz_frames`.  CRYON2N_FUZZ: files of each format."""
    n = int(os.environ.get("CRYON2N_FUZZ", 500))
    done = subprocess.run(
        [sys.executable, "-W", "error", ROOT / "tests" / "fuzz_frames.py", form, str(n), str(n)],
        capture_output=True,
        text=True,
        timeout=60 + n,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > n / 3  # most of the damage was noticed
