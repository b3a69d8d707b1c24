"""Files that are whole or not there, settings that are checked, and the thin command line."""

import argparse
import bz2
import gzip
import struct
from dataclasses import dataclass, field

import mrcfile
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryon2n import cli, files, micrograph_image, mrcio, settings
from cryon2n.errors import InputError
from making import white

# ---------------------------------------------------------------------------- atomic writes


def test_a_block_that_fails_leaves_nothing_and_keeps_the_old_file(tmp_path):
    path = tmp_path / "deep" / "x.txt"
    with pytest.raises(RuntimeError), files.atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert list(path.parent.iterdir()) == []
    files.write_text(path, "old")
    with pytest.raises(RuntimeError), files.atomic_path(path) as temporary:
        temporary.write_text("half")
        assert path.read_text() == "old" and temporary.suffix == ".txt" and temporary.parent == path.parent
        raise RuntimeError
    assert path.read_text() == "old" and list(path.parent.iterdir()) == [path]


def test_nan_never_gets_into_json(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "x.json", {"x": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_json_that_is_missing_or_damaged_is_named(tmp_path):
    with pytest.raises(InputError, match=r"x\.json: cannot read"):
        files.read_json(tmp_path / "x.json")
    for content in (b'{"half": ', b"\xff\xfe\x00"):
        (tmp_path / "x.json").write_bytes(content)
        with pytest.raises(InputError, match=r"x\.json: not valid JSON"):
            files.read_json(tmp_path / "x.json")


def test_the_checksum_is_sha256(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")  # FIPS 180-2, example B.1
    assert files.sha256_of(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# ---------------------------------------------------------------------------- tables


def test_a_table_comes_back(tmp_path):
    rows = [{"name": "m 1", "x": 0.123456789, "n": 3}, {"name": "m2", "x": float("nan"), "n": 10**9}]
    files.write_table(tmp_path / "t.tsv", rows, ["name", "n", "x"])
    back = files.read_table(tmp_path / "t.tsv", ["name", "x"])
    assert back == [{"name": "m 1", "n": "3", "x": "0.123457"}, {"name": "m2", "n": "1000000000", "x": "nan"}]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("name\n1\n", "column 'x' is missing"),
        ("", "column 'name', 'x' is missing"),
        ("name,x\nm,1\n", "column 'name', 'x' is missing"),
        ("name\tx\nm\t1\nm2\n", "row 2 has not the 2 columns"),
        ("name\tx\nm\t1\t9\n", "row 1 has not the 2 columns"),
        (b"name\tx\n\xff\xfe\t1\n", "not a text table"),
    ],
)
def test_a_table_that_is_none_is_refused(tmp_path, content, text):
    path = tmp_path / "t.tsv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=rf"t\.tsv: .*{text}"):
        files.read_table(path, ["name", "x"])


def test_comments_in_a_table_are_left_out(tmp_path):
    (tmp_path / "t.tsv").write_text("# where it is from\nname\tx\n# another\nm\t1\n")
    assert files.read_table(tmp_path / "t.tsv", ["name"]) == [{"name": "m", "x": "1"}]
    with pytest.raises(InputError, match="cannot read the table"):
        files.read_table(tmp_path / "none.tsv", [])


# ---------------------------------------------------------------------------- MRC


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint8])
@pytest.mark.parametrize("shape", [(7, 9), (3, 7, 9)])
def test_an_mrc_file_comes_back_and_is_valid(tmp_path, dtype, shape):
    # mrcfile's validation sums float16 in float16: small values there.
    data = np.random.default_rng(0).integers(0, 4 if dtype == np.float16 else 256, shape).astype(dtype)
    path = tmp_path / "x.mrc"
    mrcio.write_mrc(path, data, 0.6575, "a label")
    back, pixel = mrcio.read_mrc(path)
    np.testing.assert_array_equal(back, data.astype(np.float32))
    assert back.dtype == np.float32 and pixel == pytest.approx(0.6575, rel=1e-6)
    assert mrcfile.validate(path)
    with mrcfile.open(path) as mrc:
        assert mrc.header.label[0].decode().startswith("cryon2n") and b"a label" in mrc.header.label[0]
        assert mrc.is_image_stack() == (len(shape) == 3)
        assert (mrc.header.mode == 0) == (dtype == np.uint8)


def test_bytes_above_127_are_marked_unsigned_and_read_so(tmp_path):
    counts = np.arange(256, dtype=np.uint8).reshape(16, 16)
    mrcio.write_mrc(tmp_path / "x.mrc", counts, 1.5, "counts")
    assert struct.unpack_from("<2i", (tmp_path / "x.mrc").read_bytes(), 152) == (1146047817, 0)  # IMOD's mark
    np.testing.assert_array_equal(micrograph_image.read(tmp_path / "x.mrc").image, counts)


@pytest.mark.parametrize(("pack", "ending"), [(gzip.compress, ".gz"), (bz2.compress, ".bz2")])
def test_compressed_files_are_read_and_damaged_ones_refused(tmp_path, pack, ending):
    mrcio.write_mrc(tmp_path / "x.mrc", white(1, (40, 50)), 1.5)
    packed = pack((tmp_path / "x.mrc").read_bytes())
    path = tmp_path / f"x.mrc{ending}"
    path.write_bytes(packed)
    np.testing.assert_array_equal(mrcio.read_mrc(path)[0], white(1, (40, 50)))
    middle = len(packed) // 2
    for damaged in (packed[:middle], packed[:middle] + bytes(200) + packed[middle + 200 :], b"no archive"):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=f"x.mrc{ending}: not a complete MRC file"):
            mrcio.read_mrc(path)


def test_a_single_section_is_an_image(tmp_path):
    mrcio.write_mrc(tmp_path / "x.mrc", white(1, (1, 8, 9)), 1.5)
    assert mrcio.read_mrc(tmp_path / "x.mrc")[0].shape == (8, 9)


@given(keep=st.integers(0, 1024 + 4 * 20 * 30 - 1))
def test_no_truncated_file_is_ever_taken_for_whole(tmp_path_factory, keep):
    path = tmp_path_factory.getbasetemp() / "truncated.mrc"
    mrcio.write_mrc(path, white(1, (20, 30)), 1.5)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"truncated\.mrc: not a complete MRC file"):
        mrcio.read_mrc(path)


@pytest.mark.filterwarnings("ignore:Data array contains NaN")
def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.mrc: no such file"):
        mrcio.read_mrc(tmp_path / "none.mrc")
    with pytest.raises(InputError, match="not a complete MRC file"):
        mrcio.read_mrc(tmp_path)  # a folder
    data = white(1, (20, 30))
    data[3, 4] = np.nan
    mrcio.write_mrc(tmp_path / "x.mrc", data, 1.5)
    with pytest.raises(InputError, match=r"x\.mrc: 1 pixels are NaN"):
        mrcio.read_mrc(tmp_path / "x.mrc")


def test_a_header_without_pixel_size_gives_none(tmp_path):
    mrcio.write_mrc(tmp_path / "x.mrc", white(1, (20, 30)), 0.0)
    assert mrcio.read_mrc(tmp_path / "x.mrc")[1] is None


def test_a_real_micrograph_is_read(shared_data):
    data, pixel = mrcio.read_mrc(next((shared_data / "mrcfile-1.5.4").glob("fei-extended.mrc*")))
    assert sorted(data.shape) == [3710, 3838] and pixel == pytest.approx(0.85378, rel=1e-4)
    assert data.min() >= 0  # unsigned


# ---------------------------------------------------------------------------- settings


@dataclass(frozen=True)
class Example:
    rate: float = 1.0
    limit: float | None = None
    count: int = 1
    name: str = "x"
    flag: bool = False
    sizes: tuple[int, ...] = (1,)
    inner: dict = field(default_factory=dict)


def parsed(*args):
    parser = argparse.ArgumentParser()
    settings.add_settings_arguments(parser)
    return settings.settings_from_arguments(Example, parser.parse_args(args))


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("rate", "2", 2.0), ("rate", "1e-05", 1e-5), ("rate", "2.5E+3", 2500.0), ("limit", "null", None),
        ("limit", "3", 3.0), ("count", "7", 7), ("name", "seven", "seven"), ("flag", "true", True),
        ("sizes", "[4, 5]", (4, 5)), ("inner", "{a: 1}", {"a": 1}),
    ],
)  # fmt: skip
def test_settings_are_converted(tmp_path, name, text, value):
    found = getattr(parsed("--set", f"{name}={text}"), name)
    assert found == value and type(found) is type(value)
    (tmp_path / "s.yaml").write_text(f"{name}: {text}\n")
    assert getattr(parsed("--settings", str(tmp_path / "s.yaml")), name) == value


def test_small_numbers_survive_the_way_through_json():
    import json

    assert parsed("--settings", json.dumps({"rate": 3e-7})).rate == 3e-7


@pytest.mark.parametrize(
    "pair",
    ["rate=fast", "rate=true", "rate=.nan", "rate=.inf", "count=1.5", "count=true", "name=3", "flag=1", "sizes=[1.5]",
     "sizes=3", "inner=3", "count=null", "unknown=1", "nothing", "rate={", "name=[1]"],
)  # fmt: skip
def test_settings_of_a_wrong_kind_are_refused(pair):
    with pytest.raises(InputError, match=r"found|unknown setting|wanted|not valid"):
        parsed("--set", pair)


def test_settings_files_that_are_none_are_refused(tmp_path):
    for content in ("[1, 2]", "a: [", ""):
        (tmp_path / "s.yaml").write_text(content)
        with pytest.raises(InputError, match=r"s\.yaml"):
            parsed("--settings", str(tmp_path / "s.yaml"))
    with pytest.raises(InputError, match=r"none\.yaml: cannot read"):
        parsed("--settings", str(tmp_path / "none.yaml"))


def test_set_overrides_the_file(tmp_path):
    (tmp_path / "s.yaml").write_text("rate: 1e-3\ncount: 4\n")
    found = parsed("--settings", str(tmp_path / "s.yaml"), "--set", "count=5")
    assert (found.rate, found.count) == (1e-3, 5)


# ---------------------------------------------------------------------------- command line


def test_an_unknown_stage_ends_with_2_and_the_list(cryon2n):
    done = cryon2n("denoise-everything", check=False)
    assert done.returncode == 2 and "unknown stage 'denoise-everything'" in done.stderr
    assert all(stage in done.stderr for stage in cli.STAGES)


def test_help_and_version(capsys):
    assert cli.main(["--help"]) == 0 and "split-halves" in capsys.readouterr().out
    assert cli.main([]) == 0
    capsys.readouterr()
    assert cli.main(["--version"]) == 0 and capsys.readouterr().out.startswith("cryon2n ")


@pytest.mark.parametrize("name", ["write-shards", "write_shards"])
def test_both_spellings_of_a_stage_are_taken(name, tmp_path, capsys):
    assert cli.main([name, "--train", str(tmp_path / "m.json"), "--out", str(tmp_path / "s")]) == 2
    assert "[write-shards] error:" in capsys.readouterr().err


def test_a_missing_argument_ends_with_2(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["write-shards"])
    assert end.value.code == 2 and "--train" in capsys.readouterr().err
