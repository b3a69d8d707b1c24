"""
The plan before, the report after.

REQUIRED INPUTS
    tables, halves and denoised test micrographs
OUTPUTS
    results/{dataset}/plan.txt, report.html, gallery/index.html
"""


rule plan:
    output:
        text="results/{dataset}/plan.txt",
    log:
        "logs/plan/{dataset}.log",
    localrule: True
    conda:
        "../../envs/cryon2n.yaml"
    threads: 1
    params:
        config=json.dumps(config, sort_keys=True),
        code=code_version(
            "plan.py",
            "device.py",
            "fourier.py",
            "frame_range.py",
            "loaders.py",
            "loader_base.py",
            "loader_resident.py",
            "loader_window.py",
            "crops.py",
            "patch_files.py",
            "waits.py",
            "movie_header.py",
            "movie_sheet.py",
            "names.py",
            "pair.py",
            "pair_sheet.py",
            "phantom.py",
            "phantom_molecule.py",
            "phantom_record.py",
            "phantom_stage.py",
            "shards.py",
            "shards_tiles.py",
            "study.py",
            "tiff_header.py",
            "web.py",
            "mrcio.py",
        ),
    shell:
        "cryon2n plan --config-json {params.config:q} --out {output.text:q} 2>&1 | tee {log:q}"


rule write_report:
    input:
        plan="results/{dataset}/plan.txt",
        audit="results/{dataset}/halves/audit.tsv",
        excluded="results/{dataset}/halves/excluded.tsv",
        audit_figure="results/{dataset}/halves/audit.png",
        summary="results/{dataset}/summary.tsv",
        metrics="results/{dataset}/metrics.tsv",
        curves="results/{dataset}/curves.tsv",
        training=collect("results/{{dataset}}/models/{model}/metrics.json", model=MODELS),
        forms=collect("results/{{dataset}}/models/{model}/forms.tsv", model=MODELS),
        history=collect("results/{{dataset}}/models/{model}/log.csv", model=MODELS),
        denoised=estimates(METHODS, SPLIT["test"]),
        records=records("test"),
        truth=truth_of(SPLIT["test"]),
        templates=collect("src/cryon2n/templates/{page}.html", page=["report", "gallery"]),
    output:
        report="results/{dataset}/report.html",
        gallery="results/{dataset}/gallery/index.html",
    log:
        "logs/write_report/{dataset}.log",
    benchmark:
        "benchmarks/jobs/write_report/{dataset}.tsv"
    conda:
        "../../envs/cryon2n.yaml"
    threads: 1
    resources:
        mem="8GB",
        runtime="30m",
    params:
        config=json.dumps(config, sort_keys=True),
        results=subpath(output.report, parent=True),
        truth=f"--truth data/{DATASET}/truth" if KIND == "phantom" else "",
        code=code_version(
            "report.py",
            "audit_rules.py",
            "compare.py",
            "figures.py",
            "filters.py",
            "fourier.py",
            "metrics.py",
            "half_errors.py",
            "pair.py",
            "pair_sheet.py",
            "pooling.py",
            "report_tables.py",
            "report_training.py",
            "mrcio.py",
        ),
    shell:
        "cryon2n write-report --config-json {params.config:q} --results {params.results:q} --test {input.records:q} "
        "{params.truth} --report {output.report:q} --gallery {output.gallery:q} 2>&1 | tee {log:q}"
