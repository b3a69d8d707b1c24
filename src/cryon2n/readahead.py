"""Read a command's files into the page cache while Python and torch start and a GPU loads its libraries: seconds.

Imports nothing that takes time itself.  What is in the page cache already costs next to nothing.
"""

import contextlib
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

THREADS = 2
PIECE = 1 << 25  # bytes; so many that Python's lock, which is asked for after each, hardly holds up the imports
PROBES = 16  # places of a piece that are looked at to tell whether it is in the page cache

_enough = threading.Event()


def start(arguments: Sequence[str]) -> None:
    """Begin to read those of a command's arguments that are files, in order, until `stop`."""
    _enough.clear()
    # Looked for by the threads, one at a time: thousands of names on a slow file system take their time, too.
    left = (Path(name) for name in arguments if not name.startswith("-") and os.path.isfile(name))
    lock = threading.Lock()

    def read() -> None:
        buffer = memoryview(bytearray(PIECE))
        while not _enough.is_set():
            with lock:
                path = next(left, None)
            if path is None:
                return
            with contextlib.suppress(OSError), open(path, "rb", buffering=0) as file:  # the command will say it
                _read(file, buffer)

    for _ in range(THREADS):
        threading.Thread(target=read, daemon=True).start()


def stop() -> None:
    """Let it be: from here on the command itself reads ahead."""
    _enough.set()


def _read(file: BinaryIO, buffer: memoryview) -> None:
    size, piece = os.fstat(file.fileno()).st_size, len(buffer)
    _ask(file, 0, piece)
    for at in range(0, size, piece):
        if _enough.is_set():
            return
        _ask(file, at + piece, piece)  # so that the disk never waits for this thread
        if not _is_cached(file, at, min(piece, size - at)):
            file.seek(at)
            file.readinto(buffer)


def _ask(file: BinaryIO, at: int, size: int) -> None:
    """Have the system read bytes of a file into the page cache, all at once, and do not wait for them."""
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):
            os.posix_fadvise(file.fileno(), at, size, os.POSIX_FADV_WILLNEED)


def _is_cached(file: BinaryIO, at: int, size: int) -> bool:
    """Tell whether bytes of a file are in the page cache, where the system says so; by a few of them."""
    one, places = bytearray(1), (*range(at, at + size, max(1, size // PROBES)), at + size - 1)
    try:
        return all(os.preadv(file.fileno(), [one], place, os.RWF_NOWAIT) for place in places)
    except (OSError, AttributeError):  # it would have to wait; this file system, or this system, does not say
        return False
