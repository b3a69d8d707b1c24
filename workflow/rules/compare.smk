"""
Scores of all methods on the test micrographs.

REQUIRED INPUTS
    results/{dataset}/denoised/{method}/ of the test micrographs, their halves, the truth if there is one
OUTPUTS
    results/{dataset}/scores/{method}.tsv, metrics.tsv, summary.tsv, curves.tsv, cost.tsv
"""


rule score_method:
    input:
        records=records("test"),
        halves=halves_of("test"),
        excluded="results/{dataset}/halves/excluded.tsv",
        denoised=lambda wildcards: estimates([wildcards.method], TEST),
        truth=truth_of(TEST),
    output:
        scores="results/{dataset}/scores/{method}.tsv",
        rings="results/{dataset}/scores/{method}_rings.tsv",
    log:
        "logs/score_method/{dataset}/{method}.log",
    benchmark:
        "benchmarks/jobs/score_method/{dataset}/{method}.tsv"
    conda:
        "../../envs/cryon2n.yaml"
    threads: 4
    resources:
        mem="20GB",
        runtime="1h",
    params:
        denoised=lambda wildcards, input: Path(input.denoised[0]).parent,
        inputs=lambda wildcards: inputs_of(wildcards.method),
        truth=f"--truth data/{DATASET}/truth" if KIND == "phantom" else "",
        labels=optional("--labels", config["compare"]["labels"]),
        code=code_version(
            "compare.py", "pooling.py", "metrics.py", "half_errors.py", "fourier.py", "pair.py", "mrcio.py"
        ),
    shell:
        "cryon2n score-method --method {wildcards.method} --halves {input.records:q} --denoised {params.denoised:q} "
        "--inputs {params.inputs} "
        "--excluded {input.excluded:q} {params.truth} {params.labels} --threads {threads} --scores {output.scores:q} --rings {output.rings:q} "
        "2>&1 | tee {log:q}"


rule summarise:
    input:
        scores=collect("results/{{dataset}}/scores/{method}.tsv", method=METHODS),
        rings=collect("results/{{dataset}}/scores/{method}_rings.tsv", method=METHODS),
    output:
        metrics="results/{dataset}/metrics.tsv",
        summary=report(
            "results/{dataset}/summary.tsv",
            caption="../report/summary.rst",
            category="Comparison",
            labels={"What": "all metrics of all methods"},
        ),
        curves="results/{dataset}/curves.tsv",
    log:
        "logs/summarise/{dataset}.log",
    conda:
        "../../envs/cryon2n.yaml"
    threads: 1
    resources:
        mem="4GB",
        runtime="30m",
    params:
        reference=config["compare"]["reference"],
        bootstrap=config["compare"]["bootstrap"],
        seed=config["compare"]["seed"],
        code=code_version(
            "compare.py", "pooling.py", "metrics.py", "half_errors.py", "fourier.py", "pair.py", "mrcio.py"
        ),
    shell:
        "cryon2n summarise --scores {input.scores:q} --rings {input.rings:q} --reference {params.reference} "
        "--bootstrap {params.bootstrap} --seed {params.seed} --metrics {output.metrics:q} --summary {output.summary:q} "
        "--curves {output.curves:q} 2>&1 | tee {log:q}"


# Seconds and memory are those of the run that made the micrographs: they are collected anew only with those.
rule write_cost:
    input:
        records=records("test"),
        denoised=estimates(METHODS, TEST),
        told=collect("results/{{dataset}}/denoised/{method}/{mic}.json", method=METHODS, mic=TEST),
        training=collect("results/{{dataset}}/models/{fold}{model}/metrics.json", fold=FOLDS, model=MODELS),
    output:
        cost=report(
            "results/{dataset}/cost.tsv",
            caption="../report/cost.rst",
            category="Comparison",
            labels={"What": "what the methods cost"},
        ),
    log:
        "logs/write_cost/{dataset}.log",
    conda:
        "../../envs/cryon2n.yaml"
    threads: 1
    resources:
        mem="1GB",
        runtime="10m",
    params:
        results=subpath(output.cost, parent=True),
        methods=METHODS,
        folds=optional("--folds", config["split"]["folds"]),
        code=code_version("compare_cost.py", "folds.py"),
    shell:
        "cryon2n write-cost --results {params.results:q} --methods {params.methods} --test {input.records:q} "
        "{params.folds} --jobs benchmarks/jobs --out {output.cost:q} 2>&1 | tee {log:q}"
