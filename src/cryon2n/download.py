"""Downloads of many-GB files that resume, are verified, and never mix two versions of a file.

The bytes go to ``{out}.part``, which no workflow declares and which therefore survives failures and
reruns; ``{out}.part.json`` says which version of which URL they belong to.  The rest is asked for with
``Range`` and ``If-Range`` (RFC 9110, sections 13 and 14), so that a file that changed on the server is
fetched anew.  The final name appears only when size, MRC header and checksum are right.
"""

import contextlib
import dataclasses
import errno
import fcntl
import math
import os
import re
import shutil
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import requests
import urllib3

from cryon2n import files, log
from cryon2n.errors import InputError
from cryon2n.web import (
    Again,
    FetchSettings,
    check_url,
    integer,
    open_session,
    open_url,
    reason_of,
    with_retries,
)

CHUNK = 1 << 16  # bytes; a stall loses at most this much
MRC_HEADER = 1024  # bytes
MRC_PIXEL_BYTES = {0: 1, 1: 2, 2: 4, 3: 4, 4: 8, 6: 2, 12: 2, 101: 0.5}


@dataclass(frozen=True)
class Expected:
    """What a download must turn out to be; None where nothing is known."""

    size: int | None = None  # bytes
    sha256: str | None = None  # published, in hex
    frames: int | None = None
    shape: tuple[int, int] | None = None  # (h, w) in pixels


@dataclass(frozen=True)
class Remote:
    """A version of a remote file: the one that the bytes of a ``.part`` belong to."""

    url: str
    etag: str | None
    last_modified: str | None
    size: int

    @property
    def validator(self) -> str | None:
        """The value for ``If-Range``, which takes no weak entity tag (RFC 9110, 13.1.5)."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.last_modified

    def agrees_with(self, other: "Remote") -> bool:
        """Tell whether nothing that both know differs (a 206 may leave headers out)."""
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return all(a == b for a, b in pairs if a is not None and b is not None)


def fetch(
    url: str,
    out: str | Path,
    expected: Expected | None = None,
    lock: str | Path | None = None,
    settings: FetchSettings | None = None,
) -> str:
    """Download `url` to `out`, going on from what an earlier run left, and verify it.

    Parameters
    ----------
    url : str
        https (http only to a loopback address, or with ``settings.allow_http``).
    out : path
        Appears only when everything is right.  A file that is there already is verified, not fetched.
    expected : Expected, optional
    lock : path, optional
        The record of the first download's SHA-256, written if missing, obeyed if there.  Default:
        ``checksums/{name}.sha256`` beside `out`.
    settings : FetchSettings, optional

    Returns
    -------
    sha256 : str

    Raises
    ------
    InputError
        Wrong size, MRC header or checksum; too little disk space; a server that refuses or never ends.
    """
    out, expected, settings = Path(out), expected or Expected(), settings or FetchSettings()
    lock = Path(lock) if lock else out.parent / "checksums" / f"{out.name}.sha256"
    check_url(url, settings.allow_http)
    check_sha256(expected.sha256, "the published checksum")
    mrc = out.suffix in (".mrc", ".mrcs")
    if (expected.frames or expected.shape) and not mrc:
        raise InputError(f"{out}: frames and shape can be checked in .mrc files only; leave out --frames and --shape")
    locked = read_lock(lock)  # a damaged record is reported before gigabytes are fetched
    if out.exists():
        digest = _verify(out, str(out), expected, mrc, locked, lock)
        log.say(f"{out} is there already, and as expected")
        if locked is None:
            _write_lock(lock, digest, out)
        return digest
    out.parent.mkdir(parents=True, exist_ok=True)
    part, state = out.with_name(f"{out.name}.part"), out.with_name(f"{out.name}.part.json")
    with _own(part) as file, open_session(url) as session:
        download = _Download(url, file, state, session, expected, settings, mrc)
        try:
            with_retries(download.attempt, url, settings)
            os.fsync(file.fileno())
            digest = _verify(part, url, expected, mrc, locked, lock)
        except _Wrong:
            part.unlink()  # the next run must not take it up again
            state.unlink(missing_ok=True)
            raise
        # Before the rename: a file without its record would be trusted unseen by the next run.
        if locked is None:
            _write_lock(lock, digest, out)
        os.replace(part, out)
        state.unlink(missing_ok=True)
    log.say(f"{out}: {out.stat().st_size / 1e6:.1f} MB, sha256 {digest}")
    return digest


class _Download:
    """What is there of a remote file and which version of it: the state between two attempts."""

    def __init__(
        self,
        url: str,
        file: BinaryIO,
        state: Path,
        session: requests.Session,
        expected: Expected,
        settings: FetchSettings,
        mrc: bool,
    ):
        self.url, self.file, self.state, self.session = url, file, state, session
        self.expected, self.settings, self.mrc = expected, settings, mrc
        self.restarts = 0
        self.position = os.fstat(file.fileno()).st_size
        self.remote = self._left_behind()
        if self.remote is None:
            self.position = 0
        elif self.position:
            log.say(f"{file.name} is there: going on at {_mb(self.position)} of {_mb(self.remote.size)}")

    def _left_behind(self) -> Remote | None:
        """Return the version that an earlier run's bytes belong to; None if one cannot go on from them."""
        try:
            remote = Remote(**files.read_json(self.state))
        except (InputError, TypeError):
            return None
        fits = remote.url == self.url and self.expected.size in (None, remote.size)
        return remote if fits and remote.validator and self.position <= remote.size else None

    def attempt(self) -> None:
        """Ask once for what is missing, and keep what comes."""
        if self.remote and self.position == self.remote.size:
            return
        headers = {}
        if self.remote and self.position and self.remote.validator:
            headers = {"Range": f"bytes={self.position}-", "If-Range": self.remote.validator}
        with open_url(self.session, self.url, self.settings, headers=headers) as response:
            remote = self.remote if self._resumes(response) else self._start(response)
            check_space(self.state.parent, remote.size - self.position)
            self._receive(response, remote.size)

    def _resumes(self, response: requests.Response) -> bool:
        """Tell whether the response is the missing rest of the same version (False: it is a whole file)."""
        if response.status_code == 200:
            return False
        span = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        if response.status_code == 206 and self.remote and span and int(span[1]) == self.position > 0:
            if self.remote.agrees_with(_remote_of(self.url, response, int(span[2]))):
                return True
        self._start_over("the file on the server is not the one begun")
        raise Again("asking for the whole file")

    def _start(self, response: requests.Response) -> Remote:
        """Begin with byte 0 of the version that the response carries."""
        size = integer(response.headers.get("Content-Length"))
        wanted = self.expected.size
        if size is None and wanted is None:
            raise InputError(f"{self.url}: the server does not say how long the file is; give --size")
        if size is not None and wanted not in (None, size):
            raise InputError(
                f"{self.url}: the server's file has {size} bytes, wanted {wanted}; "
                "check the address, or correct the size in the movie sheet"
            )
        remote = _remote_of(self.url, response, wanted if size is None else size)
        if self.position:
            same = self.remote and self.remote.agrees_with(remote)
            self._start_over("the server does not resume" if same else "the file has changed on the server")
        self.file.truncate(0)  # before the new state: old bytes must never stand under it
        files.write_json(self.state, dataclasses.asdict(remote))
        self.remote = remote
        return remote

    def _start_over(self, reason: str) -> None:
        """Give up the bytes that are there; not more often than `attempts` in all, or it might never end."""
        self.restarts += 1
        if self.restarts >= self.settings.attempts:
            raise InputError(
                f"{self.url}: had to start over {self.restarts} times (last: {reason}); run it again later"
            )
        log.say(f"{reason}: starting over ({_mb(self.position)} were there)")
        self.file.truncate(0)
        self.position = 0

    def _receive(self, response: requests.Response, total: int) -> None:
        """Append the response's bytes as they come; `Again` if they end early."""
        begin, began = self.position, time.monotonic()
        progress = log.Progress(math.ceil(total / 1e6), "MB", start=round(begin / 1e6))
        reason, rate = "the connection ended early", 0.0
        header_due = self.mrc
        try:
            for chunk in response.raw.stream(CHUNK, decode_content=False):
                if self.position + len(chunk) > total:
                    raise _Wrong(f"{self.url}: sends more than the {total} bytes wanted; check address and size")
                self._append(chunk)
                if header_due and self.position >= MRC_HEADER:  # in the first second, not after 2 GB
                    check_mrc_header(self.file.name, total, self.url, self.expected)
                    header_due = False
                rate = (self.position - begin) / 1e6 / max(time.monotonic() - began, 1e-9)
                progress.update(int(self.position / 1e6), f"{rate:.1f} MB/s")
        except urllib3.exceptions.HTTPError as error:
            reason = reason_of(error)
        if self.position < total:
            raise Again(f"{reason} (at {_mb(self.position)} of {_mb(total)})", progressed=self.position > begin)
        progress.update(progress.total, f"{rate:.1f} MB/s")

    def _append(self, chunk: bytes) -> None:
        view = memoryview(chunk)
        try:
            while view:
                written = self.file.write(view)
                self.position += written
                view = view[written:]
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise InputError(
                f"{self.file.name}: the disk is full ({error.strerror}); "
                "free space and run it again, it goes on from there"
            ) from None


@contextlib.contextmanager
def _own(part: Path) -> Iterator[BinaryIO]:
    """Open `part` for appending, for this process alone; remove it at the end if nothing came."""
    try:
        file = open(part, "ab", buffering=0)
    except OSError as error:
        raise InputError(f"{part}: cannot write there ({error.strerror}); choose another place") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # A killed workflow can leave its download running; two writers would spoil the file.
            raise InputError(f"{part}: another process is fetching this file; wait for it or end it") from None
        except OSError:
            log.say(f"{part}: this file system has no locks; see that no other process fetches the same file")
        if not part.exists() or not os.path.samestat(os.fstat(file.fileno()), part.stat()):
            raise InputError(f"{part}: another process has just finished with it; run this again")
        try:
            yield file
        finally:
            if part.exists() and part.stat().st_size == 0:
                part.unlink()
                part.with_name(f"{part.name}.json").unlink(missing_ok=True)


def _remote_of(url: str, response: requests.Response, size: int) -> Remote:
    return Remote(url, response.headers.get("ETag"), response.headers.get("Last-Modified"), size)


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


# Checks


class _Wrong(InputError):
    """The bytes themselves are not what was wanted: keeping them would spoil the next run."""


def check_space(directory: Path, need: int) -> None:
    """Raise `InputError` if `directory` has not `need` bytes free."""
    free = shutil.disk_usage(directory).free
    if free < need:
        raise InputError(
            f"{directory}: {free / 1e9:.2f} GB are free, {need / 1e9:.2f} GB are still to be fetched; "
            "free space or choose another disk"
        )


def check_sha256(text: str | None, where: str) -> None:
    """Raise `InputError` if `text` is neither None nor 64 lower-case hex digits."""
    if text is not None and not re.fullmatch(r"[0-9a-f]{64}", text):
        raise InputError(f"{where}: found {text!r}, wanted a SHA-256 of 64 lower-case hex digits")


def check_mrc_header(path: str | Path, size: int, where: str, expected: Expected) -> None:
    """Check that an MRC file of `size` bytes has the header that belongs to it (MRC2014 format).

    Parameters
    ----------
    path : path
        Its first 1024 bytes are read; the rest need not be there yet.
    size : int
        Bytes of the whole file.
    where : str
        What the messages call the file.
    expected : Expected
        ``frames`` and ``shape`` are compared where given.

    Raises
    ------
    InputError
        Not MRC, a size that does not belong to the header, or other frames or shape than expected.
    """
    with open(path, "rb") as file:
        head = file.read(MRC_HEADER)
    if len(head) < MRC_HEADER:
        raise _Wrong(f"{where}: has {size} bytes, less than an MRC header; check the address")
    order = ">" if head[212] == 0x11 else "<"  # the machine stamp; old programs leave it empty
    w, h, n, mode = struct.unpack_from(f"{order}4i", head)
    (extended,) = struct.unpack_from(f"{order}i", head, 92)
    if mode not in MRC_PIXEL_BYTES or min(w, h, n) <= 0 or extended < 0:
        raise _Wrong(f"{where}: is not an MRC file (mode {mode}, {n} x {h} x {w}); check the address")
    needed = MRC_HEADER + extended + n * h * math.ceil(w * MRC_PIXEL_BYTES[mode])
    if needed != size:
        raise _Wrong(
            f"{where}: has {size} bytes, but its MRC header ({n} frames of {h} x {w}, mode {mode}) "
            f"needs {needed}; it is damaged or not the file that was meant"
        )
    if expected.frames not in (None, n):
        raise _Wrong(f"{where}: holds {n} frames, wanted {expected.frames}; check the address and --frames")
    if expected.shape not in (None, (h, w)):
        raise _Wrong(
            f"{where}: frames are {h} x {w} (h x w), wanted {expected.shape[0]} x {expected.shape[1]}; "
            "check the address and --shape"
        )


def _verify(path: Path, where: str, expected: Expected, mrc: bool, locked: str | None, lock: Path) -> str:
    """Check a complete file: size, MRC header, published and locked SHA-256, which is returned."""
    size = path.stat().st_size
    if expected.size not in (None, size):
        raise _Wrong(f"{where}: has {size} bytes, wanted {expected.size}; delete it and fetch it again")
    if mrc:
        check_mrc_header(path, size, where, expected)
    digest = files.sha256_of(path)
    if expected.sha256 not in (None, digest):
        raise _Wrong(f"{where}: has sha256 {digest}, the published one is {expected.sha256}; fetch it again")
    if locked not in (None, digest):
        raise _Wrong(
            f"{where}: has sha256 {digest}, but {lock} recorded {locked} at the first download; "
            "fetch it again, and delete the record only if the file was meant to change"
        )
    return digest


def read_lock(lock: str | Path) -> str | None:
    """Return the SHA-256 that an earlier download recorded, or None if there is no record."""
    try:
        words = Path(lock).read_text().split()
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{lock}: cannot read the record of a checksum ({error})") from None
    check_sha256(words[0] if words else "", str(lock))
    return words[0]


def _write_lock(lock: Path, digest: str, out: Path) -> None:
    files.write_text(lock, f"{digest}  {out.name}\n")  # the format of `sha256sum --check`
