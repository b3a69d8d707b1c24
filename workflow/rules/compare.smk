"""
Scores of all methods on the test micrographs.

REQUIRED INPUTS
    results/{dataset}/denoised/{method}/ of the test micrographs, their halves, the truth if there is one
OUTPUTS
    results/{dataset}/scores/{method}.tsv, metrics.tsv, summary.tsv, curves.tsv
"""


rule score_method:
    input:
        records=records("test"),
        halves=halves_of("test"),
        excluded="results/{dataset}/halves/excluded.tsv",
        denoised=lambda wildcards: estimates([wildcards.method], SPLIT["test"]),
        truth=truth_of(SPLIT["test"]),
    output:
        scores="results/{dataset}/scores/{method}.tsv",
        rings="results/{dataset}/scores/{method}_rings.tsv",
    log:
        "logs/score_method/{dataset}/{method}.log",
    benchmark:
        "benchmarks/jobs/score_method/{dataset}/{method}.tsv"
    conda:
        "../../envs/cryon2n.yaml"
    threads: 1
    resources:
        mem="8GB",
        runtime="1h",
    params:
        denoised=lambda wildcards, input: Path(input.denoised[0]).parent,
        truth=f"--truth data/{DATASET}/truth" if KIND == "phantom" else "",
        labels=optional("--labels", config["compare"]["labels"]),
        code=code_version(
            "compare.py", "pooling.py", "metrics.py", "half_errors.py", "fourier.py", "pair.py", "mrcio.py"
        ),
    shell:
        "cryon2n score-method --method {wildcards.method} --halves {input.records:q} --denoised {params.denoised:q} "
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
        code=code_version(
            "compare.py", "pooling.py", "metrics.py", "half_errors.py", "fourier.py", "pair.py", "mrcio.py"
        ),
    shell:
        "cryon2n summarise --scores {input.scores:q} --rings {input.rings:q} --reference {params.reference} "
        "--bootstrap {params.bootstrap} --metrics {output.metrics:q} --summary {output.summary:q} "
        "--curves {output.curves:q} 2>&1 | tee {log:q}"
