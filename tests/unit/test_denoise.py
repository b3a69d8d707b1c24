"""The workflow's denoising of halves."""

import numpy as np
import pytest

from cryon2n import pair
from cryon2n.denoise_tiles import denoise_image
from making import command, field, random_net, white, write_pair, write_weights


@pytest.fixture
def weights(tmp_path):
    return write_weights(tmp_path / "models" / "tiny" / "weights.safetensors", trained_on='["seen"]')


def test_the_pair_is_denoised_as_the_data_guide_says(tmp_path, cryon2n, weights):
    clean = 100 + 0.5 * field(1)
    record = write_pair(tmp_path, "m", 3 * clean + white(1), 3 * clean + white(2), n_frames=(3, 3))
    cryon2n(
        "denoise-micrograph", "--weights", weights, "--halves", record, "--out", tmp_path / "out", "--device", "cpu",
        "--precision", "float32", "--threads", 1,
    )  # fmt: skip
    halves, net = pair.load_pair(record), random_net()
    found = pair.read_estimates(halves, tmp_path / "out")
    for name in ("a", "b", "full", "noise"):
        np.testing.assert_allclose(found[name], denoise_image(net, getattr(halves, name), 4096, "float32"), atol=1e-3)
    np.testing.assert_allclose(found["mean"], (found["a"] + found["b"]) / 2, atol=1e-3)
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"m.json", "m.mrc", "m_a.mrc", "m_b.mrc", "m_full.mrc", "m_noise.mrc"}


def test_a_training_micrograph_is_noted(tmp_path, weights, capsys):
    record = write_pair(tmp_path, "seen", white(1), white(2))
    assert command("denoise-micrograph", "--weights", weights, "--halves", record, "--out", tmp_path / "out") == 0
    assert "seen is one of the training micrographs" in capsys.readouterr().err
