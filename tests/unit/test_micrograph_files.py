"""Micrographs as files: every mode read, headers carried to the output, statistics, float16, quick looks."""

import bz2
import gzip
import io
import shutil
import struct
import subprocess

import mrcfile
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from mrcfile.dtypes import HEADER_DTYPE
from PIL import Image

from cryon2n import micrograph_image, micrograph_outputs
from cryon2n.errors import InputError
from cryon2n.micrograph_inputs import MicrographImage, read
from movie_files import mrc_head, nibbles

H, W = 21, 34
NOTE = "denoised, for viewing and picking, not for reconstruction"
COUNTS = np.random.default_rng(1).poisson(5.0, (H, W)).clip(0, 15)
EXTENDED = np.random.default_rng(2).bytes(2 * 768)  # what FEI1 has for two sections
# What the output says of itself; the rest of a header is its source's.
OWN = ("mode", "dmin", "dmax", "dmean", "rms", "nlabl", "label", "nversion", "map", "machst")
STORED = {0: "u1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}


def whole_head(mode, order, extended=EXTENDED, labels=(b"first", b"second  ")):
    """A header with something in every field that is to be kept."""
    head = mrc_head(W, H, 1, mode, order, 0.83)
    struct.pack_into(f"{order}3i", head, 16, -7, 11, 2)  # nxstart
    struct.pack_into(f"{order}3f", head, 52, 90, 90, 90)
    struct.pack_into(f"{order}3i", head, 64, 1, 2, 3)
    struct.pack_into(f"{order}i", head, 92, len(extended))
    head[104:108] = b"FEI1"
    struct.pack_into(f"{order}i", head, 108, 20140)
    struct.pack_into(f"{order}3f", head, 196, 1.5, -2.5, 3.0)  # origin
    struct.pack_into(f"{order}i", head, 220, len(labels))
    for i, text in enumerate(labels):
        head[224 + 80 * i : 224 + 80 * i + len(text)] = text
    return head


def put(path, content):
    path.write_bytes(bytes(content))
    return path


def mrc(path, image, mode=2, order="<", **options):
    pixels = nibbles(image[None]) if mode == 101 else image.astype(order + STORED[mode]).tobytes()
    head = whole_head(mode, order, **options)
    return put(path, head + options.get("extended", EXTENDED) + pixels)


def fields(path):
    """The header of a file and its extended header, as a reader of its own sees them."""
    content = path.read_bytes()
    order = {0x44: "<", 0x11: ">"}[content[212]]
    header = np.frombuffer(content[:1024], HEADER_DTYPE.newbyteorder(order))[0]
    return header, content[1024 : 1024 + int(header["nsymbt"])]


def written(path, image, source, dtype="float32", label=NOTE):
    """Write, have mrcfile judge it, and return its pixels."""
    micrograph_outputs.write(path, image, source, dtype=dtype, label=label)
    assert [p.name for p in path.parent.iterdir() if p.name.startswith(".")] == []
    said = io.StringIO()
    with mrcfile.open(path) as found:
        valid = found.validate(print_file=said)
        assert (valid, said.getvalue()) == (True, "")
        return found.data.copy()


def same_but_for(path, source, extended, allowed=OWN):
    """Check that an output has its source's header fields, labels and extended header."""
    before, (after, kept) = source, fields(path)
    for name in HEADER_DTYPE.names:
        if name not in allowed:
            assert before[name].tobytes() == after[name].tobytes(), name
    labels = [text for text in before["label"] if text.strip()]
    assert kept == extended
    assert list(after["label"][: len(labels)]) == labels and after["nlabl"] == len(labels) + 1
    assert NOTE.encode() in after["label"][len(labels)]


# ---------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("mode", [0, 1, 2, 6, 12, 101])
def test_every_mode_is_read_and_its_header_goes_on(tmp_path, mode, order, dtype):
    path = mrc(tmp_path / "a.mrc", COUNTS, mode, order)
    found = read(path)
    np.testing.assert_array_equal(found.image, COUNTS)
    assert found.image.dtype == np.float32 and found.image.flags.c_contiguous
    assert found.pixel_size == pytest.approx(0.83, rel=1e-6)
    assert found.header.extended == EXTENDED
    result = found.image / 4 - 1  # exact in float16
    pixels = written(tmp_path / "out.mrc", result, found, dtype)
    assert pixels.dtype.name == dtype
    np.testing.assert_array_equal(pixels, result)
    same_but_for(tmp_path / "out.mrc", fields(path)[0], EXTENDED)
    again = read(tmp_path / "out.mrc")
    assert again.pixel_size == found.pixel_size
    np.testing.assert_array_equal(again.image, result)


@pytest.mark.parametrize(("ending", "compress"), [(".gz", gzip.compress), (".bz2", bz2.compress)])
def test_compressed_files_are_read_like_others(tmp_path, ending, compress):
    path = mrc(tmp_path / "a.mrc", COUNTS)
    packed = put(tmp_path / f"a.mrc{ending}", compress(path.read_bytes()))
    plain, found = read(path), read(packed)
    np.testing.assert_array_equal(plain.image, found.image)
    assert (plain.header, plain.pixel_size) == (found.header, found.pixel_size)
    assert sorted(tmp_path.iterdir()) == [path, packed]


def test_real_files_keep_their_headers(tmp_path, shared_data):
    paths = sorted(shared_data.glob("apoferritin-10146/*_[ab].mrc"))[:6]
    for path in [*paths, shared_data / "mrcfile-1.5.4" / "fei-extended.mrc.bz2"]:
        plain = put(tmp_path / "plain.mrc", bz2.decompress(path.read_bytes())) if path.suffix == ".bz2" else path
        found, out = read(path), tmp_path / "out.mrc"
        with mrcfile.open(plain) as theirs:
            np.testing.assert_array_equal(found.image, theirs.data.astype(np.float32))
            assert found.pixel_size == pytest.approx(float(theirs.voxel_size.x), rel=1e-6)
        np.testing.assert_array_equal(written(out, found.image, found), found.image)
        before, extended = fields(plain)
        same_but_for(out, before, extended)
    assert before["exttyp"] == b"FEI1" and len(extended) == 768 * 1024
    with mrcfile.open(out) as ours, mrcfile.open(plain) as theirs:  # the last one: what the microscope wrote
        key = ours.indexed_extended_header["HT"].dtype
        assert key == theirs.indexed_extended_header["HT"].dtype
        assert ours.indexed_extended_header["HT"][0] == theirs.indexed_extended_header["HT"][0] == 300000


def test_a_relion_tiff_is_the_micrograph_that_it_was_made_from(tmp_path):
    program = shutil.which("relion_convert_to_tiff")
    if program is None:
        pytest.skip("RELION (relion_convert_to_tiff) is not installed")
    with mrcfile.new(tmp_path / "a.mrc") as file:
        file.set_data(COUNTS[None].astype(np.int16))
        file.set_image_stack()
    subprocess.run([program, "--i", "a.mrc", "--o", "tiff/"], cwd=tmp_path, check=True, capture_output=True)
    np.testing.assert_array_equal(read(tmp_path / "tiff" / "a.tif").image, COUNTS)


def test_a_tiff_has_its_rows_turned_over_and_gets_a_header(tmp_path):
    options = {"resolution": (1 / 1.25e-8, 1 / 1.25e-8), "resolutionunit": "CENTIMETER", "compression": "zlib"}
    tifffile.imwrite(tmp_path / "a.tif", COUNTS.astype(np.uint16), **options)
    found = read(tmp_path / "a.tif")
    np.testing.assert_array_equal(found.image, COUNTS[::-1])
    assert found.pixel_size == pytest.approx(1.25) and found.header is None
    np.testing.assert_array_equal(written(tmp_path / "out.mrc", found.image, found), COUNTS[::-1])
    assert read(tmp_path / "out.mrc").pixel_size == pytest.approx(1.25)


# ---------------------------------------------------------------------------- reading


@pytest.mark.parametrize(
    ("stamp", "flags", "least", "signed"),
    [(0, 0, 0.0, False), (0, 0, -90.0, True), (1146047817, 1, 0.0, True), (1146047817, 0, -90.0, False)],
)
def test_bytes_are_signed_if_imod_or_the_minimum_says_so(tmp_path, stamp, flags, least, signed):
    image = np.array([[0, 100, 200], [255, 5, 6]], np.uint8)
    head = mrc_head(3, 2, 1, 0)
    struct.pack_into("<f", head, 76, least)
    struct.pack_into("<2i", head, 152, stamp, flags)
    found = read(put(tmp_path / "a.mrc", head + image.tobytes()))
    np.testing.assert_array_equal(found.image, image.view(np.int8) if signed else image)
    micrograph_outputs.write(tmp_path / "out.mrc", found.image, found, label=NOTE)
    assert struct.unpack_from("<2i", (tmp_path / "out.mrc").read_bytes(), 152) == (stamp, 0)


def test_a_stack_of_one_is_a_micrograph_and_of_two_is_not(tmp_path):
    with mrcfile.new(tmp_path / "a.mrcs") as file:
        file.set_data(np.stack([COUNTS, COUNTS]).astype(np.float32)[:1])
        file.set_image_stack()
    np.testing.assert_array_equal(read(tmp_path / "a.mrcs").image, COUNTS)
    for name in ("b.mrc", "b.mrc.bz2"):
        mrcfile.new(tmp_path / name, np.zeros((2, H, W), np.int16), compression="bzip2" if "bz2" in name else None)
        with pytest.raises(InputError, match=r"b.mrc.*: holds 2 images; wanted one micrograph"):
            read(tmp_path / name)


def test_pixels_that_are_no_numbers_are_left_to_the_repair(tmp_path):
    image = COUNTS.astype(np.float32)
    image[3, 4:7] = np.nan, np.inf, -np.inf
    np.testing.assert_array_equal(read(mrc(tmp_path / "a.mrc", image)).image, image)


@pytest.mark.parametrize(("value", "said"), [(3.0, "is constant"), (np.nan, "holds only NaN or infinity")])
def test_an_image_without_contrast_is_refused(tmp_path, value, said):
    with pytest.raises(InputError, match=said):
        read(mrc(tmp_path / "a.mrc", np.full((H, W), value)))


def test_one_odd_pixel_is_contrast(tmp_path, monkeypatch):
    monkeypatch.setattr(micrograph_image, "SAMPLES", 8)
    image = np.full((H, W), 3.0)
    image[H // 2, W // 2 + 1] = 4
    np.testing.assert_array_equal(read(mrc(tmp_path / "a.mrc", image)).image, image)


# ---------------------------------------------------------------------------- writing


def image_of(header=None, pixel_size=None):
    return MicrographImage(COUNTS.astype(np.float32), pixel_size, header)


def test_of_ten_labels_the_oldest_goes(tmp_path):
    path = mrc(tmp_path / "a.mrc", COUNTS, labels=[f"label {i}".encode() for i in range(10)])
    found = read(path)
    written(tmp_path / "out.mrc", found.image, found)
    labels = [text.decode() for text in fields(tmp_path / "out.mrc")[0]["label"]]
    assert labels[:9] == [f"label {i}" for i in range(1, 10)] and NOTE in labels[9]
    assert len(labels[9]) <= 80


def test_another_pixel_size_replaces_the_headers_and_none_keeps_them(tmp_path):
    found = read(mrc(tmp_path / "a.mrc", COUNTS))
    for size, cell in ((1.7, (1.7 * W, 1.7 * H, 1.7)), (None, (0.83 * W, 0.83 * H, 0.83))):
        written(tmp_path / "out.mrc", found.image, MicrographImage(found.image, size, found.header))
        header = fields(tmp_path / "out.mrc")[0]
        np.testing.assert_allclose(tuple(header["cella"].item()), cell, rtol=1e-6)
        assert tuple(header["origin"].item()) == (1.5, -2.5, 3.0)


def test_an_image_of_another_shape_has_its_own_size(tmp_path):
    found = read(mrc(tmp_path / "a.mrc", COUNTS))
    written(tmp_path / "out.mrc", found.image[:10, :12], found)
    header = fields(tmp_path / "out.mrc")[0]
    assert [int(header[k]) for k in ("nx", "ny", "nz", "mx", "my", "mz")] == [12, 10, 1, 12, 10, 1]
    assert read(tmp_path / "out.mrc").pixel_size == pytest.approx(0.83)


@settings(max_examples=150, deadline=None)
@given(st.binary(min_size=1024, max_size=1024), st.sampled_from("<>"), st.integers(0, 40), st.sampled_from([2, 12]))
def test_whatever_stands_in_a_header_the_output_is_valid(tmp_path_factory, head, order, extended, mode):
    folder = tmp_path_factory.getbasetemp()
    head = bytearray(head)
    struct.pack_into(f"{order}4i", head, 0, W, H, 1, mode)
    struct.pack_into(f"{order}i", head, 92, extended)
    head[208:216] = b"MAP " + (b"DD\0\0" if order == "<" else b"\x11\x11\0\0")
    path = put(folder / "wild.mrc", head + bytes(extended) + COUNTS.astype(order + STORED[mode]).tobytes())
    found = read(path)
    np.testing.assert_array_equal(written(folder / "wild_out" / "a.mrc", found.image, found), COUNTS)
    assert fields(folder / "wild_out" / "a.mrc")[1] == bytes(extended)


@pytest.mark.parametrize("offset", [0.0, 1e4, -3e6])
def test_statistics_are_exact_far_from_zero(offset):
    # Larger than a chunk, and not a multiple of it.
    image = (np.random.default_rng(3).standard_normal((300, 701)) + offset).astype(np.float32)
    exact = image.astype(np.float64)
    wanted = exact.min(), exact.max(), exact.mean(), exact.std()
    np.testing.assert_allclose(micrograph_outputs.statistics(image), wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (COUNTS * 1e5, r"values reach .*, float16 holds at most 65504; take --dtype float32"),
        (COUNTS + 2e4, r"rounding to float16 would change the image by .*%"),
        (COUNTS * 1e-8, r"rounding to float16 would change the image by .*%"),
        (np.where(COUNTS > 5, np.nan, COUNTS), "holds NaN or infinity"),
    ],
)
def test_what_does_not_fit_into_float16_is_refused_and_not_cut(tmp_path, image, said):
    with pytest.raises(InputError, match=said):
        micrograph_outputs.write(tmp_path / "a.mrc", image, image_of(), dtype="float16", label=NOTE)
    assert list(tmp_path.iterdir()) == []


def test_counts_with_a_background_fit_into_float16(tmp_path):
    # So many that their sum, and that of their squares, is beyond what float16 holds.
    image = (1000 + 5 * np.random.default_rng(4).standard_normal((500, 600))).astype(np.float32)
    found = written(tmp_path / "a.mrc", image, image_of(), "float16").astype(np.float64)
    assert np.std(found - image) < 0.05 * np.std(image)
    header = fields(tmp_path / "a.mrc")[0]
    assert (header["dmin"], header["dmax"], header["rms"]) == (found.min(), found.max(), -1)
    assert header["dmean"] == pytest.approx(found.mean(), rel=1e-6)


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(header, label):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(micrograph_outputs, "_with_label", full)
    put(tmp_path / "a.mrc", b"as it was")
    with pytest.raises(OSError, match="No space left"):
        micrograph_outputs.write(tmp_path / "a.mrc", COUNTS, image_of(), label=NOTE)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"as it was"]


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_a_quick_look_is_small_and_shows_bright_where_bright_is(tmp_path, name):
    image = np.random.default_rng(5).standard_normal((301, 203))
    image[:150] += 8
    micrograph_outputs.write_quicklook(tmp_path / name, image, side=100)
    with Image.open(tmp_path / name) as picture:
        assert (picture.mode, picture.size) == ("L", (203 // 4, 301 // 4))
        grey = np.asarray(picture, np.float64)
    assert grey[:30].mean() > 180 and grey[45:].mean() < 75
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_boxes_are_averaged():
    image = np.arange(20.0).reshape(4, 5)
    # [[0, 1], [5, 6]] and so on; the fifth column fills no box.
    np.testing.assert_array_equal(micrograph_outputs.shrunk(image, 2), [[3, 5], [13, 15]])
