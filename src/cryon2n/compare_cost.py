"""What the methods of a comparison cost: seconds, memory and energy, from what their jobs left; never estimated.

Every method leaves ``denoised/{method}/{mic}.json`` with what it measured of itself (`metering`), and Snakemake
leaves each job's seconds in ``benchmarks/jobs``.  What was not measured is ``nan``.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cryon2n import files, log
from cryon2n.errors import InputError
from cryon2n.folds import names_of_folds
from cryon2n.methods import model_and_symmetries

COLUMNS = [
    *("method", "device", "micrographs", "Mpx", "seconds_per_image", "Mpx_per_s"),
    *("job_seconds", "memory_GB", "gpu_memory_GB", "gpu_J_per_image", "train_seconds", "train_gpu_J"),
]
nan = float("nan")


def method_cost(
    method: str, results: Path, folds: Sequence[str], tests: Sequence[str], megapixels: float, jobs: Path | None
) -> dict[str, Any]:
    """Return the row of one method.

    Parameters
    ----------
    method : str
    results : path
        ``results/{dataset}``.
    folds : sequence of str
        Their folders (`folds`); the training's cost is the mean over them.
    tests : sequence of str
        The micrographs whose denoising is looked at.
    megapixels : float
        Of one image.
    jobs : path or None
        Folder of Snakemake's benchmark files, ``{rule}/{dataset}/{method}/{mic}.tsv``.
    """
    found = [path for mic in tests if (path := results / "denoised" / method / f"{mic}.json").exists()]
    records = [files.read_json(path) for path in found]
    # The job of a method from a folder only copied its results.
    there = None if any("folder" in record for record in records) else jobs
    measured = [job for mic in tests if (job := _job(there, results.name, method, mic))]
    seconds = _mean(records, "seconds_per_image")
    energy = [{"J": r["gpu_energy_J"] / r["images"]} for r in records if r.get("gpu_energy_J") and r.get("images")]
    row = {
        "method": method,
        "device": _device(records),
        "micrographs": max(len(records), len(measured)),
        "Mpx": megapixels,
        "seconds_per_image": seconds,
        "Mpx_per_s": megapixels / seconds if seconds > 0 else nan,
        "job_seconds": _mean(measured, "s"),
        **{key: _most(records, key) for key in ("memory_GB", "gpu_memory_GB")},
        "gpu_J_per_image": _mean(energy, "J"),
        **dict.fromkeys(("train_seconds", "train_gpu_J"), nan),
    }
    for name in ("metrics.json", "record.json"):  # of our networks, of Topaz's training
        paths = [results / "models" / fold / model_and_symmetries(method)[0] / name for fold in folds]
        if trained := [files.read_json(path) for path in paths if path.exists()]:
            row |= {"train_seconds": _mean(trained, "seconds"), "train_gpu_J": _mean(trained, "gpu_energy_J")}
    return row


def _device(records: Sequence[Mapping[str, Any]]) -> str:
    """Return the devices that records name, ``not known`` without any; Topaz's own line as it is."""
    known = sorted({str(r["device"]).lstrip("# ") for r in records if r.get("device")})
    return "; ".join(known) or "not known"


def _mean(rows: Sequence[Mapping[str, Any]], key: str) -> float:
    """Return the mean of what is there; nan where nothing is."""
    values = [float(row[key]) for row in rows if row.get(key) not in (None, "", "NA", "-")]
    return float(np.mean(values)) if values else nan


def _most(rows: Sequence[Mapping[str, Any]], key: str) -> float:
    return max((float(row[key]) for row in rows if row.get(key)), default=nan)


def _job(jobs: Path | None, dataset: str, method: str, mic: str) -> dict[str, str] | None:
    """Return Snakemake's benchmark of the job that denoised a micrograph, the newest if several rules left one."""
    if jobs is None:
        return None
    paths = sorted(jobs.glob(f"*/{dataset}/{method}/{mic}.tsv"), key=lambda path: path.stat().st_mtime)
    rows = files.read_table(paths[-1], ("s",)) if paths else []
    return rows[-1] if rows else None


def read_costs(path: Path) -> dict[str, dict[str, str]]:
    """Return the rows of ``cost.tsv`` by method."""
    return {row["method"]: row for row in files.read_table(path, COLUMNS)}


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--results", type=Path, required=True, metavar="DIR", help="results/{dataset}")
    add("--methods", nargs="+", required=True, help="the methods, in the order of the rows")
    add("--test", type=Path, nargs="+", required=True, metavar="RECORD", help="records of the test halves")
    add("--folds", type=int, metavar="K", help="of a cross-validation (default: none)")
    add("--jobs", type=Path, metavar="DIR", help="folder of Snakemake's benchmark files: {rule}/{dataset}/{method}/")
    add("--out", type=Path, required=True, metavar="TSV", help="written")


def _run(args: argparse.Namespace) -> None:
    shapes = [files.read_json(path)["shape"] for path in args.test]
    megapixels = float(np.mean([h * w for h, w in shapes])) / 1e6
    tests = [path.stem for path in args.test]
    folds = names_of_folds(args.folds)
    rows = [method_cost(method, args.results, folds, tests, megapixels, args.jobs) for method in args.methods]
    if all(row["micrographs"] == 0 for row in rows):
        raise InputError(f"{args.results / 'denoised'}: holds no record of any method; denoise the micrographs again")
    files.write_table(args.out, rows, COLUMNS)
    log.say(f"{args.out}: {len(rows)} methods")


COMMANDS = {"write-cost": (_add_arguments, _run)}
