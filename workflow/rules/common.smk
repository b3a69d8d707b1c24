"""Names, lists and helpers that the rules share.  No rule here, no work here."""

import json
import re
import sys
from pathlib import Path

SOURCE = Path(workflow.basedir) / "src"
sys.path.insert(0, str(SOURCE))

from cryon2n import pair
from cryon2n import plan as planning
from cryon2n.codeversion import code_version
from cryon2n.methods import FILTERS, TOPAZ

# The commands run this checkout's code with the Python that runs Snakemake (under --sdm conda, with the
# environment's).  Snakemake formats the prefix, hence {{ }}.
PYTHON = "python" if workflow.deployment_settings.deployment_method else sys.executable
shell.prefix(f"export PYTHONPATH='{SOURCE}'; PYTHON='{PYTHON}'; " 'cryon2n() {{ "$PYTHON" -m cryon2n "$@"; }}; ')

DATASET = config["dataset"]
KIND = config["source"]["kind"]
STUDY = planning.read_study(config)
MICROGRAPHS = list(STUDY.micrographs)
SPLIT = STUDY.split
MODELS = list(config["models"])
METHODS = config["compare"]["methods"]
ESTIMATES = [f"{ending}.mrc" for ending in (pair.MEAN_ENDING, *(ending for _, ending in pair.INPUTS.values()))]
# A job on the CPU takes no GPU; otherwise every job that can use one takes one.
GPU = 0 if config["compute"]["device"] == "cpu" else 1
DEVICE = config["compute"]["device"]


wildcard_constraints:
    dataset=re.escape(DATASET),
    mic="|".join(map(re.escape, MICROGRAPHS)),
    method="|".join(map(re.escape, METHODS + MODELS)),
    model="|".join(map(re.escape, MODELS)),


def settings(*path):
    """Give a part of the config as JSON: it reaches the command as one argument, and a change of it reruns the rule."""
    part = config
    for key in path:
        part = part[key]
    return json.dumps(part, sort_keys=True)


def records(split):
    """Give the records of the halves of a split (train, val, test)."""
    return [f"results/{DATASET}/halves/{mic}.json" for mic in SPLIT[split]]


def halves_of(split):
    """Give the halves themselves, which the commands find beside their records."""
    return [f"results/{DATASET}/halves/{mic}_{side}.mrc" for mic in SPLIT[split] for side in "ab"]


def estimates(methods, micrographs):
    """Give the files that methods make of micrographs."""
    return [
        f"results/{DATASET}/denoised/{method}/{mic}{ending}"
        for method in methods
        for mic in micrographs
        for ending in ESTIMATES
    ]


def truth_of(micrographs):
    """Give the clean truth, where the source has one."""
    if KIND != "phantom":
        return []
    return [f"data/{DATASET}/truth/{mic}{ending}" for mic in micrographs for ending in (".mrc", ".json")]


def reference_file(name):
    """Give the gain or dark reference's file, or nothing where the source has none."""
    if KIND == "phantom" or STUDY.references.get(name):
        return f"data/{DATASET}/raw/{name}.mrc"
    return []


def optional(flag, value):
    """Give ``flag value``, or nothing where there is no value."""
    return f"{flag} {value}" if value else ""


def print_plan():
    print(planning.plan_text(config), file=sys.stderr)
