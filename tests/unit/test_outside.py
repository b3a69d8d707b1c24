"""Methods from outside: folders and programs, scored by the command line like every other method."""

import re
import sys

import numpy as np
import pandas as pd
import pytest

from cryon2n import files, mrcio, outside, pair
from cryon2n.errors import InputError
from making import command, write_pair, write_pairs

SHAPE = (96, 128)
HALVE = "import sys, mrcfile; x = mrcfile.read(sys.argv[1]); m = mrcfile.new(sys.argv[2]); m.set_data(0.5 * x)"


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    """Two micrographs whose names begin alike, and what a method halved."""
    folder = tmp_path_factory.mktemp("halves")
    return [write_pair(folder, name, *(fields(i, 2))) for i, name in enumerate(("mic_1", "mic_10"))]


def fields(seed, n):
    rng = np.random.default_rng(seed)
    signal = rng.standard_normal(SHAPE)
    return [100 + 5 * (signal + rng.standard_normal(SHAPE)) for _ in range(n)]


def halved(record, folder, kinds=tuple(pair.INPUTS)):
    """Write half of each input, in its own units, as a method would."""
    one = pair.load_pair(record)
    pair.write_estimates(one, {k: 0.5 * getattr(one, k) for k in kinds}, folder, "test")
    return one


def value(summary, method, estimator, metric):
    table = pd.read_csv(summary, sep="\t").set_index(["method", "estimator", "metric"])
    return table["mean"][method, estimator, metric]


# ---------------------------------------------------------------------------- folders


@pytest.mark.parametrize("ending", ["", "_denoised", "-denoised", ".denoised"])
def test_files_are_found_by_the_whole_name(halves, tmp_path, ending):
    for record in halves:
        halved(record, tmp_path)
    for path in list(tmp_path.glob("*.mrc")):
        path.rename(path.with_name(f"{path.stem}{ending}.mrc"))
    found = outside.find_results(tmp_path, ["mic_10", "mic_1"])
    assert {k: p.name for k, p in found["mic_1"].items()} == {k: f"mic_1_{k}{ending}.mrc" for k in pair.INPUTS}
    one = pair.load_pair(halves[0])
    estimates = outside.read_results(one, found["mic_1"])
    for kind in pair.INPUTS:
        np.testing.assert_allclose(estimates[kind], 0.5 * getattr(one, kind), atol=1e-4)
    np.testing.assert_allclose(estimates["mean"], 0.5 * one.full, atol=1e-4)


def test_folders_for_each_input_and_bare_names(halves, tmp_path):
    halved(halves[0], tmp_path / "flat")
    for kind in pair.INPUTS:
        (tmp_path / "deep" / kind).mkdir(parents=True)
        (tmp_path / f"flat/mic_1_{kind}.mrc").rename(tmp_path / f"deep/{kind}/mic_1.mrc")
    assert set(outside.find_results(tmp_path / "deep", ["mic_1"])["mic_1"]) == set(pair.INPUTS)
    # What is left is the mean, which by itself is the denoised whole exposure.
    assert set(outside.find_results(tmp_path / "flat", ["mic_1"])["mic_1"]) == {"full"}


def test_what_does_not_fit_is_refused_by_name(halves, tmp_path):
    names = ["mic_1", "mic_10"]
    with pytest.raises(InputError, match="no such folder"):
        outside.find_results(tmp_path / "nowhere", names)
    halved(halves[0], tmp_path)
    with pytest.raises(InputError, match=r"nothing of micrograph mic_10 .*wanted mic_10_a.mrc"):
        outside.find_results(tmp_path, names)
    halved(halves[1], tmp_path, ("full",))
    with pytest.raises(InputError, match="full of micrograph mic_10, but a and b and full and noise of mic_1"):
        outside.find_results(tmp_path, names)
    (tmp_path / "mic_1_b.mrc").unlink()
    with pytest.raises(InputError, match="one denoised half of micrograph mic_1"):
        outside.find_results(tmp_path, names)
    mrcio.write_mrc(tmp_path / "full/mic_1.mrc", np.zeros(SHAPE, np.float32), 1.0)
    with pytest.raises(InputError, match="the same thing twice"):
        outside.find_results(tmp_path, ["mic_1"])
    halved(halves[1], tmp_path / "noise_only", ("noise",))
    with pytest.raises(InputError, match="only the denoised noise"):
        outside.find_results(tmp_path / "noise_only", ["mic_10"])


def test_a_folder_becomes_a_method_with_a_record(halves, tmp_path):
    theirs, out = tmp_path / "theirs", tmp_path / "out"
    one = halved(halves[0], theirs, ("full",))
    assert command("denoise-outside", "--method", "x", "--halves", halves[0], "--folder", theirs, "--out", out) == 0
    assert sorted(p.name for p in out.iterdir()) == ["mic_1.json", "mic_1_full.mrc"]
    record = files.read_json(out / "mic_1.json")
    assert record["sha256"] == {"full": files.sha256_of(theirs / "mic_1_full.mrc")}
    np.testing.assert_allclose(pair.read_estimates(one, out, ["full"])["full"], 0.5 * one.full, atol=1e-4)


# ---------------------------------------------------------------------------- programs


def run(record, template, out):
    return command("denoise-outside", "--method", "x", "--halves", record, "--command", template, "--out", out)


def test_a_program_is_run_on_all_four_inputs(tmp_path, monkeypatch):
    # A path with what a shell would take apart.
    monkeypatch.setenv("TMPDIR", str(tmp_path / "a b;$(c)'"))
    (tmp_path / "a b;$(c)'").mkdir()
    monkeypatch.setattr("tempfile.tempdir", None)
    record = write_pair(tmp_path, "m1", *fields(1, 2))
    assert run(record, f'{sys.executable} -c "{HALVE}" {{input}} {{output}}', tmp_path / "out") == 0
    one = pair.load_pair(record)
    found = pair.read_estimates(one, tmp_path / "out")
    for kind, (unit, _) in pair.INPUTS.items():
        image = one.to_units(getattr(one, kind), unit)
        np.testing.assert_allclose(found[kind], one.from_units(0.5 * image, unit), atol=1e-3)
    about = files.read_json(tmp_path / "out/m1.json")
    assert about["images"] == 4 and about["seconds_per_image"] > 0 and about["gpu_energy_J"] is None


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("print('out of luck'); sys.exit(3)", r"exit code 3.*\n.*out of luck"),
        ("pass", "wrote no m1_a.mrc"),
        ("x = mrcfile.new(sys.argv[2]); x.set_data(numpy.zeros((3, 4), 'f4')); x.close()", r"shape \(3, 4\)"),
        ("x = mrcfile.new(sys.argv[2]); x.set_data(numpy.full((96, 128), numpy.nan, 'f4')); x.close()", "NaN"),
    ],
)
def test_a_program_that_fails_leaves_nothing(tmp_path, capsys, code, says):
    record = write_pair(tmp_path, "m1", *fields(1, 2))
    template = f'{sys.executable} -c "import sys, mrcfile, numpy; {code}" {{input}} {{output}}'
    assert run(record, template, tmp_path / "out") == 2
    message = capsys.readouterr().err
    assert re.search(says, message) and "m1, x" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("prog {input}", "{output} is missing"),
        ("{input} {output}", "a program before"),
        ("prog '{input} {output}", "check its quotes"),
        ("/no/such/program {input} {output}", "cannot be run"),
    ],
)
def test_a_wrong_command_says_so(tmp_path, capsys, template, says):
    record = write_pair(tmp_path, "m1", *fields(1, 2))
    assert run(record, template, tmp_path / "out") == 2
    assert says in capsys.readouterr().err


# ---------------------------------------------------------------------------- cryon2n compare


def test_compare_scores_folders_with_one_command(halves, tmp_path):
    for record in halves:
        halved(record, tmp_path / "half")
        halved(record, tmp_path / "whole", ("full",))
    out = tmp_path / "out"
    words = ["compare", "--halves", *halves, "--from", f"x={tmp_path / 'half'}", tmp_path / "whole"]
    assert command(*words, "--out", out, "--bootstrap", "100", "--ours", "x") == 0
    summary = out / "summary.tsv"
    # Of 0.5 x, the share of noise power is 1/4 and the residual noise a quarter of the raw one.
    assert value(summary, "x", "full", "noise_power_ratio") == pytest.approx(0.25, rel=1e-3)
    raw = value(summary, "raw", "half", "residual_noise")
    assert value(summary, "x", "half", "residual_noise") == pytest.approx(raw / 4, rel=1e-3)
    # A method of the whole exposure alone has no unseen half.
    for metric in ("umse", "cross_frc", "half_frc", "bias_variance"):
        assert np.isnan(value(summary, "whole", "half", metric))
    assert np.isnan(value(summary, "whole", "full", "noise_power_ratio"))
    page = (out / "comparison.md").read_text()
    assert "x (ours) is best in" in page and "[ΔuMSE](docs/metrics.md#umse)" in page and "Topaz was not run" in page
    assert (out / "intervals.svg").read_text().rstrip().endswith("</svg>") and (out / "cross_frc.svg").exists()
    before = summary.read_bytes()
    assert command(*words, "--out", out, "--bootstrap", "100", "--ours", "x") == 0
    assert summary.read_bytes() == before


def test_the_inputs_for_others_are_what_compare_reads_back(halves, tmp_path):
    assert command("compare", "--halves", *halves, "--write-inputs", tmp_path / "in") == 0
    assert command("compare", "--halves", *halves, "--from", f"same={tmp_path / 'in'}", "--out", tmp_path / "out") == 0
    for metric in ("umse", "residual_noise", "cross_frc"):
        raw, same = (value(tmp_path / "out/summary.tsv", m, "half", metric) for m in ("raw", "same"))
        assert same == pytest.approx(raw, rel=1e-4)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "wanted one or more NAME=FOLDER"),
        (["--from", "raw=x"], "always scored by itself"),
        (["--from", "x=a", "x=b"], "given twice"),
        (["--from", "a/b=x"], "wanted NAME=FOLDER"),
        (["--from", "x=here", "--reference", "topaz"], "topaz: is none of the methods"),
        (["--from", "x=/no/such"], "no such folder"),
    ],
)
def test_compare_says_what_is_wrong(halves, tmp_path, capsys, words, says):
    assert command("compare", "--halves", *halves, "--out", tmp_path / "out", *words) == 2
    assert says in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_score_method_wants_the_files_that_it_is_told_of(tmp_path, capsys):
    (record,) = write_pairs(tmp_path, 1, SHAPE)
    halved(record, tmp_path / "d", ("full",))
    words = ["score-method", "--method", "x", "--halves", record, "--denoised", tmp_path / "d"]
    words += ["--scores", tmp_path / "s.tsv", "--rings", tmp_path / "r.tsv"]
    assert command(*words) == 2 and "mic0_a.mrc: no such file" in capsys.readouterr().err
    assert command(*words, "--inputs", "full") == 0
