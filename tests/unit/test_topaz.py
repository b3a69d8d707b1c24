"""The Topaz adapter: against a stand-in for the program, and against the real one where it is installed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cryon2n import files, mrcio, pair
from cryon2n.errors import InputError
from cryon2n.settings import build
from cryon2n.topaz import METHODS, TopazTrainSettings, denoise_images
from cryon2n.topaz_run import TopazRun

SCRIPT = Path(__file__).parents[2] / "envs" / "topaz.sh"
WEIGHTS = {
    "unet": "unet_L2_v0.2.2.sav",
    "unet-small": "unet_small_L1_v0.2.2.sav",
    "affine": "affine_L1_v0.2.2.sav",
}

# Stands in for the environment's Python.  It reads its behaviour from FAKE_TOPAZ and speaks as Topaz 0.3.20
# does: the device line, the weights' line, losses that end with a carriage return.
FAKE = """#!{python}
import json, os, pathlib, shutil, sys, time
import mrcfile, numpy as np
behaviour, argv = os.environ.get("FAKE_TOPAZ", ""), sys.argv[1:]
take = lambda name: argv[argv.index(name) + 1]
arch, weights = take("--arch"), {weights}
log = pathlib.Path({log!r})
cuda = take("--device") == "0" and behaviour == "gpu"
say = lambda text: print(text, file=sys.stderr)
if behaviour != "mute":
    say("# using device=" + take("--device") + " with cuda=" + str(cuda))
if behaviour == "cpu":
    time.sleep(60)
if behaviour == "other-weights":
    arch = "unet"
if arch in weights:
    say("# loading pretrained model: " + weights[arch])
seen = dict(argv=argv, threads=os.environ.get("OMP_NUM_THREADS"), mkl=os.environ.get("MKL_NUM_THREADS"))
if arch not in weights:
    seen["model"] = pathlib.Path(arch).read_text()
if "--dir-a" in argv:
    halves = [sorted(pathlib.Path(take(f"--dir-{{s}}")).iterdir()) for s in "ab"]
    seen["halves"] = [[p.name for p in side] for side in halves]
    seen["first"] = mrcfile.read(halves[0][0]).tolist()
    n, held = len(halves[0]), int(float(take("--holdout")) * len(halves[0]))
    say(f"# training with {{n - held}} image pairs")
    say(f"# validating on {{held}} image pairs")
    prefix = pathlib.Path(take("--save-prefix"))
    prefix.parent.mkdir()
    print("Epoch\\tTrain Loss\\tVal Loss\\tBest Val Loss")
    epochs, best = int(take("--num-epochs")), 9.0
    for epoch in range(1, epochs + 1):
        validation = abs(epoch - 2) + 0.5  # lowest after epoch 2
        train = float("nan") if behaviour == "nan" else 1 / epoch
        path = pathlib.Path(f"{{prefix}}_epoch{{epoch:02d}}.sav")
        if validation < best:
            best = validation
            path.write_text(f"weights after {{epoch}}")
        print(f"# [{{epoch - 1}}/{{epochs}}]\\t{{train}}\\t{{validation}}\\t{{best}}", end="\\r")
        if epoch % int(take("--save-interval")) == 0:
            path.write_text(f"weights after {{epoch}}")
else:
    images = [a for a in argv if a.endswith(".mrc")]
    out = pathlib.Path(take("--output"))
    out.mkdir()
    seen["images"] = images
    for k, name in enumerate(images):
        if behaviour == "dies" and k == 2:
            say("RuntimeError: out of everything")
            sys.exit(3)
        shutil.copy(name, out / name)
        with mrcfile.open(out / name, "r+") as mrc:
            if behaviour == "nan" and k == 1:
                mrc.data[3, 4] = np.nan
            if behaviour == "crop":
                mrc.set_data(np.array(mrc.data[1:]))
        print(f"# {{k + 1}} of {{len(images)}} completed.", file=sys.stderr, end="\\r")
log.write_text(json.dumps(seen))
"""


@pytest.fixture
def fake(tmp_path):
    """Give an environment whose Python is the stand-in; what it was asked lies in ``seen.json`` there."""
    env = tmp_path / "env"
    program = env / "bin" / "python"
    program.parent.mkdir(parents=True)
    program.write_text(FAKE.format(python=sys.executable, weights=WEIGHTS, log=str(env / "seen.json")))
    program.chmod(0o755)
    weights = {arch: {"file": name, "sha256": f"sha of {arch}"} for arch, name in WEIGHTS.items()}
    ready = {"topaz": "0.3.20", "torch": "2.13.0", "python": "3.11.7", "weights": weights}
    files.write_json(env / "ready.json", ready)
    return env


def behave(how):
    return {**os.environ, "FAKE_TOPAZ": how}


def write_pair(directory, name="m1", shape=(48, 40), valid=None, seed=0, noise=0.7, signal=None):
    """Write unequal halves in unlike units and return the record's path and the pair."""
    rng = np.random.default_rng(seed)
    clean = np.zeros(shape) if signal is None else signal
    record = {
        "format": pair.RECORD_FORMAT,
        "version": pair.RECORD_VERSION,
        "micrograph": name,
        "shape": list(shape),
        "pixel_size_A": 1.5,
        "valid": list(valid or (0, shape[0], 0, shape[1])),
        "a": {"offset": 20.0, "scale": 3.0, "noise_var": noise},
        "b": {"offset": -5.0, "scale": 0.25, "noise_var": 2 * noise},
        "full": {"offset": 15.0, "scale": 2.0},
    }
    for side in "ab":
        unit = record[side]
        x = clean + np.sqrt(unit["noise_var"]) * rng.normal(size=shape)
        mrcio.write_mrc(directory / f"{name}_{side}.mrc", (x * unit["scale"] + unit["offset"]).astype(np.float32), 1.5)
    files.write_json(directory / f"{name}.json", record)
    return directory / f"{name}.json", pair.load_pair(directory / f"{name}.json")


@pytest.mark.parametrize(("method", "words"), [("topaz-unet-p192", "unet 192"), ("topaz-affine", "affine 500")])
def test_a_method_is_a_network_and_its_padding(fake, tmp_path, cryon2n, method, words):
    path, _ = write_pair(tmp_path)
    cryon2n(*denoise_args(fake, path, tmp_path / "out", method, "--device", "cpu"))
    argv = files.read_json(fake / "seen.json")["argv"]
    arch, padding = words.split()
    assert (argv[argv.index("--arch") + 1], argv[argv.index("--patch-padding") + 1]) == (arch, padding)
    assert files.read_json(tmp_path / "out/m1.json")["weights"]["sha256"] == f"sha of {arch}"


def test_an_environment_that_lacks_the_weights_says_what_to_do(fake, tmp_path, cryon2n):
    path, _ = write_pair(tmp_path)
    ready = files.read_json(fake / "ready.json")
    del ready["weights"]["affine"]
    files.write_json(fake / "ready.json", ready)
    done = cryon2n(*denoise_args(fake, path, tmp_path / "out", "topaz-affine"), check=False)
    assert done.returncode == 2 and "build it again with envs/topaz.sh" in done.stderr


def denoise_args(env, record, out, method="topaz-unet", *more):
    return ["denoise-topaz", "--env", env, "--method", method, "--halves", record, "--out", out, *more]


def test_pretrained_call_units_and_record(fake, tmp_path, cryon2n):
    path, halves = write_pair(tmp_path)
    out = tmp_path / "out"
    cryon2n(*denoise_args(fake, path, out, "topaz-unet-small", "--device", "cpu", "--threads", "2"))
    seen = files.read_json(fake / "seen.json")
    assert seen["argv"] == (
        "-I -u -W ignore -m topaz.commands.denoise --device -1 --arch unet-small --patch-padding 500 "
        "--output out a.mrc b.mrc full.mrc noise.mrc".split()
    )
    assert (seen["threads"], seen["mkl"]) == ("2", "2")
    # The stand-in copies its input, so each estimate must be that input again, in the right units.
    found = pair.read_estimates(halves, out)
    for name in ("a", "b", "full", "noise"):
        np.testing.assert_allclose(found[name], getattr(halves, name), atol=2e-5)
    np.testing.assert_allclose(found["mean"], halves.full, atol=2e-5)
    half, pixel_size = mrcio.read_mrc(out / "m1_b.mrc")
    np.testing.assert_allclose(half, mrcio.read_mrc(tmp_path / "m1_b.mrc")[0], atol=1e-5)
    assert pixel_size == pytest.approx(1.5)
    record = files.read_json(out / "m1.json")
    assert record["method"] == "topaz-unet-small" and record["micrograph"] == "m1"
    assert record["weights"] == {"file": "unet_small_L1_v0.2.2.sav", "sha256": "sha of unet-small"}
    assert (record["topaz"], record["device"]) == ("0.3.20", "# using device=-1 with cuda=False")
    assert record["command"] == ["python", *seen["argv"]]
    assert record["seconds"] > 0 and record["cpu_seconds"] > 0 and record["seconds_per_image"] >= 0


def test_trained_model_reaches_topaz_as_a_file_named_after_arch(fake, tmp_path, cryon2n):
    path, _ = write_pair(tmp_path)
    model = tmp_path / "own.sav"
    model.write_text("my weights")
    out = tmp_path / "out"
    cryon2n(*denoise_args(fake, path, out, "topaz-trained", "--model", model, "--patch-padding", "192"))
    seen = files.read_json(fake / "seen.json")
    assert seen["model"] == "my weights"
    assert seen["argv"][seen["argv"].index("--patch-padding") + 1] == "192"
    assert seen["threads"] == os.environ.get("OMP_NUM_THREADS")
    weights = files.read_json(out / "m1.json")["weights"]
    assert weights == {"file": "own.sav", "sha256": files.sha256_of(model)}


@pytest.mark.parametrize(
    ("how", "device", "words"),
    [
        ("cpu", "cuda", ["fell back to the CPU", "cuda=False"]),  # would sleep for a minute: caught at once
        ("mute", "auto", ["did not say which device"]),
        ("dies", "auto", ["exit code 3", "out of everything"]),
        ("nan", "auto", ["b: Topaz gave 1 NaN"]),
        ("crop", "auto", ["shape (47, 40), wanted (48, 40)"]),
        ("other-weights", "auto", ["loaded the pretrained weights unet_L2_v0.2.2.sav", "unet_small_L1"]),
    ],
)
def test_a_fault_of_topaz_is_an_error_and_leaves_nothing(fake, tmp_path, cryon2n, how, device, words):
    path, _ = write_pair(tmp_path)
    out = tmp_path / "out"
    args = denoise_args(fake, path, out, "topaz-unet-small", "--device", device)
    done = cryon2n(*args, check=False, env=behave(how), cwd=tmp_path)
    assert done.returncode == 2
    for text in ["m1, topaz-unet-small", *words]:
        assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert not out.exists()


def test_cuda_is_accepted_where_topaz_has_it(fake, tmp_path, cryon2n):
    path, _ = write_pair(tmp_path)
    args = denoise_args(fake, path, tmp_path / "out", "topaz-unet", "--device")
    cryon2n(*args, "cuda", env=behave("gpu"))
    assert files.read_json(tmp_path / "out" / "m1.json")["device"] == "# using device=0 with cuda=True"
    # Asked for the CPU, Topaz gets -1 whatever the machine has.
    cryon2n(*args, "cpu", env=behave("gpu"))
    assert files.read_json(tmp_path / "out" / "m1.json")["device"] == "# using device=-1 with cuda=False"


def test_environment_that_is_not_ready(fake, tmp_path, cryon2n):
    path, _ = write_pair(tmp_path)
    (fake / "ready.json").unlink()
    done = cryon2n(*denoise_args(fake, path, tmp_path / "out"), check=False)
    assert done.returncode == 2 and "envs/topaz.sh" in done.stderr and str(fake) in done.stderr


def test_model_and_method_must_fit(fake, tmp_path):
    image = {"a": np.zeros((32, 32), np.float32)}
    with pytest.raises(InputError, match="belongs to topaz-trained"):
        denoise_images(fake, image, "topaz-trained")
    with pytest.raises(InputError, match="belongs to topaz-trained"):
        denoise_images(fake, image, "topaz-unet", model=tmp_path / "x.sav")
    with pytest.raises(InputError, match=r"x\.sav: no such file"):
        denoise_images(fake, image, "topaz-trained", model=tmp_path / "x.sav")


def test_seconds_per_image_leaves_out_the_start():
    lines = [(0.5, "# using device=0 with cuda=True")]
    lines += [(t, f"# {k} of 3 completed.") for k, t in enumerate([9.0, 10.0, 12.0], start=1)]
    assert TopazRun([], "", lines, 13.0, 20.0).seconds_per_image == 1.5  # (12 - 9) / 2
    assert TopazRun([], "", lines[:2], 13.0, 20.0).seconds_per_image is None


def train_args(env, records, directory, **settings):
    return [
        *("train-topaz", "--env", env, "--halves", *records, "--settings", json.dumps(settings)),
        *("--model", directory / "own.sav", "--record", directory / "own.json"),
    ]


def test_training_call_and_record(fake, tmp_path, cryon2n):
    pairs = [write_pair(tmp_path, f"m{k}", seed=k, valid=(4, 44, 0, 36)) for k in range(3)]
    args = train_args(fake, [path for path, _ in pairs], tmp_path / "out", epochs=3, crop=36)
    cryon2n(*args, "--threads", "2", "--set", "batch_size=2")
    seen = files.read_json(fake / "seen.json")
    argv = seen["argv"]
    given = dict(zip(argv[6::2], argv[7::2], strict=True))
    assert given["--arch"] == "unet" and given["--num-epochs"] == "3" and given["--crop"] == "36"
    assert given["--batch-size"] == "2" and float(given["--lr"]) == 0.001
    assert given["--num-workers"] == "2"  # Topaz's 16, but no more than the threads
    assert int(float(given["--holdout"]) * 3) == 1  # 0.1 of 3 would hold out none and crash Topaz
    assert seen["halves"] == [["0000.mrc", "0001.mrc", "0002.mrc"]] * 2
    # Cut to the valid region, in normalised units.
    np.testing.assert_array_equal(np.float32(seen["first"]), pairs[0][1].a[4:44, 0:36])
    record = files.read_json(tmp_path / "out" / "own.json")
    assert (tmp_path / "out" / "own.sav").read_text() == "weights after 3"
    assert record["model_sha256"] == files.sha256_of(tmp_path / "out" / "own.sav")
    assert (record["model_epoch"], record["epochs"]) == (3, 3)
    assert (record["pairs"], record["pairs_held_out"]) == (2, 1)
    assert record["micrographs"] == ["m0", "m1", "m2"]
    assert record["final_loss"] == {"train": 1 / 3, "validation": 1.5, "best_validation": 0.5}
    assert record["losses"] == [[1.0, 1.5], [0.5, 0.5], [1 / 3, 1.5]]
    assert record["start_weights"]["file"] == "unet_L2_v0.2.2.sav" and record["topaz"] == "0.3.20"


def test_training_can_keep_the_best_weights(fake, tmp_path, cryon2n):
    records = [write_pair(tmp_path, f"m{k}", seed=k)[0] for k in range(2)]
    cryon2n(*train_args(fake, records, tmp_path, epochs=4, crop=32, keep="best"))
    assert (tmp_path / "own.sav").read_text() == "weights after 2"
    assert files.read_json(tmp_path / "own.json")["model_epoch"] == 2


def test_training_that_diverges_leaves_nothing(fake, tmp_path, cryon2n):
    records = [write_pair(tmp_path, f"m{k}", seed=k)[0] for k in range(2)]
    args = train_args(fake, records, tmp_path / "out", epochs=2, crop=32)
    done = cryon2n(*args, check=False, env=behave("nan"))
    assert done.returncode == 2 and "lower learning_rate" in done.stderr
    assert not (tmp_path / "out").exists()


def test_training_input_is_checked_before_topaz_runs(fake, tmp_path, cryon2n):
    one, _ = write_pair(tmp_path, "m1")
    two, _ = write_pair(tmp_path, "m2", valid=(10, 40, 0, 40))
    for records, settings, words in [
        ([one], {"crop": 32}, "found 1 training micrograph"),
        ([one, one], {"crop": 32}, "m1 is given twice"),
        ([one, two], {"crop": 32}, "30 x 40 pixels are usable"),
        ([one, two], {"crop": 32, "epoch": 3}, "unknown setting 'epoch'"),
    ]:
        done = cryon2n(*train_args(fake, records, tmp_path, **settings), check=False)
        assert done.returncode == 2 and words in done.stderr
    assert not (fake / "seen.json").exists()


@pytest.mark.parametrize(
    "values", [{"epochs": 0}, {"holdout": 1.0}, {"arch": "unet3"}, {"keep": "first"}, {"learning_rate": 0}]
)
def test_settings_out_of_range(values):
    with pytest.raises(InputError, match=next(iter(values))):
        build(TopazTrainSettings, values)


@pytest.mark.parametrize("case", ["not ours", "no python", "no venv"])
def test_environment_script_refuses_with_a_sentence(tmp_path, case):
    target, python = tmp_path / "env", sys.executable
    if case == "not ours":
        target.mkdir()
        (target / "thesis.tex").write_text("precious")
    if case == "no python":
        python = "/no/such/python"
    if case == "no venv":  # as Debian's Python without python3-venv
        python = tmp_path / "python"
        python.write_text(f'#!/bin/sh\n[ "$2" = "import venv, ensurepip" ] && exit 1\nexec {sys.executable} "$@"\n')
        python.chmod(0o755)
    done = subprocess.run(["bash", SCRIPT, target, "--python", python], capture_output=True, text=True, timeout=60)
    words = {
        "not ours": "not a virtual environment",
        "no python": "no such program",
        "no venv": "python3-venv",
    }
    assert done.returncode == 2 and words[case] in done.stderr
    assert case != "not ours" or (target / "thesis.tex").read_text() == "precious"
    assert not (target / "ready.json").exists()


# ---- the real program -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real():
    env = os.environ.get("CRYON2N_TOPAZ_ENV")
    if not env or not Path(env, "ready.json").is_file():
        pytest.skip("CRYON2N_TOPAZ_ENV names no environment that envs/topaz.sh built")
    return env


def blobs(shape, seed):
    """Return smooth particles, about 20 pixels wide, of variance 1."""
    noise = np.fft.rfft2(np.random.default_rng(seed).normal(size=shape))
    frequency = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1]))
    smooth = np.fft.irfft2(noise * np.exp(-((frequency * 30) ** 2)), s=shape)
    return ((smooth - smooth.mean()) / smooth.std()).astype(np.float32)


def test_real_pretrained_networks(real):
    clean = blobs((256, 256), 1)
    noisy = clean + 2 * np.random.default_rng(2).normal(size=clean.shape).astype(np.float32)
    images = {"plain": noisy, "scaled": 7 * noisy + 100}
    pretrained = [m for m in METHODS if m != "topaz-trained"]
    results = {m: denoise_images(real, images, m, device="cpu", threads=2)[0] for m in pretrained}
    for found in results.values():
        # The noise has variance 4 around the clean image.
        assert np.mean((found["plain"] - clean) ** 2) < 1
        np.testing.assert_allclose(found["scaled"], 7 * found["plain"] + 100, atol=0.01)
    unet, padded, small, affine = (found["plain"] for found in results.values())
    np.testing.assert_array_equal(unet, padded)  # an image of one tile has no padding
    assert min(np.abs(x - y).max() for x, y in ((unet, small), (unet, affine), (small, affine))) > 0.01


def test_real_training_changes_the_network(real, tmp_path, cryon2n):
    pairs = [write_pair(tmp_path, f"m{k}", (128, 112), seed=k, signal=blobs((128, 112), k)) for k in range(4)]
    args = train_args(real, [path for path, _ in pairs], tmp_path, epochs=1, crop=96)
    cryon2n(*args, "--device", "cpu", "--threads", "2")
    record = files.read_json(tmp_path / "own.json")
    assert (record["pairs"], record["pairs_held_out"], record["model_epoch"]) == (3, 1, 1)
    image = {"a": pairs[0][1].a}
    own, _ = denoise_images(real, image, "topaz-trained", tmp_path / "own.sav", device="cpu", threads=2)
    given, _ = denoise_images(real, image, "topaz-unet", device="cpu", threads=2)
    assert own["a"].std() > 0 and np.abs(own["a"] - given["a"]).max() > 1e-3


def test_real_constant_image_is_an_error(real):
    with pytest.raises(InputError, match="flat: Topaz gave 4096 NaN"):
        denoise_images(real, {"flat": np.ones((64, 64), np.float32)}, "topaz-unet", device="cpu", threads=2)
