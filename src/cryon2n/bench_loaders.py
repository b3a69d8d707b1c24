"""``cryon2n bench loaders``: the three loaders, alone and under training, against other programs' ways.

Alone, a batch is taken and dropped; under training it goes through our own step (`step.Stepper`).  Cold
means that the shards' pages were dropped from the page cache before (posix_fadvise), warm that they are all
in it; a stream past the page cache (O_DIRECT) is always cold.
"""

import argparse
import dataclasses
import gc
import importlib.util
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from cryon2n import bench_capped, bench_data, bench_memory, device, files, loaders, log, memory, shards
from cryon2n.bench_drive import Again, Feed, Trainer, digests, drive, machine
from cryon2n.bench_feed import MemmapCrops, MrcCrops, TorchFeed
from cryon2n.bench_loaders_figure import arithmetic, draw, markdown, short
from cryon2n.errors import InputError
from cryon2n.patch_files import PatchFiles, aligned
from cryon2n.settings import add_settings_arguments, settings_from_arguments
from cryon2n.unet import NetSettings

DIGESTED = 60  # steps whose batches are compared between the loaders
COLUMNS = (
    "loader", "use", "cache", "workers", "steps", "seconds", "Mpx_per_s", "patches_per_s", "GB_per_s", "wait_share",
    "read_per_used", "rss_GB", "gpu_GB", "note",
)  # fmt: skip


def warm(manifest: Path, workers: int) -> bool:
    """Bring the shards into the page cache; returns whether all of them stay there."""
    paths = shard_paths(manifest)
    size = sum(path.stat().st_size for path in paths)

    def there() -> bool:
        return sum(map(bench_memory.cached_bytes, paths)) >= 0.99 * size

    if there():
        return True
    if size > 0.8 * memory.available()[0]:
        return False
    source = PatchFiles(manifest, direct=False, keep=True)
    scratch = [aligned(source.shape[1:]) for _ in range(workers)]
    with ThreadPoolExecutor(workers) as pool:
        for side in range(2):
            list(pool.map(lambda k, side=side: source.read(side, k, scratch[k % workers]), range(source.shape[0])))
    return there()


def shard_paths(manifest: Path) -> list[Path]:
    """Return the arrays of a manifest."""
    info = shards.read_manifest(manifest)
    return [shards.array_path(manifest, info, side) for side in "ab"]


class Bench:
    """One run of the benchmark: what is measured, and the rows that came out.

    Parameters
    ----------
    args : Namespace
    manifest : path
    records : list of Path
        Of halves, for the way over raw MRC files.
    where : torch.device
    """

    def __init__(self, args: argparse.Namespace, manifest: Path, records: list[Path], where: torch.device):
        self.args, self.manifest, self.records, self.where = args, manifest, records, where
        self.patch = shards.read_manifest(manifest)["shape"][1]
        self.rows: list[dict[str, Any]] = []
        self.digests: dict[str, list[int]] = {}

    def loader(self, kind: str, workers: int, direct: bool = True) -> loaders.Loader:
        """Open one of our loaders."""
        a = self.args
        return loaders.open_loader(self.manifest, kind, a.crop, a.batch, 0, self.where, a.visit, workers, direct)

    def row(self, name: str, feed: Feed, cache: str, workers: int, trainer: Trainer | None = None) -> None:
        """Measure one line."""
        use = {"use": trainer} if trainer else {}
        found = drive(feed, self.where, self.args.seconds, **use)
        found["patches_per_s"] = found["Mpx_per_s"] * 1e6 / self.patch**2
        self.rows.append(
            {"loader": name, "use": "training" if trainer else "alone", "cache": cache, "workers": workers, "note": ""}
            | found
        )
        log.say(
            f"{name}, {self.rows[-1]['use']}, {cache}, {workers} workers: {found['Mpx_per_s']:.1f} Mpx/s, "
            f"{found['GB_per_s']:.2f} GB/s"
        )

    def left_out(self, name: str, use: str, cache: str, note: str) -> None:
        """Say why a line was not measured."""
        log.say(f"{name}, {use}, {cache}: {note}")
        blank = dict.fromkeys(COLUMNS, "")
        self.rows.append({**blank, "loader": name, "use": use, "cache": cache, "note": note})

    def fits_memory(self) -> bool:
        """Tell whether the patches fit the memory that loader ``ram`` may take."""
        size = sum(path.stat().st_size for path in shard_paths(self.manifest))
        return size < loaders.RAM_SHARE * memory.available()[0]

    def dataset(self, name: str, workers: int) -> TorchFeed:
        """Open another program's way: ``memmap`` or ``MRC``."""
        length = 10**8
        crops = (
            MemmapCrops(self.manifest, self.args.crop, length)
            if name == "memmap"
            else MrcCrops(self.records, self.args.crop, length)
        )
        return TorchFeed(crops, self.args.batch, workers, self.where)

    def each(self, name: str, feed: Any, cache: str) -> None:
        """Measure one of our loaders alone, with each number of workers in turn."""
        for workers in self.args.workers:
            feed.workers = workers
            self.row(name, feed, cache, workers)

    # What goes through the page cache comes first: the shards were just written.
    def alone(self) -> None:
        """Measure every loader without training."""
        most = max(self.args.workers)
        if warm(self.manifest, most):
            self.each("stream", self.loader("stream", most, direct=False), "warm")
            for workers in self.args.workers:
                self.row("DataLoader, memmap", self.dataset("memmap", workers), "warm", workers)
        else:
            for name in ("stream", "DataLoader, memmap"):
                self.left_out(name, "alone", "warm", "the shards do not fit the page cache")
        for name, kind in (("stream through the page cache", "stream"), ("DataLoader, memmap", "memmap")):
            for path in shard_paths(self.manifest):
                bench_memory.forget(path)
            feed = self.loader("stream", most, direct=False) if kind == "stream" else self.dataset(kind, most)
            self.row(name, feed, "cold", most)
        for path in shard_paths(self.manifest):
            bench_memory.forget(path)
        feed = self.loader("stream", most)
        self.each("stream", feed, "past it" if feed.files.direct else "dropped")
        if self.records:  # a few files, which stay in the page cache: the best case for this way
            for workers in sorted({self.args.workers[0], most}):
                self.row("DataLoader, MRC", self.dataset("MRC", workers), "warm", workers)

    def residents(self, trainer: Trainer) -> None:
        """Measure the loaders that keep all patches, alone and under training: opening them takes long."""
        most = max(self.args.workers)
        if self.where.type == "cuda":
            size = sum(path.stat().st_size for path in shard_paths(self.manifest))
            if size < 0.8 * torch.cuda.mem_get_info(self.where)[0]:
                feed = self.loader("gpu", most)
                self.row("gpu", feed, "", most)
                self.row("gpu", feed, "", most, trainer)
                self.digests["gpu"] = digests(feed, trainer, DIGESTED)
                del feed
                self.free()
            else:
                self.left_out("gpu", "alone", "", "the patches do not fit the GPU")
        if not self.fits_memory():
            self.left_out("ram", "alone", "", "the patches do not fit the memory")
            return
        feed = self.loader("ram", most)
        if self.where.type == "cuda":
            self.each("ram", feed, "")
        else:  # nothing is copied there: no workers
            self.row("ram", feed, "", 0)
        self.row("ram", feed, "", most if self.where.type == "cuda" else 0, trainer)
        self.digests["ram"] = digests(feed, trainer, DIGESTED)
        del feed
        self.free()

    def training(self, trainer: Trainer) -> None:
        """Measure training from each loader whose data is not resident."""
        most = max(self.args.workers)
        stream = self.loader("stream", min(most, loaders.WORKERS))
        self.row("the same batch again", Again(next(stream.batches(0, 1)), self.where), "", 0, trainer)
        for path in shard_paths(self.manifest):
            bench_memory.forget(path)
        self.row("stream", stream, "past it" if stream.files.direct else "dropped", min(most, loaders.WORKERS), trainer)
        self.digests["stream"] = digests(stream, trainer, DIGESTED)
        if warm(self.manifest, most):
            self.row("DataLoader, memmap", self.dataset("memmap", most), "warm", most, trainer)
        if self.records:
            self.row("DataLoader, MRC", self.dataset("MRC", most), "warm", most, trainer)

    def free(self) -> None:
        """Give back the memory of a loader that has gone."""
        gc.collect()
        if self.where.type == "cuda":
            torch.cuda.empty_cache()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bench loaders``."""
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="gets loaders.tsv, loaders.json and loaders.png")
    add("--draw", action="store_true", help="only draw the figure of a loaders.json that lies there")
    add("--manifest", type=Path, help="shards to read; without it a data set is made under --data")
    add("--records", type=Path, nargs="*", default=[], help="halves whose MRC files other programs would read")
    add("--data", type=Path, metavar="DIR", help="where the data set is made, or lies already; default: OUT/data")
    add("--size-GB", type=float, default=24.0, help="its size; default: 24")
    add("--shape", type=int, nargs=2, default=[7676, 7420], metavar=("H", "W"), help="of its micrographs, px")
    add("--patch", type=int, default=1024, help="of its patches, px")
    add("--crop", type=int, default=512, help="px")
    add("--batch", type=int, default=8, help="crops per step")
    add("--visit", type=int, default=0, help="steps that a patch serves when it is read; 0: (patch / crop)²")
    add("--workers", type=int, nargs="+", default=[1, 2, 4, 8, 16], help="numbers of reading threads or processes")
    add("--seconds", type=float, default=2.0, help="of each measurement")
    add("--steps", type=int, default=10000, help="of the run under a cap; 0: none")
    add("--max-seconds", type=float, default=240.0, help="of the run under a cap")
    add("--cap-GB", type=float, help="memory allowed to it, page cache included; default: half of the data, 4 or more")
    device.add_arguments(parser)
    add_settings_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Measure everything, write table, JSON and figure, print the short table."""
    if args.draw:
        draw(files.read_json(args.out / "loaders.json"), args.out / "loaders.png")
        return
    where = device.choose(args.device, args.threads)
    net = settings_from_arguments(NetSettings, args)
    if min(args.workers) < 1 or args.seconds <= 0:
        raise InputError(
            f"bench loaders: found workers {args.workers} and seconds {args.seconds}; wanted 1 or more, and more than 0"
        )
    made: dict[str, Any] = {"manifest": args.manifest, "records": args.records}
    if args.manifest is None:
        place = args.data or args.out / "data"
        made = bench_data.make(place, args.size_GB, tuple(args.shape), args.patch, max(args.workers))
    info = shards.read_manifest(made["manifest"])
    n, patch, _ = info["shape"]
    data = loaders.patch_bytes(n, patch) / 1e9
    log.say(f"{made['manifest']}: {n} patches, {data:.2f} GB; {device.describe(where)}")
    cap = args.cap_GB or max(4.0, data / 2)
    bench = Bench(args, made["manifest"], made["records"], where)
    bench.alone()
    trainer = Trainer(net, where)
    bench.residents(trainer)
    bench.training(trainer)
    precision = trainer.precision
    del trainer
    bench.free()
    capped = None
    if args.steps:
        log.say(f"{args.steps} steps from a stream, {data:.2f} GB of patches, {cap:g} GB allowed")
        capped = bench_capped.run(
            {
                "manifest": made["manifest"], "crop": args.crop, "batch": args.batch, "visit": args.visit,
                "workers": min(max(args.workers), loaders.WORKERS), "net": dataclasses.asdict(net),
                "device": where.type, "threads": args.threads, "cap_GB": cap, "seconds": 2 * args.seconds,
                "steps": args.steps, "max_seconds": args.max_seconds, "slower_disk": True,
            }
        )  # fmt: skip
    blank = dict.fromkeys(COLUMNS, "")
    rows = [{c: "" if (v := {**blank, **row}[c]) is None else v for c in COLUMNS} for row in bench.rows]
    result = {
        "machine": {**machine(where, made["manifest"]), "precision": precision},
        "settings": {
            "crop": args.crop, "batch": args.batch, "patch": patch, "visit": args.visit, "data_GB": data,
            "network": dataclasses.asdict(net), "seconds": args.seconds,
        },
        "made": {k: v for k, v in made.items() if isinstance(v, float)},
        "rows": rows,
        "identical": {
            "loaders": list(bench.digests), "steps": DIGESTED,
            "identical": all(found == bench.digests["stream"] for found in bench.digests.values()),
        },
        "capped": capped,
        "arithmetic": arithmetic(patch, where),
    }  # fmt: skip
    files.write_table(args.out / "loaders.tsv", rows, list(COLUMNS))
    files.write_json(args.out / "loaders.json", {**result, "short": short(result)})
    if importlib.util.find_spec("matplotlib"):
        draw(result, args.out / "loaders.png")
    else:
        log.say("there is no matplotlib here; elsewhere: cryon2n bench loaders --out DIR --draw")
    print(markdown(result))
