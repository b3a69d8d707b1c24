"""Train a denoiser on patch shards by Noise2Noise: each half is the other's target.

Loss: squared error, both directions in every step, each weighted by the inverse noise variance of
its target (1 for equal halves), so that unequal halves count for what they know (Lehtinen et al.,
ICML 2018).  AdamW, warm-up, cosine, clipping of outlying gradients, moving average of the weights.

A run that is killed goes on from ``checkpoints/last.ckpt`` beside the weights and ends with the
same weights as one that was not: crops depend on the step alone, and the checkpoint holds weights,
optimiser and average.  It also holds a fingerprint of settings, data and code; one of another
run is not used, and the reason is said.
"""

import argparse
import hashlib
import json
import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cryon2n import __version__, codeversion, device, excluded, files, loaders, log, pair, shards
from cryon2n.denoise import denoise_image
from cryon2n.errors import InputError
from cryon2n.settings import add_settings_arguments, build, settings_from_arguments
from cryon2n.step import Stepper, average_decay, learning_rate
from cryon2n.unet import NetSettings, UNet, save_weights

CODE = ("train.py", "step.py", "unet.py", "loaders.py")  # what makes the weights
LOG_COLUMNS = ("step", "loss", "worst_loss", "rate", "gradient", "val_delta_umse", "seconds")


@dataclass(frozen=True)
class TrainSettings:
    """Settings of the training.

    Attributes
    ----------
    steps : int
        Optimiser steps.
    batch : int
        Crops per step; each is used in both directions.
    crop : int
        Pixels; side of a crop.
    rate : float
        Peak learning rate.
    warmup : float
        Share of the steps over which the rate rises from 0.
    weight_decay : float
    clip : float
        Largest norm of the gradient, in running means of that norm.
    average : float
        Share of the steps over which the weights are averaged (exponentially).
    seed : int
    precision : str
        ``auto``, ``float32`` or ``bfloat16`` (autocast).
    compile : str
        ``auto`` (on a GPU), ``on`` or ``off``: torch.compile.
    loader : str
        ``auto``, ``gpu``, ``ram`` or ``stream``.
    validate_every, checkpoint_every : int
        Steps.
    net : dict
        Shape of the network (`unet.NetSettings`).
    """

    steps: int = 4000
    batch: int = 8
    crop: int = 512
    rate: float = 1e-3
    warmup: float = 0.05
    weight_decay: float = 0.01
    clip: float = 3.0
    average: float = 0.02
    seed: int = 0
    precision: str = "auto"
    compile: str = "auto"
    loader: str = "auto"
    validate_every: int = 500
    checkpoint_every: int = 250
    net: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "crop", "validate_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise InputError(f"train setting {name}: found {getattr(self, name)}, wanted 1 or more")
        if self.seed < 0:
            raise InputError(f"train setting seed: found {self.seed}, wanted 0 or more")
        for name in ("rate", "clip"):
            if getattr(self, name) <= 0:
                raise InputError(f"train setting {name}: found {getattr(self, name)}, wanted more than 0")
        for name in ("warmup", "average"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"train setting {name}: found {getattr(self, name)}, wanted a share from 0 to below 1")
        for name, known in {
            "precision": ("auto", "float32", "bfloat16"),
            "compile": ("auto", "on", "off"),
            "loader": loaders.LOADERS,
        }.items():
            if getattr(self, name) not in known:
                raise InputError(f"train setting {name}: found {getattr(self, name)!r}, wanted {' or '.join(known)}")


@torch.no_grad()
def delta_umse(net: UNet, pairs: list[pair.Pair], precision: str) -> float:
    """Difference in mean squared error to the truth between the network and the raw half.

    ``mean((f(o) - e)²) - mean((o - e)²)``, over both directions and all micrographs: the noise of e
    cancels, so it needs no estimate of it.  Negative is better than raw; only differences between
    networks mean something.
    """
    deltas = []
    for p in pairs:
        for x, y in ((p.a, p.b), (p.b, p.a)):
            f = denoise_image(net, x, precision=precision)[p.valid]
            x, y = x[p.valid], y[p.valid]
            deltas.append(float(((f - y) ** 2 - (x - y) ** 2).mean(dtype=np.float64)))
    return float(np.mean(deltas))


def fingerprint(settings: TrainSettings, manifest: dict[str, Any]) -> str:
    """Hash of everything that makes the weights: settings, data, code and torch's version."""
    # How often to look and where the data lies do not change the weights.
    values = {k: v for k, v in asdict(settings).items() if k not in ("validate_every", "checkpoint_every", "loader")}
    data = [manifest["arrays"][side]["sha256"] for side in "ab"]
    code = codeversion.code_version(*CODE)
    text = json.dumps([values, data, code, torch.__version__], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class State:
    """Everything that a training run changes: network, optimiser, average, step, log."""

    def __init__(self, settings: TrainSettings, where: torch.device, precision: str):
        torch.manual_seed(settings.seed)
        net_settings = build(NetSettings, settings.net, "train: net")
        self.net = UNet(net_settings).to(where, memory_format=torch.channels_last)
        self.average = UNet(net_settings).to(where, memory_format=torch.channels_last)
        self.average.load_state_dict(self.net.state_dict())
        self.average.requires_grad_(False).eval()
        self.compiled = settings.compile == "on" or (settings.compile == "auto" and where.type == "cuda")
        self.stepper = Stepper(
            self.net,
            self.average,
            settings.clip,
            settings.weight_decay,
            device.autocast(precision, where),
            compiled=self.compiled,
            graph=self.compiled,
        )
        self.step = 0
        self.seconds = 0.0
        self.rows: list[dict[str, Any]] = []

    def save(self, path: Path, mark: str) -> None:
        """Write the checkpoint atomically."""
        with files.atomic_path(path) as temporary:
            torch.save(
                {
                    "fingerprint": mark,
                    "step": self.step,
                    "seconds": self.seconds,
                    "rows": self.rows,
                    "net": self.net.state_dict(),
                    "average": self.average.state_dict(),
                    "stepper": self.stepper.state_dict(),
                },
                temporary,
            )

    def load(self, path: Path, mark: str) -> None:
        """Go on from a checkpoint, if there is one of this very run."""
        if not path.exists():
            return
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch names no common type for damaged archives
            log.say(f"{path}: cannot read the checkpoint ({type(error).__name__}); starting from step 0")
            return
        if saved["fingerprint"] != mark:
            log.say(f"{path}: made with other settings, data or code; not used, starting from step 0")
            return
        self.net.load_state_dict(saved["net"])
        self.average.load_state_dict(saved["average"])
        self.stepper.load_state_dict(saved["stepper"])
        self.step, self.seconds, self.rows = saved["step"], saved["seconds"], saved["rows"]
        log.say(f"resumed at step {self.step} from {path}")


def train(
    manifest_path: Path,
    val_records: list[Path],
    settings: TrainSettings,
    where: torch.device,
    checkpoint: Path,
) -> tuple[UNet, dict[str, Any], list[dict[str, Any]]]:
    """Train a network; goes on from `checkpoint` where there is one of the same run.

    Returns
    -------
    net : UNet
        With the averaged weights.
    metrics : dict
    rows : list of dict
        The log, with the columns `LOG_COLUMNS`.
    """
    manifest = shards.read_manifest(manifest_path)
    pairs = [pair.load_pair(path) for path in val_records]
    leaked = sorted({p.name for p in pairs} & set(manifest["split"]["train"]))
    if leaked:
        raise InputError(f"{', '.join(leaked)}: validation micrographs that are in the training shards; wanted others")
    precision = device.choose_precision(settings.precision, where)
    n_bytes = 2 * 2 * math.prod(manifest["shape"])
    kind, why = loaders.choose_loader(settings.loader, n_bytes, where)
    loader = loaders.Loader(manifest_path, kind, settings.crop, settings.batch, settings.seed, where)
    mark = fingerprint(settings, manifest)
    state = State(settings, where, precision)
    if settings.crop % state.net.grid:
        raise InputError(f"train setting crop: found {settings.crop}, wanted a multiple of {state.net.grid} px")
    log.say(f"{device.describe(where)}, {precision}; loader {kind}: {why}")
    state.load(checkpoint, mark)

    progress = log.Progress(settings.steps, "steps", start=state.step)
    began = time.monotonic() - state.seconds
    first, losses = state.step, []
    last_delta = state.rows[-1]["val_delta_umse"] if state.rows else None
    for batch in loader.batches(first, settings.steps):
        rate = learning_rate(state.step, settings)
        crops = (batch.a, batch.b, batch.var_a, batch.var_b)
        state.stepper(crops, rate, average_decay(state.step, settings))
        losses.append(state.stepper.loss.clone())
        state.step += 1
        state.seconds = time.monotonic() - began

        if state.step % settings.validate_every == 0 or state.step == settings.steps:
            stacked = torch.stack(losses)
            mean_loss, worst = float(stacked.mean()), float(stacked.max())  # waits for the GPU: so not in every step
            if not math.isfinite(mean_loss):
                raise InputError(
                    f"{manifest_path}: the loss is {mean_loss} at step {state.step}; lower train: rate "
                    "or take precision float32"
                )
            last_delta = delta_umse(state.average, pairs, precision) if pairs else None
            values = (
                state.step,
                mean_loss,
                worst,
                rate,
                float(state.stepper.norm),
                last_delta,
                round(state.seconds, 2),
            )
            state.rows.append(dict(zip(LOG_COLUMNS, values, strict=True)))
            losses = []
        if state.step % settings.checkpoint_every == 0 and state.step < settings.steps:
            state.save(checkpoint, mark)
        note = f"loss {state.rows[-1]['loss']:.5f}" if state.rows else ""
        progress.update(state.step, note + (f", ΔuMSE {last_delta:.5f}" if last_delta is not None else ""))

    pixels = settings.steps * settings.batch * settings.crop**2
    metrics = {
        "steps": state.step,
        "final_loss": state.rows[-1]["loss"],
        "val_delta_umse": last_delta,
        "seconds": round(state.seconds, 2),
        "megapixels_per_second": round(pixels / 1e6 / max(state.seconds, 1e-9), 3),
        "parameters": sum(p.numel() for p in state.net.parameters()),
        "device": device.describe(where),
        "precision": precision,
        "compiled": state.compiled,
        "loader": kind,
        "loader_reason": why,
        "torch": torch.__version__,
        "fingerprint": mark,
        "code": codeversion.code_version(*CODE),
        "settings": asdict(settings),
        **device.usage(where),
    }
    return state.average, metrics, state.rows


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--manifest", type=Path, required=True, help="manifest.json of the shards")
    parser.add_argument("--val", type=Path, nargs="*", default=[], help="records of the validation halves")
    excluded.add_excluded_argument(parser)
    parser.add_argument("--weights", type=Path, required=True, help="output: weights (safetensors)")
    parser.add_argument("--metrics", type=Path, required=True, help="output: metrics and settings (JSON)")
    parser.add_argument("--history", type=Path, required=True, help="output: losses by step (CSV)")
    device.add_arguments(parser)
    add_settings_arguments(parser)


def _run(args: argparse.Namespace) -> None:
    settings = settings_from_arguments(TrainSettings, args)
    where = device.choose(args.device, args.threads)
    checkpoint = args.weights.parent / "checkpoints" / "last.ckpt"
    manifest = shards.read_manifest(args.manifest)
    val = excluded.kept(args.val, args.excluded, "validation")
    net, metrics, rows = train(args.manifest, val, settings, where, checkpoint)
    lines = [",".join(LOG_COLUMNS)] + [",".join(_cell(row[c]) for c in LOG_COLUMNS) for row in rows]
    files.write_text(args.history, "\n".join(lines) + "\n")
    files.write_json(args.metrics, metrics)
    card = {
        "program": f"cryon2n {__version__}",
        "code": metrics["code"],
        "pixel_size_A": str(manifest["pixel_size_A"]),
        "trained_on": json.dumps(manifest["split"]["train"]),
        "val_delta_umse": str(metrics["val_delta_umse"]),
        "fingerprint": metrics["fingerprint"],
    }
    save_weights(args.weights, net, card)
    checkpoint.unlink(missing_ok=True)
    log.say(
        f"{metrics['steps']} steps in {log.duration(metrics['seconds'])}, "
        f"{metrics['megapixels_per_second']:.1f} Mpx/s, ΔuMSE {metrics['val_delta_umse']}"
    )


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.8g}"


COMMANDS = {"train-unet": (_add_arguments, _run)}
