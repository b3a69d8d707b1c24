"""Measure how fast micrographs are denoised, beside copying the same bytes and beside Topaz.

    PYTHONPATH=src python3 benchmarks/denoise_speed.py [--device auto] [--out DIR] [--weights W] [--micrographs 20]
        [--repeats 2] [--sections compute command stages cpu] [--no-compile] [--threads N]

Sections:

compute
    One more micrograph of 7676 x 7420 and of 3838 x 3710 pixels: the network alone, in each of its forms (eager, with
    cuDNN's own choice of kernels, compiled); and all that the device does for it, one after another: copy in, repair,
    normalise, network, copy back.  The command does these side by side.
command
    ``cryon2n denoise`` from files to files in a new process, 20 micrographs of both sizes, float32, against ``cp`` of
    the same files to the same disk.  The fair one is ``cp`` with fsync: the command, too, has each micrograph on the
    disk before it gets its name; ``cp`` without ends while the bytes are in memory.  In turn, `--repeats` times.  A run
    of one micrograph tells the start-up.  Once with the files in the page cache, where the memory suffices, and once
    from the disk, with their pages let go before each run.
stages
    The same with a network that costs nothing, in this process.  Without a GPU all that one would do is left out, and
    one image in the CPU's memory stands for the GPU's: what is measured is the CPU's share of the work on a GPU.
cpu
    CPU-seconds (user and system) of the whole command on the CPU for one micrograph of 4096 x 4096.

Where the environment variable CRYON2N_TOPAZ_ENV names what envs/topaz.sh built, ``topaz denoise`` with its defaults
runs on the same images.  Micrographs are white noise; weights are random unless given: neither changes the time.
"""

import argparse
import contextlib
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

from denoise_speed import stages  # noqa: E402

from cryon2n import denoise_model, device, files, log, memory, mrcio, unet  # noqa: E402

LARGE, SMALL, SQUARE = (7676, 7420), (3838, 3710), (4096, 4096)
COLUMNS = ["what", "size", "median", "lowest", "highest", "unit", "note"]
SECTIONS = ["compute", "command", "stages", "cpu"]
PIXEL_SIZE = 0.66  # Å


def row(what: str, size: tuple[int, int], values: list[float], unit: str, note: str = "") -> dict[str, str]:
    """Return a row of the table, and print it."""
    numbers = {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}
    texts = {name: f"{value:.4g}" for name, value in numbers.items()}
    log.say(f"{what}, {size[0]} x {size[1]}: {texts['median']} {unit} {note}")
    return {"what": what, "size": f"{size[0]} x {size[1]}", **texts, "unit": unit, "note": note}


def micrograph(shape: tuple[int, int]) -> np.ndarray:
    """Return white noise (h, w), float32, with a micrograph's grey levels."""
    image = np.random.default_rng(0).standard_normal(shape, np.float32)
    image *= 40
    image += 500
    return image


def random_weights(path: Path) -> Path:
    """Write the default network with random weights."""
    torch.manual_seed(0)
    net = unet.make_net(unet.NetSettings())
    for p in net.parameters():
        torch.nn.init.normal_(p, std=(1 / p[0].numel()) ** 0.5)
    unet.save_weights(path, net, {"pixel_size_A": str(PIXEL_SIZE)})
    return path


# ---------------------------------------------------------------------------- compute


def laps(f: Callable[[], object], where: torch.device, n: int) -> list[float]:
    """Return the seconds of each of n calls, after two that warm up."""
    found = []
    for i in range(n + 2):
        began = time.perf_counter()
        f()
        if where.type == "cuda":
            torch.cuda.synchronize(where)
        if i >= 2:
            found.append(time.perf_counter() - began)
    return found


@contextlib.contextmanager
def kernels_by_trial() -> Iterator[None]:
    """Let cuDNN try its kernels and keep the fastest."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def compute(args: argparse.Namespace, weights: Path, shape: tuple[int, int]) -> list[dict[str, str]]:
    """Measure what the device does for one more micrograph."""
    rows, where = [], args.where
    n = 10 if where.type == "cuda" else 3
    model = denoise_model.load_model(weights, where)
    image = micrograph(shape)
    x = denoise_model.prepare([image], model, PIXEL_SIZE).images[0]
    plain = model.run(x)

    def difference(run: Callable[[torch.Tensor], torch.Tensor]) -> str:
        return f"differs by {float((run(x) - plain).norm() / plain.norm()):.1e}"

    def everything() -> np.ndarray:
        prepared = denoise_model.prepare([image], model, PIXEL_SIZE)
        return denoise_model.compute(prepared, model).image.cpu().numpy()

    if where.type == "cuda":
        torch.cuda.reset_peak_memory_stats(where)
    times = laps(lambda: model.run(x), where, n)
    note = f"{1e3 * statistics.median(times) / (shape[0] * shape[1] / 1e6):.3f} ms per Mpx, {model.run.precision}"
    if where.type == "cuda":
        note += f", at most {torch.cuda.max_memory_allocated(where) / 1e9:.2f} GB"
    rows.append(row("network", shape, times, "s", note))
    rows.append(row("copies, repair, normalisation and network", shape, laps(everything, where, n), "s"))
    if where.type == "cuda":
        with kernels_by_trial():
            times = laps(lambda: model.run(x), where, n)
            rows.append(row("network, kernels by trial", shape, times, "s", difference(model.run)))
    if args.compile and where.type == "cuda":
        began = time.perf_counter()
        compiled = denoise_model.load_model(weights, where, compiled=True).run
        try:
            compiled(x)
        except Exception as error:  # a compiler that is not there must not cost the other figures
            log.say(f"network, compiled: left out ({type(error).__name__}: {error})")
            return rows
        first = time.perf_counter() - began
        times = laps(lambda: compiled(x), where, n)
        rows.append(
            row("network, compiled", shape, times, "s", f"the first took {first:.1f} s; {difference(compiled)}")
        )
    return rows


# ---------------------------------------------------------------------------- command


def command(args: argparse.Namespace, weights: Path, sources: list[Path], out: Path, where: str, *more: str) -> float:
    """Run ``cryon2n denoise`` and return its seconds."""
    threads = ["--threads", str(args.threads)] if args.threads else []
    whole = [sys.executable, "-m", "cryon2n", "denoise", *map(str, sources), "-o", str(out), "--weights", str(weights)]
    began = time.perf_counter()
    done = subprocess.run([*whole, "--device", where, *threads, *more], capture_output=True, text=True)
    seconds = time.perf_counter() - began
    if done.returncode != 0 or len(list(out.glob("*.mrc"))) != len(sources):
        raise SystemExit(f"cryon2n denoise gave {done.returncode}:\n{done.stderr}")
    return seconds


@contextlib.contextmanager
def written(args: argparse.Namespace, folder: Path, shape: tuple[int, int]) -> Iterator[list[Path]]:
    """Yield micrographs of a shape on the disk; they are removed."""
    sources = [folder / f"m{i:02d}.mrc" for i in range(args.micrographs)]
    mrcio.write_mrc(sources[0], micrograph(shape), PIXEL_SIZE)
    for path in sources[1:]:
        shutil.copyfile(sources[0], path)
    os.sync()
    yield sources
    for path in sources:
        path.unlink()


def files_to_files(
    args: argparse.Namespace, weights: Path, folder: Path, shape: tuple[int, int], cold: bool
) -> list[dict[str, str]]:
    """Measure the whole command, or all of it but the network, against copying; `cold`: from the disk."""

    def whole(sources: list[Path], out: Path, timing: Path) -> None:
        command(args, weights, sources, out, args.where.type, "--timing", str(timing))

    model = denoise_model.load_model(weights, args.where) if "stages" in args.sections else None
    with written(args, folder, shape) as sources:
        n, size = len(sources), sum(path.stat().st_size for path in sources)
        runs = model, sources, folder, shape, args.repeats, whole if "command" in args.sections else None
        took, found = stages.measure(*runs, cold)
    args.stages += found
    rate = f"{size / 1e9:.2f} GB read and written"
    rows, where = [], stages.FROM_DISK * cold
    for name, seconds in took.items():
        if seconds.wall:
            what = ("whole command, 1 micrograph" if name == "one" else f"{name}, {n} micrographs") + where
            note = "start-up of Python and torch included" if name == "one" else rate
            rows.append(row(what, shape, seconds.wall, "s", note))
            rows.append(row(f"{what}, CPU time", shape, seconds.cpu, "CPU-s"))
    copied = took["cp and fsync"].wall
    shares = {name: took[name].wall for name in ("no network", "whole command")}
    further = [(c - o) / (n - 1) for c, o in zip(took["whole command"].wall, took["one"].wall, strict=True)]
    if further:
        rows.append(row(f"whole command, each further micrograph{where}", shape, further, "s"))
        shares["further micrographs"] = [n * f for f in further]
    for name, of in shares.items():
        if of:
            ratios = [a / b for a, b in zip(of, copied, strict=True)]
            rows.append(row(f"{name} / cp and fsync{where}", shape, ratios, "ratio"))
    return rows


# ---------------------------------------------------------------------------- CPU, Topaz


def cpu_seconds(args: argparse.Namespace, weights: Path, folder: Path) -> list[dict[str, str]]:
    """Measure the CPU-seconds of the whole command on the CPU."""
    mrcio.write_mrc(folder / "square.mrc", micrograph(SQUARE), PIXEL_SIZE)
    used, wall = [], []
    for _ in range(args.repeats):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        wall.append(command(args, weights, [folder / "square.mrc"], folder / "out", "cpu"))
        shutil.rmtree(folder / "out")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    note = f"{args.threads or 'all'} threads, {device.choose_precision('auto', torch.device('cpu'))}"
    return [
        row("whole command on the CPU, CPU time", SQUARE, used, "CPU-s", note),
        row("whole command on the CPU", SQUARE, wall, "s", note),
    ]


def topaz(args: argparse.Namespace) -> list[dict[str, str]]:
    """Run ``topaz denoise`` on the same images, where it is installed."""
    from cryon2n.topaz import denoise_images

    environment = os.environ.get("CRYON2N_TOPAZ_ENV")
    if not environment:
        log.say("topaz: left out, because CRYON2N_TOPAZ_ENV is not set")
        return []
    rows = []
    if "compute" in args.sections and args.where.type == "cuda":
        for shape in (LARGE, SMALL):
            images = {f"m{i}": micrograph(shape) for i in range(4)}
            _, run = denoise_images(environment, images, "topaz-unet", device="cuda", threads=args.threads)
            rows.append(row("topaz denoise, each further micrograph", shape, [run.seconds_per_image], "s"))
    if "cpu" in args.sections:
        image = {"m": micrograph(SQUARE)}
        _, run = denoise_images(environment, image, "topaz-unet", device="cpu", threads=args.threads)
        rows.append(row("topaz denoise on the CPU, CPU time", SQUARE, [run.cpu_seconds], "CPU-s"))
        rows.append(row("topaz denoise on the CPU", SQUARE, [run.seconds], "s"))
    return rows


def machine(where: torch.device) -> str:
    """Return what the numbers depend on."""
    processor, information = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if information.exists():
        names = [line.partition(":")[2] for line in information.read_text().splitlines() if "model name" in line]
        processor = f"{len(names)} x {names[0].strip()}" if names else processor
    parts = [processor, device.describe(where), f"Python {platform.python_version()}", f"torch {torch.__version__}"]
    return ", ".join([*parts, time.strftime("%Y-%m-%d", time.gmtime())])


def sections(args: argparse.Namespace, weights: Path, folder: Path) -> Iterator[Callable[[], list[dict[str, str]]]]:
    """Yield what is to be measured."""
    if "compute" in args.sections:
        yield from (partial(compute, args, weights, shape) for shape in (LARGE, SMALL))
    if "cpu" in args.sections:
        yield partial(cpu_seconds, args, weights, folder)
    if {"command", "stages"} & set(args.sections):
        for shape in args.sizes:
            for cold in (False, True):
                yield partial(files_to_files, args, weights, folder, shape, cold)
    yield partial(topaz, args)


def main() -> int:
    """Measure, write the table and print it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads; default: torch's choice")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/denoise-speed"), help="folder for DEVICE.tsv")
    parser.add_argument("--folder", type=Path, help="for micrographs, on the disk to be measured; default: --out")
    parser.add_argument("--weights", type=Path, help="default: random ones")
    parser.add_argument("--micrographs", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--sizes", nargs="+", choices=["large", "small"], default=["large", "small"],
                        help="of micrographs for command and stages")  # fmt: skip
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    args = parser.parse_args()
    if args.micrographs < 2 or args.repeats < 1:
        parser.error("--micrographs wants 2 or more, --repeats 1 or more")
    log.set_stage("denoise-speed")
    memory.keep_freed_memory()
    args.where = device.choose(args.device, args.threads)
    args.sizes, args.stages = [{"large": LARGE, "small": SMALL}[name] for name in args.sizes], []
    for place in (args.out, args.folder or args.out):
        place.mkdir(parents=True, exist_ok=True)
    head = f"# {machine(args.where)}"
    with tempfile.TemporaryDirectory(prefix="denoise-speed-", dir=args.folder or args.out) as folder:
        weights = args.weights or random_weights(Path(folder) / "weights.safetensors")
        rows: list[dict[str, str]] = []
        for section in sections(args, weights, Path(folder)):
            rows += section()
            # After each: what has been measured is kept whatever comes.
            lines = ["\t".join(COLUMNS), *("\t".join(r[c] for c in COLUMNS) for r in rows)]
            files.write_text(args.out / f"{args.where.type}.tsv", "\n".join([head, *lines]) + "\n")
            if args.stages:
                found = ["\t".join(stages.COLUMNS), *("\t".join(r[c] for c in stages.COLUMNS) for r in args.stages)]
                files.write_text(args.out / f"{args.where.type}-stages.tsv", "\n".join([head, *found]) + "\n")
    print("\n".join([head, *lines]))
    if args.stages:
        print(f"\nSeconds of each stage, all threads together:\n{stages.table(args.stages)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
