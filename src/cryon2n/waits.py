"""How long the device waited for data: measured, on the device's own clock."""

import time
from collections import deque

import torch

WARM = 10  # steps to leave out at the start: they hold compilation and the first reads


class Waits:
    """Measures the share of the steps' time in which the device had nothing to do but wait for a batch.

    On a GPU two events stand around each wait in the queue of the training: the first is reached when the
    step before has ended, the second when the batch is there.  Nothing here waits for either.

    Parameters
    ----------
    device : torch.device

    Attributes
    ----------
    waited, ran : float
        Seconds waited, and seconds between the waits, of the steps counted.
    steps : int
        Steps counted.
    """

    def __init__(self, device: torch.device):
        self.cuda = device.type == "cuda"
        self.waited, self.ran, self.steps, self.left_out = 0.0, 0.0, 0, 0
        self.pending: deque[tuple[object, object, object]] = deque()
        self.last: object = None

    def _now(self) -> object:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def begin(self) -> None:
        """Say that the step before has been queued (or, on a CPU, has ended)."""
        self.began = self._now()

    def end(self) -> None:
        """Say that the batch is there for whatever is queued from now on."""
        now = self._now()
        if self.left_out:
            self.left_out -= 1
        elif self.last is not None:
            self.pending.append((self.last, self.began, now))
        self.last = now
        while len(self.pending) > 64 and (not self.cuda or self.pending[0][2].query()):
            self._count()

    def skip(self, steps: int = 1) -> None:
        """Leave out the next steps: something else than training goes on before them."""
        self.left_out = max(self.left_out, steps)

    def share(self) -> float | None:
        """Return the share of time waited; None if no step was counted.  Waits for the device."""
        if self.cuda and self.pending:
            self.pending[-1][2].synchronize()
        while self.pending:
            self._count()
        return self.waited / (self.waited + self.ran) if self.steps else None

    def _count(self) -> None:
        last, began, ended = self.pending.popleft()
        self.ran += _seconds(last, began)
        self.waited += _seconds(began, ended)
        self.steps += 1


def _seconds(first: object, second: object) -> float:
    return first.elapsed_time(second) / 1e3 if isinstance(first, torch.cuda.Event) else second - first
