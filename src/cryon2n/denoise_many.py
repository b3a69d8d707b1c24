"""Denoise micrographs one after another: while one is computed, the next are read and the ones before are written.

Threads read ahead, to a GPU each on a stream of its own.  All that is computed is computed in the thread that asks for
results, on one stream: libraries such as cuFFT want it so, and it takes less time than the files.  Other threads copy
back and write.  No more than `Pipeline.ahead` micrographs wait to be computed and as many to be written, so memory is
bounded whatever the disk does.  Results come in the order of the micrographs.
"""

import contextlib
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cryon2n import (
    __version__,
    denoise_model,
    denoise_staging,
    denoise_timing,
    device,
    files,
    micrograph_inputs,
    micrograph_outputs,
    readahead,
)
from cryon2n.denoise_done import DONE, FAILED, Finished, Row, find_done, write_record
from cryon2n.denoise_model import Denoised, Model, Prepared, Wanted
from cryon2n.denoise_staging import own_stream
from cryon2n.denoise_tiles import out_of_memory
from cryon2n.denoise_timing import lap
from cryon2n.errors import InputError
from cryon2n.micrograph_inputs import Micrograph, MicrographImage

FAILURES = (InputError, OSError, MemoryError, torch.OutOfMemoryError)  # of one micrograph
LABEL = "denoised, for viewing and picking, not for reconstruction"
SIGMA_LABEL = "standard error of the denoised micrograph"
FOLDERS = {"json": "records", "mrc": "uncertainty", "png": "quicklook"}  # in the folder for the results
DONE_BEFORE = 0.02  # s; by then a thread has found that an earlier run has made a result
ROOMY = 30e9  # free bytes of a GPU that holds 16 micrographs of 12k x 12k beside what the network takes
LOOK = 0.2  # s between two looks for what has been written while nothing is to be computed


@dataclass(frozen=True)
class Job:
    """What is to be made of each micrograph.

    Attributes
    ----------
    out : Path
        Folder for the results.
    pixel_size : float or None
        In Å, instead of what files say.
    rescale : str
        As `denoise_scale.choose_scaling` takes it.
    full : bool
        Denoise the whole exposure even where there are halves.
    uncertainty, signal_free, sums : bool
        As `denoise_model.Wanted`; each needs halves.
    factor : float
        Of the uncertainty's calibration.
    dtype : str
        ``float32`` or ``float16``.
    quicklook : bool
        Write a PNG beside each micrograph.
    images : bool
        Write anything at all (not for a calibration).
    again : bool
        Make anew what an earlier run has made.
    """

    out: Path
    pixel_size: float | None = None
    rescale: str = "auto"
    full: bool = False
    uncertainty: bool = False
    signal_free: bool = False
    sums: bool = False
    factor: float = 1.0
    dtype: str = "float32"
    quicklook: bool = False
    images: bool = True
    again: bool = False

    def made_with(self, model: Model) -> dict[str, Any]:
        """Return what a result depends on beside its micrograph, as a record holds it."""
        own = {key: value for key, value in asdict(self).items() if key not in ("out", "images", "again", "sums")}
        run = {"precision": model.run.precision, "symmetries": model.run.symmetries}
        return {"version": __version__, "weights": model.sha256, **run, **own}

    def paths(self, micrograph: Micrograph) -> tuple[Path, ...]:
        """Return the file of the whole exposure, or those of both halves; raises `InputError`."""
        halves = (micrograph.a, micrograph.b)
        needed = [f"--{n.replace('_', '-')}" for n in ("uncertainty", "signal_free") if getattr(self, n)]
        needed += ["--calibrate"] * self.sums
        if None not in halves and (needed or not self.full):
            return halves
        if needed:
            raise InputError(
                f"{micrograph.origin}: {needed[0]} needs both halves of {micrograph.name}; found one image"
            )
        if micrograph.full is None:
            raise InputError(f"{micrograph.origin}: names no whole exposure of {micrograph.name}; leave out --full")
        return (micrograph.full,)


@dataclass(frozen=True)
class Loaded:
    """A micrograph that was read; `sources` hold what the files say beside the pixels."""

    paths: tuple[Path, ...]
    stamps: list[list[int]]
    sources: list[MicrographImage]
    pixels: list[torch.Tensor]
    pixel_size: float | None
    began: float


class Pipeline:
    """The threads that work beside the network, and what they have to do.

    Parameters
    ----------
    model : Model
    job : Job
    stop : Event or None
        Set at the end; ends an iterable of micrographs that waits for it.
    ahead : int or None
        Micrographs that are read ahead, and that are written while others are computed; None: by the device.
    """

    def __init__(self, model: Model, job: Job, stop: threading.Event | None = None, ahead: int | None = None):
        self.model, self.job = model, job
        self.made_with, self.device = job.made_with(model), device.describe(model.where)
        self.cold = model.where.type == "cuda"
        self.ahead = ahead or _most_ahead(model.where)
        self.room = threading.Semaphore(self.ahead)
        self.read: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.unwritten: deque[tuple[Micrograph, Future[Finished] | Finished]] = deque()
        self.stop = stop or threading.Event()

    def run(self, micrographs: Iterable[Micrograph]) -> Iterator[Finished]:
        """Denoise micrographs; what fails stands in its row.  After Ctrl-C what is computed is still written."""
        with ThreadPoolExecutor(self.ahead) as reading, ThreadPoolExecutor(self.ahead) as writing:
            feeder = threading.Thread(target=self._feed, args=(micrographs, reading))
            feeder.start()
            try:
                yield from self._compute_all(writing)
            except KeyboardInterrupt:
                yield from self._settled(0)
                raise
            finally:
                self.stop.set()
                feeder.join()

    def _feed(self, micrographs: Iterable[Micrograph], reading: ThreadPoolExecutor) -> None:
        """Have micrographs read as long as there is room for them."""
        try:
            for micrograph in micrographs:
                while not self.room.acquire(timeout=LOOK):
                    if self.stop.is_set():
                        return
                if self.stop.is_set():
                    return
                self.read.put((micrograph, reading.submit(self._load, micrograph)))
            self.read.put(None)
        except BaseException as error:  # the thread that asks for results is to hear of it
            self.read.put(error)

    def _compute_all(self, writing: ThreadPoolExecutor) -> Iterator[Finished]:
        while True:
            try:
                with lap("wait for reading"):
                    item = self.read.get(timeout=LOOK)
            except queue.Empty:
                yield from self._settled(self.ahead)
                continue
            if item is None:
                break
            if isinstance(item, BaseException):
                raise item
            micrograph, future = item
            began = time.monotonic()
            try:
                self._warm_up(future)
                with lap("wait for reading"):
                    loaded = future.result()
                del item, future  # which hold the image as it was read
                if isinstance(loaded, Finished):
                    self.unwritten.append((micrograph, loaded))
                else:
                    began = loaded.began
                    prepared = self._prepared(loaded)
                    if prepared is None:  # no room on the GPU beside what is being written
                        yield from self._settled(0)
                        loaded = self._read(micrograph, loaded, torch.device("cpu"))
                        prepared = self._prepared(loaded, last=True)
                    self.unwritten.append((micrograph, self._compute(micrograph, loaded, prepared, writing)))
                    del loaded, prepared
            except (*FAILURES, RuntimeError) as error:
                loaded = prepared = None  # and its memory
                if not (isinstance(error, FAILURES) or out_of_memory(error)):
                    raise
                self.unwritten.append((micrograph, self._failed(micrograph, error, began)))
            self.room.release()
            yield from self._settled(self.ahead)
        yield from self._settled(0)

    def _warm_up(self, first: Future[Loaded | Finished]) -> None:
        """Let a GPU load its libraries while the first micrograph is read; one that was done before is not read."""
        if self.cold and not wait([first], DONE_BEFORE).done:
            with lap("warm up"), contextlib.suppress(torch.OutOfMemoryError):
                denoise_model.warm_up(self.model)
            self.cold = False
        readahead.stop()  # from here on the disk is kept busy

    def _settled(self, most: int) -> Iterator[Finished]:
        """Yield what is finished, in order, and wait until no more than `most` micrographs are to be written."""
        while self.unwritten:
            micrograph, result = self.unwritten[0]
            if isinstance(result, Future):
                if len(self.unwritten) <= most and not result.done():
                    return
                try:
                    with lap("wait for writing"):
                        result = result.result()
                except FAILURES as error:
                    result = self._failed(micrograph, error, time.monotonic())
            self.unwritten.popleft()
            yield replace(result, micrograph=micrograph)

    def _load(self, micrograph: Micrograph) -> Loaded | Finished:
        """Read a micrograph, to the GPU if there is one, or find that it is done."""
        job, began = self.job, time.monotonic()
        paths = job.paths(micrograph)
        if job.images:
            target = job.out / f"{micrograph.name}.mrc"
            taken = [p for p in (micrograph.full, micrograph.a, micrograph.b) if p is not None]
            if any(target.resolve() == p.resolve() for p in taken):
                raise InputError(f"{target}: is the micrograph itself; give another folder with -o")
            done = None if job.again else find_done(self._beside(micrograph.name, "json"), paths, self.made_with)
            if done is not None:
                return done
        where = self.model.where
        loaded = Loaded(paths, [files.stamp(p) for p in paths], [], [], None, began)
        if where.type == "cuda":
            # Where there is no room for it now, it goes to the GPU when the ones before are done.
            with contextlib.suppress(MemoryError, torch.OutOfMemoryError), own_stream(where):
                return self._read(micrograph, loaded, where)
        return self._read(micrograph, loaded, torch.device("cpu"))

    def _read(self, micrograph: Micrograph, loaded: Loaded, where: torch.device) -> Loaded:
        """Read a micrograph's pixels into the memory of a device."""
        sources, pixels = [], []

        def room(shape: tuple[int, int]) -> Iterator[np.ndarray]:
            pixels.append(denoise_staging.empty(shape, where))
            return denoise_staging.filling(pixels[-1])

        for path in loaded.paths:
            try:
                sources.append(micrograph_inputs.read(path, room))
            except FAILURES:
                raise
            except Exception as error:  # a file nobody thought of must not end the others
                raise InputError(
                    f"{path}: cannot be read ({type(error).__name__}: {error}); copy or make it again"
                ) from None
        # 1 Å is what many programs write into a header when they do not know.
        headers = (source.pixel_size for source in sources if source.pixel_size != 1.0)
        size = next((s for s in (self.job.pixel_size, micrograph.pixel_size, *headers) if s is not None), None)
        return replace(loaded, sources=sources, pixels=pixels, pixel_size=size)

    def _prepared(self, loaded: Loaded, last: bool = False) -> Prepared | None:
        """Prepare what was read, and let go of it; None where a GPU has no room for it, unless it is the `last` try."""
        names, where = [str(path) for path in loaded.paths], self.model.where
        for image in loaded.pixels:
            if image.is_cuda:  # made on another stream
                image.record_stream(torch.cuda.current_stream(where))
        try:
            with lap("repair and normalise"):
                return denoise_model.prepare(loaded.pixels, self.model, loaded.pixel_size, self.job.rescale, names)
        except (MemoryError, torch.OutOfMemoryError):
            if last or where.type != "cuda":
                raise
        finally:
            loaded.pixels.clear()
        torch.cuda.empty_cache()
        return None

    def _compute(
        self, micrograph: Micrograph, loaded: Loaded, prepared: Prepared, writing: ThreadPoolExecutor
    ) -> Future[Finished] | Finished:
        job, model, ends = self.job, self.model, []
        if model.where.type == "cuda":
            stream, timed = torch.cuda.current_stream(model.where), denoise_timing.now() is not None
            ends = [torch.cuda.Event(enable_timing=timed, blocking=True) for _ in range(2)]
            ends[0].record(stream)
        with lap("network"):
            result = denoise_model.compute(prepared, model, Wanted(job.uncertainty, job.signal_free, job.sums))
            if result.sigma is not None:
                result.sigma.mul_(job.factor)
        if ends:
            ends[1].record(stream)
        row = Row(
            micrograph.name,
            DONE,
            0.0,
            prepared.repaired.not_finite,
            prepared.repaired.hot,
            prepared.repaired.border,
            loaded.pixel_size,
            result.signal_free_percent,
            self.device,
            model.run.tile,
            "; ".join(filter(None, (prepared.scaling.reason, prepared.unequal))),
        )
        if not job.images:
            return Finished(row, sums=result.sums)
        return writing.submit(self._write, loaded, result, row, ends)

    def _write(self, loaded: Loaded, result: Denoised, row: Row, ends: Sequence[torch.cuda.Event]) -> Finished:
        """Write what was made of a micrograph; `ends`: when the GPU begins and has done it."""
        job, made = self.job, {"micrograph": self.job.out / f"{row.micrograph}.mrc"}
        source = replace(loaded.sources[0], pixel_size=loaded.pixel_size)
        if ends:
            with lap("wait for the network"):
                ends[1].synchronize()
            if (timing := denoise_timing.now()) is not None:
                timing.add("network, on the GPU", ends[0].elapsed_time(ends[1]) / 1e3)
        with own_stream(self.model.where):
            self._write_image(made["micrograph"], result.image, source, LABEL)
            if result.sigma is not None:
                made["uncertainty"] = self._beside(row.micrograph, "mrc")
                self._write_image(made["uncertainty"], result.sigma, source, SIGMA_LABEL)
            if job.quicklook:
                made["quicklook"] = self._beside(row.micrograph, "png")
                with lap("quick look"):
                    micrograph_outputs.write_quicklook(made["quicklook"], result.image.cpu().numpy())
        row = replace(row, seconds=round(time.monotonic() - loaded.began, 3))
        with lap("record"):
            record = self._beside(row.micrograph, "json")
            write_record(record, loaded.paths, loaded.stamps, self.made_with, made, row)
        return Finished(row, made)

    def _write_image(self, path: Path, image: torch.Tensor, source: MicrographImage, label: str) -> None:
        with lap("statistics"):
            if denoise_staging.is_far(image):
                numbers = denoise_staging.statistics(image)
            else:
                numbers = micrograph_outputs.statistics(image.numpy())
        pieces, dtype = denoise_staging.fetched(image), self.job.dtype
        micrograph_outputs.write_pieces(path, image.shape, pieces, numbers, source, dtype=dtype, label=label)

    def _beside(self, name: str, ending: str) -> Path:
        return self.job.out / FOLDERS[ending] / f"{name}.{ending}"

    def _failed(self, micrograph: Micrograph, error: BaseException, began: float) -> Finished:
        seconds = round(time.monotonic() - began, 3)
        return Finished(Row(micrograph.name, FAILED, seconds, device=self.device, sentence=sentence(micrograph, error)))


def _most_ahead(where: torch.device) -> int:
    """Return how many micrographs are read ahead, and how many are written at once."""
    if where.type != "cuda":
        return 1  # the network takes all cores: more threads would only hold memory
    most = 8 if torch.cuda.mem_get_info(where)[0] >= ROOMY else 4
    return min(most, os.cpu_count() or 1)


def sentence(micrograph: Micrograph, error: BaseException) -> str:
    """Say what went wrong with a micrograph."""
    if isinstance(error, InputError):
        return str(error)
    if out_of_memory(error):
        return f"{micrograph.origin}: {micrograph.name} needs more memory than is free, even in the smallest tiles; "\
            "free some, or take another --device"  # fmt: skip
    return f"{micrograph.origin}: {micrograph.name}: {error}; check the disk, and run it again"
