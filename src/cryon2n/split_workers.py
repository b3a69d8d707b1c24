"""Split movies in several processes side by side.

One process launches a GPU's work from one thread of Python, which does not keep the GPU busy; several do, and several
GPUs get the processes in turn.  Each process takes every so-many-th movie, so that all have as much to do.
"""

import multiprocessing
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any

import torch

from cryon2n import device, log, memory
from cryon2n.split import SplitSettings
from cryon2n.split_many import Job, Outcome, Pipeline, References


@dataclass(frozen=True)
class Work:
    """What all processes share: `split_many.Pipeline`'s arguments, CPU threads of each, and when the work began."""

    references: References
    settings: SplitSettings
    threads: int
    began: float


def split_jobs(
    jobs: Sequence[Job],
    references: References,
    settings: SplitSettings,
    where: torch.device,
    processes: int = 1,
    threads: int | None = None,
) -> tuple[Outcome, dict[str, Any]]:
    """Split movies and write their halves; what fails stands in the outcome.

    Parameters
    ----------
    jobs : sequence of Job
    references : References
    settings : SplitSettings
    where : torch.device
    processes : int
    threads : int or None
        Of the CPU, for all processes together; None: torch's choice.

    Returns
    -------
    outcome : Outcome
    used : dict
        Peak memory of the process (`device.usage`), or the sum of the peaks of all processes.
    """
    began, count = time.monotonic(), min(processes, len(jobs))
    if count <= 1:
        outcome = Pipeline(references, settings, where, several=True).run(jobs) if jobs else Outcome()
        return outcome, device.usage(where)
    work = Work(references, settings, max(1, (threads or torch.get_num_threads()) // count), began)
    gpus = torch.cuda.device_count() if where.type == "cuda" else 0
    names = [f"cuda:{i % gpus}" if gpus else "cpu" for i in range(count)]
    parts = [jobs[i::count] for i in range(count)]
    context = multiprocessing.get_context("spawn")
    running = []
    for i, (name, part) in enumerate(zip(names, parts, strict=True)):
        mine, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_split, args=(i + 1, name, part, work, theirs), daemon=True)
        process.start()
        theirs.close()
        running.append((process, mine, part))
    whole, used = Outcome(), {}
    try:
        for process, pipe, part in running:
            _take(whole, used, pipe, part)
            process.join()
    finally:
        for process, pipe, _ in running:
            pipe.close()
            if process.is_alive():
                process.terminate()
                process.join()
    whole.wall = time.monotonic() - began
    return whole, used


def _take(whole: Outcome, used: dict[str, Any], pipe: connection.Connection, part: Sequence[Job]) -> None:
    """Add to the outcome and to the memory what a process has done."""
    try:
        found = pipe.recv()
    except (EOFError, OSError):
        # What it had written is found again by the next run.
        why = "its process was ended by force (out of memory?); run it again, with fewer --processes"
        for job in part:
            whole.failed[job.movie] = f"{job.movie}: {why}"
            log.say(f"error: {whole.failed[job.movie]}")
        return
    if isinstance(found, BaseException):
        raise found
    outcome, memory = found
    whole.failed.update(outcome.failed)
    whole.finished.update(outcome.finished)
    whole.spent.update(outcome.spent)
    for key, value in memory.items():
        together = key.startswith("peak_") and key in used
        used[key] = round(used[key] + value, 3) if together else value


def _split(number: int, name: str, jobs: Sequence[Job], work: Work, pipe: connection.Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends all of them at once, without a word from each
    log.set_stage(f"split-halves {number}")
    try:
        torch.set_num_threads(work.threads)
        where = torch.device(name)
        if where.type == "cuda":
            torch.cuda.set_device(where)
        memory.keep_freed_memory()
        pipeline = Pipeline(work.references, work.settings, where, several=True, began=work.began)
        outcome = pipeline.run(jobs)
        pipe.send((outcome, device.usage(where)))
    except BaseException as error:  # the first process is to hear of it
        pipe.send(error)
