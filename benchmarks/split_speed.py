"""Measure how fast movies are split, beside bare reading and writing and RELION.

    bash envs/run.sh python benchmarks/split_speed.py [--device auto] [--movies 5] [--repeats 3]
        [--size 7676 7420] [--frames 38] [--threads N] [--folder DIR] [--out …/DEVICE.tsv]

A full-size movie of uint8 counts is made (`split_speed.movie`), synced and read once, so that it lies in the page
cache; every repeat runs each program in turn, beginning with another one each time.  Movies of the many-movies form
are that one file under several names.  RELION (Debian: ``apt install relion``; GPL, run as a program) is left out,
with the reason, where it is absent.

Rows: each program's seconds per movie; below them, of ours, what each part took, and for the form with many movies
how busy each stage's threads were in the time from one record to the next: the busiest is what bounds it.
"""

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
# The package beside this file, not this file, is what `split_speed` names.
from split_speed import movie as simulated  # noqa: E402
from split_speed import programs  # noqa: E402

from cryon2n import device, files, log  # noqa: E402

COLUMNS = ["what", "median", "lowest", "highest", "unit", "ratio", "peak_GB", "note"]
OURS = "cryon2n, many movies"


def measure(task: programs.Task, names: list[str], repeats: int) -> dict[str, list[programs.Took]]:
    """Run each program `repeats` times."""
    took: dict[str, list[programs.Took]] = {name: [] for name in names}
    for repeat in range(repeats):
        first = repeat % len(names)
        for name in names[first:] + names[:first]:
            took[name].append(programs.PROGRAMS[name](task))
            log.say(f"repeat {repeat + 1}/{repeats}: {name}: {took[name][-1].seconds:.2f} s per movie")
    return took


def row(what: str, values: list[float], unit: str, **more: object) -> dict[str, object]:
    """Return a row of the table."""
    return {
        "what": what,
        "median": f"{statistics.median(values):.3f}",
        "lowest": f"{min(values):.3f}",
        "highest": f"{max(values):.3f}",
        "unit": unit,
        **{"ratio": "", "peak_GB": "", "note": "", **more},
    }


def summarise(took: dict[str, list[programs.Took]], absent: dict[str, str], threads: dict[str, int]) -> list[dict]:
    """Return the table's rows; ratios are medians over the repeats, each against the same repeat of `OURS`."""
    rows = []
    for name, runs in took.items():
        ratio = statistics.median(run.seconds / own.seconds for run, own in zip(runs, took[OURS], strict=True))
        peaks = [run.peak_GB for run in runs if run.peak_GB is not None]
        more = {"ratio": f"{ratio:.2f}", "peak_GB": f"{max(peaks):.2f}" if peaks else ""}
        rows.append(row(name, [run.seconds for run in runs], "s per movie", **more))
    rows += [dict.fromkeys(COLUMNS, "") | {"what": name, "note": f"skipped: {why}"} for name, why in absent.items()]
    for name, runs in took.items():
        for lap in runs[0].laps:
            unit = "GB" if lap.endswith("_GB") else "s"
            rows.append(row(f"{name}: {lap}", [run.laps[lap] for run in runs], unit))
    for stage, n in threads.items():
        shares = [100 * run.laps[stage] / run.seconds / n for run in took[OURS]]
        rows.append(row(f"{OURS}: {stage}, share of the time", shares, "%", note=f"{n} thread{'s' * (n > 1)}"))
    return rows


def machine(name: str, threads: int) -> str:
    """Return what the numbers depend on: processor, device, Python, torch, date."""
    import torch

    model, information = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if information.exists():
        names = [line.partition(":")[2] for line in information.read_text().splitlines() if "model name" in line]
        model = f"{len(names)} x {names[0].strip()}" if names else model
    where = device.describe(torch.device(name)) if name == "cuda" else f"{threads} threads"
    parts = [model, where, f"Python {platform.python_version()}", f"torch {torch.__version__}"]
    return ", ".join([*parts, time.strftime("%Y-%m-%d", time.gmtime())])


def main() -> int:
    """Measure, write the table and print it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--movies", type=int, default=5, help="of the form with many movies (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--size", type=int, nargs=2, default=simulated.SHAPE, metavar=("H", "W"))
    parser.add_argument("--frames", type=int, default=simulated.N_FRAMES)
    names = list(programs.PROGRAMS)
    parser.add_argument("--programs", nargs="+", choices=names, help="default: all; on a CPU none of several processes")
    parser.add_argument("--folder", type=Path, help="for movie and halves; default: one for temporary files")
    parser.add_argument("--out", type=Path, help="default: benchmarks/split-speed/DEVICE.tsv")
    args = parser.parse_args()
    log.set_stage("split-speed")
    if args.movies < 4 or args.repeats < 1:
        parser.error("--movies wants 4 or more, --repeats 1 or more")
    where = str(device.choose(args.device))
    args.programs = args.programs or [name for name in names if where != "cpu" or "processes" not in name]
    out = args.out or ROOT / "benchmarks" / "split-speed" / f"{where}.tsv"
    absent = {name: why for name in args.programs if (why := programs.why_absent(name))}
    wanted = [OURS, *(name for name in args.programs if name not in absent and name != OURS)]
    if args.folder is not None:
        args.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="split-speed-", dir=args.folder) as folder:
        movies = [Path(folder) / f"movie{i}.mrc" for i in range(args.movies)]
        task = programs.Task(movies, Path(folder) / "gain.mrc", Path(folder), where, args.threads)
        began = time.perf_counter()
        simulated.write_movie(movies[0], task.gain, tuple(args.size), args.frames, threads=args.threads)
        for other in movies[1:]:
            os.link(movies[0], other)
        programs.into_cache([movies[0], task.gain])
        log.say(f"a movie of {movies[0].stat().st_size / 1e9:.2f} GB made in {time.perf_counter() - began:.0f} s")
        took = measure(task, wanted, args.repeats)
    rows = summarise(took, absent, programs.stage_threads(where))
    head = f"# {args.frames} frames of {args.size[0]} x {args.size[1]}, bin {programs.BIN}, {args.movies} movies, "
    head += f"{args.repeats} repeats; {machine(where, args.threads)}"
    text = "\n".join([head, "\t".join(COLUMNS), *("\t".join(str(r[c]) for c in COLUMNS) for r in rows)]) + "\n"
    files.write_text(out, text)
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
