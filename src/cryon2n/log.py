"""Progress that a person can follow: whole lines, with the stage's name and the time left.

Lines rather than a redrawn bar, because several jobs share one terminal and every job's output
also goes to its log file.
"""

import sys
import time

_stage = "cryon2n"


def set_stage(name: str) -> None:
    """Set the name that stands in front of every line of this process."""
    global _stage
    _stage = name


def say(message: str) -> None:
    """Print one line to stderr, with the time and the stage in front."""
    print(f"{time.strftime('%H:%M:%S')} [{_stage}] {message}", file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Format seconds as ``m:ss`` or ``h:mm:ss``."""
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{s:02d}" if hours else f"{minutes}:{s:02d}"


class Progress:
    """Say how far a loop has come, at most once every `every` seconds.

    Parameters
    ----------
    total : int
        Number of steps (or bytes) to do.
    unit : str
        What is counted, in the plural.
    start : int
        Steps already done before this process (a resumed run).
    every : float
        Seconds between two lines.
    """

    def __init__(self, total: int, unit: str, start: int = 0, every: float = 10.0):
        self.total, self.unit, self.start, self.every = total, unit, start, every
        self.began = self.last = time.monotonic()

    def update(self, done: int, note: str = "") -> None:
        """Report that `done` of `total` are done; prints only when it is time to."""
        now = time.monotonic()
        if now - self.last < self.every and done < self.total:
            return
        self.last = now
        rate = (done - self.start) / max(now - self.began, 1e-9)
        left = f", {duration((self.total - done) / rate)} left" if rate > 0 and done < self.total else ""
        say(f"{done}/{self.total} {self.unit} ({100 * done / max(self.total, 1):.0f} %){left}  {note}".rstrip())
