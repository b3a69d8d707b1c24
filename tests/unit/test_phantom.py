"""The simulated entry: every formula against a closed form, every promise about noise against its error."""

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from scipy import fft
from scipy.spatial import cKDTree

from cryon2n import files, mrcio, phantom, phantom_stage
from cryon2n import phantom_molecule as molecules
from cryon2n.errors import InputError
from cryon2n.fourier import fourier_shift

SMALL = {"shape": [96, 80], "n_frames": 4, "dose_e_per_A2": 40.0, "hot_pixels_per_mpx": 400.0}


@pytest.fixture(scope="module")
def barrel():
    return molecules.barrel()


@pytest.fixture
def pool():
    with ThreadPoolExecutor(2) as pool:
        yield pool


def rotation_about_z(angle):
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])


# ---------------------------------------------------------------------------- the microscope


def test_wavelength_and_interaction_constant():
    # h / sqrt(2 m e V (1 + e V / 2 m c²)), CODATA
    h, m, e, c, volt = 6.62607015e-34, 9.1093837e-31, 1.602176634e-19, 299792458.0, 300e3
    wavelength = h / np.sqrt(2 * m * e * volt * (1 + e * volt / (2 * m * c * c))) * 1e10
    assert wavelength == pytest.approx(0.019687, abs=1e-6)
    assert phantom.electron_wavelength(300) == pytest.approx(wavelength, rel=1e-5)
    relativistic_mass = m * (1 + e * volt / (m * c * c))
    sigma = 2 * np.pi * relativistic_mass * e * wavelength * 1e-10 / h**2 * 1e-10
    assert phantom.interaction_constant(300) == pytest.approx(sigma, rel=1e-4)
    assert phantom.electron_wavelength(200) == pytest.approx(0.025079, abs=1e-6)


@pytest.mark.parametrize("k", [0.0, 0.01, 0.07, 0.21])
def test_ctf_is_the_two_term_form(k):
    optics = phantom.Optics(defocus_u=17000.0, defocus_v=17000.0, amplitude_contrast=0.1)
    # in metres: gamma = 2π/λ (Δz θ²/2 - Cs θ⁴/4) with θ = λ k
    wavelength = 0.0196875e-10
    theta = wavelength * k * 1e10
    gamma = 2 * np.pi / wavelength * (1.7e-6 * theta**2 / 2 - 2.7e-3 * theta**4 / 4)
    expected = -(np.sqrt(1 - 0.1**2) * np.sin(gamma) + 0.1 * np.cos(gamma))
    assert phantom.ctf(np.array(0.0), np.array(k), optics) == pytest.approx(expected, abs=1e-3)


def test_ctf_first_zero_and_sign():
    optics = phantom.Optics(defocus_u=15000.0, defocus_v=15000.0, amplitude_contrast=0.07)
    wavelength = 0.0196875
    # a u² - b u + (π - asin w) = 0 with u = k²
    a, b, c = np.pi / 2 * 2.7e7 * wavelength**3, np.pi * wavelength * 15000, np.pi - np.arcsin(0.07)
    zero = np.sqrt((b - np.sqrt(b * b - 4 * a * c)) / (2 * a))
    k = np.array([0.0, 0.999 * zero, 1.001 * zero])
    values = phantom.ctf(np.zeros(3), k, optics)
    assert values[0] == pytest.approx(-0.07)
    assert values[1] < 0 < values[2]


def test_astigmatism_lies_along_its_angle():
    angle = np.deg2rad(30.0)
    optics = phantom.Optics(defocus_u=16000.0, defocus_v=12000.0, astigmatism_angle=angle)
    for turn, defocus in ((angle, 16000.0), (angle + np.pi / 2, 12000.0), (angle + np.pi / 4, 14000.0)):
        round_one = dataclasses.replace(optics, defocus_u=defocus, defocus_v=defocus)
        k = 0.11
        got = phantom.ctf(np.array(k * np.sin(turn)), np.array(k * np.cos(turn)), optics)
        assert got == pytest.approx(phantom.ctf(np.array(0.0), np.array(k), round_one), abs=1e-9)


def test_phase_of_a_protein_slab():
    # 50 Å of protein (0.813 Da/Å³, 7.9 V) in place of ice (4.5 V)
    pixel = 2.0
    mass = np.full((16, 16), 50 * 0.813 * pixel**2, np.float32)
    phase = fft.irfft2(phantom.phase_spectrum(mass, pixel, 300.0))
    assert phase == pytest.approx(6.526e-4 * 50 * (7.92 - 4.53), rel=0.01)
    assert 0.05 < phase.mean() < 0.2  # 0.1 rad is the order of a T20S


def test_one_atom_is_a_point_wherever_it_stands():
    pixel, shape, centre = 1.3, (32, 24), np.array([[11.37, 9.81]])
    atom = molecules.Molecule(np.zeros((1, 3)), np.array([14.0]))
    mass = molecules.projected_mass(atom, np.eye(3)[None], centre, shape, pixel)
    assert mass.sum() == pytest.approx(14.0, rel=1e-6)
    got = phantom.phase_spectrum(mass, pixel, 300.0)
    ky, kx = np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None, :]
    place = np.exp(-2j * np.pi * (ky * centre[0, 0] + kx * centre[0, 1]))
    potential = phantom.excess_potential((ky**2 + kx**2) / pixel**2)
    expected = 14.0 * phantom.interaction_constant(300.0) * potential / pixel**2 * place
    low = (np.abs(ky) < 0.25) & (np.abs(kx) < 0.25)  # aliases of a cubic spline: 1.2 % at half Nyquist
    assert np.abs(got - expected)[low].max() < 0.025 * np.abs(expected).max()


def test_underfocused_molecules_are_dark(barrel):
    shape, pixel = (192, 192), 1.3
    mass = molecules.projected_mass(barrel, np.eye(3)[None], np.array([[96.0, 96.0]]), shape, pixel)
    spectrum = phantom.image_spectrum(phantom.phase_spectrum(mass, pixel, 300.0), shape, pixel, phantom.Optics())
    contrast = fft.irfft2(spectrum, s=shape)
    assert contrast.mean() == pytest.approx(0, abs=1e-6)
    assert contrast[mass > np.quantile(mass, 0.9)].mean() < -0.03


# ---------------------------------------------------------------------------- the molecule


def test_barrel_has_the_size_of_t20s(barrel):
    assert barrel.mass.sum() == pytest.approx(700e3)
    assert len(barrel.xyz) == 28 * 1610
    radius = np.hypot(barrel.xyz[:, 0], barrel.xyz[:, 1])
    # 150 x 113 Å holding all but a few side chains
    assert 2 * np.quantile(np.abs(barrel.xyz[:, 2]), 0.98) == pytest.approx(150, rel=0.05)
    assert 2 * np.quantile(radius, 0.98) == pytest.approx(113, rel=0.05)
    assert radius.min() > 10  # hollow from end to end
    assert cKDTree(barrel.xyz).query(barrel.xyz, k=2)[0][:, 1].min() > 0.01  # no two atoms in one place


def test_barrel_has_d7_symmetry(barrel):
    tree = cKDTree(barrel.xyz)
    for turned in (barrel.xyz @ rotation_about_z(2 * np.pi / 7).T, barrel.xyz * (1, -1, -1)):
        assert tree.query(turned)[0].max() < 1e-6
    for no_symmetry in (barrel.xyz @ rotation_about_z(np.pi / 7).T, barrel.xyz * (1, 1, -1)):
        assert tree.query(no_symmetry)[0].mean() > 0.5


def test_view_along_the_axis_is_sevenfold(barrel):
    def view(angle):
        rotation = rotation_about_z(angle)[None]
        return molecules.projected_mass(barrel, rotation, np.array([[50.0, 50.0]]), (100, 100), 1.5)

    still, seventh, fourteenth = view(0), view(2 * np.pi / 7), view(np.pi / 7)
    assert np.abs(seventh - still).max() < 1e-3 * still.max()
    assert np.abs(fourteenth - still).mean() > 0.1 * still.mean()
    assert still[50, 50] == 0  # the ring's hole


def test_users_structure_is_a_like_barrel(shared_data, barrel):
    real = molecules.read_molecule(shared_data / "empiar-10025" / "6BDF.pdb.gz")
    assert real.mass.sum() == pytest.approx(barrel.mass.sum(), rel=0.1)
    spread = [np.sqrt(np.linalg.eigvalsh(np.cov(m.xyz.T))) for m in (real, barrel)]
    assert spread[0] == pytest.approx(spread[1], rel=0.08)
    assert real.radius == pytest.approx(barrel.radius, rel=0.08)


def test_a_pdb_is_read_without_water_and_hydrogen(tmp_path):
    line = "{kind:6}{n:5d}  {name:3} {res:3} A{seq:4d}    {x:8.3f}{y:8.3f}{z:8.3f}  1.00 20.00          {el:>2}\n"
    atoms = [
        ("ATOM", "CA", "ALA", 1, 1.0, 2.0, 3.0, "C"),
        ("ATOM", "CB", "ALA", 1, 3.0, 2.0, 3.0, "C"),
        ("ATOM", "HA", "ALA", 1, 9.0, 9.0, 9.0, "H"),
        ("HETATM", "O", "HOH", 2, 50.0, 0.0, 0.0, "O"),
    ]
    keys = ("kind", "name", "res", "seq", "x", "y", "z", "el")
    text = "".join(line.format(n=i, **dict(zip(keys, a, strict=True))) for i, a in enumerate(atoms, 1))
    (tmp_path / "a.pdb").write_text(text + "END\n")
    got = molecules.read_molecule(tmp_path / "a.pdb")
    assert got.xyz == pytest.approx(np.array([[-1.0, 0, 0], [1.0, 0, 0]]))
    assert got.mass == pytest.approx(12.011 * 111.2 / 103.38, rel=1e-3)


def test_rotations_are_uniform():
    n = 4000
    rotations = molecules.random_rotations(n, molecules.stream(1))
    assert np.einsum("nij,nkj->nik", rotations, rotations) == pytest.approx(
        np.broadcast_to(np.eye(3), (n, 3, 3)), abs=1e-12
    )
    assert np.linalg.det(rotations) == pytest.approx(1)
    # on SO(3) every entry has mean 0 and mean square 1/3 (variance of the square: 1/5 - 1/9)
    assert np.abs(rotations.mean(axis=0)).max() < 5 * np.sqrt(1 / 3 / n)
    assert np.abs((rotations**2).mean(axis=0) - 1 / 3).max() < 5 * np.sqrt((1 / 5 - 1 / 9) / n)


def test_particles_do_not_overlap_even_around_the_edge():
    centres = molecules.place_particles(30, (400, 300), 40.0, molecules.stream(2))
    apart = np.abs(centres[:, None] - centres[None])
    apart = np.minimum(apart, np.array([400, 300]) - apart)
    distance = np.sqrt((apart**2).sum(axis=2))[np.triu_indices(30, 1)]
    assert len(centres) == 30 and distance.min() >= 40.0
    assert distance.min() < 45.0  # crowded, so the check had work to do


def test_too_many_particles_are_an_error():
    with pytest.raises(InputError, match="particles_per_um2"):
        molecules.place_particles(100, (400, 300), 60.0, molecules.stream(2))


# ---------------------------------------------------------------------------- drift and the clean frame


def small_draw(barrel, **changes):
    values = {**SMALL, "shape": (96, 80), **changes}
    settings = phantom_stage.PhantomSettings(**values)
    return settings, phantom_stage.draw_movie(settings, 0, barrel)


def test_drift_starts_at_zero_fast_and_ends_slow():
    path = phantom.drift(40, 53.0, 10.0, molecules.stream(4))
    steps = np.linalg.norm(np.diff(path, axis=0), axis=1)
    assert (path[0] == 0).all()
    assert steps[:3].mean() > 3 * steps[-10:].mean()
    assert 3.0 < np.linalg.norm(path, axis=1).max() < 15.0
    assert np.linalg.norm(np.diff(path, n=2, axis=0), axis=1).max() < 0.6 * steps.max()  # smooth


def test_moving_a_frame_back_by_its_trajectory_gives_frame_0(barrel):
    _, draw = small_draw(barrel, ice_gradient=0.0)
    whole = dataclasses.replace(draw.scene, shape=draw.scene.field)  # periodic, so exact
    first = phantom.expected_frame(whole, 0)
    for t in (1, 3):
        shift = whole.trajectory[t] / whole.pixel_size
        assert np.abs(shift).max() > 0.5
        frame = phantom.expected_frame(whole, t)
        assert np.abs(fourier_shift(frame, -shift) - first).max() < 1e-4 * first.mean()
        assert np.abs(frame - first).max() > 0.05 * first.mean()
        assert np.abs(fourier_shift(frame, shift) - first).max() > 0.05 * first.mean()


def test_ice_moves_with_the_molecules(barrel):
    _, draw = small_draw(barrel, ice_gradient=0.1)
    scene = dataclasses.replace(draw.scene, trajectory=draw.scene.pixel_size * np.array([[0, 0], [3.0, -2.0]]))
    first, second = (phantom.expected_frame(scene, t) for t in (0, 1))
    assert second[3:, :-2] == pytest.approx(first[:-3, 2:], rel=1e-4)
    layer = phantom.ice_layer(scene.ice, scene.shape, np.zeros(2))
    assert layer.mean() == pytest.approx(1, abs=1e-6)
    assert 0.1 < np.ptp(layer) < 0.4


def test_dose_is_the_mean_count():
    settings = phantom_stage.PhantomSettings(shape=(256, 256), particles_per_um2=0.0)
    draw = phantom_stage.draw_movie(settings, 0, molecules.barrel())
    total = sum(phantom.expected_frame(draw.scene, t).mean(dtype=np.float64) for t in range(16))
    assert total == pytest.approx(53 * 1.3**2, rel=2e-3)
    assert len(draw.particles) == 0


def test_particles_stand_where_the_record_says():
    # a molecule that is one heavy point, with a massless atom to keep the others 60 Å away
    point = molecules.Molecule(np.array([[0.0, 0, 0], [30.0, 0, 0]]), np.array([2000.0, 0.0]))
    settings = phantom_stage.PhantomSettings(
        shape=(300, 260), particles_per_um2=5000.0, b_factor_A2=1000.0, astigmatism_A=0.0
    )
    draw = phantom_stage.draw_movie(settings, 3, point)
    clean = np.pad(phantom.expected_frame(draw.scene, 0), 8, constant_values=np.inf)
    assert len(draw.particles) >= 3
    for y, x in draw.particles:
        window = clean[round(y) : round(y) + 17, round(x) : round(x) + 17]
        darkest = np.unravel_index(np.argmin(window), window.shape) + np.rint([y, x]) - 8
        assert np.abs(darkest - (y, x)).max() <= 0.75


# ---------------------------------------------------------------------------- the detector


def test_gain_is_positive_and_fair():
    gain = phantom.gain_reference((128, 96), 0.03, molecules.stream(5))
    assert gain.dtype == np.float32 and gain.min() > 0
    assert (1 / gain).mean() == pytest.approx(1, abs=1e-5)
    # pixels, columns and blocks together: 0.03 * sqrt(1 + 0.33² + 0.5²) = 0.035
    assert gain.std() == pytest.approx(0.035, rel=0.1)
    assert gain.mean(axis=0).std() > 2 * 0.03 / np.sqrt(128)  # columns stand out of the pixels' average


def test_dark_is_whole_and_rare():
    dark = phantom.dark_reference((200, 200), 0.05, molecules.stream(6))
    assert set(np.unique(dark)) == {0, 1, 2}
    assert np.count_nonzero(dark) / dark.size == pytest.approx(0.05, abs=5 * np.sqrt(0.05 / dark.size))


def test_counts_are_poisson_and_do_not_depend_on_threads(pool):
    expected = np.full((300, 100), 3.3, np.float32)
    dark = np.zeros_like(expected)
    counts = phantom.count(expected, dark, (1, 2, 3), pool)
    with ThreadPoolExecutor(1) as one:
        assert (phantom.count(expected, dark, (1, 2, 3), one) == counts).all()
    n = counts.size
    assert counts.dtype == np.uint8
    assert counts.mean() == pytest.approx(3.3, abs=5 * np.sqrt(3.3 / n))
    # variance of a Poisson sample variance: (m + 2 m²) / n
    assert counts.var() == pytest.approx(3.3, abs=5 * np.sqrt((3.3 + 2 * 3.3**2) / n))
    other = phantom.count(expected, dark, (1, 2, 4), pool)
    assert abs(np.corrcoef(counts.ravel(), other.ravel())[0, 1]) < 5 / np.sqrt(n)
    # blocks of rows have streams of their own
    rows = phantom.NOISE_ROWS
    assert abs(np.corrcoef(counts[:rows].ravel(), counts[rows : 2 * rows].ravel())[0, 1]) < 5 / np.sqrt(n / 3)


@pytest.mark.parametrize(("value", "message"), [(200.0, "clip"), (-0.1, "negative")])
def test_impossible_counts_are_an_error(pool, value, message):
    expected = np.full((8, 8), 5.0, np.float32)
    expected[3, 3] = value
    with pytest.raises(InputError, match=message):
        phantom.count(expected, np.zeros_like(expected), (0,), pool)


# ---------------------------------------------------------------------------- the commands


def simulate(cryon2n, folder, settings, indices=(0,), threads=1):
    text = json.dumps(settings)
    gain, dark, entry = folder / "gain.mrc", folder / "dark.mrc", folder / "entry.json"
    cryon2n("simulate-references", "--settings", text, "--gain", gain, "--dark", dark, "--entry", entry)
    for i in indices:
        out = ["--movie", folder / f"m{i}.mrc", "--truth", folder / f"t{i}.mrc", "--record", folder / f"t{i}.json"]
        cryon2n(
            *["simulate-movie", "--settings", text, "--index", i, "--name", f"mic_{i}"],
            *["--gain", gain, "--dark", dark, *out, "--threads", threads],
        )


def test_a_whole_entry(cryon2n, tmp_path):
    simulate(cryon2n, tmp_path, SMALL)
    with mrcio.open_mrc(tmp_path / "m0.mrc") as mrc:
        frames = mrcio.frame_data(mrc.data)
        assert frames.dtype == np.uint8 and frames.shape == (4, 96, 80)
        assert mrc.is_image_stack()
        assert mrcio.header_pixel_size(mrc) == pytest.approx(1.3)
        assert float(mrc.header.dmean) == pytest.approx(frames.mean(), rel=1e-5)
        assert float(mrc.header.rms) == pytest.approx(frames.std(), rel=1e-4)
        frames = frames.copy()
    truth, pixel_size = mrcio.read_mrc(tmp_path / "t0.mrc")
    assert truth.shape == (96, 80) and pixel_size == pytest.approx(1.3)
    record = files.read_json(tmp_path / "t0.json")
    assert record["micrograph"] == "mic_0" and record["seed"] == 10025
    assert np.shape(record["trajectory_A"]) == (4, 2) and record["trajectory_A"][0] == [0, 0]
    assert 10000 <= record["defocus_A"] <= 20000
    assert record["particle_radius_A"] == pytest.approx(95, rel=0.05)
    for p in record["particles"]:
        assert -0.5 <= p["x_px"] < 79.5 and -0.5 <= p["y_px"] < 95.5
    # 400 hot pixels in a million, 100 counts in each of 4 frames
    hot = [(p["y_px"], p["x_px"]) for p in record["hot_pixels"]]
    assert len(hot) == round(400 * 96 * 80 / 1e6)
    counts = np.array([frames[:, y, x] for y, x in hot])
    assert counts.mean() == pytest.approx(100, abs=5 * np.sqrt(100 / counts.size))
    normal = np.ones((96, 80), bool)
    normal[tuple(np.transpose(hot))] = False
    assert frames[:, normal].max() < counts.min()
    (imageset,) = files.read_json(tmp_path / "entry.json")["EMPIAR-00000"]["imagesets"]
    assert (imageset["image_width"], imageset["image_height"]) == ("80", "96")
    assert imageset["frames_per_image"] == 4 and imageset["voxel_type"] == "UNSIGNED BYTE"


def test_the_same_seed_gives_the_same_bytes(cryon2n, tmp_path):
    for name, threads in (("one", 1), ("two", 2)):
        simulate(cryon2n, tmp_path / name, SMALL, threads=threads)
    names = sorted(p.name for p in (tmp_path / "one").iterdir())
    assert names == ["dark.mrc", "entry.json", "gain.mrc", "m0.mrc", "t0.json", "t0.mrc"]
    for name in names:
        assert files.sha256_of(tmp_path / "one" / name) == files.sha256_of(tmp_path / "two" / name), name


def test_corrected_frames_are_the_truth_plus_independent_poisson_noise(cryon2n, tmp_path):
    # without drift every frame expects truth / n_frames, so the noise alone is left
    still = {**SMALL, "shape": [160, 128], "n_frames": 12, "drift_A": 0.0, "hot_pixels_per_mpx": 0.0}
    still["dark_fraction"] = 0.2
    simulate(cryon2n, tmp_path, still, indices=(0, 1))
    gain, _ = mrcio.read_mrc(tmp_path / "gain.mrc")
    dark, _ = mrcio.read_mrc(tmp_path / "dark.mrc")
    noise = []
    for i in (0, 1):
        raw, _ = mrcio.read_mrc(tmp_path / f"m{i}.mrc")
        clean = mrcio.read_mrc(tmp_path / f"t{i}.mrc")[0] / 12
        # variance of a corrected pixel: gain² × expected raw counts
        noise.append(((raw - dark) * gain - clean) / np.sqrt(clean * gain))
    n = noise[0].size
    assert abs(noise[0].mean()) < 5 / np.sqrt(n)
    assert noise[0].var() == pytest.approx(1, abs=5 * float(np.sqrt((2 + 1 / clean.mean()) / n)))

    def correlation(a, b):
        return abs(np.corrcoef(a.ravel(), b.ravel())[0, 1])

    bound = 5 / np.sqrt(160 * 128)
    a, b = noise
    assert correlation(a[::2].sum(axis=0), a[1::2].sum(axis=0)) < bound  # the halves
    assert correlation(a.sum(axis=0), b.sum(axis=0)) < bound  # two movies
    assert max(correlation(a[t], a[u]) for t in range(12) for u in range(t)) < bound
    assert max(correlation(a[t], b[u]) for t in range(12) for u in range(12)) < bound
    assert correlation(a[0][:, 1:], a[0][:, :-1]) < bound  # white
    # the truth fits better than the other movie's: the test can see a wrong one
    wrong = ((mrcio.read_mrc(tmp_path / "m0.mrc")[0] - dark) * gain).sum(axis=0) - clean * 12
    assert wrong.var() > 1.05 * (clean * 12).mean()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_frames": 1}, "n_frames"),
        ({"shape": [96]}, "shape"),
        ({"defocus_A": [20000, 10000]}, "defocus_A"),
        ({"dose_e_per_A2": 900.0}, "uint8"),
        ({"pixel_size_A": -1.0}, "pixel_size_A"),
        ({"doze": 1.0}, "doze"),
        ({"particles_per_um2": 5000.0}, "particles_per_um2"),
        ({"atoms": "nowhere.pdb"}, "nowhere.pdb"),
        ({"atoms": "bad.cif"}, "bad.cif"),
        ({"shape": [96, 64]}, "gain.mrc"),
    ],
)
def test_bad_settings_are_one_sentence_and_no_file(tmp_path, monkeypatch, capsys, change, message):
    from cryon2n.cli import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.cif").write_text("data_\nloop_\n_nothing.here\n'\n")
    mrcio.write_mrc("gain.mrc", np.ones((96, 80), np.float32), 1.3)
    mrcio.write_mrc("dark.mrc", np.zeros((96, 80), np.float32), 1.3)
    before = sorted(p.name for p in tmp_path.iterdir())
    arguments = ["--gain", "gain.mrc", "--dark", "dark.mrc", "--movie", "m.mrc", "--truth", "t.mrc"]
    arguments += ["--record", "t.json", "--index", "0", "--name", "m"]
    assert main(["simulate-movie", "--settings", json.dumps({**SMALL, **change}), *arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and "error: " in lines[0] and message in lines[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_bad_references_are_errors(tmp_path):
    settings = phantom_stage.PhantomSettings(shape=(96, 80))
    good = np.ones((96, 80), np.float32)
    for gain, dark, message in ((good * 0, good, "positive gain"), (good, good * 0.5, "whole dark counts")):
        mrcio.write_mrc(tmp_path / "gain.mrc", gain, 1.3)
        mrcio.write_mrc(tmp_path / "dark.mrc", dark, 1.3)
        with pytest.raises(InputError, match=message):
            phantom_stage.read_references(tmp_path / "gain.mrc", tmp_path / "dark.mrc", settings)


def test_default_micrograph_has_a_realistic_snr(barrel):
    settings = phantom_stage.PhantomSettings(ice_gradient=0.0)
    draw = phantom_stage.draw_movie(settings, 0, barrel)
    clean = phantom.expected_frame(draw.scene, 0) * 16
    assert 0.03 < clean.var() / clean.mean() < 0.15
    assert 10 <= len(draw.particles) <= 40
