"""The movie sheet: read as written, and nothing unsafe in it."""

import re
from pathlib import Path

import pytest

from cryon2n import files
from cryon2n.errors import InputError
from cryon2n.movie_header import Geometry
from cryon2n.movie_sheet import (
    MovieRow,
    entry_number,
    movie_url,
    printable,
    read_sheet,
    sheet_text,
    write_sheet,
)
from cryon2n.names import micrograph_name

STUDY = Path(__file__).parents[2] / "config" / "movies" / "empiar-10025.tsv"
OLD = "# a comment\nmicrograph\tpath\tsize\tsha256\n"
NEW = "micrograph\tpath\tsize\tsha256\tframes\theight\twidth\tdata_type\n"
GOOD = f"a\tdata/a.mrc\t5\t{'0' * 64}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (OLD, "no movies"),
        ("micrograph\tpath\na\tb\n", "'size', 'sha256'"),
        (OLD + GOOD + GOOD, "row 2: .* is there twice"),
        (OLD + GOOD + "b\tdata/a.mrc\t5\t-\n", r"row 2: data/a\.mrc is there twice"),
        (OLD + "../a\tdata/a.mrc\t5\t-\n", "row 1: '../a'"),
        (OLD + "a/b\tdata/a.mrc\t5\t-\n", "row 1: 'a/b'"),
        (OLD + "a b\tdata/a.mrc\t5\t-\n", "row 1: 'a b'"),
        (OLD + "a\t/etc/passwd\t5\t-\n", "row 1: ''"),
        (OLD + "a\tdata/../../a.mrc\t5\t-\n", r"row 1: '\.\.'"),
        (OLD + "a\tdata/a.mrc\t-5\t-\n", "'-5'"),
        (OLD + "a\tdata/a.mrc\t0\t-\n", "'0'"),
        (OLD + "a\tdata/a.mrc\t2.1e9\t-\n", r"size is '2\.1e9', wanted bytes"),
        (OLD + "a\tdata/a.mrc\t5\tabc\n", "'abc'.*SHA-256"),
        (OLD + "a\tdata/a.mrc\t5\n", "row 1"),
        (NEW + "a\tdata/a.mrc\t5\t-\t0\t4\t4\tuint8\n", r"row 1 \(a\): frames is '0'"),
        (NEW + "a\tdata/a.mrc\t5\t-\t3\tx\t4\tuint8\n", "height is 'x'"),
        (NEW + "a\tdata/a.mrc\t5\t-\t3\t4\t4.0\tuint8\n", r"width is '4\.0'"),
        (NEW + "a\tdata/a.mrc\t5\t-\t3\t4\t4\tuint8; rm\n", "data_type is 'uint8; rm'"),
    ],
)
def test_faults_of_a_sheet(tmp_path, text, message):
    path = tmp_path / "sheet.tsv"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as error:
        read_sheet(path)
    assert str(path) in str(error.value)


def test_sheet_is_read_as_written(tmp_path):
    rows = [
        MovieRow("a", "data/a.mrc", 5, "0" * 64, Geometry(38, 7676, 7420, "uint8")),
        MovieRow("b", "data/b.tif", 7, None, Geometry(None, 4, 3, None)),
        MovieRow("c", "data/c.mrc"),
    ]
    write_sheet(tmp_path / "s.tsv", rows, ["from a test,\nin two lines \x1b[31m"])
    assert read_sheet(tmp_path / "s.tsv") == rows
    text = (tmp_path / "s.tsv").read_text()
    assert text == sheet_text(rows, ["from a test, in two lines [31m"], "it")
    assert text.startswith("# from a test, in two lines [31m\nmicrograph\t")


@pytest.mark.parametrize("type_", ["uint4", "int16", "float16", "complex64", "complex_int16"])
def test_data_types_of_movies_are_taken(tmp_path, type_):
    rows = [MovieRow("a", "data/a.mrc", geometry=Geometry(data_type=type_))]
    write_sheet(tmp_path / "s.tsv", rows, [])
    assert read_sheet(tmp_path / "s.tsv") == rows


def test_older_sheets_have_no_geometry(tmp_path):
    (tmp_path / "s.tsv").write_text(OLD + GOOD)
    assert read_sheet(tmp_path / "s.tsv") == [MovieRow("a", "data/a.mrc", 5, "0" * 64)]


def test_unsafe_rows_are_not_written(tmp_path):
    with pytest.raises(InputError, match=r"row 1: '\.\.'"):
        write_sheet(tmp_path / "s.tsv", [MovieRow("a", "../a.mrc")], [])
    assert not (tmp_path / "s.tsv").exists()


@pytest.mark.parametrize(
    "name",
    ["m_1es.frames.mrc", "m_1es.mrc", "m_1es.mrcs", "m_1es.frames.tif", "m_1es.TIFF", "m_1es.eer", "m_1es.mrc.bz2"],
)
def test_micrograph_names(name):
    assert micrograph_name(name) == "m_1es"


def test_names_that_are_no_movies():
    for name in ("mic.dm4", "mic.txt", "mic"):
        with pytest.raises(InputError, match=f"'{re.escape(name)}': is not a movie"):
            micrograph_name(name)
    with pytest.raises(InputError, match="no safe micrograph name"):
        micrograph_name("../m.mrc")


def test_accessions():
    assert {entry_number(e) for e in (10025, "10025", "EMPIAR-10025", "empiar-10025")} == {"10025"}
    for entry in ("../10025", "10025/..", "EMD-6287", "", "١٠٠٢٥"):
        with pytest.raises(InputError, match="accession"):
            entry_number(entry)


def test_text_of_a_server_cannot_steer_a_terminal():
    assert printable("T20S\nat\t2.8 Å \x1b]0;x\x07 \u202edrawkcab\u2028") == "T20S at 2.8 Å ]0;x drawkcab"


def test_sheet_of_the_study():
    rows = read_sheet(STUDY)
    assert len(rows) == 20
    pattern = r"14sep05c_(c_\d{5}gr_)?\d{5}sq_\d{5}hl_\d{5}es"
    for row in rows:
        assert re.fullmatch(pattern, row.micrograph)
        assert row.path == f"data/14sep05c_raw_196/{row.micrograph}.frames.mrc"
        assert row.geometry == Geometry(38, 7676, 7420, "uint8")
        assert row.size == 1024 + 38 * 7676 * 7420
    base = "https://ftp.ebi.ac.uk/empiar/world_availability"
    assert movie_url(base, 10025, rows[0]) == f"{base}/10025/{rows[0].path}"


def test_sheet_of_the_study_holds_the_known_names(shared_data):
    known = files.read_table(shared_data / "empiar-10025" / "movie_names.tsv", ["movie"])
    assert [f"{row.micrograph}.frames" for row in read_sheet(STUDY)] == [k["movie"] for k in known]
