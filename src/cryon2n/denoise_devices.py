"""Several GPUs: one process for each; results come in the order of the micrographs."""

import contextlib
import multiprocessing
import queue
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any

import torch

from cryon2n import device, log
from cryon2n.denoise_done import FAILED, Finished, Row
from cryon2n.denoise_many import Job, Pipeline
from cryon2n.denoise_model import load_model
from cryon2n.errors import InputError
from cryon2n.micrograph_inputs import Micrograph

LOOK = 0.1  # s between two looks for what is to be given out
PER_WORKER = 6  # micrographs that are given out and not yet back, for each worker


@dataclass(frozen=True)
class Worker:
    """How a worker loads its model, and CPU threads.

    Attributes
    ----------
    weights : str
    run : tuple
        ``precision``, ``tile``, ``compiled`` and ``symmetries`` of `denoise_model.load_model`.
    threads : int or None
    """

    weights: str
    run: tuple[str, int | None, bool, int]
    threads: int | None


def parse_devices(names: list[str]) -> list[str]:
    """Return device names for ``all``, or names such as ``cuda:1``, ``1`` or ``cpu``; raises `InputError`."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if names == ["all"]:
        if not count:
            raise InputError("--devices all: torch sees no GPU here; leave it out to use the CPU")
        return [f"cuda:{i}" for i in range(count)]
    found = [f"cuda:{name}" if name.isdecimal() else name for name in names]
    there = {"cpu", *(f"cuda:{i}" for i in range(count))}
    if wrong := [name for name in found if name not in there]:
        raise InputError(f"--devices: no device {', '.join(wrong)}; there are: {', '.join(sorted(there))}")
    return found


class _Process:
    """A worker's process, as the first process sees it: what it was given and has not given back."""

    def __init__(self, name: str, worker: Worker, job: Job):
        context = multiprocessing.get_context("spawn")
        # A pipe for each: a queue that all share stays locked where one of them is killed.
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(name, worker, job, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.name, self.given = name, deque[tuple[int, Micrograph]]()

    def give(self, item: tuple[int, Micrograph] | None) -> None:
        """Send a micrograph with its number; None: no more will come."""
        with contextlib.suppress(OSError):  # that it has ended is seen when results are asked for
            self.pipe.send(None if item is None else item[1])
        if item is not None:
            self.given.append(item)


def run_on_devices(
    devices: list[str], worker: Worker, job: Job, micrographs: Iterable[Micrograph], stop: threading.Event
) -> Iterator[Finished]:
    """Denoise micrographs on several devices; each goes to the one that has the least to do.

    A worker that ends by force loses what it had in hand, which is reported; the others go on.

    Parameters
    ----------
    devices : list of str
    worker : Worker
    job : Job
    micrographs : iterable of Micrograph
    stop : Event
        Set at the end; ends `micrographs` where that waits.

    Raises
    ------
    InputError
        A worker cannot begin, or all have ended by force.
    """
    processes = [_Process(name, worker, job) for name in devices]
    waiting: queue.Queue[Any] = queue.Queue(1)
    feeder = threading.Thread(target=_feed, args=(micrographs, waiting, stop))
    feeder.start()
    alive, back, given, first = list(processes), dict[int, Finished](), 0, 0
    failure: BaseException | None = None
    ended = False
    try:
        while alive:
            try:
                while not ended and (free := [p for p in alive if len(p.given) < PER_WORKER]):
                    item = waiting.get_nowait()
                    if isinstance(item, Micrograph):
                        min(free, key=lambda p: len(p.given)).give((given, item))
                        given += 1
                        continue
                    failure, ended = failure or item, True
                    for process in alive:
                        process.give(None)
            except queue.Empty:
                pass
            except KeyboardInterrupt as error:
                failure = failure or error
                stop.set()  # what is given out is still done
            try:
                ready = connection.wait([p.pipe for p in alive], LOOK)
            except KeyboardInterrupt as error:
                failure, ready = failure or error, []
                stop.set()
            for process in [p for p in alive if p.pipe in ready]:
                try:
                    result = process.pipe.recv()
                except (EOFError, OSError):
                    alive.remove(process)
                    back.update((number, _lost(micrograph, process.name)) for number, micrograph in process.given)
                    continue
                if isinstance(result, BaseException):
                    failure = failure or result
                    stop.set()
                else:
                    back[process.given.popleft()[0]] = result
            while first in back:
                yield back.pop(first)
                first += 1
    finally:
        stop.set()
        feeder.join()
        for process in processes:
            process.pipe.close()
            process.process.join()
    if failure is None and not ended:
        failure = InputError(f"the workers on {', '.join(devices)} were all ended by force; run the command again")
    if failure is not None:
        raise failure


def _feed(micrographs: Iterable[Micrograph], waiting: queue.Queue, stop: threading.Event) -> None:
    """Put micrographs into a queue, and at the end None or what went wrong."""

    def put(item: Any) -> bool:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                waiting.put(item, timeout=LOOK)
                return True
        return False

    end: BaseException | None = None
    try:
        for micrograph in micrographs:
            if not put(micrograph):
                break
    except BaseException as error:  # the thread that asks for results is to hear of it
        end = error
    with contextlib.suppress(queue.Empty):
        while stop.is_set():
            waiting.get_nowait()
    waiting.put(end)


def _lost(micrograph: Micrograph, name: str) -> Finished:
    why = f"the worker on {name} was ended by force before it was done; run the command again"
    row = Row(micrograph.name, FAILED, device=name, sentence=f"{micrograph.origin}: {micrograph.name}: {why}")
    return Finished(row, micrograph=micrograph)


def _work(name: str, worker: Worker, job: Job, pipe: connection.Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process tells the others when to end
    log.set_stage(f"denoise {name}")

    stop = threading.Event()

    def given() -> Iterator[Micrograph]:
        with contextlib.suppress(EOFError, OSError):  # the first process has ended
            while not stop.is_set():
                if pipe.poll(LOOK):
                    if (micrograph := pipe.recv()) is None:
                        return
                    yield micrograph

    try:
        where = device.choose("cpu", worker.threads) if name == "cpu" else torch.device(name)
        if where.type == "cuda":
            torch.cuda.set_device(where)
        model = load_model(worker.weights, where, *worker.run)
        for finished in Pipeline(model, job, stop).run(given()):
            pipe.send(finished)
    except InputError as error:
        pipe.send(error)
