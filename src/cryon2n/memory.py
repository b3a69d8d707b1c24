"""How much memory a process may still take, by the machine and its control groups; and keeping what is freed."""

import contextlib
import ctypes
from pathlib import Path

import psutil

CGROUPS, OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def available() -> tuple[int, str]:
    """Return the bytes of memory that may still be taken, and what sets this limit.

    Batch systems and containers limit a job by a control group, which the machine's own figures do not show.
    Page cache counts as free in both: the system takes it back when it is needed.
    """
    best = psutil.virtual_memory().available, "free memory"
    for folder in own_cgroups():
        left = cgroup_left(folder)
        if left is not None and left < best[0]:
            best = left, "memory left in the job's control group"
    return best


def own_cgroups() -> list[Path]:
    """Return the folders of this process's memory control groups, its own and all above (version 2, then 1)."""
    try:
        lines = OWN_CGROUP.read_text().split()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = CGROUPS / "memory" if controllers else CGROUPS
        # Within a container the path may be the host's: then only the root is there.
        folder = root / path.lstrip("/")
        found += [f for f in (folder, *folder.parents) if f.is_relative_to(root) and f.is_dir()]
    return found


def cgroup_left(folder: Path) -> int | None:
    """Return the bytes that a control group may still take, its page cache counted as free; None without a limit."""
    for limit, used, cache in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            most = folder.joinpath(limit).read_text().strip()
            taken = int(folder.joinpath(used).read_text())
            stat = dict(line.split() for line in folder.joinpath("memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue
        # Version 1 says "no limit" by a number near 2^63.
        if most == "max" or int(most) >= 1 << 60:
            return None
        return max(0, int(most) - taken + int(stat.get(cache, 0)))
    return None


def give_back_freed_memory() -> None:
    """Give freed blocks back to the system after all: between parts of the work that want blocks of other sizes."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def keep_freed_memory() -> None:
    """Let the C library keep large blocks that are freed, for the next one of that size.

    By default it gives each back to the system, whose new pages for the next one, zeroed one by one, took a
    third of the time of splitting a movie, and of drawing one (docs/performance-notes.md).  Without glibc nothing
    happens.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL("libc.so.6")
        # mallopt(3): M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD
        for parameter, value in ((-4, 0), (-1, 2**31 - 1), (-2, 1 << 26)):
            library.mallopt(parameter, value)
