"""``cryon2n bench train``: the ladder from Topaz's recipe to ours, each rung measured on this machine in one run.

A rung trains a network on random halves for a few steps.  Its time per 1024² pixels counts every pixel that passes
the network in training, so that a step in both directions counts twice.  Operations are torch's count of the plain
network, forward times three; they are set against a measured matrix product and a measured copy, not a data sheet.
"""

import argparse
import math
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from cryon2n import device, files, log
from cryon2n.settings import add_settings_arguments, settings_from_arguments
from cryon2n.step import Stepper
from cryon2n.unet import NetSettings, make_net

TOPAZ_RATE = 1e-3  # of its recipe
COLUMNS = (
    "rung", "network", "precision", "crop", "batch", "directions", "ms_per_1024", "lowest", "highest",
    "Mpx_per_s", "over_topaz", "GFLOP_per_1024", "TFLOP_per_s", "share_of_matrix", "peak_GB", "J_per_Gpx", "note",
)  # fmt: skip


@dataclass(frozen=True)
class Rung:
    """One way to train.

    Attributes
    ----------
    name : str
    network : str
        ``topaz`` (its shape) or ``ours``.
    precision : str
        ``strict`` float32, ``default`` (float32 as PyTorch comes: TF32 convolutions on a GPU) or ``bfloat16``.
    recipe : bool
        Topaz's: one direction, Adagrad, crops of 800 px, batches of 4; else our step.
    channels_last, compiled, graph : bool
    gathered : bool
        Crops are gathered anew from resident patches in each step.
    """

    name: str
    network: str
    precision: str
    recipe: bool = False
    channels_last: bool = False
    compiled: bool = False
    graph: bool = False
    gathered: bool = False


LADDER = [
    Rung("Topaz's network and recipe, float32 as PyTorch comes", "topaz", "default", recipe=True),
    Rung("… strict float32", "topaz", "strict", recipe=True),
    Rung("Topaz's network, our step (bfloat16, compiled, graph)", "topaz", "bfloat16", False, True, True, True),
    Rung("our network, strict float32", "ours", "strict"),
    Rung("… float32 as PyTorch comes", "ours", "default"),
    Rung("… bfloat16", "ours", "bfloat16"),
    Rung("… channels last", "ours", "bfloat16", channels_last=True),
    Rung("… compiled", "ours", "bfloat16", channels_last=True, compiled=True),
    Rung("… the whole step a CUDA graph", "ours", "bfloat16", channels_last=True, compiled=True, graph=True),
    Rung("… crops gathered in each step", "ours", "bfloat16", False, True, True, True, gathered=True),
]
BASELINE = LADDER[0].name


@dataclass(frozen=True)
class Sizes:
    """Crops and batches of the rungs, and how long each is measured."""

    crop: int
    batch: int
    topaz_crop: int
    topaz_batch: int
    seconds: float
    repeats: int


def sizes(where: torch.device) -> Sizes:
    """Return the recipes' own sizes on a GPU; small ones on a CPU, where only ratios mean something."""
    if where.type == "cuda":
        return Sizes(512, 16, 800, 4, 0.7, 5)
    return Sizes(256, 2, 256, 1, 1.0, 3)


def ceilings(where: torch.device) -> dict[str, float]:
    """Measure the bfloat16 matrix product in TFLOP/s and the copy (read and written) in GB/s."""
    n, numbers = (8192, 512 * 2**20) if where.type == "cuda" else (1024, 16 * 2**20)
    a, b = (torch.randn(n, n, device=where).bfloat16() for _ in "ab")
    matrix = best_time(lambda: torch.mm(a, b), where)
    source, target = torch.randn(numbers, device=where), torch.empty(numbers, device=where)
    copy = best_time(lambda: target.copy_(source), where)
    return {"matrix_TFLOP_per_s": 2 * n**3 / matrix / 1e12, "copy_GB_per_s": 2 * 4 * numbers / copy / 1e9}


def best_time(work: Callable[[], object], where: torch.device, repeats: int = 10) -> float:
    """Return the median seconds of a call, after three calls to warm up."""
    for _ in range(3):
        work()
    times = []
    for _ in range(repeats):
        synchronise(where)
        began = time.perf_counter()
        work()
        synchronise(where)
        times.append(time.perf_counter() - began)
    return float(np.median(times))


def synchronise(where: torch.device) -> None:
    """Wait for the device."""
    if where.type == "cuda":
        torch.cuda.synchronize(where)


def make_network(rung: Rung, settings: NetSettings) -> nn.Module:
    """Return a rung's network."""
    return make_net(NetSettings(kind="topaz") if rung.network == "topaz" else settings)


def topaz_step(net: nn.Module, batch: tuple[torch.Tensor, ...]) -> Callable[[], None]:
    """Return Topaz's training step: one direction, mean squared error, Adagrad at `TOPAZ_RATE`."""
    optimiser = torch.optim.Adagrad(net.parameters(), lr=TOPAZ_RATE)

    def step() -> None:
        optimiser.zero_grad()
        F.mse_loss(net(batch[0]), batch[1]).backward()
        optimiser.step()

    return step


def our_step(
    rung: Rung,
    net: nn.Module,
    average: nn.Module,
    batch: Callable[[int], tuple[torch.Tensor, ...]],
    where: torch.device,
) -> Callable[[], None]:
    """Return our training step; `batch` gives the crops of a step."""
    average.requires_grad_(False)
    precision = "bfloat16" if rung.precision == "bfloat16" else "float32"
    graph = rung.graph and where.type == "cuda"
    stepper = Stepper(net, average, 3.0, 0.01, device.autocast(precision, where), rung.compiled, graph)
    count = 0

    def step() -> None:
        nonlocal count
        stepper(batch(count), 1e-4, 0.99)
        count += 1

    return step


def measure(rung: Rung, settings: NetSettings, where: torch.device, size: Sizes) -> dict[str, object]:
    """Measure one rung; returns a row without the columns that compare rungs."""
    crop, count = (size.topaz_crop, size.topaz_batch) if rung.recipe else (size.crop, size.batch)
    torch.manual_seed(0)
    layout = torch.channels_last if rung.channels_last else torch.contiguous_format
    nets = [make_network(rung, settings).to(where, memory_format=layout) for _ in range(2)]
    crops = [torch.randn(count, 1, crop, crop, device=where) for _ in "ab"]
    ones = torch.ones(count, device=where)
    if rung.recipe:
        step = topaz_step(nets[0], tuple(crops))
    elif rung.gathered:
        step = our_step(rung, *nets, gathering(size, where, ones), where)
    else:
        step = our_step(rung, *nets, lambda _: (*crops, ones, ones), where)
    directions = 1 if rung.recipe else 2
    with precision_of(rung.precision):
        for _ in range(6):
            step()
        synchronise(where)
        if where.type == "cuda":
            torch.cuda.reset_peak_memory_stats(where)
        once = best_time(step, where, 3)
        steps = max(2, math.ceil(size.seconds / once))
        times, meter = [], device.Meter(where)
        for _ in range(size.repeats):
            synchronise(where)
            began = time.perf_counter()
            for _ in range(steps):
                step()
            synchronise(where)
            times.append((time.perf_counter() - began) / steps)
        used = meter.read()[2]
    megapixels = directions * count * crop**2 / 1e6
    patches = directions * count * crop**2 / 2**20
    each = np.array(times) / patches * 1e3
    row = {
        "rung": rung.name, "network": rung.network, "precision": rung.precision, "crop": crop, "batch": count,
        "directions": directions, "ms_per_1024": float(np.median(each)), "lowest": float(each.min()),
        "highest": float(each.max()), "Mpx_per_s": megapixels / float(np.median(times)),
        "GFLOP_per_1024": operations(nets[0], where),
    }  # fmt: skip
    if where.type == "cuda":
        row["peak_GB"] = torch.cuda.max_memory_allocated(where) / 1e9
    if used is not None:
        row["J_per_Gpx"] = used / (size.repeats * steps * megapixels / 1e3)
    return row


def gathering(size: Sizes, where: torch.device, ones: torch.Tensor) -> Callable[[int], tuple[torch.Tensor, ...]]:
    """Return what gathers a step's crops from resident patches of 1024² (2 · crop on a CPU)."""
    from cryon2n.crops import crop_table, gather, plan_crops

    side = max(1024, 2 * size.crop) if where.type == "cuda" else 2 * size.crop
    halves = tuple(torch.randn(64, side, side, device=where).half() for _ in "ab")

    def batch(step: int) -> tuple[torch.Tensor, ...]:
        plan = plan_crops(0, step, 64, side, size.crop, size.batch)
        table = torch.from_numpy(crop_table(plan, plan.patch, side, size.crop)).to(where, non_blocking=True)
        return *gather(halves, table, size.crop), ones, ones

    return batch


class precision_of:
    """Context in which float32 is ``strict`` or as PyTorch comes (TF32 in convolutions, not in products)."""

    def __init__(self, precision: str):
        self.tf32 = precision != "strict"

    def __enter__(self):
        self.before = torch.backends.cudnn.allow_tf32
        torch.backends.cudnn.allow_tf32 = self.tf32

    def __exit__(self, *_):
        torch.backends.cudnn.allow_tf32 = self.before


def operations(net: nn.Module, where: torch.device) -> float:
    """Return GFLOP of training on 1024² pixels: forward times three."""
    side = 256
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, 1, side, side, device=where))
    return 3 * counter.get_total_flops() * (1024 / side) ** 2 / 1e9


def ladder(settings: NetSettings, where: torch.device, rungs: list[Rung], size: Sizes) -> list[dict[str, object]]:
    """Measure the rungs, in one run; returns rows (`COLUMNS`)."""
    ceiling = ceilings(where)
    log.say(", ".join(f"{name} {value:.0f}" for name, value in ceiling.items()))
    rows = []
    for rung in rungs:
        if rung.graph and where.type != "cuda":
            rows.append({"rung": rung.name, "note": "CUDA graphs want a GPU"})
            continue
        began = time.monotonic()
        try:
            row = measure(rung, settings, where, size)
        except RuntimeError as error:  # a rung that does not run here must not cost the others
            rows.append({"rung": rung.name, "note": f"{type(error).__name__}: {error}".splitlines()[0][:120]})
            continue
        finally:
            torch._dynamo.reset()
            if where.type == "cuda":
                torch.cuda.empty_cache()
        row["TFLOP_per_s"] = row["GFLOP_per_1024"] / row["ms_per_1024"]
        row["share_of_matrix"] = row["TFLOP_per_s"] / ceiling["matrix_TFLOP_per_s"]
        rows.append(row)
        log.say(
            f"{rung.name}: {row['ms_per_1024']:.2f} ms, {row['Mpx_per_s']:.1f} Mpx/s, {time.monotonic() - began:.0f} s"
        )
    base = next((row["Mpx_per_s"] for row in rows if row["rung"] == BASELINE and "Mpx_per_s" in row), None)
    for row in rows:
        if base is not None and "Mpx_per_s" in row:
            row["over_topaz"] = row["Mpx_per_s"] / base
    return [dict.fromkeys(COLUMNS, "") | row for row in rows]


def markdown(rows: list[dict[str, object]]) -> str:
    """Return the rows as a table."""
    shown = ("rung", "ms_per_1024", "Mpx_per_s", "over_topaz", "GFLOP_per_1024", "TFLOP_per_s", "share_of_matrix", "peak_GB", "J_per_Gpx", "note")  # noqa: E501  # fmt: skip

    def cell(value: object) -> str:
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    lines = ["| " + " | ".join(shown) + " |", "| --- " * len(shown) + "|"]
    return "\n".join(lines + ["| " + " | ".join(cell(row[c]) for c in shown) + " |" for row in rows])


def profile(settings: NetSettings, where: torch.device, size: Sizes, path: Path) -> None:
    """Write a trace of the last rung (Chrome's format), and say which kernels take the time."""
    rung = LADDER[-1] if where.type == "cuda" else next(r for r in LADDER if r.channels_last and not r.compiled)
    nets = [make_network(rung, settings).to(where, memory_format=torch.channels_last) for _ in range(2)]
    ones = torch.ones(size.batch, device=where)
    step = our_step(rung, *nets, gathering(size, where, ones), where)
    for _ in range(8):
        step()
    synchronise(where)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if where.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as found:
        for _ in range(5):
            step()
        synchronise(where)
    path.parent.mkdir(parents=True, exist_ok=True)
    found.export_chrome_trace(str(path))
    key = "self_cuda_time_total" if where.type == "cuda" else "self_cpu_time_total"
    print(found.key_averages().table(sort_by=key, row_limit=25, max_name_column_width=90))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bench train``."""
    parser.add_argument("--out", type=Path, required=True, help="the table (TSV)")
    parser.add_argument("--trace", type=Path, help="write a profiler's trace of the last rung (JSON, gz by its ending)")
    parser.add_argument("--rungs", type=int, nargs="+", metavar="N", help=f"only these, 1 to {len(LADDER)}")
    device.add_arguments(parser)
    add_settings_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Measure the ladder and write the table."""
    where = device.choose(args.device, args.threads)
    settings = settings_from_arguments(NetSettings, args)
    rungs = [LADDER[i - 1] for i in args.rungs] if args.rungs else LADDER
    size = sizes(where)
    if args.trace is not None:
        profile(settings, where, size, args.trace)
    rows = ladder(settings, where, rungs, size)
    files.write_table(args.out, rows, list(COLUMNS))
    print(f"{device.describe(where)}, torch {torch.__version__}, {platform.platform()}", markdown(rows), sep="\n\n")
