"""Reading ahead touches files that are there, in order, and stops when it is told to."""

import threading
import time

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
    wait_for(
        started(
            [
                "--weights",
                "-",
                str(tmp_path),
                str(files[0]),
                str(tmp_path / "none.mrc"),
                "x" * 5000,
                *map(str, files[1:]),
            ]
        )
    )
    assert sorted(opened) == files


def test_it_stops_in_the_midst_of_a_file(tmp_path, monkeypatch):
    path = tmp_path / "endless.mrc"
    path.write_bytes(bytes(64))
    monkeypatch.setattr(readahead, "PIECE", 1)

    class Endless:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return False

        def readinto(self, buffer):
            time.sleep(0.001)
            return 1

    monkeypatch.setattr("builtins.open", lambda *_, **__: Endless())
    running = started([str(path)])
    assert any(thread.is_alive() for thread in running)
    readahead.stop()
    wait_for(running)


def test_a_file_that_cannot_be_read_is_left_to_the_command(tmp_path):
    path = tmp_path / "m.mrc"
    path.write_bytes(b"1")
    path.chmod(0)
    wait_for(started([str(path)]))
