"""Where the time goes while micrographs are denoised: wall and CPU seconds of each stage, over all threads.

    with recording() as timing:
        ...                     # anywhere below: with lap("read"): ...
    timing.write(path)

A lap within another counts for itself, not for the one around it.  While nothing is recorded, a lap does nothing.
"""

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cryon2n import files

COLUMNS = ["stage", "times", "wall_s", "longest_s", "cpu_s"]
WHOLE, START, REST = "whole", "start of Python and torch", "rest"


class Timing:
    """Sums of seconds by stage.

    Attributes
    ----------
    sums : dict of tuple
        For each stage how many laps, their wall seconds, those of the longest, and their CPU seconds (user and system,
        of the laps' own threads).
    """

    def __init__(self) -> None:
        self.sums: dict[str, tuple[int, float, float, float]] = {}
        self.lock = threading.Lock()
        self.began, self.cpu = time.perf_counter(), time.process_time()

    def add(self, stage: str, wall: float, cpu: float = 0.0) -> None:
        """Add a lap's seconds to a stage; any thread may."""
        with self.lock:
            n, walls, longest, cpus = self.sums.get(stage, (0, 0.0, 0.0, 0.0))
            self.sums[stage] = n + 1, walls + wall, max(longest, wall), cpus + cpu

    def add_start(self) -> None:
        """Add what went by between the start of this process and now, where the system tells when that was."""
        with contextlib.suppress(OSError, AttributeError, ValueError, IndexError):
            ticks = float(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
            wall = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
            self.add(START, wall, time.process_time())

    def rows(self) -> list[dict[str, Any]]:
        """Return the table: stages, what of the process's CPU time is in none of them, and the whole until now.

        Threads overlap, so walls add up to more than the whole.  CPU time outside the stages is the system's, that of
        torch's and CUDA's own threads, and what lies between the laps.
        """
        wall, cpu = time.perf_counter() - self.began, time.process_time() - self.cpu
        with self.lock:
            sums = dict(self.sums)
        own = sum(values[-1] for stage, values in sums.items() if stage != START)
        sums[REST], sums[WHOLE] = (0, 0.0, 0.0, max(0.0, cpu - own)), (1, wall, wall, cpu)
        return [dict(zip(COLUMNS, [stage, n, *(f"{x:.4g}" for x in seconds)], strict=True))
                for stage, (n, *seconds) in sums.items()]  # fmt: skip

    def write(self, path: str | Path) -> None:
        """Write the table, tab-separated."""
        files.write_table(path, self.rows(), COLUMNS)


_now: Timing | None = None
_own = threading.local()
_nothing = contextlib.nullcontext()


@contextlib.contextmanager
def recording() -> Iterator[Timing]:
    """Record laps in all threads until the end of the block; one at a time."""
    global _now
    _now = Timing()
    try:
        yield _now
    finally:
        _now = None


def now() -> Timing | None:
    """Return what is being recorded, if anything."""
    return _now


def lap(stage: str) -> contextlib.AbstractContextManager[None]:
    """Return a context whose seconds, without those of laps within it, count for a stage."""
    return _nothing if _now is None else _lap(_now, stage)


@contextlib.contextmanager
def _lap(timing: Timing, stage: str) -> Iterator[None]:
    outer = getattr(_own, "inner", None)
    inner = _own.inner = [0.0, 0.0]
    wall, cpu = time.perf_counter(), time.thread_time()
    try:
        yield
    finally:
        wall, cpu = time.perf_counter() - wall, time.thread_time() - cpu
        _own.inner = outer
        if outer is not None:
            outer[0] += wall
            outer[1] += cpu
        timing.add(stage, wall - inner[0], cpu - inner[1])
