"""Split movies one after another: while one is aligned, the next is read and the one before is written.

On a GPU a thread of its own reads or decodes the next movie's frames, a few at a time, and uploads them, and
others hash files and write halves.  Memory beside `split.split_movie`'s, which is on the GPU: there one more
movie's frames, here five movies' halves and a page-locked frame for each of `READERS`.

On a CPU only hashing and writing go on beside the alignment: nothing is read ahead, so that memory is that
of one movie and one more movie's halves.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from cryon2n import files, halves, log, movies
from cryon2n.errors import InputError
from cryon2n.split import Split, SplitSettings, align_movie, used_frames
from cryon2n.split_done import provenance

READERS = min(8, os.cpu_count() or 1)  # threads that decode one movie's frames for a GPU
BESIDE = {"cpu": 1, "cuda": 4}  # threads that hash, and that write: SHA-256 takes four times as long as an alignment
STAGES = ("read", "split", "hash", "write")  # read: open, decode and, on a GPU, upload
FAILURES = (InputError, OSError, MemoryError, torch.OutOfMemoryError)  # of one movie; all else is a fault of ours

Checksum = Future[tuple[list[int], str]]  # a file's stamp (`files.stamp`) and SHA-256


@dataclass(frozen=True)
class Job:
    """One movie, and the prefix of its halves (`halves.write_halves`)."""

    movie: Path
    prefix: Path


@dataclass(frozen=True)
class References:
    """Files that all movies share; None where there is none."""

    gain: Path | None = None
    dark: Path | None = None
    defects: Path | None = None

    def inputs(self, movie: Path) -> dict[str, Path]:
        """Return all files that a movie's halves are made from, by what they are."""
        named = {"movie": movie, "gain": self.gain, "dark": self.dark, "defects": self.defects}
        return {name: path for name, path in named.items() if path is not None}


@dataclass
class Outcome:
    """What became of the movies.

    Attributes
    ----------
    failed : dict
        What went wrong, by movie.
    finished : dict
        Seconds from the beginning to a movie's record, by movie.
    spent : dict
        Seconds of work on each movie by stage: `STAGES`.
    wall : float
        Seconds in all.
    """

    failed: dict[Path, str] = field(default_factory=dict)
    finished: dict[Path, float] = field(default_factory=dict)
    spent: dict[Path, dict[str, float]] = field(default_factory=dict)
    wall: float = 0.0

    @contextmanager
    def timed(self, stage: str, movie: Path) -> Iterator[None]:
        """Count the seconds of a block as work of a stage on a movie."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.spent.setdefault(movie, {})[stage] = time.monotonic() - began

    def busy(self, stage: str) -> float:
        """Return the seconds that a stage has worked."""
        return sum(stages.get(stage, 0.0) for stages in self.spent.values())


class Opener:
    """Opens movies; the references are read for the first one and kept for those of the same shape."""

    def __init__(self, references: References, settings: SplitSettings, where: torch.device):
        self.references, self.settings, self.where = references, settings, where
        self.shape: tuple[int, ...] | None = None
        self.known: dict[str, np.ndarray | None] = {}
        self.stream = torch.cuda.Stream(where) if where.type == "cuda" else None

    def open(self, path: Path, stack: ExitStack) -> movies.RawFrames:
        """Open a movie; on a GPU all its frames are there when this returns.  `stack` closes it."""
        movie = used_frames(self._movie(path, stack), self.settings)
        if self.stream is None:
            return movies.RawFrames(movie, self.where)
        with torch.cuda.stream(self.stream):
            raw = movies.RawFrames(movie, self.where)
        with ThreadPoolExecutor(READERS) as pool:
            raw.kept = list(pool.map(lambda index: self._uploaded(movie, index), range(raw.n)))
        self.stream.synchronize()
        movie.frames.release()
        return raw

    def _movie(self, path: Path, stack: ExitStack) -> movies.Movie:
        settings, references = self.settings, self.references
        if self.shape is not None:
            movie = stack.enter_context(movies.open_movie(path, fraction=settings.eer_fraction))
            if movie.frames.shape[1:] == self.shape:
                return replace(movie, **self.known)
        movie = stack.enter_context(
            movies.open_movie(
                path,
                references.gain,
                references.dark,
                settings.reference_transform,
                operation=settings.reference_operation,
                defects=references.defects,
                defects_transform=settings.defects_transform,
                fraction=settings.eer_fraction,
            )
        )
        self.shape = movie.frames.shape[1:]
        self.known = {"gain": movie.gain, "dark": movie.dark, "defects": movie.defects}
        return movie

    def _uploaded(self, movie: movies.Movie, index: int) -> torch.Tensor:
        """Read or decode a frame into page-locked memory and send it to the GPU, of a type torch calculates with."""
        dtype = torch.from_numpy(np.empty(0, movie.frames.dtype)).dtype
        buffer = torch.empty(movie.frames.shape[1:], dtype=dtype, pin_memory=True)
        movie.frames.read(index, buffer.numpy())
        with torch.cuda.stream(self.stream):
            if dtype == torch.uint16:  # torch adds and multiplies no such numbers
                return buffer.view(torch.int16).to(self.where, non_blocking=True).to(torch.int32) & 0xFFFF
            return buffer.to(self.where, non_blocking=True)


class Pipeline:
    """The threads that work beside the alignment, and what they have to do.

    Parameters
    ----------
    references : References
    settings : SplitSettings
    where : torch.device
    several : bool
        Say of each movie that fails why, and how many are done.
    began : float or None
        Of `time.monotonic`: from when seconds count; None: now.
    """

    def __init__(
        self,
        references: References,
        settings: SplitSettings,
        where: torch.device,
        several: bool,
        began: float | None = None,
    ):
        self.references, self.settings, self.where, self.several = references, settings, where, several
        self.opener, self.outcome = Opener(references, settings, where), Outcome()
        self.began = time.monotonic() if began is None else began
        self.workers = BESIDE[where.type]
        self.reading = ThreadPoolExecutor(1)
        self.hashing, self.writing = (ThreadPoolExecutor(self.workers) for _ in range(2))
        self.unwritten: list[tuple[Job, Future[None]]] = []

    def run(self, jobs: Sequence[Job]) -> Outcome:
        """Split movies and write their halves; what fails stands in the outcome."""
        self.n = len(jobs)
        with self.reading, self.hashing, self.writing:
            shared = [path for name, path in self.references.inputs(Path()).items() if name != "movie"]
            self.shared = {path: self.hashing.submit(self._hash, path) for path in shared}
            self.made_with = self.hashing.submit(provenance, self.settings)
            ahead = self.where.type == "cuda"
            upcoming = self.reading.submit(self._read, jobs[0]) if ahead else None
            for job, after in zip(jobs, [*jobs[1:], None], strict=True):
                checksum = self.hashing.submit(self._hash, job.movie)
                try:
                    stack, raw = upcoming.result() if upcoming else self._read(job)
                except FAILURES as error:
                    stack, raw = None, None
                    self._failed(job, error)
                upcoming = self.reading.submit(self._read, after) if ahead and after else None
                if raw is not None:
                    self._split(job, stack, raw, checksum)
                    del stack, raw
            self._settle(0)
        self.outcome.wall = time.monotonic() - self.began
        return self.outcome

    def _read(self, job: Job) -> tuple[ExitStack, movies.RawFrames]:
        with self.outcome.timed("read", job.movie), ExitStack() as stack:
            raw = self.opener.open(job.movie, stack)
            return stack.pop_all(), raw

    def _hash(self, path: Path) -> tuple[list[int], str]:
        # The stamp is taken first: what changes a file later shows.
        with self.outcome.timed("hash", path):
            return files.stamp(path), files.sha256_of(path)

    def _split(self, job: Job, stack: ExitStack, raw: movies.RawFrames, checksum: Checksum) -> None:
        try:
            with stack, self.outcome.timed("split", job.movie):
                finish = align_movie(raw.movie, self.settings, self.where, raw)
        except FAILURES as error:
            checksum.cancel()
            self._failed(job, error)
            return
        self.unwritten.append((job, self.writing.submit(self._write, job, finish, checksum)))
        self._settle(self.workers)

    def _write(self, job: Job, finish: Callable[[], Split], checksum: Checksum) -> None:
        known = {path: future.result() for path, future in {**self.shared, job.movie: checksum}.items()}
        inputs = self.references.inputs(job.movie)
        made_with = {**self.made_with.result(), "files": {name: known[path][0] for name, path in inputs.items()}}
        with self.outcome.timed("write", job.movie):
            result = finish()
            halves.write_halves(
                job.prefix,
                result.a,
                result.b,
                {**result.record, "made_with": made_with},
                inputs,
                "split-halves",
                result.groups,
                {path: checksum for path, (_, checksum) in known.items()},
            )
        path = np.array(result.record["trajectory_A"])
        travelled = float(np.linalg.norm(np.diff(path, axis=0), axis=1).sum())
        seconds = self.outcome.finished[job.movie] = time.monotonic() - self.began
        count = f"{len(self.outcome.finished)} of {self.n} done, " if self.several else ""
        log.say(
            f"{job.prefix.name}: {len(path)} frames, motion {travelled:.1f} Å, {result.record['defects']} defects, "
            f"{count}{seconds:.1f} s"
        )

    def _settle(self, most: int) -> None:
        """Wait until no more than `most` movies are to be written."""
        while len(self.unwritten) > most:
            job, future = self.unwritten.pop(0)
            try:
                future.result()
            except FAILURES as error:
                self._failed(job, error)

    def _failed(self, job: Job, error: BaseException) -> None:
        self.outcome.failed[job.movie] = sentence(job.movie, error)
        if self.several:
            log.say(f"error: {self.outcome.failed[job.movie]}")


def sentence(movie: Path, error: BaseException) -> str:
    """Say what went wrong with a movie."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return f"{movie}: does not fit into the GPU's free memory; give it a GPU with more, or --device cpu"
    if isinstance(error, MemoryError):
        return f"{movie}: needs more memory than there is; give the job more, or split fewer frames (halves: frames)"
    return f"{movie}: {error}; check the disk, and run it again"
