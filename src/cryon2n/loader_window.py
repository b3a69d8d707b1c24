"""The loaders whose patches pass through a window on the device: from disk (`stream`) or from memory (`ram`).

A visit's patch (see `crops`) is read once, by one of several threads, into a pinned buffer; copied on a
stream of its own into a slot of the window; and stays there until its visit ends, while each of its steps
gathers a crop from it, on the device.  So each patch crosses disk and bus once per visit, crops are never
cut on the CPU, and the memory taken depends on batch and patch, not on the size of the data set.

Visits begin and end in the order of their numbers and `batch` of them are under way at any step, so the
window is a ring: visit v lies in slot v modulo its length.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from cryon2n.crops import visited_patch, visits_at
from cryon2n.loader_base import Batch, Loader
from cryon2n.patch_files import SIDES, PatchFiles, aligned
from cryon2n.waits import WARM

STEPS_AHEAD = 6  # of whose visits the patches are read, or being read, before they are needed
STEPS_QUEUED = 3  # steps that may be queued on the GPU; more would only hold buffers


class WindowLoader(Loader):
    """Gathers from a window of patches that threads keep filled.

    Parameters
    ----------
    files, crop, batch, seed, visit, device
        As `Loader` takes them.
    workers : int
        Reading threads.
    resident : bool
        Read all patches into memory first, and take them from there.

    Raises
    ------
    InputError
        The files cannot be read, or do not fit their manifest.
    """

    def __init__(
        self,
        files: PatchFiles,
        crop: int,
        batch: int,
        seed: int,
        visit: int,
        device: torch.device,
        workers: int,
        resident: bool = False,
    ):
        super().__init__(files, crop, batch, seed, visit, device)
        self.workers, self.files = workers, files
        self.ahead = max(workers, STEPS_AHEAD * -(-batch // self.visit))  # visits
        self.slots = batch + self.ahead
        self.read: Callable[[int, int, np.ndarray], None] = files.read
        window = (len(SIDES), self.slots, self.patch, self.patch)
        if device.type == "cuda":
            self.window = torch.empty(window, dtype=torch.float16, device=device)
            self.buffers = torch.empty((len(SIDES), self.ahead, *window[2:]), dtype=torch.float16, pin_memory=True)
            self.device_bytes = self.window.nbytes
            files.check_direct(self.buffers[0, 0].numpy())
        else:
            # Threads read into the window itself.
            self.window = self.buffers = torch.from_numpy(aligned(window))
        self.buffer_bytes = self.buffers.nbytes
        self.arrays = self.buffers.numpy()
        if resident:
            self.memory = files.read_all(workers)
            self.buffer_bytes += sum(side.nbytes for side in self.memory)
            self.read = self._from_memory

    def _from_memory(self, side: int, patch: int, out: np.ndarray) -> None:
        np.copyto(out, self.memory[side][patch])

    def batches(self, first: int, last: int) -> Iterator[Batch]:
        """Yield the batches of the steps `first` to `last` - 1; patches of later steps are read meanwhile."""
        if first >= last:
            return
        self.waits.skip(WARM)
        feed = (_CudaFeed if self.device.type == "cuda" else _Feed)(self, first, last)
        try:
            for step in range(first, last):
                self.waits.begin()
                plan = self.plan(step)
                feed.bring(int(plan.visit.min()))
                self.waits.end()
                batch = self.take(tuple(self.window), plan, plan.visit % self.slots)
                feed.taken()
                yield batch
        finally:
            feed.close()


class _Feed:
    """Keeps the window of one run of steps filled.

    Visits up to `copied` are in the window (or on their way, in the device's queue), those up to `asked`
    are being read.
    """

    def __init__(self, loader: WindowLoader, first: int, last: int):
        self.loader = loader
        self.copied = self.asked = self._oldest(first)
        self.end = self._oldest(last - 1) + loader.batch
        self.reads: deque[list[Future[None]]] = deque()
        self.pool = ThreadPoolExecutor(loader.workers, thread_name_prefix="patches")

    def _oldest(self, step: int) -> int:
        return int(visits_at(step, self.loader.batch, self.loader.visit).min())

    def bring(self, oldest: int) -> None:
        """See to it that the visits from `oldest` to `oldest` + batch - 1 are in the window for what comes next."""
        self._ask(oldest)
        while self.copied < oldest + self.loader.batch or (self.reads and all(f.done() for f in self.reads[0])):
            if not self.reads:
                self._wait_for_buffer()
                self._ask(oldest)
            for future in self.reads.popleft():
                future.result()
            self._copy(self.copied)
            self.copied += 1
            self._ask(oldest)

    def _ask(self, oldest: int) -> None:
        """Have everything read for which there is a free slot and a free buffer."""
        loader, buffers = self.loader, self.loader.arrays.shape[1]
        last = min(self.end, oldest + loader.slots, self.copied + buffers)
        while self.asked < last and self._buffer_is_free(self.asked % buffers):
            patch = visited_patch(loader.seed, self.asked, loader.n)
            outs = loader.arrays[:, self.asked % buffers]
            self.reads.append([self.pool.submit(loader.read, side, patch, out) for side, out in enumerate(outs)])
            self.asked += 1

    def taken(self) -> None:
        """Say that the step's crops have been gathered (or that this has been queued)."""

    def close(self) -> None:
        """End the threads."""
        self.pool.shutdown(cancel_futures=True)

    def _buffer_is_free(self, buffer: int) -> bool:
        return True  # a slot of the window is free once its visit has ended

    def _wait_for_buffer(self) -> None:
        """Wait until the next buffer is free."""

    def _copy(self, visit: int) -> None:
        """Bring a visit that was read into the window: nothing to do where it was read into it."""


class _CudaFeed(_Feed):
    """The same through pinned buffers and a stream of its own.

    All calls of CUDA come from the training's own thread, between two steps: another thread's would break
    the capture of a CUDA graph.
    """

    def __init__(self, loader: WindowLoader, first: int, last: int):
        super().__init__(loader, first, last)
        self.stream = torch.cuda.Stream(loader.device)
        self.stream.wait_stream(torch.cuda.current_stream(loader.device))
        self.done = [torch.cuda.Event() for _ in range(loader.ahead)]  # buffer's copy; a new event counts as reached
        self.gathered: deque[torch.cuda.Event] = deque()

    def bring(self, oldest: int) -> None:
        """As for the CPU, in the order of the device's queues; the host waits for reads, not for the training."""
        while len(self.gathered) > STEPS_QUEUED:
            self.gathered.popleft().synchronize()
        super().bring(oldest)
        torch.cuda.current_stream(self.loader.device).wait_event(self.done[(self.copied - 1) % self.loader.ahead])

    def taken(self) -> None:
        """Mark in the training's queue that the crops have been gathered."""
        event = torch.cuda.Event(blocking=True)
        event.record(torch.cuda.current_stream(self.loader.device))
        self.gathered.append(event)

    def close(self) -> None:
        """End the threads, and what is still on its way."""
        super().close()
        self.stream.synchronize()

    def _buffer_is_free(self, buffer: int) -> bool:
        return self.done[buffer].query()

    def _wait_for_buffer(self) -> None:
        self.done[self.asked % self.loader.ahead].synchronize()

    def _copy(self, visit: int) -> None:
        loader = self.loader
        if self.gathered:  # the slot's last visit ended before the step that was gathered last
            self.stream.wait_event(self.gathered[-1])
        with torch.cuda.stream(self.stream):
            buffer, slot = visit % loader.ahead, visit % loader.slots
            for side in range(len(SIDES)):  # one by one: each is contiguous
                loader.window[side, slot].copy_(loader.buffers[side, buffer], non_blocking=True)
            self.done[buffer].record(self.stream)
