"""One training step: Noise2Noise loss, clipping, AdamW, moving average; whole steps as CUDA graphs.

Everything that a step changes lives on the device, and nothing in it waits for the GPU: the host only sets
the rate and the decay and launches.  On a GPU the whole step can be captured once and replayed, so that
hundreds of small kernels cost one launch.
"""

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import nn

from cryon2n.whitening import whiten

# Fan-in (input channels times kernel area) up to which the learning rate is the settings' own.
FAN_IN = 432
WARM_STEPS = 3  # run one by one before a step is captured: compilation, cuDNN's choices, optimiser state


class Schedule(Protocol):
    """What a schedule needs of the settings (`train.TrainSettings`)."""

    steps: int
    rate: float
    warmup: float
    average: float


def learning_rate(step: int, settings: Schedule) -> float:
    """Rate of a step: linear warm-up, then a cosine to zero."""
    warmup = max(1, round(settings.warmup * settings.steps))
    if step < warmup:
        return settings.rate * (step + 1) / warmup
    return settings.rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, settings.steps - warmup)))


def average_decay(step: int, settings: Schedule) -> float:
    """Decay of the weights' moving average: short at first, so that the start is forgotten."""
    window = max(1.0, settings.average * settings.steps)
    return min(1 - 1 / window, (1 + step) / (10 + step))


def n2n_loss(
    forward: Callable[[torch.Tensor], torch.Tensor],
    a: torch.Tensor,
    b: torch.Tensor,
    var_a: torch.Tensor,
    var_b: torch.Tensor,
    whitening: torch.Tensor | None = None,
) -> torch.Tensor:
    """Noise2Noise loss of a batch, both directions in one pass.

    Each squared error is divided by the standard deviation of its target's noise, so that unequal halves
    add equal noise to the gradient: divided by the variance, one frame against 49 would teach next to
    nothing about the 49 (measured: docs/network.md).  The loss of equal halves is the plain mean squared error.

    Parameters
    ----------
    forward : callable
        Network: (n, 1, h, w) → (n, 1, h, w).
    a, b : tensor, shape (n, 1, h, w)
        Crops of the halves, in normalised units, float32 or float64.
    var_a, var_b : tensor, shape (n,)
        Their noise variances.
    whitening : tensor, shape (h, w // 2 + 1), or None
        Weights of the error's Fourier coefficients (`whitening.noise_weights`).
    """
    targets = torch.cat([b, a])
    mean = (var_a + var_b) / 2
    weights = torch.cat([mean / var_b, mean / var_a]).sqrt()
    error = forward(torch.cat([a, b])).to(targets.dtype) - targets
    if whitening is not None:
        error = whiten(error, whitening)
    return (error.square().mean(dim=(1, 2, 3)) * weights).mean()


@torch.no_grad()
def clip_outliers(gradients: list[torch.Tensor], running: torch.Tensor, factor: float) -> torch.Tensor:
    """Scale gradients down in place whose norm exceeds `factor` running means of it; returns their norm.

    An absolute limit is either too loose to stop a blow-up or too tight for another data set: the
    norm falls by orders of magnitude in the first steps.  `running` is updated in place, by the
    clipped norm, so that an outlier does not lift its own limit.  Nothing here waits for the GPU.
    """
    norm = nn.utils.get_total_norm(gradients)
    running.copy_(torch.where(running < 0, norm, running))
    limit = factor * running
    torch._foreach_mul_(gradients, (limit / norm).clamp(max=1.0))
    running.lerp_(torch.minimum(norm, limit), 0.02)
    return norm


def rate_groups(net: nn.Module) -> list[dict[str, Any]]:
    """Group a network's weights by fan-in, each with its ``share`` of the learning rate.

    Adam moves every weight by about the rate, so that the output of a layer moves in proportion to
    its fan-in; above `FAN_IN` the rate falls with it (Yang et al. 2022, arXiv 2203.03466).  Without
    that, wide networks blow up at rates that narrow ones need.
    """
    groups: dict[int, list[nn.Parameter]] = {}
    for parameter in net.parameters():
        groups.setdefault(parameter[0].numel(), []).append(parameter)
    return [{"params": group, "share": min(1.0, FAN_IN / fan_in)} for fan_in, group in sorted(groups.items())]


class Stepper:
    """Runs training steps of a network, and keeps the moving average of its weights.

    Parameters
    ----------
    net, average : nn.Module
        The same network twice, on the device; `average` gets the moving average of the weights.
    clip : float
        Largest norm of the gradient, in running means of that norm.
    weight_decay : float
    autocast : torch.autocast
    compiled : bool
        Compile the loss with torch.compile.
    graph : bool
        Capture the whole step as a CUDA graph after `WARM_STEPS` steps.
    whitening : tensor or None
        As `n2n_loss` takes it.
    """

    def __init__(
        self,
        net: nn.Module,
        average: nn.Module,
        clip: float,
        weight_decay: float,
        autocast: torch.autocast,
        compiled: bool = False,
        graph: bool = False,
        whitening: torch.Tensor | None = None,
    ):
        self.net, self.average, self.clip, self.autocast = net, average, clip, autocast
        self.whitening = whitening
        self.parameters = list(net.parameters())
        self.averages = list(average.parameters())
        where, dtype = self.parameters[0].device, self.parameters[0].dtype
        # The GPU's fused kernel reads a float32 rate, whatever the weights are.
        rate = torch.zeros((), dtype=torch.float32 if where.type == "cuda" else dtype, device=where)
        self.optimiser = torch.optim.AdamW(
            [{**group, "lr": rate.clone()} for group in rate_groups(net)],
            betas=(0.9, 0.98),
            weight_decay=weight_decay,
            fused=True,
            capturable=where.type == "cuda",
        )
        # Running mean of the gradient's norm; negative before the first step.
        self.running = torch.full((), -1.0, dtype=dtype, device=where)
        self.norm, self.loss, self.keep, self.take = torch.zeros(4, dtype=dtype, device=where)
        self.loss_of = torch.compile(self._loss) if compiled else self._loss
        self.wants_graph = graph and where.type == "cuda"
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: tuple[torch.Tensor, ...] | None = None
        self.done = 0

    def _loss(self, *batch: torch.Tensor) -> torch.Tensor:
        # float16 travels; the loss is computed in the precision of the weights.
        a, b, var_a, var_b = batch
        dtype = self.parameters[0].dtype
        with self.autocast:
            return n2n_loss(self.net, a.to(dtype), b.to(dtype), var_a, var_b, self.whitening)

    def _run(self, batch: tuple[torch.Tensor, ...]) -> None:
        self.optimiser.zero_grad(set_to_none=True)
        loss = self.loss_of(*batch)
        loss.backward()
        self.loss.copy_(loss.detach())
        self.norm.copy_(clip_outliers([p.grad for p in self.parameters], self.running, self.clip))
        self.optimiser.step()
        with torch.no_grad():
            torch._foreach_mul_(self.averages, self.keep)
            torch._foreach_add_(self.averages, torch._foreach_mul(self.parameters, self.take))

    def __call__(self, batch: tuple[torch.Tensor, ...], rate: float, decay: float) -> None:
        """Do one step; ``loss`` and ``norm`` hold what came out, on the device.

        Parameters
        ----------
        batch : (a, b, var_a, var_b)
            As `n2n_loss` takes them; crops may be float16.
        rate, decay : float
            Learning rate, and decay of the moving average.
        """
        for group in self.optimiser.param_groups:
            group["lr"].fill_(rate * group["share"])
        self.keep.fill_(decay)
        self.take.fill_(1 - decay)
        if self.wants_graph:
            self._fill(batch)
            if self.graph is not None:
                self.graph.replay()
            elif self.done < WARM_STEPS:
                self._on_side_stream()
            else:
                self._capture()
        else:
            self._run(batch)
        self.done += 1

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must hold beside the weights and their average."""
        return {"optimiser": self.optimiser.state_dict(), "running": self.running}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`, of any device."""
        own = [{name: group[name] for name in ("lr", "capturable")} for group in self.optimiser.param_groups]
        self.optimiser.load_state_dict(state["optimiser"])
        for group, values in zip(self.optimiser.param_groups, own, strict=True):
            group.update(values)
        self.running.copy_(state["running"])

    def _fill(self, batch: tuple[torch.Tensor, ...]) -> None:
        """Copy a batch to where the graph looks for it."""
        if self.inputs is None:
            # Dense, whatever the batch is a view of; and the same for the steps before the capture, or the
            # compiler would be called again in its midst.
            self.inputs = tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in batch)
        for own, new in zip(self.inputs, batch, strict=True):
            own.copy_(new, non_blocking=True)

    def _on_side_stream(self) -> None:
        """Run a step as a capture wants its predecessors: not on the default stream."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._run(self.inputs)
        torch.cuda.current_stream().wait_stream(side)

    def _capture(self) -> None:
        self.optimiser.zero_grad(set_to_none=True)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self._run(self.inputs)
        self.graph.replay()  # capturing has computed nothing
