"""Measure motion correction on simulated movies whose motion is known, beside other programs.

    bash envs/run.sh python benchmarks/motion_accuracy.py [--seeds 10] [--size 1536 | --size 3838 3710]
        [--regimes quiet …] [--methods "cryon2n local" …] [--table] [--out …/summary.tsv] [--runs …/runs.json]

On a GPU (``--device``) run the simulator, the methods that can use one, and the sums; frames are counted and RELION
runs on the CPU's cores meanwhile, if several movies are worked on at a time (``--movies``, ``--programs`` …).

Every (regime, seed, method) is one small file in ``--cache``: an interrupted run, or one that ``--minutes`` ended, goes
on where it stopped, and what failed is tried again.  Delete the files of a method whose code has changed, all when the
simulator's has.  RELION 3.1 (Debian: ``apt install relion``; GPL, run as a program) and torch-motion-correction
(``benchmarks/motion-accuracy/torch-motion-correction.txt``) are left out, with the reason, where absent.

Columns: ``global_A`` is the RMS error of the field's mean over the image, ``local_A`` that of the field at 12 × 12
places (lengths of vectors, Å, over all frames; what is constant in time is no blur and is taken out first), ``bend_A``
what of it is not common to all places,
``kept_4A`` the share of the amplitude at 4 Å that this error leaves,
``frc_ratio`` the area under the FRC of the raw halves relative to that with the known field, in the same movie and by
the same interpolation; ``worse`` counts movies whose local fit has a larger ``local_A`` than the program's global one.
"""

import argparse
import math
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
# The package beside this file, not this file, is what `motion_accuracy` names.
from motion_accuracy import measure, methods, simulate  # noqa: E402
from motion_accuracy.field import Field  # noqa: E402

from cryon2n import device, files, log  # noqa: E402

REFERENCES: dict[str, Callable[[simulate.Movie], Field]] = {
    "known field": lambda movie: movie.truth,
    "best 18-coefficient polynomial": measure.best_polynomial,
    "best global": measure.best_global,
}
MEASURES = ["global_A", "local_A", "bend_A", "kept_4A", "frc_ratio", "resolution_A", "seconds", "bound_A"]
DIGITS = {"frc_ratio": 3, "resolution_A": 1, "seconds": 1}
COLUMNS = ["regime", "method", "movies", "failed"]
COLUMNS += [f"{m}_{what}" for m in MEASURES for what in ("mean", "worst")] + ["worse", "note"]
FIRST_SEED = 1  # 1000 and 1001 served to choose settings


@dataclass(frozen=True)
class Setup:
    """How movies are worked on.

    Attributes
    ----------
    cache : Path
    shape : (h, w)
        Of a frame.
    damage : bool
    device : torch device
    threads : int
        Of each program.
    deadline : float
        Of `time.monotonic`: what has not begun then is left for the next call.
    inside : threading.Semaphore
        Held by what computes in this process: several movies at once would not fit on the device.
    programs : dict
        Program -> the executor whose workers wait for it.
    """

    cache: Path
    shape: tuple[int, int]
    damage: bool
    device: torch.device
    threads: int
    deadline: float
    inside: threading.Semaphore
    programs: dict[str, ThreadPoolExecutor]

    def path(self, regime: str, seed: int, method: str) -> Path:
        """Return where the result of one (regime, seed, method) lies."""
        return result_path(self.cache, self.shape, regime, seed, method)

    def missing(self, regime: str, seed: int, wanted: list[str]) -> list[str]:
        """Return the methods that have no result of a movie yet, or failed."""
        paths = {m: self.path(regime, seed, m) for m in wanted}
        return [m for m, path in paths.items() if not path.is_file() or "failed" in files.read_json(path)]


def result_path(cache: Path, shape: tuple[int, int], regime: str, seed: int, method: str) -> Path:
    """Return where the result of one (regime, seed, method) lies."""
    return cache / "x".join(map(str, shape)) / regime / f"{seed}" / f"{method.replace(' ', '-')}.json"


def run_movie(setup: Setup, regime: str, seed: int, wanted: list[str], scene: Future) -> None:
    """Simulate one movie and write the results that are still missing."""
    missing, drawn = setup.missing(regime, seed, wanted), scene.result()
    if time.monotonic() > setup.deadline:
        return
    with setup.inside:
        cores = len(os.sched_getaffinity(0))
        movie = simulate.simulate(regime, seed, setup.shape, setup.damage, drawn, setup.device, cores)
    with tempfile.TemporaryDirectory() as folder:
        task = methods.Task(
            movie.counts,
            movie.pixel_size,
            movie.dose_per_frame,
            Path(folder),
            setup.threads,
            setup.device,
            setup.deadline,
        )
        outside = [m for m in missing if methods.program(m)]
        jobs = {m: setup.programs[methods.program(m)].submit(attempt, m, movie, task) for m in outside}
        halves = measure.Halves(movie, setup.device)
        with setup.inside:
            found = {m: attempt(m, movie, task) for m in missing if m not in outside}
            bound = measure.frame_bound(movie, setup.device)
        known = measure_all(setup, (regime, seed), halves, found, bound, None)
        measure_all(setup, (regime, seed), halves, {m: job.result() for m, job in jobs.items()}, bound, known)


def attempt(method: str, movie: simulate.Movie, task: methods.Task) -> methods.Found | Exception:
    """Return what a method finds in a movie, or why it did not."""
    try:
        if method in REFERENCES:
            return REFERENCES[method](movie), 0.0
        if time.monotonic() > task.deadline:
            raise methods.OutOfTime
        return methods.METHODS[method](task)
    except Exception as error:  # any program's failure on any movie is a result
        return error


def measure_all(
    setup: Setup,
    movie_key: tuple[str, int],
    halves: measure.Halves,
    found: dict[str, methods.Found | Exception],
    bound: float,
    known: np.ndarray | None,
) -> np.ndarray:
    """Write the results of what several methods found in one movie; return the FRC of the known field's halves."""
    movie = halves.movie
    fields = {m: f[0] for m, f in found.items() if not isinstance(f, Exception)}
    todo = [*fields.values()] if known is not None else [movie.truth, *fields.values()]
    with setup.inside:
        sums = halves.sums(todo)
    curves = [measure.half_correlation(s) for s in sums]
    if known is None:
        known, *curves = curves
    for method, outcome in found.items():
        result: dict[str, float | str] = {"contrast_rms": movie.contrast_rms}
        if isinstance(outcome, methods.OutOfTime):
            continue
        if isinstance(outcome, Exception):
            log.say(f"{movie_key} {method} failed: {outcome!r}")
            result["failed"] = f"{type(outcome).__name__}: {outcome}"[:300]
        else:
            result |= {"bound_A": bound} if method == "known field" else {}
            result |= {"seconds": outcome[1]} if method in methods.METHODS else {}
            curve = curves[list(fields).index(method)]
            result |= measure.field_errors(outcome[0], movie)
            result |= measure.curve_measures(curve, known, halves.frequencies)
        files.write_json(setup.path(*movie_key, method), result)
    return known


def summarise(results: dict[tuple[str, int, str], dict], absent: dict[str, str]) -> list[dict]:
    """Return one row for each regime and method.

    Parameters
    ----------
    results : dict
        (regime, seed, method) -> result.
    absent : dict
        Method -> why it was skipped.
    """
    rows = []
    for regime, method in dict.fromkeys((r, m) for r, _, m in results):
        found = {seed: v for (r, seed, m), v in results.items() if (r, m) == (regime, method)}
        good = {seed: v for seed, v in found.items() if "failed" not in v}
        row = {"regime": regime, "method": method, "movies": len(found), "failed": len(found) - len(good)}
        for name in MEASURES:
            values = [v[name] for v in good.values() if name in v]
            worst = min if name in ("kept_4A", "frc_ratio") else max
            row[f"{name}_mean"] = float(np.mean(values)) if values else ""
            row[f"{name}_worst"] = float(worst(values)) if values else ""
        other = {seed: results.get((regime, seed, methods.GLOBAL_OF.get(method, ""))) for seed in good}
        pairs = [(good[s]["local_A"], v["local_A"]) for s, v in other.items() if v and "local_A" in v]
        row["worse"] = f"{sum(a > b + 1e-9 for a, b in pairs)}/{len(pairs)}" if pairs else ""
        row["note"] = next((str(v["failed"]).replace("\n", " ") for v in found.values() if "failed" in v), "")
        rows.append(row)
    blank = dict.fromkeys(COLUMNS, "")
    return rows + [{**blank, "regime": "all", "method": m, "note": f"skipped: {why}"} for m, why in absent.items()]


def markdown(rows: list[dict]) -> str:
    """Return the rows as a table: mean, and the worst movie in brackets."""

    def cell(row: dict, name: str, digits: int) -> str:
        mean, worst = row[f"{name}_mean"], row[f"{name}_worst"]
        return f"{mean:.{digits}f} ({worst:.{digits}f})" if mean != "" else ""

    titles = [
        "global Å",
        "local Å",
        "… without global Å",
        "kept at 4 Å",
        "FRC ratio",
        "0.143 at Å",
        "s",
        "bound Å",
        "worse than global",
    ]
    lines = ["| " + " | ".join(["regime", "method", *titles]) + " |", "| --- " * (len(titles) + 2) + "|"]
    for row in rows:
        values = [cell(row, name, DIGITS.get(name, 2)) for name in MEASURES]
        failed = f", {row['failed']} failed" if row["failed"] else ""
        lines.append(f"| {row['regime']} | {row['method']}{failed} | " + " | ".join([*values, row["worse"]]) + " |")
    return "\n".join(lines)


def take_runs(runs: Path, cache: Path) -> None:
    """Put the results of an earlier run that are kept in one file into the cache, where they are missing."""
    kept = files.read_json(runs) if runs.is_file() else {}
    for key, result in kept.items():
        path = cache / f"{key}.json"
        if not path.is_file():
            files.write_json(path, result)


def keep_runs(runs: Path, cache: Path) -> None:
    """Keep all results of the cache in one file."""
    paths = sorted(cache.rglob("*.json"))
    files.write_json(runs, {str(p.relative_to(cache).with_suffix("")): files.read_json(p) for p in paths})


def run_all(args: argparse.Namespace, cache: Path, seeds: range, wanted: list[str]) -> None:
    """Work on every movie that misses a result, several at a time."""
    began = time.monotonic()
    with ExitStack() as stack:
        programs = {
            "RELION": stack.enter_context(ThreadPoolExecutor(args.programs)),
            "torch-motion-correction": stack.enter_context(ThreadPoolExecutor(args.gpu_programs)),
        }
        setup = Setup(
            cache,
            tuple(args.size),
            not args.no_damage,
            device.choose(args.device, args.threads),
            args.threads,
            began + 60 * args.minutes,
            threading.Semaphore(args.inside),
            programs,
        )
        log.say(f"{device.describe(setup.device)}; {len(os.sched_getaffinity(0))} CPU cores")
        movies = [(r, s) for s in seeds for r in args.regimes if setup.missing(r, s, wanted)]
        # Drawing a scene keeps Python busy: that is for processes.
        drawing = ProcessPoolExecutor(args.drawing, multiprocessing.get_context("spawn"))
        stack.callback(drawing.shutdown, cancel_futures=True)
        scenes = [drawing.submit(simulate.draw_scene, r, s, setup.shape) for r, s in movies]
        pool = stack.enter_context(ThreadPoolExecutor(args.movies))
        pairs = zip(movies, scenes, strict=True)
        jobs = [pool.submit(run_movie, setup, *movie, wanted, scene) for movie, scene in pairs]
        progress = log.Progress(len(jobs), "movies")
        for done, job in enumerate(as_completed(jobs), start=1):
            job.result()
            progress.update(done)


def main() -> None:
    """Run what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10, help="movies of each regime")
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    parser.add_argument("--regimes", nargs="+", default=list(simulate.REGIMES), choices=list(simulate.REGIMES))
    names = [*REFERENCES, *methods.METHODS]
    parser.add_argument("--methods", nargs="+", default=names, choices=names, metavar="METHOD", help=", ".join(names))
    parser.add_argument("--size", type=int, nargs="+", default=[1536], help="rows and columns of a frame")
    parser.add_argument("--no-damage", action="store_true", help="without radiation damage")
    device.add_arguments(parser)
    parser.add_argument("--movies", type=int, default=1, help="movies at a time")
    parser.add_argument("--inside", type=int, default=1, help="… that compute in this process, on the device")
    parser.add_argument("--programs", type=int, default=1, help="methods of RELION at a time, each with --threads")
    parser.add_argument("--gpu-programs", type=int, default=1, help="methods of torch-motion-correction at a time")
    parser.add_argument("--drawing", type=int, default=1, help="processes that draw scenes")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop then; the next call goes on")
    parser.add_argument("--table", action="store_true", help="run nothing: the table of the results so far")
    parser.add_argument("--cache", type=Path, default=ROOT / "results" / "motion-accuracy")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "motion-accuracy" / "summary.tsv")
    parser.add_argument("--runs", type=Path, help="JSON of all single results: taken up where it exists, and written")
    args = parser.parse_args()
    log.set_stage("motion-accuracy")
    args.size = (args.size * 2)[:2]
    args.threads = args.threads or 1

    absent = {m: why for m in args.methods if m in methods.METHODS and (why := methods.why_absent(m))}
    for method, why in absent.items():
        log.say(f"{method} is skipped: {why}")
    wanted = [m for m in args.methods if m not in absent]
    cache = args.cache / ("undamaged" if args.no_damage else "damaged")
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    if args.runs is not None:
        take_runs(args.runs, args.cache)
    if not args.table:
        run_all(args, cache, seeds, wanted)
    if args.runs is not None:
        keep_runs(args.runs, args.cache)
    paths = {(r, s, m): result_path(cache, args.size, r, s, m) for r in args.regimes for m in wanted for s in seeds}
    results = {key: files.read_json(path) for key, path in paths.items() if path.is_file()}
    rows = summarise(results, absent)
    files.write_table(args.out, rows, COLUMNS)
    print(simulate.table(), markdown(rows), sep="\n\n")


if __name__ == "__main__":
    main()
