"""From an entry's listings to its movie sheet, against a server on this machine."""

import html
import json
import re
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryon2n.empiar import ImageSet
from cryon2n.entry_files import movie_paths, own_format
from cryon2n.listing import read_listing
from cryon2n.movie_header import Geometry
from cryon2n.movie_probe import complete_geometry
from cryon2n.movie_sheet import MovieRow, movie_url, read_sheet, reference_kind
from faultserver import serve

FRAMES, H, W = 3, 10, 12
APACHE = """<!DOCTYPE HTML PUBLIC "-//W3C//DTD HTML 3.2 Final//EN">
<html><head><title>Index of /data/10025/data/raw</title></head><body><pre>
<a href="?C=N;O=D">Name</a> <a href="?C=M;O=A">Last modified</a> <a href="?C=S;O=A">Size</a><hr>
<a href="/data/10025/data/">Parent Directory</a>  <a href="../">..</a>
{rows}
</pre></body></html>
"""
RAW = "/data/10025/data/raw/"
ABOVE = "/data/10025/data/"


def listing(*names: str) -> bytes:
    return APACHE.format(rows="\n".join(f'<a href="{n}">{n[:20]}..&gt;</a> 2015-02-27 2.0G' for n in names)).encode()


def mrc(frames: int = FRAMES, h: int = H, w: int = W) -> bytes:
    """An MRC file of zeros, by the words of MRC2014 that say how long it is."""
    head = bytearray(1024)
    struct.pack_into("<4i", head, 0, w, h, frames, 0)
    head[212:214] = b"\x44\x44"
    return bytes(head) + bytes(frames * h * w)


def tiff(offset: int) -> bytes:
    """The start of a TIFF whose directory lies `offset` bytes into it, and bytes up to there."""
    return b"II*\0" + struct.pack("<I", offset) + bytes(offset + 100)


def entry_reply(**changes) -> bytes:
    averaged = {"name": "Averages", "directory": "data/avg", "category": "micrographs - single frame"}
    raw = {
        "name": "Raw movies",
        "directory": "/data/raw",
        "category": "micrographs - multiframe",
        "data_format": "MRC",
        "num_images_or_tilt_series": 3,
        "frames_per_image": FRAMES,
        "image_width": str(W),
        "image_height": str(H),
        "voxel_type": "SIGNED BYTE",
    }
    about = {"title": "T20S\nat 2.8 Å", "entry_doi": "10.6019/EMPIAR-10025", "imagesets": [averaged, raw | changes]}
    return json.dumps({"EMPIAR-10025": about}).encode()


def put(site, folder: str, **files: bytes) -> None:
    """Serve `files` in a folder, with its listing."""
    site.contents[folder] = listing(*files)
    site.contents |= {folder + name: content for name, content in files.items() if not name.endswith("/")}


@pytest.fixture
def replica():
    """A small copy of an entry: three movies, their references and notes."""
    with serve() as site:
        site.contents["/api/10025/"] = entry_reply()
        put(
            site,
            RAW,
            **{"b.frames.mrc": mrc(), "a.frames.mrc": mrc(), "c.frames.mrc": mrc()},
            **{"norm-amibox05-0.mrc": mrc(1), "dark-amibox05-0.mrc": mrc(1), "run1_shiny.txt": b"", "old/": b""},
        )
        site.contents[ABOVE] = listing("raw/", "avg/")
        yield site


@pytest.fixture
def make(replica, cryon2n, tmp_path):
    """Run `cryon2n empiar sheet 10025 …`; returns the finished process."""

    def run(*arguments, check=True):
        bases = ["--base-api", f"{replica.base}/api", "--base-data", f"{replica.base}/data"]
        patience = ["--set", "backoff=0.01", "--set", "max_backoff=0.02", "--set", "attempts=4"]
        return cryon2n("empiar", "sheet", "10025", *bases, *patience, *arguments, check=check)

    return run


def rows_of(done, tmp_path) -> list[MovieRow]:
    (tmp_path / "from_stdout.tsv").write_text(done.stdout)
    return read_sheet(tmp_path / "from_stdout.tsv")


def refused(done) -> str:
    """The sentence of a refused command, which wrote nothing."""
    assert done.returncode == 2 and done.stdout == "" and "Traceback" not in done.stderr, done.stderr
    return done.stderr.splitlines()[-1]


# The command


def test_sheet_command(replica, make, tmp_path):
    # The API is busy, the listing breaks off, and so does a movie's first request.
    replica.faults = [("status", 503), ("", 0), ("drop", 100), ("", 0), ("", 0), ("drop", 50)]
    done = make("--movies", 2)
    geometry = Geometry(FRAMES, H, W, "uint8")
    size = 1024 + FRAMES * H * W
    rows = [MovieRow(name, f"data/raw/{name}.frames.mrc", size, None, geometry) for name in "ab"]
    assert rows_of(done, tmp_path) == rows
    assert "the listing has 3 movies, as the API says" in done.stderr
    assert "differ" not in done.stderr  # a signed byte by the API is a count by the header
    comments = [line for line in done.stdout.splitlines() if line.startswith("#")]
    assert comments == [
        "# EMPIAR-10025: T20S at 2.8 Å (doi 10.6019/EMPIAR-10025)",
        f"# Image set 'Raw movies', from {replica.base}{RAW}",
        "# 2 of 3 movies, the first by name, 0.00 GB; the listing has 3 movies, as the API says.",
        "# Sizes and dimensions as the files' own first bytes tell. EMPIAR publishes no checksums.",
        "# References, for the config (check-gain tells how they are turned):",
        "# source: dark: data/raw/dark-amibox05-0.mrc",
        "# source: gain: data/raw/norm-amibox05-0.mrc",
        "# Made by: cryon2n empiar sheet 10025 --image-set 'Raw movies' --movies 2",
    ]
    # What the sheet says can be fetched, and one request told all of it (and one broke off).
    assert movie_url(f"{replica.base}/data/", "EMPIAR-10025", rows[0]).removeprefix(replica.base) in replica.contents
    asked = [(a.method, a.path) for a in replica.asked if "frames" in a.path]
    assert len(asked) == 3
    assert set(asked) == {("GET", f"{RAW}{name}.frames.mrc") for name in "ab"}


def test_out_and_all_movies(replica, make, tmp_path):
    done = make("--out", tmp_path / "deep" / "m.tsv", "--image-set", "Raw movies")
    assert done.stdout == ""
    assert [row.micrograph for row in read_sheet(tmp_path / "deep" / "m.tsv")] == ["a", "b", "c"]
    again = make("--image-set", "Raw movies")
    assert again.stdout == (tmp_path / "deep" / "m.tsv").read_text()  # the same to the letter


def test_only_first_bytes_are_taken(replica, make, tmp_path):
    large = mrc(20, 300, 300)
    for name in "abc":
        replica.contents[f"{RAW}{name}.frames.mrc"] = large
    for replica.ranges in (True, False):
        replica.asked.clear()
        replica.seconds_per_piece = 0.005  # so that a server without ranges can be hung up on
        rows = rows_of(make(), tmp_path)
        assert {(row.size, row.geometry) for row in rows} == {(len(large), Geometry(20, 300, 300, "uint8"))}
        movies = [a for a in replica.asked if a.path.endswith("frames.mrc")]
        assert [a.status for a in movies] == [206 if replica.ranges else 200] * 3
        if replica.ranges:
            assert {a.sent for a in movies} == {1 << 16}
        else:
            assert max(a.sent for a in movies) < len(large)


def test_connections_are_bounded(replica, make):
    texts = set()
    for connections in (1, 2):
        replica.connections = 0
        texts.add(make("--set", f"connections={connections}").stdout)
        # One each for the API, the folder and the folder above; the rest for the movies.
        assert replica.connections <= 3 + connections
    assert len(texts) == 1


def test_another_range_is_not_taken(replica, make, tmp_path):
    replica.faults = [("", 0)] * 3 + [("shift", 8)] * 3
    done = make()
    assert "another range" in done.stderr
    assert {row.geometry for row in rows_of(done, tmp_path)} == {Geometry(FRAMES, H, W, "uint8")}


def test_unknown_size_is_left_open(replica, make, tmp_path):
    replica.tells_length = replica.ranges = False
    rows = rows_of(make(), tmp_path)
    assert {(row.size, row.geometry.frames) for row in rows} == {(None, FRAMES)}


def test_more_movies_than_there_are(make):
    assert "3 can be taken, wanted 4" in refused(make("--movies", 4, check=False))
    assert "--movies 0" in refused(make("--movies", 0, check=False))


def test_pattern_chooses_movies(make, tmp_path):
    assert [row.micrograph for row in rows_of(make("--movies", 1, "--pattern", "[bc].*"), tmp_path)] == ["b"]
    assert [row.micrograph for row in rows_of(make("--pattern", "data/raw/c*"), tmp_path)] == ["c"]
    assert "no movie matches --pattern '*.tif' (endings there: 5 x .mrc" in refused(
        make("--pattern", "*.tif", check=False)
    )


def test_averages_are_refused(make):
    assert "'Averages' cannot be used: it holds averaged" in refused(make("--image-set", "Averages", check=False))


# Listings


def test_short_listing_is_asked_again_and_united(replica, make, tmp_path):
    full = replica.contents[RAW]
    first, second = full.replace(b'"b.frames.mrc"', b'"?"'), full.replace(b'"a.frames.mrc"', b'"?"')
    replica.contents[RAW] = first

    def turn(number):  # machines that take turns
        replica.contents[RAW] = first if number % 2 else second

    replica.before = turn
    done = make()
    assert [row.micrograph for row in rows_of(done, tmp_path)] == ["a", "b", "c"]
    assert "2 movies are listed, the API says 3: asking again" in done.stderr
    assert "listing 2 names 1 files that were not in those before" in done.stderr
    assert "the listing has 3 movies, as the API says" in done.stdout
    assert sum(a.path == RAW for a in replica.asked) == 2


def test_movies_that_stay_missing_are_told(replica, make, tmp_path):
    replica.contents["/api/10025/"] = entry_reply(num_images_or_tilt_series="5")
    done = make()
    assert len(rows_of(done, tmp_path)) == 3
    text = "4 listings together have 3 movies, the API says 5: 2 are missing"
    assert text in done.stderr and text in done.stdout
    assert sum(a.path == RAW for a in replica.asked) == 4


def test_more_than_announced_or_no_number(replica, make):
    replica.contents["/api/10025/"] = entry_reply(num_images_or_tilt_series=2)
    assert "the listing has 3 movies, the API says 2" in make().stdout
    replica.contents["/api/10025/"] = entry_reply(num_images_or_tilt_series=None)
    assert "the listing has 3 movies, the API gives no number" in make().stdout


def test_sub_folders_are_looked_into(replica, make, tmp_path):
    names = ["gain_ref.mrc", "Grid1/", "Grid2/", "Gain/"]
    replica.contents[RAW] = listing(*names)
    put(replica, f"{RAW}Grid1/", **{"a.mrc": mrc()})
    put(replica, f"{RAW}Grid2/", **{"b.mrc": mrc(), "c.mrc": mrc()})
    put(replica, f"{RAW}Gain/", **{"K3_1.mrc": mrc(1), "readme.txt": b""})
    done = make()
    assert [row.path for row in rows_of(done, tmp_path)] == [
        "data/raw/Grid1/a.mrc",
        "data/raw/Grid2/b.mrc",
        "data/raw/Grid2/c.mrc",
    ]
    assert "holds no movies itself: looking into its 2 sub-folders" in done.stderr
    assert "# source: gain: one of data/raw/Gain/K3_1.mrc, data/raw/gain_ref.mrc\n" in done.stdout
    put(replica, f"{RAW}Grid2/", **{"a.mrc": mrc()})
    sentence = refused(make(check=False))
    assert "data/raw/Grid1/a.mrc and data/raw/Grid2/a.mrc are of one micrograph" in sentence
    assert [row.path for row in rows_of(make("--pattern", "*/Grid2/*"), tmp_path)] == ["data/raw/Grid2/a.mrc"]


def test_folder_without_movies(replica, make):
    replica.contents[RAW] = listing("a.jpg", "b.jpg", "notes.txt")
    assert "no movies are listed (endings there: 2 x .jpg, 1 x .txt)" in refused(make(check=False))


def test_two_formats_in_one_folder(replica, make, tmp_path):
    put(replica, RAW, **{"a.mrc": mrc(), "b.mrc": mrc(), "a.tif": tiff(8), "c.jpg": b""})
    done = make()
    assert [row.path for row in rows_of(done, tmp_path)] == ["data/raw/a.mrc", "data/raw/b.mrc"]
    assert "left out 1 files of another format than the set's MRC" in done.stderr
    replica.contents["/api/10025/"] = entry_reply(data_format="IMAGIC")
    assert "data/raw/a.mrc and data/raw/a.tif are of one micrograph" in refused(make(check=False))


def test_unsafe_names_in_a_listing(replica, make, tmp_path):
    evil = ["..%2f..%2fevil.mrc", "%2e%2e", "a b.mrc", "x%0ay.mrc", "x%1b[2J.mrc", ".hidden.mrc", "-rf.mrc"]
    evil += ["$(id).mrc", "a..b.mrc", "d/e.mrc"]
    away = ["https://example.com/x.mrc", "//example.com/data/10025/data/raw/x.mrc", "/data/10025/data/other/x.mrc"]
    replica.contents[RAW] = listing("a.frames.mrc", *evil, *away)
    replica.contents["/api/10025/"] = entry_reply(num_images_or_tilt_series=1)
    done = make()
    assert done.stderr.count(f"left out {len(evil)} names") == 1
    assert "\x1b" not in done.stderr + done.stdout
    assert [row.path for row in rows_of(done, tmp_path)] == ["data/raw/a.frames.mrc"]


NGINX = """<html><head><title>Index of /data/raw/</title></head><body><h1>Index of /data/raw/</h1><hr><pre>
<a href="../">../</a>
<a href="sub/">sub/</a>             01-Jul-2015 00:00       -
<a href="a%2B1.mrc">a+1.mrc</a>     01-Jul-2015 00:00    2.0G
<a href="b.mrc">b.mrc</a>           01-Jul-2015 00:00    2.0G
</pre></body></html>"""


@pytest.mark.parametrize(
    ("page", "files", "folders"),
    [
        (NGINX, ("a+1.mrc", "b.mrc"), ("sub",)),
        ('<A HREF="b.mrc"><img></A><a href="b.mrc">b</a><a href=a.mrc>a</a><a name="x">y</a>', ("a.mrc", "b.mrc"), ()),
        ('<a href="/data/raw/a.mrc">a</a><a href="http://h/data/raw/s/">s</a><a href="./b.mrc">b</a>', None, ("s",)),
        ('<a href="/data/%72aw/a.mrc">a</a><a href="b.mrc#top">b</a><a href="/data/raw/?C=N;O=D">n</a>', None, ()),
        ('<a href="&#97;.mrc">a</a><a href="b&#x2e;mrc">b</a><a href="c.mrc?x=1&amp;y=2">c</a>', None, ()),
        ('<a href="a.mrc"><a href="b.mrc"><a href="http://[x"><a href="javascript:alert(1)"><a href="">', None, ()),
        ('<a href="a.mrc"><a href="b.mrc"><a href="/data/rawer/c.mrc"><a href="/data/raw"><a href="../..">', None, ()),
    ],
)
def test_listings_of_servers(page, files, folders):
    found = read_listing(page, "http://h/data/raw/")
    assert (found.files, found.folders, found.refused) == (files or ("a.mrc", "b.mrc"), folders, ())


def test_entities_do_not_make_a_name_safe():
    assert read_listing('<a href="a&amp;b.mrc">', "http://h/d/").refused == ("a&b.mrc",)


@given(st.lists(st.text(alphabet="./%2eFf?#:\\a \n\x00&;$", max_size=12)))
def test_no_listing_gives_an_unsafe_name(targets):
    page = "".join(f'<a href="{html.escape(target)}">' for target in targets)
    found = read_listing(page, "http://h/data/raw/")
    assert all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*", name) for name in found.files + found.folders)
    assert all(".." not in name for name in found.files + found.folders)


# Names


def test_references_are_no_movies():
    references = {
        "norm-amibox05-0.mrc": "gain",
        "dark-amibox05-0.mrc": "dark",
        "CountRef_x.mrc": "gain",
        "SuperRef_x.mrc": "gain",
        "x_gain.mrc": "gain",
        "Gain.mrc": "gain",
        "20190101.gain": "gain",
        "g_ref.tif": "gain",
        "defects_1.txt": "defects",
    }
    movies = [
        "again.mrc",
        "darkness.tif",
        "normal_1.frames.mrc",
        "14sep05c_c_00003gr_00014sq_00002hl_00005es.frames.mrc",
    ]
    assert {name: reference_kind(f"data/gain/{name}") for name in references} == references
    assert movie_paths([f"data/gain/{n}" for n in [*references, *movies]]) == sorted(f"data/gain/{n}" for n in movies)


def test_the_sets_own_format():
    paths = ["d/a.mrc.bz2", "d/a.tif", "d/b.TIFF", "d/c.eer"]
    assert own_format(paths, "MRC") == ["d/a.mrc.bz2"]
    assert own_format(paths, "TIFF") == ["d/a.tif", "d/b.TIFF"]
    assert own_format(paths, "EER") == ["d/c.eer"]
    assert own_format(paths, "") == paths
    assert own_format(["d/a.tif"], "MRC") == ["d/a.tif"]  # what the API says is not always so


def test_references_elsewhere_in_the_entry(replica, make):
    put(replica, RAW, **{"a.mrc": mrc(), "b.mrc": mrc(), "c.mrc": mrc()})
    put(replica, ABOVE, **{"raw/": b"", "defects.txt": b"", "GainRef/": b"", "movies_2/": b""})
    put(replica, f"{ABOVE}GainRef/", **{"x.mrc": mrc(1), "K3.dm4": b"", "log.xml": b""})
    done = make()
    assert "# source: gain: data/GainRef/x.mrc\n" in done.stdout
    assert "does not take as they are: data/GainRef/K3.dm4 (gain), data/defects.txt (defects)\n" in done.stdout
    assert "source: gain: data/GainRef/x.mrc" in done.stderr
    assert not any("movies_2" in a.path for a in replica.asked)


def test_no_references(replica, make):
    put(replica, RAW, **{"a.mrc": mrc(), "b.mrc": mrc(), "c.mrc": mrc()})
    del replica.contents[ABOVE]  # not shown by this server
    assert "# References: none found" in make().stdout


# What the files hold


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (mrc(1), "holds 1 frame, a movie of 2 or more is wanted"),
        (mrc()[:-1], "needs"),
        (b"<html>sorry</html>", "HTML"),
        (b"", "is empty"),
    ],
    ids=["average", "short", "error page", "empty"],
)
def test_files_that_are_no_movies_are_named(replica, make, content, says):
    replica.contents[f"{RAW}b.frames.mrc"] = content
    sentence = refused(make(check=False))
    assert f"{RAW}b.frames.mrc" in sentence and says in sentence
    make("--pattern", "[!b].*")


def test_movies_unlike_the_others_are_told(replica, make, tmp_path):
    replica.contents[f"{RAW}b.frames.mrc"] = mrc(FRAMES + 1)
    done = make()
    assert "1 movies are not like the others (3 frames of 10 x 12 (h x w), uint8): b (4 frames" in done.stderr
    assert [row.geometry.frames for row in rows_of(done, tmp_path)] == [3, 4, 3]


def test_headers_win_over_the_api(replica, make, tmp_path):
    changes = {"frames_per_image": 40, "image_width": H, "image_height": W, "voxel_type": "32 BIT FLOAT"}
    replica.contents["/api/10025/"] = entry_reply(**changes)
    done = make()
    assert {row.geometry for row in rows_of(done, tmp_path)} == {Geometry(FRAMES, H, W, "uint8")}
    differences = "frames 3 (API: 40), h 10 (API: 12), w 12 (API: 10), data_type uint8 (API: float32)"
    assert done.stderr.count(differences) == 1


def test_api_stands_in_where_the_first_bytes_do_not_tell(replica, make, tmp_path):
    replica.contents["/api/10025/"] = entry_reply(data_format="TIFF", voxel_type="UNSIGNED 16 BIT INTEGER")
    put(replica, RAW, **{f"{name}.frames.tif": tiff(100_000) for name in "abc"})
    done = make()
    assert {row.geometry for row in rows_of(done, tmp_path)} == {Geometry(FRAMES, H, W, "uint16")}
    assert [row.micrograph for row in rows_of(done, tmp_path)] == ["a", "b", "c"]
    assert re.search(r"but frames, height, width, data_type as the API says, not seen in the files", done.stdout)


def image_set(geometry: Geometry) -> ImageSet:
    return ImageSet("x", "data/x", "micrographs - multiframe", "", 1, geometry, "", None, "")


def test_what_the_api_may_fill():
    said = Geometry(30, 10, 12, "uint8")
    rows = [MovieRow("a", "data/a.tif", geometry=Geometry(None, 10, 12, "uint16")), MovieRow("b", "data/b.tif")]
    done, note = complete_geometry(rows, image_set(said))
    # Only what no file told, and nothing beside what a file told.
    assert [row.geometry for row in done] == [Geometry(30, 10, 12, "uint16"), Geometry(30, None, None, None)]
    assert "but frames as the API says" in note
    eer = [MovieRow("a", "data/a.eer")]
    assert complete_geometry(eer, image_set(said))[0][0].geometry == Geometry(None, 10, 12, "uint8")
    one = [MovieRow("a", "data/a.tif")]
    assert complete_geometry(one, image_set(Geometry(1, 10, 12)))[0][0].geometry == Geometry(None, 10, 12)
