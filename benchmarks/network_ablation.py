"""Compare networks at equal GPU time: speed of training, and quality on held-out micrographs with known truth.

    bash envs/run.sh python benchmarks/network_ablation.py [--seconds 20] [--seeds 3] [--variants base … ]
    bash envs/run.sh python benchmarks/network_ablation.py --variants ours --precisions bfloat16 float32 --batch 4
        --rates 0.002 --steps 3000 --seeds 20 --out benchmarks/network-ablation/seeds.tsv

Micrographs are simulated at EMPIAR-10025's optics and dose (`network_ablation.data`); all variants see the same ones,
resident on the GPU, with the training step of `cryon2n.step`.  A speed is measured first, and decides how many steps
fit into ``--seconds``; the schedule ends there.  Columns:

* ``ms``: one step of ``--batch`` crops in both directions; ``Mpx/s`` counts every pixel that passes the network in
  training (both directions); ``TFLOP/s`` by torch's counter of the plain network, forward times 3;
* ``dB``: signal-to-error of mean(f(a), f(b)) on the held-out micrographs against the truth, no fit of any kind;
* ``ΔuMSE``: mean((f(a) - b)²) - mean((a - b)²), both directions, in the halves' units; lower is better.
"""

import argparse
import itertools
import sys
import time
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
# The package beside this file, not this file, is what `network_ablation` names.
from network_ablation import data  # noqa: E402
from network_ablation.trainer import Schedule, Trainer  # noqa: E402
from network_ablation.variants import VARIANTS  # noqa: E402

from cryon2n import device, files, log  # noqa: E402

COLUMNS = [
    "variant", "precision", "parameters", "batch", "ms", "Mpx_per_s", "TFLOP_per_s", "rate", "seed", "steps", "dB",
    "delta_umse", "worst_loss",
]  # fmt: skip


def training_flops(name: str, args: argparse.Namespace) -> float:
    """Return the operations of one step: the plain network forward, times 3, in both directions."""
    net = VARIANTS[name]()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.zeros(1, 1, args.crop, args.crop))
    return 3.0 * counter.get_total_flops() * 2 * args.batch


def main() -> None:
    """Measure the variants and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS), metavar="VARIANT")
    parser.add_argument("--seconds", type=float, default=20.0, help="of training, each variant and seed")
    parser.add_argument("--seeds", type=int, default=3, help="0: only the speed")
    parser.add_argument("--steps", type=int, help="of each training, instead of --seconds")
    parser.add_argument("--precisions", nargs="+", default=["auto"], choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--rates", type=float, nargs="+", default=[Schedule.rate], help="highest learning rates")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--crop", type=int, default=512)
    parser.add_argument("--micrographs", type=int, default=48, help="to train on")
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "network-ablation" / "runs.tsv")
    args = parser.parse_args()
    log.set_stage("network-ablation")
    where = device.choose("auto")
    began = time.monotonic()
    everything = data.simulate(1, 0, args.micrographs + 8, args.size)
    log.say(f"{args.micrographs} + 8 micrographs simulated in {time.monotonic() - began:.0f} s")
    parts = [slice(0, args.micrographs), slice(args.micrographs, None)]
    train, test = (
        data.Micrographs(*(x[part].to(where) for x in (everything.a, everything.b, everything.truth))) for part in parts
    )
    rows = []
    for name, precision in itertools.product(args.variants, args.precisions):
        try:
            rows += measure(name, train, test, args, device.choose_precision(precision, where), where)
        except RuntimeError as error:  # one variant that cannot run must not cost the others
            log.say(f"{name} failed: {error}")
        files.write_table(args.out, rows, COLUMNS)
        torch._dynamo.reset()
    print(device.describe(where), f"torch {torch.__version__}")
    for row in rows:
        print("  ".join(f"{row[c]:.4g}" if isinstance(row[c], float) else str(row[c]) for c in COLUMNS))


def measure(
    name: str,
    train: data.Micrographs,
    test: data.Micrographs,
    args: argparse.Namespace,
    precision: str,
    where: torch.device,
) -> list[dict]:
    """Measure one variant: its speed, then its quality for each seed."""
    began = time.monotonic()
    trainer = Trainer(VARIANTS[name], train, args.batch, args.crop, precision, where)
    ms = trainer.milliseconds()
    ready = time.monotonic() - began
    steps = args.steps or max(20, round(args.seconds * 1e3 / ms))
    pixels = 2 * args.batch * args.crop**2
    speed = {
        "variant": name,
        "precision": precision,
        "parameters": sum(p.numel() for p in trainer.net.parameters()),
        "batch": args.batch,
        "ms": ms,
        "Mpx_per_s": pixels / ms / 1e3,
        "TFLOP_per_s": training_flops(name, args) / ms / 1e9,
        "steps": steps,
    }
    rows = []
    log.say(f"{name}: {ms:.2f} ms, {speed['Mpx_per_s']:.0f} Mpx/s, {speed['TFLOP_per_s']:.0f} TFLOP/s")
    if not args.seeds:
        return [dict.fromkeys(COLUMNS, "") | speed]
    for rate, seed in itertools.product(args.rates, range(args.seeds)):
        worst = trainer.run(seed, Schedule(steps, rate))
        decibels, delta = trainer.quality(test)
        rows.append({**speed, "rate": rate, "seed": seed, "dB": decibels, "delta_umse": delta, "worst_loss": worst})
        log.say(f"{name}, rate {rate:g}, seed {seed}: {decibels:.3f} dB, ΔuMSE {delta:.5f}")
    log.say(f"{name}: {time.monotonic() - began:.0f} s, {ready:.0f} of them compiling")
    return rows


if __name__ == "__main__":
    main()
