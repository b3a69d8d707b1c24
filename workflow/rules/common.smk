"""Names, lists and helpers that the rules share.  No rule here, no work here."""

import json
import re
import shlex
import sys
from pathlib import Path

SOURCE = Path(workflow.basedir) / "src"
sys.path.insert(0, str(SOURCE))

from cryon2n import pair
from cryon2n import plan as planning
from cryon2n.codeversion import code_version
from cryon2n.errors import InputError
from cryon2n.methods import FILTERS, TOPAZ
from cryon2n.movie_header import MOVIE_ENDINGS
from cryon2n.shards_bad import find_masks
from cryon2n.study import REFERENCE_ENDING, read_study

# The commands run this checkout's code with the Python that runs Snakemake (under --sdm conda, with the
# environment's).  Snakemake formats the prefix, hence {{ }}.
PYTHON = "python" if workflow.deployment_settings.deployment_method else sys.executable
SHELL_PREFIX = (
    "set -euo pipefail; "  # Snakemake's own, which a prefix replaces: a command that fails before a pipe must fail
    f"export PYTHONPATH='{SOURCE}'; PYTHON='{PYTHON}'; "
    'cryon2n() {{ "$PYTHON" -m cryon2n "$@"; }}; '
)
shell.prefix(SHELL_PREFIX)

DATASET = config["dataset"]
KIND = config["source"]["kind"]
STUDY = read_study(config)
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
    ending="|".join(map(re.escape, MOVIE_ENDINGS)),
    reference="gain|dark",
    format=REFERENCE_ENDING.pattern.removesuffix("$"),


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


def masks(split):
    """Give the masks of a split's micrographs that are there, so that another mask makes the shards anew."""
    folder = config["shards"]["masks"]
    if folder is None:
        return []
    try:
        return [str(path) for path in find_masks(folder, SPLIT[split]).values()]
    except InputError as error:
        raise WorkflowError(str(error)) from None


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


def raw_movie(micrograph):
    """Give a micrograph's raw movie."""
    return f"data/{DATASET}/raw/{micrograph}{STUDY.sources[micrograph]['ending']}"


def polite():
    """Give the options that say which archives to ask, and how they may be asked."""
    about = config["source"]["empiar"]
    bases = [about["base_url"]] if isinstance(about["base_url"], str) else about["base_url"]
    return " ".join(
        [
            *(f"--base {shlex.quote(base)}" for base in bases),
            optional("--connections", about["connections"]),
            optional("--limit-rate", about["limit_rate"]),
            "--allow-http" if about["allow_http"] else "",
        ]
    )


def halves_settings():
    """Give the settings of the split; the dose is that of the frames that are fetched."""
    part = dict(config["halves"])
    if part.get("dose_e_per_A2"):
        part["dose_e_per_A2"] *= STUDY.share
    return json.dumps(part, sort_keys=True)


def reference_file(name):
    """Give the gain or dark reference's file, or nothing where the source has none."""
    if KIND == "phantom":
        return f"data/{DATASET}/raw/{name}.mrc"
    if name in STUDY.references:
        return f"data/{DATASET}/raw/{name}{STUDY.references[name]['ending']}"
    return []


def optional(flag, value):
    """Give ``flag value``, or nothing where there is no value."""
    return f"{flag} {value}" if value else ""


def print_plan():
    """Say what will be done, and refuse to begin downloads for which the disk is too small."""
    print(planning.plan_text(config), file=sys.stderr)
    if KIND == "empiar":
        wanted = [job.wildcards.mic for job in workflow.dag.needrun_jobs() if job.rule.name == "fetch_movie"]
        try:
            print(f"to fetch now: {planning.download_text(DATASET, STUDY, wanted)}", file=sys.stderr)
        except InputError as error:
            raise WorkflowError(str(error)) from None
