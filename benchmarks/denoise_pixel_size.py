"""Measure when it pays to denoise at the model's pixel size, and how well the uncertainty map is calibrated.

    python benchmarks/denoise_pixel_size.py [--steps 2500] [--threads N] [--out benchmarks/denoise-pixel-size/cpu.tsv]

A small network is trained by Noise2Noise on simulated halves of 1 Å per pixel: a random scene whose amplitudes fall
with spatial frequency k as 1 / (1 + (k / k0)²), k0 = 1/30 Å⁻¹, to nothing at 1/3 Å⁻¹, and white noise whose variance
per pixel is that of a fixed dose per Å².  It then denoises such micrographs of other pixel sizes as they are, and
brought to 1 Å and back.  The score is the error of f(a), and of the mean of f(a) and f(b), in dB of the scene's
variance; the gain is that of rescaling, with its standard error over scenes.

At 1 Å the uncertainty map is calibrated on scenes of its own, without the truth, and the share of pixels whose true
error it covers is counted on the others; the table's last comment holds it.
"""

import argparse
import copy
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cryon2n import device, files, log, unet
from cryon2n.denoise_scale import back, choose_scaling, there
from cryon2n.denoise_tiles import Tiled
from cryon2n.denoise_uncertainty import calibrate, spread_map, sums_of
from cryon2n.step import Stepper, average_decay, learning_rate

MODEL_PIXEL = 1.0  # Å
PIXELS = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 1.05, 1.1, 1.2, 1.3, 1.5, 2.0)
SNR = 0.05  # variance of the scene over that of a half's noise, at 1 Å
WHAT = ("half", "mean")
COLUMNS = ["pixel_size_A", *(f"{w}_{c}_dB" for w in WHAT for c in ("as_it_is", "rescaled", "gain", "gain_error"))]


@dataclass(frozen=True)
class Schedule:
    """What `step.learning_rate` and `step.average_decay` need."""

    steps: int
    rate: float = 1e-3
    warmup: float = 0.05
    average: float = 0.1


def scene(rng: np.random.Generator, side: int, pixel: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return clean image and two halves, (side, side), float32."""
    k = np.hypot(np.fft.fftfreq(side, pixel)[:, None], np.fft.rfftfreq(side, pixel)[None, :])
    amplitude = np.where((k > 0) & (k < 1 / 3), 1 / (1 + (k * 30) ** 2), 0)
    spectrum = np.fft.rfft2(rng.standard_normal((side, side))) * amplitude
    # Unit variance of the whole scene, of which large pixels hold a little less.
    fine = np.arange(1, 2000) * (1 / 3 / 2000)
    total = 2 * np.pi * np.sum(fine / (1 + (fine * 30) ** 2) ** 2) * (1 / 3 / 2000) * pixel**2
    clean = np.fft.irfft2(spectrum, s=(side, side)) / np.sqrt(total)
    sigma = np.sqrt(1 / SNR) / pixel
    halves = [(clean + sigma * rng.standard_normal((side, side))) / np.sqrt(1 / SNR) for _ in range(2)]
    return tuple(x.astype(np.float32) for x in (clean / np.sqrt(1 / SNR), *halves))


def train(steps: int) -> torch.nn.Module:
    """Train a network at `MODEL_PIXEL`."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    net = unet.make_net(unet.NetSettings(channels=(32, 48, 64)))
    average, schedule = copy.deepcopy(net), Schedule(steps)
    cpu = torch.device("cpu")
    stepper = Stepper(net, average, 3.0, 0.01, device.autocast(device.choose_precision("auto", cpu), cpu))
    one = torch.ones(8)
    for step in range(steps):
        if step % 8 == 0:
            pool = [scene(rng, 256, MODEL_PIXEL)[1:] for _ in range(8)]
        y, x = rng.integers(0, 256 - 128, 2)
        a, b = (torch.from_numpy(np.stack([p[i][y : y + 128, x : x + 128] for p in pool]))[:, None] for i in range(2))
        stepper((a, b, one, one), learning_rate(step, schedule), average_decay(step, schedule))
        if step % 100 == 99:
            log.say(f"step {step + 1}: loss {float(stepper.loss):.4f}")
    return average.eval()


def coverage(run: Tiled, scenes: int) -> str:
    """Return which share of the errors the calibrated and the raw map cover, and the calibration's factor."""

    def both(seed: list[int]) -> tuple[torch.Tensor, ...]:
        clean, a, b = (torch.from_numpy(x) for x in scene(np.random.default_rng(seed), 512, MODEL_PIXEL))
        return clean, a, b, run(a), run(b)

    found = calibrate([sums_of(*both([seed, 8])[1:]) for seed in range(scenes)])
    shares: dict[float, list[float]] = {1.0: [], found.factor: []}
    for seed in range(scenes):
        clean, _, _, fa, fb = both([seed, 7])
        error, spread = ((fa + fb) / 2 - clean).abs(), spread_map(fa, fb)
        for factor, values in shares.items():
            values.append(float((error < factor * spread).double().mean()))
    raw, calibrated = (100 * statistics.mean(values) for values in shares.values())
    text = f"the calibrated map covers {calibrated:.1f} % of the errors, the raw one {raw:.1f} %"
    return f"{text}; factor {found.factor:.2f} ({found.low:.2f} to {found.high:.2f})"


def score(found: np.ndarray, clean: np.ndarray) -> float:
    """Return the variance of the scene over the mean squared error, in dB, away from the borders."""
    inner = (slice(32, -32),) * 2
    return 10 * float(np.log10(clean[inner].var() / np.square(found - clean)[inner].mean()))


def main() -> int:
    """Train, measure, write the table and print it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--scenes", type=int, default=6, help="of 512 x 512 pixels for each pixel size")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/denoise-pixel-size/cpu.tsv"))
    args = parser.parse_args()
    log.set_stage("pixel-size")
    where = device.choose("cpu", args.threads)
    run = Tiled(train(args.steps), "float32")
    rows = []
    for pixel in sorted((*PIXELS, MODEL_PIXEL)):
        scores: dict[tuple[str, str], list[float]] = {(w, c): [] for w in WHAT for c in ("never", "always")}
        for seed in range(args.scenes):
            clean, *halves = scene(np.random.default_rng([seed, 7]), 512, pixel)
            for choice in ("never", "always"):
                scaling = choose_scaling(clean.shape, pixel, MODEL_PIXEL, choice)
                fa, fb = (back(run(there(torch.from_numpy(x), scaling)), scaling).numpy() for x in halves)
                scores["half", choice].append(score(fa, clean))
                scores["mean", choice].append(score((fa + fb) / 2, clean))
        values = [pixel]
        for what in WHAT:
            plain, rescaled = scores[what, "never"], scores[what, "always"]
            gains = [b - a for a, b in zip(plain, rescaled, strict=True)]
            values += [*map(statistics.mean, (plain, rescaled, gains)), statistics.stdev(gains) / len(gains) ** 0.5]
        rows.append([f"{value:.2f}" for value in values])
        log.say("  ".join(f"{name} {value}" for name, value in zip(COLUMNS, rows[-1], strict=True)))
    covered = coverage(run, args.scenes)
    log.say(covered)
    head = f"# {args.steps} steps, {args.scenes} scenes, {device.describe(where)}, torch {torch.__version__}, "
    head += f"{time.strftime('%Y-%m-%d', time.gmtime())}"
    lines = [head, "\t".join(COLUMNS), *map("\t".join, rows), f"# {covered}"]
    files.write_text(args.out, "\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
