"""Where the time of denoising goes: seconds of wall and of CPU for each stage, beside those of ``cp``."""

import contextlib
import os
import resource
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from unittest import mock

import torch

from cryon2n import denoise_model, denoise_staging, denoise_timing, files, micrograph_inputs
from cryon2n.denoise_many import Job, Pipeline
from cryon2n.denoise_model import Denoised, Model, Prepared, Repaired
from cryon2n.denoise_scale import Scaling

COLUMNS = ["run", "size", *denoise_timing.COLUMNS]
ALL = "all of it"
FROM_DISK = ", from the disk"
AHEAD = 4  # micrographs read ahead and written at once, as on a GPU with less than 30 GB free


@dataclass(frozen=True)
class Seconds:
    """Wall and CPU seconds (user and system) of something, one value per repeat."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @contextlib.contextmanager
    def one_more(self) -> Iterator[None]:
        """Measure the block: this process and the children that ended in it."""
        before, began = _cpu_seconds(), time.perf_counter()
        yield
        self.wall.append(time.perf_counter() - began)
        self.cpu.append(_cpu_seconds() - before)

    def row(self, run: str, size: str, stage: str) -> dict[str, str]:
        """Return medians as a row of the table."""
        wall, cpu = (f"{statistics.median(x):.4g}" for x in (self.wall, self.cpu))
        return dict(zip(COLUMNS, [run, size, stage, "1", wall, f"{max(self.wall):.4g}", cpu], strict=True))


def _cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def forget(paths: Iterable[Path]) -> None:
    """Let go of files' pages in the page cache, so that they are read from the disk; they must have been synced."""
    for path in paths:
        with open(path, "rb") as f:
            os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def copy(sources: list[Path], out: Path, bare: Seconds, synced: Seconds) -> None:
    """Copy files by ``cp``, and measure it without and with fsync; the copies are removed."""
    out.mkdir()
    with synced.one_more():
        with bare.one_more():
            subprocess.run(["cp", *map(str, sources), str(out)], check=True)
        for path in out.iterdir():
            with open(path, "rb") as f:
                os.fsync(f.fileno())
    shutil.rmtree(out)


class Nothing:
    """A network that gives back what it gets."""

    precision, tile, symmetries = "none", 0, 1

    def __init__(self, where: torch.device):
        self.where = where

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Return the image."""
        return image


@contextlib.contextmanager
def memory_for_a_gpu(shape: tuple[int, int]) -> Iterator[None]:
    """Let one image in the CPU's memory be the GPU's: it is copied to and from, and nothing is computed."""
    there = torch.zeros(shape)
    prepared = Prepared((there,), 0.0, 1.0, Scaling(None, None, ""), Repaired())
    staging = {"empty": lambda *_: there, "is_far": lambda _: True, "statistics": lambda _: (-1.0, 1.0, 0.0, 1.0)}
    model = {"prepare": lambda *_: prepared, "compute": lambda *_: Denoised(there)}
    with mock.patch.multiple(denoise_staging, **staging), mock.patch.multiple(denoise_model, **model):
        yield


def without_network(
    model: Model, sources: list[Path], out: Path, shape: tuple[int, int], seconds: Seconds
) -> list[dict[str, str]]:
    """Take micrographs from files to files past a network that costs nothing; return the stages."""
    where = model.where
    pipeline = Pipeline(replace(model, run=Nothing(where)), Job(out), ahead=AHEAD)
    on_gpu = where.type == "cuda"
    with contextlib.nullcontext() if on_gpu else memory_for_a_gpu(shape), denoise_timing.recording() as timing:
        with seconds.one_more():
            found = list(pipeline.run(micrograph_inputs.find(sources)))
        rows = timing.rows()
    if failed := [f.row.sentence for f in found if f.row.status != "done"]:
        raise SystemExit("\n".join(failed))
    shutil.rmtree(out)
    return rows


def medians(run: str, size: str, tables: Iterable[list[dict[str, str]]]) -> list[dict[str, str]]:
    """Return one table of the stages of several repeats."""
    found: dict[str, list[dict[str, str]]] = {}
    for row in (row for table in tables for row in table):
        found.setdefault(row["stage"], []).append(row)
    numbers = denoise_timing.COLUMNS[1:]
    return [{"run": run, "size": size, "stage": stage}
            | {c: f"{statistics.median(float(row[c]) for row in rows):.4g}" for c in numbers}
            for stage, rows in found.items()]  # fmt: skip


def table(rows: list[dict[str, str]]) -> str:
    """Return wall and CPU seconds, the stages side by side for all runs and sizes, and what has no stages below."""
    staged = list(dict.fromkeys((row["run"], row["size"]) for row in rows if row["stage"] != ALL))
    known = {(row["run"], row["size"], row["stage"]): f"{row['wall_s']}\t{row['cpu_s']}" for row in rows}
    lines = ["\t".join(["stage", *(f"{run}, {size}: wall_s\tcpu_s" for run, size in staged)])]
    for stage in dict.fromkeys(row["stage"] for row in rows if row["stage"] != ALL):
        lines.append("\t".join([stage, *(known.get((*run, stage), "\t") for run in staged)]))
    return "\n".join(lines + [f"{run}, {size}\t{known[run, size, ALL]}" for run, size, s in known if s == ALL])


def measure(
    model: Model | None,
    sources: list[Path],
    folder: Path,
    shape: tuple[int, int],
    repeats: int,
    command: Callable[[list[Path], Path, Path], object] | None,
    cold: bool = False,
) -> tuple[dict[str, Seconds], list[dict[str, str]]]:
    """Measure copying, the way past no network and the whole command, in turn.

    Parameters
    ----------
    model : Model or None
        For the way past no network; None: that is left out.
    sources : list of Path
        Micrographs of one shape.
    folder : Path
        Gets what is written, which is removed.
    shape : (h, w)
    repeats : int
    command : callable or None
        Given micrographs, a folder and a file for its timing, runs ``cryon2n denoise``; None: that is left out.
    cold : bool
        Before each, let go of the micrographs' pages in the page cache.

    Returns
    -------
    seconds : dict of Seconds
        Of ``cp``, ``cp and fsync``, ``no network``, ``whole command`` and ``one``: the command for one micrograph.
    stages : list of dict
        Rows of the stages, and of all these.
    """
    size, timing, rows = f"{shape[0]} x {shape[1]}" + FROM_DISK * cold, folder / "timing.tsv", []
    out = folder / "out"
    seconds = {name: Seconds() for name in ("cp", "cp and fsync", "no network", "one", "whole command")}
    tables: dict[str, list[list[dict[str, str]]]] = {"no network": [], "whole command": []}
    if model is not None:  # on a GPU the first loads its libraries
        without_network(model, sources[:1], out, shape, Seconds())

    def past_no_network() -> None:
        found = without_network(model, sources, out, shape, seconds["no network"])
        tables["no network"].append(found)

    def in_a_new_process() -> None:
        for name, some in (("one", sources[:1]), ("whole command", sources)):
            if cold:
                forget(some)
            with seconds[name].one_more():
                command(some, out, timing)
            shutil.rmtree(out)  # after the clock has stopped, as that of `copy`
        tables["whole command"].append(files.read_table(timing, denoise_timing.COLUMNS))

    steps = [lambda: copy(sources, folder / "copies", seconds["cp"], seconds["cp and fsync"])]
    steps += [past_no_network] * (model is not None) + [in_a_new_process] * (command is not None)
    for i in range(repeats):
        for step in steps if i % 2 == 0 else steps[::-1]:  # the first gets memory that costs more
            if cold:
                forget(sources)
            step()
    for run, found in tables.items():
        rows += medians(run, size, found)
    rows += [found.row(name, size, ALL) for name, found in seconds.items() if found.wall]
    return seconds, rows
