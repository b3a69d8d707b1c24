"""The molecules of a simulated entry: the built-in barrel or a user's atoms, placed, turned and projected."""

from dataclasses import dataclass
from pathlib import Path

import gemmi
import numpy as np

from cryon2n.errors import InputError

# Mean protein residue C4.94 N1.36 O1.48 H7.76 S0.04: 111.2 Da, of which hydrogens are 7.82 Da.
HYDROGEN_FACTOR = 111.2 / (111.2 - 7.82)  # mass with hydrogens / mass of the heavy atoms


def stream(seed: int, *key: int) -> np.random.Generator:
    """Return the random generator of one purpose, independent of those with any other key.

    `numpy.random.SeedSequence` spawns them; random fields never come from a GPU generator.
    """
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


@dataclass(frozen=True)
class Molecule:
    """Atoms about their centre of mass.

    Attributes
    ----------
    xyz : ndarray, shape (n, 3)
        Å.
    mass : ndarray, shape (n,)
        Da, hydrogens included.
    """

    xyz: np.ndarray
    mass: np.ndarray

    @property
    def radius(self) -> float:
        """Distance of the outermost atom from the centre, Å."""
        return float(np.sqrt((self.xyz**2).sum(axis=1).max()))


def barrel(mass_kDa: float = 700.0, seed: int = 20) -> Molecule:
    """Build a barrel with the size, symmetry and mass of the 20S proteasome.

    Four stacked rings (α β β α) of seven subunits with D7 symmetry about z, 28 × 1610 pseudo-atoms.
    A subunit is a branched self-avoiding chain of 230 residues of 7 atoms within a rounded wedge; the
    α rings reach further in than the β rings, so that a chamber with narrower mouths remains.

    Parameters
    ----------
    mass_kDa : float
        Mass of the whole barrel.
    seed : int
        Of the chains: another seed is another protein of the same outline.
    """
    rng = stream(seed)
    # Ring height, distance from the axis, radial half width (Å) and turn about the axis of β and α.
    half = [
        _subunit(rng, residues=230, height=19.5, distance=40.5, half_width=17.5, turn=0.12),
        _subunit(rng, residues=230, height=59.0, distance=38.5, half_width=18.5, turn=-0.05),
    ]
    pair = np.concatenate(half)
    pair = np.concatenate([pair, pair * (1.0, -1.0, -1.0)])  # the twofold axis along x
    angles = 2 * np.pi * np.arange(7) / 7
    turns = np.array([[(np.cos(a), -np.sin(a), 0), (np.sin(a), np.cos(a), 0), (0, 0, 1)] for a in angles])
    xyz = np.einsum("sij,nj->sni", turns, pair).reshape(-1, 3)
    return Molecule(xyz - xyz.mean(axis=0), np.full(len(xyz), mass_kDa * 1000 / len(xyz)))


def _subunit(rng, residues: int, height: float, distance: float, half_width: float, turn: float):
    """Grow one subunit, shape (residues * 7, 3), Å, in place beside the z axis."""
    size = np.array([half_width, 18.5, 20.0])  # half widths: radial, tangential, axial
    spacing = 4.3  # Å between residue centres that are not neighbours in the chain
    chain = np.zeros((residues, 3))
    n, last = 1, 0
    while n < residues:
        step = rng.normal(size=(40, 3))
        trial = chain[last] + 4.4 * step / np.linalg.norm(step, axis=1, keepdims=True)
        inside = (np.abs(trial / size) ** 3).sum(axis=1) < 1
        free = ((trial[:, None] - chain[None, :n]) ** 2).sum(axis=2).min(axis=1) > spacing**2
        good = np.flatnonzero(inside & free)
        if len(good):
            chain[n], last, n = trial[good[0]], n, n + 1
        else:
            last = int(rng.integers(n))  # a dead end: branch off elsewhere
    step = rng.normal(size=(residues, 7, 3))
    for k in range(1, 7):  # short side chains of 1.5 Å bonds that keep some of their direction
        before = step[:, k - 1] / np.linalg.norm(step[:, k - 1], axis=1, keepdims=True)
        step[:, k] = 0.6 * step[:, k] + before
    atoms = np.cumsum(1.5 * step / np.linalg.norm(step, axis=2, keepdims=True), axis=1)
    atoms = (chain[:, None] + atoms - atoms.mean(axis=1, keepdims=True)).reshape(-1, 3)
    atoms += (distance, 0.0, height)
    c, s = np.cos(turn), np.sin(turn)
    return atoms @ np.array([(c, s, 0), (-s, c, 0), (0, 0, 1)])


def read_molecule(path: str | Path) -> Molecule:
    """Read the first model of a PDB or mmCIF file (also ``.gz``), without water.

    Hydrogens, in the file or not, are counted by the mean composition of protein.

    Raises
    ------
    InputError
        The file is missing, not readable as a structure, or holds no atoms.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file; atoms wants a PDB or mmCIF file, or null for the built-in barrel")
    try:
        structure = gemmi.read_structure(str(path))
    except (RuntimeError, ValueError, OSError) as error:
        raise InputError(f"{path}: not a PDB or mmCIF structure ({' '.join(str(error).split())})") from None
    structure.remove_waters()
    structure.remove_alternative_conformations()
    atoms = [hit.atom for hit in structure[0].all() if not hit.atom.is_hydrogen()] if len(structure) else []
    if not atoms:
        raise InputError(f"{path}: holds no atoms; wanted a PDB or mmCIF file with ATOM records")
    xyz = np.array([atom.pos.tolist() for atom in atoms])
    mass = np.array([atom.element.weight for atom in atoms]) * HYDROGEN_FACTOR
    return Molecule(xyz - np.average(xyz, axis=0, weights=mass), mass)


def random_rotations(n: int, rng: np.random.Generator) -> np.ndarray:
    """Return n rotation matrices, shape (n, 3, 3), uniform on SO(3) (normalised Gaussian quaternions)."""
    q = rng.normal(size=(n, 4))
    w, x, y, z = (q / np.linalg.norm(q, axis=1, keepdims=True)).T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(rows), 2, 0)


def place_particles(n: int, shape: tuple[int, int], distance: float, rng: np.random.Generator) -> np.ndarray:
    """Draw n random centres (y, x) in pixels on a periodic field, none closer than `distance` pixels.

    Returns
    -------
    ndarray, shape (n, 2)

    Raises
    ------
    InputError
        They do not fit: discs dropped at random fill at most 0.547 of a plane (Feder 1980).
    """
    size = np.array(shape, dtype=np.float64)
    centres = np.zeros((0, 2))
    hopeless = n * np.pi * (distance / 2) ** 2 > 0.547 * size.prod()
    for _ in range(0 if hopeless else 2000 * n + 1):
        if len(centres) == n:
            return centres
        trial = rng.uniform(0, size)
        apart = np.abs(centres - trial)
        apart = np.minimum(apart, size - apart)
        if not len(centres) or (apart**2).sum(axis=1).min() >= distance**2:
            centres = np.concatenate([centres, trial[None]])
    raise InputError(
        f"particles_per_um2: {n} molecules of {distance:.0f} px do not fit on {shape[0]} x {shape[1]} px "
        "without overlap; lower it"
    )


def projected_mass(
    molecule: Molecule,
    rotations: np.ndarray,
    centres: np.ndarray,
    shape: tuple[int, int],
    pixel_size: float,
) -> np.ndarray:
    """Project rotated molecules along z onto a periodic image, in Da per pixel.

    Every atom is spread as a cubic B-spline (its aliases are far below the bilinear ones);
    `phantom.phase_spectrum` divides by the spline's transform, which leaves point atoms.

    Parameters
    ----------
    molecule : Molecule
    rotations : ndarray, shape (n, 3, 3)
    centres : ndarray, shape (n, 2)
        (y, x) in pixels.
    shape : (h, w)
    pixel_size : float
        Å.

    Returns
    -------
    ndarray, shape (h, w), float32
    """
    image = np.zeros(shape, np.float32)
    for rotation, centre in zip(rotations, centres, strict=True):
        yx = molecule.xyz @ rotation[[1, 0]].T / pixel_size + centre
        whole = np.floor(yx).astype(np.int64)
        start = whole.min(axis=0) - 1
        h, w = whole.max(axis=0) + 3 - start
        wy, wx = (_cubic_weights(t) for t in (yx - whole).T)
        corner = (whole[:, 0] - 1 - start[0]) * w + whole[:, 1] - 1 - start[1]
        box = np.zeros(h * w)
        for j in range(4):
            row = wy[j] * molecule.mass
            for i in range(4):
                box += np.bincount(corner + (j * w + i), row * wx[i], minlength=h * w)
        rows, columns = (np.arange(start[k], start[k] + (h, w)[k]) % shape[k] for k in (0, 1))
        np.add.at(image, np.ix_(rows, columns), box.reshape(h, w).astype(np.float32))
    return image


def _cubic_weights(t: np.ndarray) -> tuple[np.ndarray, ...]:
    """Weights of the pixels at -1, 0, 1, 2 for a point at fraction t of the way from 0 to 1."""
    u = 1 - t
    return u**3 / 6, 2 / 3 - t**2 + t**3 / 2, 2 / 3 - u**2 + u**3 / 2, t**3 / 6
