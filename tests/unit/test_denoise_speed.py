"""The benchmark of `denoise` runs: what it puts in the network's place is taken by the pipeline as it is today."""

import sys

import pytest

from conftest import ROOT
from cryon2n import denoise_model, mrcio
from making import white, write_weights

sys.path.insert(0, str(ROOT / "benchmarks"))
from denoise_speed import stages


@pytest.mark.parametrize("cold", [False, True])
def test_micrographs_pass_no_network_and_every_stage_of_the_way_is_told(tmp_path, cold):
    weights = write_weights(tmp_path / "w.safetensors", pixel_size_A="1.5")
    model = denoise_model.load_model(weights, "cpu")
    sources = [tmp_path / f"m{i}.mrc" for i in range(3)]
    for i, path in enumerate(sources):
        mrcio.write_mrc(path, 500 + 40 * white(i, (96, 128)), 1.5)
    seconds, rows = stages.measure(model, sources, tmp_path / "made", (96, 128), 1, None, cold)
    told = {row["stage"] for row in rows if row["run"] == "no network"}
    assert {"read", "copy in", "copy back", stages.ALL} <= told and any("write" in stage for stage in told)
    assert len(seconds["no network"].wall) == len(seconds["cp"].wall) == 1
    assert not (tmp_path / "made" / "out").exists()
