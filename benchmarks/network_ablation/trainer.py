"""Our training step on micrographs that lie on the device, and the quality of a network on held-out ones."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from cryon2n import device
from cryon2n.crops import CropPlan, crop_table, cut, gather, plan_crops
from cryon2n.step import Stepper, average_decay, learning_rate
from cryon2n.train import TrainSettings
from network_ablation.data import Micrographs


@dataclass(frozen=True)
class Schedule:
    """What `cryon2n.step` needs of a training's settings."""

    steps: int
    rate: float = TrainSettings.rate
    warmup: float = TrainSettings.warmup
    average: float = TrainSettings.average


class Trainer:
    """One network with its data, on the device.

    Parameters
    ----------
    make : callable
        Returns the untrained network.
    train : Micrographs
    batch, crop : int
        Crops per step, and their side in pixels.
    precision : str
    where : torch.device
    """

    def __init__(
        self,
        make: Callable[[], nn.Module],
        train: Micrographs,
        batch: int,
        crop: int,
        precision: str,
        where: torch.device,
    ):
        self.make, self.train, self.count, self.crop, self.where = make, train, batch, crop, where
        self.autocast = device.autocast(precision, where)
        self.net, self.average = (make().to(where, memory_format=torch.channels_last) for _ in range(2))
        self.average.requires_grad_(False)
        self.stepper = self.new_stepper()
        self.ones = torch.ones(batch, device=where)

    def new_stepper(self) -> Stepper:
        """Return a stepper for the network as it is."""
        cuda = self.where.type == "cuda"
        return Stepper(self.net, self.average, 3.0, 0.01, self.autocast, compiled=cuda, graph=cuda)

    def batch(self, seed: int, step: int) -> tuple[torch.Tensor, ...]:
        """Return the crops of a step."""
        n, size, _ = self.train.a.shape
        plan = plan_crops(seed, step, n, size, self.crop, self.count)
        return *crops_of(self.train, plan, self.crop), self.ones, self.ones

    def start(self, seed: int) -> None:
        """Begin anew; what was compiled stays."""
        torch.manual_seed(seed)
        fresh = self.make().state_dict()
        self.net.load_state_dict(fresh)
        self.average.load_state_dict(fresh)
        compiled = self.stepper.loss_of
        self.stepper = self.new_stepper()
        self.stepper.loss_of = compiled

    def milliseconds(self, repeats: int = 30) -> float:
        """Measure a step, the gathering of its crops included; the median of three runs."""
        for step in range(6):
            self.stepper(self.batch(0, step), 0.0, 0.9)
        times = []
        for _ in range(3):
            synchronise(self.where)
            began = time.perf_counter()
            for step in range(repeats):
                self.stepper(self.batch(0, step), 0.0, 0.9)
            synchronise(self.where)
            times.append((time.perf_counter() - began) / repeats * 1e3)
        return float(np.median(times))

    def run(self, seed: int, schedule: Schedule) -> float:
        """Train; returns the worst loss of any step."""
        self.start(seed)
        worst = torch.zeros((), device=self.where)
        for step in range(schedule.steps):
            rate, decay = learning_rate(step, schedule), average_decay(step, schedule)
            self.stepper(self.batch(seed, step), rate, decay)
            worst = torch.maximum(worst, self.stepper.loss)
        return float(worst)

    def quality(self, test: Micrographs) -> tuple[float, float]:
        """Return `quality` of the averaged network."""
        return quality(self.average, self.autocast, test)


def crops_of(train: Micrographs, plan: CropPlan, crop: int) -> list[torch.Tensor]:
    """Return the crops of a and of b that a plan names, shape (batch, 1, crop, crop), on the micrographs' device."""
    sides = (train.a, train.b)
    if train.a.device.type == "cpu":
        return cut(sides, plan, plan.patch, crop)
    table = torch.from_numpy(crop_table(plan, plan.patch, train.a.shape[-1], crop)).pin_memory()
    return gather(sides, table.to(train.a.device, non_blocking=True), crop)


@torch.no_grad()
def denoise(net: nn.Module, autocast: torch.autocast, image: torch.Tensor) -> torch.Tensor:
    """Denoise one image (h, w) at once."""
    h, w = image.shape
    padded = nn.functional.pad(image.float()[None, None], (0, -w % net.grid, 0, -h % net.grid), mode="reflect")
    with autocast:
        return net(padded.contiguous(memory_format=torch.channels_last))[0, 0, :h, :w].float()


def quality(net: nn.Module, autocast: torch.autocast, test: Micrographs) -> tuple[float, float]:
    """Return signal-to-error in dB of the mean of both halves' images, and ΔuMSE; means over micrographs."""
    decibels, deltas = [], []
    for a, b, truth in zip(test.a, test.b, test.truth, strict=True):
        found = [denoise(net, autocast, x) for x in (a, b)]
        error = (found[0] + found[1]) / 2 - truth
        decibels.append(10 * torch.log10(truth.var() / error.square().mean()).item())
        for f, own, other in ((found[0], a, b), (found[1], b, a)):
            own, other = own.float(), other.float()
            deltas.append(((f - other).square() - (own - other).square()).mean().item())
    return float(np.mean(decibels)), float(np.mean(deltas))


def synchronise(where: torch.device) -> None:
    """Wait for the device."""
    if where.type == "cuda":
        torch.cuda.synchronize()
