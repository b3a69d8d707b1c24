"""Bring the bytes of one remote file into a `Part`: several connections, block by block, hashed on the way.

A block is asked for with ``Range`` (RFC 9110, section 14); every answer is held against the version that
was begun, so that two versions of a file never mix.  A server without ranges is taken in one stream.
"""

import collections
import contextlib
import hashlib
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterator

import requests
import urllib3

from cryon2n import log
from cryon2n.errors import InputError
from cryon2n.frame_range import Span
from cryon2n.movie_header import WrongFile
from cryon2n.part import Part, check_space, remote_of
from cryon2n.web import (
    Again,
    FetchSettings,
    Patience,
    Throttle,
    Unavailable,
    integer,
    open_session,
    open_url,
    reason_of,
    with_retries,
)

CHUNK = 1 << 20  # bytes taken at once; what a killed process can have received and not counted
HEAD = 1 << 16  # bytes; holds the header of any MRC movie
SYNC_EVERY = 15.0  # seconds between synchronisations with the disk

Look = Callable[[bytes, int], tuple[bytes, list[Span]]]


class _Changed(Exception):
    """What is there cannot be gone on with."""


class _Stopped(Exception):
    """Another thread has ended the transfer."""


class Transfer:
    """One download from one server.

    Parameters
    ----------
    url : str
    part : Part
        Where the bytes go, with what an earlier run left.
    size : int or None
        Bytes that the remote file must have, where known.
    look : callable
        Given the first bytes of the file and its size, returns the bytes to keep in their place (they
        may be changed) and the spans to fetch; raises `InputError` where the file is not the one wanted.
    settings : FetchSettings
    """

    def __init__(self, url: str, part: Part, size: int | None, look: Look, settings: FetchSettings):
        self.url, self.part, self.size, self.look, self.settings = url, part, size, look, settings
        self.throttle = Throttle(settings.limit_rate)
        # Short enough that a slow limit does not become bursts with long silences.
        self.chunk = CHUNK if settings.limit_rate is None else max(1024, min(CHUNK, int(settings.limit_rate / 8)))
        self.stop = threading.Event()
        self.error: BaseException | None = None
        self.queue: collections.deque[int] = collections.deque()
        self.restarts = 0

    def run(self) -> str:
        """Fetch all that is missing and return the SHA-256 of the complete part."""
        part = self.part
        if part.have:
            log.say(f"{part.path.name} is there: going on at {_mb(part.have)} of {_mb(part.size)}")
        while True:
            self.stop.clear()
            try:
                if part.remote is None:
                    with open_session(self.url) as session:
                        with_retries(lambda: self._begin(session), self.url, self.settings)
                check_space(part, part.size - part.have)
                with _Follower(part) as follower:
                    self._fetch_blocks()
                    return follower.digest()
            except _Changed as reason:
                self._start_over(str(reason))

    def _start_over(self, reason: str) -> None:
        """Give up the bytes that are there; not more often than `attempts` in all, or it might never end."""
        self.restarts += 1
        if self.restarts >= self.settings.attempts:
            raise Unavailable(
                f"{self.url}: had to start over {self.restarts} times (last: {reason}); run it again later"
            )
        log.say(f"{reason}: starting over ({_mb(self.part.have)} were there)")
        self.part.discard()

    # The beginning

    def _begin(self, session: requests.Session) -> None:
        """Ask for the first bytes, which tell what the file is and whether the server gives ranges."""
        end = min(HEAD, self.settings.block) - 1
        with self._ask(session, 0, end) as response:
            if response.status_code == 416:
                raise Unavailable(f"{self.url}: the file on the server is empty; check the address")
            if response.status_code == 206:
                first, last, size = _content_range(response)
                remote = remote_of(self.url, response.headers, size)
                if first != 0:
                    raise Again("the server sent another part of the file than asked for")
                if remote.resumable:
                    self._check_size(size)
                    head, spans = self.look(self._read(response, min(last, end) + 1), size)
                    check_space(self.part, sum(s.length for s in spans))
                    self.part.begin(remote, spans, self.settings.block)
                    self.part.write(0, head[: spans[0].length])
                    return
            else:
                self._stream(response)
                return
        # Ranges of a file whose versions cannot be told apart must not be put together.
        with open_url(session, self.url, self.settings) as response:
            self._stream(response)

    def _stream(self, response: requests.Response) -> None:
        """Take the whole file from one response; a break means to begin anew."""
        size = integer(response.headers.get("Content-Length"))
        if size is None and self.size is None:
            raise Unavailable(f"{self.url}: the server does not say how long the file is; give --size")
        told, size = size is not None, self.size if size is None else size
        if size == 0:
            raise Unavailable(f"{self.url}: the file on the server is empty; check the address")
        self._check_size(size)
        head, spans = self.look(self._read(response, min(HEAD, size)), size)
        if spans != [Span(0, size)]:
            raise Unavailable(
                f"{self.url}: the server gives no parts of files, so that frames cannot be fetched alone; "
                "fetch whole movies (leave source: frames out) or use another mirror"
            )
        check_space(self.part, size)
        self.part.begin(remote_of(self.url, response.headers, size), spans, self.settings.block)
        self.part.write(0, head)
        progress = self._progress()
        try:
            self._receive(response, len(head), size - len(head), progress)
        except Again as again:
            raise _Changed(f"{again}, and the server does not resume") from None
        if not told and response.raw.read(1):
            raise WrongFile(f"{self.url}: sends more than the {size} bytes wanted; check address and size")

    def _check_size(self, size: int) -> None:
        if self.size not in (None, size):
            raise Unavailable(
                f"{self.url}: the server's file has {size} bytes, wanted {self.size}; "
                "check the address, or correct the size in the movie sheet"
            )

    def _read(self, response: requests.Response, count: int) -> bytes:
        data = bytearray()
        for chunk in self._chunks(response, count):
            data += chunk
        return bytes(data)

    # The blocks

    def _fetch_blocks(self) -> None:
        """Fetch what is missing with several threads, a connection each."""
        part, settings = self.part, self.settings
        self.queue.extend(part.missing())
        self.error = None
        count = min(settings.connections, len(self.queue))
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(count)]
        for thread in threads:
            thread.start()
        progress, synced = self._progress(), time.monotonic()
        patience = None  # seconds to wait for each thread at the end
        try:
            while alive := [t for t in threads if t.is_alive()]:
                alive[0].join(0.05)
                self._report(progress)
                if time.monotonic() - synced > SYNC_EVERY:
                    part.synchronise()
                    synced = time.monotonic()
        except KeyboardInterrupt:
            patience = 0.5  # a stalled connection would hold a person for read_timeout
            raise
        finally:
            self.stop.set()
            for thread in threads:
                thread.join(patience)
            self.queue.clear()
        if self.error is not None:
            raise self.error

    def _work(self) -> None:
        """Fetch blocks until none is left; the body of a thread."""
        patience, seen = Patience(self.url, self.settings), -1
        try:
            with open_session(self.url) as session:
                while not self.stop.is_set():
                    try:
                        number = self.queue.popleft()
                    except IndexError:
                        return
                    try:
                        self._fetch_block(session, number)
                    except Again as again:
                        self.queue.appendleft(number)  # another connection may fare better
                        have = self.part.have
                        pause = patience.pause_after(again, progressed=have != seen)
                        seen = have
                        self.stop.wait(pause)
        except _Stopped:
            pass
        except BaseException as error:
            self.error = self.error or error
            self.stop.set()

    def _fetch_block(self, session: requests.Session, number: int) -> None:
        end = min((number + 1) * self.part.block, self.part.size)
        while number * self.part.block + int(self.part.counts[number]) < end:
            position, start, length = self.part.wanted(number)
            with self._ask(session, start, start + length - 1) as response:
                if response.status_code != 206:
                    raise _Changed("the server does not resume, or has a shorter file than was begun")
                first, _, size = _content_range(response)
                if not self.part.remote.same_version(remote_of(self.url, response.headers, size)):
                    raise _Changed("the file on the server is not the one begun")
                if first != start:
                    raise Again("the server sent another part of the file than asked for")
                self._receive(response, position, length)

    def _ask(
        self, session: requests.Session, start: int, end: int
    ) -> contextlib.AbstractContextManager[requests.Response]:
        return open_url(session, self.url, self.settings, headers={"Range": f"bytes={start}-{end}"})

    def _receive(
        self, response: requests.Response, position: int, length: int, progress: log.Progress | None = None
    ) -> None:
        """Write `length` bytes of the response's body from `position` on, as they come."""
        for chunk in self._chunks(response, length):
            self.part.write(position, chunk)
            position += len(chunk)
            if progress:
                self._report(progress)

    def _chunks(self, response: requests.Response, length: int) -> Iterator[bytes]:
        """Yield `length` bytes of the body in pieces, within the rate; `Again` if they end early or trickle."""
        got, reason = 0, "the connection ended early"
        window_began, window_got = time.monotonic(), 0
        # A limit set by hand must not look like a server that trickles.
        slow = 0 if self.settings.limit_rate else self.settings.slowest * self.settings.read_timeout
        while got < length:
            try:
                # What is there, not all that was asked for: a drop or a stall then loses nothing.
                chunk = response.raw.read1(min(self.chunk, length - got), decode_content=False)
            except urllib3.exceptions.HTTPError as error:
                reason, chunk = reason_of(error), b""
            if not chunk:
                raise Again(f"{reason} (with {_mb(length - got)} of {_mb(length)} still to come)")
            if self.stop.is_set():
                raise _Stopped
            yield chunk
            got += len(chunk)
            if pause := self.throttle.wait_after(len(chunk)):
                self.stop.wait(pause)
            now = time.monotonic()
            if now - window_began > self.settings.read_timeout:
                if got - window_got < slow:
                    raise Again(f"the connection trickles ({(got - window_got) / (now - window_began):.0f} bytes/s)")
                window_began, window_got = now, got

    # Progress

    def _progress(self) -> log.Progress:
        return log.Progress(math.ceil(self.part.size / 1e6), "MB", start=round(self.part.have / 1e6))

    def _report(self, progress: log.Progress) -> None:
        rate = (self.part.have / 1e6 - progress.start) / max(time.monotonic() - progress.began, 1e-9)
        done = progress.total if self.part.complete else int(self.part.have / 1e6)
        progress.update(done, f"{rate:.1f} MB/s")


class _Follower:
    """Hashes a part's bytes behind the threads that fetch them."""

    def __init__(self, part: Part):
        self.part, self.hash = part, hashlib.sha256()
        self.error: OSError | None = None
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "_Follower":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()

    def digest(self) -> str:
        """Return the SHA-256, in hex, of the part, which must be complete."""
        self.thread.join()
        if self.error is not None:
            raise InputError(
                f"{self.part.path}: cannot read what was written ({self.error}); see to the disk and run it again"
            )
        return self.hash.hexdigest()

    def _run(self) -> None:
        try:
            self._follow()
        except OSError as error:
            self.error = error

    def _follow(self) -> None:
        done = 0
        while done < self.part.size and not self.stop.is_set():
            data = os.pread(self.part.descriptor, min(1 << 20, self.part.contiguous(done) - done), done)
            self.hash.update(data)
            done += len(data)
            if not data:
                self.stop.wait(0.005)


def _content_range(response: requests.Response) -> tuple[int, int, int]:
    """Return first and last byte and the size of the whole file, from a 206's ``Content-Range``."""
    match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", response.headers.get("Content-Range", ""))
    if not match:
        raise Again("the server does not say which part of the file it sends")
    return int(match[1]), int(match[2]), int(match[3])


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
