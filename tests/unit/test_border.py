"""Border lines that are no picture are found, filled with their neighbours and left out; pictures are not."""

import numpy as np
import pytest
import torch

from cryon2n import border, halves_import, mrcio, pair
from cryon2n.denoise_repair import repair_pixels
from making import command, field, white

SHAPE = (384, 500)


def with_border(image, sides, level=4.0, part=slice(100, 300)):
    """Add `level` to so many outermost lines of (top, bottom, left, right), along a part of them."""
    out = image.copy()
    for turns, n in zip((0, 2, 3, 1), sides, strict=True):
        np.rot90(out, turns)[:n, part] += level
    return out


def micrograph(seed, amplitude=0.3):
    return (amplitude * field(seed, SHAPE, cutoff=0.1) + white(seed + 50, SHAPE)).astype(np.float32)


@pytest.mark.parametrize("sides", [(1, 0, 0, 0), (0, 2, 0, 0), (0, 0, 3, 0), (0, 0, 0, 12), (2, 3, 1, 4), (0, 0, 0, 0)])
@pytest.mark.parametrize("level", [4.0, -4.0])
def test_lines_along_a_part_of_a_side_are_counted(sides, level):
    image = with_border(micrograph(1), sides, level)
    assert border.bad_border(image) == sides
    assert border.bad_border(torch.from_numpy(image)) == sides


def test_the_end_of_a_side_counts_too():
    assert border.bad_border(with_border(micrograph(2), (2, 0, 0, 0), part=slice(460, 500))) == (2, 0, 0, 0)


@pytest.mark.parametrize("cutoff", [0.02, 0.1, 0.3])
@pytest.mark.parametrize("amplitude", [0.0, 0.5, 5.0])
def test_what_is_seen_in_ice_is_no_border(cutoff, amplitude):
    for seed in range(10):
        image = amplitude * field(seed, SHAPE, cutoff=cutoff) + white(seed + 50, SHAPE)
        assert border.bad_border(image) == (0, 0, 0, 0), seed


def test_gold_and_carbon_at_the_border_are_pictures():
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    image = micrograph(3)
    for cy, cx in ((0, 200), (-10, 300), (190, 4), (383, 250)):
        image[np.hypot(y - cy, x - cx) < 30] -= 8
    image[x + 2 * y > 1000] += 3
    assert border.bad_border(image) == (0, 0, 0, 0)


def test_a_deep_band_is_left_to_the_audit():
    assert border.bad_border(with_border(micrograph(4), (40, 0, 0, 0))) == (0, 0, 0, 0)


def test_images_too_small_to_tell_are_left():
    assert border.bad_border(with_border(white(5, (79, 200)), (2, 0, 0, 0), part=slice(None))) == (0, 0, 0, 0)


def test_filled_lines_hold_the_same_places_of_both_halves():
    signal = 5 * field(6, SHAPE, cutoff=0.1)
    a, b = (border.fill_border(signal + 0.001 * white(seed, SHAPE), (2, 0, 3, 1)) for seed in (7, 8))
    np.testing.assert_allclose(a, b, atol=0.02)
    inside = np.s_[2:, 3:-1]
    np.testing.assert_array_equal(a[inside], (signal + 0.001 * white(7, SHAPE))[inside])
    assert np.isin(a[:2], a[inside]).all() and np.isin(a[:, -1:], a[inside]).all()


def test_a_border_in_one_half_is_left_out_of_both(tmp_path, capsys):
    signal = 0.6 * field(9, SHAPE, cutoff=0.05)
    a, b = (signal + white(seed, SHAPE) for seed in (10, 11))
    mrcio.write_mrc(tmp_path / "a.mrc", with_border(a, (0, 2, 0, 0)).astype(np.float32), 1.5)
    mrcio.write_mrc(tmp_path / "b.mrc", with_border(b, (1, 0, 0, 0)).astype(np.float32), 1.5)
    sides = ["--a", tmp_path / "a.mrc", "--b", tmp_path / "b.mrc"]
    assert command("import-halves", *sides, "--out", tmp_path / "m") == 0
    assert "border lines of another grey level (1 top, 2 bottom)" in capsys.readouterr().err
    halves = pair.load_pair(tmp_path / "m.json")
    assert halves.record["valid"] == [1, SHAPE[0] - 2, 0, SHAPE[1]]
    assert np.abs(halves.a[-2:].mean()) < 0.5 and np.abs(halves.b[0].mean()) < 0.5
    assert halves_import.bad_border(halves.a) == halves_import.bad_border(halves.b) == (0, 0, 0, 0)


def test_a_micrograph_is_denoised_without_its_border_lines():
    image = with_border(micrograph(12), (2, 0, 0, 1), 6.0)
    image[200, 200], image[0, 150] = 40, np.nan
    x = torch.from_numpy(image)
    found = repair_pixels(x)
    assert (found.not_finite, found.hot, found.border) == (1, 1, 2 * SHAPE[1] + SHAPE[0] - 2 - 1)
    assert abs(float(x[:2, 100:300].mean())) < 0.5 and abs(float(x[:, -1].mean())) < 0.5
