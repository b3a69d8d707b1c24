"""Tiles that leave no trace, whatever their size, and memory that runs out."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cryon2n import unet
from cryon2n.denoise_tiles import Tiled, denoise_image, largest_tile
from making import random_net, white


def run(net, image, tile):
    return denoise_image(net, image, tile, "float32")


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


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_tiles_of_the_default_network_in_both_precisions(precision):
    net, image = random_net(unet.NetSettings()), white(6, (330, 300))
    whole, tiled = (denoise_image(net, image, tile, precision) for tile in (4096, 128))
    # bfloat16 rounds single values by 2⁻⁹ of themselves, wherever a sum came out a little different.
    assert np.sqrt(np.mean((tiled - whole) ** 2)) < 1e-3 * image.std()
    assert np.abs(tiled - whole).max() < (1e-3 if precision == "float32" else 0.02) * whole.std()


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


def test_an_image_smaller_than_the_reach_is_mirrored_again_and_again():
    net, image = random_net(), white(3, (9, 70))
    margin = net.reach // net.grid * net.grid + net.grid  # tiles begin on the grid
    plane = np.pad(image, margin, "symmetric")
    expected = run(net, plane, 4096)[margin : margin + 9, margin : margin + 70]
    np.testing.assert_allclose(run(net, image, 4096), expected, atol=1e-5)


class Narrow(torch.nn.Module):
    """A network on a device that holds no more than `most` pixels at once."""

    def __init__(self, net, most, error):
        super().__init__()
        self.net, self.most, self.error, self.grid, self.reach = net, most, error, net.grid, net.reach

    def forward(self, x):
        if x.numel() > self.most:
            raise self.error
        return self.net(x)


CPU_ERROR = RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory")


CUDNN_ERROR = RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), CPU_ERROR, CUDNN_ERROR, MemoryError()])
def test_where_memory_runs_out_the_tile_is_halved_and_the_image_is_the_same(error, capsys):
    net, image = random_net(), torch.from_numpy(white(1, (400, 220)))
    whole = Tiled(net, "float32", 1024)(image)
    # Tiles of 128 with a halo on both sides fit, 200 do not.
    run = Tiled(Narrow(net, (128 + 2 * (net.reach + net.grid)) ** 2, error), "float32", 1024)
    torch.testing.assert_close(run(image), whole, rtol=0, atol=1e-5 * float(whole.std()))
    assert run.tile == 128  # half of what the image needed, 400, and then the smallest
    assert capsys.readouterr().err.count("out of memory on cpu: going on with tiles of") == 2
    run(image)
    assert capsys.readouterr().err == ""  # the next one starts with that


def test_what_does_not_fit_in_the_smallest_tiles_is_given_up():
    run = Tiled(Narrow(random_net(), 100, torch.OutOfMemoryError("CUDA out of memory")), "float32", 1024)
    with pytest.raises(torch.OutOfMemoryError, match="tiles of 128 pixels"):
        run(torch.zeros(300, 300))


def test_other_faults_are_not_taken_for_memory():
    run = Tiled(Narrow(random_net(), 100, RuntimeError("expected 4 dimensions")), "float32", 1024)
    with pytest.raises(RuntimeError, match="expected 4"):
        run(torch.zeros(300, 300))


def test_no_layer_of_the_largest_tile_has_more_values_than_kernels_can_count():
    net = unet.make_net(unet.NetSettings())
    side = largest_tile(net) + 2 * (net.reach + net.grid)
    assert 64 * (side / 4) ** 2 < 2**30 * 1.01 and largest_tile(net) > 12_288
    topaz = unet.make_net(unet.NetSettings(kind="topaz"))
    assert 97 * (largest_tile(topaz) + 2 * topaz.reach) ** 2 < 2**31
