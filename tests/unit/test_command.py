"""How a command begins and ends as a process: a GPU is woken early, and the end is short but loses nothing."""

import os
import subprocess
import sys
import threading

import pytest

from cryon2n import wake

STAGE = """
import atexit, sys, threading, time
from cryon2n import cli
def run():
    {body}
cli.main = run
"""
AS_A_COMMAND = "sys.exit(cli.command())"


def ended(body):
    text = STAGE.format(body=body) + AS_A_COMMAND
    return subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("body", "code"),
    [("return 0", 0), ("return 2", 2), ("sys.exit(3)", 3), ("sys.exit()", 0), ("sys.exit('why')", 1), ("1 / 0", 1)],
)
def test_the_exit_code_is_the_stages(body, code):
    assert ended(body).returncode == code


def test_why_it_ended_is_told():
    assert ended("sys.exit('why')").stderr == "why\n"
    assert "ZeroDivisionError" in ended("1 / 0").stderr


def test_what_was_said_arrives_and_what_was_put_off_to_the_end_is_done():
    done = ended("atexit.register(print, 'at the end'); print('x' * 100_000); return 0")
    assert done.stdout == "x" * 100_000 + "\nat the end\n"


def test_a_thread_at_work_is_waited_for_and_one_in_the_background_is_not():
    late = "threading.Thread(target=lambda: time.sleep(0.3) or print('late'), daemon={}).start(); return 4"
    for daemon, text in ((False, "late\n"), (True, "")):
        done = ended(late.format(daemon))
        assert (done.returncode, done.stdout) == (4, text)


@pytest.mark.parametrize("body", ["print('x' * 1_000_000); return 0", "print('x'); return 0"])
def test_a_reader_that_has_gone_is_told_by_the_exit_code_alone(monkeypatch, body):
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    read, write = os.pipe()
    os.close(read)
    text = STAGE.format(body=body) + AS_A_COMMAND
    done = subprocess.run([sys.executable, "-c", text], stdout=write, stderr=subprocess.PIPE, timeout=60)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")


def test_without_an_output_a_command_ends_well_all_the_same():
    done = subprocess.run(
        f'{sys.executable} -c "from cryon2n import cli; cli.command()" --version >&- 2>&-', shell=True, timeout=60
    )
    assert done.returncode == 0


# ---------------------------------------------------------------------------- wake


class Driver:
    """A driver that notes what it is asked for."""

    def __init__(self, found=0):
        self.asked, self.found = [], found

    def cuInit(self, flags):
        self.asked.append(("cuInit", flags))
        return self.found

    def cuDevicePrimaryCtxRetain(self, context, number):
        self.asked.append(("cuDevicePrimaryCtxRetain", number))
        return 0


def woken(monkeypatch, driver, arguments):
    taken = []

    def load(name):
        assert taken == [1]  # once the driver is awake it is too late
        assert name == "libcuda.so.1"
        if driver is None:
            raise OSError("no such library")
        return driver

    monkeypatch.setattr(wake.gpus, "take", lambda: taken.append(1))
    monkeypatch.setattr(wake.ctypes, "CDLL", load)
    monkeypatch.setenv("CUDA_MODULE_LOADING", "EAGER")  # so that nothing of this stays in the environment
    before = set(threading.enumerate())
    wake.start(arguments)
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
        assert not thread.is_alive()


@pytest.mark.parametrize("arguments", [["m.mrc"], ["m.mrc", "--device", "cuda"], ["--device=auto", "cpu"]])
def test_the_first_gpu_is_woken(monkeypatch, arguments):
    driver = Driver()
    woken(monkeypatch, driver, arguments)
    assert driver.asked == [("cuInit", 0), ("cuDevicePrimaryCtxRetain", 0)]


@pytest.mark.parametrize(
    "arguments", [["m.mrc", "--device", "cpu"], ["--device=cpu"], ["--devices", "0", "1"], ["--devices=all"], ["-h"]]
)
def test_no_gpu_is_woken_that_may_not_be_wanted(monkeypatch, arguments):
    driver = Driver()
    woken(monkeypatch, driver, arguments)
    assert driver.asked == []


def test_without_a_driver_or_a_gpu_nothing_happens(monkeypatch):
    woken(monkeypatch, None, ["m.mrc"])
    without = Driver(found=100)  # CUDA_ERROR_NO_DEVICE
    woken(monkeypatch, without, ["m.mrc"])
    assert without.asked == [("cuInit", 0)]
    woken(monkeypatch, object(), ["m.mrc"])
