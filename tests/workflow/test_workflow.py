"""The workflow as a user runs it: from nothing to the report, reruns, kills, and bad configs.

Every test works in a copy of the tree, so that it may edit and break it.
"""

import functools
import hashlib
import http.server
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.parse
from pathlib import Path

import mrcfile
import numpy as np
import pandas as pd
import pytest
import yaml

from conftest import ROOT, SHARED

TINY = "tests/workflow/tiny.yaml"


def copy_tree(target: Path) -> Path:
    """Copy the files of the project (not what was built in it) to `target`."""
    for name in ("Snakefile", "workflow", "config", "envs", "src", "profiles", "tests/workflow"):
        source, to = ROOT / name, target / name
        to.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, to, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(source, to)
    return target


def snakemake(tree: Path, *args: str, check: bool = True, configfile: str = TINY) -> subprocess.CompletedProcess:
    done = subprocess.run(command(*args, configfile=configfile), cwd=tree, capture_output=True, text=True, timeout=1500)
    if check and done.returncode:
        raise AssertionError(f"snakemake {' '.join(args)} gave {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done


def command(*args: str, configfile: str = TINY) -> list[str]:
    return [sys.executable, "-m", "snakemake", "--cores", "2", *args, "--configfile", configfile]


def planned(done: subprocess.CompletedProcess) -> dict[str, int]:
    """The job counts of a dry run."""
    text = done.stdout + done.stderr
    if "Nothing to be done" in text:
        return {}
    table = text.split("Job stats:")[1].split("total")[0]
    return {name: int(count) for name, count in re.findall(r"^(\w+)\s+(\d+)$", table, re.M)}


def change_config(tree: Path, name: str, **changes) -> str:
    """Write a changed copy of the tiny config and return its path."""
    config = yaml.safe_load((tree / TINY).read_text())
    for key, value in changes.items():
        part = config
        *path, last = key.split("__")
        for step in path:
            part = part.setdefault(step, {})
        part[last] = value
    (tree / name).write_text(yaml.safe_dump(config))
    return name


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """A tree in which the tiny study has been run from nothing."""
    tree = copy_tree(tmp_path_factory.mktemp("built"))
    snakemake(tree)
    return tree


def test_every_method_has_every_metric(built):
    summary = pd.read_csv(built / "results/tiny/summary.tsv", sep="\t")
    methods = [
        "raw",
        "lowpass",
        "gaussian",
        "wiener",
        "nlm",
        "topaz-unet",
        "topaz-unet-small",
        "topaz-trained",
        "cryon2n",
        "cryon2n-x8",
    ]
    assert sorted(summary["method"].unique()) == sorted(methods)
    per_method = summary.groupby("method")[["estimator", "metric"]].apply(
        lambda x: set(map(tuple, x.itertuples(index=False)))
    )
    assert all(rows == per_method.iloc[0] for rows in per_method)
    known = summary.set_index(["method", "estimator", "metric"])["mean"]
    for method in methods:
        for metric in ("psnr", "ssim", "signal_to_error_db"):
            assert pd.notna(known[method, "mean", metric])
        for metric in ("umse", "upsnr", "cross_frc"):
            assert pd.notna(known[method, "half", metric])
        assert pd.notna(known[method, "full", "noise_power_ratio"])


def test_raw_psnr_is_that_of_counting_noise(built):
    """Closed form: the error of the raw image is counting noise, through the whole way from movie to table."""
    scores = pd.read_csv(built / "results/tiny/metrics.tsv", sep="\t")
    raw = scores[(scores.method == "raw") & (scores.estimator == "full") & (scores.metric == "psnr")]
    assert len(raw) == 2
    for row in raw.itertuples():
        truth = mrcfile.read(built / f"data/tiny/truth/{row.micrograph}.mrc")
        # Poisson: the variance is the mean; the peak is the clean image's own range.
        wanted = 10 * np.log10((truth.max() - truth.min()) ** 2 / truth.mean())
        assert abs(row.value - wanted) < 0.5


def test_report_and_gallery_are_whole_pages(built):
    for page in ("report.html", "gallery/index.html"):
        text = (built / "results/tiny" / page).read_text()
        assert text.rstrip().endswith("</html>") and "data:image" in text


def test_the_panel_and_picking_have_every_method(built):
    panel = pd.read_csv(built / "results/tiny/panel.tsv", sep="\t", keep_default_na=False)
    found = panel[panel["finding"] != ""].groupby("method")["finding"].agg(set)
    assert panel["method"].nunique() == 10 and "copies-input" in found["raw"]
    linear = panel[(panel["metric"] == "noise_excess") & panel["method"].isin(["raw", "lowpass", "gaussian", "wiener"])]
    assert (abs(linear["value"].astype(float) - 1) < 0.1).all()
    picking = pd.read_csv(built / "results/tiny/picking.tsv", sep="\t")
    assert picking.groupby("picker")["method"].nunique().to_dict() == {"blobs": 10, "topaz": 10}
    assert (picking["value"].between(0, 1) | picking["value"].isna()).all()
    report = (built / "results/tiny/report.html").read_text()
    assert "What the methods invent" in report and "Are particles found in it?" in report


def test_the_notebook_runs_on_any_run(built, tmp_path):
    cells = json.loads((ROOT / "docs/tour.ipynb").read_text())["cells"]
    assert not [o for cell in cells for o in cell.get("outputs", []) if o["output_type"] == "error"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    assert code.startswith('dataset = "demo"')
    code = code.replace('"demo"', '"tiny"', 1) + "\nprint(errors)"
    (tmp_path / "tour.py").write_text(code)
    done = subprocess.run(
        [sys.executable, tmp_path / "tour.py"],
        cwd=built / "config",  # in any folder of the tree
        env={**os.environ, "MPLBACKEND": "agg"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "total variation" in done.stdout and "'wiener'" in done.stdout


def test_nothing_is_left_half_written(built):
    ours = [p for part in ("data/tiny", "results/tiny") for p in (built / part).rglob("*")]
    assert len(ours) > 100
    assert [p for p in ours if ".tmp" in p.name or p.suffix in (".ckpt", ".part")] == []


def test_second_run_has_nothing_to_do(built):
    done = snakemake(built)
    assert "Nothing to be done" in done.stdout + done.stderr


def test_touching_a_module_reruns_nothing(built):
    (built / "src/cryon2n/unet.py").touch()
    assert planned(snakemake(built, "-n")) == {}


def test_a_comment_in_a_module_reruns_nothing(built):
    path = built / "src/cryon2n/unet.py"
    text = path.read_text()
    try:
        path.write_text(text + "\n# a remark\n")
        assert planned(snakemake(built, "-n")) == {}
    finally:
        path.write_text(text)


# What follows whenever the scores change, and when the denoised micrographs change.
RECORD = {"write_crate": 1, "all": 1}
PAGES = {"write_report": 1, "compare_doc": 1, **RECORD}
AFTER_SCORES = {"summarise": 1, "write_panel": 1, "pick_topaz": 1, "score_picking": 1, **PAGES}
AFTER_DENOISING = {"write_cost": 1, **AFTER_SCORES}


def scored(n: int) -> dict[str, int]:
    """Give the jobs that score n methods."""
    return {"score_method": n, "probe_method": n}


# Two test micrographs, and two probes of the first of them, are denoised with each method (ours are two: -x8).
PROBES_DENOISED = {"denoise_micrograph": 4, "filter_micrograph": 10, "denoise_topaz": 6}


@pytest.mark.parametrize(
    ("module", "old", "new", "jobs"),
    [
        (
            "unet.py",
            "0.1",
            "0.2",
            {"train_unet": 1, "verify": 1, "denoise_micrograph": 8, **scored(2), **AFTER_DENOISING},
        ),
        (
            "filters.py",
            "0.5 * (1 + np.cos",
            "0.50 * (1 + np.cos",
            {"tune_filter": 5, "filter_micrograph": 20, **scored(5), **AFTER_DENOISING},
        ),
        (
            "topaz.py",
            "import argparse",
            "import argparse as argparse",
            {"train_topaz": 1, "denoise_topaz": 12, **scored(3), **AFTER_DENOISING},
        ),
        (
            "mrcio.py",
            "1146047817",
            "0x444F4D49",
            {
                **{
                    "simulate_references": 1,
                    "simulate_movie": 6,
                    "split_halves": 6,
                    "audit_halves": 1,
                    "plot_halves": 6,
                    "plan": 1,
                },
                **{"write_shards": 1, "train_unet": 1, "train_topaz": 1, "tune_filter": 5, "filter_micrograph": 20},
                **{"verify": 1, "denoise_micrograph": 8, "denoise_topaz": 12, "write_probes": 1, **scored(10)},
                **AFTER_DENOISING,
            },
        ),
        (
            "metrics.py",
            "1.5",
            "1.6",
            {"write_probes": 1, **PROBES_DENOISED, **scored(10), **AFTER_SCORES},
        ),
        (
            "hallucination_lights.py",
            "WITHIN = 0.05",
            "WITHIN = 0.06",
            {"write_panel": 1, "write_report": 1, **RECORD},
        ),
        ("compare_cost.py", "import argparse", "import argparse as argparse", {"write_cost": 1, **PAGES}),
        (
            "report.py",
            "import argparse",
            "import argparse as argparse",
            {"write_report": 1, "write_crate": 1, "all": 1},
        ),
        ("crate.py", "import argparse", "import argparse as argparse", RECORD),
    ],
)
def test_editing_a_module_reruns_exactly_what_depends_on_it(built, module, old, new, jobs):
    path = built / "src/cryon2n" / module
    text = path.read_text()
    assert old in text
    try:
        path.write_text(text.replace(old, new, 1))
        assert planned(snakemake(built, "-n")) == jobs
    finally:
        path.write_text(text)
    assert planned(snakemake(built, "-n")) == {}


def test_a_setting_reruns_only_its_stage(built):
    name = change_config(built, "other.yaml", models__cryon2n__rate=0.002)
    assert "split_halves" not in planned(snakemake(built, "-n", configfile=name))
    assert planned(snakemake(built, "-n", configfile=name))["train_unet"] == 1


def test_the_demo_inherits_nothing_from_the_study(tmp_path):
    tree = copy_tree(tmp_path)
    done = snakemake(tree, "-n", "--printshellcmds", "-q", "progress", configfile="config/demo.yaml")
    assert "flip_y" not in done.stdout + done.stderr


def test_the_study_plans_without_a_network(tmp_path):
    """The dry run of the full study: the whole graph from the committed sheet."""
    jobs = planned(snakemake(copy_tree(tmp_path), "-n", configfile="config/config.yaml"))
    assert jobs["fetch_movie"] == jobs["split_halves"] == 14
    assert jobs["denoise_topaz"] == 20 and jobs["fetch_reference"] == 2  # 4 rows; 3 test micrographs, 2 probes


def test_the_simulated_study_and_a_cross_validated_one_plan(tmp_path):
    tree = copy_tree(tmp_path / "tree")
    jobs = planned(snakemake(tree, "-n", configfile="config/phantom-10025.yaml"))
    assert jobs["simulate_movie"] == jobs["split_halves"] == 20 and jobs["train_topaz"] == 1
    if (SHARED / "data" / "apoferritin-10146").is_dir():
        (tree.parent / "shared").symlink_to(SHARED)
        jobs = planned(snakemake(tree, "-n", configfile="tests/workflow/apoferritin.yaml"))
        assert jobs["train_unet"] == jobs["train_topaz"] == jobs["write_shards"] == 7  # folds
        assert jobs["denoise_micrograph"] == 2 * (14 + 2)  # each micrograph once, and two probes; as it is and -x8


def test_asking_for_more_movies_than_the_sheet_lists_says_how_to_get_them(tmp_path):
    tree = copy_tree(tmp_path)
    config = yaml.safe_load((tree / "config/config.yaml").read_text())
    config["source"]["n_micrographs"] = 196
    (tree / "all.yaml").write_text(yaml.safe_dump(config))
    done = snakemake(tree, "-n", check=False, configfile="all.yaml")
    assert done.returncode != 0
    assert "empiar sheet 10025 --movies 196" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"shard": {"patch": 128}}, "shard"),
        ({"shards__pach": 128}, "pach"),
        ({"compare__methods": ["raw", "topas"]}, "topas"),
        ({"compare__reference": "topas"}, "topas"),
        ({"compare__outside": {"raw": {"folder": "x"}}}, "raw is the name of another method"),
        ({"compare__outside": {"x": {"command": "prog {input}"}}}, "{output} is missing"),
        ({"compare__outside": {"x": {"folder": "no/such"}}}, "no/such: no such folder"),
        ({"compare__outside": {"x": {"folder": "x", "command": "prog {input} {output}"}}}, "outside"),
        ({"split__val": 0}, "0"),
        ({"split__test": ["phantom_0099"]}, "phantom_0099"),
        ({"source__kind": "phantoms"}, "phantoms"),
        ({"split__test": 5}, "train"),
    ],
)
def test_a_mistake_in_the_config_is_named_before_anything_runs(tmp_path, change, says):
    tree = copy_tree(tmp_path)
    done = snakemake(tree, check=False, configfile=change_config(tree, "bad.yaml", **change))
    assert done.returncode != 0
    assert says in done.stdout + done.stderr
    assert not (tree / "data").exists() and not (tree / "results").exists()


def kill_when(tree: Path, ready, *args: str) -> None:
    """Run Snakemake in a process group of its own and SIGKILL all of it as soon as `ready` is true."""
    with open(tree / "killed.log", "w") as log:
        process = subprocess.Popen(
            command(*args), cwd=tree, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    deadline = time.monotonic() + 300
    while not ready():
        assert process.poll() is None, (tree / "killed.log").read_text()
        assert time.monotonic() < deadline, "never came to the point where it was to be killed"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    snakemake(tree, "--unlock")


def test_killed_in_halves_and_in_training_it_goes_on_without_losing_finished_work(tmp_path):
    tree = copy_tree(tmp_path)
    halves = tree / "results/tiny/halves"
    kill_when(tree, lambda: len(list(halves.glob("*.json"))) >= 2, "train_all")
    finished = {p: p.stat().st_mtime_ns for p in halves.glob("*.json")}
    assert 2 <= len(finished) < 6

    # Long enough to be killed in, with a checkpoint every few steps.
    slow = change_config(tree, TINY, models__cryon2n__steps=3000)
    checkpoint = tree / "results/tiny/models/cryon2n/checkpoints/last.ckpt"
    kill_when(tree, checkpoint.exists, "train_all")
    # The last job to end before the kill may have been written but not yet been entered as finished.
    assert sum(p.stat().st_mtime_ns == t for p, t in finished.items()) >= len(finished) - 2
    halves_then = {p: p.stat().st_mtime_ns for p in halves.glob("*.mrc")}

    change_config(tree, TINY, models__cryon2n__steps=3000)
    done = snakemake(tree, "train_all", configfile=slow)
    assert re.search(r"resumed at step [1-9]", done.stdout + done.stderr)
    assert {p: p.stat().st_mtime_ns for p in halves.glob("*.mrc")} == halves_then
    assert (tree / "results/tiny/models/cryon2n/weights.safetensors").exists() and not checkpoint.exists()
    assert planned(snakemake(tree, "-n", "train_all", configfile=slow)) == {}


def test_a_machine_without_gpus_runs_gpu_rules(built):
    done = snakemake(built, "-n", "--resources", "gpu=0", "--forcerun", "train_unet")
    assert planned(done)["train_unet"] == 1
    done = snakemake(built, "--resources", "gpu=0", "--forcerun", "tune_filter", "denoise_micrograph")
    assert "denoise-micrograph" in done.stdout + done.stderr


def test_methods_from_outside_stand_beside_the_others(built, tmp_path):
    """A folder of whole exposures alone, and a program that is run: to the report, in a copy without Topaz."""
    tree = tmp_path / "tree"
    shutil.copytree(built, tree, ignore=shutil.ignore_patterns("topaz-env"), symlinks=True)
    theirs = tree / "theirs"
    theirs.mkdir()
    for path in (tree / "results/tiny/denoised/gaussian").glob("*_full.mrc"):
        if not re.search("-(injected|scrambled)_full", path.name):
            shutil.copy(path, theirs / path.name.replace("_full", ""))
    program = tree / "same.py"
    program.write_text("import shutil, sys; shutil.copy(sys.argv[1], sys.argv[2])")
    outside = {"theirs": {"folder": "theirs"}, "same": {"command": f"{sys.executable} {program} {{input}} {{output}}"}}
    part = {"methods": ["raw", "gaussian", "cryon2n"], "reference": "gaussian", "bootstrap": 200, "outside": outside}
    name = change_config(tree, "outside.yaml", compare=part)
    snakemake(tree, configfile=name)
    known = pd.read_csv(tree / "results/tiny/summary.tsv", sep="\t").set_index(["method", "estimator", "metric"])[
        "mean"
    ]
    for estimator, metric in (("full", "psnr"), ("full", "ssim")):
        assert known["theirs", estimator, metric] == pytest.approx(known["gaussian", estimator, metric], rel=1e-5)
    assert np.isnan(known["theirs", "half", "umse"]) and np.isnan(known["theirs", "mean", "psnr"])
    for estimator, metric in (("half", "umse"), ("half", "cross_frc"), ("full", "noise_power_ratio"), ("mean", "psnr")):
        assert known["same", estimator, metric] == pytest.approx(known["raw", estimator, metric], rel=1e-3)
    page = (tree / "results/tiny/comparison.md").read_text()
    assert "| theirs |" in page and "| same |" in page
    assert planned(snakemake(tree, "-n", configfile=name)) == {}
    # Another result in the folder is another method.
    (first := sorted(theirs.iterdir())[0]).write_bytes(sorted(theirs.iterdir())[1].read_bytes())
    without_topaz = {job: n for job, n in AFTER_DENOISING.items() if job != "pick_topaz"}
    assert planned(snakemake(tree, "-n", configfile=name)) == {"denoise_outside": 1, **scored(1), **without_topaz}
    panel = pd.read_csv(tree / "results/tiny/panel.tsv", sep="\t").set_index(["method", "metric"])["value"]
    assert panel["same", "noise_copied"] == pytest.approx(1, abs=0.01)  # a copy, by its command on the probes
    assert np.isnan(panel["theirs", "injected_kept"]) and np.isnan(panel["theirs", "noise_excess"])
    first.unlink()
    target = f"results/tiny/denoised/theirs/{first.stem}.json"
    (tree / target).unlink()
    done = snakemake(tree, "-n", target, check=False, configfile=name)
    assert done.returncode != 0 and f"holds nothing of micrograph {first.stem}" in done.stdout + done.stderr


def test_the_record_of_the_run_names_every_file_with_its_hash(built):
    crate = json.loads((built / "results/tiny/ro-crate-metadata.json").read_text())
    entities = {entity["@id"]: entity for entity in crate["@graph"]}
    data = {urllib.parse.unquote(i): e for i, e in entities.items() if e["@type"] == "File"}
    for name in ("report.html", "summary.tsv", "cost.tsv", "comparison.md", "models/cryon2n/weights.safetensors"):
        assert data[name]["sha256"] == hashlib.sha256((built / "results/tiny" / name).read_bytes()).hexdigest()
    movies = {e["name"]: e["sha256"] for i, e in entities.items() if i.startswith("#input/")}
    for path in (built / "data/tiny/raw").glob("*.mrc"):
        assert movies[path.name] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert entities["#seed/source.phantom.seed"]["value"] == 10025
    assert entities["#software/topaz-unet"]["softwareVersion"] == "0.3.20"


def test_real_pairs_of_apoferritin(built, tmp_path):
    """A small cut of tests/workflow/apoferritin.yaml, cross-validated, in the built tree: Topaz is there already."""
    data = SHARED / "data" / "apoferritin-10146"
    if not data.is_dir():
        pytest.skip("the real data (../shared/data) is not here")
    config = yaml.safe_load((built / "tests/workflow/apoferritin.yaml").read_text())
    config["source"].update(folder=str(data), n_micrographs=4)
    config["split"] = {"val": 1, "folds": 2}
    config["models"]["cryon2n"].update(steps=30, batch=2, crop=128, validate_every=15, net={"channels": [16, 16]})
    config["compare"] = {
        "methods": ["raw", "gaussian", "topaz-unet-small", "cryon2n"],
        "reference": "topaz-unet-small",
        "bootstrap": 200,
        "labels": str(data / "particles.csv"),
    }
    (built / "apo.yaml").write_text(yaml.safe_dump(config))
    snakemake(built, configfile="apo.yaml")
    summary = pd.read_csv(built / "results/apoferritin/summary.tsv", sep="\t").set_index(
        ["method", "estimator", "metric"]
    )
    assert (summary.loc["cryon2n", "half", "umse"]["mean"]) < (summary.loc["raw", "half", "umse"]["mean"])
    assert summary.loc["gaussian", "half", "cross_frc"]["mean"] > 0.1
    assert pd.isna(summary.loc["cryon2n", "mean", "psnr"]["mean"])  # no truth on real data
    assert pd.notna(summary.loc["raw", "full", "topaz_snr_db"]["mean"])
    # Every micrograph is scored, with what another half of them has trained and tuned.
    results, tested = built / "results/apoferritin", []
    assert set(summary["n"].loc["cryon2n", "half", "umse"].ravel()) == {4}
    for fold in ("fold-1", "fold-2"):
        split = json.loads((results / "shards" / fold / "manifest.json").read_text())["split"]
        tested += split["test"]
        tuned = json.loads((results / "models" / fold / "gaussian/filter.json").read_text())
        assert tuned["chosen_on"] == split["val"]
        for mic in split["test"]:
            made = json.loads((results / "denoised/cryon2n" / f"{mic}.json").read_text())
            weights = results / "models" / fold / "cryon2n/weights.safetensors"
            assert made["weights_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert sorted(tested) == sorted(path.stem for path in (results / "halves").glob("*.json"))
    assert "cross-validated in 2 folds" in (results / "report.html").read_text()
    assert "one of 2 folds" in (results / "comparison.md").read_text()


def same_halves(tree: Path, dataset: str) -> bool:
    """Whether the halves of `dataset` are those of the tiny study, byte for byte but for the header's label."""
    pairs = sorted((tree / f"results/{dataset}/halves").glob("*_[ab].mrc"))
    assert len(pairs) >= 6
    return all(np.array_equal(mrcfile.read(p), mrcfile.read(tree / "results/tiny/halves" / p.name)) for p in pairs)


def test_the_users_own_movies_give_the_same_halves(built):
    rows = [f"phantom_{i:04d}\tdata/tiny/raw/phantom_{i:04d}.mrc" for i in range(1, 5)]
    (built / "movies.tsv").write_text("\n".join(["micrograph\tpath", *rows]) + "\n")
    raw = "data/tiny/raw"
    source = {"kind": "movies", "sheet": "movies.tsv", "gain": f"{raw}/gain.mrc", "dark": f"{raw}/dark.mrc"}
    name = change_config(built, "mine.yaml", dataset="mine", source=source, split={"val": 1, "test": 1})
    snakemake(built, "halves_all", configfile=name)
    assert same_halves(built, "mine")


def test_an_entry_is_fetched_from_an_archive_and_gives_the_same_halves(built):
    """A replica of the archive on loopback: by its address alone the study runs on it."""
    folder = built / "archive/10025/data/set"
    folder.mkdir(parents=True)
    rows = []
    for path in sorted((built / "data/tiny/raw").glob("*.mrc")):
        shutil.copy(path, folder)
        if path.stem.startswith("phantom"):
            rows.append(f"{path.stem}\tdata/set/{path.name}\t{path.stat().st_size}\t-\t5\t192\t208\tuint8")
    header = "micrograph\tpath\tsize\tsha256\tframes\theight\twidth\tdata_type"
    (built / "sheet.tsv").write_text("\n".join([header, *rows]) + "\n")
    handler = functools.partial(QuietHandler, directory=built / "archive")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        source = {
            "kind": "empiar",
            "sheet": "sheet.tsv",
            "gain": "data/set/gain.mrc",
            "dark": "data/set/dark.mrc",
            "empiar": {
                "base_url": f"http://127.0.0.1:{server.server_port}",
                "allow_http": True,
            },
        }
        name = change_config(built, "entry.yaml", dataset="entry", source=source)
        snakemake(built, "halves_all", configfile=name)
        server.shutdown()
    assert same_halves(built, "entry")


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Serves files and says nothing."""

    def log_message(self, *args):
        pass
