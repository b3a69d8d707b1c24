"""What only a GPU can show; skipped without one.  The rest of the tests run on any machine."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import mrcfile
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cryon2n import (
    denoise_model,
    denoise_staging,
    denoise_tiles,
    files,
    loaders,
    micrograph_outputs,
    movies,
    mrcio,
    split,
    unet,
    verify,
)
from making import command, field, frames, random_net, white, write_movie, write_pairs, write_shards, write_weights

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
GPU = torch.device("cuda")


def test_every_fast_form_agrees_with_the_plain_one():
    rows = verify.verify(unet.NetSettings(channels=(32, 48)), None, GPU, verify.FORMS)
    assert not [row for row in rows if row["verdict"] != "ok"]
    assert len(rows) == sum(len(verify.TOLERANCES[form.precision]) for form in verify.FORMS)


def test_halves_of_the_gpu_are_those_of_the_cpu(tmp_path):
    trajectory = np.cumsum(np.random.default_rng(5).normal(0, 0.6, (8, 2)), axis=0)
    counts = frames(1, 20 + 4 * field(1, (256, 288)), trajectory)
    counts[:, [30, 100, 101], [7, 200, 200]] = 255  # hot in every frame: to be repaired
    path = write_movie(tmp_path / "m.mrc", counts)
    made = []
    for where in ("cpu", "cuda"):
        with movies.open_movie(path) as movie:
            made.append(split.split_movie(movie, split.SplitSettings(dose_e_per_A2=20.0), where))
    (a, b, cpu), (a2, b2, gpu) = (m[:3] for m in made)
    np.testing.assert_allclose(gpu["trajectory_A"], cpu["trajectory_A"], atol=2e-3)
    assert gpu["defects"] == cpu["defects"] > 0
    for x, y in ((a, a2), (b, b2)):
        assert np.abs(x - y).max() < 0.02 * x.std()


def test_denoising_on_the_gpu_is_that_of_the_cpu():
    torch.manual_seed(1)
    net = unet.UNet(unet.NetSettings(stride=2, channels=(8, 12), blocks=1)).eval()
    for p in net.parameters():
        torch.nn.init.kaiming_normal_(p, a=0.1)
    image = field(3, (300, 260)).astype(np.float32)
    tf32 = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        cpu = denoise_tiles.denoise_image(net, image, precision="float32")
        gpu = denoise_tiles.denoise_image(net.to(GPU), image, precision="float32")
    finally:
        torch.backends.cudnn.allow_tf32 = tf32
    assert np.abs(cpu - gpu).max() < 1e-5 * np.abs(cpu).max()


@pytest.fixture
def plain_float32():
    """Convolutions in float32 and not in TF32."""
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    yield
    torch.backends.cudnn.allow_tf32 = before


def test_many_micrographs_on_the_gpu_are_those_of_the_cpu(tmp_path, plain_float32):
    weights = write_weights(tmp_path / "w.safetensors", pixel_size_A="1.5")
    for i, shape in enumerate([(300, 260), (300, 260), (128, 400), (700, 500), (64, 64), (300, 260)] * 2):
        mrcio.write_mrc(tmp_path / f"m{i:02d}.mrc", 500 + 40 * white(i, shape), 0.9 if i % 3 else 1.5)
        with mrcfile.mmap(tmp_path / f"m{i:02d}.mrc", "r+") as mrc:
            mrc.data[10, 10], mrc.data[20, 20] = 1e6, np.nan
    for where in ("cpu", "cuda"):
        args = [tmp_path / "m*.mrc", "-o", tmp_path / where, "--weights", weights, "--precision", "float32"]
        assert command("denoise", *args, "--device", where) == 0
    for i in range(12):
        cpu, gpu = (mrcio.read_mrc(tmp_path / where / f"m{i:02d}.mrc")[0] for where in ("cpu", "cuda"))
        assert np.abs(cpu - gpu).max() < 1e-4 * cpu.std()
    rows = [files.read_table(tmp_path / where / "summary.tsv", ["hot"]) for where in ("cpu", "cuda")]
    names = ("micrograph", "status", "hot", "not_finite", "sentence")
    assert [[row[n] for n in names] for row in rows[0]] == [[row[n] for n in names] for row in rows[1]]


def test_pieces_come_to_the_gpu_and_back_whole_while_it_is_busy():
    work = torch.randn(3000, 3000, device=GPU)
    images = [white(i, (2100, 1999)) for i in range(6)]  # several pieces each

    def there_and_back(image):
        with denoise_staging.own_stream(GPU):
            x, at = denoise_staging.empty(image.shape, GPU), 0
            for piece in denoise_staging.filling(x):
                piece[:] = image.reshape(-1)[at : at + piece.size]
                at += piece.size
            numbers = denoise_staging.statistics(x)
            return np.concatenate([piece.copy() for piece in denoise_staging.fetched(x)]).reshape(image.shape), numbers

    with ThreadPoolExecutor(3) as threads:
        found = [threads.submit(there_and_back, image) for image in images]
        for _ in range(50):
            work = torch.nn.functional.normalize(work @ work)
        for image, (back, numbers) in zip(images, (f.result() for f in found), strict=True):
            np.testing.assert_array_equal(back, image)
            np.testing.assert_allclose(numbers, micrograph_outputs.statistics(image), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("when", ["read", "prepared"])
def test_micrographs_that_find_no_room_on_the_gpu_are_read_again(tmp_path, plain_float32, monkeypatch, when):
    weights = write_weights(tmp_path / "w.safetensors", pixel_size_A="1.5")
    for i in range(6):
        mrcio.write_mrc(tmp_path / f"m{i}.mrc", 500 + 40 * white(i, (300, 260)), 1.5)
    args = [tmp_path / "m*.mrc", "--weights", weights, "--precision", "float32", "--device", "cuda", "-o"]
    assert command("denoise", *args, tmp_path / "plain") == 0
    calls, prepare = iter(range(1000)), denoise_model.prepare

    def empty(shape, where):
        if where.type == "cuda" and next(calls) % 2:
            raise MemoryError("CUDA out of memory")
        return torch.empty(shape, device=where)

    def prepare_one_of_two(images, *args):
        if images[0].is_cuda and next(calls) % 2:
            images[0].zero_()  # what it had done before
            raise torch.OutOfMemoryError("CUDA out of memory")
        return prepare(images, *args)

    if when == "read":
        monkeypatch.setattr(denoise_staging, "empty", empty)
    else:
        monkeypatch.setattr(denoise_model, "prepare", prepare_one_of_two)
    assert command("denoise", *args, tmp_path / "short") == 0
    for i in range(6):
        plain, short = (mrcio.read_mrc(tmp_path / out / f"m{i}.mrc")[0] for out in ("plain", "short"))
        assert np.abs(plain - short).max() < 1e-4 * plain.std()


def test_where_the_gpus_memory_is_short_tiles_are_halved():
    net, image = random_net(unet.NetSettings()).to(GPU), torch.from_numpy(white(1, (3000, 3000))).to(GPU)
    whole = denoise_tiles.Tiled(net)(image)
    torch.cuda.empty_cache()
    room = (torch.cuda.memory_reserved() + 350e6) / torch.cuda.get_device_properties(GPU).total_memory
    torch.cuda.set_per_process_memory_fraction(room)
    try:
        run = denoise_tiles.Tiled(net)
        tiled = run(image)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert run.tile < 3000
    # In bfloat16, where kernels for another size may add up in another order.
    assert float((tiled - whole).square().mean().sqrt()) < 5e-3 * float(whole.std())


def test_a_run_killed_on_the_gpu_ends_with_the_same_weights(tmp_path):
    records = write_pairs(tmp_path / "h", 2, (256, 256))
    manifest = write_shards(tmp_path / "s", records, 128)
    settings = {"steps": 400, "batch": 2, "crop": 64, "checkpoint_every": 20, "validate_every": 100}
    settings["net"] = {"channels": [16, 24]}

    def arguments(out):
        return [
            "train-unet", "--manifest", manifest, "--weights", out / "weights.safetensors", "--metrics",
            out / "metrics.json", "--history", out / "log.csv", "--device", "cuda", "--settings", json.dumps(settings),
        ]  # fmt: skip

    assert command(*arguments(tmp_path / "whole")) == 0
    out = tmp_path / "killed"
    checkpoint = out / "checkpoints" / "last.ckpt"
    process = subprocess.Popen([sys.executable, "-m", "cryon2n", *map(str, arguments(out))], start_new_session=True)
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert checkpoint.exists() and not (out / "weights.safetensors").exists()
    assert command(*arguments(out)) == 0
    whole, resumed = (load_file(d / "weights.safetensors") for d in (tmp_path / "whole", out))
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)


@pytest.mark.parametrize("kind", ["gpu", "ram", "stream"])
def test_a_busy_gpu_gets_the_batches_of_the_cpu(tmp_path, kind):
    manifest = write_shards(tmp_path / "s", write_pairs(tmp_path / "h", n=4), 64)
    wanted = loaders.open_loader(manifest, "ram", 32, 6, 3, torch.device("cpu"))
    loader = loaders.open_loader(manifest, kind, 32, 6, 3, GPU)
    work = torch.randn(3000, 3000, device=GPU)
    found = []
    for step, batch in enumerate(loader.batches(0, 200)):
        for _ in range(step % 7):  # queues run late, by different amounts
            work = torch.nn.functional.normalize(work @ work)
        found.append([x.clone() for x in batch.tensors()])
    for tensors, batch in zip(found, wanted.batches(0, 200), strict=True):
        assert all(torch.equal(x.cpu(), y) for x, y in zip(tensors, batch.tensors(), strict=True))
    assert 0 <= loader.waits.share() < 1 and loader.waits.steps >= 180
