"""Loaders: the same batches from every place, each patch equally often, nothing but (seed, step)."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cryon2n import loaders, shards
from cryon2n.errors import InputError
from making import write_pair, write_pairs, write_shards

CPU = torch.device("cpu")


@pytest.fixture
def manifest(tmp_path):
    return write_shards(tmp_path / "s", write_pairs(tmp_path / "h", n=2))


def loader(manifest, kind="ram", crop=32, batch=5, seed=3):
    return loaders.Loader(manifest, kind, crop, batch, seed, CPU)


def test_ram_and_stream_give_identical_batches(manifest):
    pairs = zip(loader(manifest, "ram").batches(0, 9), loader(manifest, "stream").batches(0, 9), strict=True)
    for x, y in pairs:
        for name in ("a", "b", "var_a", "var_b"):
            assert torch.equal(getattr(x, name), getattr(y, name))
        assert x.a.shape == (5, 1, 32, 32) and x.a.dtype == torch.float32


def test_a_resumed_loader_goes_on_with_the_same_batches(manifest):
    whole = list(loader(manifest).batches(0, 8))
    rest = list(loader(manifest, "stream").batches(5, 8))
    assert len(rest) == 3
    for x, y in zip(whole[5:], rest, strict=True):
        assert torch.equal(x.a, y.a) and torch.equal(x.b, y.b)
    assert list(loader(manifest).batches(8, 8)) == []


def test_a_plan_depends_on_seed_and_step_alone():
    def plan(seed, step):
        p = loaders.plan_crops(seed, step, 10, 64, 32, 6)
        return np.stack([p.patch, p.y, p.x, p.symmetry])

    first = plan(1, 4)
    for other in (plan(2, 4), plan(1, 5)):
        assert not np.array_equal(first, other)
    np.testing.assert_array_equal(first, plan(1, 4))


@pytest.mark.parametrize(("n", "batch"), [(12, 4), (7, 5), (3, 8)])
def test_each_patch_is_used_equally_often(n, batch):
    used = np.concatenate([loaders.plan_crops(0, step, n, 64, 32, batch).patch for step in range(3 * n)])
    for epoch in used.reshape(-1, n):
        assert sorted(epoch) == list(range(n))
    assert len({tuple(e) for e in used.reshape(-1, n)}) > 1  # in a fresh order


def test_crops_reach_every_place_and_all_symmetries():
    plans = [loaders.plan_crops(0, step, 3, 40, 32, 16) for step in range(60)]
    for name, last in (("y", 8), ("x", 8), ("symmetry", 7)):
        assert set(np.concatenate([getattr(p, name) for p in plans])) == set(range(last + 1))
    same = [loaders.plan_crops(0, step, 3, 32, 32, 4) for step in range(4)]  # a crop as large as the patch
    assert all((p.y == 0).all() and (p.x == 0).all() for p in same)


def test_the_8_symmetries_are_distinct_and_keep_the_pixels():
    image = torch.arange(9).reshape(3, 3)
    seen = [loaders.apply_symmetry(image, k) for k in range(8)]
    assert len({tuple(x.flatten().tolist()) for x in seen}) == 8
    assert all(sorted(x.flatten().tolist()) == list(range(9)) for x in seen)
    assert torch.equal(seen[0], image)


@pytest.mark.parametrize("kind", ["ram", "stream"])
def test_a_and_b_get_the_same_crop_and_symmetry(tmp_path, kind):
    image = np.random.default_rng(0).standard_normal((96, 96)).astype(np.float32)
    record = write_pair(tmp_path, "m", image, image + 1e-3 * image[::-1])  # nearly the same pixels in both
    for batch in loader(write_shards(tmp_path / "s", [record]), kind).batches(0, 6):
        assert (batch.a - batch.b).abs().max() < 0.05 < batch.a.std()


def test_crops_are_what_the_plan_says(manifest):
    ld = loader(manifest)
    info = shards.read_manifest(manifest)
    array = shards.open_array(manifest, info, "b")
    (batch,) = ld.batches(4, 5)
    plan = loaders.plan_crops(3, 4, ld.n, ld.patch, 32, 5)
    for k in range(5):
        crop = np.array(array[plan.patch[k], plan.y[k] : plan.y[k] + 32, plan.x[k] : plan.x[k] + 32], np.float32)
        assert torch.equal(batch.b[k, 0], loaders.apply_symmetry(torch.from_numpy(crop), int(plan.symmetry[k])))
        assert batch.var_b[k].item() == pytest.approx(info["patches"][plan.patch[k]]["noise_var_b"])


def test_a_crop_larger_than_the_patches_is_refused(manifest):
    with pytest.raises(InputError, match="64 px hold no crop of 65"):
        loader(manifest, crop=65)


def test_the_choice_follows_the_free_memory(monkeypatch):
    monkeypatch.setattr(loaders.psutil, "virtual_memory", lambda: SimpleNamespace(available=100e9))
    assert loaders.choose_loader("auto", int(60e9), CPU)[0] == "ram"
    assert loaders.choose_loader("auto", int(60.1e9), CPU)[0] == "stream"
    monkeypatch.setattr(loaders.torch.cuda, "mem_get_info", lambda device: (80e9, 80e9))
    cuda = torch.device("cuda")
    assert loaders.choose_loader("auto", int(40e9), cuda)[0] == "gpu"
    assert loaders.choose_loader("auto", int(40.1e9), cuda)[0] == "ram"
    assert loaders.choose_loader("auto", int(61e9), cuda) == (
        "stream",
        "61.00 GB of patches exceed 60% of 100 GB free memory",
    )
    assert loaders.choose_loader("stream", 1, cuda) == ("stream", "as asked")


def test_impossible_choices_are_refused():
    with pytest.raises(InputError, match="CUDA device"):
        loaders.choose_loader("gpu", 1, CPU)
    with pytest.raises(InputError, match="'disk'"):
        loaders.choose_loader("disk", 1, CPU)
