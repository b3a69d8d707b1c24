"""A trained network ready for micrographs, and what it makes of one: `denoise` and `denoise_halves` are for scripts.

    from cryon2n.denoise_model import denoise, load_model

    model = load_model("weights.safetensors")
    clean = denoise(image, model, pixel_size=0.66)

A micrograph is repaired, normalised as a whole, brought to the model's pixel size where that is wanted, denoised, and
brought back to its own grey levels.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cryon2n import denoise_scale, denoise_staging, device, files
from cryon2n.denoise_repair import Repaired, grey_levels, repair_pixels
from cryon2n.denoise_scale import Scaling, choose_scaling
from cryon2n.denoise_tiles import Tiled
from cryon2n.denoise_uncertainty import Sums, power_percent, spread_map, sums_of
from cryon2n.errors import InputError
from cryon2n.unet import load_weights

EQUAL = 1.2  # ratio of the halves' standard deviations up to which they are taken to be of equal exposure
WARM_UP_SIDE = 512  # pixels
SMALLEST_SIDE = 64  # pixels; below, a micrograph's grey levels cannot be told


@dataclass(frozen=True)
class Model:
    """A trained network on its device.

    Attributes
    ----------
    run : Tiled
        Denoises a normalised image (h, w) on the device.
    card : dict
        What the weights' file says of them.
    sha256 : str
        Of the weights' file.
    name : str
        For labels.
    """

    run: Tiled
    card: dict[str, Any]
    sha256: str
    name: str

    @property
    def identity(self) -> str:
        """What its results depend on: the weights, and over how many symmetries the mean is taken."""
        return self.sha256 if self.run.symmetries == 1 else f"{self.sha256}-x{self.run.symmetries}"

    @property
    def where(self) -> torch.device:
        """The device."""
        return self.run.where

    @property
    def pixel_size(self) -> float | None:
        """Pixel size in Å of the micrographs that it was trained on; None where the card does not say."""
        try:
            size = float(self.card["pixel_size_A"])
        except (KeyError, ValueError):
            return None
        return size if 0 < size < np.inf else None


@dataclass(frozen=True)
class Prepared:
    """A micrograph, or its two halves, ready for the network.

    Attributes
    ----------
    images : tuple of tensor, shape (h, w)
        One, or both halves, repaired and normalised, on the device and of the pixel size for the network.
    offset, scale : float
        Grey level = offset + scale x result.
    scaling : Scaling
    repaired : Repaired
        Of both halves together.
    unequal : str
        What is wrong with the halves where they are not of equal exposure; then each has its own scale.
    """

    images: tuple[torch.Tensor, ...]
    offset: float
    scale: float
    scaling: Scaling
    repaired: Repaired
    unequal: str = ""


@dataclass(frozen=True)
class Wanted:
    """What is to be made of two halves beside the denoised micrograph."""

    uncertainty: bool = False
    signal_free: bool = False
    sums: bool = False


@dataclass(frozen=True)
class Denoised:
    """What was made of a micrograph, on the device.

    Attributes
    ----------
    image : tensor, shape (h, w)
        In the micrograph's own grey levels; of halves the mean of f(a) and f(b).
    sigma : tensor, shape (h, w), or None
        `spread_map`, not calibrated, in the same units.
    signal_free_percent : float or None
        Variance of f((a - b) / 2), which holds no signal, in percent of that of f((a + b) / 2).
    sums : Sums or None
        For a calibration.
    """

    image: torch.Tensor
    sigma: torch.Tensor | None = None
    signal_free_percent: float | None = None
    sums: Sums | None = None


def load_model(
    path: str | Path,
    where: str | torch.device = "auto",
    precision: str = "auto",
    tile: int | None = None,
    compiled: bool = False,
    symmetries: int = 1,
) -> Model:
    """Load weights that ``cryon2n train-unet`` wrote.

    Parameters
    ----------
    path : path
    where : str or torch.device
        ``auto`` (a GPU if there is one), ``cpu``, ``cuda``, ``cuda:1`` …
    precision, tile, compiled, symmetries
        As `denoise_tiles.Tiled` takes them.
    """
    path = Path(path)
    if isinstance(where, str):
        where = device.choose(where) if ":" not in where else torch.device(where)
    net, card = load_weights(path, where)
    net = net.to(memory_format=torch.channels_last).requires_grad_(False)
    name = path.parent.name if path.stem == "weights" and path.parent.name else path.stem
    return Model(Tiled(net, precision, tile, compiled, symmetries), card, files.sha256_of(path), name)


def upload(image: np.ndarray | torch.Tensor, where: torch.device) -> torch.Tensor:
    """Copy an image (h, w) of any real type to the device, as float32; a tensor that is there already is itself."""
    if isinstance(image, torch.Tensor):
        return image.to(where)
    x = denoise_staging.empty(image.shape, where)
    flat, at = np.ascontiguousarray(image).reshape(-1), 0
    for piece in denoise_staging.filling(x):
        np.copyto(piece, flat[at : at + piece.size], casting="unsafe")
        at += piece.size
    return x


@torch.no_grad()
def prepare(
    images: Sequence[np.ndarray | torch.Tensor],
    model: Model,
    pixel_size: float | None = None,
    rescale: str = "auto",
    names: Sequence[str] = ("the image", "the other half"),
) -> Prepared:
    """Bring a micrograph, or its two halves, into the form that the network takes.

    Parameters
    ----------
    images : one or two ndarrays, shape (h, w)
        Halves of equal exposure get one scale, others each its own.  Tensors, float32, are taken too, and repaired in
        place where they are on the model's device.
    model : Model
    pixel_size : float or None
        In Å; None where it is not known.
    rescale : str
        As `denoise_scale.choose_scaling` takes it.
    names : sequence of str
        Of the images, for errors.

    Raises
    ------
    InputError
        An image is too small, constant, or mostly not finite; or the halves differ in shape.
    """
    for image, name in zip(images, names, strict=False):
        if image.ndim != 2 or min(image.shape) < SMALLEST_SIDE:
            raise InputError(
                f"{name}: found shape {tuple(image.shape)}, wanted one micrograph (h, w) of at least "
                f"{SMALLEST_SIDE} x {SMALLEST_SIDE} pixels"
            )
        if image.shape != images[0].shape:
            raise InputError(
                f"{name}: {image.shape[0]} x {image.shape[1]} pixels, but {names[0]} has "
                f"{images[0].shape[0]} x {images[0].shape[1]}; wanted two halves of one micrograph"
            )
    found, levels, repaired = [], [], Repaired()
    for image, name in zip(images, names, strict=False):
        x = upload(image, model.where)
        repaired += repair_pixels(x, name)
        levels.append(grey_levels(x, name))
        found.append(x)
    scales = [s for _, s in levels]
    scale = float(np.sqrt(np.mean(np.square(scales))))
    unequal = ""
    if max(scales) > EQUAL * min(scales):
        text = " and ".join(f"{s:.4g}" for s in scales)
        unequal = f"the halves are not of equal exposure (standard deviations {text}): each was scaled by itself"
    else:
        scales = [scale] * len(scales)
    scaling = choose_scaling(images[0].shape, pixel_size, model.pixel_size, rescale)
    normalised = (x.sub_(offset).div_(s) for x, (offset, _), s in zip(found, levels, scales, strict=True))
    ready = tuple(denoise_scale.there(x, scaling) for x in normalised)
    return Prepared(ready, float(np.mean([o for o, _ in levels])), scale, scaling, repaired, unequal)


@torch.no_grad()
def compute(prepared: Prepared, model: Model, wanted: Wanted | None = None) -> Denoised:
    """Denoise what `prepare` prepared; of halves, the mean of f(a) and f(b).

    Raises
    ------
    InputError
        More is wanted of halves that are not of equal exposure: their difference would hold signal.
    """
    wanted, images = wanted or Wanted(), prepared.images
    if prepared.unequal and wanted != Wanted():
        raise InputError(f"{prepared.unequal}; uncertainty, calibration and the signal-free test want equal ones")
    results = [model.run(x) for x in images]

    def to_grey(x: torch.Tensor, offset: float) -> torch.Tensor:
        return denoise_scale.back(x, prepared.scaling).mul_(prepared.scale).add_(offset)

    if len(images) == 1:
        return Denoised(to_grey(results[0], prepared.offset))
    (a, b), (fa, fb) = images, results
    sigma = signal_free = sums = None
    if wanted.uncertainty:
        sigma = to_grey(spread_map(fa, fb), 0.0).clamp_min_(0)
    if wanted.sums:
        sums = sums_of(a, b, fa, fb)
    if wanted.signal_free:
        signal_free = power_percent(model.run((a - b) / 2), model.run((a + b) / 2))
    return Denoised(to_grey(fa.add_(fb).mul_(0.5), prepared.offset), sigma, signal_free, sums)


def warm_up(model: Model) -> None:
    """Take small images all the way: what a GPU loads and chooses once is there when the first micrograph comes.

    The network's libraries load in a thread of their own, beside all the rest.
    """
    image = np.random.default_rng(0).standard_normal((WARM_UP_SIDE, WARM_UP_SIDE), np.float32)
    tile = model.run.tile

    def network() -> None:
        with denoise_staging.own_stream(model.where):  # and so on this device
            x = torch.from_numpy(image).to(model.where)
            compute(Prepared((x,), 0.0, 1.0, Scaling(None, None, ""), Repaired()), model).image.cpu()

    try:
        with ThreadPoolExecutor(1) as beside:
            # Compiled, it would be compiled apart for this size.
            done = None if model.run.compiled else beside.submit(network)
            prepare([image], model)
            if done is not None:
                done.result()
    finally:
        model.run.tile = tile  # where memory was short for a moment, too


def denoise(
    image: np.ndarray, model: Model | str | Path, pixel_size: float | None = None, rescale: str = "auto"
) -> np.ndarray:
    """Denoise a micrograph.

    Parameters
    ----------
    image : ndarray, shape (h, w)
        Of any real type, any grey levels, and from 64 pixels a side; it is not changed.
    model : Model, or path of weights
        A path is loaded (to a GPU if there is one) at each call.
    pixel_size : float or None
        In Å.  Where the model was trained at another pixel size the micrograph is denoised at that, and brought back
        (`denoise_scale.choose_scaling`); without it, it is denoised as it is.
    rescale : str
        ``auto``, ``never`` or ``always``.

    Returns
    -------
    ndarray, shape (h, w), float32
        In the grey levels of `image`.  For looking and picking, not for reconstruction.

    Raises
    ------
    InputError
        The image cannot be denoised: `prepare`.
    """
    model = model if isinstance(model, Model) else load_model(model)
    return compute(prepare([image], model, pixel_size, rescale), model).image.cpu().numpy()


def denoise_halves(
    a: np.ndarray,
    b: np.ndarray,
    model: Model | str | Path,
    pixel_size: float | None = None,
    rescale: str = "auto",
    factor: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Denoise both halves of a micrograph.

    Parameters
    ----------
    a, b : ndarray, shape (h, w)
        Of equal exposure.
    model, pixel_size, rescale
        As for `denoise`.
    factor : float
        Of a calibration (`denoise_uncertainty.calibrate`).

    Returns
    -------
    mean : ndarray, shape (h, w), float32
        Of f(a) and f(b).
    sigma : ndarray, shape (h, w), float32
        Its standard error at each pixel: `denoise_uncertainty.spread_map` times `factor`.
    """
    model = model if isinstance(model, Model) else load_model(model)
    result = compute(prepare([a, b], model, pixel_size, rescale), model, Wanted(uncertainty=True))
    return result.image.cpu().numpy(), (result.sigma * factor).cpu().numpy()
