"""Micrographs that arrive while a microscope works: each is taken once its files are complete."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from cryon2n import files, log, micrograph_inputs
from cryon2n.errors import InputError
from cryon2n.micrograph_inputs import Micrograph

INTERVAL = 5.0  # s between two looks at the folder
PATIENCE = 60.0  # s for which a file may stay unreadable without growing, before it is taken as it is


def arriving(
    find: Callable[[], list[Micrograph]],
    stop: threading.Event,
    minutes: float | None,
    interval: float,
) -> Iterator[Micrograph]:
    """Yield micrographs as they become complete, each once.

    Complete is a micrograph whose files have not changed between two looks and can be read: a header that promises
    more than there is shows that a file is still being written.

    Parameters
    ----------
    find : callable
        Returns the micrographs that are there, or raises `InputError` where there are none.
    stop : Event
        Ends it.
    minutes : float or None
        Ends it when this time is over; what is there and incomplete then is yielded, to fail with its reason.
    interval : float
        Seconds between two looks.
    """
    end = None if minutes is None else time.monotonic() + 60 * minutes
    taken: set[tuple[Path, ...]] = set()
    names: set[str] = set()
    said = ""
    seen: dict[tuple[Path, ...], tuple[list[list[int]], float]] = {}
    while not stop.is_set():
        over = end is not None and time.monotonic() >= end
        try:
            there = find()
        except InputError as error:  # nothing yet, or a table that is just being written
            there = []
            if str(error) != said:
                said = str(error)
                log.say(f"waiting: {said}")
        for micrograph in there:
            key = paths_of(micrograph)
            if key in taken or not (over or _complete(key, seen)):
                continue
            taken.add(key)
            # A name that was free when an earlier file had come may have two claimants now.
            name = micrograph.name if micrograph.name not in names else f"{micrograph.name}_{len(taken)}"
            names.add(name)
            yield replace(micrograph, name=name)
        if over:
            return
        stop.wait(interval if end is None else max(0.0, min(interval, end - time.monotonic())))


def paths_of(micrograph: Micrograph) -> tuple[Path, ...]:
    """Return all files of a micrograph."""
    return tuple(p for p in (micrograph.full, micrograph.a, micrograph.b) if p is not None)


def _complete(paths: tuple[Path, ...], seen: dict[tuple[Path, ...], tuple[list[list[int]], float]]) -> bool:
    """Tell whether files are complete; `seen` holds their stamps and when these were first seen."""
    try:
        now = [files.stamp(p) for p in paths]
    except OSError:
        return False
    before, since = seen.get(paths, (None, 0.0))
    if now != before:
        seen[paths] = now, time.monotonic()
        return False
    try:
        for path in paths:
            micrograph_inputs.read(path)
    except (InputError, OSError) as error:
        if time.monotonic() - since < PATIENCE:
            return False
        log.say(f"{paths[0].name}: no longer grows, and cannot be read: {error}")
    return True
