"""A thousand random schedules of faults and kills: nothing is lost, nothing spoilt, little fetched twice."""

import contextlib
import multiprocessing
import os
import random
import signal
from dataclasses import dataclass, field

import numpy as np
import pytest

from cryon2n import mrcio
from cryon2n.download import fetch
from cryon2n.errors import InputError
from cryon2n.web import FetchSettings
from faultserver import Site, serve

SCHEDULES = 1000
GROUPS = 10
URL_PATH = "/mic.mrc"
# The longest of these times is that of a stall; the faults of a schedule follow one another quickly.
PATIENCE = {"connect_timeout": 5.0, "read_timeout": 0.1, "attempts": 12, "backoff": 0.001, "max_backoff": 0.004}
OLD, OLDER = "Wed, 01 Jul 2015 00:00:00 GMT", "Tue, 30 Jun 2015 00:00:00 GMT"


@dataclass
class Schedule:
    """What happens during one download."""

    content: bytes
    settings: FetchSettings
    faults: list = field(default_factory=list)
    kills: list = field(default_factory=list)  # bytes sent since the last one
    changes_at: int | None = None  # request at which another version takes the file's place
    changed: bytes = b""
    etags: list = field(default_factory=lambda: ['"1"'])
    last_modified: str | None = OLD
    ranges: bool = True

    @property
    def plain(self) -> bool:
        """Nothing forces bytes that are there to be given up."""
        resumable = self.last_modified or self.etags == ['"1"']
        return self.changes_at is None and self.ranges and bool(resumable)


@pytest.fixture(scope="module")
def movies(tmp_path_factory):
    """Pairs of movies of equal size, from 2 to 60 blocks of 4096 bytes."""
    folder, pairs = tmp_path_factory.mktemp("movies"), []
    rng = np.random.default_rng(3)
    for h in (40, 90, 180, 300):
        pair = []
        for _ in range(2):
            mrcio.write_mrc(folder / "m.mrc", rng.integers(0, 255, (4, h, 199), dtype=np.uint8), 1.0)
            pair.append((folder / "m.mrc").read_bytes())
        pairs.append(pair)
    return pairs


def draw(rng: random.Random, movies) -> Schedule:
    content, changed = rng.choice(movies)
    settings = FetchSettings(
        **PATIENCE, slowest=0, connections=rng.choice([1, 1, 2, 4]), block=rng.choice([4096, 8192, 32768])
    )
    schedule = Schedule(content, settings)
    for _ in range(rng.choice([0, 1, 2, 4, 8])):
        kind = rng.choices(["", "drop", "reset", "cut", "status", "shift", "stall"], [6, 6, 4, 3, 4, 1, 0.5])[0]
        value = rng.choice([408, 429, 500, 502, 503]) if kind == "status" else rng.randrange(settings.block)
        schedule.faults.append((kind, rng.randrange(len(content)) if kind == "cut" else value))
    if rng.random() < 0.3:
        schedule.kills = [rng.randrange(len(content)) for _ in range(rng.choice([1, 1, 2]))]
    schedule.etags, schedule.last_modified = rng.choice(
        [(['"1"'], OLD)] * 4
        + [([None], OLD), (['"1"'], None), ([None], None), (['W/"1"'], None), (['"1"', '"2"', None], OLD)]
    )
    schedule.ranges = rng.random() < 0.9
    if rng.random() < 0.1 and schedule.plain:
        schedule.changes_at, schedule.changed = rng.randrange(1, 8), changed
    return schedule


def prepare(site: Site, schedule: Schedule) -> None:
    site.contents[URL_PATH], site.asked, site.every = schedule.content, [], None
    site.faults, site.ranges = list(schedule.faults), schedule.ranges
    site.etags, site.last_modified = schedule.etags, schedule.last_modified

    def change(number):
        if number == schedule.changes_at:
            site.contents[URL_PATH] = schedule.changed
            site.etags = [tag and tag.replace("1", "9") for tag in site.etags]
            site.last_modified = site.last_modified and OLDER

    site.before = change


def fetch_quietly(url, out, settings):
    """Fetch in a process of its own, which may be killed at any moment."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    with contextlib.suppress(InputError):
        fetch(url, out, settings=settings)


def run_and_kill(site: Site, out, settings: FetchSettings, after: int) -> bool:
    """Fetch until `after` more bytes are sent, then kill; tell whether it was killed before its end."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cryon2n.download", "faultserver"])
    process = context.Process(target=fetch_quietly, args=(site.base + URL_PATH, out, settings))
    begun = site.sent()

    def kill(sent):
        if sent - begun >= after and process.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)

    site.after_bytes = kill
    process.start()
    process.join(30)
    site.after_bytes = lambda sent: None
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


@pytest.mark.parametrize("group", range(GROUPS))
def test_random_schedules_lose_and_spoil_nothing(group, movies, tmp_path):
    killed = broken = 0
    with serve() as site:
        for number in range(SCHEDULES // GROUPS):
            rng = random.Random(f"{group} {number}")
            schedule, out = draw(rng, movies), tmp_path / f"{number}" / "mic.mrc"
            prepare(site, schedule)
            where = f"schedule {group} {number}: {schedule.settings}, {schedule.faults}, kills {schedule.kills}"
            interruptions = sum(kind in ("drop", "reset", "stall", "cut", "shift") for kind, _ in schedule.faults)
            for after in schedule.kills:
                if not out.exists() and run_and_kill(site, out, schedule.settings, after):
                    killed += 1
                    interruptions += schedule.settings.connections
            try:
                fetch(site.base + URL_PATH, out, settings=schedule.settings)
            except InputError:
                # It may give up, but it must not leave anything wrong: a later run ends well.
                broken += 1
                assert not out.exists(), where
                site.faults = []
                fetch(site.base + URL_PATH, out, settings=schedule.settings)
            served = site.contents[URL_PATH]
            # A version may be complete before the other one takes its place.
            assert out.read_bytes() in ({served, schedule.content} if schedule.changed else {served}), where
            assert sorted(p.name for p in out.parent.iterdir()) == ["checksums", "mic.mrc"], where
            if schedule.plain:
                twice = site.sent() - len(served)
                assert 0 <= twice <= interruptions * schedule.settings.block, f"{where}: {twice} bytes twice"
                if schedule.settings.connections == 1 and len(schedule.kills) == 1 and not schedule.faults:
                    assert twice <= schedule.settings.block, where
    # The schedules did what they are for.
    assert killed > 5
    assert broken < SCHEDULES // GROUPS // 4
