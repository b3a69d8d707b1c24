"""Measure ``cryon2n fetch-movie`` against ``curl``, from an nginx on this machine.

    bash envs/run.sh python benchmarks/fetch_throughput.py [--gb 2] [--repeats 5] [--folder /dev/shm]

Every repeat runs each method once, each to a new file in the same folder, beginning with another method each
time; at most two of the large files are there at once.  ``fetch-movie`` also checks the movie's header and
hashes it, so that ``curl`` followed by ``sha256sum`` is what it is to be compared with; what it takes to fetch
a movie of one pixel is what its start-up costs.
"""

import argparse
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import mrcfile
import numpy as np
from timings import summarise  # beside this file

from cryon2n import files, log, mrcio
from cryon2n.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
import replica  # noqa: E402  (it lies among the tests, which are no package)

H, W = 7676, 7420  # a frame of EMPIAR-10025, one byte per pixel
CURL, CURL_SHA, STARTUP = "curl", "curl + sha256sum", "fetch-movie of 1 pixel"
COLUMNS = ["method", "median_s", "min_s", "max_s", "GB_per_s", "ratio_to_curl", "ratio_to_curl_sha256sum"]


def write_random_movie(path: Path, shape: tuple[int, int, int]) -> int:
    """Write an MRC movie (n, h, w) of random bytes, a frame at a time; returns the file's size in bytes."""
    rng = np.random.default_rng(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    with mrcfile.new_mmap(path, shape, mrc_mode=0) as mrc:
        for frame in mrc.data:
            frame[...] = rng.integers(-128, 128, frame.shape, dtype=np.int8)
        mrc.set_image_stack()
        mrcio.mark_unsigned(mrc.header)
    return path.stat().st_size


def seconds(command: list[str], out: Path, size: int) -> float:
    """Run a command that must write `out` with `size` bytes; returns its wall time in seconds."""
    shutil.rmtree(out.parent, ignore_errors=True)
    out.parent.mkdir()
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    took = time.perf_counter() - began
    if done.returncode or out.stat().st_size != size:
        raise RuntimeError(f"{command} gave {done.returncode}:\n{done.stderr}")
    shutil.rmtree(out.parent)
    return took


def fetch_command(url: str, out: Path, size: int, shape: tuple[int, int, int], connections: int | None) -> list[str]:
    """Return the command that a user would give; None leaves the number of connections to the program."""
    frames, h, w = map(str, shape)
    command = [sys.executable, "-m", "cryon2n", "fetch-movie", "--url", url, "--out", str(out), "--size", str(size)]
    command += ["--frames", frames, "--shape", h, w]
    return command if connections is None else [*command, "--set", f"connections={connections}"]


def measure(folder: Path, size_gb: float, repeats: int, connections: Iterable[int]) -> tuple[dict, int]:
    """Return the seconds of every repeat by method, and the bytes of the file."""
    shape = (max(1, -(-int(size_gb * 1e9) // (H * W))), H, W)
    site = folder / "site"
    large, small = (site / "www" / replica.DATA / name for name in ("large.mrc", "small.mrc"))
    need = 2 * (shape[0] * H * W + 1024)
    free = shutil.disk_usage(folder).free
    if free < need * 1.05:
        raise InputError(f"{folder}: {free / 1e9:.1f} GB are free, {need / 1e9:.1f} GB are needed; choose a --folder")
    log.say(f"writing a movie of {need / 2e9:.2f} GB")
    size, small_size = write_random_movie(large, shape), write_random_movie(small, (1, 1, 1))
    out = folder / "out" / "movie.mrc"
    with replica.nginx(site) as server:
        url, small_url = f"{server.base_data}/{large.name}", f"{server.base_data}/{small.name}"
        curl = ["curl", "--fail", "--silent", "--show-error", "--output", str(out), url]
        curl_sha = ["sh", "-c", '"$@" && sha256sum "$0"', str(out), *curl]
        methods: dict[str, Callable[[], float]] = {
            CURL: lambda: seconds(curl, out, size),
            CURL_SHA: lambda: seconds(curl_sha, out, size),
            STARTUP: lambda: seconds(fetch_command(small_url, out, small_size, (1, 1, 1), None), out, small_size),
        }
        for n in connections:
            command = fetch_command(url, out, size, shape, n)
            methods[fetch_name(n)] = lambda command=command: seconds(command, out, size)
        methods[STARTUP]()  # the first run compiles Python's modules
        names = list(methods)
        took: dict[str, list[float]] = {name: [] for name in names}
        for repeat in range(repeats):
            for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
                took[name].append(methods[name]())
            log.say(f"repeat {repeat + 1}/{repeats}: " + ", ".join(f"{n} {took[n][-1]:.2f} s" for n in names))
    for n in connections:
        pairs = zip(took[fetch_name(n)], took[STARTUP], strict=True)
        took[f"{fetch_name(n)}, less start-up"] = [whole - start for whole, start in pairs]
    return took, size


def fetch_name(connections: int) -> str:
    """Return what the table calls a download by so many connections."""
    return f"fetch-movie, {connections} connection{'s' * (connections > 1)}"


def machine() -> str:
    """Return what the numbers depend on: processor, Python, kernel, programs, date."""
    model = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        names = [line.partition(":")[2] for line in information.read_text().splitlines() if "model name" in line]
        model = f"{len(names)} x {names[0].strip()}" if names else model
    curl = subprocess.run(["curl", "--version"], capture_output=True, text=True, check=True).stdout.split()[:2]
    server = subprocess.run([replica.find_nginx(), "-v"], capture_output=True, text=True, check=True).stderr
    return ", ".join(
        [
            model,
            f"Python {platform.python_version()}",
            f"{platform.system()} {platform.release()}",
            " ".join(curl),
            server.split()[-1],
            time.strftime("%Y-%m-%d", time.gmtime()),
        ]
    )


def main() -> int:
    """Measure, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--gb", type=float, default=2.0, help="size of the movie (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--connections", type=int, nargs="*", default=[1, 4], metavar="N")
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"), help="where both files lie; a tmpfs is best")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "fetch-throughput" / "summary.tsv")
    args = parser.parse_args()
    log.set_stage("fetch-throughput")
    missing = [name for name in ("curl", "sha256sum") if shutil.which(name) is None]
    try:
        if missing or replica.find_nginx() is None:
            raise InputError(f"{', '.join(missing) or 'nginx'}: not installed; the benchmark needs it")
        if not args.folder.is_dir() or args.repeats < 1 or min(args.connections, default=1) < 1:
            raise InputError(f"{args.folder}: not a folder, or --repeats or --connections below 1")
        with tempfile.TemporaryDirectory(prefix="fetch-throughput-", dir=args.folder) as folder:
            took, size = measure(Path(folder), args.gb, args.repeats, args.connections)
    except InputError as error:
        log.say(f"error: {error}")
        return 2
    rows = summarise(took, size, COLUMNS, (CURL, CURL_SHA), STARTUP)
    head = f"# {size} bytes, {args.repeats} repeats, {args.folder}; {machine()}"
    text = "\n".join([head, "\t".join(COLUMNS), *("\t".join(row.values()) for row in rows)]) + "\n"
    files.write_text(args.out, text)
    print(text, end="")
    log.say(f"{args.out} written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
