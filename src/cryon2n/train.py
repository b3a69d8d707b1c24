"""Train a denoiser on patch shards by Noise2Noise: each half is the other's target.

Loss: squared error (Lehtinen et al., ICML 2018), both directions in every step, each divided by the
standard deviation of its target's noise (1 for equal halves), so that both are learned where halves are
unequal.  AdamW, warm-up, cosine, clipping of outlying gradients, moving average of the weights.

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
from torch import nn

from cryon2n import __version__, codeversion, device, excluded, files, finetune, loaders, log, pair, shards
from cryon2n.errors import InputError
from cryon2n.settings import add_settings_arguments, build, settings_from_arguments
from cryon2n.step import Stepper, average_decay, learning_rate
from cryon2n.train_log import TrainLog, csv
from cryon2n.unet import NetSettings, load_weights, make_net, save_weights
from cryon2n.validation import over_denoises, validate
from cryon2n.whitening import noise_weights

# What makes the weights: which crops, but not where the patches lie.
CODE = ("train.py", "step.py", "unet.py", "whitening.py", "crops.py", "loader_base.py")


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
    visit : int
        Steps that a patch serves each time it is read; 0 for 4 (patch / crop)², 16 at most.
    loader : str
        ``auto``, ``gpu``, ``ram`` or ``stream``.
    ram_GB : float
        Most memory that resident patches may take with loader ``auto``; 0 for 60 % of what is free.
    validate_every, checkpoint_every : int
        Steps.
    net : dict
        Shape of the network (`unet.NetSettings`).
    init : str or None
        Weights to begin with (safetensors); their network's shape counts then.
    tune : str
        What of `init` is trained: ``all``, or ``gains``, one per channel of each layer (`finetune`).
    whiten : bool
        Weigh the error of each frequency by the noise there (`whitening`).
    """

    steps: int = 4000
    batch: int = 8
    crop: int = 512
    rate: float = 2e-3
    warmup: float = 0.05
    weight_decay: float = 0.01
    clip: float = 3.0
    average: float = 0.02
    seed: int = 0
    precision: str = "auto"
    compile: str = "auto"
    visit: int = 0
    loader: str = "auto"
    ram_GB: float = 0.0
    validate_every: int = 500
    checkpoint_every: int = 250
    net: dict[str, Any] = field(default_factory=dict)
    init: str | None = None
    tune: str = "all"
    whiten: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "crop", "validate_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise InputError(f"train setting {name}: found {getattr(self, name)}, wanted 1 or more")
        for name in ("seed", "visit", "ram_GB"):
            if getattr(self, name) < 0:
                raise InputError(f"train setting {name}: found {getattr(self, name)}, wanted 0 or more")
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
            "tune": ("all", "gains"),
        }.items():
            if getattr(self, name) not in known:
                raise InputError(f"train setting {name}: found {getattr(self, name)!r}, wanted {' or '.join(known)}")
        if self.tune == "gains" and self.init is None:
            raise InputError("train setting tune: gains are those of given weights; name them in init")
        if self.init is not None and self.net:
            raise InputError(f"train setting net: the shape is that of {self.init} (init); leave net out")


def fingerprint(settings: TrainSettings, manifest: dict[str, Any]) -> str:
    """Hash of everything that makes the weights: settings, data, code and torch's version."""
    # How often to look and where the data lies do not change the weights.
    without = ("validate_every", "checkpoint_every", "loader", "ram_GB")
    values = {k: v for k, v in asdict(settings).items() if k not in without}
    if settings.init is not None:
        values["init"] = files.sha256_of(Path(settings.init))
    data = [manifest["arrays"][side]["sha256"] for side in "ab"]
    code = codeversion.code_version(*CODE)
    text = json.dumps([values, data, code, torch.__version__], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def sample_crops(path: Path, manifest: dict[str, Any], crop: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return crops (n, crop, crop) of both halves, one from the corner of each of 256 patches at most."""
    chosen = slice(None, None, max(1, manifest["shape"][0] // 256))
    arrays = (shards.open_array(path, manifest, side)[chosen, :crop, :crop] for side in "ab")
    return tuple(torch.from_numpy(np.array(array)) for array in arrays)


def first_network(settings: TrainSettings) -> nn.Module:
    """Return the network that a training begins with."""
    if settings.init is None:
        return make_net(build(NetSettings, settings.net, "train: net"))
    net, _ = load_weights(settings.init)
    return finetune.with_gains(net) if settings.tune == "gains" else net.train()


class State:
    """Everything that a training run changes: network, optimiser, average, step, log."""

    def __init__(
        self,
        settings: TrainSettings,
        where: torch.device,
        precision: str,
        folder: Path,
        whitening: torch.Tensor | None = None,
    ):
        torch.manual_seed(settings.seed)
        self.net, self.average = (first_network(settings).to(where, memory_format=torch.channels_last) for _ in "na")
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
            whitening=whitening,
        )
        self.step = 0
        self.seconds = 0.0
        self.log = TrainLog(where, folder)

    def result(self) -> nn.Module:
        """Return the averaged network, with gains folded into its weights."""
        if not any(isinstance(m, finetune.GainConv) for m in self.average.modules()):
            return self.average
        plain = make_net(self.average.settings).to(next(self.average.parameters()).device)
        plain.load_state_dict(finetune.folded(self.average))
        return plain.eval()

    def save(self, path: Path, mark: str) -> None:
        """Write the checkpoint atomically."""
        with files.atomic_path(path) as temporary:
            torch.save(
                {
                    "fingerprint": mark,
                    "step": self.step,
                    "seconds": self.seconds,
                    "rows": self.log.rows,
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
        self.step, self.seconds, self.log.rows = saved["step"], saved["seconds"], saved["rows"]
        log.say(f"resumed at step {self.step} from {path}")


def train(
    manifest_path: Path,
    val_records: list[Path],
    settings: TrainSettings,
    where: torch.device,
    checkpoint: Path,
) -> tuple[nn.Module, dict[str, Any], list[dict[str, Any]]]:
    """Train a network; goes on from `checkpoint` where there is one of the same run.

    Returns
    -------
    net : nn.Module
        With the averaged weights.
    metrics : dict
    rows : list of dict
        The log, with the columns `train_log.COLUMNS`.
    """
    manifest = shards.read_manifest(manifest_path)
    pairs = [pair.load_pair(path) for path in val_records]
    leaked = sorted({p.name for p in pairs} & set(manifest["split"]["train"]))
    if leaked:
        raise InputError(f"{', '.join(leaked)}: validation micrographs that are in the training shards; wanted others")
    precision = device.choose_precision(settings.precision, where)
    device.repeatable()
    n_bytes = loaders.patch_bytes(*manifest["shape"][:2])
    kind, why = loaders.choose_loader(settings.loader, n_bytes, where, settings.ram_GB)
    loader = loaders.open_loader(
        manifest_path, kind, settings.crop, settings.batch, settings.seed, where, settings.visit
    )
    weights = noise_weights(*sample_crops(manifest_path, manifest, settings.crop)) if settings.whiten else None
    state = State(
        settings,
        where,
        precision,
        checkpoint.parent.parent / "tensorboard",
        None if weights is None else weights.to(where),
    )
    mark = fingerprint(settings, manifest)
    if settings.crop % state.net.grid:
        raise InputError(f"train setting crop: found {settings.crop}, wanted a multiple of {state.net.grid} px")
    log.say(f"{device.describe(where)}, {precision}; loader {kind}: {why}")
    state.load(checkpoint, mark)

    progress = log.Progress(settings.steps, "steps", start=state.step)
    began = time.monotonic() - state.seconds
    first, losses = state.step, []
    for batch in loader.batches(first, settings.steps):
        rate = learning_rate(state.step, settings)
        state.stepper(batch.tensors(), rate, average_decay(state.step, settings))
        losses.append(state.stepper.loss.clone())
        state.step += 1
        state.seconds = time.monotonic() - began

        if state.step % settings.validate_every == 0 or state.step == settings.steps:
            loader.waits.skip()
            held_out = validate(state.average, pairs, precision) if pairs else None
            gradient = float(state.stepper.norm)
            state.log.add(state.step, torch.stack(losses), rate, gradient, held_out, state.seconds)
            if not math.isfinite(state.log.last["loss"]):
                raise InputError(
                    f"{manifest_path}: the loss is {state.log.last['loss']} at step {state.step}; lower train: rate "
                    "or take precision float32"
                )
            if held_out is not None and over_denoises(state.log.validations()):
                log.say(
                    f"warning: step {state.step}: the systematic error on held-out micrographs rises "
                    f"(variance {held_out.bias_variance:.2e}) and ΔuMSE no longer falls: it begins to denoise "
                    "too much; take fewer steps or more micrographs"
                )
            losses = []
        if state.step % settings.checkpoint_every == 0 and state.step < settings.steps:
            loader.waits.skip()
            state.save(checkpoint, mark)
        progress.update(state.step, state.log.note())

    pixels = settings.steps * settings.batch * settings.crop**2
    metrics = {
        "steps": state.step,
        "final_loss": state.log.last["loss"],
        "val_delta_umse": state.log.last["val_delta_umse"],
        "val_bias_variance": state.log.last["val_bias_variance"],
        "over_denoises": over_denoises(state.log.validations()),
        "seconds": round(state.seconds, 2),
        "megapixels_per_second": round(pixels / 1e6 / max(state.seconds, 1e-9), 3),
        "parameters": sum(p.numel() for p in state.net.parameters()),
        "device": device.describe(where),
        "precision": precision,
        "compiled": state.compiled,
        "loader": kind,
        "loader_reason": why,
        "data_wait_share": loader.waits.share(),
        "loader_memory_GB": round(loader.buffer_bytes / 1e9, 3),
        "loader_device_GB": round(loader.device_bytes / 1e9, 3),
        "torch": torch.__version__,
        "fingerprint": mark,
        "code": codeversion.code_version(*CODE),
        "settings": asdict(settings),
        **device.usage(where),
    }
    return state.result(), metrics, state.log.rows


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
    files.write_text(args.history, csv(rows))
    files.write_json(args.metrics, metrics)
    card = {
        "program": f"cryon2n {__version__}",
        "code": metrics["code"],
        "pixel_size_A": str(manifest["pixel_size_A"]),
        "trained_on": json.dumps(manifest["split"]["train"]),
        "halves": json.dumps(manifest["groups"]),
        "val_delta_umse": str(metrics["val_delta_umse"]),
        "fingerprint": metrics["fingerprint"],
    }
    save_weights(args.weights, net, card)
    checkpoint.unlink(missing_ok=True)
    log.say(
        f"{metrics['steps']} steps in {log.duration(metrics['seconds'])}, "
        f"{metrics['megapixels_per_second']:.1f} Mpx/s, ΔuMSE {metrics['val_delta_umse']}"
    )


COMMANDS = {"train-unet": (_add_arguments, _run)}
