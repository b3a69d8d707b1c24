"""A download that is not complete: its bytes, which version of which file they are, and which are there.

``{out}.part`` has its final length from the start, with holes; ``{out}.part.json`` says what it belongs
to; ``{out}.part.done`` counts the bytes that are there, block by block, after each write.  No workflow
declares any of them, so that they survive failures and reruns.

A killed process leaves what it wrote to the operating system, and the counts are exact.  After a crash
of the machine (or on another machine) they may be ahead of the disk; then only the counts of the last
synchronisation are trusted, which stand in ``.part.json``.
"""

import contextlib
import dataclasses
import email.utils
import errno
import fcntl
import glob
import os
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import numpy as np

from cryon2n import files, log
from cryon2n.errors import InputError
from cryon2n.frame_range import Span

# Seconds between the last change of a file and the server's answer, from which on its date tells versions
# apart (RFC 9110, 8.8.2.2: a file may change twice within the date's one second).
SETTLED = 60


@dataclass(frozen=True)
class Remote:
    """A version of a remote file.

    Attributes
    ----------
    url : str
    etag, last_modified : str or None
        As the server gives them; `last_modified` only where it is old enough to tell versions apart.
    size : int
        Bytes.
    """

    url: str
    etag: str | None
    last_modified: str | None
    size: int

    @property
    def resumable(self) -> bool:
        """Tell whether a later request can be known to be for the same version."""
        return self.last_modified is not None or (self.etag is not None and not self.etag.startswith("W/"))

    def same_version(self, other: "Remote") -> bool:
        """Tell whether both are the same bytes.

        Machines that serve one archive together, and mirrors, give different entity tags to the same
        file; therefore name, size and date suffice.  A weak tag promises no equal bytes.
        """
        name, other_name = (PurePosixPath(urlsplit(r.url).path).name for r in (self, other))
        if (self.size, name) != (other.size, other_name):
            return False
        if self.last_modified and other.last_modified:
            return self.last_modified == other.last_modified
        return self.url == other.url and self.resumable and self.etag == other.etag


def remote_of(url: str, headers: dict[str, str], size: int) -> Remote:
    """Return the version that a response's headers tell of."""
    changed, now = _seconds(headers.get("Last-Modified")), _seconds(headers.get("Date"))
    settled = changed is not None and (time.time() if now is None else now) - changed >= SETTLED
    return Remote(url, headers.get("ETag"), headers.get("Last-Modified") if settled else None, size)


def _seconds(date: str | None) -> float | None:
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        return email.utils.parsedate_to_datetime(date).timestamp()
    return None


class Part:
    """The files of an incomplete download, held by one process.  Get one from `open_part`.

    Attributes
    ----------
    remote : Remote or None
        What the bytes belong to; None where nothing is begun.
    size : int
        Bytes of the complete part.
    """

    def __init__(self, path: Path, descriptor: int, what: str):
        self.path, self.descriptor, self.what = path, descriptor, what
        self.state, self.journal = (path.with_name(f"{path.name}.{end}") for end in ("json", "done"))
        self.lock = threading.Lock()
        self._forget()
        with contextlib.suppress(InputError, TypeError, ValueError, KeyError, OSError, OverflowError):
            self._take_up()

    def _forget(self) -> None:
        self.remote: Remote | None = None
        self.spans: list[Span] = []
        self.block, self.size, self.have = 1, 0, 0
        self.counts = np.zeros(0, "<u4")
        self._journal: int | None = None

    def _take_up(self) -> None:
        """Go on from what an earlier process left; anything odd about it raises."""
        state = files.read_json(self.state)
        remote, spans = Remote(**state["remote"]), [Span(**s) for s in state["spans"]]
        block, size = int(state["block"]), sum(s.length for s in spans)
        counts = np.fromfile(self.journal, "<u4") if state["boot"] == boot_id() else np.array(state["synced"], "<u4")
        if block < 1 or state["what"] != self.what:
            raise ValueError
        full = _block_lengths(size, block)
        whole = os.fstat(self.descriptor).st_size == size and len(counts) == len(full)
        if not (whole and remote.resumable and np.all(counts <= full)):
            raise ValueError
        self.remote, self.spans, self.block, self.size = remote, spans, block, size
        self.counts, self.have = counts, int(counts.sum())
        self._open_journal()
        self.synchronise()

    def begin(self, remote: Remote, spans: list[Span], block: int) -> None:
        """Begin anew: nothing is there of `spans` of `remote`; requests will be for `block` bytes."""
        self.discard()
        self.remote, self.spans, self.block = remote, spans, block
        self.size = sum(s.length for s in spans)
        self.counts = np.zeros(len(_block_lengths(self.size, block)), "<u4")
        try:
            os.ftruncate(self.descriptor, self.size)
            self._open_journal()
            self._write_state(self.counts)
        except OSError as error:
            raise self._cannot_write(error) from None

    def _open_journal(self) -> None:
        self._journal = os.open(self.journal, os.O_RDWR | os.O_CREAT, 0o666)
        os.pwrite(self._journal, self.counts.tobytes(), 0)

    def _write_state(self, counts: np.ndarray) -> None:
        state = {
            "what": self.what,
            "remote": dataclasses.asdict(self.remote),
            "spans": [dataclasses.asdict(s) for s in self.spans],
            "block": self.block,
            "boot": boot_id(),
            "synced": counts.tolist(),
        }
        files.write_json(self.state, state)

    @property
    def complete(self) -> bool:
        """Tell whether every byte is there."""
        return self.remote is not None and self.have == self.size

    def missing(self) -> list[int]:
        """Return the numbers of the blocks that are not complete."""
        return np.flatnonzero(self.counts < _block_lengths(self.size, self.block)).tolist()

    def wanted(self, number: int) -> tuple[int, int, int]:
        """Return what to ask for next in a block: position in the part, in the remote file, and bytes."""
        position = number * self.block + int(self.counts[number])
        end, begin = min((number + 1) * self.block, self.size), 0
        for span in self.spans:
            if position < begin + span.length:
                return position, span.start + position - begin, min(end, begin + span.length) - position
            begin += span.length
        raise IndexError(f"block {number} is complete")

    def contiguous(self, known: int) -> int:
        """Return how many bytes are there from the start without a gap, `known` of which are known to be."""
        number = known // self.block
        while number < len(self.counts):
            known = number * self.block + int(self.counts[number])
            number += 1
            if known < number * self.block:
                break
        return known

    def write(self, position: int, data: bytes | memoryview) -> None:
        """Write bytes that follow what is there of their block, and count them."""
        view = memoryview(data)
        while view:
            number = position // self.block
            piece = view[: (number + 1) * self.block - position]
            try:
                written = os.pwrite(self.descriptor, piece, position)
            except OSError as error:
                raise self._cannot_write(error) from None
            with self.lock:
                self.counts[number] += written
                self.have += written
                try:
                    os.pwrite(self._journal, self.counts[number].tobytes(), 4 * number)
                except OSError as error:
                    raise self._cannot_write(error) from None
            position += written
            view = view[written:]

    def _cannot_write(self, error: OSError) -> InputError:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        todo = "free space and run it again, it goes on from there" if full else "see to the disk and run it again"
        return InputError(f"{self.path}: {'the disk is full' if full else 'cannot write'} ({error.strerror}); {todo}")

    def synchronise(self) -> None:
        """Bring the bytes to the disk, and note which those are."""
        if self.remote is None:
            return
        with self.lock:
            counts = self.counts.copy()
        try:
            os.fsync(self.descriptor)
            self._write_state(counts)
        except OSError as error:
            raise self._cannot_write(error) from None

    def remove_records(self) -> None:
        """Remove the files beside the part, and what killed processes left of them."""
        left = self.path.parent.glob(f".{glob.escape(self.path.name)}.*.tmp.json")
        for path in (self.state, self.journal, *left):
            path.unlink(missing_ok=True)

    def discard(self) -> None:
        """Throw away what is there."""
        # First what gives meaning to the bytes: a kill between these lines must leave no lie.
        self.remove_records()
        os.ftruncate(self.descriptor, 0)
        self.close()
        self._forget()

    def close(self) -> None:
        """Close the journal."""
        if self._journal is not None:
            os.close(self._journal)
            self._journal = None


def _block_lengths(size: int, block: int) -> np.ndarray:
    lengths = np.full(-(-size // block), block, "<u4")
    if size % block:
        lengths[-1] = size % block
    return lengths


def boot_id() -> str:
    """Return what tells one run of one machine's operating system from another."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"unknown-{os.getpid()}"  # agrees with no other process: only synchronised bytes are trusted


@contextlib.contextmanager
def open_part(path: Path, what: str) -> Iterator[Part]:
    """Open ``path`` for this process alone, with what an earlier one left; remove it at the end if nothing came.

    `what` names the part of a remote file that is wanted: bytes of another are not gone on with.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise InputError(f"{path}: cannot write there ({error.strerror}); choose another place") from None
    try:
        _lock(descriptor, path)
        if not path.exists() or not os.path.samestat(os.fstat(descriptor), path.stat()):
            raise InputError(f"{path}: another process has just finished with it; run this again")
        part = Part(path, descriptor, what)
        try:
            yield part
        except BaseException:
            with contextlib.suppress(InputError):  # the first error is the one to tell
                part.synchronise()
            raise
        finally:
            if part.have == 0 and path.exists():
                part.discard()
                path.unlink(missing_ok=True)
            part.close()
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path) -> None:
    for last in (False,) * 20 + (True,):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            # A killed workflow can leave its download running; two writers would spoil the file.
            if last:
                raise InputError(f"{path}: another process is fetching this file; wait for it or end it") from None
            time.sleep(0.05)  # it may only be looking (`_still_needed`)
        except OSError:
            log.say(f"{path}: this file system has no locks; see that no other process fetches the same file")
            return


def check_space(part: Part, need: int) -> None:
    """Raise `InputError` if the disk has not `need` bytes free beside what other downloads there still need."""
    folder = part.path.parent
    free = shutil.disk_usage(folder).free
    others = sum(_still_needed(state) for state in folder.glob("*.part.json") if state != part.state)
    if free < need + others:
        beside = f" and {others / 1e9:.2f} GB by other downloads to this folder" if others else ""
        raise InputError(
            f"{folder}: {free / 1e9:.2f} GB are free, {need / 1e9:.2f} GB are still to be fetched{beside}; "
            "free space or choose another disk"
        )


def _still_needed(state: Path) -> int:
    """Return the bytes that another download will still take, 0 if none is running."""
    try:
        with open(state.with_suffix(""), "rb") as part:
            try:
                fcntl.flock(part, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return 0  # nobody holds it
            except BlockingIOError:
                about = os.fstat(part.fileno())
                return max(0, about.st_size - 512 * about.st_blocks)
    except OSError:
        return 0
