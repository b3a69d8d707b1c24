"""Denoise micrographs with a trained network.

A micrograph is normalised as a whole and denoised in tiles whose halo is at least the network's
reach and which start on its grid: tiled and untiled are the same image.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from torch import nn

from cryon2n import device, log, mrcio, pair
from cryon2n.errors import InputError
from cryon2n.halves import pixel_size_of, robust_mean
from cryon2n.unet import load_weights

TILE = 2048  # pixels


@torch.no_grad()
def denoise_image(net: nn.Module, image: np.ndarray, tile: int = TILE, precision: str = "auto") -> np.ndarray:
    """Denoise one image.

    Parameters
    ----------
    net : nn.Module
    image : ndarray, shape (h, w)
        In normalised units; any size.
    tile : int
        Pixels; side of the region that is denoised at once, without its halo.
    precision : str
        ``auto``, ``float32`` or ``bfloat16``.

    Returns
    -------
    ndarray, shape (h, w), float32
    """
    where = next(net.parameters()).device
    autocast = device.autocast(device.choose_precision(precision, where), where)
    h, w = image.shape
    grid = net.grid
    halo = -(-net.reach // grid) * grid
    step = max(grid, tile // grid * grid)
    # Mirrored borders: a reach beyond the edge sees plausible micrograph instead of a cliff to zero.
    padded_h, padded_w = (-(-n // grid) * grid for n in (h, w))
    margin = min(halo, h - 1, w - 1) // grid * grid
    source = np.pad(
        image.astype(np.float32),
        ((margin, margin + padded_h - h), (margin, margin + padded_w - w)),
        "symmetric",
    )
    x = torch.from_numpy(source)
    out = np.empty((h, w), np.float32)
    for y0 in range(0, h, step):
        for x0 in range(0, w, step):
            y1, x1 = min(y0 + step, padded_h), min(x0 + step, padded_w)
            # In the padded image the wanted region starts `margin` later.
            top, left = max(0, y0 + margin - halo), max(0, x0 + margin - halo)
            region = x[top : y1 + margin + halo, left : x1 + margin + halo][None, None].to(where)
            # Beyond the mirror, where tiles and the whole image end alike, the network pads with zeros.
            with autocast:
                result = net(region.contiguous(memory_format=torch.channels_last))
            inner = result[0, 0, y0 + margin - top :, x0 + margin - left :].float().cpu().numpy()
            piece = inner[: min(y1, h) - y0, : min(x1, w) - x0]
            out[y0 : y0 + piece.shape[0], x0 : x0 + piece.shape[1]] = piece
    return out


def denoise_file(net: nn.Module, source: Path, target: Path, pixel_size: float | None, precision: str) -> None:
    """Denoise one micrograph file with one normalisation for the whole image; grey levels are kept."""
    image, header = mrcio.read_mrc(source)
    if image.ndim != 2:
        raise InputError(f"{source}: holds {image.ndim}-dimensional data; wanted one micrograph (h, w)")
    size = pixel_size_of(header, pixel_size, source)
    offset, scale = robust_mean(image), float(image.std(dtype=np.float64))
    if scale == 0:
        raise InputError(f"{source}: the image is constant; wanted a micrograph")
    result = denoise_image(net, (image - offset) / scale, precision=precision) * scale + offset
    mrcio.write_mrc(target, result.astype(np.float32), size, "denoised, for viewing and picking only")


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", type=Path, required=True, help="weights (safetensors) that train-unet wrote")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--halves", type=Path, nargs="+", help="records of halves: a, b, the whole and the noise are denoised"
    )
    source.add_argument("--micrographs", type=Path, nargs="+", help="plain micrographs (MRC)")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="gets one file per micrograph (data guide)"
    )
    parser.add_argument("--pixel-size", type=float, metavar="A", help="Å; default: the header's (with --micrographs)")
    parser.add_argument("--precision", choices=["auto", "float32", "bfloat16"], default="auto")
    device.add_arguments(parser)


def _run(args: argparse.Namespace) -> None:
    where = device.choose(args.device, args.threads)
    net, card = load_weights(args.weights, where)
    net = net.to(memory_format=torch.channels_last)
    trained_on = set(json.loads(card.get("trained_on", "[]")))
    for path in args.halves or []:
        halves = pair.load_pair(path)
        if halves.name in trained_on:
            log.say(f"note: {halves.name} is one of the training micrographs; scores on it would not be honest")
        estimates = pair.estimate_all(halves, lambda x: denoise_image(net, x, precision=args.precision))
        pair.write_estimates(halves, estimates, args.out, args.weights.parent.name)
        log.say(f"{halves.name}: done")
    for path in args.micrographs or []:
        target = args.out / f"{path.name.removesuffix('.gz').removesuffix('.bz2')}"
        if target.resolve() == path.resolve():
            raise InputError(
                f"{path}: --out is the micrograph's own folder; give another, so that it is not overwritten"
            )
        denoise_file(net, path, target, args.pixel_size, args.precision)
        log.say(f"{path.name}: done")


COMMANDS = {"denoise-micrograph": (_add_arguments, _run)}
