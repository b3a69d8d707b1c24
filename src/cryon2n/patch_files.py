"""Raw reads of patches from shards by many threads, past the page cache where the system allows it.

Training visits the patches of a large data set hours apart: the page cache would never have the next
one, and keeping the last ones would only drive out what others need.  So files are opened with O_DIRECT
(the disk writes into our buffer), or else what was read is given back at once (posix_fadvise).
"""

import errno
import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path

import numpy as np

from cryon2n import shards
from cryon2n.errors import InputError

PAGE = 4096  # bytes; O_DIRECT wants memory, offset and length in multiples of the disk's block, 4096 at most
SIDES = "ab"


def aligned(shape: tuple[int, ...]) -> np.ndarray:
    """Return a float16 array that begins at a page, as O_DIRECT wants it."""
    n = int(np.prod(shape))
    memory = mmap.mmap(-1, 2 * n, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(memory, np.float16, n).reshape(shape)


class PatchFiles:
    """The patches of a manifest, on disk.

    Parameters
    ----------
    manifest : path
    direct : bool
        Read with O_DIRECT where it works.
    keep : bool
        Leave what was read in the page cache.

    Attributes
    ----------
    info : dict
        The manifest.
    shape : tuple of int
        (n, patch, patch).
    direct : bool
        Whether reads go past the page cache.
    """

    def __init__(self, manifest: Path, direct: bool = True, keep: bool = False):
        self.files: list[int] = []
        self.manifest, self.info = Path(manifest), shards.read_manifest(manifest)
        arrays = [shards.open_array(self.manifest, self.info, side) for side in SIDES]
        self.shape: tuple[int, int, int] = arrays[0].shape
        self.keep, self.size = keep, arrays[0][0].nbytes
        self.paths = [Path(array.filename) for array in arrays]
        self.offsets = [int(array.offset) for array in arrays]
        fits = self.size % PAGE == 0 and all(offset % PAGE == 0 for offset in self.offsets)
        self.direct = direct and fits and self._open(getattr(os, "O_DIRECT", 0))
        if not self.direct:
            self._open(0)

    def _open(self, flag: int) -> bool:
        """Open the files; returns whether the flag works, which some file systems tell at the first read only."""
        self.close()
        try:
            for path in self.paths:
                self.files.append(os.open(path, os.O_RDONLY | flag))
            if flag:
                os.preadv(self.files[0], [mmap.mmap(-1, PAGE)], self.offsets[0])
        except OSError as error:
            if flag and error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
                return False
            raise InputError(f"{path}: cannot read the shard ({error.strerror})") from None
        if not flag:
            for file in self.files:
                _advise(file, 0, 0, "RANDOM")  # the kernel's own read-ahead would read what nobody wants
        return bool(flag)

    def check_direct(self, out: np.ndarray) -> None:
        """Read without O_DIRECT from now on if it does not work for memory of this kind (pinned by a driver)."""
        if self.direct:
            try:
                os.preadv(self.files[0], [memoryview(out.reshape(-1).view(np.uint8))[:PAGE]], self.offsets[0])
            except OSError:
                self.direct = self._open(0)

    def read(self, side: int, patch: int, out: np.ndarray) -> None:
        """Read a patch of side 0 or 1 into `out`, shape (patch, patch), float16; safe in many threads.

        Raises
        ------
        InputError
            The disk fails, or the file has become shorter.
        """
        file, begin = self.files[side], self.offsets[side] + patch * self.size
        buffer, done = memoryview(out.reshape(-1).view(np.uint8)), 0
        while done < self.size:
            try:
                n = os.preadv(file, [buffer[done:]], begin + done)
            except OSError as error:
                raise InputError(
                    f"{self.paths[side]}: cannot read patch {patch} ({error.strerror}); check the disk"
                ) from None
            if n == 0:
                raise InputError(
                    f"{self.paths[side]}: ends within patch {patch}, its manifest says {self.shape[0]} patches; "
                    "write the shards again"
                )
            done += n
        if not self.direct and not self.keep:
            _advise(file, begin, self.size, "DONTNEED")

    def read_all(self, workers: int) -> list[np.ndarray]:
        """Read everything; returns the patches of each side, shape (n, patch, patch), float16."""
        sides = [aligned(self.shape) for _ in SIDES]
        with ThreadPoolExecutor(workers) as pool:
            for side, array in enumerate(sides):
                for _ in pool.map(self.read, repeat(side), range(self.shape[0]), array):
                    pass
        return sides

    def close(self) -> None:
        """Close the files."""
        while self.files:
            os.close(self.files.pop())

    def __del__(self) -> None:
        self.close()


def _advise(file: int, offset: int, length: int, advice: str) -> None:
    if hasattr(os, "posix_fadvise"):  # not on macOS
        os.posix_fadvise(file, offset, length, getattr(os, f"POSIX_FADV_{advice}"))
