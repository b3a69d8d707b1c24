"""Tiny data that the tests make themselves: images, movies, pairs of halves, shards."""

from pathlib import Path

import numpy as np
import torch

from cryon2n import cli, fourier, movies, mrcio, shards_write, unet
from cryon2n.halves import normalise_equal, write_halves
from cryon2n.shards_tiles import ShardSettings


def command(*args):
    """Run ``cryon2n ARGS`` in this process (no start-up of torch); returns the exit code."""
    return cli.main([str(a) for a in args])


def field(seed, shape=(128, 160), cutoff=0.15):
    """A periodic random image (h, w), float64, variance 1, without frequencies beyond `cutoff` cycles per pixel."""
    spectrum = np.fft.rfft2(np.random.default_rng([seed, 1]).standard_normal(shape))
    s = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None, :])
    spectrum[(s > cutoff) | (s == 0)] = 0
    image = np.fft.irfft2(spectrum, s=shape)
    return image / image.std()


def white(seed, shape=(128, 160), sigma=1.0):
    """White Gaussian noise (h, w), float32."""
    return (np.random.default_rng([seed, 2]).standard_normal(shape) * sigma).astype(np.float32)


def moved(image, shift):
    """The image with its content moved by `shift` = (dy, dx) pixels, periodically."""
    return fourier.fourier_shift(np.asarray(image, np.float64), shift)


def frames(seed, clean, trajectory, dtype=np.uint8):
    """Counted frames (n, h, w): Poisson counts of ``clean(y - trajectory[t])`` (expected counts per frame)."""
    rng = np.random.default_rng([seed, 3])
    return np.stack([rng.poisson(np.clip(moved(clean, t), 0, None)).astype(dtype) for t in trajectory])


def corrected(movie, index):
    """Frame `index` of an open movie, dark-subtracted and gain-multiplied."""
    return movies.RawFrames(movie, torch.device("cpu")).corrected(index).numpy()


def defects_of(movie):
    """The defects of an open movie."""
    return movies.find_defects(movies.RawFrames(movie, torch.device("cpu"))).numpy()


def write_movie(path, data, pixel_size=1.5):
    """Write frames (n, h, w) as a movie file and return its path."""
    mrcio.write_mrc(path, np.asarray(data), pixel_size)
    return Path(path)


def write_pair(directory, name, a, b, pixel_size=1.5, n_frames=(1, 1), valid=None, alignment="unknown"):
    """Write two images as the halves of micrograph `name`; returns the path of the record."""
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    valid = valid or [0, a.shape[0], 0, a.shape[1]]
    sides = normalise_equal(a, b, valid, n_frames)
    for side, n in zip("ab", n_frames, strict=True):
        sides[side] = {"frames": None, "n_frames": n, "dose_e_per_A2": None, **sides[side]}
    record = {
        "shape": list(a.shape),
        "pixel_size_A": pixel_size,
        "valid": valid,
        **sides,
        "alignment": alignment,
        "dose_weighted": None,
        "trajectory_A": None,
        "bin": 1,
        "defects": None,
    }
    write_halves(Path(directory) / name, a, b, record, {}, "test")
    return Path(directory) / f"{name}.json"


def write_pairs(directory, n=3, shape=(128, 160), amplitude=0.5, first=0):
    """Write `n` pairs of one kind of specimen, noise variance 1 in each half; returns the records."""
    return [
        write_pair(
            directory,
            f"mic{i}",
            amplitude * field(i, shape) + white(1000 + 2 * i, shape),
            amplitude * field(i, shape) + white(1001 + 2 * i, shape),
        )
        for i in range(first, first + n)
    ]


def write_shards(directory, records, patch=64):
    """Write patch shards of the records; returns the manifest's path."""
    shards_write.write_shards(records, {"val": [], "test": []}, Path(directory), ShardSettings(patch=patch))
    return Path(directory) / "manifest.json"


NET = unet.NetSettings(stride=2, channels=(4, 6), blocks=1)


def random_net(shape=NET, seed=0):
    """A network that does something, whatever it may be."""
    torch.manual_seed(seed)
    net = unet.UNet(shape).eval()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=(2 / p[0].numel()) ** 0.5)
    return net


def write_weights(path, seed=0, **card):
    """Write the random network as ``train-unet`` writes one; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unet.save_weights(path, random_net(seed=seed), card)
    return path
