"""The command that splits movies: one for the workflow, or many, as on a machine beside the microscope."""

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

from cryon2n import device, files, log, memory
from cryon2n.errors import InputError
from cryon2n.halves import add_out_argument
from cryon2n.names import bare_name
from cryon2n.settings import add_settings_arguments, settings_from_arguments
from cryon2n.split import SplitSettings
from cryon2n.split_done import is_done, provenance
from cryon2n.split_many import STAGES, Job, Outcome, Pipeline, References
from cryon2n.split_workers import split_jobs


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--movie", type=Path, required=True, nargs="+", help="raw movies (MRC, TIFF, EER …)")
    add("--gain", type=Path, help="gain reference (MRC, TIFF, DM4)")
    add("--dark", type=Path, help="dark reference, subtracted")
    where = parser.add_mutually_exclusive_group(required=True)
    add_out_argument(where, required=False)
    text = "many movies: each goes to DIR under its own name; those that are there, made just so, are left out"
    where.add_argument("--out-dir", type=Path, metavar="DIR", help=text)
    add("--summary", type=Path, metavar="FILE", help="with --out-dir: write as JSON what became of the movies")
    text = "with --out-dir: so many movies side by side, on several GPUs in turn; memory is needed for each"
    add("--processes", type=int, default=1, metavar="N", help=text)
    device.add_arguments(parser)
    add_settings_arguments(parser)


def _run(args: argparse.Namespace) -> None:
    settings = settings_from_arguments(SplitSettings, args)
    references = References(args.gain, args.dark, None if settings.defects is None else Path(settings.defects))
    if args.out is not None and (len(args.movie) > 1 or args.summary or args.processes != 1):
        raise InputError("--out takes one movie, no --summary and no --processes; give --out-dir DIR for many movies")
    if args.processes < 1:
        raise InputError(f"--processes {args.processes}: wanted 1 or more")
    jobs = [Job(movie, args.out or args.out_dir / bare_name(movie.name)) for movie in args.movie]
    twice = [prefix.name for prefix, n in Counter(job.prefix for job in jobs).items() if n > 1]
    if twice:
        raise InputError(f"several movies would be written as {', '.join(twice)}; split them into different folders")
    where = device.choose(args.device, args.threads)
    memory.keep_freed_memory()
    if args.out is not None:
        outcome = Pipeline(references, settings, where, several=False).run(jobs)
        if outcome.failed:
            raise InputError(outcome.failed[args.movie[0]])
        return
    made_with = provenance(settings)
    done = [job for job in jobs if is_done(job.prefix, references.inputs(job.movie), made_with)]
    if done:
        log.say(f"{len(done)} of {len(jobs)} movies are split already, from these files and with these settings")
    left = [job for job in jobs if job not in done]
    outcome, used = split_jobs(left, references, settings, where, args.processes, args.threads)
    if args.summary:
        files.write_json(args.summary, {**_summary(jobs, done, outcome), **used})
    busy = ", ".join(f"{stage} {outcome.busy(stage):.1f} s" for stage in STAGES)
    log.say(f"{len(outcome.finished)} movies split in {outcome.wall:.1f} s (of work, side by side: {busy})")
    if outcome.failed:
        names = ", ".join(movie.name for movie in outcome.failed)
        raise InputError(f"{len(outcome.failed)} of {len(jobs)} movies failed, for the reasons above: {names}")


def _summary(jobs: list[Job], done: list[Job], outcome: Outcome) -> dict[str, Any]:
    def state(job: Job) -> dict[str, Any]:
        if job.movie in outcome.failed:
            return {"state": "failed", "why": outcome.failed[job.movie]}
        if job in done:
            return {"state": "was done"}
        spent = {f"{stage}_s": round(seconds, 3) for stage, seconds in outcome.spent[job.movie].items()}
        return {"state": "split", "after_s": round(outcome.finished[job.movie], 3), **spent}

    return {"movies": {str(job.movie): state(job) for job in jobs}, "wall_s": round(outcome.wall, 3)}


COMMANDS = {"split-halves": (_add_arguments, _run)}
