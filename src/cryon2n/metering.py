"""What a method costs: seconds, and energy and memory of the GPU as NVML tells them; what is not measured is None.

Apart from ``device``, which imports torch: programs of others are metered, too, and from outside they are all alike.
"""

import resource
import sys
import threading
import time
from typing import Any, TypeVar

from cryon2n import gpus

T = TypeVar("T")

INTERVAL = 0.05  # s between two looks at the GPU's memory


class Meter:
    """Seconds, GPU energy and GPU memory of what happens inside its ``with`` block.

    Parameters
    ----------
    gpu : bool
        Look at the GPU.  The memory in use now, before anything is loaded, is what later use is counted from.
    """

    def __init__(self, gpu: bool = False):
        self.handle = next(iter(gpus.visible()), None) if gpu else None
        self.before = self.most = self._memory()
        self.energy: float | None = None
        self.seconds = 0.0
        self.laps: list[float] = []
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Meter":
        self.laps.clear()
        self._done.clear()
        self._first_energy = self._energy()
        if self.handle is not None:
            self._thread = threading.Thread(target=self._follow, daemon=True)
            self._thread.start()
        self._began = time.monotonic()
        return self

    def __exit__(self, *_: Any) -> None:
        self.seconds = time.monotonic() - self._began
        self._done.set()
        if self._thread is not None:
            self._thread.join()
        now = self._energy()
        if now is not None and self._first_energy is not None:
            self.energy = now - self._first_energy

    def lap(self, result: T) -> T:
        """Note that an image is done, and give its result back."""
        self.laps.append(time.monotonic() - self._began)
        return result

    def cost(self, on_gpu: bool = True) -> dict[str, Any]:
        """Return what was measured, for a record; nothing of the GPU where it was not used after all.

        ``seconds`` of the block, ``images`` in it and ``seconds_per_image`` without the first one, whose time holds
        what has to be prepared once; ``memory_GB``, the most that this process or one that it ran has taken;
        ``gpu_energy_J`` of the whole GPU (what it takes when idle included) and ``gpu_memory_GB``, the most that was
        in use beyond what was in use before.
        """
        each = (self.laps[-1] - self.laps[0]) / (len(self.laps) - 1) if len(self.laps) > 1 else None
        memory = None if self.before is None or self.most is None else (self.most - self.before) / 1e9
        return {
            "seconds": round(self.seconds, 3),
            "images": len(self.laps),
            "seconds_per_image": None if each is None else round(each, 4),
            "memory_GB": round(_peak_memory() / 1e9, 3),
            "gpu_energy_J": round(self.energy, 3) if on_gpu and self.energy is not None else None,
            "gpu_memory_GB": round(memory, 3) if on_gpu and memory is not None else None,
        }

    def _follow(self) -> None:
        while True:
            now = self._memory()
            if now is not None:
                self.most = max(self.most or 0, now)
            if self._done.wait(INTERVAL):
                return

    def _memory(self) -> int | None:
        return None if self.handle is None else gpus.ask(lambda nvml: nvml.nvmlDeviceGetMemoryInfo(self.handle).used)

    def _energy(self) -> float | None:
        """Return J since the driver was loaded."""
        if self.handle is None:
            return None
        return gpus.ask(lambda nvml: nvml.nvmlDeviceGetTotalEnergyConsumption(self.handle) / 1000)


def _peak_memory() -> int:
    """Return the most bytes of memory that this process has had, or one of those that it waited for."""
    unit = 1 if sys.platform == "darwin" else 1024
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return unit * max(resource.getrusage(each).ru_maxrss for each in who)
