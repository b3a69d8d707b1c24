"""Movie headers: what whole, damaged and wrong files are taken for."""

import bz2
import gzip
import os
import random
import re
import struct
import time
import tracemalloc

import mrcfile
import numpy as np
import pytest
import tifffile
from PIL import Image

from cryon2n.errors import InputError
from cryon2n.movie_header import (
    MOVIE_ENDINGS,
    Geometry,
    WrongFile,
    check_head,
    check_movie,
    movie_ending,
    parse_mrc_header,
    read_head,
)

FRAMES, H, W = 3, 10, 14
MOVIE = Geometry(FRAMES, H, W, "uint8")
COUNTS = np.random.default_rng(1).poisson(1.0, (FRAMES, H, W)).astype(np.uint8)
HTML = b"\n<!DOCTYPE html><html><body>503 Service Unavailable</body></html>" + b" " * 2000
ANY = Geometry()
HEAD = 1 << 16


def mrc_head(w=W, h=H, n=FRAMES, mode=0, extended=0, order="<", stamp=None) -> bytes:
    head = bytearray(1024)
    struct.pack_into(f"{order}4i", head, 0, w, h, n, mode)
    struct.pack_into(f"{order}i", head, 92, extended)
    head[212:214] = (b"\x44\x44" if order == "<" else b"\x11\x11") if stamp is None else stamp
    return bytes(head)


MRC = mrc_head() + COUNTS.tobytes()

SIZES = {3: 2, 4: 4, 16: 8}  # bytes of the types SHORT, LONG and LONG8 of a TIFF field
FORMS = {3: "H", 4: "I", 16: "Q"}


def tiff(frames=COUNTS, order="<", big=False, rows=H, directory_last=False, compression=1, pages=None, **fields):
    """Write a TIFF by hand (TIFF 6.0, section 2; BigTIFF), all of whose places are known.

    `fields` replace (``t256=(4, (7,))``: type and values) or, with None, remove a page's fields; `pages` tells of
    which pages.
    """
    place, count, small, offset_type = ("Q", "Q", 8, 16) if big else ("I", "H", 4, 4)
    out = bytearray({"<": b"II", ">": b"MM"}[order] + struct.pack(order + "H", 43 if big else 42))
    out += struct.pack(order + "HH", 8, 0) if big else b""
    link = len(out)  # where the place of the next directory is to be written
    out += bytes(struct.calcsize(place))

    def put_data(frame):
        places, sizes = [], []
        for strip in (frame[i : i + rows].tobytes() for i in range(0, len(frame), rows)):
            places.append(len(out))
            sizes.append(len(strip))
            out.extend(strip)
        return places, sizes

    for number, frame in enumerate(frames):
        n_strips = -(-frame.shape[0] // rows)
        places, sizes = put_data(frame) if directory_last else ([0] * n_strips, [0] * n_strips)
        here = {
            256: (4, (frame.shape[1],)),
            257: (4, (frame.shape[0],)),
            258: (3, (frame.itemsize * 8,)),
            259: (3, (compression,)),
            262: (3, (1,)),
            273: (offset_type, places),
            277: (3, (1,)),
            278: (4, (rows,)),
            279: (offset_type, sizes),
            339: (3, ({"u": 1, "i": 2, "f": 3}[frame.dtype.kind],)),
        }
        changed = pages is None or number in pages
        here |= {int(name[1:]): value for name, value in fields.items() if changed}
        here = {tag: value for tag, value in sorted(here.items()) if value}
        begin = len(out)
        struct.pack_into(order + place, out, link, begin)
        field = 4 + 2 * struct.calcsize(place)
        link = begin + struct.calcsize("=" + count) + field * len(here)
        out += bytes(link - begin + struct.calcsize(place))
        struct.pack_into(order + count, out, begin, len(here))
        lists = {}
        for i, (tag, (kind, values)) in enumerate(here.items()):
            at = begin + struct.calcsize("=" + count) + field * i
            struct.pack_into(f"{order}HH{place}", out, at, tag, kind, len(values))
            at += field - struct.calcsize(place)
            if len(values) * SIZES[kind] > small:
                struct.pack_into(order + place, out, at, len(out))
                at = len(out)
                out += bytes(len(values) * SIZES[kind])
            struct.pack_into(f"{order}{len(values)}{FORMS[kind]}", out, at, *values)
            lists[tag] = at
        if not directory_last:
            for tag, values in zip((273, 279), put_data(frame), strict=True):
                if f"t{tag}" not in fields or not changed:
                    struct.pack_into(f"{order}{n_strips}{FORMS[offset_type]}", out, lists[tag], *values)
    return bytes(out)


def eer(frames=COUNTS, **changes):
    return tiff(frames, **{"big": True, "compression": 65001, **changes})


def check(tmp_path, content, name, wanted=ANY):
    """Check a complete file of the given content and name, which lies under another name."""
    path = tmp_path / "it.part"
    path.write_bytes(content)
    check_movie(path, name, "the-file", wanted)


def refused(tmp_path, content, name, wanted=ANY) -> str:
    """Return the sentence with which a complete file is refused."""
    with pytest.raises(WrongFile, match=r"^the-file: .*(check|fetch)") as error:
        check(tmp_path, content, name, wanted)
    assert "\n" not in str(error.value)
    return str(error.value)


# One whole movie of 3 frames of 10 x 14 (h x w), counts, in each format
WHOLE = {
    "a.mrc": MRC,
    "a.frames.mrcs": mrc_head(order=">", extended=96) + bytes(96) + COUNTS.tobytes(),
    "a.mrc.gz": gzip.compress(MRC),
    "a.mrcs.bz2": bz2.compress(MRC),
    "a.tif": tiff(rows=4),
    "b.tif": tiff(rows=4, order=">", directory_last=True),
    "a.tiff": tiff(rows=3, big=True, order=">"),
    "a.eer": eer(),
    "b.eer": eer(directory_last=True),
}
every_format = pytest.mark.parametrize("name", WHOLE)


# Names


@pytest.mark.parametrize(
    ("name", "ending"),
    [
        ("mic.frames.mrc", ".mrc"),
        ("mic.MRCS", ".mrcs"),
        ("mic.mrc.bz2", ".mrc.bz2"),
        ("mic.mrcs.GZ", ".mrcs.gz"),
        ("FoilHole_1.EER", ".eer"),
        ("mic.tif", ".tif"),
        ("mic.tiff", ".tiff"),
        ("gain.dm4", None),
        ("mrc", None),
        ("notes.mrc.txt", None),
        ("archive.bz2", None),
    ],
)
def test_endings(name, ending):
    assert movie_ending(name) == ending


def test_the_longest_ending_comes_first():
    assert list(MOVIE_ENDINGS) == sorted(MOVIE_ENDINGS, key=len, reverse=True)


@pytest.mark.parametrize("name", ["gain.dm4", "notes.txt", "mic"])
def test_what_is_no_movie_is_not_checked(tmp_path, name):
    assert read_head(HTML, name, "it") is None
    check_head(HTML, name, 5, "it", MOVIE)
    check(tmp_path, HTML, name, MOVIE)


# All formats


@every_format
def test_whole_movie(tmp_path, name):
    content = WHOLE[name]
    check(tmp_path, content, name, MOVIE)
    check_head(content[:HEAD], name, len(content), "it", MOVIE)
    tells_frames = "mrc" in name
    assert read_head(content[:HEAD], name, "it") == Geometry(FRAMES if tells_frames else None, H, W, "uint8")


@every_format
@pytest.mark.parametrize(
    "change", [{"frames": 4}, {"h": W, "w": H}, {"data_type": "float32"}], ids=["frames", "sides", "type"]
)
def test_another_movie_than_wanted(tmp_path, name, change):
    wanted = Geometry(**({"frames": FRAMES, "h": H, "w": W, "data_type": "uint8"} | change))
    sentence = f"the-file: holds {MOVIE}, wanted {wanted}; check the address or the sheet's row"
    assert refused(tmp_path, WHOLE[name], name, wanted) == sentence
    check(tmp_path, WHOLE[name], name, Geometry(**{key: None for key in change}))
    if "mrc" in name or "frames" not in change:  # a TIFF's first page does not tell how many follow
        with pytest.raises(WrongFile, match=r"holds .*3|holds frames of 10 x 14"):
            check_head(WHOLE[name], name, len(WHOLE[name]), "it", wanted)


def test_words_of_a_geometry():
    assert str(Geometry(38, 7676, 7420, "uint8")) == "38 frames of 7676 x 7420 (h x w), uint8"
    assert str(Geometry(1, None, 5)) == "1 frame of ? x 5 (h x w)"
    assert str(Geometry(data_type="int16")) == "frames, int16"


@every_format
def test_error_page_under_a_movies_name(tmp_path, name):
    assert "begins like an HTML or XML page" in refused(tmp_path, HTML, name)
    with pytest.raises(WrongFile, match="HTML"):
        read_head(HTML, name, "it")
    with pytest.raises(WrongFile, match="HTML"):
        check_head(HTML, name, len(HTML), "it", ANY)


@every_format
def test_truncated_anywhere(tmp_path, name):
    path = tmp_path / "it.part"
    path.write_bytes(WHOLE[name])
    for length in reversed(range(len(WHOLE[name]))):
        os.truncate(path, length)
        with pytest.raises(WrongFile):
            check_movie(path, name, "the-file", ANY)


@every_format
def test_another_format_under_the_name(tmp_path, name):
    families = {".mrcs": ".mrc", ".tiff": ".tif", ".eer": ".tif", ".mrcs.bz2": ".bz2", ".mrc.gz": ".gz"}
    own = movie_ending(name)
    for other, content in WHOLE.items():
        ending = movie_ending(other)
        if families.get(ending, ending) == families.get(own, own):
            continue
        assert "is not a" in refused(tmp_path, content, name)
        with pytest.raises(WrongFile, match="is not a"):
            read_head(content, name, "it")


def test_file_that_cannot_be_read_is_not_a_wrong_one(tmp_path):
    for name in ("a.mrc", "a.mrc.gz", "a.tif", "a.eer"):
        for path in (tmp_path / name, tmp_path):  # not there; a folder
            with pytest.raises(InputError, match="cannot read") as error:
                check_movie(path, name, "it", ANY)
            assert type(error.value) is InputError


# MRC


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("mode", "row_bytes", "data_type"),
    [
        (0, 5, "uint8"),
        (1, 10, "int16"),
        (2, 20, "float32"),
        (3, 20, "complex_int16"),
        (4, 40, "complex64"),
        (6, 10, "uint16"),
        (12, 10, "float16"),
        (101, 3, "uint4"),  # 5 pixels of 4 bits, padded to whole bytes
    ],
)
def test_mrc_modes(order, mode, row_bytes, data_type):
    head = mrc_head(5, 4, 3, mode, extended=80, order=order)
    header = parse_mrc_header(head, "it")
    assert (header.order, header.mode, header.extended) == (order, mode, 80)
    assert (header.data_start, header.frame_bytes) == (1024 + 80, 4 * row_bytes)
    assert header.size == 1024 + 80 + 3 * 4 * row_bytes
    assert header.geometry == Geometry(3, 4, 5, data_type)
    check_head(head, "a.mrc", header.size, "it", Geometry(3, 4, 5, data_type))
    with pytest.raises(WrongFile, match=f"has {header.size + 1} bytes.*needs {header.size}"):
        check_head(head, "a.mrc", header.size + 1, "it", ANY)


def test_the_studys_movie():
    assert parse_mrc_header(mrc_head(7420, 7676, 38), "it").size == 2_164_325_984  # bytes, the entry's size


@pytest.mark.parametrize("dtype", ["int8", "int16", "uint16", "float32", "float16", "complex64"])
def test_mrc_as_another_program_writes_it(tmp_path, dtype):
    with mrcfile.new(tmp_path / "a.mrc") as mrc:
        mrc.set_data(np.zeros((3, 4, 5), dtype))
        mrc.set_extended_header(np.zeros(7, "V4"))
    check_movie(tmp_path / "a.mrc", "a.mrc", "it", Geometry(3, 4, 5, "uint8" if dtype == "int8" else dtype))


@pytest.mark.parametrize("order", ["<", ">"])
def test_byte_order_without_a_machine_stamp(order):
    header = parse_mrc_header(mrc_head(order=order, stamp=b"\0\0"), "it")
    assert (header.order, header.geometry) == (order, MOVIE)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (mrc_head()[:1023], "it has 1023 bytes, an MRC header 1024"),
        (b"", "it has 0 bytes"),
        (mrc_head(mode=5), r"mode 5, 3 frames of 10 x 14 \(h x w\)"),
        (mrc_head(w=0), "10 x 0"),
        (mrc_head(h=-1), "-1 x 14"),
        (mrc_head(n=0), "0 frames"),
        (mrc_head(extended=-4), "is not an MRC file"),
        (bytes(1024), "mode 0, 0 frames"),
    ],
)
def test_what_is_no_mrc_header(tmp_path, head, message):
    with pytest.raises(WrongFile, match=message):
        parse_mrc_header(head, "it")
    refused(tmp_path, head, "a.mrc")


def test_mrc_with_bytes_too_many_or_too_few(tmp_path):
    message = f"has {len(MRC) + 1} bytes, but its MRC header ({MOVIE}) needs {len(MRC)}"
    assert message in refused(tmp_path, MRC + b"\0", "a.mrc")
    assert f"has {len(MRC) - 1} bytes" in refused(tmp_path, MRC[:-1], "a.mrc")


def test_header_that_claims_the_world(tmp_path):
    frames, side = 2**31 - 1, 2**18
    sentence = refused(tmp_path, mrc_head(side, side, frames, 4), "a.mrc")
    assert f"needs {1024 + 8 * frames * side**2}" in sentence
    assert "is not an MRC file" in refused(tmp_path, mrc_head(side + 1), "a.mrc")


# Compressed MRC


@pytest.mark.parametrize(("module", "ending"), [(gzip, ".gz"), (bz2, ".bz2")])
def test_compressed_in_several_streams(tmp_path, module, ending):
    # As pigz and pbzip2 write it, which compress pieces at the same time.
    content = module.compress(MRC[:1100]) + module.compress(MRC[1100:])
    check(tmp_path, content, "a.mrc" + ending, MOVIE)
    refused(tmp_path, content[: len(module.compress(MRC[:1100]))], "a.mrc" + ending)


@pytest.mark.parametrize(("module", "ending"), [(gzip, ".gz"), (bz2, ".bz2")])
def test_compressed_movie_of_another_size_than_its_header(tmp_path, module, ending):
    for content, size in ((MRC[:-1], len(MRC) - 1), (MRC + b"\0", len(MRC) + 1)):
        sentence = refused(tmp_path, module.compress(content), "a.mrc" + ending)
        assert f"has {size} bytes" in sentence and "decompressed" in sentence and f"needs {len(MRC)}" in sentence


@pytest.mark.parametrize(("module", "ending"), [(gzip, ".gz"), (bz2, ".bz2")])
def test_damage_in_compressed_pixels(tmp_path, module, ending):
    content = bytearray(module.compress(MRC))
    content[len(content) // 2] ^= 0x10
    assert "is not a complete" in refused(tmp_path, bytes(content), "a.mrc" + ending)


def test_a_microscopes_file(shared_data, tmp_path):
    path = shared_data / "mrcfile-1.5.4" / "fei-extended.mrc.bz2"
    with mrcfile.open(path, header_only=True) as mrc:
        header = mrc.header
        wanted = Geometry(int(header.nz), int(header.ny), int(header.nx))
        assert header.nsymbt > 0 and header.exttyp.item().startswith(b"FEI")
    check_movie(path, path.name, "it", wanted)
    refused(tmp_path, path.read_bytes()[:-30], path.name)


def test_first_block_of_bzip2_is_longer_than_the_head(tmp_path):
    noise = np.random.default_rng(2).integers(0, 256, (1, 500, 600), np.uint8)
    content = bz2.compress(mrc_head(600, 500, 1) + noise.tobytes())
    assert len(content) > 2 * HEAD
    assert read_head(content[:HEAD], "a.mrc.bz2", "it") is None
    check_head(content[:HEAD], "a.mrc.bz2", len(content), "it", MOVIE)  # nothing is known, nothing is refused
    check(tmp_path, content, "a.mrc.bz2", Geometry(1, 500, 600, "uint8"))


def peak_of(work) -> int:
    """Return the most bytes that Python and NumPy held at a time."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_compressed_movies_are_checked_in_constant_memory(tmp_path):
    frames = 60
    content = gzip.compress(mrc_head(1000, 1000, frames) + bytes(frames * 10**6))
    assert peak_of(lambda: check(tmp_path, content, "a.mrc.gz", Geometry(frames))) < 10 << 20


def test_a_bomb_is_not_unpacked_to_its_end(tmp_path):
    zeros = gzip.compress(bytes(1 << 24))
    content = gzip.compress(mrc_head()) + zeros * 2000  # 34 GB
    assert "or more decompressed" in refused(tmp_path, content, "a.mrc.gz")


# TIFF


@pytest.mark.parametrize(
    "how",
    [
        {"rowsperstrip": 4},
        {"rowsperstrip": 4, "compression": "zlib"},
        {"tile": (16, 16), "bigtiff": True},
        {"byteorder": ">", "metadata": None},
    ],
    ids=["strips", "deflate", "tiles", "big-endian"],
)
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32", "float16"])
def test_tiff_as_tifffile_writes_it(tmp_path, how, dtype):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, COUNTS.astype(dtype), photometric="minisblack", **how)
    check_movie(path, path.name, "it", Geometry(FRAMES, H, W, dtype))
    os.truncate(path, path.stat().st_size * 3 // 4)
    with pytest.raises(WrongFile):
        check_movie(path, path.name, "it", ANY)


@pytest.mark.parametrize("w", [W, W - 1])
def test_tiff_of_4_bits(tmp_path, w):
    packed = COUNTS[:, :, : W // 2]  # two pixels to a byte, an odd row padded
    content = tiff(packed, t256=(4, (w,)), t258=(3, (4,)))
    check(tmp_path, content, "a.tif", Geometry(FRAMES, H, w, "uint4"))
    refused(tmp_path, tiff(packed, t256=(4, (W + 1,)), t258=(3, (4,))), "a.tif")


def test_tiff_as_libtiff_writes_it(tmp_path):
    path = tmp_path / "a.tif"
    first, *rest = (Image.fromarray(frame) for frame in COUNTS)
    first.save(path, save_all=True, append_images=rest, compression="tiff_lzw")
    check_movie(path, path.name, "it", MOVIE)


def test_directory_behind_the_first_bytes(tmp_path):
    frames = np.ones((2, 300, 400), np.uint8)
    content = tiff(frames, directory_last=True)
    assert read_head(content[:HEAD], "a.tif", "it") is None
    check_head(content[:HEAD], "a.tif", len(content), "it", MOVIE)
    check(tmp_path, content, "a.tif", Geometry(2, 300, 400, "uint8"))
    # The first 16 bytes do say where it must lie.
    with pytest.raises(WrongFile, match=f"has {HEAD} bytes.*directory is said to lie at byte {8 + 300 * 400}"):
        check_head(content[:HEAD], "a.tif", HEAD, "it", ANY)


def test_list_behind_the_first_bytes(tmp_path):
    content = tiff(np.ones((2, 300, 400), np.uint8), rows=1)
    assert read_head(content[:300], "a.tif", "it") == Geometry(None, 300, 400, "uint8")


def next_links(content: bytes) -> list[int]:
    """Return the places in a little-endian classic TIFF where the place of the next directory stands."""
    places, link = [], 4
    while (directory := struct.unpack_from("<I", content, link)[0]) != 0:
        places.append(link)
        link = directory + 2 + 12 * struct.unpack_from("<H", content, directory)[0]
    return [*places, link]


def with_link(number: int, target: int) -> bytes:
    content = bytearray(tiff())
    struct.pack_into("<I", content, next_links(content)[number], target)
    return bytes(content)


FAR = (1 << 64) - 5
TIFF_FAULTS = {
    "a strip begins beyond the file": (tiff(t273=(4, (5000,)), pages=[2]), "page 3 has strips or tiles beyond"),
    "a strip ends beyond the file": (tiff(t279=(4, (5000,)), pages=[0]), "page 1 has strips or tiles beyond"),
    "place and size overflow": (tiff(big=True, t273=(16, (FAR,)), t279=(16, (9,))), "beyond"),
    "a strip over the header": (tiff(t273=(4, (0,))), "never written"),
    "an empty strip": (tiff(t279=(4, (0,)), pages=[1]), "page 2 .* never written"),
    "too few strips": (tiff(rows=4, t273=(4, (50, 60)), t279=(4, (9, 9))), "2 places and 2 sizes .* wanted 3"),
    "no places": (tiff(t273=None), "0 places"),
    "too few bytes": (tiff(t279=(4, (H * W - 1,))), f"{H * W - 1} bytes of pixels, 10 x 14 pixels need {H * W}"),
    "another size": (tiff(t257=(4, (5,)), t278=(4, (5,)), pages=[1]), r"page 2 is 5 x 14 .* the first 10 x 14"),
    "another type": (tiff(t339=(3, (2,)), pages=[2]), "page 3 is .*int8, the first .*uint8"),
    "colours": (tiff(t277=(3, (3,)), t258=(3, (8, 8, 8))), "10 x 14 x 3, wanted one value for each pixel"),
    "no width": (tiff(t256=None), "10 x 0"),
    "two widths": (tiff(t256=(4, (3, 4))), "is not a complete tiff movie"),
    "bits of no number": (tiff(t258=(3, (77,))), "77 bits"),
    "a circle": (with_link(3, 8), "circle after page 3"),
    "a page that is its own next": (with_link(1, 8), "circle after page 1"),
    "a link beyond the file": (with_link(2, 1 << 20), f"page 3 would begin at byte {1 << 20}"),
    "a link into the pixels": (with_link(3, len(tiff()) - 1), "is not a complete tiff movie"),
    "no page": (with_link(0, 0), "holds no page"),
}


@pytest.mark.parametrize("fault", TIFF_FAULTS)
def test_faults_of_a_tiff(tmp_path, fault, caplog, capfd):
    content, message = TIFF_FAULTS[fault]
    assert re.search(message, refused(tmp_path, content, "a.tif"))
    assert not caplog.records and capfd.readouterr() == ("", "")  # tifffile logs most of these


def test_cut_in_a_field_that_is_not_needed(tmp_path):
    """A resolution that lies at the end of the file: the pixels are whole, but the file is not."""
    content = bytearray(tiff(COUNTS[:1], directory_last=True, t278=None, t282=(16, (1,))))
    entry = content.index(struct.pack("<HHI", 282, 16, 1))
    struct.pack_into("<H", content, entry + 2, 5)  # RATIONAL, 8 bytes like LONG8
    check(tmp_path, bytes(content), "a.tif", Geometry(1, H, W))
    size = len(content)
    assert f"field 282 of page 1 would end at byte {size} of {size - 1}" in refused(tmp_path, content[:-1], "a.tif")


def test_first_page_that_points_nowhere_is_seen_at_the_first_bytes():
    for target in (0, 1 << 20):
        with pytest.raises(WrongFile, match=f"directory is said to lie at byte {target}"):
            check_head(with_link(0, target), "a.tif", len(tiff()), "it", ANY)


def test_lists_that_claim_the_file_are_not_read(tmp_path):
    """A list of 2^27 places fits into a file of 1 GB: read as Python's integers, it would take 5."""
    content = bytearray(tiff(rows=2))
    (entry,) = [at for at in range(10, 10 + 12 * 10, 12) if struct.unpack_from("<H", content, at)[0] == 273]
    struct.pack_into("<I", content, entry + 4, 1 << 27)
    path = tmp_path / "a.tif"
    with open(path, "wb") as file:
        file.write(content)
        file.truncate(1 << 30)  # takes no place on the disk

    def work():
        with pytest.raises(WrongFile, match="list of"):
            check_movie(path, "a.tif", "it", ANY)

    assert peak_of(work) < 8 << 20


# EER


@pytest.mark.parametrize("compression", [65000, 65001, 65002])
def test_eer_versions(tmp_path, compression):
    # The bits per pixel of an EER are those of its events' sum; it is counts all the same.
    check(tmp_path, eer(compression=compression, t258=(3, (1,))), "a.eer", MOVIE)


def test_eer_with_the_cameras_own_sum_in_front(tmp_path):
    content = eer(np.concatenate([COUNTS[:1], COUNTS]), t259=(3, (1,)), pages=[0])  # not compressed
    check(tmp_path, content, "a.eer", MOVIE)
    assert read_head(content, "a.eer", "it") is None


def test_tiff_under_the_name_of_an_eer(tmp_path):
    assert "no frame of electron events" in refused(tmp_path, tiff(big=True), "a.eer")


def test_time_grows_with_the_pages(tmp_path):
    """Eight times the pages may take eight times as long, not 64 times."""
    path, seconds = tmp_path / "a.eer", {}
    for count in (500, 4000):
        path.write_bytes(eer(np.broadcast_to(COUNTS[0], (count, H, W))))
        start = time.process_time()
        check_movie(path, "a.eer", "it", Geometry(count, H, W, "uint8"))
        seconds[count] = time.process_time() - start
    assert seconds[4000] < 24 * seconds[500]


# Chance damage


def all_checks(path, content: bytes, name: str) -> int:
    """Check a file in every way; return how often it was refused.  Nothing but `WrongFile` may come out."""
    path.write_bytes(content)
    refusals = 0
    for work in (
        lambda: read_head(content[:HEAD], name, "it"),
        lambda: read_head(content[:50], name, "it"),
        lambda: check_head(content[:HEAD], name, len(content), "it", MOVIE),
        lambda: check_movie(path, name, "it", MOVIE),
    ):
        try:
            work()
        except WrongFile as error:
            assert len(str(error)) < 700 and "\n" not in str(error)
            refusals += 1
    return refusals


@every_format
@pytest.mark.parametrize("damage", ["bits", "bytes", "noise", "cut"])
def test_chance_damage(tmp_path, name, damage, caplog, capfd):
    random_of = random.Random(f"{name} {damage}")
    whole, path, rounds = WHOLE[name], tmp_path / "it", 120
    refusals = 0

    def work():
        nonlocal refusals
        for _ in range(rounds):
            content = bytearray(whole)
            if damage == "bits":
                for _ in range(random_of.randint(1, 4)):
                    content[random_of.randrange(min(len(content), 400))] ^= 1 << random_of.randrange(8)
            elif damage == "bytes":
                for _ in range(random_of.randint(1, 20)):
                    at = random_of.randrange(min(len(content), 400))
                    content[at] = random_of.choice([0, 1, 127, 128, 255, random_of.randrange(256)])
            elif damage == "noise":  # behind a beginning that is right
                keep = random_of.choice([0, 4, 8, 16, 30])
                content[keep:] = random_of.randbytes(len(content) - keep)
            else:
                del content[random_of.randrange(len(content)) :]
                content += random_of.randbytes(random_of.choice([0, 3, 100]))
            refusals += all_checks(path, bytes(content), name)

    assert peak_of(work) < 32 << 20
    assert refusals > rounds // 4
    assert not caplog.records and capfd.readouterr() == ("", "")
