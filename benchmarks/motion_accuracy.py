"""Measure motion correction on simulated movies whose motion is known, beside other programs.

    bash envs/run.sh python benchmarks/motion_accuracy.py [--seeds 10] [--size 1536]
        [--regimes quiet …] [--methods "cryon2n local" …] [--table] [--out …/summary.tsv]

Every (regime, seed, method) is one small file in ``--cache``: an interrupted run goes on where it stopped, and what
failed is tried again.  Delete the files of a method whose code has changed, all when the simulator's has.  RELION 3.1
(Debian: ``apt install relion``; GPL, run as a program) and torch-motion-correction
(``benchmarks/motion-accuracy/torch-motion-correction.txt``) are left out, with the reason, where absent.

Columns: ``global_A`` is the RMS error of the field's mean over the image, ``local_A`` that of the field at 12 × 12
places (lengths of vectors, Å, over all frames; what is constant in time is no blur and is taken out first),
``kept_4A`` the share of the amplitude at 4 Å that this error leaves,
``frc_ratio`` the area under the FRC of the raw halves relative to that with the known field, in the same movie and by
the same interpolation; ``worse`` counts movies whose local fit has a larger ``local_A`` than the program's global one.
"""

import argparse
import multiprocessing
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
# The package beside this file, not this file, is what `motion_accuracy` names.
from motion_accuracy import measure, methods, simulate  # noqa: E402
from motion_accuracy.field import Field  # noqa: E402

from cryon2n import files, log  # noqa: E402

REFERENCES: dict[str, Callable[[simulate.Movie], Field]] = {
    "known field": lambda movie: movie.truth,
    "best 18-coefficient polynomial": measure.best_polynomial,
    "best global": measure.best_global,
}
MEASURES = ["global_A", "local_A", "kept_4A", "frc_ratio", "resolution_A", "seconds"]
DIGITS = {"frc_ratio": 3, "resolution_A": 1, "seconds": 1}
COLUMNS = ["regime", "method", "movies", "failed"]
COLUMNS += [f"{m}_{what}" for m in MEASURES for what in ("mean", "worst")] + ["worse", "note"]
FIRST_SEED = 1  # 1000 served to choose settings


def result_path(cache: Path, size: int, regime: str, seed: int, method: str) -> Path:
    """Return where the result of one (regime, seed, method) lies."""
    return cache / f"{size}" / regime / f"{seed}" / f"{method.replace(' ', '-')}.json"


def run_movie(cache: Path, size: int, threads: int, damage: bool, regime: str, seed: int, wanted: list[str]) -> None:
    """Simulate one movie and write the results that are still missing."""
    paths = {m: result_path(cache, size, regime, seed, m) for m in wanted}
    missing = [m for m, path in paths.items() if not path.is_file() or "failed" in files.read_json(path)]
    if not missing:
        return
    movie = simulate.simulate(regime, seed, size, damage)
    halves = measure.Halves(movie)
    known = halves.correlation(movie.truth)
    for method in missing:
        result: dict[str, float | str] = {"contrast_rms": movie.contrast_rms}
        try:
            if method in REFERENCES:
                field = REFERENCES[method](movie)
            else:
                field, result["seconds"] = run_method(method, movie, threads)
            result |= measure.field_errors(field, movie)
            curve = known if method == "known field" else halves.correlation(field)
            result |= measure.curve_measures(curve, known, halves.frequencies)
        except Exception as error:  # any program's failure on any movie is a result
            log.say(f"{regime} {seed} {method} failed: {traceback.format_exc(limit=3)}")
            result["failed"] = f"{type(error).__name__}: {error}"[:300]
        files.write_json(paths[method], result)


def run_method(method: str, movie: simulate.Movie, threads: int) -> tuple[Field, float]:
    """Run a method on a movie in a folder that is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        task = methods.Task(movie.counts, movie.pixel_size, movie.dose_per_frame, Path(folder), threads)
        return methods.METHODS[method](task)


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

    lines = ["| regime | method | global Å | local Å | kept at 4 Å | FRC ratio | 0.143 at Å | s | worse than global |"]
    lines.append("| --- " * 9 + "|")
    for row in rows:
        values = [cell(row, name, DIGITS.get(name, 2)) for name in MEASURES]
        failed = f", {row['failed']} failed" if row["failed"] else ""
        lines.append(f"| {row['regime']} | {row['method']}{failed} | " + " | ".join([*values, row["worse"]]) + " |")
    return "\n".join(lines)


def run_all(work: Callable, args: argparse.Namespace, seeds: range, wanted: list[str]) -> None:
    """Call `work` for every movie, in processes."""
    # Workers are started afresh, so that they see how many threads they may use.
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    with ProcessPoolExecutor(args.workers, multiprocessing.get_context("spawn")) as pool:
        jobs = [pool.submit(work, regime, seed, wanted) for seed in seeds for regime in args.regimes]
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
    parser.add_argument("--size", type=int, default=1536, help="rows and columns of a frame")
    parser.add_argument("--no-damage", action="store_true", help="without radiation damage")
    parser.add_argument("--workers", type=int, default=2, choices=(1, 2), help="movies at a time")
    parser.add_argument("--threads", type=int, default=1, help="of each method")
    parser.add_argument("--table", action="store_true", help="run nothing: the table of the results so far")
    parser.add_argument("--cache", type=Path, default=ROOT / "results" / "motion-accuracy")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "motion-accuracy" / "summary.tsv")
    args = parser.parse_args()
    log.set_stage("motion-accuracy")

    absent = {m: why for m in args.methods if m in methods.METHODS and (why := methods.why_absent(m))}
    for method, why in absent.items():
        log.say(f"{method} is skipped: {why}")
    wanted = [m for m in args.methods if m not in absent]
    cache = args.cache / ("undamaged" if args.no_damage else "damaged")
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    if not args.table:
        run_all(partial(run_movie, cache, args.size, args.threads, not args.no_damage), args, seeds, wanted)
    results = {
        (r, s, m): files.read_json(result_path(cache, args.size, r, s, m))
        for r in args.regimes
        for m in wanted
        for s in seeds
        if not args.table or result_path(cache, args.size, r, s, m).is_file()
    }
    rows = summarise(results, absent)
    files.write_table(args.out, rows, COLUMNS)
    print(simulate.table(), markdown(rows), sep="\n\n")


if __name__ == "__main__":
    main()
