"""The mean over the 8 symmetries: equivariant whatever the network, at any shape; a method of its own in a study."""

import numpy as np
import pytest
import torch

from cryon2n import files, mrcio, study, unet
from cryon2n.denoise_model import denoise, load_model
from cryon2n.denoise_tiles import Tiled, denoise_image
from cryon2n.errors import InputError
from cryon2n.methods import model_and_symmetries
from cryon2n.symmetry import apply_symmetry
from making import command, white, write_pair


def net_of(seed=0, channels=(8, 12)):
    torch.manual_seed(seed)
    net = unet.make_net(unet.NetSettings(channels=channels, lowpass=0)).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return net


@pytest.mark.parametrize("shape", [(128, 128), (96, 160), (97, 131)])
def test_a_turned_image_gives_the_turned_result(shape):
    net, image = net_of(), torch.from_numpy(white(1, shape))
    one, eight = Tiled(net, "float32"), Tiled(net, "float32", symmetries=8)
    for k in range(1, 8):
        turned = apply_symmetry(image, k)
        assert (one(turned) - apply_symmetry(one(image), k)).abs().max() > 0.01  # the network itself is not
        torch.testing.assert_close(eight(turned), apply_symmetry(eight(image), k), atol=1e-5, rtol=0)


def test_it_is_the_mean_of_eight():
    net, image = net_of(), white(2, (80, 112))
    turns = [(k, flip) for k in range(4) for flip in (False, True)]
    expected = 0
    for k, flip in turns:
        turned = np.rot90(image, k)[:, ::-1] if flip else np.rot90(image, k)
        made = denoise_image(net, turned, precision="float32")
        expected = expected + np.rot90(made[:, ::-1] if flip else made, -k) / 8
    np.testing.assert_allclose(denoise_image(net, image, precision="float32", symmetries=8), expected, atol=1e-5)
    tiled = denoise_image(net, image, 64, "float32", 8)
    np.testing.assert_allclose(tiled, expected, atol=1e-5)


def test_of_noise_less_comes_out():
    net, image = net_of(3), white(3, (256, 256))
    one, eight = (denoise_image(net, image, precision="float32", symmetries=n).var() for n in (1, 8))
    assert eight < 0.9 * one


def test_the_commands_take_it_and_say_so(tmp_path):
    weights = tmp_path / "models" / "own" / "weights.safetensors"
    unet.save_weights(weights, net_of(), {"pixel_size_A": "1.5"})
    image = white(4, (128, 160)) * 3 + 20
    mrcio.write_mrc(tmp_path / "in" / "m.mrc", image, 1.5)
    for n in (1, 8):
        out = tmp_path / f"out{n}"
        args = ["-o", out, "--weights", weights, "--device", "cpu", "--symmetries", n, "--precision", "float32"]
        assert command("denoise", tmp_path / "in", *args) == 0
        model = load_model(weights, "cpu", "float32", symmetries=n)
        expected = denoise(image, model, pixel_size=1.5)
        np.testing.assert_allclose(mrcio.read_mrc(out / "m.mrc")[0], expected, atol=1e-4)
    # Not taken for done: the result depends on it.
    assert command("denoise", tmp_path / "in", *args[:-4], "--precision", "float32") == 0
    assert files.read_table(tmp_path / "out8" / "summary.tsv", ["status"])[0]["status"] == "done"
    record = write_pair(tmp_path / "h", "m", white(5), white(6))
    out = tmp_path / "denoised" / "own-x8"
    args = ["--halves", record, "--weights", weights, "--out", out, "--device", "cpu", "--symmetries", 8]
    assert command("denoise-micrograph", *args) == 0
    assert files.read_json(out / "m.json")["method"] == "own-x8"


def test_a_calibration_holds_for_what_it_was_made_with(tmp_path):
    weights = tmp_path / "w.safetensors"
    unet.save_weights(weights, net_of(), {})
    assert len({load_model(weights, "cpu", symmetries=n).identity for n in (1, 8)}) == 2


def test_its_name_is_the_models_with_an_ending():
    assert model_and_symmetries("own") == ("own", 1)
    assert model_and_symmetries("own-x8") == ("own", 8)
    config = {"models": {"own-x8": {}}, "compare": {"outside": {}, "methods": ["own-x8"], "reference": "raw"}}
    with pytest.raises(InputError, match="own-x8: names that end in -x8"):
        study.read_study(config)
