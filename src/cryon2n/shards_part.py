"""Shards that are being written: the arrays under temporary names, what of them is there, and their digests.

``.train_a.part.npy`` and ``.train_b.part.npy`` have no header until all patches are there, so that nothing
reads them.  ``.shards.journal`` has one line for each micrograph whose patches are written, with what they
were made from and their checksums; a killed run goes on from there.  What a line says is believed only if the
micrograph is made from the same files with the same settings and code, its place is the same, and its patches
have the checksums still.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cryon2n import log, shards
from cryon2n.errors import InputError

JOURNAL = ".shards.journal"
CHUNK = 1 << 20  # bytes read at once to be hashed
FLUSH_EVERY = 0.2  # seconds


class Stopped(Exception):
    """Another thread has ended the work."""


class Order:
    """What the threads know of one another: how many patches each micrograph keeps, and whose are written.

    The place of a micrograph's patches is known once all micrographs before it have said how many they keep.

    Parameters
    ----------
    tiles : list of int
        Patches that each micrograph has if none is left out.
    """

    def __init__(self, tiles: list[int]):
        self.tiles, self.most = tiles, sum(tiles)
        self.kept: list[int | None] = [None] * len(tiles)
        self.written = [False] * len(tiles)
        self.changed = threading.Condition()
        self.error: BaseException | None = None
        self._known = self._before = 0  # micrographs before `_known` have said it; they keep `_before` patches
        self._done = self._ready = 0  # micrographs before `_done` are written, which are `_ready` patches
        self._left_out = False

    def place(self, index: int, count: int) -> int:
        """Say that micrograph `index` keeps `count` patches; returns the number of its first once it is known."""
        with self.changed:
            self.kept[index] = count
            self._left_out |= count < self.tiles[index]
            while self._known < len(self.kept) and self.kept[self._known] is not None:
                self._before += self.kept[self._known] or 0
                self._known += 1
            self.changed.notify_all()
            self.changed.wait_for(lambda: self.error or self._known >= index)
            self._check()
            return sum(count or 0 for count in self.kept[:index])

    def wrote(self, index: int) -> None:
        """Say that all patches of micrograph `index` are written."""
        with self.changed:
            self.written[index] = True
            while self._done < len(self.written) and self.written[self._done]:
                self._ready += self.kept[self._done] or 0
                self._done += 1
            self.changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """End the work of all threads."""
        with self.changed:
            self.error = self.error or error
            self.changed.notify_all()

    def check(self) -> None:
        """Raise `Stopped` if the work has been ended."""
        with self.changed:
            self._check()

    def _check(self) -> None:
        if self.error is not None:
            raise Stopped

    @property
    def total(self) -> int | None:
        """Patches in all: as if none were left out until one is, then None until all is known."""
        if self._known == len(self.kept):
            return self._before
        return None if self._left_out else self.most

    def wait(self, total: int | None, done: int) -> tuple[int, int, bool]:
        """Wait for more than `done` patches in a row, for another total than `total`, or for the end.

        Returns
        -------
        total, ready : int
            Patches in all, and those that are written without a gap from the first.
        complete : bool
        """
        with self.changed:
            self.changed.wait_for(
                lambda: (
                    self.error
                    or (self.total is not None and (self.total != total or self._ready > done or self._complete))
                )
            )
            self._check()
            return self.total or 0, self._ready, self._complete

    def ended(self, patience: float) -> bool:
        """Wait for the end for `patience` seconds; tells whether all is written, or the work was ended."""
        with self.changed:
            return self.changed.wait_for(lambda: self.error is not None or self._complete, patience)

    @property
    def _complete(self) -> bool:
        return self._done == len(self.written)


class Part:
    """The temporary files of the shards of a folder, held by this process alone.  Get one from `open_part`."""

    def __init__(self, directory: Path, journal: int, side: int):
        self.directory, self.journal, self.shape = directory, journal, (0, side, side)
        self.paths = {s: directory / f".train_{s}.part.npy" for s in "ab"}
        self.final = {s: directory / f"train_{s}.npy" for s in "ab"}
        self.manifest = directory / "manifest.json"
        self.lock = threading.Lock()
        self.entries = self._read_journal()
        for s in "ab":
            # A run that was killed between its last renames.
            if self.entries and not self.manifest.exists() and not self.paths[s].exists() and self.final[s].exists():
                os.replace(self.final[s], self.paths[s])
        self.files = {s: os.open(path, os.O_RDWR | os.O_CREAT, 0o666) for s, path in self.paths.items()}

    def _read_journal(self) -> dict[str, dict[str, Any]]:
        """Return the lines by micrograph; the last of one counts, and nothing after a line that is torn."""
        entries: dict[str, dict[str, Any]] = {}
        size = os.fstat(self.journal).st_size
        good = 0
        for line in os.pread(self.journal, size, 0).splitlines(keepends=True):
            try:
                entry = json.loads(line)
                if not line.endswith(b"\n") or not isinstance(entry, dict):
                    break
                entries[entry["micrograph"]] = entry
            except (ValueError, KeyError):
                break
            good += len(line)
        os.ftruncate(self.journal, good)
        return entries

    def reserve(self, patches: int) -> None:
        """Give the arrays their largest size; raise `InputError` if the disk is too small."""
        size = shards.file_bytes((patches, *self.shape[1:]))
        there = sum(512 * os.fstat(f).st_blocks for f in self.files.values())
        free = shutil.disk_usage(self.directory).free
        if 2 * size - there > free:
            raise InputError(
                f"{self.directory}: {free / 1e9:.2f} GB are free, {max(0, 2 * size - there) / 1e9:.2f} GB are still to "
                "be written; free space or choose another disk"
            )
        for f in self.files.values():
            os.ftruncate(f, size)

    def note(self, entry: dict[str, Any]) -> None:
        """Add a line to the journal: the patches of a micrograph are written."""
        line = json.dumps(entry).encode() + b"\n"
        with self.lock, self._writing(self.directory / JOURNAL):
            os.write(self.journal, line)

    def write(self, side: str, first: int, data: Any) -> None:
        """Write contiguous bytes from patch `first` on."""
        position, view = shards.OFFSET + first * shards.patch_bytes(self.shape), memoryview(data).cast("B")
        with self._writing(self.paths[side]):
            while view:
                written = os.pwrite(self.files[side], view, position)
                position, view = position + written, view[written:]

    def holds(self, entry: dict[str, Any]) -> bool:
        """Tell whether the patches of a micrograph that the journal tells of are there, bit by bit."""
        size = shards.patch_bytes(self.shape)
        buffer = bytearray(size)
        for side in "ab":
            for k, wanted in enumerate(entry["crc32"][side]):
                position = shards.OFFSET + (entry["first"] + k) * size
                if read_at(self.files[side], buffer, position) < size or shards.crc32(buffer) != wanted:
                    return False
        return True

    def follow(self, side: str, order: Order) -> str:
        """Return the SHA-256 of the file that a side's array will be, hashed behind the threads that write it.

        Its header holds the number of patches, which is not known for certain before the last micrograph has
        been looked at.  None is left out as a rule; where one is, hashing begins anew.
        """
        size, buffer = shards.patch_bytes(self.shape), memoryview(bytearray(CHUNK))
        total, done, digest = None, 0, hashlib.sha256()
        while True:
            found, ready, complete = order.wait(total, done // size)
            if found != total:
                total, done = found, 0
                digest = hashlib.sha256(shards.array_header((total, *self.shape[1:])))
            while done < ready * size:
                piece = buffer[: min(CHUNK, ready * size - done)]
                try:
                    there = read_at(self.files[side], piece, shards.OFFSET + done)
                except OSError:
                    there = 0
                if there < len(piece):
                    raise InputError(
                        f"{self.paths[side]}: what was written cannot be read again; see to the disk and run it again"
                    )
                digest.update(piece)
                done += len(piece)
                order.check()
            if complete and ready == total:
                return digest.hexdigest()

    def flush(self, order: Order) -> None:
        """Bring to the disk what is written while the rest is still being made."""
        while not order.ended(FLUSH_EVERY):
            for side, f in self.files.items():
                with self._writing(self.paths[side]):
                    os.fdatasync(f)

    def finish(self, manifest: dict[str, Any]) -> None:
        """Give the arrays their header, length and name, then write the manifest."""
        shape = manifest["shape"]
        for side, f in self.files.items():
            with self._writing(self.paths[side]):
                os.pwrite(f, shards.array_header(shape), 0)
                os.ftruncate(f, shards.file_bytes(shape))
                os.fsync(f)
        # An older manifest must not vouch for a mixture of old and new arrays, should the renaming be cut short.
        self.manifest.unlink(missing_ok=True)
        self._sync_directory()
        for side in "ab":
            os.replace(self.paths[side], self.final[side])
        self._sync_directory()
        shards.write_manifest(self.manifest, manifest)
        (self.directory / JOURNAL).unlink(missing_ok=True)
        for left in self.directory.glob(".manifest.*.tmp.json"):  # of a run that was killed while it wrote that
            left.unlink(missing_ok=True)

    def discard(self) -> None:
        """Remove the temporary files."""
        # First what gives meaning to the bytes.
        for path in (self.directory / JOURNAL, *self.paths.values()):
            path.unlink(missing_ok=True)

    def _sync_directory(self) -> None:
        descriptor = os.open(self.directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _writing(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise InputError(
                f"{path}: {'the disk is full' if full else 'cannot write'} ({error.strerror}); "
                f"{'free space' if full else 'see to the disk'} and run it again"
            ) from None


def read_at(descriptor: int, buffer: Any, position: int) -> int:
    """Fill `buffer` from byte `position` of a file on; returns how many bytes there were."""
    view, done = memoryview(buffer), 0
    while done < len(view) and (n := os.preadv(descriptor, [view[done:]], position + done)):
        done += n
    return done


@contextlib.contextmanager
def open_part(directory: Path, side: int) -> Iterator[Part]:
    """Open the temporary files of a folder for this process alone, with what an earlier one left.

    Parameters
    ----------
    directory : Path
    side : int
        Pixels; side of a patch.
    """
    path = directory / JOURNAL
    try:
        directory.mkdir(parents=True, exist_ok=True)
        journal = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    except OSError as error:
        raise InputError(f"{directory}: cannot write there ({error.strerror}); choose another place") from None
    try:
        _lock(journal, path)
        part = Part(directory, journal, side)
        try:
            yield part
        finally:
            for descriptor in part.files.values():
                os.close(descriptor)
    finally:
        os.close(journal)


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"{path.parent}: another process is writing shards there; wait for it or end it") from None
    except OSError:
        log.say(f"{path.parent}: this file system has no locks; see that no other process writes the same shards")
    if not path.exists() or not os.path.samestat(os.fstat(descriptor), path.stat()):
        raise InputError(f"{path.parent}: another process has just finished writing there; run this again")
