"""The study of EMPIAR-10025 against a replica of the archive: a real nginx on this machine, small movies."""

import json

import mrcfile
import pytest
import yaml
from test_workflow import copy_tree, planned, snakemake

import replica
from cryon2n import files

pytestmark = pytest.mark.skipif(replica.find_nginx() is None, reason=replica.NO_NGINX)

CONFIG, SHEET = "config/config.yaml", "config/movies/empiar-10025.tsv"


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """A running replica with two movies, and their names."""
    folder = tmp_path_factory.mktemp("archive")
    with replica.nginx(folder) as server:
        names = replica.simulate_10025(server.root, movies=2)
        yield server, names


@pytest.fixture
def tree(archive, tmp_path, cryon2n):
    """A copy of the project whose sheet says of two movies what the replica has, and whose config names it."""
    server, names = archive
    tree = copy_tree(tmp_path / "project")
    bases = ["--base-api", server.base_api, "--base-data", server.base_data]
    sheet = cryon2n("empiar", "sheet", "10025", "--image-set", "Raw movies", "--movies", 2, *bases).stdout
    small = {line.split("\t")[0]: line for line in sheet.splitlines() if line and not line.startswith("#")}
    assert set(names) < set(small)
    lines = (tree / SHEET).read_text().splitlines()
    (tree / SHEET).write_text("\n".join(small.get(line.split("\t")[0], line) for line in lines) + "\n")
    change(tree, lambda config: config["source"]["empiar"].update(base_url=server.base_data))
    return tree


def change(tree, edit):
    config = yaml.safe_load((tree / CONFIG).read_text())
    edit(config)
    (tree / CONFIG).write_text(yaml.safe_dump(config))


def halves(names):
    return [f"results/empiar-10025/halves/{name}_a.mrc" for name in names]


def bytes_sent(server, name, since):
    return sum(r.sent for r in server.requests()[since:] if name in r.path)


def test_study_runs_up_to_halves_on_the_replica(tree, archive):
    server, names = archive
    since = len(server.requests())
    done = snakemake(tree, *halves(names), configfile=CONFIG)
    assert "to fetch now: 2 movies, 0.01 GB: 0.00 GB there, 0.01 GB to fetch" in done.stderr
    raw = tree / "data/empiar-10025/raw"
    for name in names:
        path = raw / f"{name}.mrc"
        assert path.read_bytes() == next(server.root.rglob(f"{name}.frames.mrc")).read_bytes()
        assert (raw / "checksums" / f"{name}.mrc.sha256").read_text().split()[0] == files.sha256_of(path)
        record = files.read_json(tree / f"results/empiar-10025/halves/{name}.json")
        assert record["shape"] == [192, 186] and record["pixel_size_A"] == 1.315
        assert record["a"]["n_frames"] == record["b"]["n_frames"] == 19
        assert record["a"]["dose_e_per_A2"] == 26.5
        assert record["gain_check"]["verdict"] == "agrees" and record["gain_check"]["best"] == "flip_y"
        # Every byte once; a few hundred of each answer are its head.
        requests = [r for r in server.requests()[since:] if name in r.path]
        size = path.stat().st_size
        assert size <= sum(r.sent for r in requests) <= size + 1000 * len(requests)
    assert planned(snakemake(tree, "-n", *halves(names), configfile=CONFIG)) == {}


def test_how_politely_it_asks_changes_nothing(tree, archive):
    _, names = archive
    snakemake(tree, *halves(names[:1]), configfile=CONFIG)
    change(tree, lambda config: config["source"]["empiar"].update(connections=1, limit_rate="50M"))
    assert planned(snakemake(tree, "-n", *halves(names[:1]), configfile=CONFIG)) == {}
    change(tree, lambda config: config["source"]["empiar"].update(base_url="https://mirror.invalid"))
    assert planned(snakemake(tree, "-n", *halves(names[:1]), configfile=CONFIG)) == {}


def test_range_of_frames_is_fetched_alone(tree, archive):
    server, names = archive
    since = len(server.requests())
    change(tree, lambda config: config["source"].update(frames="0-19"))
    snakemake(tree, *halves(names[:1]), configfile=CONFIG)
    with mrcfile.open(tree / f"data/empiar-10025/raw/{names[0]}.mrc") as mrc:
        assert mrc.data.shape == (20, 384, 372)
    record = json.loads((tree / f"results/empiar-10025/halves/{names[0]}.json").read_text())
    assert record["a"]["n_frames"] == 10
    assert record["a"]["dose_e_per_A2"] == pytest.approx(53 * 10 / 38)
    assert bytes_sent(server, names[0], since) < 22 * 384 * 372
    # The whole movies are another thing: they are fetched again, and so are the halves made.
    change(tree, lambda config: config["source"].update(frames=None))
    again = planned(snakemake(tree, "-n", *halves(names[:1]), configfile=CONFIG))
    assert again["fetch_movie"] == again["split_halves"] == 1


def test_gain_in_the_wrong_orientation_stops_before_the_halves(tree, archive):
    _, names = archive
    change(tree, lambda config: config["halves"].update(reference_transform="none"))
    done = snakemake(tree, *halves(names[:1]), check=False, configfile=CONFIG)
    assert done.returncode != 0
    assert "reference_transform: flip_y" in done.stdout + done.stderr
    # The job failed, and Snakemake knows it: it did not find out from missing files.
    assert "MissingOutputException" not in done.stdout + done.stderr
    assert not list((tree / "results").rglob("*.mrc"))


def test_mirrors_in_the_config(tree, archive):
    server, names = archive
    gone = server.base_data.replace("world_availability", "nowhere")
    change(tree, lambda config: config["source"]["empiar"].update(base_url=[gone, server.base_data]))
    done = snakemake(tree, f"data/empiar-10025/raw/{names[0]}.mrc", configfile=CONFIG)
    assert "trying the next mirror" in done.stdout + done.stderr


def test_too_small_a_disk_is_refused_before_any_job(tree, archive):
    _, names = archive
    rows = (tree / SHEET).read_text().splitlines()
    huge = [row.replace("\t2164325984\t", "\t9000000000000000\t") for row in rows]
    (tree / SHEET).write_text("\n".join(huge) + "\n")
    done = snakemake(tree, "halves_all", check=False, configfile=CONFIG)
    assert done.returncode != 0
    assert "the disk is too small" in done.stdout + done.stderr
    assert not (tree / "data").exists()
    # What is asked for decides, not the whole study.
    snakemake(tree, f"data/empiar-10025/raw/{names[0]}.mrc", configfile=CONFIG)


def test_dry_run_needs_no_network(tree):
    change(tree, lambda config: config["source"]["empiar"].update(base_url="https://nowhere.invalid"))
    jobs = planned(snakemake(tree, "-n", configfile=CONFIG))
    assert jobs["fetch_movie"] == jobs["split_halves"] == 14
