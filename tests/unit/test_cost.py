"""What methods cost: the meter against a stand-in for NVML, and the table from what jobs left."""

import json
import sys
import time
import types

import pandas as pd
import pytest

from cryon2n import compare_cost, files, metering
from making import command


class Card:
    """A GPU that has used `joules` so far and holds `bytes` of memory."""

    def __init__(self, name="chip"):
        self.name, self.joules, self.used = name, 1000.0, 2_000_000_000


@pytest.fixture
def nvml(monkeypatch):
    """A stand-in for pynvml with one card; returns the list of cards."""
    cards = [Card()]
    module = types.ModuleType("pynvml")
    module.NVMLError = type("NVMLError", (Exception,), {})
    module.nvmlInit = lambda: None
    module.nvmlDeviceGetCount = lambda: len(cards)
    module.nvmlDeviceGetHandleByIndex = lambda i: cards[i]
    module.nvmlDeviceGetHandleByUUID = lambda uuid: {b"GPU-second": cards[-1]}[uuid]
    module.nvmlDeviceGetName = lambda card: card.name
    module.nvmlDeviceGetMemoryInfo = lambda card: types.SimpleNamespace(used=card.used)
    module.nvmlDeviceGetTotalEnergyConsumption = lambda card: card.joules * 1000
    monkeypatch.setitem(sys.modules, "pynvml", module)
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.delenv(name, raising=False)
    return cards


def test_energy_and_the_most_memory_of_a_block(nvml):
    (card,) = nvml
    meter = metering.Meter(gpu=True)
    card.used += 500_000_000  # loaded before the block: it counts
    with meter:
        for grown in (3e9, 0.0):
            card.used += int(grown)
            time.sleep(3 * metering.INTERVAL)
            card.used -= int(grown)
            assert meter.lap("result") == "result"
        card.joules += 42
    cost = meter.cost()
    assert (cost["gpu_energy_J"], cost["gpu_memory_GB"], cost["images"]) == (42, 3.5, 2)
    assert cost["seconds"] > cost["seconds_per_image"] > 0 and cost["memory_GB"] > 0.01
    assert meter.cost(on_gpu=False)["gpu_energy_J"] is None


def test_nothing_is_made_up(nvml, monkeypatch):
    with metering.Meter() as meter:
        meter.lap(None)
    cost = meter.cost()
    assert (
        cost["gpu_energy_J"] is cost["gpu_memory_GB"] is cost["seconds_per_image"] is None
    )  # one image: with start-up

    def fails(_):
        raise sys.modules["pynvml"].NVMLError

    monkeypatch.setattr(sys.modules["pynvml"], "nvmlDeviceGetTotalEnergyConsumption", fails)
    with metering.Meter(gpu=True) as meter:  # an old card, without a counter
        pass
    assert meter.cost()["gpu_energy_J"] is None and meter.cost()["gpu_memory_GB"] == 0


@pytest.mark.parametrize(
    ("names", "visible", "order", "which"),
    [
        (["x"], None, None, 0),
        (["x", "x"], "1", None, 1),
        (["x", "x"], None, None, 0),
        (["x", "y"], "1,0", None, None),  # CUDA may count them another way
        (["x", "y"], "1", "PCI_BUS_ID", 1),
        (["x", "y"], "GPU-second", None, 1),
        (["x"], "", None, None),
        (["x"], "3", None, None),
    ],
)
def test_the_first_visible_gpu_is_looked_at_or_none(nvml, monkeypatch, names, visible, order, which):
    nvml[:] = [Card(name) for name in names]
    for key, value in (("CUDA_VISIBLE_DEVICES", visible), ("CUDA_DEVICE_ORDER", order)):
        if value is not None:
            monkeypatch.setenv(key, value)
    assert metering.Meter(gpu=True).handle is (None if which is None else nvml[which])


# ---------------------------------------------------------------------------- the table


def make_results(tmp_path):
    results, jobs = tmp_path / "results/tiny", tmp_path / "jobs"
    for mic, seconds, joules in (("m1", 0.5, 40.0), ("m2", 1.5, 80.0)):
        files.write_json(results / f"halves/{mic}.json", {"shape": [1000, 2000]})
        about = {"seconds_per_image": seconds, "images": 4, "gpu_energy_J": joules, "gpu_memory_GB": 3 * seconds}
        files.write_json(results / f"denoised/net/{mic}.json", {"device": "a chip", "memory_GB": 1.0, **about})
        files.write_json(results / f"denoised/theirs/{mic}.json", {"folder": "x"})
        job = f"s\th:m:s\tmax_rss\n{8 * seconds}\t0\t0\n"
        files.write_text(jobs / f"denoise_micrograph/tiny/net/{mic}.tsv", job)
        files.write_text(jobs / f"denoise_outside/tiny/theirs/{mic}.tsv", job)  # copying, which is no denoising
    files.write_json(results / "models/net/metrics.json", {"seconds": 61.5, "gpu_energy_J": None})
    return results, jobs


def test_costs_are_means_of_what_was_measured_and_nan_elsewhere(tmp_path):
    results, jobs = make_results(tmp_path)
    tests = [results / f"halves/{mic}.json" for mic in ("m1", "m2")]
    words = ["--results", results, "--methods", "net", "theirs", "--test", *tests, "--out", results / "cost.tsv"]
    assert command("write-cost", *words, "--jobs", jobs) == 0
    table = pd.read_csv(results / "cost.tsv", sep="\t").set_index("method")
    net = table.loc["net"]
    assert list(table.columns) == compare_cost.COLUMNS[1:]
    assert (net.Mpx, net.seconds_per_image, net.Mpx_per_s, net.job_seconds) == (2, 1, 2, 8)
    assert (net.gpu_J_per_image, net.gpu_memory_GB, net.train_seconds) == (15, 4.5, 61.5)  # (40 + 80) / 2 / 4
    assert net.device == "a chip" and pd.isna(net.train_gpu_J)
    theirs = table.loc["theirs"]
    assert theirs.drop(["device", "micrographs", "Mpx"]).isna().all() and theirs.device == "not known"
    assert command("write-cost", *words) == 0  # without Snakemake's files
    assert pd.isna(pd.read_csv(results / "cost.tsv", sep="\t").set_index("method").job_seconds["net"])


def test_no_record_at_all_is_an_error(tmp_path, capsys):
    results, _ = make_results(tmp_path)
    tests = [results / "halves/m1.json"]
    out = results / "cost.tsv"
    assert command("write-cost", "--results", results, "--methods", "other", "--test", *tests, "--out", out) == 2
    assert "holds no record of any method" in capsys.readouterr().err and not out.exists()
    assert json.loads(tests[0].read_text())["shape"] == [1000, 2000]
