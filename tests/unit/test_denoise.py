"""Denoising: tiles that leave no trace, grey levels kept, inputs untouched."""

import mrcfile
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cryon2n import denoise, mrcio, pair, unet
from cryon2n.errors import InputError
from making import command, field, white, write_pair

NET = unet.NetSettings(stride=2, channels=(4, 6), blocks=1)


def random_net(shape=NET, seed=0):
    torch.manual_seed(seed)
    net = unet.UNet(shape).eval()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=(2 / p[0].numel()) ** 0.5)
    return net


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "models" / "tiny" / "weights.safetensors"
    path.parent.mkdir(parents=True)
    unet.save_weights(path, random_net(), {"trained_on": '["seen"]'})
    return path


def run(net, image, tile):
    return denoise.denoise_image(net, image, tile, "float32")


@settings(max_examples=12, deadline=None)
@given(h=st.integers(2, 130), w=st.integers(2, 130), tile=st.integers(1, 120), seed=st.integers(0, 3))
def test_tiled_and_untiled_are_the_same_image(h, w, tile, seed):
    net, image = random_net(seed=seed), white(seed, (h, w))
    whole, tiled = run(net, image, 4096), run(net, image, max(tile, 24))
    assert whole.shape == (h, w) and whole.dtype == np.float32
    assert np.abs(tiled - whole).max() < 1e-5 * max(whole.std(), 1e-3)


@pytest.mark.parametrize(
    "shape", [unet.NetSettings(4, (4, 4, 4), 1), unet.NetSettings(1, (3, 3), 2), unet.NetSettings(2, (4,), 1)]
)
@pytest.mark.parametrize("size", [(257, 301), (128, 64), (17, 200)])
def test_tiles_of_other_networks(shape, size):
    net, image = random_net(shape), white(5, size)
    whole = run(net, image, 4096)
    assert np.abs(run(net, image, 64) - whole).max() < 1e-5 * whole.std()


def test_away_from_the_border_it_is_the_plain_network():
    net, image = random_net(), white(1, (160, 192))
    with torch.no_grad():
        plain = net(torch.from_numpy(image)[None, None])[0, 0].numpy()
    inner = (slice(net.reach, -net.reach), slice(net.reach, -net.reach))
    np.testing.assert_allclose(run(net, image, 64)[inner], plain[inner], atol=1e-5)


def test_borders_see_a_mirrored_image():
    net, image = random_net(), white(1, (64, 64))
    mirrored = np.pad(image, 64, "symmetric")
    np.testing.assert_allclose(run(net, image, 4096), run(net, mirrored, 4096)[64:-64, 64:-64], atol=1e-5)


def test_a_denoised_file_keeps_grey_levels_and_header(tmp_path):
    net = random_net()
    image = (500 + 40 * (field(1) + white(2))).astype(np.float32)
    mrcio.write_mrc(tmp_path / "m.mrc", image, 1.25)
    before = (tmp_path / "m.mrc").read_bytes()
    denoise.denoise_file(net, tmp_path / "m.mrc", tmp_path / "out" / "m.mrc", None, "float32")
    found, size = mrcio.read_mrc(tmp_path / "out" / "m.mrc")
    # A bias-free network: twice the contrast and another grey level in, the same out.
    mrcio.write_mrc(tmp_path / "n.mrc", 2 * image - 100, 1.25)
    denoise.denoise_file(net, tmp_path / "n.mrc", tmp_path / "out" / "n.mrc", None, "float32")
    again, _ = mrcio.read_mrc(tmp_path / "out" / "n.mrc")
    np.testing.assert_allclose(again, 2 * found - 100, rtol=1e-5, atol=1e-2)
    assert size == pytest.approx(1.25) and found.std() > 1
    with mrcfile.open(tmp_path / "out" / "m.mrc") as mrc:
        label = mrc.header.label[0].decode()
    assert "cryon2n" in label and "viewing and picking only" in label
    assert mrcfile.validate(tmp_path / "out" / "m.mrc")
    assert (tmp_path / "m.mrc").read_bytes() == before


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
        np.testing.assert_allclose(found[name], run(net, getattr(halves, name), 4096), atol=1e-3)
    np.testing.assert_allclose(found["mean"], (found["a"] + found["b"]) / 2, atol=1e-3)
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"m.mrc", "m_a.mrc", "m_b.mrc", "m_full.mrc", "m_noise.mrc"}


def test_a_training_micrograph_is_noted(tmp_path, weights, capsys):
    record = write_pair(tmp_path, "seen", white(1), white(2))
    assert command("denoise-micrograph", "--weights", weights, "--halves", record, "--out", tmp_path / "out") == 0
    assert "seen is one of the training micrographs" in capsys.readouterr().err


def test_bad_micrographs_are_refused_and_no_input_is_overwritten(tmp_path, weights, capsys):
    def attempt(image, text, out="out", size=1.5):
        mrcio.write_mrc(tmp_path / "m.mrc", image, size)
        before = (tmp_path / "m.mrc").read_bytes()
        micrograph = tmp_path / "m.mrc"
        code = command("denoise-micrograph", "--weights", weights, "--micrographs", micrograph, "--out", tmp_path / out)
        assert code == 2 and text in capsys.readouterr().err
        assert (tmp_path / "m.mrc").read_bytes() == before
        assert not (tmp_path / "out").exists()

    attempt(np.full((64, 64), 3.0, np.float32), "m.mrc: the image is constant")
    attempt(white(1, (64, 64)), "--out is the micrograph's own folder", out=".")
    attempt(white(1, (3, 64, 64)), "3-dimensional data")


def test_an_unknown_pixel_size_is_asked_for(tmp_path):
    mrcio.write_mrc(tmp_path / "m.mrc", white(1, (64, 64)), 1.0)
    with pytest.raises(InputError, match=r"pixel size missing.*--pixel-size"):
        denoise.denoise_file(random_net(), tmp_path / "m.mrc", tmp_path / "o.mrc", None, "float32")
    denoise.denoise_file(random_net(), tmp_path / "m.mrc", tmp_path / "o.mrc", 2.0, "float32")
    assert mrcio.read_mrc(tmp_path / "o.mrc")[1] == pytest.approx(2.0)
