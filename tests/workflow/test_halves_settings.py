"""What the config says of groups, frames and dose weighting reaches the halves."""

import json

import mrcfile
from test_workflow import change_config, copy_tree, planned, snakemake

STACK = "results/tiny/halves/phantom_0001_groups.mrc"


def test_groups_frames_and_dose_weights_reach_the_halves(tmp_path):
    tree = copy_tree(tmp_path)
    done = snakemake(tree, "-n", STACK, check=False)
    assert done.returncode != 0 and "MissingRule" in done.stdout + done.stderr  # two groups are the halves
    halves = {"groups": 4, "frames": "1-4", "dose_weighting": True, "voltage_kV": 200}
    name = change_config(tree, "four.yaml", **{f"halves__{key}": value for key, value in halves.items()})
    snakemake(tree, STACK, configfile=name)
    record = json.loads((tree / STACK).with_name("phantom_0001.json").read_text())
    assert [group["frames"] for group in record["groups"]] == [[1], [2], [3], [4]]
    # 53 e⁻/Å² fall on all 5 frames, of which 4 are used.
    assert record["a"]["dose_e_per_A2"] == record["b"]["dose_e_per_A2"] == 21.2
    assert record["dose_weighted"] is True and record["voltage_kV"] == 200
    with mrcfile.open(tree / STACK) as stack:
        assert stack.data.shape == (4, *record["shape"])
    assert planned(snakemake(tree, "-n", STACK, configfile=name)) == {}
    (tree / STACK).unlink()
    assert planned(snakemake(tree, "-n", STACK, configfile=name))["split_halves"] == 1


def test_wrong_settings_are_named_before_anything_runs(tmp_path):
    tree = copy_tree(tmp_path)
    for key, value in (("groups", 3), ("frames", "2:5"), ("voltage_kV", 120), ("dose_weighting", "yes please")):
        done = snakemake(
            tree, "-n", check=False, configfile=change_config(tree, "bad.yaml", **{f"halves__{key}": value})
        )
        assert done.returncode != 0 and key in done.stdout + done.stderr
