"""Shared by all tests: where the real data lies, and how to call the command line."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"


@pytest.fixture
def shared_data():
    """The folder of real data; the test is skipped where it is not there."""
    if not (SHARED / "data").is_dir():
        pytest.skip("the real data (../shared/data) is not here")
    return SHARED / "data"


@pytest.fixture
def cryon2n():
    """Run ``cryon2n ARGS`` as a user would; returns the finished process."""

    def run(*args, check=True, **kwargs):
        done = subprocess.run(
            [sys.executable, "-m", "cryon2n", *map(str, args)], capture_output=True, text=True, timeout=600, **kwargs
        )
        if check and done.returncode != 0:
            raise AssertionError(f"cryon2n {' '.join(map(str, args))} gave {done.returncode}:\n{done.stderr}")
        return done

    return run
