"""Read a command's files into the page cache while Python and torch start, which takes seconds.

Imports nothing that takes time itself.  What is in the page cache already costs a little of another core.
"""

import contextlib
import os
import threading
from collections.abc import Sequence
from pathlib import Path

THREADS = 2
PIECE = 1 << 25  # bytes; so few that Python's lock, which is asked for after each, hardly holds up the imports

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
                while not _enough.is_set() and file.readinto(buffer):
                    pass

    for _ in range(THREADS):
        threading.Thread(target=read, daemon=True).start()


def stop() -> None:
    """Let it be: from here on the command itself reads ahead."""
    _enough.set()
