"""The network: homogeneity, shapes, its start, how far it sees, and its files."""

import pickle

import pytest
import torch

from cryon2n import unet
from cryon2n.errors import InputError

SMALL = unet.NetSettings(stride=2, channels=(4, 6), blocks=1, lowpass=4)
SEVERAL = [
    SMALL,
    unet.NetSettings(stride=4, channels=(4, 4), blocks=1, lowpass=0),
    unet.NetSettings(stride=1, channels=(3, 3), blocks=2, lowpass=2),
    unet.NetSettings(stride=2, channels=(3, 3, 3), blocks=1, lowpass=0),
    unet.NetSettings(stride=2, channels=(4,), blocks=2, lowpass=8),
]


def random_net(settings=SMALL, seed=0, dtype=torch.float64):
    """A network whose weights are all random, none zero."""
    torch.manual_seed(seed)
    net = unet.UNet(settings).to(dtype).eval()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=(2 / p[0].numel()) ** 0.5)
    return net


def image(h, w, seed=0, dtype=torch.float64):
    return torch.randn(1, 1, h, w, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("settings", SEVERAL)
@pytest.mark.parametrize("s", [1e-3, 0.37, 50.0])
def test_a_scaled_image_gives_the_scaled_result(settings, s):
    net, x = random_net(settings), image(32, 48)
    with torch.no_grad():
        y, scaled = net(x), net(s * x)
    assert y.abs().max() > 0.01
    assert (scaled - s * y).abs().max() < 1e-12 * s * y.abs().max()


@pytest.mark.parametrize("settings", SEVERAL)
def test_any_multiple_of_the_grid_keeps_its_shape(settings):
    net = random_net(settings)
    for m, n in ((1, 1), (1, 3), (4, 2)):
        shape = (2, 1, m * net.grid, n * net.grid)
        assert net(torch.zeros(shape, dtype=torch.float64)).shape == shape


@pytest.mark.parametrize("lowpass", [0, 16])
def test_it_starts_at_the_low_pass_but_not_stuck(lowpass):
    torch.manual_seed(0)
    net = unet.UNet(unet.NetSettings(lowpass=lowpass))
    x = image(64, 64, dtype=torch.float32)
    y = net(x)
    assert (y == (unet.low_pass(x, lowpass) if lowpass else 0)).all()
    (y - x).square().mean().backward()
    assert net.head.weight.grad.abs().max() > 0
    with torch.no_grad():  # and after one step every weight gets a gradient
        net.head.weight -= 0.01 * net.head.weight.grad
    net.zero_grad()
    (net(x) - x).square().mean().backward()
    without = [name for name, p in net.named_parameters() if p.grad.abs().max() == 0]
    # Where a block's second convolution is still zero, its first waits one more step.
    assert all(name.endswith("first.weight") for name in without)


@pytest.mark.parametrize("settings", SEVERAL)
def test_no_pixel_is_seen_beyond_the_reach(settings):
    net = random_net(settings)
    size = 2 * -(-(2 * net.reach + 2 * net.grid) // (2 * net.grid)) * net.grid
    base = image(size, size)
    farthest = 0
    # All places of a pixel within one cell of the coarsest grid, on the diagonal.
    for k in range(net.grid):
        at = size // 2 + k
        touched = base.clone()
        touched[0, 0, at, at] += 1e3
        with torch.no_grad():
            where = torch.nonzero((net(touched) - net(base))[0, 0])
        assert len(where)
        farthest = max(farthest, int((where - at).abs().max()))
    assert farthest <= net.reach
    assert farthest > 0.5 * net.reach  # a bound, not a guess far off: it costs halo


def test_the_low_pass_is_the_mean_between_the_centres_of_cells():
    rows = torch.arange(12, dtype=torch.float64)
    ramp = (rows[:, None] + 10 * rows)[None, None]
    low = unet.low_pass(ramp, 4)
    # A ramp is kept between the outer centres (1.5 and 9.5), and flat beyond.
    kept = rows.clamp(1.5, 9.5)
    torch.testing.assert_close(low[0, 0], kept[:, None] + 10 * kept)


@pytest.mark.parametrize("settings", SEVERAL)
def test_a_shift_by_the_grid_shifts_the_result(settings):
    net = random_net(settings)
    margin = -(-net.reach // net.grid) * net.grid
    size = 2 * margin + 4 * net.grid
    x = image(size, size)
    with torch.no_grad():
        y, shifted = net(x), net(torch.roll(x, (net.grid, net.grid), (-2, -1)))
    inner = slice(margin + net.grid, size - margin)
    wanted = torch.roll(y, (net.grid, net.grid), (-2, -1))[..., inner, inner]
    torch.testing.assert_close(shifted[..., inner, inner], wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "values", [{"stride": 0}, {"channels": ()}, {"channels": (4, 0)}, {"blocks": 0}, {"lowpass": -1}]
)
def test_impossible_shapes_are_refused(values):
    with pytest.raises(InputError, match="network settings"):
        unet.NetSettings(**values)


# ---------------------------------------------------------------------------- files


def test_weights_survive_the_file_bit_by_bit(tmp_path):
    net = random_net(dtype=torch.float32)
    unet.save_weights(tmp_path / "w.safetensors", net, {"trained_on": "[]"})
    back, card = unet.load_weights(tmp_path / "w.safetensors")
    assert back.settings == net.settings and card["trained_on"] == "[]" and not back.training
    for (name, p), (other, q) in zip(net.state_dict().items(), back.state_dict().items(), strict=True):
        assert name == other and torch.equal(p, q)


def test_channels_last_weights_are_saved_too(tmp_path):
    net = random_net(dtype=torch.float32).to(memory_format=torch.channels_last)
    unet.save_weights(tmp_path / "w.safetensors", net, {})
    x = image(16, 16, dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(unet.load_weights(tmp_path / "w.safetensors")[0](x), net(x))


def test_files_that_are_no_weights_are_refused_with_a_sentence(tmp_path, cryon2n):
    path = tmp_path / "w.safetensors"
    with pytest.raises(InputError, match=r"w\.safetensors: cannot read"):
        unet.load_weights(path)
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return marker.write_text, ("ran",)

    for content in (pickle.dumps(Evil()), b"", b"no weights at all"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"w\.safetensors: cannot read"):
            unet.load_weights(path)
    assert not marker.exists()
    net = random_net(dtype=torch.float32)
    unet.save_weights(path, net, {})
    path.write_bytes(path.read_bytes()[:-20])
    done = cryon2n(
        "denoise-micrograph", "--weights", path, "--halves", "m.json", "--out", tmp_path / "out", check=False
    )
    assert done.returncode == 2 and "w.safetensors: cannot read the weights" in done.stderr


def test_weights_of_another_program_or_shape_are_refused(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "w.safetensors"
    save_file({"x": torch.zeros(2)}, path)
    with pytest.raises(InputError, match="holds no cryon2n network"):
        unet.load_weights(path)
    save_file({"x": torch.zeros(2)}, path, {"net": "{}"})
    with pytest.raises(InputError, match=r"w\.safetensors"):
        unet.load_weights(path)


def test_topaz_shape_is_the_published_one(tmp_path):
    net = unet.make_net(unet.NetSettings(kind="topaz")).eval()
    assert sum(p.numel() for p in net.parameters()) == 1_105_809
    x = torch.randn(1, 1, 384, 384, requires_grad=True)
    net(x)[0, 0, 192, 192].backward()
    seen = (x.grad[0, 0] != 0).nonzero() - 192
    assert seen.abs().max() <= net.reach and seen.min() == -163  # of 326 px in all
    unet.save_weights(tmp_path / "w.safetensors", net, {})
    again, _ = unet.load_weights(tmp_path / "w.safetensors")
    assert again.settings == net.settings and again.grid == 32


def test_topaz_shape_has_no_other_shape():
    with pytest.raises(InputError, match="topaz has one shape"):
        unet.NetSettings(kind="topaz", channels=(8,))
    with pytest.raises(InputError, match="kind: found 'unet'"):
        unet.NetSettings(kind="unet")


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 1, 1, 2), (1, 2, 4, 1)])
def test_the_gathering_backward_pass_of_doubling_is_that_of_the_interpolation(shape):
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    wanted = torch.nn.functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    weights = torch.randn_like(wanted)
    (back,) = torch.autograd.grad((wanted * weights).sum(), x)
    found = unet._Double.apply(x)  # what a GPU takes
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(torch.autograd.grad((found * weights).sum(), x)[0], back)
