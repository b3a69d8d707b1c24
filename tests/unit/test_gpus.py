"""Jobs side by side take a GPU each: real processes and locks, with a stand-in for NVML."""

import os
import signal
import subprocess
import sys

import pytest

from cryon2n import cli, gpus

NVML = """
import types
CARDS = {cards}  # name, GB in use
class NVMLError(Exception):
    pass
def nvmlInit():
    if not CARDS:
        raise NVMLError("no driver")
def nvmlDeviceGetCount():
    return len(CARDS)
def nvmlDeviceGetHandleByIndex(i):
    return i
def nvmlDeviceGetHandleByUUID(uuid):
    return "abcdef".index(uuid.decode().removeprefix("GPU-"))
def nvmlDeviceGetUUID(i):
    return "GPU-" + "abcdef"[i]
def nvmlDeviceGetName(i):
    return CARDS[i][0]
def nvmlDeviceGetMemoryInfo(i):
    return types.SimpleNamespace(used=CARDS[i][1] * 1e9)
"""
JOB = """
import os, sys
from pathlib import Path
from cryon2n import gpus
gpus.LOCKS = Path(sys.argv[1])
os.umask(0o077)
gpus.take()
if len(sys.argv) > 2 and os.fork() == 0:
    sys.stdin.read()  # lives on
    os._exit(0)
print(os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def job(tmp_path):
    """Start jobs that take a GPU and hold it until they end; gives what each then sees."""
    started = []

    def start(cards, visible, *more):
        (tmp_path / "pynvml.py").write_text(NVML.format(cards=cards))
        own = {"PYTHONPATH": str(tmp_path), "CUDA_VISIBLE_DEVICES": visible}
        words = [sys.executable, "-c", JOB, str(tmp_path), *more]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        process = subprocess.Popen(words, **pipes, text=True, env=os.environ | own)
        started.append(process)
        return process, process.stdout.readline().strip()

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def test_each_job_takes_a_gpu_of_its_own_and_gives_it_back_however_it_ends(job):
    cards = [("x", 0)] * 3
    first, seen = job(cards, "0,1,2")
    assert seen == "GPU-a"
    second, seen = job(cards, "0,1,2")
    assert seen == "GPU-b"
    assert job(cards, "GPU-b,GPU-c")[1] == "GPU-c"  # however they are named
    assert job(cards, "0,1,2")[1] == "GPU-a"  # shared: all are taken
    os.kill(second.pid, signal.SIGKILL)
    second.wait()
    assert job(cards, "0,1,2")[1] == "GPU-b"
    first.stdin.close()
    first.wait()
    assert job(cards, "0,1,2")[1] == "GPU-a"


def test_the_idlest_is_taken_and_little_differences_do_not_count(job):
    cards = [("x", 20), ("x", 0.6), ("x", 0.4)]
    assert [job(cards, "0,1,2")[1] for _ in range(4)] == ["GPU-b", "GPU-c", "GPU-a", "GPU-b"]


def test_a_forked_child_does_not_keep_the_gpu_of_a_parent_that_was_killed(job):
    cards = [("x", 0)] * 2
    parent, seen = job(cards, "0,1", "with a child")
    assert seen == "GPU-a"
    parent.kill()
    parent.wait()
    assert job(cards, "0,1")[1] == "GPU-a"


def test_all_users_may_ask_for_the_locks(job, tmp_path):
    assert job([("x", 0)] * 2, "0,1")[1] == "GPU-a"
    assert (tmp_path / "cryon2n-GPU-a.lock").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    ("cards", "visible"),
    [
        ([("x", 0), ("y", 0)], "0,1"),  # unlike: CUDA finds the fastest
        ([("x", 0), ("y", 0)], "GPU-a,GPU-b"),
        ([("x", 0), ("x", 0)], "1"),
        ([("x", 0), ("x", 0)], "MIG-1,MIG-2"),
        ([("x", 0), ("x", 0)], ""),
        ([], "0,1"),  # no driver
    ],
)
def test_where_there_is_nothing_to_choose_or_it_is_not_sure_nothing_changes(job, cards, visible):
    assert job(cards, visible)[1] == visible


def test_without_a_gpu_nvml_is_not_asked(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpus.glob, "glob", lambda pattern: [])
    monkeypatch.setattr(gpus, "ask", lambda question: pytest.fail("was asked"))
    gpus.take()


def test_a_lock_that_cannot_be_made_takes_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(gpus, "LOCKS", tmp_path / "not there")
    assert not gpus._lock("GPU-a")
    monkeypatch.setattr(gpus, "LOCKS", tmp_path)
    (tmp_path / "cryon2n-GPU-a.lock").symlink_to(tmp_path / "elsewhere")
    assert not gpus._lock("GPU-a")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    ("words", "takes"),
    [
        (["verify", "--weights", "none"], True),
        (["verify", "--weights", "none", "--device", "cpu"], False),
        (["split-halves", "--movie", "none.mrc", "--out-dir", "out", "--processes", "2"], False),
        (["shards", "verify", "none"], False),
    ],
)
def test_a_command_takes_one_if_it_is_to_compute_on_one(monkeypatch, tmp_path, words, takes):
    taken = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gpus, "take", lambda: taken.append(1))
    assert cli.main(words) != 0
    assert taken == [1] * takes
