"""The network and its training step as plain as they can be written: what every fast form is checked against.

Plain eager PyTorch on contiguous tensors, one tensor after another, no module, no optimiser class, no
autocast: only ``conv2d``, means over 2 × 2 pixels, interpolation by its formula, and the optimiser's equations.
Slow on purpose; it runs in whatever precision its weights have (float64 for the checks of `verify`).
"""

import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from cryon2n.step import FAN_IN
from cryon2n.unet import NetSettings

SLOPE = 0.1
BETAS, EPSILON = (0.9, 0.98), 1e-8
Weights = dict[str, torch.Tensor]
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def unfold_space(x: torch.Tensor, stride: int) -> torch.Tensor:
    """Fold ``stride × stride`` pixels into channels, (n, 1, h, w) → (n, stride², h / stride, w / stride)."""
    return torch.stack([x[:, 0, dy::stride, dx::stride] for dy in range(stride) for dx in range(stride)], dim=1)


def fold_space(x: torch.Tensor, stride: int) -> torch.Tensor:
    """Undo `unfold_space`."""
    n, _, h, w = x.shape
    rows = x.reshape(n, stride, stride, h, w)
    return rows.permute(0, 3, 1, 4, 2).reshape(n, 1, h * stride, w * stride)


def halve(x: torch.Tensor) -> torch.Tensor:
    """Return the means of 2 × 2 pixels."""
    return (x[..., 0::2, 0::2] + x[..., 0::2, 1::2] + x[..., 1::2, 0::2] + x[..., 1::2, 1::2]) / 4


def double(x: torch.Tensor) -> torch.Tensor:
    """Interpolate bilinearly to twice the size; new pixels lie at quarters, edges are repeated."""
    for dim in (-2, -1):
        n = x.shape[dim]
        before = torch.cat([x.narrow(dim, 0, 1), x.narrow(dim, 0, n - 1)], dim)
        after = torch.cat([x.narrow(dim, 1, n - 1), x.narrow(dim, n - 1, 1)], dim)
        # The two new pixels of each old one lie side by side.
        pairs = torch.stack([(before + 3 * x) / 4, (3 * x + after) / 4], dim % x.ndim + 1)
        x = pairs.flatten(dim % x.ndim, dim % x.ndim + 1)
    return x


def low_pass(x: torch.Tensor, cell: int) -> torch.Tensor:
    """Return the means over cells of ``cell × cell`` pixels, interpolated bilinearly between the cells' centres."""
    n, _, h, w = x.shape
    means = x.reshape(n, 1, h // cell, cell, w // cell, cell).mean((3, 5))
    for dim, size in ((-2, h), (-1, w)):
        place = (torch.arange(size, device=x.device, dtype=x.dtype) + 0.5) / cell - 0.5
        below = place.floor()
        after = (place - below).reshape((-1, 1) if dim == -2 else (-1,))
        # Beyond the outer centres the outer cells' means are repeated.
        left, right = (means.index_select(dim, (below.long() + k).clamp(0, size // cell - 1)) for k in (0, 1))
        means = left * (1 - after) + right * after
    return means


def convolve(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Convolve with zeros beyond the edges; the size stays."""
    return F.conv2d(x, weight, padding=weight.shape[-1] // 2)


def rectify(x: torch.Tensor) -> torch.Tensor:
    """Leaky rectifier."""
    return torch.where(x > 0, x, SLOPE * x)


def forward(weights: Weights, settings: NetSettings, image: torch.Tensor) -> torch.Tensor:
    """Denoise (n, 1, h, w) as `unet.UNet` with these weights does."""

    def blocks(x: torch.Tensor, name: str) -> torch.Tensor:
        for i in range(settings.blocks):
            y = rectify(convolve(x, weights[f"{name}.{i}.first.weight"]))
            x = x + convolve(y, weights[f"{name}.{i}.second.weight"])
        return x

    levels = len(settings.channels)
    x = rectify(convolve(unfold_space(image, settings.stride), weights["stem.weight"]))
    skips = []
    for level in range(levels):
        if level:
            skips.append(x)
            x = convolve(halve(x), weights[f"widen.{level - 1}.weight"])
        x = blocks(x, f"down.{level}")
    for level in reversed(range(levels - 1)):
        x = double(convolve(x, weights[f"narrow.{level}.weight"]))
        x = blocks(x + skips[level], f"up.{level}")
    out = fold_space(convolve(x, weights["head.weight"]), settings.stride)
    return out + low_pass(image, settings.lowpass) if settings.lowpass else out


def loss_of(weights: Weights, settings: NetSettings, batch: Batch) -> torch.Tensor:
    """Noise2Noise loss, direction by direction and crop by crop; see `step.n2n_loss`."""
    a, b, var_a, var_b = batch
    total = 0.0
    for source, target, var in ((a, b, var_b), (b, a, var_a)):
        output = forward(weights, settings, source)
        for i in range(len(a)):
            weight = ((var_a[i] + var_b[i]) / 2 / var[i]) ** 0.5
            total = total + weight * ((output[i] - target[i]) ** 2).mean()
    return total / (2 * len(a))


@dataclass
class Run:
    """A training run, step by step.

    Attributes
    ----------
    weights, average, first, second : dict of tensor
        Weights, their moving average, and AdamW's two moments.
    settings : NetSettings
    clip, weight_decay : float
    running : float
        Running mean of the gradient's norm; negative before the first step.
    steps : int
        Done so far.
    """

    weights: Weights
    average: Weights
    first: Weights
    second: Weights
    settings: NetSettings
    clip: float
    weight_decay: float
    running: float = -1.0
    steps: int = 0


def begin(weights: Weights, settings: NetSettings, clip: float, weight_decay: float) -> Run:
    """Return a run that starts from `weights`."""
    copies = [{k: v.clone() for k, v in weights.items()} for _ in range(2)]
    moments = [{k: torch.zeros_like(v) for k, v in weights.items()} for _ in range(2)]
    return Run(*copies, *moments, settings, clip, weight_decay)


def gradients(run: Run, batch: Batch) -> tuple[torch.Tensor, Weights]:
    """Return the loss of a batch and its gradients."""
    leaves = {k: v.clone().requires_grad_() for k, v in run.weights.items()}
    loss = loss_of(leaves, run.settings, batch)
    found = torch.autograd.grad(loss, list(leaves.values()))
    return loss.detach(), dict(zip(leaves, found, strict=True))


def step(run: Run, batch: Batch, rate: float, decay: float) -> torch.Tensor:
    """Do one step in place; returns the loss.

    Clipping by the running norm, then AdamW (Loshchilov & Hutter, ICLR 2019, arXiv 1711.05101, algorithm 2) with the
    rate of a layer lowered with its fan-in, then the moving average.
    """
    loss, gradient = gradients(run, batch)
    norm = math.sqrt(sum(float((g.double() ** 2).sum()) for g in gradient.values()))
    if run.running < 0:
        run.running = norm
    limit = run.clip * run.running
    scale = min(1.0, limit / norm)
    run.running += 0.02 * (min(norm, limit) - run.running)
    run.steps += 1
    for name, weight in run.weights.items():
        g = gradient[name] * scale
        own_rate = rate * min(1.0, FAN_IN / weight[0].numel())
        m, v = run.first[name], run.second[name]
        m.mul_(BETAS[0]).add_(g * (1 - BETAS[0]))
        v.mul_(BETAS[1]).add_(g * g * (1 - BETAS[1]))
        m_hat, v_hat = m / (1 - BETAS[0] ** run.steps), v / (1 - BETAS[1] ** run.steps)
        weight.mul_(1 - own_rate * run.weight_decay)
        weight.sub_(own_rate * m_hat / (v_hat.sqrt() + EPSILON))
        run.average[name].mul_(decay).add_(weight * (1 - decay))
    return loss
