"""Names, lists and helpers that the rules share.  No rule here, no work here."""

import json
import re
import shlex
import sys
from pathlib import Path

SOURCE = Path(workflow.basedir) / "src"
sys.path.insert(0, str(SOURCE))

from cryon2n import outside, pair, probes
from cryon2n import plan as planning
from cryon2n.codeversion import code_version
from cryon2n.errors import InputError
from cryon2n.methods import EIGHTFOLD, FILTERS, TOPAZ, model_and_symmetries
from cryon2n.movie_header import MOVIE_ENDINGS
from cryon2n.shards_bad import find_masks
from cryon2n.shards_tiles import most_pairings
from cryon2n.study import REFERENCE_ENDING, all_methods, read_study

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
FOLDS = STUDY.folds
TEST = STUDY.test
MODELS = list(config["models"])
METHODS = all_methods(config)
# Our methods: a model as it is, and its mean over the 8 symmetries of the square.
OURS = [*MODELS, *(f"{model}{EIGHTFOLD}" for model in MODELS)]
OUTSIDE = config["compare"]["outside"]
# Of so many test micrographs probes are made, which every method denoises like the rest (rules/panel.smk).
PANEL = TEST[: config["compare"]["panel"]["micrographs"]]
PROBED = {f"{mic}-{kind}": mic for mic in PANEL for kind in (probes.INJECTED, probes.SCRAMBLED)}
PROBES = list(PROBED)
# Picking wants to know where particles are.
PICKING = KIND == "phantom" or bool(config["compare"]["labels"])
ESTIMATES = [f"{ending}.mrc" for _, ending in pair.estimate_files(pair.INPUTS).values()]
# A job on the CPU takes no GPU; otherwise every job that can use one takes one.
GPU = 0 if config["compute"]["device"] == "cpu" else 1
DEVICE = config["compute"]["device"]


wildcard_constraints:
    dataset=re.escape(DATASET),
    mic="|".join(map(re.escape, MICROGRAPHS + PROBES)),
    method="|".join(map(re.escape, METHODS + OURS)),
    model="|".join(map(re.escape, MODELS)),
    ending="|".join(map(re.escape, MOVIE_ENDINGS)),
    reference="gain|dark",
    fold=f"(?:{'|'.join(map(re.escape, FOLDS))})",  # the empty one, too: an empty constraint would be none
    format=REFERENCE_ENDING.pattern.removesuffix("$"),


def settings(*path):
    """Give a part of the config as JSON: it reaches the command as one argument, and a change of it reruns the rule."""
    part = config
    for key in path:
        part = part[key]
    return json.dumps(part, sort_keys=True)


def whole_config(wildcards):
    """Give the config as JSON.  A function, since text in params is searched for wildcards: a command holds {input}."""
    return json.dumps(config, sort_keys=True)


def records(split):
    """Give the records of the halves of a split: of a fold's training or validation, or of all that is tested."""

    def of_fold(wildcards):
        return [f"results/{DATASET}/halves/{mic}.json" for mic in FOLDS[wildcards.fold][split]]

    return [f"results/{DATASET}/halves/{mic}.json" for mic in TEST] if split == "test" else of_fold


def halves_of(split):
    """Give the halves themselves, which the commands find beside their records."""

    def beside(paths):
        return [f"{path.removesuffix('.json')}_{side}.mrc" for path in paths for side in "ab"]

    found = records(split)
    return beside(found) if split == "test" else lambda wildcards: beside(found(wildcards))


def model_of(name):
    """Give a model's file for a micrograph or a probe: of the fold that tests it."""

    def of_micrograph(wildcards):
        mic = PROBED.get(wildcards.mic, wildcards.mic)
        model, _ = model_and_symmetries(wildcards.method)
        return f"results/{wildcards.dataset}/models/{STUDY.fold_of(mic)}{model}/{name}"

    return of_micrograph


def tuned_on(files):
    """Give a filter's records or halves: Wiener is fitted like a model, others' setting chosen in validation."""

    def of_method(wildcards):
        return files("train" if wildcards.method == "wiener" else "val")(wildcards)

    return of_method


def record_of(wildcards):
    """Give the record of a micrograph's halves, or of a probe."""
    folder = "probes" if wildcards.mic in PROBES else "halves"
    return f"results/{wildcards.dataset}/{folder}/{wildcards.mic}.json"


def sides_of(wildcards):
    """Give the halves themselves of a micrograph or a probe."""
    stem = record_of(wildcards).removesuffix(".json")
    return [f"{stem}_{side}.mrc" for side in "ab"]


def takes_probes(method):
    """Tell whether a method can denoise probes: a folder from outside holds what it holds."""
    return "folder" not in OUTSIDE.get(method, {})


def masks(wildcards):
    """Give the masks of the training micrographs that are there, so that another mask makes the shards anew."""
    folder = config["shards"]["masks"]
    if folder is None:
        return []
    try:
        return [str(path) for path in find_masks(folder, FOLDS[wildcards.fold]["train"]).values()]
    except InputError as error:
        raise WorkflowError(str(error)) from None


def groups_of_train(wildcards):
    """Give the stacks of groups that the training micrographs' pairings are made from."""
    wanted = config["shards"]["pairings"]
    n = 2 if config["source"]["kind"] == "halves" else config["halves"]["groups"]
    if wanted > (most := most_pairings(n)):
        raise WorkflowError(
            f"config: shards: pairings {wanted}: {n} groups of frames make {most}; lower it, or raise halves: groups "
            "(to 4 for 3 pairings; halves of another program have 2)"
        )
    if wanted == 1:
        return []
    return [f"{path.removesuffix('.json')}_groups.mrc" for path in records("train")(wildcards)]


def estimates(methods, micrographs):
    """Give the files that methods make of micrographs."""
    # What a method from outside makes is not known to its rule: it declares its record, written last.
    return [
        f"results/{DATASET}/denoised/{method}/{mic}{ending}"
        for method in methods
        for mic in micrographs
        for ending in ([".json"] if method in OUTSIDE else ESTIMATES)
    ]


def outside_files(method, micrographs):
    """Give what the folder of a method from outside holds of micrographs: by micrograph and input."""
    folder = OUTSIDE[method].get("folder")
    if folder is None:
        return {mic: dict.fromkeys(pair.INPUTS) for mic in micrographs}
    try:
        return outside.find_results(folder, micrographs)
    except InputError as error:
        raise WorkflowError(f"config: compare: outside: {method}: {error}") from None


def inputs_of(method):
    """Give the names of the images that a method has denoised."""
    if method not in OUTSIDE:
        return list(pair.INPUTS)
    return list(next(iter(outside_files(method, TEST).values())))


def finished():
    """Give what a whole run ends with; the record of the run (write_crate) comes after all of it."""
    return [
        *(f"results/{DATASET}/{name}" for name in ("report.html", "comparison.md")),
        *(f"results/{DATASET}/halves/qc/{mic}.png" for mic in MICROGRAPHS),
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
