"""The window of a GPU on a simulated device: queues that run late, in any order that events allow."""

import random
from collections import deque
from concurrent.futures import Future
from contextlib import contextmanager

import pytest
import torch

from cryon2n import loader_window, patch_files
from making import write_pairs, write_shards

CPU = torch.device("cpu")


class Device:
    """Queues of work, each in its own order, that get on at random; what a GPU promises, and no more."""

    def __init__(self, seed):
        self.random, self.queues, self.current = random.Random(seed), {}, "main"
        self.queues["main"] = deque()

    def put(self, work, queue=None):
        self.queues[queue or self.current].append(work)
        for _ in range(self.random.choice((0, 0, 1, 3))):
            self.step()

    def step(self):
        """Run the first piece of some queue that is not waiting; returns whether there was one."""
        ready = [q for q in self.queues.values() if q and not (isinstance(q[0], Wait) and not q[0].over())]
        if not ready:
            return False
        work = self.random.choice(ready).popleft()
        if not isinstance(work, Wait):
            work()
        return True

    def run_until(self, done):
        while not done():
            assert self.step(), "the device waits for ever"


class Wait:
    def __init__(self, mark):
        self.mark = mark

    def over(self):
        return self.mark is None or self.mark["reached"]


class FakeCuda:
    """The part of ``torch.cuda`` that the window uses."""

    def __init__(self, device):
        cuda = self
        self.device = device

        class Event:
            def __init__(self, **_):
                self.mark = None  # of the last record; none counts as reached

            def record(self, stream=None):
                mark = self.mark = {"reached": False}
                device.put(lambda: mark.update(reached=True), stream and stream.name)

            def query(self):
                return self.mark is None or self.mark["reached"]

            def synchronize(self):
                device.run_until(self.query)

        class Stream:
            def __init__(self, _=None, name=None):
                self.name = name or f"stream{len(device.queues)}"
                device.queues.setdefault(self.name, deque())

            def wait_event(self, event):
                device.put(Wait(event.mark), self.name)

            def wait_stream(self, other):
                event = Event()
                event.record(other)
                self.wait_event(event)

            def synchronize(self):
                device.run_until(lambda: not device.queues[self.name])

        cuda.Event, cuda.Stream = Event, Stream
        cuda.current_stream = lambda _=None: Stream(name="main")

    @contextmanager
    def stream(self, stream):
        before, self.device.current = self.device.current, stream.name
        yield
        self.device.current = before


class Late:
    """A window whose copies are queued."""

    def __init__(self, tensor, device):
        self.tensor, self.device = tensor, device

    def __getitem__(self, key):
        target, device = self.tensor[key], self.device

        class Slot:
            def copy_(self, source, non_blocking):
                assert non_blocking
                device.put(lambda: target.copy_(source))

        return Slot()

    def __iter__(self):
        return iter(self.tensor)


class Pool:
    """Reading threads that are on time or late at random, but the same for a seed: real ones would hide a fault."""

    def __init__(self, device):
        self.device, self.punctual = device, device.random.choice((0.2, 0.9, 1.0))

    def submit(self, read, *args):
        future, device, punctual = Future(), self.device, self.punctual

        class Read:
            def done(self):
                if not future.done() and device.random.random() < punctual:
                    self.run()
                return future.done()

            def run(self):
                read(*args)
                future.set_result(None)

            def result(self):
                if not future.done():
                    self.run()
                return future.result()

        pending = Read()
        pending.done()
        return pending

    def shutdown(self, cancel_futures):
        assert cancel_futures


class SimulatedLoader(loader_window.WindowLoader):
    """A window loader as on a GPU: buffers apart from the window, copies and gathers queued."""

    def simulate(self, device):
        self.simulated = device
        window = torch.full((2, self.slots, self.patch, self.patch), float("nan"), dtype=torch.float16)
        self.window = Late(window, device)
        self.buffers = torch.from_numpy(patch_files.aligned((2, self.ahead, self.patch, self.patch)))
        self.arrays = self.buffers.numpy()

    def take(self, sides, plan, slot):
        box = []
        self.simulated.put(lambda: box.append(super(SimulatedLoader, self).take(sides, plan, slot)))
        return box


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("window")
    return write_shards(folder / "s", write_pairs(folder / "h", n=2))


def right(manifest, monkeypatch, seed, batch, visit, workers, first=2, last=22):
    """Tell whether all batches of a simulated device are right."""
    device = Device(seed)
    plain = loader_window.WindowLoader(patch_files.PatchFiles(manifest), 32, batch, 3, visit, CPU, workers)
    wanted = list(plain.batches(first, last))
    with monkeypatch.context() as patched:
        patched.setattr(loader_window.torch, "cuda", FakeCuda(device))
        patched.setattr(loader_window, "_Feed", loader_window._CudaFeed)
        patched.setattr(loader_window, "ThreadPoolExecutor", lambda *_, **__: Pool(device))
        simulated = SimulatedLoader(patch_files.PatchFiles(manifest), 32, batch, 3, visit, CPU, workers)
        simulated.simulate(device)
        boxes = list(simulated.batches(first, last))
        device.run_until(lambda: not any(device.queues.values()))
    assert len(boxes) == last - first
    pairs = [(x, y) for (box,), w in zip(boxes, wanted, strict=True)
             for x, y in zip(box.tensors(), w.tensors(), strict=True)]  # fmt: skip
    return all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("batch", "visit", "workers"), [(5, 0, 2), (8, 1, 3), (3, 7, 1)])
def test_queued_copies_and_gathers_never_meet_the_wrong_patch(manifest, monkeypatch, seed, batch, visit, workers):
    assert right(manifest, monkeypatch, seed, batch, visit, workers)


@pytest.mark.parametrize(
    ("step", "without"),
    [
        ("_buffer_is_free", lambda self, buffer: True),  # a buffer is filled again before it has travelled
        ("bring", loader_window._Feed.bring),  # the training does not wait for the copies
        ("taken", lambda self: None),  # the copies do not wait for the gathers
    ],
)
def test_the_simulation_finds_a_missing_wait(manifest, monkeypatch, step, without):
    monkeypatch.setattr(loader_window._CudaFeed, step, without)
    assert not all(right(manifest, monkeypatch, seed, 8, 1, 3) for seed in range(12))
