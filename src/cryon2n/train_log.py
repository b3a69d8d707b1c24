"""The log of a training: a row at each look at the held-out micrographs, as CSV and, if installed, for TensorBoard."""

from pathlib import Path
from typing import Any

import torch

from cryon2n import device
from cryon2n.validation import Validation

COLUMNS = (
    "step", "loss", "worst_loss", "rate", "gradient", "val_delta_umse", "val_bias_variance", "val_residual_noise",
    "seconds", "gpu_memory_GB", "gpu_use", "gpu_energy_J",
)  # fmt: skip


class TrainLog:
    """Rows with the columns `COLUMNS`.

    Parameters
    ----------
    where : torch.device
    folder : Path
        Gets TensorBoard's events, where that is installed.
    """

    def __init__(self, where: torch.device, folder: Path):
        self.rows: list[dict[str, Any]] = []
        self.meter = device.Meter(where)
        self.writer = _writer(folder)

    def add(
        self, step: int, losses: torch.Tensor, rate: float, gradient: float, held_out: Validation | None, seconds: float
    ) -> None:
        """Add a row; waits for the GPU.

        Parameters
        ----------
        step : int
        losses : tensor
            Of the steps since the last row.
        rate, gradient : float
            Learning rate, and norm of the gradient, of the last step.
        held_out : Validation or None
        seconds : float
            Since the training began.
        """
        seen = (
            (None,) * 3 if held_out is None else (held_out.delta_umse, held_out.bias_variance, held_out.residual_noise)
        )
        values = (step, float(losses.mean()), float(losses.max()), rate, gradient, *seen, round(seconds, 2))
        row = dict(zip(COLUMNS, (*values, *self.meter.read()), strict=True))
        self.rows.append(row)
        if self.writer is not None:
            for name, value in row.items():
                if name != "step" and value is not None:
                    self.writer.add_scalar(name, value, step)
            self.writer.flush()

    @property
    def last(self) -> dict[str, Any]:
        """The last row."""
        return self.rows[-1]

    def validations(self) -> list[Validation]:
        """Return what the held-out micrographs told, row by row."""
        names = ("val_delta_umse", "val_bias_variance", "val_residual_noise")
        return [Validation(*(row[n] for n in names)) for row in self.rows if row[names[0]] is not None]

    def note(self) -> str:
        """Return the last row in a few words."""
        if not self.rows:
            return ""
        delta = self.last["val_delta_umse"]
        return f"loss {self.last['loss']:.5f}" + ("" if delta is None else f", ΔuMSE {delta:.5f}")


def _writer(folder: Path) -> Any:
    """Return TensorBoard's writer, or None where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder))


def csv(rows: list[dict[str, Any]]) -> str:
    """Return rows as CSV."""
    lines = [",".join(COLUMNS)]
    lines += [",".join("" if row[c] is None else f"{row[c]:.8g}" for c in COLUMNS) for row in rows]
    return "\n".join(lines) + "\n"
