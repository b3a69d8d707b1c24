"""Gain and dark references and defects of every format; what is no reference is refused by name."""

import gzip
import struct

import numpy as np
import pytest
import tifffile

from cryon2n import movies, mrcio, references
from cryon2n.errors import InputError
from cryon2n.frame_range import FrameRange
from making import command, corrected, defects_of, white, write_movie
from movie_files import dm, eer

SHAPE = (36, 52)
GAIN = (1 + 0.1 * white(1, SHAPE)).astype(np.float32)


def write(path, gain=GAIN):
    """Write a reference in the format that the name calls for."""
    if path.suffix in (".tif", ".gain"):
        tifffile.imwrite(path, gain, compression="lzw")
    elif path.suffix in (".dm3", ".dm4"):
        path.write_bytes(dm([gain], int(path.suffix[3])))
    else:
        mrcio.write_mrc(path.parent / "plain.mrc", gain, 1.0)
        content = (path.parent / "plain.mrc").read_bytes()
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


NAMES = ["g.mrc", "g.mrc.gz", "g.tif", "g.gain", "g.dm3", "g.dm4"]


@pytest.mark.parametrize("name", NAMES)
def test_every_format_gives_the_same_gain(tmp_path, name):
    path = write(tmp_path / name)
    np.testing.assert_array_equal(references.read_reference(path, "gain"), GAIN)
    renamed = path.rename(tmp_path / "gain.ref")  # the content tells, not the name
    np.testing.assert_array_equal(references.read_reference(renamed, "gain"), GAIN)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("version", [3, 4])
@pytest.mark.parametrize("dtype", ["i2", "f4", "u1", "i4", "u2", "f8"])
def test_gatans_files(tmp_path, dtype, version, order):
    image = (100 * GAIN).astype(dtype)
    (tmp_path / "g.dm4").write_bytes(dm([image], version, order))
    found = references.read_reference(tmp_path / "g.dm4", "gain")
    np.testing.assert_array_equal(found, image.astype(np.float32))


def test_gatans_file_whose_numbers_do_not_agree(tmp_path):
    path, whole = tmp_path / "g.dm4", dm([GAIN])
    h, w = SHAPE

    def number(value):
        return b"%%%%" + struct.pack(">qqI", 1, 5, 0)[:-4] + struct.pack("<I", value)

    assert whole.count(number(w)) == 1
    path.write_bytes(whole.replace(number(w), number(w - 1)))
    assert f"its image has {h * w * 4} bytes, {h} x {w - 1} pixels need {h * (w - 1) * 4}" in refused(path)
    # Read backwards, the tags would go in a circle.
    array = struct.pack(">qqqq", 3, 20, 6, h * w)
    assert whole.count(array) == 1
    path.write_bytes(whole.replace(array, struct.pack(">qqqq", 3, 20, 6, -20)))
    assert "the data of ImageList/1/ImageData/Data would end at byte" in refused(path)


def refused(path):
    with pytest.raises(InputError) as error:
        references.read_reference(path, "gain")
    assert path.name in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", NAMES)
def test_a_cut_reference(tmp_path, name):
    path = write(tmp_path / name)
    path.write_bytes(path.read_bytes()[:-300])
    assert "not a complete" in refused(path)


@pytest.mark.parametrize("name", NAMES)
def test_a_reference_with_nan(tmp_path, name):
    gain = GAIN.copy()
    gain[3, 4:6] = np.nan, np.inf
    if "mrc" in name:
        with pytest.warns(RuntimeWarning):  # mrcfile's, of what is planted here
            path = write(tmp_path / name, gain)
    else:
        path = write(tmp_path / name, gain)
    assert "2 pixels are NaN or infinite" in refused(path)


def test_several_images(tmp_path):
    (tmp_path / "a.dm4").write_bytes(dm([GAIN, GAIN]))
    assert "holds 2 images" in refused(tmp_path / "a.dm4")
    tifffile.imwrite(tmp_path / "a.tif", np.stack([GAIN, GAIN]), photometric="minisblack")
    assert "the gain reference has shape (2, 36, 52); wanted one image" in refused(tmp_path / "a.tif")
    write_movie(tmp_path / "a.mrc", np.stack([GAIN, GAIN]))
    assert "the gain reference has shape (2, 36, 52); wanted one image" in refused(tmp_path / "a.mrc")


@pytest.mark.parametrize("content", [b"", b"<html>503</html>", b"\0\0\0\4"])
def test_what_is_no_reference(tmp_path, content):
    (tmp_path / "g.dm4").write_bytes(content)
    refused(tmp_path / "g.dm4")


def test_a_missing_reference(tmp_path):
    assert "no such file" in refused(tmp_path / "g.gain")


def test_a_gain_that_divides_becomes_one_that_multiplies():
    gain = np.array([[2.0, 0.5], [0.0, -1.0]], np.float32)
    np.testing.assert_array_equal(references.as_multiplier(gain, "divide"), [[0.5, 2.0], [0.0, 0.0]])
    np.testing.assert_array_equal(references.as_multiplier(gain, "multiply"), gain)
    with pytest.raises(InputError, match="reference_operation: found 'invert', wanted one of multiply, divide"):
        references.as_multiplier(gain, "invert")


# ---------------------------------------------------------------------------- defects


def test_a_list_of_rectangles(tmp_path):
    (tmp_path / "defects.txt").write_text("# x y w h\n51 0 1 36\n\n10 20 3 2  # a block\n")
    wanted = np.zeros(SHAPE, bool)
    wanted[:, 51] = True
    wanted[20:22, 10:13] = True
    np.testing.assert_array_equal(references.read_defects(tmp_path / "defects.txt", SHAPE), wanted)


@pytest.mark.parametrize("name", ["d.tif", "d.mrc", "d.dm4"])
def test_an_image_of_defects(tmp_path, name):
    image = np.zeros(SHAPE, np.float32)
    image[3, 4], image[30, 50] = 1, -2
    np.testing.assert_array_equal(references.read_defects(write(tmp_path / name, image), SHAPE), image != 0)
    with pytest.raises(InputError, match=rf"{name}: the defect map has shape \(36, 52\); wanted .*\(52, 36\)"):
        references.read_defects(tmp_path / name, SHAPE[::-1])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1 2 3", "line 1 is '1 2 3'; wanted x y w h"),
        ("0 0 1 1\nBadColumns 17 18", "line 2 is 'BadColumns 17 18'.*clip defect -D"),
        ("-1 0 2 2", "line 1"),
        ("50 0 3 1", r"columns 50 to 52 and rows 0 to 0; wanted pixels of a frame of 36 x 52"),
        ("0 36 1 1", "rows 36 to 36"),
        ("0 0 0 1", "line 1 marks"),
        ("0 0 99999999 9", "line 1 marks"),
        ("caf\xe9", "not a text file"),
    ],
)
def test_lists_that_cannot_be(tmp_path, text, says):
    (tmp_path / "defects.txt").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=rf"defects\.txt: .*{says}"):
        references.read_defects(tmp_path / "defects.txt", SHAPE)


# ---------------------------------------------------------------------------- with a movie


def test_defects_are_turned_to_the_frames_and_found_again(tmp_path):
    counts = np.random.default_rng(0).poisson(4.0, (20, *SHAPE)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "m.tif", counts, photometric="minisblack", compression="lzw")
    (tmp_path / "d.txt").write_text("5 1 2 1\n")
    with movies.open_movie(tmp_path / "m.tif", defects=tmp_path / "d.txt", defects_transform="flip_y") as movie:
        assert np.argwhere(defects_of(movie)).tolist() == [[34, 5], [34, 6]]
    (tmp_path / "d.txt").write_text("3 50 1 1\n")  # of a camera that is read out with its sides exchanged
    with movies.open_movie(tmp_path / "m.tif", defects=tmp_path / "d.txt", defects_transform="transpose") as movie:
        assert np.argwhere(movie.defects).tolist() == [[3, 50]]


def test_a_range_of_frames_of_a_movie(tmp_path):
    counts = np.random.default_rng(0).poisson(4.0, (9, *SHAPE)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "m.tif", counts, photometric="minisblack", compression="zstd")
    with movies.open_movie(tmp_path / "m.tif", frames=FrameRange(2, 6)) as movie:
        assert movie.frames.shape == (5, *SHAPE)
        np.testing.assert_array_equal(corrected(movie, 0), counts[2])


@pytest.fixture(scope="module")
def falcon(tmp_path_factory):
    """An EER movie of 60 raw frames behind a response, and that response as the camera's .gain."""
    folder, shape = tmp_path_factory.mktemp("falcon"), (192, 208)
    response = (1 + 0.1 * white(3, shape)).clip(0.5).astype(np.float32)
    rng = np.random.default_rng(4)
    (folder / "m.eer").write_bytes(eer((rng.random((60, *shape)) < 0.4 * response).astype(np.uint8)))
    write(folder / "camera.gain", response)
    return folder


@pytest.mark.parametrize(("options", "code", "says"), [(["divide"], 0, "agrees"), (["multiply"], 2, "inverse")])
def test_the_check_tells_a_gain_that_divides(falcon, capsys, options, code, says):
    done = command("check-gain", "--movie", falcon / "m.eer", "--gain", falcon / "camera.gain", "--operation", *options)
    assert done == code and f"\n{says}: " in capsys.readouterr().out


def test_frames_of_a_falcon_are_divided(falcon):
    with movies.open_movie(falcon / "m.eer", falcon / "camera.gain", operation="divide", fraction=20) as movie:
        response = references.read_reference(falcon / "camera.gain", "gain")
        np.testing.assert_allclose(corrected(movie, 1) * response, movie.frames[1], rtol=1e-6)
        assert movie.frames.shape == (3, 192, 208) and movie.pixel_size == pytest.approx(0.75)
