"""The replica of EMPIAR serves what EMPIAR does, in the same form, through a real nginx."""

import html
import json
import os
import re
import time
import urllib.error
import urllib.request

import numpy as np
import pytest

import replica
from cryon2n import files, mrcio

needs_nginx = pytest.mark.skipif(replica.find_nginx() is None, reason=replica.NO_NGINX)
SHAPE, FRAMES = (384, 372), 4


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of a server that holds a small EMPIAR-10025, and its micrographs' names."""
    folder = tmp_path_factory.mktemp("replica with a blank")
    return folder, replica.simulate_10025(folder / "www", movies=2, shape=SHAPE, frames=FRAMES)


def get(url, **headers):
    """Return (status, headers, body), without the proxy that the environment may name."""
    request = urllib.request.Request(url, headers={name.replace("_", "-"): value for name, value in headers.items()})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=10) as response:
        return response.status, response.headers, response.read()


def linked(page):
    """What a listing's links lead to, without those that sort it or lead up."""
    return [html.unescape(target) for target in re.findall(r'<a href="([^"?/][^"]*)"', page)]


@needs_nginx
@pytest.mark.parametrize("ending", ["10025", "10025/", "EMPIAR-10025", "EMPIAR-10025/"])
def test_api_gives_the_entry(site, ending):
    with replica.nginx(site[0]) as server:
        status, headers, body = get(f"{server.base_api}/{ending}")
        assert (status, headers["Content-Type"]) == (200, "application/json")
        entry = json.loads(body)["EMPIAR-10025"]
        raw = entry["imagesets"][0]
        assert raw["directory"] == "/data/14sep05c_raw_196"
        assert (raw["image_height"], raw["image_width"], raw["frames_per_image"]) == ("384", "372", FRAMES)
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get(f"{server.base_api}/10026/")


@needs_nginx
def test_files_ranges_and_listings_come_as_from_the_archive(site):
    folder, names = site
    path = f"10025/{replica.RAW}/{names[1]}.frames.mrc"
    content = (folder / "www" / replica.DATA / path).read_bytes()
    with replica.nginx(folder) as server:
        before = len(server.requests())
        status, headers, body = get(f"{server.base_data}/{path}")
        assert (status, body, headers["Accept-Ranges"]) == (200, content, "bytes")
        assert headers["ETag"] and headers["Last-Modified"]
        status, headers, body = get(f"{server.base_data}/{path}", Range="bytes=1000-1999", If_Range=headers["ETag"])
        assert (status, body) == (206, content[1000:2000])
        assert headers["Content-Range"] == f"bytes 1000-1999/{len(content)}"
        assert get(f"{server.base_data}/{path}", Range="bytes=1000-1999", If_Range='"old"')[0] == 200
        page = get(f"{server.base_data}/10025/{replica.RAW}/")[2].decode()
        assert page == (folder / "www" / replica.DATA / "10025" / replica.RAW / "index.html").read_text()
        asked = server.requests(before + 4)[before:]
    assert [(r.status, r.sent, r.range) for r in asked[:2]] == [
        (200, len(content), ""),
        (206, 1000, "bytes=1000-1999"),
    ]
    assert {r.path for r in asked[:3]} == {f"/{replica.DATA}/{path}"}


@needs_nginx
def test_server_without_ranges_gives_whole_files(site):
    url = f"10025/{replica.RAW}/{replica.GAIN}"
    with replica.nginx(site[0], ranges=False) as server:
        status, headers, body = get(f"{server.base_data}/{url}", Range="bytes=0-99")
    assert (status, headers["Accept-Ranges"]) == (200, None)
    assert len(body) == 1024 + 4 * SHAPE[0] * SHAPE[1]


@needs_nginx
def test_slow_server_and_one_that_hangs_up(site):
    path = f"10025/{replica.RAW}/{replica.GAIN}"  # 572 kB
    with replica.nginx(site[0], rate=250_000, keepalive_requests=1) as server:
        began = time.monotonic()
        _, headers, body = get(f"{server.base_data}/{path}")
    assert len(body) == 1024 + 4 * SHAPE[0] * SHAPE[1]
    assert time.monotonic() - began > 0.5  # nginx lets one or two seconds' worth go at once
    assert headers["Connection"] == "close"


@needs_nginx
def test_server_ends_with_its_block_even_when_it_fails(tmp_path):
    with pytest.raises(ZeroDivisionError), replica.nginx(tmp_path) as server:
        master = int((tmp_path / "logs" / "nginx.pid").read_text())
        os.killpg(master, 0)  # there
        raise ZeroDivisionError
    with pytest.raises(ProcessLookupError):  # neither the master nor a worker
        os.killpg(master, 0)
    with pytest.raises(urllib.error.URLError, match="refused"):
        get(f"{server.base}/up")


def test_entry_holds_the_names_of_the_real_one(site):
    folder, names = site
    raw = folder / "www" / replica.DATA / "10025" / replica.RAW
    assert names == ["14sep05c_00024sq_00003hl_00002es", "14sep05c_00024sq_00003hl_00005es"]
    movies = [f"{name}.frames.mrc" for name in names]
    others = ["dark-amibox05-0.mrc", "norm-amibox05-0.mrc", "run1_shiny_mp007_data_dotstar.txt"]
    assert linked((raw / "index.html").read_text()) == sorted(movies + others)
    assert {(raw / name).stat().st_size for name in movies} == {1024 + FRAMES * SHAPE[0] * SHAPE[1]}


def test_references_are_upside_down_as_in_the_real_entry(site):
    folder, _ = site
    raw, truth = folder / "www" / replica.DATA / "10025" / replica.RAW, folder / "truth"
    for name, upright in [(replica.GAIN, "gain"), (replica.DARK, "dark")]:
        turned, upright = mrcio.read_mrc(raw / name)[0], mrcio.read_mrc(truth / f"{upright}.mrc")[0]
        assert (turned[::-1] == upright).all()
        assert (turned != upright).any() or not turned.any()


def test_raw_counts_tell_how_the_gain_lies(site):
    folder, names = site
    raw = folder / "www" / replica.DATA / "10025" / replica.RAW
    gain = mrcio.read_mrc(raw / replica.GAIN)[0]
    mean = sum(mrcio.read_mrc(raw / f"{name}.frames.mrc")[0].mean(axis=0) for name in names)
    # A pixel that counts too much has a small gain.  The counts of 2 movies, 2 x 53 e/Å² x (0.6575 Å)² = 46 in a
    # pixel, scatter by 1/sqrt(46) = 0.15, the gain by 0.03: a correlation of 0.2.  Chance gives 1/sqrt(384 x 372).
    right, wrong = (np.corrcoef(mean.ravel(), 1 / g.ravel())[0, 1] for g in (gain[::-1], gain))
    assert right > 0.1 and abs(wrong) < 0.03


def test_coordinates_are_those_of_the_simulation(site):
    folder, names = site
    text = (folder / "www" / replica.DATA / "10025" / replica.RAW / replica.STAR).read_text()
    rows = [line.split() for line in text.splitlines() if ".frames.mrc" in line]
    for name in names:
        known = files.read_json(folder / "truth" / f"{name}.json")["particles"]
        assert known
        found = [(float(x), float(y)) for x, y, path in rows if name in path]
        assert found == [(p["x_px"], p["y_px"]) for p in known]


def test_listing_can_miss_files_and_hold_evil_names(tmp_path):
    for name in ("seen.mrc", "missed.mrc", "odd & name.mrc"):
        (tmp_path / name).write_bytes(b"1")
    (tmp_path / "inner").mkdir()
    replica.apache_listing(tmp_path, leave_out=["missed.mrc"], add=replica.EVIL_NAMES)
    page = (tmp_path / "index.html").read_text()
    assert "missed" not in page
    assert '<a href="inner/">inner/</a>' in page
    assert '<a href="odd%20&amp;%20name.mrc">odd &amp; name.mrc</a>' in page
    assert "<script" not in page and "&lt;script&gt;.mrc" in page
    assert '<a href="?C=N;O=D">Name</a>' in page
    evil = [name for name in replica.EVIL_NAMES if name != "/etc/passwd"]
    assert linked(page) == ["inner/", "odd%20&%20name.mrc", "seen.mrc", *evil]
    assert '<a href="/etc/passwd">' in page


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "  0 "),
        (972, "972 "),
        (973, "1.0K"),  # 0.95 K
        (1024 + 52, "1.1K"),  # 1.051 K
        (10 * 1024, " 10K"),
        (227_824_704, "217M"),  # an averaged micrograph: 217.27 MiB
        (1024 + 38 * 7676 * 7420, "2.0G"),  # a raw movie: 2.016 GiB
    ],
)
def test_sizes_are_rounded_as_apache_rounds(size, text):
    assert replica.apache_size(size) == text


def test_more_movies_than_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match="found 21, wanted 1 to 20"):
        replica.simulate_10025(tmp_path / "www", movies=21)
