"""Fine-tuning of given weights: all of them, or only one gain per channel of each layer.

Gains alone (Mohan et al., NeurIPS 2021, arXiv 2107.12815) adapt a network to a data set with a thousandth of the
freedom: a small or single data set cannot make it forget what it has learned.
"""

import torch
from torch import nn
from torch.nn import functional as F

from cryon2n.errors import InputError


class GainConv(nn.Module):
    """Convolution with fixed kernels, each times a gain that is trained."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.register_buffer("kernels", conv.weight.detach().clone())
        self.gain = nn.Parameter(torch.ones_like(conv.weight[:, :1, :1, :1]))
        self.padding = conv.padding

    @property
    def weight(self) -> torch.Tensor:
        """The kernels times their gains, shape (c_out, c_in, k, k)."""
        return self.kernels * self.gain

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve (n, c_in, h, w)."""
        return F.conv2d(x, self.weight, padding=self.padding)


def with_gains(net: nn.Module) -> nn.Module:
    """Replace every convolution of `net`, in place, by one whose gains alone are trained; returns `net`."""
    for name, child in net.named_children():
        if isinstance(child, nn.Conv2d):
            if child.bias is not None:
                raise InputError("train setting tune: gains want a network without additive constants; take tune: all")
            setattr(net, name, GainConv(child))
        else:
            with_gains(child)
    return net


def folded(net: nn.Module) -> dict[str, torch.Tensor]:
    """Return the plain weights of a network `with_gains`: what the network without gains has to load."""
    return {
        f"{name}.weight": module.weight.detach().clone()
        for name, module in net.named_modules()
        if isinstance(module, GainConv | nn.Conv2d)
    }
