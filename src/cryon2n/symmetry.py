"""The 8 symmetries of the square: bits are transpose, flip y, flip x."""

import torch


def apply_symmetry(x: torch.Tensor, symmetry: int) -> torch.Tensor:
    """Apply one of the 8 symmetries, 0 to 7, to (..., h, w); 0 leaves it as it is."""
    if symmetry & 1:
        x = x.transpose(-1, -2)
    dims = _flipped(symmetry)
    return x.flip(dims) if dims else x


def undo_symmetry(x: torch.Tensor, symmetry: int) -> torch.Tensor:
    """Undo `apply_symmetry`."""
    dims = _flipped(symmetry)
    x = x.flip(dims) if dims else x
    return x.transpose(-1, -2) if symmetry & 1 else x


def _flipped(symmetry: int) -> list[int]:
    return [d for bit, d in ((2, -2), (4, -1)) if symmetry & bit]
