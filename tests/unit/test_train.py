"""Training: the loss and the schedule in closed form, that it learns, and that a killed run goes on exactly."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cryon2n import pair, train, train_log, unet
from cryon2n.errors import InputError
from cryon2n.validation import validate
from making import command, write_pairs, write_shards

CPU = torch.device("cpu")
TINY = {
    "steps": 12, "batch": 2, "crop": 32, "seed": 5, "precision": "float32", "compile": "off", "loader": "ram",
    "validate_every": 4, "checkpoint_every": 4, "net": {"stride": 2, "channels": [4, 6]},
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Shards of two micrographs and the record of a third."""
    folder = tmp_path_factory.mktemp("data")
    records = write_pairs(folder / "h", n=3, shape=(96, 128))
    return write_shards(folder / "s", records[:2]), records[2]


def arguments(data, out, **changes):
    return [
        "train-unet", "--manifest", data[0], "--val", data[1], "--weights", out / "weights.safetensors",
        "--metrics", out / "metrics.json", "--history", out / "log.csv", "--device", "cpu", "--threads", 1,
        "--settings", json.dumps({**TINY, **changes}),
    ]  # fmt: skip


def same_weights(one, other):
    x, y = load_file(one / "weights.safetensors"), load_file(other / "weights.safetensors")
    return x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)


@pytest.fixture(scope="module")
def whole_run(data, tmp_path_factory):
    """A run that nothing disturbs."""
    out = tmp_path_factory.mktemp("whole")
    assert command(*arguments(data, out)) == 0
    return out


# ---------------------------------------------------------------------------- learning


def test_it_learns_to_beat_the_raw_half(data, tmp_path):
    settings = train.TrainSettings(
        **{
            **TINY,
            "steps": 120,
            "batch": 4,
            "rate": 5e-3,
            "validate_every": 60,
            "net": {"stride": 2, "channels": (12,)},
        }
    )
    torch.set_num_threads(1)
    net, metrics, rows = train.train(data[0], [data[1]], settings, CPU, tmp_path / "last.ckpt")
    p = pair.load_pair(data[1])
    noise = np.mean(p.noise_var)
    assert [row["step"] for row in rows] == [60, 120]
    # Half of the noise at least is gone (a zero image would give signal - noise: the signal is a fifth of the noise).
    signal = 0.25 / p.record["a"]["scale"] ** 2
    assert metrics["val_delta_umse"] < signal - noise - 0.1 * signal
    assert metrics["val_delta_umse"] == pytest.approx(validate(net, [p], "float32").delta_umse)
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_the_command_writes_weights_card_metrics_and_log(whole_run, data):
    metrics = json.loads((whole_run / "metrics.json").read_text())
    assert metrics["steps"] == 12 and metrics["loader"] == "ram" and metrics["settings"]["seed"] == 5
    assert metrics["fingerprint"] and metrics["parameters"] > 0
    lines = (whole_run / "log.csv").read_text().splitlines()
    assert lines[0].split(",") == list(train_log.COLUMNS) and [x.split(",")[0] for x in lines[1:]] == ["4", "8", "12"]
    net, card = unet.load_weights(whole_run / "weights.safetensors")
    assert json.loads(card["trained_on"]) == ["mic0", "mic1"] and card["pixel_size_A"] == "1.5"
    assert net.settings.channels == (4, 6)
    assert not (whole_run / "checkpoints" / "last.ckpt").exists()  # done: nothing to go on from


# ---------------------------------------------------------------------------- resume


def start_and_kill(command, checkpoint):
    """Start the command, and end it with SIGKILL as soon as there is a checkpoint; returns whether it was in time."""
    process = subprocess.Popen(
        [sys.executable, "-m", "cryon2n", *map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    began = time.monotonic()
    while process.poll() is None and not checkpoint.exists() and time.monotonic() - began < 60:
        time.sleep(0.002)
    if process.poll() is None:
        os.kill(process.pid, signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


# A long average and a late checkpoint: a forgotten average would still show at the end.
LONG = {"steps": 200, "checkpoint_every": 100, "average": 0.9}


def test_a_killed_run_ends_with_the_weights_of_one_that_was_not(data, tmp_path, cryon2n, capsys):
    killed, reference = tmp_path / "killed", tmp_path / "reference"
    checkpoint = killed / "checkpoints" / "last.ckpt"
    assert start_and_kill(arguments(data, killed, **LONG), checkpoint)
    assert checkpoint.exists() and not (killed / "weights.safetensors").exists()
    assert "resumed at step" in cryon2n(*arguments(data, killed, **LONG)).stderr
    assert command(*arguments(data, reference, **LONG)) == 0
    assert "resumed" not in capsys.readouterr().err
    assert same_weights(killed, reference)
    steps = [[line.split(",")[0] for line in (x / "log.csv").read_text().splitlines()] for x in (killed, reference)]
    assert steps[0] == steps[1]


def test_a_checkpoint_of_other_settings_or_a_damaged_one_is_set_aside(data, whole_run, tmp_path, capsys):
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    assert start_and_kill(arguments(data, tmp_path, **LONG), checkpoint)
    kept = tmp_path / "kept.ckpt"
    shutil.copy(checkpoint, kept)
    assert command(*arguments(data, tmp_path)) == 0
    assert "made with other settings, data or code" in capsys.readouterr().err and same_weights(tmp_path, whole_run)
    checkpoint.parent.mkdir(exist_ok=True)
    checkpoint.write_bytes(kept.read_bytes()[:-100])
    assert command(*arguments(data, tmp_path)) == 0
    assert "cannot read the checkpoint" in capsys.readouterr().err and same_weights(tmp_path, whole_run)


def test_the_loader_and_how_often_to_look_do_not_change_the_weights(data, whole_run, tmp_path):
    assert command(*arguments(data, tmp_path, loader="stream", validate_every=5, checkpoint_every=3)) == 0
    assert same_weights(tmp_path, whole_run)


def test_another_seed_gives_other_weights(data, whole_run, tmp_path):
    assert command(*arguments(data, tmp_path, seed=6)) == 0
    assert not same_weights(tmp_path, whole_run)


def test_the_fingerprint_holds_settings_and_data(data):
    manifest = json.loads(data[0].read_text())
    one = train.TrainSettings()
    mark = train.fingerprint(one, manifest)
    assert mark == train.fingerprint(train.TrainSettings(loader="stream", validate_every=7), manifest)
    assert mark != train.fingerprint(train.TrainSettings(rate=1e-3), manifest)
    assert mark != train.fingerprint(train.TrainSettings(net={"blocks": 2}), manifest)
    manifest["arrays"]["b"]["sha256"] = "0" * 64
    assert mark != train.fingerprint(one, manifest)


# ---------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"stepz": 3}, "unknown setting 'stepz'"),
        ({"steps": "many"}, "found 'many', wanted int"),
        ({"steps": 0}, "steps: found 0"),
        ({"warmup": 1.0}, "warmup: found 1.0"),
        ({"precision": "float8"}, "precision: found 'float8'"),
        ({"crop": 30, "net": {"stride": 4}}, "multiple of"),
        ({"crop": 4096}, "hold no crop of 4096"),
        ({"net": {"strides": 4}}, "unknown setting 'strides'"),
        ({"loader": "gpu"}, "CUDA device"),
    ],
)
def test_bad_settings_are_refused_with_a_sentence(data, tmp_path, capsys, changes, text):
    assert command(*arguments(data, tmp_path / "out", **changes)) == 2
    error = capsys.readouterr().err
    assert text in error.splitlines()[-1] and "Traceback" not in error
    assert not (tmp_path / "out" / "weights.safetensors").exists()


def test_a_validation_micrograph_from_the_training_set_is_refused(data, tmp_path):
    leaked = data[1].with_name("mic0.json")
    settings = train.TrainSettings(**{**TINY, "net": {"stride": 2, "channels": (4, 6)}})
    with pytest.raises(InputError, match="mic0: validation micrographs that are in the training shards"):
        train.train(data[0], [leaked], settings, CPU, tmp_path / "last.ckpt")


def test_a_negative_seed_is_a_sentence():
    with pytest.raises(InputError, match="seed: found -1"):
        train.TrainSettings(seed=-1)


# ---------------------------------------------------------------------------- fine-tuning


def test_tuning_begins_with_the_given_weights_and_gains_alone_move_alone(data, whole_run, tmp_path):
    first = whole_run / "weights.safetensors"
    changes = {"init": str(first), "net": {}, "rate": 1e-12, "weight_decay": 0.0}
    assert command(*arguments(data, tmp_path / "still", **changes)) == 0
    for x, y in zip(load_file(first).values(), load_file(tmp_path / "still/weights.safetensors").values(), strict=True):
        torch.testing.assert_close(x, y, atol=1e-9, rtol=0)
    gains = {**changes, "rate": 1e-2, "tune": "gains"}
    assert command(*arguments(data, tmp_path / "gains", **gains)) == 0
    before, after = load_file(first), load_file(tmp_path / "gains/weights.safetensors")
    assert before.keys() == after.keys()
    moved = 0
    for name in before:
        for x, y in zip(before[name], after[name], strict=True):
            # Each channel's kernel is the old one times one number.
            gain = float((x * y).sum() / (x * x).sum()) if x.any() else 1.0
            torch.testing.assert_close(y, gain * x, atol=1e-6, rtol=1e-5)
            moved += abs(gain - 1) > 1e-4
    assert moved > 5


def test_a_killed_gains_run_goes_on(data, whole_run, tmp_path):
    settings = train.TrainSettings(
        **{**TINY, "net": {}, "init": str(whole_run / "weights.safetensors"), "tune": "gains"}
    )
    whole, _, _ = train.train(data[0], [], settings, CPU, tmp_path / "none.ckpt")
    # The checkpoint of step 8 is what a run that was killed there leaves behind.
    checkpoint = tmp_path / "last.ckpt"
    train.train(data[0], [], settings, CPU, checkpoint)
    assert checkpoint.exists()
    resumed, metrics, rows = train.train(data[0], [], settings, CPU, checkpoint)
    assert metrics["steps"] == 12 and [row["step"] for row in rows] == [4, 8, 12]
    for x, y in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tune": "gains"}, "gains are those of given weights"),
        ({"init": "w.safetensors"}, "leave net out"),
        ({"init": "missing.safetensors", "net": {}}, "missing.safetensors"),
    ],
)
def test_tuning_of_nothing_is_a_sentence(changes, message, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        train.train(data[0], [], train.TrainSettings(**{**TINY, **changes}), CPU, tmp_path / "last.ckpt")
