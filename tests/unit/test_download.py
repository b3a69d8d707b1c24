"""Downloads against a server on this machine that drops, stalls, refuses, changes and lies."""

import bz2
import fcntl
import hashlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import tifffile

from cryon2n import mrcio
from cryon2n import part as parts
from cryon2n.download import Expected, fetch, rate_of
from cryon2n.errors import InputError
from cryon2n.frame_range import FrameRange, Span, parse_frame_range
from cryon2n.movie_header import Geometry
from cryon2n.transfer import Transfer
from cryon2n.web import FetchSettings, Throttle, check_url, redirected_url
from faultserver import serve

BLOCK = 65536
SETTINGS = {
    "connect_timeout": 5.0,
    "read_timeout": 5.0,  # a busy machine's pauses are not the server's; tests of stalls ask for less
    "attempts": 4,
    "backoff": 0.01,
    "max_backoff": 0.02,
    "connections": 1,
    "block": BLOCK,
    "slowest": 0,
}
FAST = FetchSettings(**SETTINGS)
URL_PATH = "/10025/data/raw/mic.frames.mrc"
FRAMES, H, W = 3, 230, 310  # 3 x 230 x 310 + 1024 bytes: four blocks


def settings(**changes) -> FetchSettings:
    return FetchSettings(**{**SETTINGS, **changes})


@pytest.fixture
def site():
    with serve() as server:
        yield server


def movie_bytes(folder: Path, seed: int = 0, frames: int = FRAMES, h: int = H, w: int = W) -> bytes:
    counts = np.random.default_rng(seed).integers(0, 255, (frames, h, w), dtype=np.uint8)
    path = folder / f"made-{seed}-{frames}-{h}-{w}.mrc"
    mrcio.write_mrc(path, counts, 0.6575)
    return path.read_bytes()


@pytest.fixture
def movie(site, tmp_path):
    """The bytes of a movie that the site serves."""
    content = movie_bytes(tmp_path)
    assert len(content) == 1024 + FRAMES * H * W > 3 * BLOCK
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
    expected = Expected(len(movie), sha(movie), Geometry(FRAMES, H, W, "uint8"))
    assert fetch(site.base + URL_PATH, out, expected, settings=FAST) == sha(movie)
    assert out.read_bytes() == movie
    assert names(out.parent) == ["checksums", "mic.mrc"]
    assert (out.parent / "checksums" / "mic.mrc.sha256").read_text() == f"{sha(movie)}  mic.mrc\n"
    # One request a block, one connection for the beginning and one for the rest.
    assert [a.start for a in site.asked] == [0, BLOCK, 2 * BLOCK, 3 * BLOCK]
    assert site.connections == 2


@pytest.mark.parametrize("connections", [1, 4])
@pytest.mark.parametrize("seed", range(3))
def test_drops_anywhere_cost_no_byte_twice(site, movie, out, seed, connections):
    rng = random.Random(seed)
    site.faults = [("", 0)] + [("drop", rng.randrange(1, BLOCK // 3)) for _ in range(12)]
    fetch(site.base + URL_PATH, out, settings=settings(connections=connections, attempts=20))
    assert out.read_bytes() == movie
    assert site.sent() == len(movie)
    assert len(site.asked) > 12


def test_attempts_that_bring_bytes_are_not_counted_as_failures(site, movie, out):
    site.faults = [("", 0)] + [("drop", 5000)] * 30
    fetch(site.base + URL_PATH, out, settings=FAST)
    assert out.read_bytes() == movie
    assert len(site.asked) > 30 > FAST.attempts


def test_several_connections_at_a_time_and_no_more(site, tmp_path, out):
    movie = site.contents[URL_PATH] = movie_bytes(tmp_path, frames=20)  # 22 blocks
    site.seconds_per_piece = 0.002
    fetch(site.base + URL_PATH, out, settings=settings(connections=3))
    assert out.read_bytes() == movie
    assert site.connections == 4  # one for the beginning, then three together
    assert site.sent() == len(movie)


def test_stalled_connection_is_left_and_resumed(site, movie, out):
    site.faults = [("", 0), ("stall", 20_000)]
    began = time.monotonic()
    fetch(site.base + URL_PATH, out, settings=settings(read_timeout=1.0))
    assert time.monotonic() - began < 5  # the server would have waited 10 s
    assert out.read_bytes() == movie
    assert site.asked[2].start == BLOCK + 20_000
    assert site.sent() == len(movie)


def test_stalled_connection_does_not_hold_the_others(site, tmp_path, out):
    movie = site.contents[URL_PATH] = movie_bytes(tmp_path, frames=20)
    site.faults = [("", 0), ("stall", 100)]
    fetch(site.base + URL_PATH, out, settings=settings(connections=2, read_timeout=3.0))
    assert out.read_bytes() == movie
    # Meanwhile the other connection went on with other blocks (either of the two can be the first to ask).
    assert [a.start for a in site.asked].index(site.asked[1].start + 100) > 5


def test_connection_that_trickles_is_given_up(site, movie, out):
    site.faults = [("", 0), ("", 0)]
    site.seconds_per_piece = 0.2  # 20 kB/s: never silent for read_timeout
    site.before = lambda number: setattr(site, "seconds_per_piece", 0.2 if number < 2 else 0)
    began = time.monotonic()
    fetch(site.base + URL_PATH, out, settings=settings(slowest=40_000, read_timeout=1.0))
    assert out.read_bytes() == movie
    assert time.monotonic() - began < 16 * 0.2 + 2


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


def test_server_that_loses_its_ranges(site, movie, out):
    site.before = lambda number: setattr(site, "ranges", number < 2)
    fetch(site.base + URL_PATH, out, settings=FAST)
    assert out.read_bytes() == movie


def test_server_without_validators_is_not_resumed(site, movie, out):
    site.etags, site.last_modified = [None], None  # nothing tells whether the rest is of the same file
    site.faults = [("", 0), ("drop", 100_000)]
    fetch(site.base + URL_PATH, out, settings=FAST)
    assert out.read_bytes() == movie
    assert [(a.start, a.status) for a in site.asked] == [(0, 206), (0, 200), (0, 206), (0, 200)]


def test_file_changed_a_moment_ago_is_not_told_by_its_date(site, movie, out):
    site.etags, site.last_modified = [None], time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime())
    fetch(site.base + URL_PATH, out, settings=FAST)
    assert out.read_bytes() == movie
    assert site.asked[-1].status == 200


def test_machines_with_different_entity_tags_serve_one_file(site, movie, out):
    site.etags = ['"a"', '"b"', None]
    fetch(site.base + URL_PATH, out, settings=FAST)
    assert out.read_bytes() == movie
    assert site.sent() == len(movie)


def test_busy_server_is_asked_again(site, movie, out):
    site.faults = [("status", 503), ("status", 503)]
    fetch(site.base + URL_PATH, out, settings=FAST)
    assert [a.status for a in site.asked][:3] == [503, 503, 206]
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
    site.tells_length = site.ranges = False
    with pytest.raises(InputError, match="give --size"):
        fetch(site.base + URL_PATH, out, settings=FAST)
    fetch(site.base + URL_PATH, out, Expected(size=len(movie)), settings=FAST)
    assert out.read_bytes() == movie


def test_server_that_sends_too_much(site, movie, out):
    site.tells_length = site.ranges = False
    site.contents[URL_PATH] = movie + b"more"
    with pytest.raises(InputError, match="sends more than"):
        fetch(site.base + URL_PATH, out, Expected(size=len(movie)), settings=FAST)
    assert names(out.parent) == []


def test_empty_file(site, out):
    site.contents[URL_PATH] = b""
    with pytest.raises(InputError, match="is empty"):
        fetch(site.base + URL_PATH, out, settings=FAST)
    assert names(out.parent) == []


def test_truncated_for_ever_leaves_only_the_part_and_goes_on_later(site, movie, out):
    cut = 150_000
    site.every = ("cut", cut)
    with pytest.raises(InputError, match="gave up after 4 attempts"):
        fetch(site.base + URL_PATH, out, settings=FAST)
    assert names(out.parent) == ["mic.mrc.part", "mic.mrc.part.done", "mic.mrc.part.json"]
    assert part_of(out).read_bytes()[:cut] == movie[:cut]
    site.every = None
    before = site.sent()
    fetch(site.base + URL_PATH, out, settings=FAST)
    assert site.sent() - before == len(movie) - cut
    assert out.read_bytes() == movie
    assert names(out.parent) == ["checksums", "mic.mrc"]


@pytest.mark.parametrize("validator", ["etag", "last_modified", "weak etag"])
@pytest.mark.parametrize("when", ["between attempts", "between runs"])
@pytest.mark.parametrize("connections", [1, 3])
def test_file_that_changes_is_fetched_anew(site, movie, out, tmp_path, validator, when, connections):
    changed = movie_bytes(tmp_path, seed=1)  # of the same size: only the validators tell
    site.etags = [{"etag": '"1"', "last_modified": None, "weak etag": 'W/"1"'}[validator]]
    if validator == "etag":
        site.last_modified = None

    def change():
        site.contents[URL_PATH] = changed
        site.etags = [tag and tag.replace("1", "2") for tag in site.etags]
        site.last_modified = site.last_modified and "Thu, 02 Jul 2015 00:00:00 GMT"

    if when == "between attempts":
        site.before = lambda number: change() if number == 2 else None
    else:
        site.every = ("cut", 100_000)
        with pytest.raises(InputError, match="gave up"):
            fetch(site.base + URL_PATH, out, settings=FAST)
        site.every = None
        change()
    fetch(site.base + URL_PATH, out, settings=settings(connections=connections))
    assert out.read_bytes() == changed


def test_answer_with_another_range_is_not_taken(site, movie, out):
    site.faults = [("shift", 512), ("", 0), ("shift", 512)]
    fetch(site.base + URL_PATH, out, settings=FAST)
    assert out.read_bytes() == movie
    site.every = ("shift", 512)
    with pytest.raises(InputError, match="another part of the file"):
        fetch(site.base + URL_PATH, out.with_name("b.mrc"), settings=FAST)


def test_file_that_shrinks_below_what_is_there(site, movie, out, tmp_path):
    short = movie_bytes(tmp_path, seed=2, frames=1)
    site.before = lambda number: site.contents.update({URL_PATH: short}) if number == 3 else None
    fetch(site.base + URL_PATH, out, settings=FAST)
    assert 416 in [a.status for a in site.asked]
    assert out.read_bytes() == short


# What an earlier process left


def leave_a_part(site, out, cut=150_000):
    """Leave an incomplete download of the first `cut` bytes."""
    site.every = ("cut", cut)
    with pytest.raises(InputError, match="gave up"):
        fetch(site.base + URL_PATH, out, settings=FAST)
    site.every = None
    return site.sent()


def test_after_a_crash_of_the_machine_only_synchronised_bytes_are_trusted(site, movie, out, monkeypatch):
    before = leave_a_part(site, out)
    state = out.with_name("mic.mrc.part.json")
    about = json.loads(state.read_text())
    assert sum(about["synced"]) == 150_000
    about["synced"] = [BLOCK, 1000, 0, 0]  # the disk got no further, though the counts did
    state.write_text(json.dumps(about))
    damaged = bytearray(part_of(out).read_bytes())
    damaged[BLOCK + 1000 : 150_000] = bytes(150_000 - BLOCK - 1000)
    part_of(out).write_bytes(damaged)
    monkeypatch.setattr(parts, "boot_id", lambda: "another")
    fetch(site.base + URL_PATH, out, settings=FAST)
    assert out.read_bytes() == movie
    assert site.sent() - before == len(movie) - BLOCK - 1000


@pytest.mark.parametrize("what", ["state", "journal", "part", "counts", "block"])
def test_damaged_records_are_not_trusted(site, movie, out, what):
    leave_a_part(site, out)
    state, journal = out.with_name("mic.mrc.part.json"), out.with_name("mic.mrc.part.done")
    if what == "state":
        state.write_text(state.read_text()[:-20])
    elif what == "journal":
        journal.write_bytes(journal.read_bytes()[:-1])
    elif what == "counts":
        journal.write_bytes(b"\xff" * len(journal.read_bytes()))
    elif what == "part":
        os.truncate(part_of(out), 1000)
    else:
        about = json.loads(state.read_text())
        state.write_text(json.dumps({**about, "block": 0}))
    fetch(site.base + URL_PATH, out, settings=FAST)
    assert out.read_bytes() == movie


def test_part_goes_on_with_other_settings(site, movie, out):
    before = leave_a_part(site, out)
    fetch(site.base + URL_PATH, out, settings=settings(block=4096, connections=2))
    assert out.read_bytes() == movie
    assert site.sent() - before == len(movie) - 150_000


def test_files_beyond_4_GiB(tmp_path):
    """Blocks beyond 2^32 bytes; the file is all holes."""
    size = (1 << 32) + (1 << 24) + 5
    with parts.open_part(tmp_path / "big.part", "all") as part:
        remote = parts.Remote("http://127.0.0.1/big", '"1"', None, size)
        part.begin(remote, [Span(0, size)], 1 << 24)
        number = (1 << 32) // (1 << 24)
        part.write(1 << 32, b"x" * (1 << 24))
        assert part.contiguous(0) == 0
        assert part.wanted(number - 1) == ((number - 1) << 24, (number - 1) << 24, 1 << 24)
        transfer = Transfer(remote.url, part, size, lambda *_: None, FAST)
        transfer._fetch_block(None, number)  # complete: nothing is asked for
        part.discard()


def test_a_disk_that_cannot_be_read_gives_no_checksum(site, movie, out, monkeypatch):
    def pread(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pread", pread)
    with pytest.raises(InputError, match="cannot read what was written"):
        fetch(site.base + URL_PATH, out, settings=FAST)
    monkeypatch.undo()
    assert not out.exists() and "checksums" not in names(out.parent)
    fetch(site.base + URL_PATH, out, settings=FAST)
    assert out.read_bytes() == movie


def test_part_begun_before_its_date_was_settled_goes_on_by_its_tag():
    young = parts.Remote("http://a/x", '"1"', None, 9)
    assert young.same_version(parts.Remote("http://a/x", '"1"', "Wed, 01 Jul 2015 00:00:00 GMT", 9))
    assert not young.same_version(parts.Remote("http://a/x", '"2"', "Wed, 01 Jul 2015 00:00:00 GMT", 9))


def test_part_of_another_file_is_not_taken_up(site, movie, out, tmp_path):
    leave_a_part(site, out)
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
    fetch(site.base + URL_PATH, out, Expected(geometry=Geometry(FRAMES)), settings=FAST)
    assert (out.parent / "checksums" / "mic.mrc.sha256").read_text().startswith(sha(movie))
    out.write_bytes(movie[:-1])
    with pytest.raises(InputError, match=re.escape(str(out))):
        fetch(site.base + URL_PATH, out, settings=FAST)
    assert out.read_bytes() == movie[:-1]
    assert not site.asked


def free_disk(monkeypatch, folder: Path, free: int) -> None:
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=free))


def test_too_small_a_disk_is_refused_before_the_start(site, movie, out, monkeypatch):
    folder = out.parents[2]
    free_disk(monkeypatch, folder, len(movie) - 1)
    with pytest.raises(InputError, match=r"0\.00 GB are free, 0\.00 GB are still to be fetched"):
        fetch(site.base + URL_PATH, out, settings=FAST)
    assert names(out.parent) == []
    # What an earlier run brought need not fit again.
    monkeypatch.undo()
    leave_a_part(site, out, 100_000)
    free_disk(monkeypatch, folder, len(movie) - 100_000)
    fetch(site.base + URL_PATH, out, settings=FAST)
    assert out.read_bytes() == movie


def test_other_downloads_need_their_space_too(site, movie, out, monkeypatch):
    leave_a_part(site, out.with_name("other.mrc"))
    free_disk(monkeypatch, out.parents[2], len(movie) + 1000)
    with open(out.with_name("other.mrc.part"), "rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)  # it is running
        with pytest.raises(InputError, match="by other downloads"):
            fetch(site.base + URL_PATH, out, settings=FAST)
    fetch(site.base + URL_PATH, out, settings=FAST)  # it has ended, and may never go on
    assert out.read_bytes() == movie


def test_full_disk_keeps_what_is_there(site, movie, out, monkeypatch):
    write, room = os.pwrite, [100_000]

    def pwrite(descriptor, data, position):
        if len(data) > 16:  # not the journal of four blocks
            if room[0] <= 0:
                raise OSError(28, "No space left on device")
            data = data[: room[0]]
            room[0] -= len(data)
        return write(descriptor, data, position)

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(InputError, match=r"mic\.mrc\.part: the disk is full"):
        fetch(site.base + URL_PATH, out, settings=FAST)
    monkeypatch.undo()
    before = site.sent()
    fetch(site.base + URL_PATH, out, settings=FAST)
    assert out.read_bytes() == movie
    assert site.sent() - before == len(movie) - 100_000


def test_two_processes_do_not_write_one_part(site, movie, out):
    out.parent.mkdir(parents=True)
    with open(part_of(out), "ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process"):
            fetch(site.base + URL_PATH, out, settings=FAST)
    assert not site.asked


# Mirrors


def test_mirrors_are_tried_in_order(site, movie, out):
    site.contents["/second" + URL_PATH] = movie
    urls = [site.base + "/gone" + URL_PATH, site.base + "/second" + URL_PATH, site.base + URL_PATH]
    fetch(urls, out, settings=FAST)
    assert out.read_bytes() == movie
    assert {a.path for a in site.asked} == {"/gone" + URL_PATH, "/second" + URL_PATH}


def test_mirror_goes_on_where_the_first_server_stopped(site, movie, out):
    before = leave_a_part(site, out)
    with serve() as mirror:
        mirror.contents[URL_PATH] = movie
        mirror.etags = ['"of the mirror"']
        site.every = ("status", 503)
        fetch([site.base + URL_PATH, mirror.base + URL_PATH], out, settings=FAST)
        assert mirror.sent() == len(movie) - before
    assert out.read_bytes() == movie


@pytest.mark.parametrize("fault", ["size", "checksum", "header"])
def test_mirror_that_has_another_file_is_left(site, movie, out, tmp_path, fault):
    wrong = {"size": movie + b"x", "checksum": movie_bytes(tmp_path, seed=9), "header": b"<html>" + movie[6:]}[fault]
    site.contents["/mirror" + URL_PATH] = wrong
    expected = Expected(len(movie), sha(movie))
    fetch([site.base + "/mirror" + URL_PATH, site.base + URL_PATH], out, expected, settings=FAST)
    assert out.read_bytes() == movie


def test_no_mirror_has_it(site, out):
    with pytest.raises(InputError, match="404"):
        fetch([site.base + "/a.mrc", site.base + "/b.mrc"], out, settings=FAST)
    assert [a.path for a in site.asked] == ["/a.mrc", "/b.mrc"]


# Ranges of frames


@pytest.mark.parametrize("extended", [0, 3000])
@pytest.mark.parametrize("kept", [FrameRange(0, 1), FrameRange(3, 6), FrameRange(5, 9)])
def test_frames_are_fetched_alone(site, out, tmp_path, kept, extended):
    counts = np.random.default_rng(1).integers(0, 255, (10, H, W), dtype=np.uint8)
    path = tmp_path / "made.mrc"
    mrcio.write_mrc(path, counts, 0.6575)
    with mrcfile.open(path, "r+") as mrc:
        mrc.set_extended_header(np.frombuffer(b"x" * extended, "V1"))
        if extended:
            mrc.set_volume()  # depth instead of frames: some programs write movies so
            mrc.voxel_size = 0.6575
    site.contents[URL_PATH] = path.read_bytes()
    expected = Expected(path.stat().st_size, "0" * 64, Geometry(10, H, W, "uint8"))
    fetch(site.base + URL_PATH, out, expected, keep=kept, settings=settings(connections=2))
    with mrcfile.open(out) as mrc:
        assert mrcfile.validate(out) or extended
        assert np.array_equal(mrcio.frame_data(mrc.data), counts[kept.first : kept.last + 1])
        assert mrc.voxel_size.tolist() == pytest.approx((0.6575,) * 3)
        assert mrc.header.mz == (kept.n if extended else 1) and mrc.header.nsymbt == extended
    # The head is asked for in 64 KiB at most; of the rest no byte that is not wanted.
    assert site.sent() <= BLOCK + kept.n * H * W
    assert names(out.parent / "checksums") == [f"mic.mrc.frames_{kept}.sha256"]
    fetch(site.base + URL_PATH, out, expected, keep=kept, settings=FAST)  # verified, not fetched
    with pytest.raises(InputError, match=f"{kept.n} frames"):
        fetch(site.base + URL_PATH, out, expected, settings=FAST)


def test_part_of_another_range_is_not_taken_up(site, movie, out):
    site.every = ("cut", 100_000)
    with pytest.raises(InputError, match="gave up"):
        fetch(site.base + URL_PATH, out, keep=FrameRange(0, 1), settings=FAST)
    site.every = None
    fetch(site.base + URL_PATH, out, keep=FrameRange(1, 2), settings=FAST)
    assert out.read_bytes()[1024:] == movie[1024 + H * W :]


def test_ranges_of_frames_that_are_refused(site, movie, out):
    with pytest.raises(InputError, match=r"holds frames 0-2, wanted 1-3"):
        fetch(site.base + URL_PATH, out, keep=FrameRange(1, 3), settings=FAST)
    with pytest.raises(InputError, match="uncompressed MRC"):
        fetch(site.base + "/a.tif", out.with_suffix(".tif"), keep=FrameRange(1, 3), settings=FAST)
    site.ranges = False
    with pytest.raises(InputError, match="no parts of files"):
        fetch(site.base + URL_PATH, out, keep=FrameRange(0, 1), settings=FAST)
    assert names(out.parent) == []


@pytest.mark.parametrize("text", ["", "3", "3-3", "4-2", "-1-3", "0-19-20", "a-b"])
def test_texts_that_are_no_range(text):
    with pytest.raises(InputError, match="FIRST-LAST"):
        parse_frame_range(text)


def test_text_of_a_range():
    assert parse_frame_range("0-19") == FrameRange(0, 19)
    assert (FrameRange(0, 19).n, str(FrameRange(0, 19))) == (20, "0-19")


# Rate


def test_throttle_holds_threads_together_below_the_rate():
    throttle = Throttle(1000.0)
    assert throttle.wait_after(100) == pytest.approx(0.1, abs=0.02)
    assert throttle.wait_after(200) == pytest.approx(0.3, abs=0.02)
    assert Throttle(None).wait_after(10**9) == 0


def test_limit_rate(site, movie, out):
    began = time.monotonic()
    fetch(site.base + URL_PATH, out, settings=settings(limit_rate=200_000, connections=4))
    assert time.monotonic() - began > 0.9 * len(movie) / 200_000
    assert out.read_bytes() == movie


@pytest.mark.parametrize(("text", "rate"), [("500", 500), ("500k", 5e5), ("20M", 2e7), ("1.5GB/s", 1.5e9)])
def test_rates(text, rate):
    assert rate_of(text) == rate
    with pytest.raises(InputError, match="--limit-rate"):
        rate_of(f"{text} fast")


# The header


@pytest.mark.parametrize("wanted", [Geometry(FRAMES + 1), Geometry(h=W, w=H), Geometry(data_type="float32")])
def test_other_geometry_than_wanted_is_seen_at_the_first_bytes(site, movie, out, wanted):
    with pytest.raises(InputError, match=f"{FRAMES} frames of {H} x {W}"):
        fetch(site.base + URL_PATH, out, Expected(geometry=wanted), settings=FAST)
    assert names(out.parent) == []
    assert len(site.asked) == 1


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize(
    "content",
    [lambda m: m[:-1], lambda m: m + b"x", lambda m: b"<html>" + b" " * 300_000, lambda m: b"sorry"],
    ids=["short", "long", "error page", "tiny"],
)
def test_file_that_does_not_fit_its_header(site, movie, out, content, ranges):
    site.contents[URL_PATH], site.ranges = content(movie), ranges
    with pytest.raises(InputError, match=re.escape(site.base + URL_PATH)):
        fetch(site.base + URL_PATH, out, settings=FAST)
    assert names(out.parent) == []
    assert len(site.asked) == 1


def as_tiff(counts: np.ndarray, path: Path) -> bytes:
    tifffile.imwrite(path, counts, compression="zlib", photometric="minisblack")
    return path.read_bytes()


def as_bzip2(counts: np.ndarray, path: Path) -> bytes:
    mrcio.write_mrc(path, counts, 1.0)
    return bz2.compress(path.read_bytes())


@pytest.mark.parametrize(("ending", "make"), [(".tif", as_tiff), (".mrc.bz2", as_bzip2)])
def test_movies_of_other_formats_are_verified(site, out, tmp_path, ending, make):
    counts = np.random.default_rng(2).integers(0, 9, (FRAMES, H, W), dtype=np.uint8)
    content = site.contents["/mic" + ending] = make(counts, tmp_path / "made.mrc")
    out = out.with_name("mic" + ending)
    with pytest.raises(InputError, match=f"{FRAMES} frames of {H} x {W}"):
        fetch(site.base + "/mic" + ending, out, Expected(geometry=Geometry(FRAMES + 1, H, W)), settings=FAST)
    fetch(site.base + "/mic" + ending, out, Expected(geometry=Geometry(FRAMES, H, W, "uint8")), settings=FAST)
    assert out.read_bytes() == content
    for wrong in (content[: len(content) // 2], b"<!DOCTYPE html>" + content):
        site.contents["/mic" + ending] = wrong
        with pytest.raises(InputError, match=re.escape(f"{site.base}/mic{ending}")):
            fetch(site.base + "/mic" + ending, out.with_name("b" + ending), settings=FAST)
    assert names(out.parent) == ["checksums", out.name]


def test_only_movies_have_frames_to_check(site, out):
    site.contents["/notes.star"] = b"data_\n"
    star = out.with_suffix(".star")
    with pytest.raises(InputError, match="movies only"):
        fetch(site.base + "/notes.star", star, Expected(geometry=Geometry(3)), settings=FAST)
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


@pytest.mark.parametrize(
    ("name", "value"), [("attempts", 0), ("connections", 0), ("connections", 64), ("block", 100), ("limit_rate", 1.0)]
)
def test_settings_are_checked(name, value):
    with pytest.raises(InputError, match=name):
        FetchSettings(**{name: value})


# The command


def test_fetch_movie_command(site, movie, out, cryon2n):
    arguments = ["--url", site.base + "/gone.mrc", "--url", site.base + URL_PATH, "--out", out]
    arguments += ["--settings", json.dumps(SETTINGS), "--connections", 2, "--limit-rate", "100M"]
    known = ["--size", len(movie), "--sha256", sha(movie).upper(), "--frames", FRAMES, "--shape", H, W]
    done = cryon2n("fetch-movie", *arguments, *known, "--data-type", "uint8")
    assert out.read_bytes() == movie
    assert re.search(r"\[fetch-movie\] 1/1 MB \(100 %\)\s+[\d.]+ MB/s", done.stderr)
    assert "trying the next mirror" in done.stderr
    done = cryon2n("fetch-movie", *arguments, "--size", "many", check=False)
    assert done.returncode == 2
    assert "--size many" in done.stderr
    cut = out.with_name("cut.mrc")
    unknown = ["--size", "-", "--sha256", "-", "--frames", "-", "--shape", "-", "-", "--data-type", "-"]
    cryon2n("fetch-movie", *arguments[:-2], *unknown, "--out", cut, "--keep-frames", "1-2")
    assert np.array_equal(mrcio.read_mrc(cut)[0], mrcio.read_mrc(out)[0][1:])


@pytest.mark.parametrize("connections", [1, 4])
def test_killed_in_mid_file_and_run_again(site, out, tmp_path, cryon2n, connections):
    movie = site.contents[URL_PATH] = movie_bytes(tmp_path, frames=20)  # 1.4 MB
    site.seconds_per_piece = 0.002
    arguments = ["fetch-movie", "--url", site.base + URL_PATH, "--out", str(out), "--size", str(len(movie))]
    arguments += ["--settings", json.dumps(SETTINGS), "--connections", str(connections)]
    with subprocess.Popen([sys.executable, "-m", "cryon2n", *arguments], stderr=subprocess.DEVNULL) as running:
        deadline = time.monotonic() + 30
        while site.sent() < len(movie) / 3:
            assert running.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        running.send_signal(signal.SIGKILL)
    assert part_of(out).exists() and not out.exists()
    site.seconds_per_piece = 0
    done = cryon2n(*arguments)
    assert "going on at" in done.stderr
    assert out.read_bytes() == movie
    assert names(out.parent) == ["checksums", "mic.mrc"]
    # What was on the way when it was killed is sent twice: of each connection one block at most.
    assert site.sent() - len(movie) <= connections * BLOCK
