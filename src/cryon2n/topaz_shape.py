"""A network of the shape that Topaz-Denoise uses, for like-for-like comparisons of speed and of recipes.

After the description of Bepler, Kelley, Noble & Berger (Nat. Commun. 11, 5208, 2020) and its published list of layers:
11 × 11 and five 3 × 3 convolutions of 48 channels between maximum poolings, nearest-neighbour up-sampling, concatenated
skips, 5 × 5 convolutions at full size.  1,105,809 weights.  Written anew; it holds no weights of Topaz's.
"""

import torch
from torch import nn
from torch.nn import functional as F

SLOPE = 0.1


class TopazShape(nn.Module):
    """Denoiser (n, 1, h, w) → (n, 1, h, w); h and w must be multiples of `grid`."""

    grid = 32
    reach = 163  # pixels, measured by its gradient

    def __init__(self):
        super().__init__()
        widths = (1, 48, 48, 48, 48, 48, 48)
        self.encode = nn.ModuleList(_conv(widths[i], widths[i + 1], 3 if i else 11) for i in range(6))
        self.decode = nn.ModuleList(nn.ModuleList([_conv(c, 96, 3), _conv(96, 96, 3)]) for c in (96, 144, 144, 144))
        self.head = nn.ModuleList([_conv(97, 64, 5), _conv(64, 32, 5), _conv(32, 1, 5)])

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Denoise (n, 1, h, w)."""
        x, skips = image, []
        for layer in self.encode[:-1]:
            skips.append(x)
            x = F.max_pool2d(F.leaky_relu(layer(x), SLOPE), 2)
        x = F.leaky_relu(self.encode[-1](x), SLOPE)
        for layers in self.decode:
            x = torch.cat([F.interpolate(x, scale_factor=2, mode="nearest"), skips.pop()], 1)
            for layer in layers:
                x = F.leaky_relu(layer(x), SLOPE)
        x = torch.cat([F.interpolate(x, scale_factor=2, mode="nearest"), skips.pop()], 1)
        for layer in self.head[:-1]:
            x = F.leaky_relu(layer(x), SLOPE)
        return self.head[-1](x)


def _conv(c_in: int, c_out: int, size: int) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, size, padding=size // 2)
