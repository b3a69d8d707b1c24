"""Let a GPU make itself ready while Python and torch start: its driver takes 0.4 s for that.

torch takes what is there.  Imports nothing that takes time itself; whatever goes wrong, torch will meet and say.
"""

import contextlib
import ctypes
import itertools
import os
import threading
from collections.abc import Sequence

from cryon2n import gpus


def start(arguments: Sequence[str]) -> None:
    """Take a GPU and wake it in a thread, unless a command's arguments ask for help, the CPU, or several."""
    pairs = {f"{a}={b}" for a, b in itertools.pairwise(arguments)} | set(arguments)
    if not {"-h", "--help", "--device=cpu"} & pairs and not any(a.startswith("--devices") for a in arguments):
        gpus.take()
        threading.Thread(target=_wake, daemon=True).start()


def _wake() -> None:
    os.environ.setdefault("CUDA_MODULE_LOADING", "LAZY")  # as torch does before it asks for the driver
    with contextlib.suppress(OSError, AttributeError):  # no driver, or one without these
        driver = ctypes.CDLL("libcuda.so.1")
        # What a process does on a GPU is done in the device's primary context: it is what takes its time.
        if driver.cuInit(0) == 0:
            driver.cuDevicePrimaryCtxRetain(ctypes.byref(ctypes.c_void_p()), 0)
