# The way of the data, in the order in which it goes.  Rules live in workflow/rules, one stage a file;
# settings in config/ (every key: config/README.md); what each file holds: docs/data-guide.md.
from snakemake.utils import min_version, validate

min_version("9.19")


# A config given with --configfile stands alone: merged into this one, it would inherit 10025's pixel size
# or gain orientation without a word.
if not workflow.config_settings.configfiles:

    configfile: "config/config.yaml"


validate(config, "workflow/schemas/config.schema.yaml")


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/fetch.smk"
include: "workflow/rules/halves.smk"
include: "workflow/rules/shards.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/denoise.smk"
include: "workflow/rules/compare.smk"
include: "workflow/rules/panel.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/bench.smk"


onstart:
    print_plan()


rule all:
    default_target: True
    input:
        finished(),
        f"results/{config['dataset']}/ro-crate-metadata.json",


rule denoise_all:
    # Every micrograph of the data set, with every model of the config.
    input:
        estimates(MODELS, MICROGRAPHS),


rule halves_all:
    # Halves, their pictures and their audit, and nothing after them.
    input:
        f"results/{config['dataset']}/halves/audit.tsv",
        collect("results/{dataset}/halves/qc/{mic}.png", dataset=config["dataset"], mic=MICROGRAPHS),


rule train_all:
    input:
        collect(
            "results/{dataset}/models/{fold}{model}/weights.safetensors",
            dataset=config["dataset"],
            fold=FOLDS,
            model=MODELS,
        ),
