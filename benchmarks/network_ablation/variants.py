"""Networks that are compared: the project's own with one thing changed at a time, and Topaz's shape."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn import functional as F

from cryon2n.topaz_shape import TopazShape
from cryon2n.unet import NetSettings, UNet, double

SLOPE = 0.1


@dataclass(frozen=True)
class Shape:
    """Shape of a network.

    Attributes
    ----------
    stride : int
        Pixels folded into channels along each axis.
    channels : tuple of int
        Of each level, fine to coarse.
    blocks : int
        Per level, on the way down and up.
    block : str
        ``residual`` (two 3 × 3 convolutions), ``naf`` (1 × 1, depthwise 3 × 3, gate, 1 × 1; without global pooling),
        ``bottleneck`` (1 × 1 to half, 3 × 3, 1 × 1) or ``wide`` (3 × 3 to twice the width, 1 × 1 back).
    bias : bool
    down : str
        ``average``, ``max`` or ``blur`` (binomial 1 3 3 1).
    up : str
        ``bilinear`` or ``nearest``.
    skip : str
        ``add`` or ``concat``.
    lowpass : bool
        The output is added to the input's 16 px local mean.
    """

    stride: int = 4
    channels: tuple[int, ...] = (64, 96, 128)
    blocks: int = 1
    block: str = "residual"
    bias: bool = False
    down: str = "average"
    up: str = "bilinear"
    skip: str = "add"
    lowpass: bool = False


def conv(c_in: int, c_out: int, size: int = 3, zero: bool = False, bias: bool = False, groups: int = 1) -> nn.Conv2d:
    """Convolution with a variance-keeping start, or zero."""
    layer = nn.Conv2d(c_in, c_out, size, padding=size // 2, bias=bias, groups=groups)
    if zero:
        nn.init.zeros_(layer.weight)
    else:
        nn.init.kaiming_normal_(layer.weight, a=SLOPE, nonlinearity="leaky_relu")
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class Residual(nn.Module):
    """``x + conv(act(conv(x)))`` with kernels of the given sizes and the given width in between."""

    def __init__(self, channels: int, bias: bool, middle: int, sizes: tuple[int, ...]):
        super().__init__()
        widths = [channels] + [middle] * (len(sizes) - 1) + [channels]
        last = len(sizes) - 1
        self.layers = nn.ModuleList(
            conv(widths[i], widths[i + 1], size, zero=i == last, bias=bias) for i, size in enumerate(sizes)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (n, c, h, w) to the same shape."""
        y = self.layers[0](x)
        for layer in self.layers[1:]:
            y = layer(F.leaky_relu(y, SLOPE))
        return x + y


class Naf(nn.Module):
    """Gated block of NAFNet (Chen et al. 2022, arXiv 2204.04676) without its global pooling.

    The gate is divided by its own local strength, so that the block stays equivariant to scale.
    """

    def __init__(self, channels: int, bias: bool):
        super().__init__()
        self.widen = conv(channels, 2 * channels, 1, bias=bias)
        self.spatial = conv(2 * channels, 2 * channels, 3, bias=bias, groups=2 * channels)
        self.narrow = conv(channels, channels, 1, zero=True, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (n, c, h, w) to the same shape."""
        p, q = self.spatial(self.widen(x)).chunk(2, 1)
        strength = q.float().square().mean(1, keepdim=True).add(1e-12).rsqrt().to(q.dtype)
        return x + self.narrow(p * (q * strength))


BLOCKS: dict[str, Callable[[int, bool], nn.Module]] = {
    "residual": lambda c, bias: Residual(c, bias, c, (3, 3)),
    "bottleneck": lambda c, bias: Residual(c, bias, c // 2, (1, 3, 1)),
    "wide": lambda c, bias: Residual(c, bias, 2 * c, (3, 1)),
    "naf": Naf,
}


class Network(nn.Module):
    """A U-Net behind a space-to-depth stem; see `Shape`."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        c, folded = shape.channels, shape.stride**2

        def blocks(width: int) -> nn.Sequential:
            return nn.Sequential(*(BLOCKS[shape.block](width, shape.bias) for _ in range(shape.blocks)))

        self.stem = conv(folded, c[0], bias=shape.bias)
        self.down = nn.ModuleList(blocks(width) for width in c)
        self.widen = nn.ModuleList(conv(a, b, 1, bias=shape.bias) for a, b in itertools.pairwise(c))
        self.narrow = nn.ModuleList(conv(b, a, 1, bias=shape.bias) for a, b in itertools.pairwise(c))
        self.merge = nn.ModuleList(
            conv(2 * a, a, 1, bias=shape.bias) if shape.skip == "concat" else nn.Identity() for a in c[:-1]
        )
        self.up = nn.ModuleList(blocks(width) for width in c[:-1])
        self.head = conv(c[0], folded, zero=True, bias=shape.bias)
        kernel = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer("kernel", (kernel[:, None] * kernel)[None, None], persistent=False)

    @property
    def grid(self) -> int:
        """Pixels of which the sides of an input must be a multiple."""
        return max(self.shape.stride * 2 ** (len(self.shape.channels) - 1), 16 if self.shape.lowpass else 1)

    def halve(self, x: torch.Tensor) -> torch.Tensor:
        """Halve the grid."""
        if self.shape.down == "max":
            return F.max_pool2d(x, 2)
        if self.shape.down == "blur":
            kernel = self.kernel.to(x.dtype).expand(x.shape[1], 1, 4, 4)
            return F.conv2d(x, kernel, stride=2, padding=1, groups=x.shape[1])
        return F.avg_pool2d(x, 2)

    def double(self, x: torch.Tensor) -> torch.Tensor:
        """Double the grid."""
        if self.shape.up == "nearest":
            return F.interpolate(x, scale_factor=2, mode="nearest")
        return double(x)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Denoise (n, 1, h, w)."""
        x = F.leaky_relu(self.stem(F.pixel_unshuffle(image, self.shape.stride)), SLOPE)
        skips = []
        for level, blocks in enumerate(self.down):
            if level:
                skips.append(x)
                x = self.widen[level - 1](self.halve(x))
            x = blocks(x)
        for level in reversed(range(len(skips))):
            x = self.double(self.narrow[level](x))
            x = torch.cat([x, skips[level]], 1) if self.shape.skip == "concat" else x + skips[level]
            x = self.up[level](self.merge[level](x))
        out = F.pixel_shuffle(self.head(x), self.shape.stride)
        if self.shape.lowpass:
            out = out + F.interpolate(
                F.avg_pool2d(image, 16), scale_factor=16, mode="bilinear", align_corners=False
            ).to(out.dtype)
        return out


BASE = Shape(blocks=2)
VARIANTS: dict[str, Callable[[], nn.Module]] = {
    "base: 4x, 64-96-128, 2 blocks": lambda: Network(BASE),
    "ours": lambda: UNet(NetSettings()),
    "1 block, added to a low-pass": lambda: Network(replace(BASE, blocks=1, lowpass=True)),
    "1 block, low-pass, 48-96-160": lambda: Network(replace(BASE, blocks=1, lowpass=True, channels=(48, 96, 160))),
    "ours, 32-48-64": lambda: UNet(NetSettings(channels=(32, 48, 64))),
    "ours, 48-64-96": lambda: UNet(NetSettings(channels=(48, 64, 96))),
    "1 block": lambda: Network(replace(BASE, blocks=1)),
    "128-192-256": lambda: Network(replace(BASE, channels=(128, 192, 256))),
    "128-128-256, 1 block": lambda: Network(replace(BASE, channels=(128, 128, 256), blocks=1)),
    "4 levels, 64-96-128-192": lambda: Network(replace(BASE, channels=(64, 96, 128, 192))),
    "2x, 64-96-128-192, 1 block": lambda: Network(replace(BASE, stride=2, channels=(64, 96, 128, 192), blocks=1)),
    "8x, 192-256-256": lambda: Network(replace(BASE, stride=8, channels=(192, 256, 256))),
    "8x, 256-256-256": lambda: Network(replace(BASE, stride=8, channels=(256, 256, 256))),
    "8x, 256-384, 2 levels": lambda: Network(replace(BASE, stride=8, channels=(256, 384))),
    "biases": lambda: Network(replace(BASE, bias=True)),
    "max pooling, nearest": lambda: Network(replace(BASE, down="max", up="nearest")),
    "blurred pooling": lambda: Network(replace(BASE, down="blur")),
    "concatenated skips": lambda: Network(replace(BASE, skip="concat")),
    "added to a low-pass": lambda: Network(replace(BASE, lowpass=True)),
    "gated (NAF) blocks": lambda: Network(replace(BASE, block="naf")),
    "bottleneck blocks": lambda: Network(replace(BASE, block="bottleneck", blocks=4)),
    "wide blocks 3x3, 1x1": lambda: Network(replace(BASE, block="wide")),
    "Topaz's shape": lambda: TopazShape(),
}
