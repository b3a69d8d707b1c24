"""Loaders: the same batches and weights from every place, bounded, past the page cache, chosen by arithmetic."""

import json
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from conftest import ROOT
from cryon2n import bench_memory, crops, loader_window, loaders, memory, patch_files, plan, shards, train, waits
from cryon2n.errors import InputError
from cryon2n.symmetry import apply_symmetry
from making import write_pair, write_pairs, write_shards

CPU = torch.device("cpu")
KINDS = ("ram", "stream")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return write_shards(folder / "s", write_pairs(folder / "h", n=2))


def loader(manifest, kind="ram", crop=32, batch=5, seed=3, **more):
    return loaders.open_loader(manifest, kind, crop, batch, seed, CPU, **more)


def window_from_memory(manifest, crop=32, batch=5, seed=3):
    """``ram`` as a GPU has it: a window that is filled from memory."""
    files = patch_files.PatchFiles(manifest)
    return loader_window.WindowLoader(files, crop, batch, seed, 0, CPU, workers=3, resident=True)


def same(x, y):
    return all(torch.equal(p, q) for p, q in zip(x.tensors(), y.tensors(), strict=True))


# ---------------------------------------------------------------------------- the same batches


@pytest.mark.parametrize("more", [{}, {"visit": 1}, {"visit": 7}, {"batch": 30}, {"workers": 1}, {"crop": 64}])
def test_all_loaders_give_identical_batches(manifest, more):
    plain = {k: v for k, v in more.items() if k != "workers"}
    count = 0
    for x, y in zip(loader(manifest, "ram", **plain).batches(0, 40), loader(manifest, "stream", **more).batches(0, 40),
                    strict=True):  # fmt: skip
        assert same(x, y) and x.a.dtype == torch.float16
        count += 1
    assert count == 40


def test_a_window_filled_from_memory_gives_them_too(manifest):
    pairs = zip(loader(manifest).batches(0, 40), window_from_memory(manifest).batches(0, 40), strict=True)
    assert all(same(x, y) for x, y in pairs)


def test_the_same_weights_after_100_steps_with_each_loader(manifest, tmp_path):
    torch.set_num_threads(1)
    found = []
    for kind in KINDS:
        asked = train.TrainSettings(
            steps=100, batch=3, crop=32, seed=1, precision="float32", compile="off", loader=kind, validate_every=30,
            net={"stride": 2, "channels": [4, 6]},
        )  # fmt: skip
        net, metrics, _ = train.train(manifest, [], asked, CPU, tmp_path / kind)
        assert metrics["loader"] == kind and 0 <= metrics["data_wait_share"] < 1
        found.append(net.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert any(value.abs().sum() > 0 for value in found[0].values())


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_loader_goes_on_with_the_same_batches(manifest, kind):
    whole = list(loader(manifest, kind).batches(0, 13))
    for first in (1, 5, 12):
        rest = list(loader(manifest, "stream").batches(first, 13))
        assert len(rest) == 13 - first
        assert all(same(x, y) for x, y in zip(whole[first:], rest, strict=True))
    assert list(loader(manifest, kind).batches(8, 8)) == []


@pytest.mark.parametrize("kind", KINDS)
def test_crops_are_what_the_plan_says(manifest, kind):
    ld, info = loader(manifest, kind), shards.read_manifest(manifest)
    array = shards.open_array(manifest, info, "b")
    (batch,) = ld.batches(4, 5)
    asked = crops.plan_crops(3, 4, ld.n, ld.patch, 32, 5)
    for k in range(5):
        crop = np.array(array[asked.patch[k], asked.y[k] : asked.y[k] + 32, asked.x[k] : asked.x[k] + 32])
        assert torch.equal(batch.b[k, 0], apply_symmetry(torch.from_numpy(crop), int(asked.symmetry[k])))
        assert batch.var_b[k].item() == pytest.approx(info["patches"][asked.patch[k]]["noise_var_b"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_and_b_get_the_same_crop_and_symmetry(tmp_path, kind):
    image = np.random.default_rng(0).standard_normal((96, 96)).astype(np.float32)
    record = write_pair(tmp_path, "m", image, image + 1e-3 * image[::-1])  # nearly the same pixels in both
    for batch in loader(write_shards(tmp_path / "s", [record]), kind).batches(0, 6):
        assert (batch.a - batch.b).abs().max() < 0.05 < batch.a.float().std()


# ---------------------------------------------------------------------------- streaming


class Counting:
    """Stands in for `PatchFiles.read` of a stream: counts the reads, and those under way."""

    def __init__(self, stream):
        self.read, self.calls, self.stream = stream.read, [], stream
        stream.read = self

    def __call__(self, side, patch, out):
        self.calls.append((side, patch))
        self.read(side, patch, out)


def test_each_visit_is_read_once_and_ahead_of_need_within_bounds(manifest):
    stream = loader(manifest, "stream", batch=6, workers=2)
    counting, steps = Counting(stream), 60
    for step, _ in enumerate(stream.batches(0, steps)):
        begun = set(np.concatenate([crops.visits_at(t, 6, stream.visit) for t in range(step + 1)]))
        assert len(counting.calls) <= 2 * (len(begun) + stream.ahead)
    asked = [crops.plan_crops(3, t, stream.n, stream.patch, 32, 6) for t in range(steps)]
    visits = {int(v): int(p) for plan in asked for v, p in zip(plan.visit, plan.patch, strict=True)}
    for side in range(2):
        assert sorted(p for s, p in counting.calls if s == side) == sorted(visits.values())
    # Memory: the window alone, whatever the number of steps: (batch + ahead) patches of two sides in float16.
    assert stream.buffer_bytes == (6 + stream.ahead) * 2 * 64 * 64 * 2


def test_a_loop_that_ends_early_ends_the_threads(manifest):
    import threading

    before = threading.active_count()
    for _ in loader(manifest, "stream").batches(0, 1000):
        break
    assert threading.active_count() == before


@pytest.fixture
def cold_manifest(manifest):
    """The manifest, with nothing of its shards in the page cache."""
    paths = sorted(manifest.parent.glob("*.npy"))
    for path in paths:
        bench_memory.forget(path)
    if sum(map(bench_memory.cached_bytes, paths)):
        pytest.skip("this file system keeps its pages")
    return manifest, paths


@pytest.mark.parametrize("direct", [True, False])
def test_streaming_leaves_nothing_in_the_page_cache(cold_manifest, direct):
    manifest, paths = cold_manifest
    files = patch_files.PatchFiles(manifest, direct=direct)
    assert files.direct in (direct, False)
    for path in paths:  # opening has looked at the first and the last patch
        bench_memory.forget(path)
    stream = loader_window.WindowLoader(files, 32, 5, 3, 0, CPU, workers=2)
    assert len(list(stream.batches(0, 50))) == 50
    assert sum(map(bench_memory.cached_bytes, paths)) == 0
    for k in range(stream.n):  # the count does see pages that are there
        assert paths[0].read_bytes() and k >= 0
    assert bench_memory.cached_bytes(paths[0]) >= paths[0].stat().st_size - 4096


def test_a_file_system_without_o_direct_is_read_all_the_same(manifest, monkeypatch):
    opened, real = [], os.open

    def no_direct(path, flags, *rest):
        if flags & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        opened.append(path)
        return real(path, flags, *rest)

    monkeypatch.setattr(patch_files.os, "open", no_direct)
    stream = loader(manifest, "stream")
    assert not stream.files.direct and len(opened) == 2
    assert all(same(x, y) for x, y in zip(stream.batches(0, 9), loader(manifest).batches(0, 9), strict=True))


def test_patches_that_are_no_whole_pages_are_read_without_o_direct(tmp_path):
    odd = write_shards(tmp_path / "s", write_pairs(tmp_path / "h", n=1), patch=72)  # 10368 bytes: 2.53 pages
    stream = loader(odd, "stream")
    assert not stream.files.direct
    assert all(same(x, y) for x, y in zip(stream.batches(0, 9), loader(odd).batches(0, 9), strict=True))


@pytest.mark.parametrize("direct", [True, False])
def test_a_shard_that_shrinks_while_it_is_read_is_named(tmp_path, direct):
    manifest = write_shards(tmp_path / "s", write_pairs(tmp_path / "h", n=1))
    stream = loader(manifest, "stream", direct=direct)
    os.truncate(manifest.parent / "train_b.npy", 4096 + 64 * 64)
    with pytest.raises(InputError, match=r"train_b\.npy: ends within patch .*write the shards again"):
        list(stream.batches(0, 50))


def test_a_disk_that_fails_is_a_sentence(manifest, monkeypatch):
    stream = loader(manifest, "stream")

    def broken(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(patch_files.os, "preadv", broken)
    with pytest.raises(InputError, match=r"train_[ab]\.npy: cannot read patch \d+ \(Input/output error\)"):
        list(stream.batches(0, 5))


# ---------------------------------------------------------------------------- waiting


def test_waiting_is_measured(manifest, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(waits.time, "perf_counter", lambda: clock[0])
    ws = waits.Waits(CPU)
    ws.skip(2)
    for wait, run in ((50, 50), (50, 50), (1, 9), (3, 7), (0, 90)):
        ws.begin()
        clock[0] += wait
        ws.end()
        clock[0] += run
    # Left out are the first two.  The third's step ran 50 before it waited 1, the fourth 9 and 3, the fifth 7 and 0.
    assert (ws.share(), ws.steps) == (pytest.approx(4 / (50 + 1 + 9 + 3 + 7 + 0)), 3)
    ws.skip()
    ws.begin()
    clock[0] += 1000
    ws.end()
    assert ws.share() == pytest.approx(4 / 70)
    assert waits.Waits(CPU).share() is None


def test_a_slow_disk_shows_as_waiting(manifest):
    import time

    stream = loader(manifest, "stream", workers=1, visit=1)
    real = stream.read
    stream.read = lambda *args: (time.sleep(0.005), real(*args))
    for _ in stream.batches(0, 20):  # nothing is computed: all time is waiting
        pass
    assert stream.waits.share() > 0.8


# ---------------------------------------------------------------------------- the choice


def test_a_crop_larger_than_the_patches_is_refused(manifest):
    with pytest.raises(InputError, match="64 px hold no crop of 65"):
        loader(manifest, crop=65)


@pytest.fixture
def machine(monkeypatch):
    """A machine of 100 GB, no control group."""
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=int(100e9)))
    monkeypatch.setattr(memory, "own_cgroups", lambda: [])
    monkeypatch.setattr(loaders.torch.cuda, "mem_get_info", lambda device: (80e9, 80e9))


def test_the_choice_follows_the_free_memory(machine):
    assert loaders.choose_loader("auto", int(60e9), CPU)[0] == "ram"
    assert loaders.choose_loader("auto", int(60.1e9), CPU)[0] == "stream"
    cuda = torch.device("cuda")
    assert loaders.choose_loader("auto", int(40e9), cuda)[0] == "gpu"
    assert loaders.choose_loader("auto", int(40.1e9), cuda)[0] == "ram"
    assert loaders.choose_loader("auto", int(61e9), cuda) == (
        "stream",
        "61.00 GB of patches exceed 60% of 100 GB free memory",
    )
    assert loaders.choose_loader("stream", 1, cuda) == ("stream", "as asked")


def test_the_choice_honours_a_cap(machine):
    assert loaders.choose_loader("auto", int(20e9), CPU, ram_GB=19) == (
        "stream",
        "20.00 GB of patches exceed the 19 GB that ram_GB allows",
    )
    assert loaders.choose_loader("auto", int(20e9), CPU, ram_GB=21)[0] == "ram"
    assert loaders.choose_loader("auto", int(61e9), CPU, ram_GB=70)[0] == "stream"  # a cap gives no memory


@pytest.mark.parametrize(
    ("files", "line"),
    [
        ({"memory.max": "10000000000", "memory.current": "4000000000", "memory.stat": "inactive_file 1500000000"},
         "0::/job"),
        ({"memory.limit_in_bytes": "10000000000", "memory.usage_in_bytes": "4000000000",
          "memory.stat": "cache 9\ntotal_inactive_file 1500000000"}, "5:cpu,memory:/job"),
    ],
)  # fmt: skip
def test_the_choice_honours_a_control_group(tmp_path, monkeypatch, files, line):
    root = tmp_path / "memory" if "memory:" in line else tmp_path
    inner = root / "job" / "step"
    inner.mkdir(parents=True)
    for name, text in files.items():
        (root / "job" / name).write_text(text)  # the limit is on the job, this process in a group below it
    inner.joinpath("memory.max").write_text("max")
    (tmp_path / "self").write_text(f"3:cpuset:/other\n{line}/step\n")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path)
    monkeypatch.setattr(memory, "OWN_CGROUP", tmp_path / "self")
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=int(100e9)))
    # 10 allowed, 4 used, of which 1.5 are page cache that can be dropped: 7.5 left, 60 % of it is 4.5.
    assert memory.available() == (7_500_000_000, "memory left in the job's control group")
    assert loaders.choose_loader("auto", int(4.5e9), CPU)[0] == "ram"
    kind, why = loaders.choose_loader("auto", int(4.6e9), CPU)
    assert kind == "stream" and "control group" in why


def test_a_group_without_a_limit_and_a_machine_without_groups_do_not_count(tmp_path, monkeypatch):
    (tmp_path / "memory").mkdir()
    for name, text in (("limit_in_bytes", str(2**63 - 4096)), ("usage_in_bytes", "1"), ("stat", "cache 1")):
        (tmp_path / "memory" / f"memory.{name}").write_text(text)
    assert memory.cgroup_left(tmp_path / "memory") is None
    assert memory.cgroup_left(tmp_path / "nowhere") is None
    monkeypatch.setattr(memory, "OWN_CGROUP", tmp_path / "nowhere")
    assert memory.own_cgroups() == []


def test_the_plan_says_what_training_will_choose(machine):
    config = plan.load_config(ROOT / "tests/workflow/tiny.yaml", ROOT / "workflow/schemas/config.schema.yaml")
    config["source"]["phantom"]["shape"] = [256, 256]
    config["source"]["n_micrographs"] = 5
    config["split"] |= {"val": 1, "test": 1}
    config["shards"] |= {"patch": 128, "overlap": 0}
    one = next(iter(config["models"].values()))
    config["models"] = {"one": {**one, "loader": "auto"}, "two": {**one, "loader": "auto", "ram_GB": 1e-6}}
    config["compare"] |= {"methods": ["raw"], "reference": "raw"}
    text = plan.plan_text(config)
    # 3 training micrographs of 2 x 2 patches, two sides, float16.
    n_bytes = 3 * 4 * 2 * 128 * 128 * 2
    for ram_GB in (0.0, 1e-6):
        kind, why = loaders.choose_loader("auto", n_bytes, CPU, ram_GB)
        assert f"loader {kind}: {why}" in text
    assert "loader ram" in text and "loader stream" in text


def test_impossible_choices_are_refused(manifest):
    with pytest.raises(InputError, match="CUDA device"):
        loaders.choose_loader("gpu", 1, CPU)
    with pytest.raises(InputError, match="'disk'"):
        loaders.choose_loader("disk", 1, CPU)
    with pytest.raises(InputError, match="CUDA device"):
        loader(manifest, "gpu")


def test_settings_of_the_loader_are_checked_and_only_the_visit_changes_the_weights(manifest):
    info = json.loads(manifest.read_text())
    mark = train.fingerprint(train.TrainSettings(), info)
    assert mark == train.fingerprint(train.TrainSettings(ram_GB=3.0, loader="stream"), info)
    assert mark != train.fingerprint(train.TrainSettings(visit=16), info)
    for name in ("visit", "ram_GB"):
        with pytest.raises(InputError, match=f"{name}: found -1"):
            train.TrainSettings(**{name: -1})
