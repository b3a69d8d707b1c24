"""Methods of others: results that lie in a folder, or a program that is run on files, scored like all the rest.

A folder holds, for each micrograph, what a program made of half a, half b, the whole exposure and the signal-free
image, or of some of them: ``{mic}_a.mrc``, ``{mic}_b.mrc``, ``{mic}_full.mrc``, ``{mic}_noise.mrc``, or ``{mic}.mrc``
in folders ``a``, ``b``, ``full``, ``noise``.  A name may end in ``_denoised``, ``-denoised`` or ``.denoised``.
``{mic}.mrc`` beside them is what the method ``raw`` and our own ones write as the mean of both halves; where no other
file of that micrograph is there, it is the denoised whole exposure.

Images are in the units of what was denoised.  The four inputs, as files, are what the method ``raw`` writes.
"""

import argparse
import re
import shlex
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from cryon2n import files, log, metering, mrcio
from cryon2n.errors import InputError
from cryon2n.pair import INPUTS, Pair, load_pair, read_result, write_estimates

PLACES = ("{input}", "{output}")
TAIL = 6  # lines of a failed program's output that are shown

# ---------------------------------------------------------------------------- folders


def find_results(folder: str | Path, names: Iterable[str]) -> dict[str, dict[str, Path]]:
    """Find what a folder holds of each micrograph: by the whole name, never by the order of files.

    Returns
    -------
    dict of dict
        ``found[micrograph][input]``, the inputs being those of `pair.INPUTS`; the same ones for every micrograph.

    Raises
    ------
    InputError
        The folder lacks a micrograph, holds one half without the other, holds two files for one thing, or other
        things for one micrograph than for another.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; wanted the denoised micrographs (MRC) of a method")
    there: dict[tuple[str, str | None], Path] = {}
    for path in sorted(p for place in (folder, *(folder / name for name in INPUTS)) for p in place.glob("*.mrc")):
        key = re.sub(r"[_.-]denoised$", "", path.stem), path.parent.name if path.parent != folder else None
        if key in there:
            raise InputError(f"{folder}: {there[key].name} and {path.name} are the same thing twice; remove one")
        there[key] = path
    found = {name: _results_of(folder, there, name) for name in names}
    first = next(iter(found), None)
    for name, own in found.items():
        if set(own) != set(found[first]):
            raise InputError(
                f"{folder}: holds {_listed(own)} of micrograph {name}, but {_listed(found[first])} of {first}; "
                "wanted the same of all"
            )
    return found


def _results_of(folder: Path, there: dict[tuple[str, str | None], Path], name: str) -> dict[str, Path]:
    own = {}
    for kind, (_, ending) in INPUTS.items():
        places = [there[key] for key in ((f"{name}{ending}", None), (name, kind)) if key in there]
        if len(places) > 1:
            raise InputError(f"{folder}: {places[0]} and {places[1]} are the same thing twice; remove one")
        if places:
            own[kind] = places[0]
    if not own and (name, None) in there:
        own = {"full": there[name, None]}
    if not own:
        some = ", ".join(sorted(path.name for path in there.values())[:4]) or "no MRC file"
        raise InputError(
            f"{folder}: holds nothing of micrograph {name} (it holds {some}); wanted {name}_a.mrc, {name}_b.mrc, "
            f"{name}_full.mrc and {name}_noise.mrc, or some of them"
        )
    if ("a" in own) != ("b" in own):
        raise InputError(f"{folder}: holds one denoised half of micrograph {name}, not the other; wanted both or none")
    if set(own) == {"noise"}:
        raise InputError(f"{folder}: holds only the denoised noise of micrograph {name}; wanted its halves, or all")
    return own


def _listed(kinds: Iterable[str]) -> str:
    return " and ".join(sorted(kinds))


def read_results(pair: Pair, found: dict[str, Path]) -> dict[str, np.ndarray]:
    """Read what `find_results` found of one micrograph, in normalised units, with the halves' ``mean``."""
    out = {kind: pair.from_units(read_result(pair, path), INPUTS[kind][0]) for kind, path in found.items()}
    if {"a", "b"} <= set(out):
        out["mean"] = pair.mean(out["a"], out["b"])
    return out


# ---------------------------------------------------------------------------- commands


def split_command(template: str) -> list[str]:
    """Split a command template into words; it must hold ``{input}`` and ``{output}``."""
    try:
        words = shlex.split(template)
    except ValueError as error:
        raise InputError(f"command {template!r}: cannot be split into words ({error}); check its quotes") from None
    missing = [place for place in PLACES if not any(place in word for word in words)]
    if missing or words[0] in PLACES:
        wanted = " and ".join(missing) or "a program before {input}"
        raise InputError(f"command {template!r}: {wanted} is missing; wanted PROGRAM … {{input}} … {{output}} …")
    return words


def run_command(template: str, source: Path, target: Path) -> None:
    """Run a program on one file.  No shell takes part, so a path may hold any character.

    Raises
    ------
    InputError
        The program is not there, ended with an error, or wrote no output.
    """
    places = dict(zip(PLACES, map(str, (source, target)), strict=True))
    words = []
    for word in split_command(template):
        words.append(re.sub("|".join(map(re.escape, PLACES)), lambda m: places[m[0]], word))
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
    except OSError as error:
        raise InputError(f"{words[0]}: cannot be run ({error.strerror}); correct the command, or its path") from None
    if done.returncode != 0:
        tail = "\n  ".join(done.stdout.decode(errors="replace").splitlines()[-TAIL:])
        raise InputError(f"{words[0]} ended with exit code {done.returncode}; the last that it printed:\n  {tail}")
    if not target.is_file():
        raise InputError(f"{words[0]} ended well but wrote no {target.name}; does its command name {{output}} rightly?")


def run_on_pair(template: str, pair: Pair, meter: metering.Meter) -> dict[str, np.ndarray]:
    """Run a program on all of `pair.INPUTS` as float32 MRC files in their own units; results are normalised."""
    out = {}
    with tempfile.TemporaryDirectory(prefix="cryon2n-outside-") as scratch, meter:
        for kind, (unit, ending) in INPUTS.items():
            name = f"{pair.name}{ending}.mrc"
            source, target = Path(scratch, "in", name), Path(scratch, "out", name)
            target.parent.mkdir(exist_ok=True)
            mrcio.write_mrc(source, pair.to_units(getattr(pair, kind), unit), pair.pixel_size)
            run_command(template, source, target)
            meter.lap(None)
            out[kind] = pair.from_units(read_result(pair, target), unit)
    return out


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--method", required=True, help="name of the method in the tables")
    add("--halves", type=Path, required=True, metavar="RECORD", help="record of the micrograph's halves")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--folder", type=Path, help="folder of denoised micrographs (docs/metrics.md#outside)")
    source.add_argument("--command", help="template such as 'prog --in {input} --out {output}'")
    add("--out", type=Path, required=True, metavar="DIR", help="gets the denoised micrographs")


def _run(args: argparse.Namespace) -> None:
    pair = load_pair(args.halves)
    record: dict[str, Any] = {"method": args.method, "micrograph": pair.name}
    if args.folder is not None:
        found = find_results(args.folder, [pair.name])[pair.name]
        estimates = read_results(pair, found)
        estimates.pop("mean", None)
        record |= {"folder": str(args.folder), "sha256": {k: files.sha256_of(path) for k, path in found.items()}}
    else:
        meter = metering.Meter(gpu=True)
        try:
            estimates = run_on_pair(args.command, pair, meter)
        except InputError as error:
            raise InputError(f"{pair.name}, {args.method}: {error}") from None
        record |= {"command": args.command, **meter.cost(on_gpu=(meter.most or 0) > (meter.before or 0))}
    write_estimates(pair, estimates, args.out, args.method)
    files.write_json(args.out / f"{pair.name}.json", record)
    log.say(f"{pair.name}: {', '.join(estimates)}")


COMMANDS = {"denoise-outside": (_add_arguments, _run)}
