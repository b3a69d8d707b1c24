"""Measure ``cryon2n write-shards`` against copying the same bytes with ``cp`` and with ``dd``.

    bash envs/run.sh python benchmarks/shard_writing.py [--gb 4] [--repeats 5] [--folder .]

Every repeat runs each method once, beginning with another each time, each to a new folder on the same disk; all
bring their bytes to the disk before they end (``sync``, ``conv=fsync``, and ``write-shards`` does so itself).  The
halves, and what is copied, lie in the page cache.  ``write-shards`` also reads twice as many bytes as it writes,
normalises, looks for bad areas, casts and hashes, so that a copy followed by ``sha256sum`` is what it is to be
compared with.  The rows that begin with ``step`` are the parts of that work, one after the other in one thread.
"""

import argparse
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from timings import summarise  # beside this file

from cryon2n import bench_data, files, log, pair, shards, shards_bad, shards_cut
from cryon2n.errors import InputError
from cryon2n.shards_pairings import pairings
from cryon2n.shards_tiles import ShardSettings, patch_positions

ROOT = Path(__file__).resolve().parents[1]
SHAPE = (7676, 7420)  # a micrograph of EMPIAR-10025
COPY, DD, COPY_SHA, STARTUP = "cp, sync", "dd conv=fsync", "cp, sync, sha256sum", "write-shards of 1 small micrograph"
COLUMNS = ["method", "median_s", "min_s", "max_s", "GB_per_s", "ratio_to_cp", "ratio_to_cp_sha256sum"]


def seconds(command: list[str], out: Path, size: int) -> float:
    """Run a command that must write `size` bytes of arrays into the folder `out`; returns its wall time in seconds."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    subprocess.run(["sync", "-f", str(out)], check=True)  # what others left to write is not this method's
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    took = time.perf_counter() - began
    if done.returncode or sum(path.stat().st_size for path in out.glob("*.npy")) != size:
        raise RuntimeError(f"{command[:4]} gave {done.returncode}:\n{done.stderr}")
    shutil.rmtree(out)
    return took


def write_command(records: list[Path], out: Path, patch: int, threads: int) -> list[str]:
    """Return the command that a user would give."""
    command = [sys.executable, "-m", "cryon2n", "write-shards", "--out", str(out), "--threads", str(threads)]
    return [*command, "--set", f"patch={patch}", "--train", *map(str, records)]


def measure(folder: Path, size_gb: float, repeats: int, threads: list[int]) -> tuple[dict[str, list[float]], int]:
    """Return the seconds of every repeat by method, and the bytes of the arrays."""
    made = bench_data.make(folder / "data", size_gb, SHAPE, 1024, os.cpu_count() or 1)
    records = sorted((folder / "data/halves").glob("*.json"))
    (small,) = bench_data.make_micrographs(folder / "small", (64, 64), 1, 1)
    manifest = Path(made["manifest"])
    arrays = [str(shards.array_path(manifest, shards.read_manifest(manifest), side)) for side in "ab"]
    size = sum(Path(array).stat().st_size for array in arrays)
    out = folder / "out"
    copies = [str(out / Path(array).name) for array in arrays]
    warm(folder)
    copy = f"cp {' '.join(arrays)} {out} && sync {' '.join(copies)}"
    dd = " && ".join(f"dd if={a} of={c} bs=4M conv=fsync" for a, c in zip(arrays, copies, strict=True))
    methods: dict[str, Callable[[], float]] = {
        COPY: lambda: seconds(["sh", "-c", copy], out, size),
        DD: lambda: seconds(["sh", "-c", dd], out, size),
        COPY_SHA: lambda: seconds(["sh", "-c", f"{copy} && sha256sum {' '.join(copies)}"], out, size),
        STARTUP: lambda: seconds(write_command([small], out, 64, 1), out, 2 * shards.file_bytes((1, 64, 64))),
    }
    for n in threads:
        methods[write_name(n)] = functools.partial(seconds, write_command(records, out, 1024, n), out, size)
    methods[STARTUP]()  # the first run compiles Python's modules
    names = list(methods)
    took: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(repeats):
        for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
            took[name].append(methods[name]())
        for name, spent in steps(records[0], folder / "step.bin", size).items():
            took.setdefault(name, []).append(spent)
        log.say(f"repeat {repeat + 1}/{repeats}: " + ", ".join(f"{n} {t[-1]:.2f} s" for n, t in took.items()))
    for n in threads:
        pairs = zip(took[write_name(n)], took[STARTUP], strict=True)
        took[f"{write_name(n)}, less start-up"] = [whole - start for whole, start in pairs]
    return took, size


def write_name(threads: int) -> str:
    """Return what the table calls the command with so many threads."""
    return f"write-shards, {threads} thread{'s' * (threads > 1)}"


def warm(folder: Path) -> None:
    """Read all halves and arrays once."""
    for path in [*folder.rglob("*.mrc"), *folder.rglob("*.npy")]:
        with open(path, "rb") as file:
            while file.read(1 << 24):
                pass


def steps(record_path: Path, scratch: Path, size: int) -> dict[str, float]:
    """Return the seconds of each part of the work on one micrograph, scaled to `size` bytes of arrays."""
    settings = ShardSettings()
    record = pair.read_record(record_path)
    positions = patch_positions(record, settings)
    (halves,) = pairings(record_path, record, 1)
    task = shards_cut.Task(record_path, record, "", positions, [halves], None, "")
    p = settings.patch
    patches = np.empty((len(positions), p, p), shards.DTYPE)
    patches[...] = 0  # its pages are there
    rows = sorted({y for y, _ in positions})
    columns = sorted({x for _, x in positions})
    band = np.empty((shards_cut.BAND // p, record["shape"][1]), np.float32)

    def read(image: np.ndarray) -> None:
        for y in range(0, len(image) - len(band), len(band)):
            np.copyto(band, image[y : y + len(band)])

    def cut(image: np.ndarray) -> None:
        for k, y in enumerate(rows):
            out = patches[k * len(columns) : (k + 1) * len(columns)]
            shards_cut.cut_row(image, y, columns, record["a"], out, "")

    def write() -> None:
        with open(scratch, "wb", buffering=0) as file:
            file.write(patches)

    with shards_cut.open_half(task, "a", halves) as a, shards_cut.open_half(task, "b", halves) as b:
        scales = (record["a"]["scale"], record["b"]["scale"])
        work: dict[str, Callable[[], object]] = {
            "step: look for bad areas": lambda: shards_bad.flat_blocks(a, b, record["valid"], scales),
            "step: read float32 from the page cache": lambda: read(a),
            "step: read, normalise, check, cast": lambda: cut(a),
            "step: CRC-32": lambda: [shards.crc32(patch) for patch in patches],
            "step: write to the page cache": write,
            "step: SHA-256": lambda: hashlib.sha256(patches).digest(),
        }
        took = {}
        for name, do in work.items():
            began = time.perf_counter()
            do()
            # Bad areas are looked for in both halves at once, all else is done for each.
            halves = 2 if "bad areas" in name else 1
            took[name] = (time.perf_counter() - began) * size / (halves * patches.nbytes)
    scratch.unlink()
    return took


def machine(folder: Path) -> str:
    """Return what the numbers depend on: processor, memory, file system, Python, kernel, date."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    kind = subprocess.run(["stat", "-f", "-c", "%T", str(folder)], capture_output=True, text=True, check=True)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    return ", ".join(
        [
            f"{len(models)} x {models[0] if models else platform.machine()}",
            f"{memory:.0f} GB",
            kind.stdout.strip(),
            f"Python {platform.python_version()}, NumPy {np.__version__}",
            f"{platform.system()} {platform.release().partition('-')[0]}",
            time.strftime("%Y-%m-%d", time.gmtime()),
            f"load {os.getloadavg()[1]:.1f} at the end",
        ]
    )


def main() -> int:
    """Measure, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--gb", type=float, default=4.0, help="size of the shards (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2, 4], metavar="N")
    parser.add_argument("--folder", type=Path, default=Path("."), help="on the disk that is measured")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "shard-writing" / "summary.tsv")
    args = parser.parse_args()
    log.set_stage("shard-writing")
    try:
        if not args.folder.is_dir() or args.repeats < 1 or min(args.threads) < 1:
            raise InputError(f"{args.folder}: not a folder, or --repeats or --threads below 1")
        with tempfile.TemporaryDirectory(prefix="shard-writing-", dir=args.folder) as folder:
            took, size = measure(Path(folder).resolve(), args.gb, args.repeats, args.threads)
            head = f"# {size} bytes, {args.repeats} repeats; {machine(Path(folder))}"
    except InputError as error:
        log.say(f"error: {error}")
        return 2
    rows = summarise(took, size, COLUMNS, (COPY, COPY_SHA), STARTUP)
    text = "\n".join([head, "\t".join(COLUMNS), *("\t".join(row.values()) for row in rows)]) + "\n"
    files.write_text(args.out, text)
    print(text, end="")
    log.say(f"{args.out} written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
