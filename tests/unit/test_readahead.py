"""Reading ahead touches files that are there, in order, and stops when it is told to."""

import io
import os
import threading
import time

import pytest

from cryon2n import readahead


def wait_for(threads):
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def started(arguments):
    before = set(threading.enumerate())
    readahead.start(arguments)
    return [t for t in threading.enumerate() if t not in before]


def test_files_among_the_arguments_are_read_and_the_rest_is_let_be(tmp_path, monkeypatch):
    files = [tmp_path / f"m{i}.mrc" for i in range(3)]
    for path in files:
        path.write_bytes(bytes(100))
    opened, real = [], open
    monkeypatch.setattr("builtins.open", lambda path, *more, **named: opened.append(path) or real(path, *more, **named))
    others = ["--weights", "-", str(tmp_path), str(tmp_path / "none.mrc"), "x" * 5000]
    wait_for(started([*others, *map(str, files)]))
    assert sorted(opened) == files


def test_it_stops_in_the_midst_of_a_file(tmp_path, monkeypatch):
    path, looked = tmp_path / "m.mrc", []
    path.write_bytes(bytes(1_000_000))
    monkeypatch.setattr(readahead, "PIECE", 1)
    monkeypatch.setattr(readahead, "_is_cached", lambda *_: time.sleep(0.001) or looked.append(1) or True)
    running = started([str(path)])
    while len(looked) < 5:
        time.sleep(0.001)
    readahead.stop()
    wait_for(running)
    assert len(looked) < 1_000_000


@pytest.mark.parametrize("missing", ["", "posix_fadvise", "RWF_NOWAIT"])
def test_what_is_not_in_the_page_cache_is_read_to_the_last_byte(tmp_path, monkeypatch, missing):
    path, places = tmp_path / "m.mrc", []
    path.write_bytes(bytes(1050))
    monkeypatch.setattr(readahead, "PIECE", 100)
    if missing:
        monkeypatch.delattr(os, missing)
    if missing != "RWF_NOWAIT":
        cached = [200, 1000]
        monkeypatch.setattr(readahead, "_is_cached", lambda file, at, size: at in cached)
    else:
        cached = []

    class Recorded(io.FileIO):
        def readinto(self, buffer):
            at = self.tell()
            places.append((at, super().readinto(buffer)))
            return places[-1][1]

    monkeypatch.setattr("builtins.open", lambda path, *_, **__: Recorded(path))
    wait_for(started([str(path)]))
    assert places == [(at, min(100, 1050 - at)) for at in range(0, 1050, 100) if at not in cached]


@pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="this system does not tell")
def test_what_has_been_read_ahead_is_in_the_page_cache(tmp_path):
    path = tmp_path / "m.mrc"
    path.write_bytes(os.urandom(1 << 22))
    with open(path, "rb", buffering=0) as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if readahead._is_cached(file, 0, 1 << 22):
            pytest.skip("this file system keeps its files in memory")
        wait_for(started([str(path)]))
        assert readahead._is_cached(file, 0, 1 << 22)
        assert not readahead._is_cached(file, 0, (1 << 22) + 1)  # beyond the end there is nothing


def test_a_file_that_cannot_be_read_is_left_to_the_command(tmp_path):
    path = tmp_path / "m.mrc"
    path.write_bytes(b"1")
    path.chmod(0)
    wait_for(started([str(path)]))
