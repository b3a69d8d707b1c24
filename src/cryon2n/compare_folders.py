"""Score results that lie in folders, made by any programs, on the same held-out micrographs: one command for all.

``cryon2n compare`` is ``score-method`` for every folder and ``summarise`` for all of them, with figures and a page.
What a folder holds, and how its files are named, is told in `outside`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from cryon2n import compare_doc, excluded, files, log, pooling
from cryon2n.compare import read_labels, score_records, summarise_tables
from cryon2n.errors import InputError
from cryon2n.names import is_safe_name
from cryon2n.outside import find_results, read_results
from cryon2n.pair import estimate_all, load_pair, read_record, write_estimates

RAW = "raw"


def parse_sources(words: Sequence[str]) -> dict[str, Path]:
    """Read ``NAME=FOLDER`` words; a folder alone gives its own name."""
    sources: dict[str, Path] = {}
    for word in words:
        name, _, folder = word.rpartition("=")
        name = name or Path(folder).resolve().name
        if not folder or not is_safe_name(name):
            raise InputError(f"--from {word}: wanted NAME=FOLDER, the name of letters, digits and _ . + - only")
        if name in sources or name == RAW:
            what = "always scored by itself" if name == RAW else "given twice"
            raise InputError(f"--from {word}: the name {name} is {what}; choose another")
        sources[name] = Path(folder)
    return sources


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--halves", type=Path, required=True, nargs="+", metavar="RECORD", help="the test micrographs' {mic}.json")
    add("--from", dest="sources", nargs="+", default=[], metavar="NAME=FOLDER", help="what each method made of them")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path, metavar="DIR", help="gets tables, figures and comparison.md")
    text = "instead write what a method is to denoise, as MRC files"
    what.add_argument("--write-inputs", type=Path, metavar="DIR", help=text)
    add("--truth", type=Path, metavar="DIR", help="simulated entries: clean images {mic}.mrc with {mic}.json")
    add("--labels", metavar="CSV", help="particle centres: micrograph,x_px,y_px,radius_px")
    excluded.add_excluded_argument(parser)
    add("--reference", metavar="METHOD", help="deltas are against this method (default: raw)", default=RAW)
    add("--ours", nargs="+", default=[], metavar="METHOD", help="methods that are judged in words against all others")
    add("--seed", type=int, default=0, help="of the resampling")
    add("--bootstrap", type=int, default=2000, metavar="N", help="resamples of the micrographs")
    add("--metrics-page", default="docs/metrics.md", metavar="LINK", help="where the definitions are")
    add("--threads", type=int, default=1, metavar="N")


def _run(args: argparse.Namespace) -> None:
    records = excluded.kept(args.halves, args.excluded, "test")
    if args.write_inputs is not None:
        for path in records:
            pair = load_pair(path)
            write_estimates(pair, estimate_all(pair, lambda x: x), args.write_inputs, RAW)
        log.say(f"{args.write_inputs}: {len(records)} micrographs, each {{mic}}_a.mrc, _b, _full and _noise")
        return
    sources = parse_sources(args.sources)
    if not sources:
        raise InputError("--from: wanted one or more NAME=FOLDER (--write-inputs gives what they are to denoise)")
    for method in (args.reference, *args.ours):
        if method not in (RAW, *sources):
            raise InputError(f"{method}: is none of the methods; wanted {', '.join((RAW, *sources))}")
    if args.bootstrap < 1:
        raise InputError(f"--bootstrap {args.bootstrap}: wanted 1 or more resamples")
    names = [read_record(path)["micrograph"] for path in records]
    # Looked for before anything is scored: a folder that lacks a micrograph is found at once.
    found = {method: find_results(folder, names) for method, folder in sources.items()}
    labels = read_labels(args.labels) if args.labels else {}
    readers = {RAW: lambda pair: {**estimate_all(pair, lambda x: x), "mean": pair.full}}
    for method, own in found.items():
        readers[method] = lambda pair, own=own: read_results(pair, own[pair.name])
    scores, rings = [], []
    for method, read in readers.items():
        rows, ring_rows = score_records(method, records, read, args.truth, labels, max(args.threads, 1))
        scores, rings = [*scores, *rows], [*rings, *ring_rows]
    paths = {name: args.out / f"{name}.tsv" for name in ("metrics", "summary", "curves")}
    tables = pd.DataFrame(scores), pd.DataFrame(rings)
    summarise_tables(*tables, args.reference, args.seed, args.bootstrap, paths)
    files.write_table(args.out / "rings.tsv", rings, pooling.RING_COLUMNS)
    data = compare_doc.read_data_set(args.out, args.ours, args.reference, args.bootstrap)
    told = " ".join(f"{method}={folder}" for method, folder in sources.items())
    command = f"cryon2n compare --from {told}"
    compare_doc.write_page([data], args.out / "comparison.md", args.metrics_page, args.out, command)


COMMANDS = {"compare": (_add_arguments, _run)}
