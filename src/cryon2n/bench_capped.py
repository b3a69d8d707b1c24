"""Streaming under a cap on memory, for thousands of steps, in a process of its own.

Beside it, in the same process and with the same compiled step, a loader whose data is resident.  The
memory is that of the process plus what of the shards lies in the page cache, sampled by a thread.
"""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from cryon2n import bench_memory, device, loaders, log, shards
from cryon2n.bench_drive import Again, Trainer, drive
from cryon2n.errors import InputError
from cryon2n.settings import build
from cryon2n.unet import NetSettings

SPARE = 1.2  # times what the training takes a stream must give alone, or else visits are made longer
SHORT = 300  # steps


class Sampler:
    """Samples the memory of the process every `every` seconds, and that of its files every tenth time."""

    def __init__(self, paths: list[Path], every: float = 0.5):
        self.paths, self.every, self.step = paths, every, 0
        self.samples: list[tuple[int, int, int]] = []  # step, bytes of the process, of the files' pages
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._run)

    def _sample(self, cached: int | None = None) -> int:
        cached = sum(map(bench_memory.cached_bytes, self.paths)) if cached is None else cached
        self.samples.append((self.step, bench_memory.resident_bytes(), cached))
        return cached

    def _run(self) -> None:
        cached, turn = self._sample(), 1
        while not self.stop.wait(self.every):
            cached = self._sample(cached if turn % 10 else None)
            turn += 1
        self._sample()

    def __enter__(self) -> "Sampler":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()

    def told(self, step: int) -> None:
        """Take the number of steps done."""
        self.step = step


def slope(samples: list[tuple[int, int, int]]) -> tuple[float, float] | None:
    """Return the growth of the process's memory in MB per 1000 steps, and its standard error; None if too short.

    By least squares over the last four fifths of the steps: the first hold the filling of buffers.
    """
    last = max(step for step, _, _ in samples)
    x, y = np.array([(s / 1000, b / 1e6) for s, b, _ in samples if s >= last / 5]).T
    if len(x) < 3 or np.ptp(x) == 0:
        return None
    design = np.stack([x - x.mean(), np.ones_like(x)], axis=1)
    (a, b), *_ = np.linalg.lstsq(design, y, rcond=None)
    error = np.sqrt(((y - design @ (a, b)) ** 2).sum() / (len(x) - 2) / (design[:, 0] ** 2).sum())
    return float(a), float(error)


def measure(order: dict[str, Any]) -> dict[str, Any]:
    """Train from a stream under a cap; see `run` for what is ordered and what comes back."""
    where = device.choose(order["device"], order["threads"])
    manifest = Path(order["manifest"])
    info = shards.read_manifest(manifest)
    paths = [shards.array_path(manifest, info, side) for side in "ab"]

    def open_feed(kind: str, visit: int) -> loaders.Loader:
        return loaders.open_loader(
            manifest, kind, order["crop"], order["batch"], 0, where, visit, order["workers"]
        )  # fmt: skip

    with bench_memory.limited(int(order["cap_GB"] * 1e9)) as held:
        trainer = Trainer(build(NetSettings, order["net"], "network"), where)
        visit, stream = order["visit"], open_feed("stream", order["visit"])
        if where.type == "cuda":
            resident, name = open_feed("gpu", visit), "gpu"
        else:
            resident, name = Again(next(stream.batches(0, 1)), where), "the same batch again"
        before = drive(resident, where, order["seconds"], use=trainer)
        alone = drive(stream, where, order["seconds"])
        short = drive(stream, where, order["seconds"], SHORT, trainer)
        log.say(
            f"resident {before['Mpx_per_s']:.0f} Mpx/s, streaming {short['Mpx_per_s']:.0f}; it takes "
            f"{before['GB_per_s']:.2f} GB/s, the stream alone gives {alone['GB_per_s']:.2f}"
        )
        tried = {"visit": stream.visit, "alone_GB_per_s": alone["GB_per_s"], **short}
        if order["slower_disk"] and alone["GB_per_s"] < SPARE * before["GB_per_s"]:
            # The disk gives less than the training takes; a longer visit takes less.
            visit = int(np.ceil(stream.visit * SPARE * before["GB_per_s"] / alone["GB_per_s"]))
            log.say(f"the disk is too slow for visits of {stream.visit} steps; going on with {visit}")
            stream = open_feed("stream", visit)
        for path in paths:
            bench_memory.forget(path)
        with Sampler(paths) as sampler:
            found = drive(stream, where, order["max_seconds"], order["steps"], trainer, sampler.told)
        after = drive(resident, where, order["seconds"], use=trainer)
    base = (before["Mpx_per_s"] + after["Mpx_per_s"]) / 2
    return {
        "cap_GB": order["cap_GB"],
        "data_GB": sum(path.stat().st_size for path in paths) / 1e9,
        "held": held,
        "past_page_cache": stream.files.direct,
        "visit": stream.visit,
        "read_GB_per_s": found["GB_per_s"] * (stream.patch / order["crop"]) ** 2 / stream.visit,
        "asked_visit": tried,
        "resident": name,
        "resident_steps": [before["steps"], after["steps"]],
        "resident_Mpx_per_s": [before["Mpx_per_s"], after["Mpx_per_s"]],
        "stream": found,
        "ratio": found["Mpx_per_s"] / base,
        "buffers_GB": stream.buffer_bytes / 1e9,
        "device_buffers_GB": stream.device_bytes / 1e9,
        "peak_rss_GB": max(b for _, b, _ in sampler.samples) / 1e9,
        "peak_cached_GB": max(c for _, _, c in sampler.samples) / 1e9,
        "peak_GB": max(b + c for _, b, c in sampler.samples) / 1e9,
        "slope_MB_per_1000_steps": slope(sampler.samples),
        "samples": sampler.samples,
    }


def run(order: dict[str, Any]) -> dict[str, Any]:
    """Do `measure` in a process of its own, with no compiler's processes beside it.

    Parameters
    ----------
    order : dict
        ``manifest``, ``crop``, ``batch``, ``visit``, ``workers``, ``net``, ``device``, ``threads``, ``cap_GB``,
        ``seconds`` (of each short run), ``steps`` and ``max_seconds`` (of the long one), and ``slower_disk``:
        whether visits may be made longer where the disk is too slow.

    Returns
    -------
    found : dict

    Raises
    ------
    InputError
        The process failed, or was killed for taking more than the cap.
    """
    began = time.monotonic()
    code = "import json, sys; from cryon2n import bench_capped as b; b.child(json.load(sys.stdin))"
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps({**order, "manifest": str(order["manifest"])}), text=True,
        stdout=subprocess.PIPE, env={**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "1"},
    )  # fmt: skip
    if done.returncode:
        raise InputError(
            f"the run under a cap of {order['cap_GB']:g} GB ended with {done.returncode} after "
            f"{time.monotonic() - began:.0f} s" + ("; it was killed: give it more" if done.returncode < 0 else "")
        )
    return json.loads(done.stdout.splitlines()[-1])


def child(order: dict[str, Any]) -> None:
    """Measure and print what was found as one line of JSON."""
    log.set_stage("bench capped")
    print(json.dumps(measure(order)))
