"""Pairings of groups through the workflow: made from the stacks of groups, refused where there are none."""

import re

from test_workflow import change_config, copy_tree, snakemake


def test_pairings_take_the_groups_or_are_refused_before_anything_runs(tmp_path):
    tree = copy_tree(tmp_path)
    wanted = ("results/tiny/shards/manifest.json", "-n", "--printshellcmds", "-q", "progress")
    changes = {"source__phantom__n_frames": 8, "halves__groups": 4, "shards__pairings": 3}
    done = snakemake(tree, *wanted, configfile=change_config(tree, "three.yaml", **changes))
    said = (done.stdout + done.stderr).split("rule write_shards:")[1]
    inputs = re.search("input: (.*)", said)[1].split(", ")
    assert sum(path.endswith("_groups.mrc") for path in inputs) == sum(path.endswith("_a.mrc") for path in inputs) == 3
    assert re.search(r'write-shards .*"pairings": 3', said.replace("\n", " "))
    changes["shards__pairings"] = 4
    done = snakemake(tree, check=False, configfile=change_config(tree, "bad.yaml", **changes))
    assert done.returncode and "shards: pairings 4: 4 groups of frames make 3; lower it" in done.stdout + done.stderr
    assert not (tree / "data").exists() and not (tree / "results").exists()
