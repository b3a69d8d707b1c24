"""What memory a process and its files take, and how to make a file's pages cold, for benchmarks.  Linux."""

import contextlib
import ctypes
import mmap
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import psutil

from cryon2n import memory
from cryon2n.patch_files import PAGE


def forget(path: Path) -> None:
    """Write a file's pages to the disk and drop them from the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def cached_bytes(path: Path) -> int:
    """Return how many bytes of a file are in the page cache (mincore).

    Raises
    ------
    OSError
        The system does not tell.
    """
    size = path.stat().st_size
    with open(path, "rb") as f, mmap.mmap(f.fileno(), size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as view:
        marks = np.zeros(-(-size // PAGE), np.uint8)
        place = ctypes.addressof(held := ctypes.c_char.from_buffer(view))
        library = ctypes.CDLL("libc.so.6", use_errno=True)
        failed = library.mincore(ctypes.c_void_p(place), ctypes.c_size_t(size), marks.ctypes.data_as(ctypes.c_void_p))
        del held
        if failed:
            raise OSError(ctypes.get_errno(), f"{path}: mincore fails")
    return int((marks & 1).sum()) * PAGE


def resident_bytes() -> int:
    """Return the memory of this process, and what its children (forked from it) do not share with others."""
    own = psutil.Process()
    total = own.memory_info().rss
    for process in own.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            total += process.memory_full_info().uss
    return total


def footprint(paths: Iterable[Path]) -> tuple[int, int]:
    """Return the bytes of the process and those of the files in the page cache."""
    return resident_bytes(), sum(map(cached_bytes, paths))


@contextlib.contextmanager
def limited(n_bytes: int) -> Iterator[str]:
    """Put this process into a control group that may take `n_bytes`, page cache included, where the system lets us.

    Gives words that say what holds the process: a control group, or nothing but what is measured.  A process
    that needs more in its group is killed by the system.
    """
    made: Path | None = None
    home: Path | None = None
    for parent in memory.own_cgroups():
        version2 = (parent / "cgroup.controllers").exists()
        limit, procs = ("memory.max" if version2 else "memory.limit_in_bytes"), "cgroup.procs"
        group = parent / f"cryon2n-{os.getpid()}"
        try:
            group.mkdir()
            (group / limit).write_text(str(n_bytes))
            if version2:
                (group / "memory.swap.max").write_text("0")
            (group / procs).write_text(str(os.getpid()))
        except OSError:
            with contextlib.suppress(OSError):
                group.rmdir()
            continue
        made, home = group, parent
        break
    try:
        yield "held by a control group" if made else "measured, not held: the system lets us make no control group"
    finally:
        if made and home:
            with contextlib.suppress(OSError):
                (home / procs).write_text(str(os.getpid()))
                made.rmdir()
