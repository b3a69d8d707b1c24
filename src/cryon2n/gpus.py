"""Which GPUs programs see, and one of them for this process: jobs side by side spread over a machine's GPUs.

NVML counts as the bus does, CUDA the fastest first unless told otherwise: among unlike GPUs a number alone does not
say which one it is.  Imports nothing that takes time, for CUDA must not have begun.
"""

import contextlib
import fcntl
import glob
import os
from pathlib import Path
from typing import Any

VISIBLE = "CUDA_VISIBLE_DEVICES"
LOCKS = Path("/tmp")  # the same for all users and jobs of a machine, which TMPDIR is not
IDLE = 1e9  # bytes in use: GPUs that differ by less are equally idle

_held: list[int] = []  # descriptors of locks, until the end of this process


def ask(question: Any) -> Any:
    """Ask NVML; None where it is not there or does not know."""
    try:
        import pynvml  # of nvidia-ml-py; of no use without a driver
    except ImportError:
        return None
    try:
        return question(pynvml)
    except pynvml.NVMLError:
        return None


def visible() -> list[Any]:
    """Return NVML's handles of the GPUs that programs see, in their order, as far as it is sure which they are."""

    def find(nvml: Any) -> list[Any]:
        nvml.nvmlInit()
        names = os.environ.get(VISIBLE, ",".join(map(str, range(nvml.nvmlDeviceGetCount())))).split(",")
        numbered, found = None, []
        for name in map(str.strip, names):
            if name.startswith("GPU-"):
                found.append(nvml.nvmlDeviceGetHandleByUUID(name.encode()))
                continue
            numbered = _numbered(nvml) if numbered is None else numbered
            if not name.isdecimal() or int(name) >= len(numbered):
                break
            found.append(numbered[int(name)])
        return found

    return ask(find) or []


def take() -> None:
    """Let this process, and those that it starts, see only one GPU: one that no other process has taken like this.

    It is held until this process ends, however that comes about.  Other programs' GPUs count by the memory in use:
    the least is taken.  Where all are taken, one is shared.  Nothing happens with a single GPU, nor with unlike ones:
    the fastest is CUDA's to find.  Has no effect once CUDA is in use.
    """
    names = os.environ.get(VISIBLE)
    if len(glob.glob("/dev/nvidia[0-9]*") if names is None else names.split(",")) < 2:
        return  # without NVML, which takes its time

    def find(nvml: Any) -> list[str]:
        handles = visible()
        if len(handles) < 2 or not _alike(nvml, handles):
            return []
        handles.sort(key=lambda handle: nvml.nvmlDeviceGetMemoryInfo(handle).used // IDLE)
        return [str(nvml.nvmlDeviceGetUUID(handle)) for handle in handles]

    found = ask(find) or []
    if found:
        os.environ[VISIBLE] = next(filter(_lock, found), found[0])


def _numbered(nvml: Any) -> list[Any]:
    """Return the handles in CUDA's order; none where it is not sure that it is NVML's."""
    handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
    return handles if _alike(nvml, handles) or os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID" else []


def _alike(nvml: Any, handles: list[Any]) -> bool:
    return len({str(nvml.nvmlDeviceGetName(handle)) for handle in handles}) == 1


def _lock(uuid: str) -> bool:
    """Take the lock of a GPU, which all users of this machine share, unless another process has it."""
    path = LOCKS / f"cryon2n-{uuid}.lock"
    with contextlib.suppress(OSError):
        try:
            lock = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)  # another user's cannot be opened with O_CREAT
        except FileNotFoundError:
            lock = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CREAT)
            os.fchmod(lock, 0o644)  # whatever the umask: others are to find it taken or free
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            return False
        _held.append(lock)
        return True
    return False


def _let_go() -> None:
    """Close a forked child's copies of the locks, which would outlive this process."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_let_go)
