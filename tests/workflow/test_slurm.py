"""The workflow through profiles/slurm, on a real one-node SLURM."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_workflow import change_config, copy_tree

from conftest import SHARED

SLURM = SHARED / "slurm"


@pytest.fixture
def slurm(tmp_path_factory):
    """A running SLURM; gives the environment for its commands."""
    if not (SLURM / "up").exists() or os.geteuid() != 0 or not shutil.which("apt-get"):
        pytest.skip("needs ../shared/slurm, root and Debian's packages to start a SLURM")
    state = tmp_path_factory.mktemp("slurm")
    knobs = {**os.environ, "SLURMUP_ACCOUNTING": "no", "SLURMUP_CPUS": "4", "SLURMUP_PORT_BASE": "17817"}
    up = subprocess.run([SLURM / "up", state], env=knobs, capture_output=True, text=True, timeout=300)
    assert up.returncode == 0, up.stdout + up.stderr
    try:
        yield {**knobs, "SLURM_CONF": f"{state}/etc/slurm.conf", "PATH": f"{state}/bin:{os.environ['PATH']}"}
    finally:
        subprocess.run([SLURM / "down", state], env={**knobs, "KEEP": "no"}, capture_output=True, timeout=120)


def test_halves_and_training_run_as_slurm_jobs(slurm, tmp_path):
    tree = copy_tree(tmp_path)
    profile = tree / "profiles/slurm/profile.yaml"
    text = profile.read_text()
    # What a user fills in; less memory and an early first look, because this node is small and has no queue.
    text = text.replace('slurm_account: ""', "slurm_account: ci").replace(
        'slurm_partition: ""', "slurm_partition: main"
    )
    profile.write_text(text + "slurm-init-seconds-before-status-checks: 2\n")
    small = change_config(tree, "small.yaml", source__n_micrographs=4, split__test=1)
    memory = {
        "train_unet": 2000,
        "simulate_movie": 1000,
        "split_halves": 1000,
        "write_shards": 1000,
        "audit_halves": 1000,
        "plot_halves": 1000,
    }
    options = {
        "--workflow-profile": ["profiles/slurm"],
        "--latency-wait": ["10"],
        "--set-threads": ["train_unet=2", "write_shards=2"],
        "--set-resources": [f"{rule}:mem_mb={mb}" for rule, mb in memory.items()],
        "--configfile": [small],
    }
    words = [word for option, values in options.items() for word in (option, *values)]
    done = subprocess.run(
        [sys.executable, SLURM / "snakemake-fast", "train_all", "halves_all", *words],
        cwd=tree,
        env=slurm,
        capture_output=True,
        text=True,
        timeout=420,
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert "profiles/slurm" in output and len(set(re.findall(r"SLURM jobid (\d+)", output))) >= 9
    assert (tree / "results/tiny/models/cryon2n/weights.safetensors").exists()
    assert (tree / "results/tiny/halves/audit.tsv").exists()
    logs = Path(tree / "logs")
    assert "2 threads" in (logs / "train_unet/tiny/cryon2n.log").read_text()
