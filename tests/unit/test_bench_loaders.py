"""The benchmark of the loaders: what it writes, and the arithmetic in it."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import ROOT
from cryon2n import bench_capped, bench_drive, bench_feed, bench_loaders_figure, bench_memory, files, loaders, report
from cryon2n.errors import InputError
from making import command, write_pairs, write_shards

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """A run in miniature: 4 micrographs of 2 x 2 patches."""
    out = tmp_path_factory.mktemp("bench")
    assert command(
        "bench", "loaders", "--out", out, "--size-GB", 1e-6, "--shape", 128, 128, "--patch", 64, "--crop", 32,
        "--batch", 2, "--workers", 1, 2, "--seconds", 0.05, "--steps", 30, "--max-seconds", 20, "--cap-GB", 2,
        "--device", "cpu", "--threads", 1, "--set", "channels=[4]",
    ) == 0  # fmt: skip
    return out, json.loads((out / "loaders.json").read_text())


def test_it_measures_every_loader_alone_and_under_training(bench):
    out, result = bench
    rows = files.read_table(out / "loaders.tsv", ("loader", "use", "cache", "workers", "GB_per_s", "wait_share"))
    for use in ("alone", "training"):
        found = {row["loader"] for row in rows if row["use"] == use}
        assert {"ram", "stream", "DataLoader, memmap", "DataLoader, MRC"} <= found
    assert {row["workers"] for row in rows if row["loader"] == "stream" and row["use"] == "alone"} == {"1", "2"}
    for row in result["rows"]:
        # Two halves of two bytes for each pixel, and patches of 64 x 64 px.
        assert row["GB_per_s"] == pytest.approx(4e-3 * row["Mpx_per_s"]) and row["GB_per_s"] > 0
        assert row["patches_per_s"] == pytest.approx(row["Mpx_per_s"] * 1e6 / 4096)
        assert row["steps"] * 2 * 32 * 32 / row["seconds"] / 1e6 == pytest.approx(row["Mpx_per_s"])
    assert result["identical"] == {"loaders": ["ram", "stream"], "steps": 60, "identical": True}
    assert result["settings"]["data_GB"] == pytest.approx(4 * 4 * 64 * 64 * 4 / 1e9)


def test_the_run_under_a_cap_says_what_it_took(bench):
    _, result = bench
    capped = result["capped"]
    assert capped["stream"]["steps"] <= 30 and capped["samples"] and 0 < capped["peak_GB"] < 2
    assert capped["peak_rss_GB"] <= capped["peak_GB"] <= capped["peak_rss_GB"] + capped["peak_cached_GB"]
    assert capped["ratio"] == pytest.approx(capped["stream"]["Mpx_per_s"] / np.mean(capped["resident_Mpx_per_s"]))


def test_figure_and_short_table_are_there(bench):
    out, result = bench
    with Image.open(out / "loaders.png") as image:
        assert image.size[0] > 1000
    (out / "loaders.png").unlink()
    assert command("bench", "loaders", "--out", out, "--draw") == 0 and (out / "loaders.png").exists()
    text = bench_loaders_figure.markdown(result)
    assert "identical" in text and "under a cap of 2 GB" in text and "196 movies" in text
    assert result["short"]["rows"] == bench_loaders_figure.short_rows(result)


def test_data_that_is_there_is_taken(bench, capsys):
    out, _ = bench
    before = (out / "data/shards/train_a.npy").stat().st_mtime_ns
    assert command(
        "bench", "loaders", "--out", out / "again", "--data", out / "data", "--size-GB", 1e-6, "--shape", 128, 128,
        "--patch", 64, "--crop", 32, "--batch", 2, "--workers", 1, "--seconds", 0.01, "--steps", 0, "--device", "cpu",
        "--threads", 1, "--set", "channels=[4]",
    ) == 0  # fmt: skip
    assert "taken as it is" in capsys.readouterr().err
    assert (out / "data/shards/train_a.npy").stat().st_mtime_ns == before
    assert json.loads((out / "again/loaders.json").read_text())["capped"] is None


def test_bad_arguments_are_a_sentence(tmp_path, capsys):
    assert command("bench", "loaders", "--out", tmp_path, "--workers", 0, "--device", "cpu") == 2
    assert "workers [0]" in capsys.readouterr().err


def test_the_arithmetic_of_10025():
    rows = {(r["movies"], r["bin"]): r for r in bench_loaders_figure.arithmetic(1024, CPU)}
    # 7676 = 7 * 1024 + 508 and 7420 = 7 * 1024 + 252: 8 x 8 patches; halved, 4 x 4; 4 MiB a patch of two halves.
    assert rows[14, 1]["patches"] == 14 * 64 and rows[196, 2]["patches"] == 196 * 16
    assert rows[196, 1]["GB"] == pytest.approx(196 * 64 * 4 * 2**20 / 1e9)  # 52.6
    assert rows[14, 2]["GB"] == pytest.approx(14 * 16 * 4 * 2**20 / 1e9)  # 0.94
    assert all((r["loader"], r["why"]) == loaders.choose_loader("auto", int(r["GB"] * 1e9), CPU) for r in rows.values())


def test_the_growth_is_a_fitted_slope():
    steps = np.arange(0, 10001, 100)
    noise = np.where(np.arange(len(steps)) % 2, 1e6, -1e6)
    samples = [(int(s), int(2e9 + 3e6 * s / 1000 + n), 0) for s, n in zip(steps, noise, strict=True)]
    samples[0] = (0, 0, 0)  # the start does not count
    growth, error = bench_capped.slope(samples)
    # 81 points over 8 thousand steps, noise of 1 MB: error = 1 / sqrt(81 · 8² / 12).
    assert growth == pytest.approx(3, abs=0.1) and error == pytest.approx(1 / np.sqrt(81 * 64 / 12), rel=0.1)
    assert bench_capped.slope([(5, 1, 1)]) is None


def test_memory_that_a_child_takes_is_counted():
    import subprocess
    import sys

    before = bench_memory.resident_bytes()
    code = "x = bytearray(b'1') * 50_000_000; print('there', flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child.stdout.readline()
    during = bench_memory.resident_bytes()
    child.communicate(b"\n")
    assert 50e6 < during - before < 150e6


def test_other_ways_give_crops_of_the_same_data(tmp_path):
    records = write_pairs(tmp_path / "h", n=2)
    manifest = write_shards(tmp_path / "s", records)
    for dataset in (bench_feed.MemmapCrops(manifest, 32, 100), bench_feed.MrcCrops(records, 32, 100)):
        seen = list(bench_feed.TorchFeed(dataset, 3, 0, CPU).batches(0, 5))
        assert len(seen) == 5 and seen[0].a.shape == (3, 1, 32, 32)
        # Halves share their signal: a fifth of the variance, 0.25 / (0.25 + 1), in this data.
        a, b = (torch.cat([getattr(x, side) for x in seen]).double().flatten() for side in "ab")
        assert float(torch.corrcoef(torch.stack([a, b]))[0, 1]) == pytest.approx(0.2, abs=0.12)


def test_a_difference_between_loaders_shows(tmp_path):
    manifest = write_shards(tmp_path / "s", write_pairs(tmp_path / "h", n=1))
    open_ = lambda kind, seed: loaders.open_loader(manifest, kind, 32, 2, seed, CPU)  # noqa: E731
    one, other, third = (
        bench_drive.digests(open_(*x), lambda batch: None, 5) for x in (("ram", 0), ("stream", 0), ("ram", 1))
    )
    assert one == other and not set(one) & set(third)


def test_the_report_shows_it_once_it_is_there(bench, tmp_path):
    import sys

    sys.path.insert(0, str(ROOT / "tests/unit"))
    import test_report

    results, _ = test_report.make_study(
        tmp_path, {"raw": lambda x: x, "net<1>": lambda x: x / 2}, with_truth=False, micrographs=("mic_1",)
    )
    test_report.add_optional_parts(results)
    metrics = results / "models/net<1>/metrics.json"
    metrics.write_text(json.dumps({**json.loads(metrics.read_text()), "data_wait_share": 0.0123}))
    config = {**test_report.config("raw"), "models": {"net<1>": {}}}

    def page():
        return test_report.Page(report.build(config, results, test_report.records(results, ["mic_1"]), None, "g")[0])

    before = page()
    assert "Loaders, compared" not in before.text
    (results / "bench").mkdir()
    for name in ("loaders.json", "loaders.png"):
        shutil.copy(bench[0] / name, results / "bench" / name)
    after = page()
    assert "Loaders, compared" in after.text and len(after.images) == len(before.images) + 1
    patches = 196 * 60 * 58  # of 64 px, from 3838 x 3710
    for said in ("identical", "under a cap of 2 GB", "DataLoader, memmap", str(patches), "waited for data in 1.23 %"):
        assert said in after.text
    (results / "bench/loaders.json").write_text("{}")
    with pytest.raises(InputError, match=r"loaders\.json: is not what bench loaders writes"):
        page()
