"""The denoising network: a bias-free U-Net behind a space-to-depth stem.

Folding ``r × r`` pixels into channels lets the network work on an r times coarser grid, where wide
layers are cheap and a few of them see far.  Without additive constants ``f(s x) = s f(x)``: grey
levels never drift, and the network carries over to other noise levels (Mohan et al., ICLR 2020,
arXiv 1906.05478).  Down-sampling is by averaging and up-sampling bilinear, both free of aliasing
and of checkerboards.  What it gives is added to the image's mean over cells of 16 pixels, interpolated: slow grey
levels need not pass through the layers (measured: docs/network.md).
"""

import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from cryon2n import files
from cryon2n.errors import InputError
from cryon2n.settings import build
from cryon2n.topaz_shape import TopazShape


@dataclass(frozen=True)
class NetSettings:
    """Shape of the network.

    Attributes
    ----------
    stride : int
        Pixels folded into channels along each axis (space to depth).
    channels : tuple of int
        Channels of each level, fine to coarse; each level halves the grid.
    blocks : int
        Residual blocks per level, on the way down and on the way up.
    lowpass : int
        Pixels; the output is added to the image's mean over cells of this size.  0: it is not.
    kind : str
        ``folded`` (`UNet`) or ``topaz`` (`topaz_shape.TopazShape`, for comparisons; it has one shape only).
    """

    stride: int = 4
    channels: tuple[int, ...] = (64, 96, 128)
    blocks: int = 1
    lowpass: int = 16
    kind: str = "folded"

    def __post_init__(self) -> None:
        if self.kind not in ("folded", "topaz"):
            raise InputError(f"network setting kind: found {self.kind!r}, wanted folded or topaz")
        own = (self.stride, tuple(self.channels), self.blocks, self.lowpass)
        if self.kind == "topaz" and own != tuple(f.default for f in fields(self)[:-1]):
            raise InputError(
                "network setting kind: topaz has one shape; leave stride, channels, blocks and lowpass out"
            )
        if self.stride < 1 or self.blocks < 1 or not self.channels or min(self.channels) < 1 or self.lowpass < 0:
            raise InputError(
                f"network settings: found stride {self.stride}, channels {self.channels}, blocks {self.blocks}, "
                f"lowpass {self.lowpass}; wanted whole numbers of 1 or more (lowpass: or 0)"
            )


class Block(nn.Module):
    """Residual block ``x + conv(act(conv(x)))``; its second convolution starts at zero, so it starts as identity."""

    def __init__(self, channels: int):
        super().__init__()
        self.first = _conv(channels, channels)
        self.second = _conv(channels, channels, zero=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (n, c, h, w) to the same shape."""
        return x + self.second(F.leaky_relu(self.first(x), 0.1))


class UNet(nn.Module):
    """Denoiser (n, 1, h, w) → (n, 1, h, w); h and w must be multiples of `grid`.

    The untrained network returns the low-pass alone (zero without one): the last convolution starts at
    zero, which together with identity blocks keeps the first steps of training tame.

    Parameters
    ----------
    settings : NetSettings
    """

    def __init__(self, settings: NetSettings):
        super().__init__()
        self.settings = settings
        c, folded = settings.channels, settings.stride**2
        self.stem = _conv(folded, c[0])
        self.down = nn.ModuleList(_blocks(width, settings.blocks) for width in c)
        self.widen = nn.ModuleList(_conv(c[i], c[i + 1], 1) for i in range(len(c) - 1))
        self.narrow = nn.ModuleList(_conv(c[i + 1], c[i], 1) for i in range(len(c) - 1))
        self.up = nn.ModuleList(_blocks(width, settings.blocks) for width in c[:-1])
        self.head = _conv(c[0], folded, zero=True)

    @property
    def grid(self) -> int:
        """Pixels of which the sides of an input must be a multiple."""
        return math.lcm(self.settings.stride * 2 ** (len(self.settings.channels) - 1), max(self.settings.lowpass, 1))

    @property
    def reach(self) -> int:
        """Pixels; an output pixel never depends on input further away than this (a bound, rounded up)."""
        s, levels = self.settings, len(self.settings.channels)
        cells = 2.0  # stem and head, one cell of the finest grid each
        for level in range(levels):
            # Blocks on the way down and (but for the coarsest) up, two 3 x 3 convolutions each; below
            # them averaging (the rest of the coarse cell) and bilinear interpolation (one coarse cell).
            passes = 1 if level == levels - 1 else 2
            cells += 2.0**level * (2 * s.blocks * passes + (2 if level else 0))
        # The low-pass: an interpolated cell sees its neighbour, all of it.
        return max(int(cells * s.stride) + s.stride, 2 * s.lowpass)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Denoise (n, 1, h, w)."""
        x = F.leaky_relu(self.stem(F.pixel_unshuffle(image, self.settings.stride)), 0.1)
        skips = []
        for level, blocks in enumerate(self.down):
            if level:
                skips.append(x)
                x = self.widen[level - 1](F.avg_pool2d(x, 2))
            x = blocks(x)
        for level in reversed(range(len(skips))):
            # Narrowing before interpolating costs a quarter of it afterwards and commutes with it.
            x = self.up[level](double(self.narrow[level](x)) + skips[level])
        out = F.pixel_shuffle(self.head(x), self.settings.stride)
        if not self.settings.lowpass:
            return out
        low = low_pass(image, self.settings.lowpass)
        return out.to(low.dtype) + low


def low_pass(x: torch.Tensor, cell: int) -> torch.Tensor:
    """Return the means over cells of ``cell × cell`` pixels, interpolated: (n, 1, h, w), float32 or more."""
    means = F.avg_pool2d(x.to(torch.promote_types(x.dtype, torch.float32)), cell)
    return F.interpolate(means, scale_factor=cell, mode="bilinear", align_corners=False)


class _Double(torch.autograd.Function):
    """Bilinear interpolation to twice the size whose backward pass gathers.

    PyTorch's own backward pass on a GPU adds by atomic operations: slow, and never the same twice.
    """

    @staticmethod
    def forward(ctx, x: torch.Tensor) -> torch.Tensor:
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        # An old pixel has weights 1/4, 3/4, 3/4, 1/4 in the four new ones about it, along each axis; at an edge, which
        # the interpolation repeats, it has the missing one's too.
        for dim in (2, 3):
            n = gradient.shape[dim]
            first, last = gradient.narrow(dim, 0, 1), gradient.narrow(dim, n - 1, 1)
            g = torch.cat([first, gradient, last], dim)
            outer = g.narrow(dim, 0, n)[_every_second(dim)] + g.narrow(dim, 3, n - 1)[_every_second(dim)]
            inner = g.narrow(dim, 1, n)[_every_second(dim)] + g.narrow(dim, 2, n - 1)[_every_second(dim)]
            gradient = 0.25 * outer + 0.75 * inner
        return gradient


def _every_second(dim: int) -> tuple[slice, ...]:
    return (*(slice(None),) * dim, slice(None, None, 2))


def double(x: torch.Tensor) -> torch.Tensor:
    """Interpolate (n, c, h, w) bilinearly to twice the size; new pixels lie at quarters of the old ones."""
    if x.device.type == "cpu":
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    return _Double.apply(x)


def _conv(c_in: int, c_out: int, size: int = 3, zero: bool = False) -> nn.Conv2d:
    """Bias-free convolution; variance-keeping start (He et al. 2015), or zero."""
    conv = nn.Conv2d(c_in, c_out, size, padding=size // 2, bias=False)
    if zero:
        nn.init.zeros_(conv.weight)
    else:
        nn.init.kaiming_normal_(conv.weight, a=0.1, nonlinearity="leaky_relu")
    return conv


def _blocks(channels: int, n: int) -> nn.Sequential:
    return nn.Sequential(*(Block(channels) for _ in range(n)))


def make_net(settings: NetSettings) -> nn.Module:
    """Return an untrained network: (n, 1, h, w) → (n, 1, h, w), with ``settings``, ``grid`` and ``reach``."""
    if settings.kind == "folded":
        return UNet(settings)
    net = TopazShape()
    net.settings = settings
    return net


def save_weights(path: str | Path, net: nn.Module, card: dict[str, str]) -> None:
    """Write weights as safetensors, with the network's shape and a card (text values) in the header."""
    metadata = {"net": json.dumps(asdict(net.settings)), **card}
    with files.atomic_path(path) as temporary:
        save_file({k: v.contiguous().cpu() for k, v in net.state_dict().items()}, temporary, metadata)


def load_weights(path: str | Path, device: torch.device | str = "cpu") -> tuple[nn.Module, dict[str, Any]]:
    """Load a network from safetensors; returns it in evaluation mode, and its card."""
    try:
        with safe_open(path, framework="pt") as f:
            card = f.metadata() or {}
            state = {key: f.get_tensor(key) for key in f.keys()}
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: cannot read the weights ({error}); wanted a file that train-unet wrote") from None
    if "net" not in card:
        raise InputError(f"{path}: holds no cryon2n network; wanted weights that train-unet wrote")
    net = make_net(build(NetSettings, json.loads(card["net"]), str(path)))
    try:
        net.load_state_dict(state)
    except RuntimeError:
        raise InputError(f"{path}: its tensors are not those of its network; train again with this program") from None
    return net.to(device).eval(), card
