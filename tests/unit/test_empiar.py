"""Fetching against a server on this machine that drops, stalls, refuses, changes and lies."""

import fcntl
import hashlib
import http.server
import json
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from cryon2n import files, mrcio
from cryon2n.download import CHUNK, Expected, check_mrc_header, fetch
from cryon2n.empiar import (
    MovieRow,
    choose_image_set,
    entry_number,
    listed_files,
    micrograph_name,
    movie_files,
    movie_url,
    read_entry,
    read_sheet,
    set_directory,
    write_sheet,
)
from cryon2n.errors import InputError
from cryon2n.web import FetchSettings, check_url, redirected_url

SETTINGS = {"connect_timeout": 5.0, "read_timeout": 0.3, "attempts": 4, "backoff": 0.01, "max_backoff": 0.02}
FAST = FetchSettings(**SETTINGS)
URL_PATH = "/10025/data/raw/mic.frames.mrc"
FRAMES, H, W = 3, 230, 310  # 3 x 230 x 310 + 1024 bytes: several chunks

Asked = namedtuple("Asked", "method path start status sent")


class Site(http.server.ThreadingHTTPServer):
    """Serves `contents` (path → bytes, or a redirect's target as str), one of `faults` per GET request.

    A fault is ``(kind, value)``: a ``status``; ``drop``, ``reset`` or ``stall`` after so many bytes;
    ``cut``, a drop at that position of the file wherever the request begins.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.contents: dict[str, bytes | str] = {}
        self.etag: str | None = '"1"'
        self.last_modified: str | None = "Wed, 01 Jul 2015 00:00:00 GMT"
        self.faults: list[tuple[str, int]] = []
        self.ranges = self.obeys_if_range = self.tells_length = True
        self.every: tuple[str, int] | None = None  # the fault of every request
        self.shift = 0  # how far from the wanted byte a range begins
        self.seconds_per_chunk = 0.0
        self.before = lambda number: None  # called with each request's number
        self.asked: list[Asked] = []
        self.released = threading.Event()

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def sent(self) -> int:
        return sum(a.sent for a in self.asked)

    def handle_error(self, request, client_address):
        pass  # clients hang up on purpose here


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        site: Site = self.server
        site.before(len(site.asked))
        fault, value = ("", 0)
        if self.command == "GET":
            fault, value = site.faults.pop(0) if site.faults else site.every or ("", 0)
        content = site.contents.get(self.path)
        if fault == "status" or content is None or isinstance(content, str):
            status = value if fault == "status" else 404 if content is None else 302
            site.asked.append(Asked(self.command, self.path, 0, status, 0))
            self.send_response(status)
            if isinstance(content, str) and status == 302:
                self.send_header("Location", content)
            self.send_header("Retry-After", "0")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start, status = self.range_start(len(content)), 200
        if start is not None:
            start += site.shift
            status = 206 if start < len(content) else 416
        begin = len(site.asked)
        body = content[start or 0 :]
        site.asked.append(Asked(self.command, self.path, start or 0, status, 0))
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if site.tells_length:
            self.send_header("Content-Length", str(len(body)))
        if site.etag:
            self.send_header("ETag", site.etag)
        if site.last_modified:
            self.send_header("Last-Modified", site.last_modified)
        if fault or not site.tells_length:
            self.close_connection = True
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command == "HEAD":
            return
        stop = {"drop": value, "reset": value, "stall": value, "cut": max(0, value - (start or 0))}.get(
            fault, len(body)
        )
        for at in range(0, min(stop, len(body)), 16384):
            piece = body[at : min(at + 16384, stop)]
            self.wfile.write(piece)
            site.asked[begin] = site.asked[begin]._replace(sent=site.asked[begin].sent + len(piece))
            time.sleep(site.seconds_per_chunk)
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        if fault == "stall":
            site.released.wait(10)

    def range_start(self, size: int) -> int | None:
        """The first byte of the rest to send, or None if the whole file is to be sent."""
        site: Site = self.server
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if not match or not site.ranges:
            return None
        if site.obeys_if_range and self.headers.get("If-Range") not in (site.etag, site.last_modified):
            return None
        return int(match[1])


@pytest.fixture
def site():
    server = Site()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.released.set()
    server.shutdown()
    thread.join()
    server.server_close()


def movie_bytes(folder: Path, seed: int = 0, frames: int = FRAMES, h: int = H, w: int = W) -> bytes:
    counts = np.random.default_rng(seed).integers(0, 255, (frames, h, w), dtype=np.uint8)
    path = folder / f"made-{seed}-{frames}-{h}-{w}.mrc"
    mrcio.write_mrc(path, counts, 0.6575)
    return path.read_bytes()


@pytest.fixture
def movie(site, tmp_path):
    """The bytes of a movie that the site serves."""
    content = movie_bytes(tmp_path)
    assert len(content) == 1024 + FRAMES * H * W > 3 * CHUNK
    site.contents[URL_PATH] = content
    return content


@pytest.fixture
def out(tmp_path):
    return tmp_path / "data" / "raw" / "mic.mrc"


def part_of(out: Path) -> Path:
    return out.with_name("mic.mrc.part")


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir()) if folder.exists() else []


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# One file


def test_plain_download(site, movie, out):
    expected = Expected(len(movie), sha(movie), FRAMES, (H, W))
    assert fetch(site.base + URL_PATH, out, expected, settings=FAST) == sha(movie)
    assert out.read_bytes() == movie
    assert names(out.parent) == ["checksums", "mic.mrc"]
    assert (out.parent / "checksums" / "mic.mrc.sha256").read_text() == f"{sha(movie)}  mic.mrc\n"
    assert len(site.asked) == 1


@pytest.mark.parametrize("seed", range(6))
def test_drops_anywhere_cost_no_byte_twice(site, movie, out, seed):
    rng = random.Random(seed)
    site.faults = [("drop", rng.randrange(1, len(movie) // 4)) for _ in range(12)]
    fetch(site.base + URL_PATH, out, settings=FAST)
    assert out.read_bytes() == movie
    # Every byte once, and each request begins where the one before ended.
    assert site.sent() == len(movie)
    assert [a.start for a in site.asked[1:]] == list(np.cumsum([a.sent for a in site.asked])[:-1])
    assert len(site.asked) > FAST.attempts  # attempts that bring bytes are not counted as failures


@pytest.mark.parametrize("seed", range(8))
def test_mixed_faults_never_spoil_a_file(site, movie, out, seed):
    rng = random.Random(100 + seed)
    kinds = ["drop", "reset", "reset", "status"] + (["stall"] if seed % 4 == 0 else [])
    for _ in range(8):
        kind = rng.choice(kinds)
        site.faults.append((kind, rng.choice([500, 502, 503, 429]) if kind == "status" else rng.randrange(90_000)))
    patient = FetchSettings(**{**SETTINGS, "attempts": 20})
    fetch(site.base + URL_PATH, out, settings=patient)
    assert out.read_bytes() == movie
    assert names(out.parent) == ["checksums", "mic.mrc"]


def test_stalled_connection_is_left_and_resumed(site, movie, out):
    site.faults = [("stall", 2 * CHUNK + 5)]
    began = time.monotonic()
    fetch(site.base + URL_PATH, out, settings=FAST)
    assert time.monotonic() - began < 5  # the server would have waited 10 s
    assert out.read_bytes() == movie
    assert CHUNK <= site.asked[1].start <= 2 * CHUNK + 5


def test_server_without_ranges_starts_over(site, movie, out):
    site.ranges = False
    site.faults = [("drop", 100_000), ("drop", 50_000)]
    fetch(site.base + URL_PATH, out, settings=FAST)
    assert out.read_bytes() == movie
    assert [a.status for a in site.asked] == [200, 200, 200]


def test_server_without_ranges_that_always_drops_ends(site, movie, out):
    site.ranges = False
    site.every = ("drop", 100_000)
    with pytest.raises(InputError, match="start over 4 times"):
        fetch(site.base + URL_PATH, out, settings=FAST)
    assert not out.exists()


def test_server_without_validators_is_not_resumed(site, movie, out):
    site.etag = site.last_modified = None  # nothing tells whether the rest is of the same file
    site.faults = [("drop", 100_000)]
    fetch(site.base + URL_PATH, out, settings=FAST)
    assert out.read_bytes() == movie
    assert [a.start for a in site.asked] == [0, 0]


def test_busy_server_is_asked_again(site, movie, out):
    site.faults = [("status", 503), ("status", 503)]
    fetch(site.base + URL_PATH, out, settings=FAST)
    assert [a.status for a in site.asked] == [503, 503, 200]
    assert out.read_bytes() == movie


def test_always_busy_server_ends_after_the_attempts(site, movie, out):
    site.every = ("status", 503)
    with pytest.raises(InputError, match=r"gave up after 4 attempts .*503"):
        fetch(site.base + URL_PATH, out, settings=FAST)
    assert len(site.asked) == 4
    assert names(out.parent) == []


def test_missing_file_is_not_asked_for_again(site, out):
    with pytest.raises(InputError, match="404"):
        fetch(site.base + "/nothing.mrc", out, settings=FAST)
    assert len(site.asked) == 1
    assert names(out.parent) == []


def test_nobody_listens(out):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        with pytest.raises(InputError, match=r"gave up after 4 attempts .*refused"):
            fetch(f"http://127.0.0.1:{port}/mic.mrc", out, settings=FAST)


def test_wrong_size_is_seen_before_anything_is_fetched(site, movie, out):
    with pytest.raises(InputError, match=f"has {len(movie)} bytes, wanted {len(movie) + 1}"):
        fetch(site.base + URL_PATH, out, Expected(size=len(movie) + 1), settings=FAST)
    assert names(out.parent) == []
    assert len(site.asked) == 1


def test_server_that_tells_no_length(site, movie, out):
    site.tells_length = False
    with pytest.raises(InputError, match="give --size"):
        fetch(site.base + URL_PATH, out, settings=FAST)
    fetch(site.base + URL_PATH, out, Expected(size=len(movie)), settings=FAST)
    assert out.read_bytes() == movie


def test_server_that_sends_too_much(site, movie, out):
    site.tells_length = False
    site.contents[URL_PATH] = movie + b"more"
    with pytest.raises(InputError, match="sends more than"):
        fetch(site.base + URL_PATH, out, Expected(size=len(movie)), settings=FAST)
    assert names(out.parent) == []


def test_truncated_for_ever_leaves_only_the_part_and_goes_on_later(site, movie, out):
    cut = 150_000
    site.every = ("cut", cut)
    with pytest.raises(InputError, match="gave up after 4 attempts"):
        fetch(site.base + URL_PATH, out, settings=FAST)
    assert names(out.parent) == ["mic.mrc.part", "mic.mrc.part.json"]
    assert part_of(out).read_bytes() == movie[:cut]
    site.every = None
    fetch(site.base + URL_PATH, out, settings=FAST)
    assert (site.asked[-1].start, site.asked[-1].sent) == (cut, len(movie) - cut)
    assert out.read_bytes() == movie


@pytest.mark.parametrize("obeys", [True, False], ids=["if-range", "if-range ignored"])
@pytest.mark.parametrize("validator", ["etag", "last_modified", "weak etag"])
@pytest.mark.parametrize("when", ["between attempts", "between runs"])
def test_file_that_changes_is_fetched_anew(site, movie, out, tmp_path, obeys, validator, when):
    changed = movie_bytes(tmp_path, seed=1)  # of the same size: only the validators tell
    site.obeys_if_range = obeys
    if validator == "last_modified":
        site.etag = None
    elif validator == "weak etag":
        site.etag = 'W/"1"'

    def change():
        site.contents[URL_PATH] = changed
        site.etag = site.etag and site.etag.replace("1", "2")
        site.last_modified = "Thu, 02 Jul 2015 00:00:00 GMT"

    if when == "between attempts":
        site.faults = [("drop", 100_000)]
        site.before = lambda number: change() if number == 1 else None
    else:
        site.every = ("cut", 100_000)
        with pytest.raises(InputError, match="gave up"):
            fetch(site.base + URL_PATH, out, settings=FAST)
        site.every = None
        change()
    fetch(site.base + URL_PATH, out, settings=FAST)
    assert out.read_bytes() == changed
    assert site.asked[-1].start == 0


def test_answer_with_another_range_is_not_appended(site, movie, out):
    site.shift = 512
    site.faults = [("drop", 100_000)]
    fetch(site.base + URL_PATH, out, settings=FAST)
    assert out.read_bytes() == movie
    assert [(a.start, a.status) for a in site.asked] == [(0, 200), (100_512, 206), (0, 200)]


def test_file_that_shrinks_below_what_is_there(site, movie, out, tmp_path):
    short = movie_bytes(tmp_path, seed=2, frames=1)
    site.obeys_if_range = False  # so that it answers 416
    site.faults = [("drop", len(short) + 50_000)]

    def shrink(number):
        if number == 1:
            site.contents[URL_PATH] = short

    site.before = shrink
    fetch(site.base + URL_PATH, out, settings=FAST)
    assert [a.status for a in site.asked] == [200, 416, 200]
    assert out.read_bytes() == short


def test_part_of_another_address_is_not_taken_up(site, movie, out, tmp_path):
    site.every = ("cut", 100_000)
    with pytest.raises(InputError, match="gave up"):
        fetch(site.base + URL_PATH, out, settings=FAST)
    site.every = None
    other = site.contents["/other.mrc"] = movie_bytes(tmp_path, seed=3)  # same size and validators
    fetch(site.base + "/other.mrc", out, settings=FAST)
    assert out.read_bytes() == other


def test_part_without_its_record_is_not_trusted(site, movie, out):
    out.parent.mkdir(parents=True)
    part_of(out).write_bytes(b"x" * 1000)
    fetch(site.base + URL_PATH, out, settings=FAST)
    assert out.read_bytes() == movie


def test_published_checksum_must_match(site, movie, out):
    wrong = "0" * 64
    with pytest.raises(InputError, match=f"{sha(movie)}.*{wrong}"):
        fetch(site.base + URL_PATH, out, Expected(sha256=wrong), settings=FAST)
    assert names(out.parent) == []  # nor the wrong bytes, which the next run would take up, nor a lock


def test_lock_of_the_first_download_is_obeyed(site, movie, out, tmp_path):
    lock = tmp_path / "locks" / "mic.sha256"
    fetch(site.base + URL_PATH, out, lock=lock, settings=FAST)
    out.unlink()  # as a workflow does before it runs a job again
    site.contents[URL_PATH] = changed = movie_bytes(tmp_path, seed=1)
    with pytest.raises(InputError, match=f"{sha(changed)}.*{re.escape(str(lock))}.*{sha(movie)}"):
        fetch(site.base + URL_PATH, out, lock=lock, settings=FAST)
    assert names(out.parent) == []
    assert lock.read_text().split()[0] == sha(movie)
    site.contents[URL_PATH] = movie
    fetch(site.base + URL_PATH, out, lock=lock, settings=FAST)
    assert out.read_bytes() == movie


def test_damaged_lock_is_reported_before_the_download(site, movie, out, tmp_path):
    lock = tmp_path / "mic.sha256"
    lock.write_text("")
    with pytest.raises(InputError, match=re.escape(str(lock))):
        fetch(site.base + URL_PATH, out, lock=lock, settings=FAST)
    assert not site.asked


def test_file_that_is_there_is_verified_and_not_fetched(site, movie, out):
    out.parent.mkdir(parents=True)
    out.write_bytes(movie)
    fetch(site.base + URL_PATH, out, Expected(frames=FRAMES), settings=FAST)
    assert (out.parent / "checksums" / "mic.mrc.sha256").read_text().startswith(sha(movie))
    out.write_bytes(movie[:-1])
    with pytest.raises(InputError, match=re.escape(str(out))):
        fetch(site.base + URL_PATH, out, settings=FAST)
    assert out.read_bytes() == movie[:-1]
    assert not site.asked


def test_too_small_a_disk_is_refused_before_the_start(site, movie, out, monkeypatch):
    usage = shutil.disk_usage(out.parents[2])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=len(movie) - 1))
    with pytest.raises(InputError, match=r"0\.00 GB are free, 0\.00 GB are still to be fetched"):
        fetch(site.base + URL_PATH, out, settings=FAST)
    assert names(out.parent) == []
    # What an earlier run brought need not fit again.
    site.every = ("cut", 100_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=len(movie)))
    with pytest.raises(InputError, match="gave up"):
        fetch(site.base + URL_PATH, out, settings=FAST)
    site.every = None
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=len(movie) - 100_000))
    fetch(site.base + URL_PATH, out, settings=FAST)
    assert out.read_bytes() == movie


def test_two_processes_do_not_write_one_part(site, movie, out):
    out.parent.mkdir(parents=True)
    with open(part_of(out), "ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process"):
            fetch(site.base + URL_PATH, out, settings=FAST)
    assert not site.asked


# The header


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        (Expected(frames=FRAMES + 1), "holds 3 frames, wanted 4"),
        (Expected(shape=(W, H)), "are 230 x 310 .* wanted 310 x 230"),
    ],
)
def test_other_dimensions_than_wanted(site, movie, out, expected, message):
    site.contents[URL_PATH] = movie_bytes(out.parents[2], frames=FRAMES)
    with pytest.raises(InputError, match=message):
        fetch(site.base + URL_PATH, out, expected, settings=FAST)
    assert names(out.parent) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda movie: movie[:-1], "needs"),
        (lambda movie: movie + b"x", "needs"),
        (lambda movie: b"<html>" + b" " * 300_000, "is not an MRC file"),
        (lambda movie: b"sorry", "less than an MRC header"),
    ],
    ids=["short", "long", "error page", "tiny"],
)
def test_file_that_does_not_fit_its_header(site, movie, out, content, message):
    site.contents[URL_PATH] = content(movie)
    with pytest.raises(InputError, match=message):
        fetch(site.base + URL_PATH, out, settings=FAST)
    assert names(out.parent) == []


def test_wrong_header_is_seen_at_the_first_bytes(site, movie, out):
    site.contents[URL_PATH] = movie + bytes(20 * CHUNK)
    site.seconds_per_chunk = 0.05
    with pytest.raises(InputError, match="needs"):
        fetch(site.base + URL_PATH, out, settings=FAST)
    assert site.sent() < 10 * CHUNK


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("mode", "row_bytes"), [(0, 5), (1, 10), (2, 20), (6, 10), (12, 10), (101, 3)])
def test_header_size_by_mode_and_byte_order(tmp_path, order, mode, row_bytes):
    head = bytearray(1024)
    struct.pack_into(f"{order}4i", head, 0, 5, 4, 3, mode)  # w 5, h 4, 3 frames
    struct.pack_into(f"{order}i", head, 92, 80)  # extended header
    head[212:214] = b"\x44\x44" if order == "<" else b"\x11\x11"
    path = tmp_path / "head.mrc"
    path.write_bytes(head)
    check_mrc_header(path, 1024 + 80 + 3 * 4 * row_bytes, "it", Expected(frames=3, shape=(4, 5)))
    with pytest.raises(InputError, match="needs"):
        check_mrc_header(path, 1024 + 80 + 3 * 4 * row_bytes + 1, "it", Expected())


def test_only_mrc_has_frames_to_check(site, out):
    site.contents["/notes.star"] = b"data_\n"
    star = out.with_suffix(".star")
    with pytest.raises(InputError, match=r"only|\.mrc"):
        fetch(site.base + "/notes.star", star, Expected(frames=3), settings=FAST)
    fetch(site.base + "/notes.star", star, settings=FAST)
    assert star.read_bytes() == b"data_\n"


# Addresses


@pytest.mark.parametrize(
    "url",
    [
        "http://ebi.ac.uk/x",
        "ftp://ebi.ac.uk/x",
        "file:///etc/passwd",
        "https:///x",
        "https://me@ebi.ac.uk/x",
        "x.mrc",
    ],
)
def test_addresses_that_are_refused(url, out):
    with pytest.raises(InputError, match=re.escape(url)):
        fetch(url, out, settings=FAST)


def test_addresses_that_are_taken():
    for url in ("https://ftp.ebi.ac.uk/x", "http://127.0.0.1:8/x", "http://[::1]/x", "http://localhost/x"):
        assert check_url(url) == url
    assert check_url("http://mirror.example/x", allow_http=True) == "http://mirror.example/x"


@pytest.mark.parametrize(
    ("url", "location"),
    [
        ("https://ftp.ebi.ac.uk/a", "http://ftp.ebi.ac.uk/a"),
        ("https://ftp.ebi.ac.uk/a", "https://example.com/a"),
        ("https://ftp.ebi.ac.uk/a", "https://notebi.ac.uk/a"),
        ("https://ftp.ebi.ac.uk/a", "https://ebi.ac.uk.example.com/a"),
        ("https://ftp.ebi.ac.uk/a", "https://127.0.0.1/a"),
        ("http://127.0.0.1/a", "http://www.ebi.ac.uk/a"),
        ("https://ftp.ebi.ac.uk/a", "file:///etc/passwd"),
    ],
)
def test_redirects_that_are_refused(url, location):
    with pytest.raises(InputError, match=re.escape(url)):
        redirected_url(url, location)


def test_redirects_that_are_followed():
    assert redirected_url("https://ftp.ebi.ac.uk/a", "/b") == "https://ftp.ebi.ac.uk/b"
    assert redirected_url("https://example.com/a", "https://example.com/b") == "https://example.com/b"
    assert redirected_url("https://ftp.ebi.ac.uk/a", "https://empiar.pdbj.org/b") == "https://empiar.pdbj.org/b"


def test_redirects_of_a_server(site, movie, out):
    site.contents |= {"/old": URL_PATH, "/away": "https://example.com/x", "/round": "/round"}
    fetch(site.base + "/old", out, settings=FAST)
    assert out.read_bytes() == movie
    with pytest.raises(InputError, match="another host"):
        fetch(site.base + "/away", out.with_name("b.mrc"), settings=FAST)
    with pytest.raises(InputError, match="more than 5 redirects"):
        fetch(site.base + "/round", out.with_name("c.mrc"), settings=FAST)


def test_settings_are_checked():
    with pytest.raises(InputError, match="attempts"):
        FetchSettings(attempts=0)


# The command


def settings_text(**changes) -> str:
    return json.dumps({**SETTINGS, **changes})


def test_fetch_movie_command(site, movie, out, cryon2n):
    digest = sha(movie).upper()
    arguments = ["--url", site.base + URL_PATH, "--out", out, "--settings", settings_text()]
    arguments += ["--size", len(movie), "--sha256", digest, "--frames", FRAMES, "--shape", H, W]
    done = cryon2n("fetch-movie", *arguments)
    assert out.read_bytes() == movie
    assert re.search(r"\[fetch-movie\] 1/1 MB \(100 %\)\s+[\d.]+ MB/s", done.stderr)
    done = cryon2n("fetch-movie", *arguments, "--size", "many", check=False)
    assert done.returncode == 2
    assert "--size many" in done.stderr


def test_killed_in_mid_file_and_run_again(site, out, tmp_path, cryon2n):
    movie = site.contents[URL_PATH] = movie_bytes(tmp_path, frames=20)  # 1.4 MB
    site.seconds_per_chunk = 0.03
    arguments = ["fetch-movie", "--url", site.base + URL_PATH, "--out", str(out), "--size", str(len(movie))]
    with subprocess.Popen([sys.executable, "-m", "cryon2n", *arguments], stderr=subprocess.DEVNULL) as running:
        deadline = time.monotonic() + 30
        while not (part_of(out).exists() and part_of(out).stat().st_size > 4 * CHUNK):
            assert running.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        running.send_signal(signal.SIGKILL)
    there = part_of(out).stat().st_size
    assert there < len(movie) and not out.exists()
    assert part_of(out).read_bytes() == movie[:there]
    site.seconds_per_chunk = 0
    done = cryon2n(*arguments)
    assert "going on at" in done.stderr
    assert (site.asked[-1].start, site.asked[-1].sent) == (there, len(movie) - there)
    assert out.read_bytes() == movie
    assert names(out.parent) == ["checksums", "mic.mrc"]


# The sheet

APACHE = """<!DOCTYPE HTML PUBLIC "-//W3C//DTD HTML 3.2 Final//EN">
<html><head><title>Index of /empiar/world_availability/10025/data/raw</title></head><body><pre>
<a href="?C=N;O=D">Name</a> <a href="?C=M;O=A">Last modified</a> <a href="?C=S;O=A">Size</a><hr>
<a href="/empiar/world_availability/10025/data/">Parent Directory</a>  <a href="../">..</a>
{rows}
</pre></body></html>
"""


def listing(*names: str) -> bytes:
    return APACHE.format(rows="\n".join(f'<a href="{n}">{n[:20]}..&gt;</a> 2015-02-27 2.0G' for n in names)).encode()


def entry_reply(key: str = "EMPIAR-10025", count: int | str = 3, directory: str = "/data/raw") -> bytes:
    averaged = {"name": "Averages", "directory": "data/avg", "category": "micrographs - single frame"}
    raw = {
        "name": "Raw movies",
        "directory": directory,
        "category": "micrographs - multiframe",
        "num_images_or_tilt_series": count,
        "frames_per_image": 38,
        "image_width": "7420",
    }
    return json.dumps({key: {"title": "T20S\nat 2.8 Å", "imagesets": [averaged, raw]}}).encode()


@pytest.fixture
def replica(site):
    """A small copy of an entry: three movies, their references and notes."""
    site.contents["/api/10025/"] = entry_reply()
    movies = ["b.frames.mrc", "a.frames.mrc", "c.frames.mrc"]
    others = ["norm-amibox05-0.mrc", "dark-amibox05-0.mrc", "run1_shiny.txt", "old/"]
    site.contents["/data/10025/data/raw/"] = listing(*movies, *others)
    for i, name in enumerate(movies):
        site.contents[f"/data/10025/data/raw/{name}"] = bytes(100 + i)
    return site


def sheet_arguments(site, out, *more):
    bases = ["--base-api", f"{site.base}/api", "--base-data", f"{site.base}/data"]
    return ["fetch-sheet", "--entry", "10025", *bases, "--out", out, "--settings", settings_text(), *more]


def test_fetch_sheet_command(replica, tmp_path, cryon2n):
    out = tmp_path / "movies.tsv"
    replica.faults = [("status", 503), ("", 0), ("drop", 100)]  # the API is busy, the listing breaks off
    done = cryon2n(*sheet_arguments(replica, out, "--movies", 2))
    rows = [MovieRow("a", "data/raw/a.frames.mrc", 101), MovieRow("b", "data/raw/b.frames.mrc", 100)]
    assert read_sheet(out) == rows
    assert "the listing has 3 movies, as the API says" in done.stderr
    comments = [line for line in out.read_text().splitlines() if line.startswith("#")]
    assert comments[0] == "# EMPIAR-10025: T20S at 2.8 Å"
    assert f"{replica.base}/data/10025/data/raw/" in comments[1]
    # What the sheet says can be fetched.
    assert movie_url(f"{replica.base}/data/", "EMPIAR-10025", rows[0]).removeprefix(replica.base) in replica.contents


@pytest.mark.parametrize(
    "reply", [entry_reply("10025"), entry_reply(directory="data/raw/"), entry_reply(count="3")], ids=range(3)
)
def test_api_varies(replica, tmp_path, cryon2n, reply):
    replica.contents["/api/10025/"] = reply
    done = cryon2n(*sheet_arguments(replica, tmp_path / "m.tsv", "--movies", 3, "--image-set", "Raw movies"))
    assert "as the API says" in done.stderr
    assert [row.micrograph for row in read_sheet(tmp_path / "m.tsv")] == ["a", "b", "c"]


def test_short_listing_is_told(replica, tmp_path, cryon2n):
    replica.contents["/api/10025/"] = entry_reply(count=4)
    done = cryon2n(*sheet_arguments(replica, tmp_path / "m.tsv", "--movies", 3))
    assert "has 3 movies, the API says 4" in done.stderr
    assert "has 3 movies, the API says 4" in (tmp_path / "m.tsv").read_text()
    done = cryon2n(*sheet_arguments(replica, tmp_path / "n.tsv", "--movies", 4), check=False)
    assert done.returncode == 2
    assert "wanted 4 movies" in done.stderr
    assert not (tmp_path / "n.tsv").exists()


def test_pattern_chooses_movies(replica, tmp_path, cryon2n):
    cryon2n(*sheet_arguments(replica, tmp_path / "m.tsv", "--movies", 1, "--pattern", "[bc].*"))
    assert [row.micrograph for row in read_sheet(tmp_path / "m.tsv")] == ["b"]


def test_unsafe_names_in_a_listing(replica, tmp_path, cryon2n):
    evil = [
        "..%2f..%2fevil.mrc",
        "%2e%2e",
        "a b.mrc",
        "x%0ay.mrc",
        ".hidden.mrc",
        "-rf.mrc",
        "$(id).mrc",
        "a..b.mrc",
        "d/e.mrc",
    ]
    replica.contents["/data/10025/data/raw/"] = listing("a.frames.mrc", *evil, "https://example.com/x.mrc")
    done = cryon2n(*sheet_arguments(replica, tmp_path / "m.tsv", "--movies", 1))
    assert f"left out {len(evil)} names" in done.stderr
    assert [row.path for row in read_sheet(tmp_path / "m.tsv")] == ["data/raw/a.frames.mrc"]


@pytest.mark.parametrize("directory", ["../../etc", "data/../..", "data//raw", "da ta", "", None])
def test_unsafe_folder_of_an_image_set(directory):
    with pytest.raises(InputError, match="folder"):
        set_directory({"directory": directory}, "api")


def test_listed_files_keeps_each_name_once():
    page = '<A HREF="b.mrc"><img></A><a href="b.mrc">b</a><a href="a%2B1.mrc">a</a><a name="x">y</a>'
    assert listed_files(page) == (["a+1.mrc", "b.mrc"], [])


def test_references_are_no_movies():
    references = [
        "norm-amibox05-0.mrc",
        "dark-amibox05-0.mrc",
        "CountRef_x.mrc",
        "x_gain.mrc",
        "Gain.mrc",
        "g_ref.mrc",
    ]
    movies = ["again.mrc", "normal_1.frames.mrc", "14sep05c_c_00003gr_00014sq_00002hl_00005es.frames.mrc"]
    assert movie_files(references + movies) == movies


def test_micrograph_names():
    assert micrograph_name("14sep05c_1es.frames.mrc") == micrograph_name("14sep05c_1es.mrc") == "14sep05c_1es"
    with pytest.raises(InputError, match=r"mic\.tif"):
        micrograph_name("mic.tif")


def test_accessions():
    assert {entry_number(e) for e in (10025, "10025", "EMPIAR-10025", "empiar-10025")} == {"10025"}
    for entry in ("../10025", "10025/..", "EMD-6287", ""):
        with pytest.raises(InputError, match="accession"):
            entry_number(entry)


@pytest.mark.parametrize("text", ["<html>", "[]", '{"EMPIAR-10026": {}}', '{"EMPIAR-10025": null}'])
def test_replies_that_are_no_entry(text):
    with pytest.raises(InputError, match="the-api"):
        read_entry(text, 10025, "the-api")


def test_image_set_that_is_not_there():
    metadata = {"imagesets": [{"name": "Averages", "category": "micrographs - single frame"}]}
    for name in ("Raw", None):
        with pytest.raises(InputError, match=r"'Averages'.*--image-set"):
            choose_image_set(metadata, name, "api")
    with pytest.raises(InputError, match="none"):
        choose_image_set({"imagesets": None}, None, "api")


HEAD = "# a comment\nmicrograph\tpath\tsize\tsha256\n"
GOOD = f"a\tdata/a.mrc\t5\t{'0' * 64}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD, "no movies"),
        ("micrograph\tpath\na\tb\n", "'size', 'sha256'"),
        (HEAD + GOOD + GOOD, "row 2: .* is there twice"),
        (HEAD + GOOD + "b\tdata/a.mrc\t5\t-\n", r"row 2: data/a\.mrc is there twice"),
        (HEAD + "../a\tdata/a.mrc\t5\t-\n", "row 1: '../a'"),
        (HEAD + "a/b\tdata/a.mrc\t5\t-\n", "row 1: 'a/b'"),
        (HEAD + "a b\tdata/a.mrc\t5\t-\n", "row 1: 'a b'"),
        (HEAD + "a\t/etc/passwd\t5\t-\n", "row 1: ''"),
        (HEAD + "a\tdata/../../a.mrc\t5\t-\n", r"row 1: '\.\.'"),
        (HEAD + "a\tdata/a.mrc\t-5\t-\n", "'-5'"),
        (HEAD + "a\tdata/a.mrc\t0\t-\n", "'0'"),
        (HEAD + "a\tdata/a.mrc\t2.1e9\t-\n", "'2.1e9'"),
        (HEAD + "a\tdata/a.mrc\t5\tabc\n", "'abc'.*SHA-256"),
        (HEAD + "a\tdata/a.mrc\t5\n", "row 1"),
    ],
)
def test_faults_of_a_sheet(tmp_path, text, message):
    path = tmp_path / "sheet.tsv"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as error:
        read_sheet(path)
    assert str(path) in str(error.value)


def test_sheet_is_read_as_written(tmp_path):
    rows = [MovieRow("a", "data/a.mrc", 5, "0" * 64), MovieRow("b", "data/b.mrc")]
    write_sheet(tmp_path / "s.tsv", rows, ["from a test,\nin two lines"])
    assert read_sheet(tmp_path / "s.tsv") == rows
    assert (tmp_path / "s.tsv").read_text().startswith("# from a test, in two lines\nmicrograph\t")


def test_sheet_of_the_study():
    rows = read_sheet(Path(__file__).parents[2] / "config" / "movies" / "empiar-10025.tsv")
    assert len(rows) == 20
    pattern = r"14sep05c_(c_\d{5}gr_)?\d{5}sq_\d{5}hl_\d{5}es"
    for row in rows:
        assert re.fullmatch(pattern, row.micrograph)
        assert row.path == f"data/14sep05c_raw_196/{row.micrograph}.frames.mrc"
        assert row.size == 1024 + 38 * 7676 * 7420
    base = "https://ftp.ebi.ac.uk/empiar/world_availability"
    assert movie_url(base, 10025, rows[0]) == f"{base}/10025/{rows[0].path}"


def test_sheet_of_the_study_holds_the_known_names(shared_data):
    known = files.read_table(shared_data / "empiar-10025" / "movie_names.tsv", ["movie"])
    rows = read_sheet(Path(__file__).parents[2] / "config" / "movies" / "empiar-10025.tsv")
    assert [f"{row.micrograph}.frames" for row in rows] == [k["movie"] for k in known]


def test_the_entry_as_its_api_gives_it(shared_data):
    entry = read_entry((shared_data / "empiar-10025" / "10025.json").read_text(), 10025, "api")
    chosen = choose_image_set(entry, None, "api")
    assert (chosen["name"], set_directory(chosen, "api")) == ("Raw movies", "data/14sep05c_raw_196")
    averaged = choose_image_set(entry, "Frame-averaged micrographs", "api")
    assert set_directory(averaged, "api") == "data/14sep05c_averaged_196"
