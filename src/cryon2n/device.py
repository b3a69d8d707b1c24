"""Where to compute: device, threads, precision, and what was used."""

import argparse
import contextlib
import resource
from pathlib import Path
from typing import Any

import torch

from cryon2n.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--device`` and ``--threads``."""
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: a GPU if there is one")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads; default: torch's choice")


def choose(name: str, threads: int | None = None) -> torch.device:
    """Return the device for ``auto``, ``cpu`` or ``cuda``, and set the number of CPU threads."""
    if threads is not None:
        torch.set_num_threads(max(1, threads))
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "device 'cuda': torch sees no GPU here; take 'auto' or 'cpu', or install the CUDA build of torch"
        )
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def choose_precision(name: str, where: torch.device) -> str:
    """Resolve ``auto``: bfloat16 where the device has instructions for it."""
    if name != "auto":
        return name
    if where.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return "float32"
    # Without these instructions bfloat16 is emulated and slower than float32.
    return "bfloat16" if "avx512_bf16" in flags or "amx_bf16" in flags else "float32"


def autocast(precision: str, where: torch.device) -> torch.autocast:
    """Return the autocast context of a precision on a device."""
    return torch.autocast(where.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def repeatable() -> None:
    """Let cuDNN take only algorithms that give the same bits each time: a resumed training needs them."""
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def describe(where: torch.device) -> str:
    """Name the device, for logs and records."""
    if where.type == "cuda":
        return torch.cuda.get_device_name(where)
    return f"CPU, {torch.get_num_threads()} threads"


def usage(where: torch.device) -> dict[str, Any]:
    """Return peak memory in GB, of the process and of the GPU, and what NVML says of the GPU."""
    out: dict[str, Any] = {"peak_memory_GB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 3)}
    if where.type != "cuda":
        return out
    out["peak_gpu_memory_GB"] = round(torch.cuda.max_memory_allocated(where) / 1e9, 3)
    import pynvml  # of nvidia-ml-py; only here, because it is of no use without a driver

    try:
        handle = _nvml_handle(where)
        out["gpu_driver"] = str(pynvml.nvmlSystemGetDriverVersion())
        out["gpu_power_limit_W"] = pynvml.nvmlDeviceGetPowerManagementLimit(handle) / 1000
        out["gpu_energy_since_boot_J"] = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000
    except pynvml.NVMLError as error:
        out["nvml"] = str(error)
    return out


class Meter:
    """What a GPU is doing, through NVML; nothing on a CPU or without a driver.

    Parameters
    ----------
    where : torch.device
    """

    def __init__(self, where: torch.device):
        self.where, self.handle = where, None
        if where.type == "cuda":
            import pynvml

            with contextlib.suppress(pynvml.NVMLError):
                self.handle = _nvml_handle(where)
        self.first = self.energy()

    def energy(self) -> float | None:
        """Return the energy in J since the driver was loaded."""
        if self.handle is None:
            return None
        import pynvml

        try:
            return pynvml.nvmlDeviceGetTotalEnergyConsumption(self.handle) / 1000
        except pynvml.NVMLError:
            return None

    def read(self) -> tuple[float | None, float | None, float | None]:
        """Return GPU memory in use (GB), the share of the last time in which kernels ran, and J since the start."""
        if self.handle is None:
            return None, None, None
        import pynvml

        try:
            memory = pynvml.nvmlDeviceGetMemoryInfo(self.handle).used / 1e9
            use = pynvml.nvmlDeviceGetUtilizationRates(self.handle).gpu / 100
        except pynvml.NVMLError:
            return None, None, None
        now = self.energy()
        return memory, use, None if now is None or self.first is None else now - self.first


def _nvml_handle(where: torch.device) -> Any:
    import pynvml

    pynvml.nvmlInit()
    properties = torch.cuda.get_device_properties(where)
    # By UUID: NVML's numbers do not follow CUDA_VISIBLE_DEVICES.
    return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{properties.uuid}".encode())
