"""How long must our network train until it is as good as Topaz's at its best?  Both from nothing, on one machine.

    bash envs/run.sh python benchmarks/time_to_topaz.py --out benchmarks/time-to-topaz
    bash envs/run.sh python benchmarks/time_to_topaz.py --small --out DIR        (a smoke test for a CPU)

Simulated micrographs at EMPIAR-10025's optics and dose (`network_ablation.data`), resident on the device.

* Topaz's recipe (0.3.20; Bepler et al., Nat. Commun. 11, 5208, 2020), written anew: its network's shape from random
  weights, batches of 4 crops of 800², one crop of each micrograph per epoch, the 8 symmetries of the square, halves in
  random order, squared error, Adagrad at 0.001 without a schedule, float32 as PyTorch comes.  It trains until its
  plateau or for ``--topaz-seconds``; what it is judged by is its best evaluation, chosen with the truth.
* Ours: the default network and step of `cryon2n.train`, once for each of ``--seconds`` and ``--rates``, since the
  schedule depends on the length; the measured time of a step says how many fit.

Seconds are of training with its crops, without evaluation, compilation and the first steps of a process.

* ``dB``: signal-to-error of mean(f(a), f(b)) on held-out micrographs against the truth, no fit; mean over them;
* ``delta_umse``: mean((f(a) - b)²) - mean((a - b)²) there, both directions, in the halves' units.
"""

import argparse
import datetime
import itertools
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
from network_ablation import data  # noqa: E402
from network_ablation.trainer import Schedule, Trainer, crops_of, quality, synchronise  # noqa: E402

from cryon2n import device, figures, files, log  # noqa: E402
from cryon2n.bench_train import TOPAZ_RATE, precision_of, topaz_step  # noqa: E402
from cryon2n.crops import plan_crops  # noqa: E402
from cryon2n.topaz_shape import TopazShape  # noqa: E402
from cryon2n.unet import NetSettings, UNet  # noqa: E402

COLUMNS = ["who", "rate", "seconds", "steps", "dB", "delta_umse"]
TOPAZ, OURS = "topaz", "ours"
TOLERANCE = 0.02  # dB; what counts as no gain
SMALL = {
    "micrographs": 3, "held_out": 1, "size": 256, "seconds": [1.0, 4.0], "batch": 2, "crop": 128,
    "topaz_seconds": 4.0, "topaz_crop": 96, "topaz_batch": 2, "every": 1.0, "patience": 2.0,
}  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """What the evaluations say.

    Attributes
    ----------
    topaz_dB : float
        Topaz's best.
    topaz_seconds : float
        Of its first evaluation that is no more than `TOLERANCE` below its best.
    plateau : bool
        Topaz had stopped gaining; else its time was over.
    ours_dB : float
        Of our longest training; of several rates the best.
    ours_seconds : float or None
        Of our shortest training, at any rate, that is as good as Topaz's best; None if none is.
    times_as_fast : float or None
    difference_dB, difference_umse : float
        Our longest training less Topaz's best.
    """

    topaz_dB: float
    topaz_seconds: float
    plateau: bool
    ours_dB: float
    ours_seconds: float | None
    times_as_fast: float | None
    difference_dB: float
    difference_umse: float


def at_plateau(seconds: Sequence[float], decibels: Sequence[float], patience: float) -> bool:
    """Tell whether the best of the last `patience` seconds is at most `TOLERANCE` dB above the best before.

    False as long as there are not `patience` seconds before them, too: a start is no plateau.
    """
    if len(seconds) == 0 or seconds[-1] < 2 * patience:
        return False
    last = [x for t, x in zip(seconds, decibels, strict=True) if t > seconds[-1] - patience]
    before = [x for t, x in zip(seconds, decibels, strict=True) if t <= seconds[-1] - patience]
    return bool(before) and max(last) <= max(before) + TOLERANCE


def judge(rows: Sequence[dict[str, Any]], patience: float) -> Verdict:
    """Compare Topaz's evaluations with ours."""
    topaz, ours = ([row for row in rows if row["who"] == who] for who in (TOPAZ, OURS))
    best = max(topaz, key=lambda row: row["dB"])
    reached = next(row["seconds"] for row in topaz if row["dB"] >= best["dB"] - TOLERANCE)
    longest = max(ours, key=lambda row: (row["steps"], row["dB"]))
    enough = min((row["seconds"] for row in ours if row["dB"] >= best["dB"]), default=None)
    return Verdict(
        best["dB"],
        reached,
        at_plateau([row["seconds"] for row in topaz], [row["dB"] for row in topaz], patience),
        longest["dB"],
        enough,
        None if enough is None else reached / enough,
        longest["dB"] - best["dB"],
        longest["delta_umse"] - best["delta_umse"],
    )


def sentences(found: Verdict, tried: Sequence[float]) -> str:
    """Say what was found."""
    state = "at its plateau" if found.plateau else "still gaining when its time was over"
    lines = [f"Topaz's recipe: {found.topaz_dB:.3f} dB, reached after {found.topaz_seconds:.1f} s, {state}"]
    if found.ours_seconds is None:
        lines.append(f"ours: none of {len(tried)} trainings of up to {max(tried):.3g} s is as good")
    else:
        note = " at least, for no shorter one was tried" if found.ours_seconds <= min(tried) else ""
        lines.append(f"ours: as good after {found.ours_seconds:.2f} s, {found.times_as_fast:.1f} times as fast{note}")
    lines.append(
        f"our longest training: {found.ours_dB:.3f} dB, {found.difference_dB:+.3f} dB against Topaz's best; "
        f"difference of ΔuMSE {found.difference_umse:+.5f}"
    )
    return "\n".join(lines)


# ---------------------------------------------------------------------------- the two


def topaz_rows(
    train: data.Micrographs, test: data.Micrographs, args: argparse.Namespace, where: torch.device
) -> Iterator[dict[str, Any]]:
    """Train by Topaz's recipe; give an evaluation every ``args.every`` seconds up to the plateau or the time's end."""
    n, size, _ = train.a.shape
    crop, count = args.topaz_crop, args.topaz_batch
    torch.manual_seed(args.seed)
    batch = tuple(torch.zeros(count, 1, crop, crop, device=where) for _ in "ab")
    swaps = np.random.default_rng([args.seed, 1])

    def fill(number: int) -> None:
        a, b = crops_of(train, plan_crops(args.seed, number, n, size, crop, count, 1), crop)
        swapped = torch.from_numpy(swaps.random((count, 1, 1, 1)) < 0.5).to(where)
        batch[0].copy_(torch.where(swapped, b, a))
        batch[1].copy_(torch.where(swapped, a, b))

    exact = device.autocast("float32", where)
    with precision_of("default"):
        warm = topaz_step(TopazShape().to(where), batch)
        for _ in range(3):
            warm()
        del warm
        net = TopazShape().to(where)
        step = topaz_step(net, batch)
        times, decibels, seconds, steps, due = [], [], 0.0, 0, args.every
        while seconds < args.topaz_seconds and not at_plateau(times, decibels, args.patience):
            synchronise(where)
            began = time.perf_counter()
            while (passed := seconds + time.perf_counter() - began) < due:
                fill(steps)
                step()
                synchronise(where)
                steps += 1
            seconds, due = passed, max(due, passed) + args.every
            found = quality(net, exact, test)
            times.append(seconds)
            decibels.append(found[0])
            yield {
                "who": TOPAZ,
                "rate": TOPAZ_RATE,
                "seconds": seconds,
                "steps": steps,
                "dB": found[0],
                "delta_umse": found[1],
            }


def our_rows(
    train: data.Micrographs, test: data.Micrographs, args: argparse.Namespace, where: torch.device
) -> Iterator[dict[str, Any]]:
    """Train our network for each of the lengths; give the evaluation of each."""
    precision = device.choose_precision("auto", where)
    device.repeatable()  # as `cryon2n.train` does
    began = time.perf_counter()
    trainer = Trainer(lambda: UNet(NetSettings()), train, args.batch, args.crop, precision, where)
    each = trainer.milliseconds(30 if where.type == "cuda" else 3) / 1e3
    log.say(f"ours: {each * 1e3:.2f} ms a step; {time.perf_counter() - began:.1f} s until compiled and measured")
    lengths = args.steps or [max(1, round(seconds / each)) for seconds in args.seconds]
    for rate, steps in itertools.product(args.rates, lengths):
        synchronise(where)
        began = time.perf_counter()
        trainer.run(args.seed, Schedule(steps, rate))
        synchronise(where)
        seconds = time.perf_counter() - began
        decibels, delta = trainer.quality(test)
        yield {"who": OURS, "rate": rate, "seconds": seconds, "steps": steps, "dB": decibels, "delta_umse": delta}


# ---------------------------------------------------------------------------- figure, command


def draw(rows: Sequence[dict[str, Any]], found: Verdict) -> Figure:
    """Draw quality against seconds of training."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    rates = list(dict.fromkeys(row["rate"] for row in rows if row["who"] == OURS))
    for who, rate in dict.fromkeys((row["who"], row["rate"]) for row in rows):
        own = sorted((row["seconds"], row["dB"]) for row in rows if (row["who"], row["rate"]) == (who, rate))
        name = "Topaz's recipe, one training" if who == TOPAZ else f"ours, a training for each point, rate {rate:g}"
        colour = "#e69f00" if who == TOPAZ else figures.OURS[rates.index(rate)]
        axes.plot(*zip(*own, strict=True), "-" if who == TOPAZ else "o-", color=colour, label=name, ms=4)
    axes.axhline(found.topaz_dB, color="#777777", lw=0.8, ls=":", label="Topaz's best")
    axes.set(xscale="log", xlabel="seconds of training", ylabel="signal-to-error on held-out micrographs, dB")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.legend(loc="lower left", fontsize=8)
    return figure


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the arguments; ``--small`` changes the defaults."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="gets runs.tsv, verdict.json, figures")
    parser.add_argument("--small", action="store_true", help="tiny micrographs and seconds, for a CPU")
    parser.add_argument("--seconds", type=float, nargs="+", default=[1, 2, 5, 10, 20, 40, 80], help="of ours")
    parser.add_argument("--steps", type=int, nargs="+", help="of ours, instead of --seconds")
    parser.add_argument(
        "--rates", type=float, nargs="+", default=[Schedule.rate], help="of ours; each trains every length"
    )
    parser.add_argument("--topaz-seconds", type=float, default=240.0, help="at most; default: %(default)s")
    parser.add_argument("--patience", type=float, default=60.0, help="seconds without a gain that make a plateau")
    parser.add_argument("--every", type=float, default=5.0, help="seconds of Topaz's training between evaluations")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--crop", type=int, default=512)
    parser.add_argument("--topaz-batch", type=int, default=4)
    parser.add_argument("--topaz-crop", type=int, default=800, help="px, or the largest that fits the micrographs")
    parser.add_argument("--micrographs", type=int, default=48, help="to train on")
    parser.add_argument("--held-out", type=int, default=8, help="micrographs to score on")
    parser.add_argument("--size", type=int, default=2048, help="px")
    parser.add_argument("--seed", type=int, default=0)
    device.add_arguments(parser)
    if parser.parse_known_args(words)[0].small:
        parser.set_defaults(**SMALL)
    args = parser.parse_args(words)
    # The network halves its grid five times.
    args.topaz_crop = min(args.topaz_crop, args.size) // TopazShape.grid * TopazShape.grid
    args.crop = min(args.crop, args.size // 16 * 16)
    return args


def main() -> None:
    """Train both, write every evaluation, say who was as good when."""
    args = parse()
    log.set_stage("time-to-topaz")
    where = device.choose(args.device, args.threads)
    began = time.monotonic()
    everything = data.simulate(1, 0, args.micrographs + args.held_out, args.size)
    log.say(f"{args.micrographs} + {args.held_out} micrographs simulated in {time.monotonic() - began:.0f} s")
    parts = [slice(0, args.micrographs), slice(args.micrographs, None)]
    train, test = (
        data.Micrographs(*(x[part].to(where) for x in (everything.a, everything.b, everything.truth))) for part in parts
    )
    rows: list[dict[str, Any]] = []
    for row in itertools.chain(topaz_rows(train, test, args, where), our_rows(train, test, args, where)):
        rows.append(row)
        files.write_table(args.out / "runs.tsv", rows, COLUMNS)
        log.say(f"{row['who']}: {row['seconds']:.1f} s, {row['steps']} steps, {row['dB']:.3f} dB")
    found = judge(rows, args.patience)
    tried = [row["seconds"] for row in rows if row["who"] == OURS]
    steps = max(row["steps"] for row in rows if row["who"] == TOPAZ)
    files.write_json(
        args.out / "verdict.json",
        {
            **vars(found),
            "topaz_epochs": steps * args.topaz_batch / args.micrographs,
            "machine": device.describe(where),
            "torch": torch.__version__,
            "platform": platform.platform(),
            "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
            "settings": {key: value for key, value in vars(args).items() if key != "out"},
        },
    )
    figure = draw(rows, found)
    files.write_text(args.out / "quality.svg", figures.svg_text(figure))
    with files.atomic_path(args.out / "quality.png") as temporary:
        figure.savefig(temporary, dpi=130)
    print(f"{device.describe(where)}, torch {torch.__version__}", sentences(found, tried), sep="\n")


if __name__ == "__main__":
    main()
