"""The command ``write-probes``: inputs that show what a denoiser makes of what it does not know.

Of a test micrograph two more are made, written as ordinary halves so that every method denoises them by its usual
command:

* ``{mic}-injected``: the real noise of the micrograph, and in it a molecule that no method was trained on, at the
  micrograph's own signal-to-noise ratio.  What was put in is known: ``{mic}-injected_signal.mrc``.
* ``{mic}-scrambled``: the micrograph itself with its phases randomised beyond a shell (Chen et al. 2013,
  Ultramicroscopy 135:24).  All powers are as before; beyond the shell there is nothing left to be found.

`hallucination` reads what the methods made of them.  Definitions: ``docs/hallucination.md``.
"""

import argparse
import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy import fft

from cryon2n import files, fourier, halves, log, metrics, mrcio, phantom
from cryon2n import phantom_molecule as molecules
from cryon2n.errors import InputError
from cryon2n.pair import Pair, load_pair

INJECTED, SCRAMBLED = "injected", "scrambled"
SIGNAL_ENDING = "_signal.mrc"
RADIUS = 75.0  # Å, of a particle where none is known: between ribosomes and small enzymes
DEFOCUS = 15000.0  # Å, where it is not known
COVERAGE = 0.2  # of the area, where the number of particles is not known
STREAMS = {INJECTED: 0, SCRAMBLED: 1}


# ---------------------------------------------------------------------------- the band that is looked at


def signal_band(pair: Pair, radius: float) -> tuple[int, int, np.ndarray]:
    """Return the rings between which a micrograph's particles can be seen, and its signal's powers.

    Parameters
    ----------
    pair : Pair
    radius : float
        Of the particles, in Å.

    Returns
    -------
    low : int
        The ring of two particle diameters: longer waves are ice.
    high : int
        The ring of the information limit, at least four times `low`.
    signal : ndarray, shape (n_rings,)
        ``<a, b>`` of each ring.
    """
    powers = metrics.ring_powers({"a": pair.a, "b": pair.b}, pair.valid, pair.pixel_size, ("a_a", "b_b", "a_b"))
    size = max(pair.a.shape) * pair.pixel_size
    low = max(round(size / (4 * radius)), 1)
    high = max(metrics.information_limit(powers), 4 * low)
    n_rings = len(powers["a_b"])
    if high >= n_rings:
        raise InputError(
            f"{pair.name}: particles of radius {radius:g} Å want rings up to {high}, the micrograph has {n_rings}; "
            "give larger particles or a micrograph of smaller pixels"
        )
    return low, high, powers["a_b"]


# ---------------------------------------------------------------------------- a molecule that no one was trained on


def tripod(radius: float, mass_kDa: float, seed: int = 0) -> molecules.Molecule:
    """Build three thick arms at right angles that meet in a point: neither a barrel nor a shell nor a ball.

    Parameters
    ----------
    radius : float
        Length of an arm, Å.
    mass_kDa : float
    seed : int

    Returns
    -------
    Molecule
        Atoms spread evenly over arms whose thickness is a third of their length.
    """
    rng = molecules.stream(seed)
    n, thick = 4000, radius / 6
    along = rng.uniform(0, radius, (3, n))
    around = rng.uniform(0, 2 * np.pi, (3, n))
    off = thick * np.sqrt(rng.uniform(0, 1, (3, n)))
    arms = []
    for k in range(3):
        arm = np.empty((n, 3))
        arm[:, k] = along[k]
        arm[:, (k + 1) % 3], arm[:, (k + 2) % 3] = off[k] * np.cos(around[k]), off[k] * np.sin(around[k])
        arms.append(arm)
    xyz = np.concatenate(arms)
    return molecules.Molecule(xyz - xyz.mean(axis=0), np.full(len(xyz), mass_kDa * 1000 / len(xyz)))


def tripod_contrast(
    shape: tuple[int, int], pixel_size: float, radius: float, n: int | None, optics: phantom.Optics, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the weak-phase contrast of tripods in random orientations, and where they are.

    Parameters
    ----------
    shape : (h, w)
    pixel_size, radius : float
        In Å.
    n : int or None
        How many centres lie in the image, about; None takes `COVERAGE`.  As many as fit if these are too many.
    optics : phantom.Optics
    seed : int

    Returns
    -------
    contrast : ndarray, shape (h, w), float32
    centres : ndarray, shape (m, 2)
        (y, x) in pixels, those within the image.
    """
    rng = molecules.stream(seed, STREAMS[INJECTED])
    reach = radius / pixel_size
    margin = int(np.ceil(2 * reach))
    field = tuple(fft.next_fast_len(side + margin, real=True) for side in shape)  # periodic: the margin takes the wrap
    fits = 0.4 * field[0] * field[1] / (np.pi * reach**2)  # discs dropped at random jam at 0.547
    density = COVERAGE / (np.pi * reach**2) if n is None else n / (shape[0] * shape[1])
    count = max(round(min(density * field[0] * field[1], fits)), 1)
    centres = molecules.place_particles(count, field, 2 * reach, rng)
    molecule = tripod(radius, 700.0)  # the mass sets the contrast, which is scaled to the data's afterwards
    mass = molecules.projected_mass(molecule, molecules.random_rotations(count, rng), centres, field, pixel_size)
    phase = phantom.phase_spectrum(mass, pixel_size, optics.voltage)
    contrast = fft.irfft2(phantom.image_spectrum(phase, field, pixel_size, optics), s=field)
    inside = ((centres >= 0) & (centres < np.array(shape))).all(axis=1)
    return contrast[: shape[0], : shape[1]], centres[inside]


def optics_of(truth: Mapping[str, Any] | None, record: Mapping[str, Any]) -> phantom.Optics:
    """Return the optics of a simulated micrograph's truth, or usual ones (`DEFOCUS`, the record's voltage)."""
    if truth is None:
        voltage = float(record.get("voltage_kV") or 300.0)
        return phantom.Optics(voltage=voltage, defocus_u=DEFOCUS, defocus_v=DEFOCUS)
    return phantom.Optics(
        voltage=float(truth["voltage_kV"]),
        cs=float(truth["cs_mm"]),
        amplitude_contrast=float(truth["amplitude_contrast"]),
        defocus_u=float(truth["defocus_u_A"]),
        defocus_v=float(truth["defocus_v_A"]),
        astigmatism_angle=float(np.radians(truth["astigmatism_angle_deg"])),
        b_factor=float(truth["b_factor_A2"]),
    )


# ---------------------------------------------------------------------------- the two probes


def inject(pair: Pair, contrast: np.ndarray, band: tuple[int, int], signal: np.ndarray) -> tuple[Pair, np.ndarray]:
    """Put an image into a micrograph's own noise, at the power that its signal has in the band.

    The noise is that of ``a - b``, which holds no signal.  Half a gets it as it is, half b turned by half a turn,
    which makes the two independent (the noise at a point and at its mirror image has nothing in common), each at
    the level that it has in the real half.

    Parameters
    ----------
    pair : Pair
    contrast : ndarray, shape (h, w)
    band : (low, high)
        Rings.
    signal : ndarray, shape (n_rings,)
        From `signal_band`.

    Returns
    -------
    injected : Pair
    image : ndarray, shape (h, w), float32
        What was put in, in normalised units.
    """
    low, high = band
    h, w = pair.a.shape
    rows, columns = pair.valid
    y0, x0 = max(rows.start, h - rows.stop), max(columns.start, w - columns.stop)
    record = {**copy.deepcopy(pair.record), "valid": [y0, h - y0, x0, w - x0]}
    own = metrics.ring_powers({"a": contrast}, pair.valid, pair.pixel_size, ("a_a",))["a_a"][low:high].sum()
    wanted = max(float(signal[low:high].sum()), 0.0)
    image = (contrast * np.sqrt(wanted / own)).astype(np.float32)
    va, vb = pair.noise_var
    noise = pair.a - pair.b
    a = image + noise * np.float32(np.sqrt(va / (va + vb)))
    b = image + noise[::-1, ::-1] * np.float32(np.sqrt(vb / (va + vb)))
    return Pair(f"{pair.name}-{INJECTED}", a, b, record), image


def scramble(pair: Pair, shell: int, seed: int) -> Pair:
    """Randomise a micrograph's phases beyond a shell, in the same way in both halves.

    Both halves keep a common, now meaningless, content beyond the shell, and their powers in every Fourier bin.

    Parameters
    ----------
    pair : Pair
    shell : int
        The last ring that keeps its phases.
    seed : int
    """
    shape = pair.a.shape
    rng = molecules.stream(seed, STREAMS[SCRAMBLED])
    turn = fft.rfft2(rng.standard_normal(shape).astype(np.float32))  # a real image's phases are as symmetric as wanted
    turn /= np.abs(turn)
    turn[fourier.ring_index(shape) <= shell] = 1
    halves_turned = (fft.irfft2(fft.rfft2(x) * turn, s=shape).astype(np.float32) for x in (pair.a, pair.b))
    return Pair(f"{pair.name}-{SCRAMBLED}", *halves_turned, copy.deepcopy(pair.record))


# ---------------------------------------------------------------------------- command


def write_probe(probe: Pair, directory: Path, about: dict[str, Any]) -> None:
    """Write a probe as halves whose record says, under ``probe``, what it is."""
    kept = {key: value for key, value in probe.record.items() if key not in ("groups", "group_stack", "made_with")}
    record = {**kept, "micrograph": probe.name, "probe": about}
    images = (probe.to_units(image, side) for image, side in ((probe.a, "a"), (probe.b, "b")))
    halves.write_halves(directory / probe.name, *images, record, {}, "write-probes")


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--halves", type=Path, required=True, metavar="RECORD", help="record of a test micrograph's halves")
    add("--truth", type=Path, metavar="DIR", help="simulated entries: {mic}.json tells radius, number and optics")
    add("--radius", type=float, metavar="Å", help=f"of the particles (default: the truth's, else {RADIUS:g})")
    add("--seed", type=int, default=0, help="of places, orientations and phases")
    add("--out", type=Path, required=True, metavar="DIR", help="gets the halves of both probes")


def _run(args: argparse.Namespace) -> None:
    pair = load_pair(args.halves)
    truth = None if args.truth is None else files.read_json(args.truth / f"{pair.name}.json")
    radius = args.radius or (RADIUS if truth is None else float(truth["particle_radius_A"]))
    if not 0 < radius < np.inf:
        raise InputError(f"--radius {radius:g}: wanted a particle's radius in Å, more than 0")
    low, high, signal = signal_band(pair, radius)
    optics = optics_of(truth, pair.record)
    n = None if truth is None else len(truth["particles"]) or None
    contrast, centres = tripod_contrast(pair.a.shape, pair.pixel_size, radius, n, optics, args.seed)
    injected, image = inject(pair, contrast, (low, high), signal)
    about = {"of": pair.name, "band": [low, high], "shell": (low + high) // 2, "radius_A": radius, "seed": args.seed}
    places = [{"x_px": round(float(x), 3), "y_px": round(float(y), 3)} for y, x in centres]
    mrcio.write_mrc(args.out / f"{injected.name}{SIGNAL_ENDING}", image, pair.pixel_size, "injected signal")
    write_probe(injected, args.out, {"kind": INJECTED, **about, "particles": places})
    write_probe(scramble(pair, about["shell"], args.seed), args.out, {"kind": SCRAMBLED, **about})
    size = max(pair.a.shape) * pair.pixel_size
    log.say(
        f"{pair.name}: {len(centres)} tripods of radius {radius:.0f} Å put into its noise with a standard deviation of "
        f"{image.std():.3f} (a half's noise: {np.sqrt(max(pair.noise_var)):.2f}); phases randomised beyond "
        f"{size / about['shell']:.1f} Å"
    )


COMMANDS = {"write-probes": (_add_arguments, _run)}
